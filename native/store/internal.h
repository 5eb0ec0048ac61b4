/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file internal.h
 * The store's parts, shared by the files that put, recover and compact.
 */
#ifndef DIFFENGINE_STORE_INTERNAL_H
#define DIFFENGINE_STORE_INTERNAL_H

#include "arena.h"
#include "epoch.h"
#include "models.h"
#include <pthread.h>

/*
 * The id table has one 64-bit word per id: count in bits 0-23, place in bits 24-62. With bit 63 set there is
 * no object, and the low half is the next free id.
 */
#define DE_ENTRY_COUNT_BITS 24u
#define DE_ENTRY_ABSENT ((uint64_t)1 << 63)

struct de_store {
    pthread_mutex_t lock; /**< all but the readers' three calls, de_store_count() and de_store_fd() */
    struct de_arena arena;
    struct de_epochs epochs;
    struct de_models models;
    struct de_growing ids;
    _Atomic uint32_t ids_used; /**< ids ever given out: readers look no further */
    uint32_t free_id;
    uint64_t objects, payload_bytes, header_bytes, limbo_bytes, swapped;
    struct de_swap *swap;         /**< NULL: none */
    struct de_growing dependants; /**< with swap: per id, the objects in memory that refer to it (uint32_t) */
};

struct de_store_reader {
    struct de_store *store;
    int number;
};

static inline _Atomic uint64_t *de_store_entry(const struct de_store *store, uint32_t id)
{
    return (_Atomic uint64_t *)store->ids.base + id;
}

static inline uint64_t de_entry(uint64_t place, uint32_t count)
{
    return place << DE_ENTRY_COUNT_BITS | count;
}

static inline uint32_t de_entry_count(uint64_t entry)
{
    return (uint32_t)(entry & DE_STORE_MAX_COUNT);
}

static inline uint64_t de_entry_place(uint64_t entry)
{
    return entry >> DE_ENTRY_COUNT_BITS;
}

/** The entry of @p id, or one that is absent. */
static inline uint64_t de_store_lookup(const struct de_store *store, uint32_t id)
{
    if (id >= atomic_load_explicit(&store->ids_used, memory_order_acquire))
        return DE_ENTRY_ABSENT;
    return atomic_load(de_store_entry(store, id));
}

/** Read the object at @p place, which must be @p id. @return false if its header is damaged. */
bool de_store_read_at(const struct de_store *store, uint64_t place, uint32_t id, struct de_object *object);

/** @p bytes rounded down: as many ids as objects may fit. */
uint64_t de_store_id_limit(uint64_t max_bytes);

/** A store around @p memory, empty if that is new. */
int de_store_make(const struct de_store_memory *memory, uint64_t max_bytes, struct de_store **store);
/** Free a store, but leave its memory to the caller. */
void de_store_unmake(struct de_store *store);

/** With the lock held: count @p object in or out of the statistics. */
void de_store_account(struct de_store *store, const struct de_object *object, int sign);

/** With the lock held: whether @p object's references exist and suit its encoding; their depth + 1, or 0. */
int de_store_check_references(const struct de_store *store, const struct de_object *object, uint8_t *depth);

/** With the lock held: drop @p id, whose count is 0, and everything that loses its last user by it. */
uint64_t de_store_drop(struct de_store *store, uint32_t id);

/** With the lock held: put the slot at @p place in limbo; @p id becomes free with it unless DE_NONE. */
void de_store_retire(struct de_store *store, uint64_t place, uint32_t id);

/** With the lock held: make the code tables of a MODEL. DE_OK, DE_CORRUPT (not a model), DE_FULL or
 * DE_NO_MEMORY. */
int de_store_add_model(struct de_store *store, uint32_t id, const struct de_object *object);

/** With the lock held: room to count the dependants of ids below @p count. DE_OK, DE_FULL or DE_NO_MEMORY. */
int de_store_reach_dependants(struct de_store *store, uint64_t count);
/** With the lock held: count @p object in or out as one in memory that refers to others. */
void de_store_count_dependant(struct de_store *store, const struct de_object *object, int sign);

/** With the lock held: free what no reader sees any more. */
void de_store_reclaim(struct de_store *store);

#endif
