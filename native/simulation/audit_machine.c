/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Frames, p2m and sharers counted against one another. */
#include "world.h"

#include "../machine/internal.h"

#include <stdlib.h>

bool audit_machine_settled(struct world *world)
{
    if (pthread_mutex_trylock(&world->machine->lock))
        return false;
    pthread_mutex_unlock(&world->machine->lock);
    return true;
}

static const struct domain *domain_of(const struct world *world, const struct place *place)
{
    return world->machine && place->id && place->id < world->machine->next_domain
               ? world->machine->domains[place->id]
               : NULL;
}

bool audit_page_is_out(struct world *world, struct place *place, uint32_t gfn)
{
    const struct domain *domain = domain_of(world, place);
    if (!domain || gfn >= domain->gfns)
        return false;
    uint64_t entry = p2m_get(domain, gfn);
    return entry_type(entry) != DE_P2M_INVALID && entry_frame(entry) == FRAME_NONE;
}

bool audit_page_is_nominated(struct world *world, struct place *place, uint32_t gfn)
{
    const struct domain *domain = domain_of(world, place);
    if (!domain || gfn >= domain->gfns)
        return false;
    uint64_t entry = p2m_get(domain, gfn);
    return entry_type(entry) == DE_P2M_PAGING_OUT ||
           (entry_type(entry) == DE_P2M_PAGING_IN && entry_frame(entry) != FRAME_NONE);
}

bool audit_is_private(struct world *world, struct place *place, uint32_t gfn, const uint8_t *address)
{
    const struct domain *domain = domain_of(world, place);
    uint64_t entry = domain ? p2m_get(domain, gfn) : 0;
    return domain && entry_type(entry) != DE_P2M_SHARED && entry_frame(entry) != FRAME_NONE &&
           frame_address(world->machine, entry_frame(entry)) == address;
}

bool audit_drop_pending(struct world *world, struct place *place, uint32_t gfn)
{
    const struct domain *domain = domain_of(world, place);
    if (!domain)
        return false;
    const struct ring *ring = &domain->ring;
    /* Answers are only counted, so any slot may be one that waits for its own. */
    for (uint64_t i = 0; ring->answered != ring->put && i < DE_RING_SLOTS; i++) {
        const struct de_vm_event *event = &ring->slots[i];
        if (event->gfn == gfn && (event->paging_flags & DE_PAGING_DROP_PAGE))
            return true;
    }
    return place->pages[gfn].drops || place->pages[gfn].releasing;
}

static void count_domain(struct world *world, const struct domain *domain, uint32_t *users)
{
    uint64_t types[DE_P2M_TYPES] = {0};
    for (uint32_t gfn = 0; gfn < domain->gfns; gfn++) {
        uint64_t entry = p2m_get(domain, gfn);
        enum de_p2m_type type = entry_type(entry);
        uint32_t frame = entry_frame(entry);
        types[type]++;
        bool may_lack = type == DE_P2M_INVALID || type == DE_P2M_PAGED || type == DE_P2M_PAGING_IN;
        if (frame == FRAME_NONE && !may_lack)
            WORLD_FAIL(world, "gfn %#x of domain %u has p2m type %d and no frame", gfn, domain->id, type);
        if (frame == FRAME_NONE)
            continue;
        users[frame]++;
        if ((world->machine->frames[frame].share != NULL) != (type == DE_P2M_SHARED))
            WORLD_FAIL(world, "gfn %#x of domain %u has p2m type %d, its frame is %sshared", gfn, domain->id,
                       type, world->machine->frames[frame].share ? "" : "not ");
    }
    for (int type = 0; type < DE_P2M_TYPES; type++)
        if (types[type] != domain->type_count[type])
            WORLD_FAIL(world, "domain %u has %llu gfns of p2m type %d, and counts %llu", domain->id,
                       (unsigned long long)types[type], type, (unsigned long long)domain->type_count[type]);
}

static uint32_t group_of(const struct world *world, uint16_t id)
{
    for (uint32_t i = 0; i < world->options.domains; i++)
        if (world->places[i].id == id)
            return place_group(&world->places[i]);
    return GROUPS; /* just going */
}

static void check_sharers(struct world *world, uint32_t frame, const struct share *share)
{
    uint32_t group = group_of(world, share->sharers[0].domain);
    for (uint32_t i = 0; i < share->count; i++) {
        const struct domain *domain = world->machine->domains[share->sharers[i].domain];
        uint32_t gfn = share->sharers[i].gfn;
        if (!domain || entry_frame(p2m_get(domain, gfn)) != frame)
            WORLD_FAIL(world, "frame %u counts gfn %#x of domain %u, which has another", frame, gfn,
                       share->sharers[i].domain);
        uint32_t other = group_of(world, domain->id);
        if (group < GROUPS && other < GROUPS && other != group)
            WORLD_FAIL(world, "frame %u is shared across trust groups", frame);
    }
}

/* @return mappings of the frame. */
static uint64_t check_frame(struct world *world, uint32_t number, uint32_t users)
{
    const struct frame *frame = &world->machine->frames[number];
    if (frame->share && frame->share->count != users)
        WORLD_FAIL(world, "frame %u has %u sharers, and counts %u", number, users, frame->share->count);
    if (!frame->share && users > 1)
        WORLD_FAIL(world, "frame %u has %u gfns and is not shared", number, users);
    if (users && !frame->references)
        WORLD_FAIL(world, "frame %u is free and in use", number);
    if (frame->share)
        check_sharers(world, number, frame->share);
    return frame->references - (users ? 1 : 0);
}

void audit_machine(struct world *world)
{
    const struct de_machine *machine = world->machine;
    uint32_t *users = calloc(machine->frame_count, sizeof *users);
    if (!users)
        return;
    for (uint16_t id = 1; id < machine->next_domain; id++)
        if (machine->domains[id])
            count_domain(world, machine->domains[id], users);
    uint64_t mapped = 0;
    uint32_t in_use = 0;
    for (uint32_t frame = 0; frame < machine->frame_count; frame++) {
        mapped += check_frame(world, frame, users[frame]);
        in_use += machine->frames[frame].references != 0;
    }
    free(users);
    if (mapped != machine->mapped)
        WORLD_FAIL(world, "%llu mappings are held, the machine counts %llu", (unsigned long long)mapped,
                   (unsigned long long)machine->mapped);
    if (in_use + machine->free_count != machine->frame_count)
        WORLD_FAIL(world, "%u frames in use and %u free are not %u", in_use, machine->free_count,
                   machine->frame_count);
    if (machine->claimed > machine->free_count)
        WORLD_FAIL(world, "more frames are claimed than free");
}
