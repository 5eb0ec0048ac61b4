/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file chunk.h
 * One chunk's slots and frames: pure bookkeeping in ordinary memory, the file is not touched.
 *
 * A free slot is *warm* if all frames it overlaps exist, so that using it costs no memory.
 */
#ifndef DIFFENGINE_STORE_CHUNK_H
#define DIFFENGINE_STORE_CHUNK_H

#include "layout.h"

enum de_chunk_list {
    DE_CHUNK_LIST_NONE, /**< full, or not in use */
    DE_CHUNK_LIST_WARM, /**< has free slots all of whose frames exist */
    DE_CHUNK_LIST_COLD, /**< has free slots, but each needs a new frame */
    DE_CHUNK_LIST_POOL, /**< in no use: next one for any class */
};

struct de_chunk {
    uint16_t class_index; /**< 0: in no use */
    uint16_t slots;
    uint16_t used; /**< slots taken */
    uint16_t warm_free;
    uint32_t previous, next;
    uint8_t list;
    uint8_t users[DE_CHUNK_FRAMES]; /**< taken slots that overlap each frame, at most 129 */
    uint64_t populated[DE_CHUNK_FRAMES / 64];
    uint64_t *taken; /**< bitmap of slots */
};

static inline bool de_chunk_taken(const struct de_chunk *chunk, uint32_t slot)
{
    return chunk->taken[slot / 64] >> (slot % 64) & 1;
}

static inline bool de_chunk_frame_exists(const struct de_chunk *chunk, uint32_t frame)
{
    return chunk->populated[frame / 64] >> (frame % 64) & 1;
}

/** The first slot that begins in a frame or before it and reaches into it. */
uint32_t de_chunk_first_slot(const struct de_chunk *chunk, uint32_t frame);
uint32_t de_chunk_first_frame(const struct de_chunk *chunk, uint32_t slot);
uint32_t de_chunk_last_frame(const struct de_chunk *chunk, uint32_t slot);

/** The last missing frame of a slot, or -1. */
int de_chunk_missing_frame(const struct de_chunk *chunk, uint32_t slot);

/** The first free, the first warm slot (from @p from on); chunk->slots if there is none. */
uint32_t de_chunk_next_free(const struct de_chunk *chunk, uint32_t from);
uint32_t de_chunk_first_warm(const struct de_chunk *chunk);

/** Warm slots in all, and among those that overlap a frame. */
uint16_t de_chunk_count_warm(const struct de_chunk *chunk);
uint16_t de_chunk_warm_at(const struct de_chunk *chunk, uint32_t frame);

/** Count a slot as taken, and as a user of its frames. Leaves chunk->warm_free to the caller. */
void de_chunk_mark_taken(struct de_chunk *chunk, uint32_t slot);

#endif
