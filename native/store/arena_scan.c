/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "arena_internal.h"
#include <diffengine/status.h>
#include <string.h>

/* Taking over old memory: which chunks serve which class, which frames exist. */

static int scan_frames(struct de_arena *arena)
{
    const struct de_store_memory *memory = &arena->memory;
    uint64_t last = (uint64_t)arena->chunks_used * DE_STORE_CHUNK, begin = 0, end;
    int status;
    while ((status = memory->operations->find(memory->context, &begin, &end)) == DE_OK && begin < last) {
        for (uint64_t at = begin - begin % DE_FRAME_BYTES; at < end && at < last; at += DE_FRAME_BYTES) {
            uint32_t frame = (uint32_t)(at % DE_STORE_CHUNK / DE_FRAME_BYTES);
            de_arena_chunk(arena, (uint32_t)(at / DE_STORE_CHUNK))->populated[frame / 64] |= (uint64_t)1
                                                                                             << (frame % 64);
        }
        begin = end;
    }
    return status == DE_NOT_FOUND ? DE_OK : status;
}

/* Chunk 0 and its like: the class table must exist as far as chunks do. */
static int scan_head(struct de_arena *arena)
{
    for (uint64_t at = 0; at < (uint64_t)arena->head_chunks * DE_STORE_CHUNK; at += DE_FRAME_BYTES) {
        uint32_t frame = (uint32_t)(at % DE_STORE_CHUNK / DE_FRAME_BYTES);
        bool exists = de_chunk_frame_exists(de_arena_chunk(arena, (uint32_t)(at / DE_STORE_CHUNK)), frame);
        bool needed = at < de_arena_table_offset(arena->chunks_used);
        if (exists && !needed)
            de_arena_punch(arena, at, DE_FRAME_BYTES);
        int status = !exists && needed ? de_arena_populate_at(arena, at) : DE_OK;
        if (status != DE_OK)
            return status;
        arena->head_frames += needed;
        arena->frames += needed;
    }
    return DE_OK;
}

static int scan_chunk(struct de_arena *arena, uint32_t number)
{
    struct de_chunk *chunk = de_arena_chunk(arena, number);
    uint16_t untrusted_class;
    memcpy(&untrusted_class, arena->base + de_arena_table_offset(number), sizeof(untrusted_class));
    if (untrusted_class < DE_CLASS_MIN || untrusted_class >= DE_CLASS_COUNT) {
        de_arena_punch(arena, (uint64_t)number * DE_STORE_CHUNK, DE_STORE_CHUNK);
        memset(chunk->populated, 0, sizeof(chunk->populated));
        de_arena_write_class(arena, number, 0);
        de_arena_enlist(arena, number, DE_CHUNK_LIST_POOL);
        return DE_OK;
    }
    for (uint32_t i = 0; i < DE_CHUNK_FRAMES / 64; i++)
        arena->frames += (uint64_t)__builtin_popcountll(chunk->populated[i]);
    return de_arena_assign_chunk(arena, number, untrusted_class);
}

int de_arena_scan(struct de_arena *arena)
{
    uint64_t chunks = arena->memory_bytes / DE_STORE_CHUNK;
    if (chunks < arena->head_chunks || chunks > arena->chunk_limit)
        return DE_CORRUPT;
    int status = de_growing_reach(&arena->chunks, chunks);
    if (status != DE_OK)
        return status;
    arena->chunks_used = (uint32_t)chunks;
    status = scan_frames(arena);
    if (status == DE_OK)
        status = scan_head(arena);
    for (uint32_t number = arena->head_chunks; status == DE_OK && number < arena->chunks_used; number++)
        status = scan_chunk(arena, number);
    return status;
}

void de_arena_settle(struct de_arena *arena)
{
    for (uint32_t number = arena->head_chunks; number < arena->chunks_used; number++) {
        struct de_chunk *chunk = de_arena_chunk(arena, number);
        if (!chunk->class_index)
            continue;
        de_arena_set_warm(arena, chunk, de_chunk_count_warm(chunk));
        de_arena_punch_unused(arena, number, 0, DE_CHUNK_FRAMES - 1);
        if (chunk->used)
            de_arena_relist(arena, number);
        else
            de_arena_retire_chunk(arena, number);
    }
}
