/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The page table counted against the p2m, and when to count at all. */
#include "world.h"

#include "../pager/internal.h"

#include <diffengine/status.h>

bool audit_pager_settled(struct world *world)
{
    if (pthread_mutex_trylock(&world->pager->lock))
        return false;
    pthread_mutex_unlock(&world->pager->lock);
    return true;
}

static void check_entry(struct world *world, struct place *place, uint32_t gfn, enum de_page_state state)
{
    bool out = audit_page_is_out(world, place, gfn);
    if (state == DE_PAGE_EVICTED && !out && !audit_drop_pending(world, place, gfn))
        WORLD_FAIL(world, "gfn %#x of domain %u is evicted by the page table, but not out", gfn, place->id);
    if ((state == DE_PAGE_RESIDENT || state == DE_PAGE_WATCHED) && out)
        WORLD_FAIL(world, "gfn %#x of domain %u is out, but its page table entry has no object", gfn,
                   place->id);
    if (state == DE_PAGE_RESIDENT && audit_page_is_nominated(world, place, gfn))
        WORLD_FAIL(world, "gfn %#x of domain %u is nominated, but resident by the page table", gfn,
                   place->id);
}

/* Only a proposal takes an entry into these states, and it leaves none behind, whatever a server does. */
static void check_proposals_over(struct world *world)
{
    if (pthread_mutex_trylock(&world->pager->proposals))
        return;
    pthread_mutex_unlock(&world->pager->proposals);
    uint64_t nominating = atomic_load(&world->pager->states[DE_PAGE_NOMINATING]);
    uint64_t evicting = atomic_load(&world->pager->states[DE_PAGE_EVICTING]);
    if (nominating || evicting)
        WORLD_FAIL(world, "no proposal is under way, but %llu pages are being nominated and %llu evicted",
                   (unsigned long long)nominating, (unsigned long long)evicting);
}

void audit_pager(struct world *world)
{
    check_proposals_over(world);
    uint8_t states[DE_SIMULATION_MAX_GFNS];
    uint32_t gfns = world->options.gfns;
    for (uint32_t i = 0; i < world->options.domains; i++) {
        struct place *place = &world->places[i];
        /* A hostile guest's own pages are its own affair: it can make the pager forget that one was dropped.
         */
        if (!place->known || place->leaving || place->hostile ||
            de_pager_states(world->pager, place->id, 0, gfns, states, NULL, NULL) != DE_OK)
            continue;
        for (uint32_t gfn = 0; gfn < gfns; gfn++)
            check_entry(world, place, gfn, (enum de_page_state)states[gfn]);
    }
}

void audit_count_entries(struct world *world, struct place *place, uint32_t *named, uint32_t ids)
{
    uint32_t objects[DE_SIMULATION_MAX_GFNS];
    uint32_t gfns = world->options.gfns;
    if (!place->known || de_pager_states(world->pager, place->id, 0, gfns, NULL, objects, NULL) != DE_OK)
        return;
    for (uint32_t gfn = 0; gfn < gfns; gfn++) {
        if (objects[gfn] == DE_NONE)
            continue;
        if (objects[gfn] >= ids)
            WORLD_FAIL(world, "gfn %#x of domain %u names object %u, which never was", gfn, place->id,
                       objects[gfn]);
        named[objects[gfn]]++;
    }
}

uint64_t audit_between(struct world *world)
{
    static const enum de_page_state between[] = {DE_PAGE_NOMINATING, DE_PAGE_EVICTING, DE_PAGE_LOADING};
    uint64_t count = 0;
    for (size_t i = 0; i < sizeof between / sizeof *between; i++)
        count += atomic_load(&world->pager->states[between[i]]);
    return count;
}

static bool settled(struct world *world)
{
    return audit_machine_settled(world) &&
           (!world->pager_ready || (audit_pager_settled(world) && audit_store_settled(world)));
}

void *auditor_run(void *argument)
{
    struct world *world = argument;
    struct scheduler *scheduler = world->scheduler;
    while (!world->calm) {
        if (world->result.operations < world->next_audit) {
            scheduler_sleep(scheduler, 200000);
            continue;
        }
        if (!settled(world)) {
            scheduler_yield(scheduler);
            continue;
        }
        scheduler_quiet(scheduler, true);
        audit_machine(world);
        if (world->pager_ready) {
            audit_pager(world);
            audit_store(world);
        }
        scheduler_quiet(scheduler, false);
        world->result.audits++;
        world->next_audit = world->result.operations + world->options.audit_interval;
    }
    return NULL;
}
