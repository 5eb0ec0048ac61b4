/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "arena_internal.h"
#include <diffengine/status.h>
#include <errno.h>
#include <stdatomic.h>

/* Which frames of the memory exist: made before they are touched, punched when nothing needs them. */

uint64_t de_arena_table_offset(uint32_t chunk)
{
    return sizeof(struct de_superblock) + sizeof(uint16_t) * (uint64_t)chunk;
}

void de_arena_set_warm(struct de_arena *arena, struct de_chunk *chunk, uint32_t warm_free)
{
    int64_t more = (int64_t)warm_free - chunk->warm_free;
    arena->warm_bytes += (uint64_t)(more * de_class_bytes(chunk->class_index));
    chunk->warm_free = (uint16_t)warm_free;
}

static void set_frame(struct de_arena *arena, struct de_chunk *chunk, uint32_t frame, bool exists)
{
    uint16_t before = de_chunk_warm_at(chunk, frame);
    uint64_t bit = (uint64_t)1 << (frame % 64);
    if (exists)
        chunk->populated[frame / 64] |= bit;
    else
        chunk->populated[frame / 64] &= ~bit;
    arena->frames += exists ? 1 : -1;
    de_arena_set_warm(arena, chunk, (uint32_t)chunk->warm_free - before + de_chunk_warm_at(chunk, frame));
}

int de_arena_populate_at(const struct de_arena *arena, uint64_t offset)
{
    return arena->memory.operations->populate(arena->memory.context, offset);
}

bool de_arena_punch(const struct de_arena *arena, uint64_t offset, uint64_t bytes)
{
    return arena->memory.operations->punch(arena->memory.context, offset, bytes);
}

static uint64_t offset_of(uint32_t number, uint32_t frame)
{
    return (uint64_t)number * DE_STORE_CHUNK + (uint64_t)frame * DE_FRAME_BYTES;
}

/* In memory that is given back by chunks. */
static void punch_whole(struct de_arena *arena, uint32_t number)
{
    struct de_chunk *chunk = de_arena_chunk(arena, number);
    if (chunk->used || !de_arena_punch(arena, offset_of(number, 0), DE_STORE_CHUNK))
        return;
    for (uint32_t frame = 0; frame < DE_CHUNK_FRAMES; frame++)
        if (de_chunk_frame_exists(chunk, frame))
            set_frame(arena, chunk, frame, false);
}

void de_arena_punch_unused(struct de_arena *arena, uint32_t number, uint32_t first, uint32_t last)
{
    struct de_chunk *chunk = de_arena_chunk(arena, number);
    if (arena->memory.operations->piece_bytes > DE_FRAME_BYTES) {
        punch_whole(arena, number);
        return;
    }
    for (uint32_t frame = first; frame <= last; frame++)
        if (de_chunk_frame_exists(chunk, frame) && !chunk->users[frame] &&
            de_arena_punch(arena, offset_of(number, frame), DE_FRAME_BYTES))
            set_frame(arena, chunk, frame, false);
}

int de_arena_populate_slot(struct de_arena *arena, uint32_t number, uint32_t slot)
{
    struct de_chunk *chunk = de_arena_chunk(arena, number);
    uint32_t first = de_chunk_first_frame(chunk, slot), last = de_chunk_last_frame(chunk, slot), missing = 0;
    for (uint32_t frame = first; frame <= last; frame++)
        missing += !de_chunk_frame_exists(chunk, frame);
    if (arena->frames + missing > arena->frame_limit)
        return DE_FULL;
    for (uint32_t frame = first; frame <= last; frame++) {
        if (de_chunk_frame_exists(chunk, frame))
            continue;
        int status = de_arena_populate_at(arena, offset_of(number, frame));
        if (status != DE_OK) {
            int error = errno;
            de_arena_punch_unused(arena, number, first, last);
            errno = error;
            return status;
        }
        set_frame(arena, chunk, frame, true);
    }
    return DE_OK;
}

int de_arena_reach_memory(struct de_arena *arena, uint64_t bytes)
{
    if (bytes <= arena->memory_bytes)
        return DE_OK;
    int status = arena->memory.operations->grow(arena->memory.context, bytes);
    if (status == DE_OK)
        arena->memory_bytes = bytes;
    return status;
}

int de_arena_reach_table(struct de_arena *arena, uint32_t number)
{
    while (arena->head_frames * DE_FRAME_BYTES < de_arena_table_offset(number + 1)) {
        if (arena->frames >= arena->frame_limit)
            return DE_FULL;
        int status = de_arena_populate_at(arena, arena->head_frames * DE_FRAME_BYTES);
        if (status != DE_OK)
            return status;
        arena->head_frames++;
        arena->frames++;
    }
    return DE_OK;
}

/* In the mapping's class table, whose frame exists since the chunk was first used. */
void de_arena_write_class(struct de_arena *arena, uint32_t number, uint32_t class_index)
{
    _Atomic uint16_t *entry = (_Atomic uint16_t *)(arena->base + de_arena_table_offset(number));
    atomic_store_explicit(entry, (uint16_t)class_index, memory_order_release);
}
