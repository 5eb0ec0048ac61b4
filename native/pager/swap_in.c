/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "swap_in.h"

#include <diffengine/status.h>
#include <errno.h>
#include <stdlib.h>

int swap_read_parts(struct de_swap_channel *channel, struct de_swapped_parts *parts)
{
    int status = DE_OK;
    for (size_t i = 0; status == DE_OK && i < parts->count; i++) {
        status = de_swap_read(channel, &parts->places[i], i);
        parts->payloads[i] = de_swap_channel_page(channel, i);
    }
    return status;
}

int swap_in_create(struct de_pager *pager, struct de_holds *holds, struct swap_in **result)
{
    struct swap_in *swap_in = calloc(1, sizeof *swap_in);
    if (!swap_in)
        return DE_NO_MEMORY;
    swap_in->pager = pager;
    swap_in->holds = holds;
    int status = de_swap_channel_create(pager->swap, DE_REBUILD_MAX_SWAPPED, &swap_in->channel);
    if (status != DE_OK) {
        free(swap_in);
        return status;
    }
    pthread_mutex_init(&swap_in->lock, NULL);
    pthread_cond_init(&swap_in->changed, NULL);
    *result = swap_in;
    return DE_OK;
}

void swap_in_free(struct swap_in *swap_in)
{
    if (!swap_in)
        return;
    de_swap_channel_free(swap_in->channel);
    pthread_cond_destroy(&swap_in->changed);
    pthread_mutex_destroy(&swap_in->lock);
    free(swap_in);
}

void swap_in_begin(struct swap_in *swap_in)
{
    pthread_mutex_lock(&swap_in->lock);
    atomic_store(&swap_in->state, SWAP_IN_READING);
    pthread_cond_signal(&swap_in->changed);
    pthread_mutex_unlock(&swap_in->lock);
}

bool swap_in_read(struct swap_in *swap_in)
{
    if (atomic_load(&swap_in->state) != SWAP_IN_READING)
        return false;
    swap_in->status = swap_read_parts(swap_in->channel, &swap_in->parts);
    atomic_store(&swap_in->state, SWAP_IN_READ);
    if (swap_in->holds) {
        de_holds_interrupt(swap_in->holds);
    } else {
        atomic_store(&swap_in->pager->disk_done, true);
        HYPERCALL(swap_in->pager, interrupt);
    }
    return true;
}

static void *read_thread(void *argument)
{
    struct swap_in *swap_in = argument;
    pthread_mutex_lock(&swap_in->lock);
    while (!swap_in->stop) {
        pthread_mutex_unlock(&swap_in->lock);
        bool some = swap_in_read(swap_in);
        pthread_mutex_lock(&swap_in->lock);
        if (!some && !swap_in->stop && atomic_load(&swap_in->state) != SWAP_IN_READING)
            pthread_cond_wait(&swap_in->changed, &swap_in->lock);
    }
    pthread_mutex_unlock(&swap_in->lock);
    return NULL;
}

int swap_in_start(struct swap_in *swap_in)
{
    swap_in->stop = false;
    int error = pthread_create(&swap_in->thread, NULL, read_thread, swap_in);
    swap_in->running = !error;
    return error;
}

void swap_in_stop(struct swap_in *swap_in)
{
    if (!swap_in->running)
        return;
    pthread_mutex_lock(&swap_in->lock);
    swap_in->stop = true;
    pthread_cond_signal(&swap_in->changed);
    pthread_mutex_unlock(&swap_in->lock);
    pthread_join(swap_in->thread, NULL);
    swap_in->running = false;
}

size_t de_pager_swap_read(struct de_pager *pager)
{
    size_t done = 0;
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS; i++) {
        struct pager_domain *domain = pager_domain_at(pager, i);
        if (!domain)
            continue;
        if (domain->swap_in && !domain->swap_in->running)
            done += swap_in_read(domain->swap_in);
        pager_domain_put(pager, domain);
    }
    return done;
}
