/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file arena.h
 * The memory cut into chunks, chunks into slots of one size class; which frames of it exist.
 *
 * Knows nothing of objects. Everything but de_arena_slot() and de_arena_slot_bytes() is for one thread at a
 * time (the store's lock); those two are for readers too, for places whose slot is taken.
 */
#ifndef DIFFENGINE_STORE_ARENA_H
#define DIFFENGINE_STORE_ARENA_H

#include "chunk.h"
#include "growing.h"

#include <diffengine/store_memory.h>

/** A place is chunk << DE_PLACE_SLOT_BITS | slot; 39 bits in all. Never 0, as the file's head is in chunk 0.
 */
#define DE_PLACE_SLOT_BITS 14u
#define DE_PLACE_BITS 39u
#define DE_MAX_CHUNKS ((uint32_t)1 << (DE_PLACE_BITS - DE_PLACE_SLOT_BITS))

struct de_arena {
    struct de_store_memory memory;
    uint8_t *base;
    uint64_t memory_bytes;        /**< how far frames may be made */
    uint64_t frame_limit, frames; /**< allowed, and existing ones */
    uint64_t head_frames;         /**< existing ones of the superblock and the class table */
    uint64_t warm_bytes;          /**< in warm slots */
    uint64_t bitmap_bytes;
    uint32_t chunk_limit, head_chunks, chunks_used;
    struct de_growing chunks;
    uint32_t warm[DE_CLASS_COUNT], cold[DE_CLASS_COUNT], pool;
};

/** Chunks that a store of @p max_bytes may spread over: file addresses, not memory. */
uint32_t de_arena_chunk_limit(uint64_t max_bytes);

/**
 * Map @p memory, which stays the caller's to close. New memory gets its superblock; for old, follow up with
 * de_arena_scan().
 * @return DE_OK, DE_NO_MEMORY, DE_FULL or DE_SYSTEM.
 */
int de_arena_create(struct de_arena *arena, const struct de_store_memory *memory, uint64_t max_bytes);
void de_arena_free(struct de_arena *arena);

/** Find out which chunks of old memory serve which class and which frames exist; no slot is taken yet. */
int de_arena_scan(struct de_arena *arena);
/** After de_arena_scan() and de_arena_mark(): give back what no taken slot needs, fill the lists. */
void de_arena_settle(struct de_arena *arena);
/** Whether all frames of a slot exist. Others must not be touched: a read would make them. */
bool de_arena_exists(const struct de_arena *arena, uint32_t chunk, uint32_t slot);
/** Declare a slot of old memory taken. */
void de_arena_mark(struct de_arena *arena, uint64_t place);

/** Take a slot for an object. @return DE_OK, DE_FULL, DE_NO_MEMORY or DE_SYSTEM. */
int de_arena_take(struct de_arena *arena, uint32_t object_bytes, uint64_t *place);
/** Take one free slot of a chunk in use. @return DE_OK, DE_FULL or DE_SYSTEM. */
int de_arena_take_at(struct de_arena *arena, uint64_t place);
/** Free a slot, and every frame that thereby serves no slot. */
void de_arena_give(struct de_arena *arena, uint64_t place);

uint64_t de_arena_table_bytes(const struct de_arena *arena);

static inline struct de_chunk *de_arena_chunk(const struct de_arena *arena, uint32_t chunk)
{
    return (struct de_chunk *)arena->chunks.base + chunk;
}

static inline uint64_t de_place(uint32_t chunk, uint32_t slot)
{
    return (uint64_t)chunk << DE_PLACE_SLOT_BITS | slot;
}

static inline uint32_t de_place_chunk(uint64_t place)
{
    return (uint32_t)(place >> DE_PLACE_SLOT_BITS);
}

static inline uint32_t de_place_slot(uint64_t place)
{
    return (uint32_t)(place & (((uint64_t)1 << DE_PLACE_SLOT_BITS) - 1));
}

static inline uint32_t de_arena_slot_bytes(const struct de_arena *arena, uint64_t place)
{
    return de_class_bytes(de_arena_chunk(arena, de_place_chunk(place))->class_index);
}

static inline uint8_t *de_arena_slot(const struct de_arena *arena, uint64_t place)
{
    return arena->base + (uint64_t)de_place_chunk(place) * DE_STORE_CHUNK +
           (uint64_t)de_place_slot(place) * de_arena_slot_bytes(arena, place);
}

#endif
