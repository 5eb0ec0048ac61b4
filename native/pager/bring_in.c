/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "bring_in.h"

#include <diffengine/status.h>
#include <stdlib.h>
#include <time.h>

/** How soon a load that can't be done yet is tried again. */
#define RETRY_NS 1000000

struct bring_in {
    struct de_pager *pager;
    struct pager_domain *domain;
    struct loader loader;
    pthread_t thread;
    bool running;
    atomic_bool stop;
    bool retry; /**< something that was asked for could not be done yet */
};

int bring_in_create(struct de_pager *pager, struct pager_domain *domain, struct bring_in **result)
{
    struct bring_in *bring_in = calloc(1, sizeof *bring_in);
    if (!bring_in)
        return DE_NO_MEMORY;
    bring_in->pager = pager;
    bring_in->domain = domain;
    int status = de_rebuilder_create(pager->store, &bring_in->loader.rebuilder);
    if (status == DE_OK && pager->swap)
        status = de_swap_channel_create(pager->swap, DE_REBUILD_MAX_SWAPPED, &bring_in->loader.channel);
    if (status != DE_OK) {
        bring_in_free(bring_in);
        return status;
    }
    *result = bring_in;
    return DE_OK;
}

void bring_in_free(struct bring_in *bring_in)
{
    if (!bring_in)
        return;
    de_swap_channel_free(bring_in->loader.channel);
    de_rebuilder_free(bring_in->loader.rebuilder);
    free(bring_in);
}

/* @return false: it can't be done yet. */
static bool load(struct bring_in *bring_in, uint32_t gfn)
{
    /* What has no object is in, or as good as: a mapping finds out. */
    if (entry_get(bring_in->domain, gfn).object == DE_NONE)
        return true;
    switch (pager_load(bring_in->pager, bring_in->domain, gfn, &bring_in->loader)) {
    case LOADED:
    case LOAD_UNNEEDED:
    case LOAD_FAILED: /* the domain is paused for it */
    case LOAD_DOMAIN_GONE:
        return true;
    default:
        return false;
    }
}

size_t bring_in_serve(struct bring_in *bring_in)
{
    struct de_holds *holds = atomic_load(&bring_in->domain->holds);
    size_t answered = 0;
    bring_in->retry = false;
    for (uint32_t slot = 0; slot < DE_HOLDS_REQUESTS; slot++) {
        uint32_t gfn;
        if (!de_holds_request(holds, slot, &gfn))
            continue;
        if (load(bring_in, gfn)) {
            de_holds_answer(holds, slot);
            answered++;
        } else {
            bring_in->retry = true;
        }
    }
    pager_release_soon(bring_in->pager);
    return answered;
}

static void *serve_thread(void *argument)
{
    struct bring_in *bring_in = argument;
    const struct de_holds *holds = atomic_load(&bring_in->domain->holds);
    while (!atomic_load(&bring_in->stop)) {
        uint32_t asked = de_holds_asked(holds);
        bring_in_serve(bring_in);
        if (bring_in->retry)
            nanosleep(&(struct timespec){.tv_nsec = RETRY_NS}, NULL);
        else if (!atomic_load(&bring_in->stop))
            de_holds_await(atomic_load(&bring_in->domain->holds), asked);
    }
    return NULL;
}

int bring_in_start(struct bring_in *bring_in)
{
    atomic_store(&bring_in->stop, false);
    int error = pthread_create(&bring_in->thread, NULL, serve_thread, bring_in);
    bring_in->running = !error;
    return error;
}

void bring_in_stop(struct bring_in *bring_in)
{
    if (!bring_in->running)
        return;
    atomic_store(&bring_in->stop, true);
    de_holds_interrupt(atomic_load(&bring_in->domain->holds));
    pthread_join(bring_in->thread, NULL);
    bring_in->running = false;
}
