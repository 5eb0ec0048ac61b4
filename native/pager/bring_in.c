/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "bring_in.h"

#include "swap_in.h"

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
        status = swap_in_create(pager, atomic_load(&domain->holds), &bring_in->loader.swap_in);
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
    if (bring_in->loader.swap_in)
        pager_abandon_swap_in(bring_in->pager, bring_in->domain, bring_in->loader.swap_in);
    swap_in_free(bring_in->loader.swap_in);
    de_rebuilder_free(bring_in->loader.rebuilder);
    free(bring_in);
}

/* @return false: it can't be done yet. */
static bool is_done(struct bring_in *bring_in, enum loaded loaded)
{
    switch (loaded) {
    case LOADED:
    case LOAD_UNNEEDED:
    case LOAD_FAILED: /* the domain is paused for it */
    case LOAD_DOMAIN_GONE:
        return true;
    case LOAD_DISK: /* its thread tells when it has read something */
        return false;
    default:
        bring_in->retry = true;
        return false;
    }
}

static bool load(struct bring_in *bring_in, uint32_t gfn)
{
    /* What has no object is in, or as good as: a mapping finds out. */
    return entry_get(bring_in->domain, gfn).object == DE_NONE ||
           is_done(bring_in, pager_load(bring_in->pager, bring_in->domain, gfn, &bring_in->loader));
}

/* Load what the disk has given. @param[out] gfn Whose page that was. @return whether one is done with. */
static bool finish_swap_in(struct bring_in *bring_in, uint32_t *gfn)
{
    const struct swap_in *swap_in = bring_in->loader.swap_in;
    return swap_in && atomic_load(&swap_in->state) == SWAP_IN_READ &&
           is_done(bring_in, pager_load_swapped(bring_in->pager, bring_in->domain, &bring_in->loader, gfn));
}

size_t bring_in_serve(struct bring_in *bring_in)
{
    struct de_holds *holds = atomic_load(&bring_in->domain->holds);
    size_t answered = 0;
    uint32_t finished;
    bring_in->retry = false;
    bool some_finished = finish_swap_in(bring_in, &finished);
    for (uint32_t slot = 0; slot < DE_HOLDS_REQUESTS; slot++) {
        uint32_t gfn;
        if (!de_holds_request(holds, slot, &gfn))
            continue;
        if ((some_finished && gfn == finished) || load(bring_in, gfn)) {
            de_holds_answer(holds, slot);
            answered++;
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
    int error = bring_in->loader.swap_in ? swap_in_start(bring_in->loader.swap_in) : 0;
    if (!error)
        error = pthread_create(&bring_in->thread, NULL, serve_thread, bring_in);
    bring_in->running = !error;
    if (error && bring_in->loader.swap_in)
        swap_in_stop(bring_in->loader.swap_in);
    return error;
}

void bring_in_stop(struct bring_in *bring_in)
{
    if (!bring_in->running)
        return;
    atomic_store(&bring_in->stop, true);
    de_holds_interrupt(atomic_load(&bring_in->domain->holds));
    pthread_join(bring_in->thread, NULL);
    if (bring_in->loader.swap_in)
        swap_in_stop(bring_in->loader.swap_in);
    bring_in->running = false;
}
