/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "internal.h"

#include "file.h"
#include <diffengine/status.h>
#include <errno.h>
#include <string.h>

/*
 * Taking over a store whose writer is gone. What the headers say is believed only as far as it is consistent:
 * a slot in doubt is a free slot. Nothing is allocated in the store before everything is known.
 */

static int read_superblock(const struct de_store_memory *memory, struct de_superblock *superblock)
{
    int status = memory->operations->peek(memory->context, superblock, sizeof(*superblock));
    if (status != DE_OK)
        return status;
    bool ours = !memcmp(superblock->magic, DE_SUPERBLOCK_MAGIC, 8) &&
                superblock->version == DE_LAYOUT_VERSION && superblock->chunk_bytes == DE_STORE_CHUNK &&
                superblock->max_bytes >= DE_STORE_CHUNK && superblock->max_bytes <= (uint64_t)1 << 44;
    return ours ? DE_OK : DE_CORRUPT;
}

/* Note an object that was found. @return DE_OK, DE_CORRUPT if it can't be, or DE_NO_MEMORY. */
static int adopt(struct de_store *store, uint64_t place, uint32_t id)
{
    if (id >= de_store_id_limit(store->arena.frame_limit * DE_FRAME_BYTES))
        return DE_CORRUPT;
    if (de_growing_reach(&store->ids, (uint64_t)id + 1))
        return DE_NO_MEMORY;
    /* A writer that died while it moved an object leaves it twice; the first one found will do. */
    if (atomic_load(de_store_entry(store, id)))
        return DE_CORRUPT;
    atomic_store(de_store_entry(store, id), de_entry(place, 0));
    if (id >= store->ids_used)
        store->ids_used = id + 1;
    return DE_OK;
}

static int scan_objects(struct de_store *store, uint32_t number)
{
    const struct de_chunk *chunk = de_arena_chunk(&store->arena, number);
    for (uint32_t slot = 0; chunk->class_index && slot < chunk->slots; slot++) {
        uint64_t place = de_place(number, slot);
        uint8_t *untrusted_slot = de_arena_slot(&store->arena, place);
        struct de_object object;
        uint32_t id;
        if (!de_arena_exists(&store->arena, number, slot))
            continue;
        int status = DE_CORRUPT;
        if (de_object_read(untrusted_slot, de_class_bytes(chunk->class_index), &id, &object))
            status = adopt(store, place, id);
        if (status == DE_NO_MEMORY)
            return status;
        if (status == DE_CORRUPT && de_object_claimed(untrusted_slot))
            de_object_erase(untrusted_slot);
    }
    return DE_OK;
}

static bool references_settled(struct de_store *store, const struct de_object *object)
{
    uint8_t depth;
    return de_store_check_references(store, object, &depth) == DE_OK && depth == object->depth;
}

/* @return DE_OK, or DE_NO_MEMORY: short of memory is no reason to drop a model, and all that was coded with
 * it. */
static int settle_object(struct de_store *store, uint32_t id, uint64_t place, const struct de_object *object)
{
    int status = references_settled(store, object) ? DE_OK : DE_CORRUPT;
    if (status == DE_OK && object->encoding == DE_ENCODING_MODEL)
        status = de_store_add_model(store, id, object);
    if (status == DE_NO_MEMORY)
        return status;
    if (status != DE_OK) {
        de_object_erase(de_arena_slot(&store->arena, place));
        atomic_store(de_store_entry(store, id), 0);
        return DE_OK;
    }
    for (uint32_t i = 0; i < object->reference_count; i++)
        atomic_fetch_add(de_store_entry(store, object->references[i]), 1);
    de_store_account(store, object, 1);
    de_arena_mark(&store->arena, place);
    return DE_OK;
}

/* One level: what it refers to is settled already, as its depth is less. Models (level 0) come first. */
static int settle_level(struct de_store *store, uint32_t level)
{
    int status = DE_OK;
    for (uint32_t id = 0; status == DE_OK && id < store->ids_used; id++) {
        uint64_t place = de_entry_place(atomic_load(de_store_entry(store, id)));
        struct de_object object;
        if (!place || !de_store_read_at(store, place, id, &object))
            continue;
        if (level == (object.encoding == DE_ENCODING_MODEL ? 0 : object.depth + 1u))
            status = settle_object(store, id, place, &object);
    }
    return status;
}

/* Lowest id on top, so that the table stays short. */
static void collect_free_ids(struct de_store *store)
{
    for (uint32_t id = store->ids_used; id-- > 0;) {
        if (atomic_load(de_store_entry(store, id)))
            continue;
        atomic_store(de_store_entry(store, id), DE_ENTRY_ABSENT | store->free_id);
        store->free_id = id;
    }
}

static int recover(struct de_store *store)
{
    int status = de_arena_scan(&store->arena);
    for (uint32_t number = store->arena.head_chunks; status == DE_OK && number < store->arena.chunks_used;
         number++)
        status = scan_objects(store, number);
    for (uint32_t level = 0; status == DE_OK && level <= DE_STORE_MAX_DEPTH + 1; level++)
        status = settle_level(store, level);
    if (status != DE_OK)
        return status;
    collect_free_ids(store);
    de_arena_settle(&store->arena);
    return DE_OK;
}

int de_store_open_in(const struct de_store_memory *memory, struct de_store **store)
{
    struct de_superblock untrusted_superblock;
    struct de_store *made;
    int status = read_superblock(memory, &untrusted_superblock);
    if (status == DE_OK)
        status = de_store_make(memory, untrusted_superblock.max_bytes, &made);
    if (status != DE_OK)
        return status;
    status = recover(made);
    if (status != DE_OK) {
        int error = errno;
        de_store_unmake(made);
        errno = error;
        return status;
    }
    *store = made;
    return DE_OK;
}

int de_store_open(int fd, struct de_store **store)
{
    struct de_store_memory memory;
    int status = de_store_file_create(fd, &memory);
    if (status != DE_OK)
        return status;
    status = de_store_open_in(&memory, store);
    if (status != DE_OK) {
        int error = errno;
        de_store_file_release(&memory);
        errno = error;
    }
    return status;
}

uint64_t de_store_sweep(struct de_store *store)
{
    uint64_t dropped = 0;
    pthread_mutex_lock(&store->lock);
    for (uint32_t id = 0; id < store->ids_used; id++) {
        uint64_t entry = de_store_lookup(store, id);
        if (!(entry & DE_ENTRY_ABSENT) && !de_entry_count(entry))
            dropped += de_store_drop(store, id);
    }
    de_store_reclaim(store);
    pthread_mutex_unlock(&store->lock);
    return dropped;
}
