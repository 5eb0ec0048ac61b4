/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Objects whose payload is in the swap file. What stays is the header with its references, and where the
 * payload went: same id, new slot, as when an object is moved to compact the store.
 *
 * A reference must not be in swap while a patch in memory needs it (a fault would wait for the disk although
 * its own page is here), so with a swap file the store counts for each object who in memory refers to it.
 */
#include "internal.h"
#include <diffengine/status.h>
#include <string.h>

static uint32_t *dependants(const struct de_store *store, uint32_t id)
{
    return (uint32_t *)store->dependants.base + id;
}

int de_store_reach_dependants(struct de_store *store, uint64_t count)
{
    return store->swap ? de_growing_reach(&store->dependants, count) : DE_OK;
}

void de_store_count_dependant(struct de_store *store, const struct de_object *object, int sign)
{
    if (!store->swap || object->encoding == DE_ENCODING_SWAPPED)
        return;
    for (uint32_t i = 0; i < object->reference_count; i++)
        *dependants(store, object->references[i]) += (uint32_t)sign;
}

static void note_object(struct de_store *store, uint32_t id)
{
    uint64_t entry = de_store_lookup(store, id);
    struct de_object object;
    if ((entry & DE_ENTRY_ABSENT) || !de_store_read_at(store, de_entry_place(entry), id, &object))
        return;
    de_store_count_dependant(store, &object, 1);
    /* A slot that does not exist, or that two objects name: reading tells, by its tag. */
    if (object.encoding == DE_ENCODING_SWAPPED)
        (void)de_swap_mark(store->swap, de_object_swap_place(&object).slot);
}

int de_store_attach_swap(struct de_store *store, struct de_swap *swap)
{
    int status = DE_BUSY;
    pthread_mutex_lock(&store->lock);
    if (!store->swap)
        status = de_growing_create(&store->dependants, sizeof(uint32_t),
                                   de_store_id_limit(store->arena.frame_limit * DE_FRAME_BYTES));
    if (status == DE_OK)
        status = de_growing_reach(&store->dependants, store->ids_used);
    if (status == DE_OK) {
        store->swap = swap;
        for (uint32_t id = 0; id < store->ids_used; id++)
            note_object(store, id);
    }
    pthread_mutex_unlock(&store->lock);
    return status;
}

/* The lock is held. Whether an object may go, and what it is. */
static int check(struct de_store *store, uint32_t id, struct de_object *object)
{
    uint64_t entry = de_store_lookup(store, id);
    if (entry & DE_ENTRY_ABSENT)
        return DE_NOT_FOUND;
    if (!de_store_read_at(store, de_entry_place(entry), id, object))
        return DE_CORRUPT;
    if (object->encoding == DE_ENCODING_MODEL || object->encoding == DE_ENCODING_SWAPPED ||
        object->payload_bytes <= DE_STORE_SWAP_MIN_BYTES)
        return DE_INVALID;
    return *dependants(store, id) ? DE_BUSY : DE_OK;
}

/* Keep the object from going away while it is written, by a count. */
static int pin(struct de_store *store, uint32_t id)
{
    struct de_object object;
    pthread_mutex_lock(&store->lock);
    int status = store->swap ? check(store, id, &object) : DE_INVALID;
    uint64_t entry = de_store_lookup(store, id);
    if (status == DE_OK && de_entry_count(entry) == DE_STORE_MAX_COUNT)
        status = DE_FULL;
    if (status == DE_OK)
        atomic_store(de_store_entry(store, id), entry + 1);
    pthread_mutex_unlock(&store->lock);
    return status;
}

static int seal(struct de_store_reader *reader, struct de_swap_channel *channel, uint32_t id,
                struct de_swap_place *place)
{
    struct de_object object;
    de_store_enter(reader);
    int status = de_store_get(reader, id, &object);
    if (status == DE_OK)
        status = de_swap_add(channel, object.payload, object.payload_bytes, (uint8_t)object.encoding, place);
    de_store_leave(reader);
    return status;
}

/* The lock is held. A patch may have come that needs the object. */
static int replace(struct de_store *store, uint32_t id, const struct de_swap_place *swap_place)
{
    struct de_object object;
    uint64_t place;
    int status = check(store, id, &object);
    if (status == DE_OK && !de_epochs_prepare(&store->epochs))
        status = DE_NO_MEMORY;
    if (status == DE_OK)
        status = de_arena_take(&store->arena, de_object_bytes(object.reference_count, sizeof(*swap_place)),
                               &place);
    if (status != DE_OK)
        return status;
    struct de_object swapped = object;
    swapped.encoding = DE_ENCODING_SWAPPED;
    swapped.payload = (const uint8_t *)swap_place;
    swapped.payload_bytes = sizeof(*swap_place);
    uint64_t entry = de_store_lookup(store, id);
    de_object_write(de_arena_slot(&store->arena, place), id, &swapped);
    atomic_store(de_store_entry(store, id), de_entry(place, de_entry_count(entry)));
    de_store_count_dependant(store, &object, -1);
    de_store_account(store, &object, -1);
    de_store_account(store, &swapped, 1);
    de_store_retire(store, de_entry_place(entry), DE_NONE);
    return DE_OK;
}

/* What one batch added to the channel. */
struct batch {
    size_t count;
    size_t items[DE_STORE_SWAP_BATCH]; /**< indices into the caller's arrays */
    struct de_swap_place places[DE_STORE_SWAP_BATCH];
};

static void finish(struct de_store *store, struct de_swap_channel *channel, struct batch *batch,
                   const uint32_t *ids, int *statuses)
{
    int written[DE_STORE_SWAP_BATCH];
    de_swap_flush(channel, written);
    for (size_t i = 0; i < batch->count; i++) {
        int *status = &statuses[batch->items[i]];
        uint32_t id = ids[batch->items[i]];
        *status = written[i];
        if (*status == DE_OK) {
            pthread_mutex_lock(&store->lock);
            *status = replace(store, id, &batch->places[i]);
            pthread_mutex_unlock(&store->lock);
            if (*status != DE_OK)
                de_swap_give(store->swap, batch->places[i].slot);
        }
        de_store_release(store, id);
    }
    batch->count = 0;
}

void de_store_swap_out(struct de_store *store, struct de_store_reader *reader,
                       struct de_swap_channel *channel, const uint32_t *ids, size_t count, int *statuses)
{
    struct batch batch = {.count = 0};
    for (size_t i = 0; i < count; i++) {
        statuses[i] = pin(store, ids[i]);
        /* A patch of this batch may be all that is in the way of its reference. */
        if (statuses[i] == DE_BUSY && batch.count) {
            finish(store, channel, &batch, ids, statuses);
            statuses[i] = pin(store, ids[i]);
        }
        if (statuses[i] != DE_OK)
            continue;
        statuses[i] = seal(reader, channel, ids[i], &batch.places[batch.count]);
        if (statuses[i] != DE_OK) {
            de_store_release(store, ids[i]);
            continue;
        }
        batch.items[batch.count++] = i;
        if (batch.count == DE_STORE_SWAP_BATCH)
            finish(store, channel, &batch, ids, statuses);
    }
    finish(store, channel, &batch, ids, statuses);
}
