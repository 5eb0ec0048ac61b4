/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The store's references counted against who names what; and damage done to it. */
#include "world.h"

#include "../store/internal.h"

#include <stdlib.h>

bool audit_store_settled(struct world *world)
{
    if (pthread_mutex_trylock(&world->store->lock))
        return false;
    pthread_mutex_unlock(&world->store->lock);
    return true;
}

uint32_t audit_store_ids(struct world *world)
{
    return atomic_load(&world->store->ids_used);
}

static bool read_object(const struct world *world, uint32_t id, struct de_object *object)
{
    uint64_t entry = de_store_lookup(world->store, id);
    return !(entry & DE_ENTRY_ABSENT) && de_store_read_at(world->store, de_entry_place(entry), id, object);
}

/* Whose page is in memory must not wait for the disk because of a reference. */
static void check_reference(struct world *world, uint32_t id, uint32_t reference)
{
    struct de_object object;
    if (read_object(world, reference, &object) && object.encoding == DE_ENCODING_SWAPPED)
        WORLD_FAIL(world, "object %u is in memory, and object %u, which it needs, is in swap", id, reference);
}

static void count_references(struct world *world, uint32_t *named, uint32_t ids)
{
    for (uint32_t id = 0; id < ids; id++) {
        struct de_object object;
        if (!read_object(world, id, &object))
            continue;
        for (uint32_t i = 0; i < object.reference_count; i++) {
            if (object.references[i] >= ids)
                continue;
            named[object.references[i]]++;
            if (object.encoding != DE_ENCODING_SWAPPED)
                check_reference(world, id, object.references[i]);
        }
    }
}

void audit_store(struct world *world)
{
    uint32_t ids = audit_store_ids(world);
    uint32_t *named = calloc(ids + 1u, sizeof *named);
    if (!named)
        return;
    count_references(world, named, ids);
    for (uint32_t i = 0; i < world->options.domains; i++)
        audit_count_entries(world, &world->places[i], named, ids);
    for (uint32_t i = 0; i < CACHED_OBJECTS; i++)
        if (world->cache[i].id != DE_NONE)
            named[world->cache[i].id]++;
    uint32_t wrong = DE_NONE;
    for (uint32_t id = 0; id < ids && wrong == DE_NONE; id++)
        if (de_store_count(world->store, id) < named[id])
            wrong = id;
    uint32_t users = wrong == DE_NONE ? 0 : named[wrong];
    free(named);
    if (wrong != DE_NONE)
        WORLD_FAIL(world, "object %u has %u users, and counts %u", wrong, users,
                   de_store_count(world->store, wrong));
}

void corrupt_object(struct world *world, uint32_t argument)
{
    uint32_t ids = audit_store_ids(world);
    for (uint32_t i = 0; i < ids; i++) {
        uint32_t id = (argument + i) % ids;
        struct de_object object;
        if (!read_object(world, id, &object) || !object.payload_bytes)
            continue;
        /* Damage comes from outside: it asks nobody for write access. */
        uint8_t *payload = (uint8_t *)(uintptr_t)object.payload;
        payload[(argument >> 8) % object.payload_bytes] ^= (uint8_t)(1u << (argument % 8));
        world->result.corruptions++;
        return;
    }
}
