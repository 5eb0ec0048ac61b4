/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "chunk.h"

uint32_t de_chunk_first_slot(const struct de_chunk *chunk, uint32_t frame)
{
    return frame * DE_FRAME_BYTES / de_class_bytes(chunk->class_index);
}

uint32_t de_chunk_first_frame(const struct de_chunk *chunk, uint32_t slot)
{
    return slot * de_class_bytes(chunk->class_index) / DE_FRAME_BYTES;
}

uint32_t de_chunk_last_frame(const struct de_chunk *chunk, uint32_t slot)
{
    return ((slot + 1) * de_class_bytes(chunk->class_index) - 1) / DE_FRAME_BYTES;
}

/* The last missing frame of a slot, or -1: a scan can go on behind it. */
int de_chunk_missing_frame(const struct de_chunk *chunk, uint32_t slot)
{
    uint32_t first = de_chunk_first_frame(chunk, slot);
    for (uint32_t frame = de_chunk_last_frame(chunk, slot) + 1; frame-- > first;)
        if (!de_chunk_frame_exists(chunk, frame))
            return (int)frame;
    return -1;
}

uint32_t de_chunk_next_free(const struct de_chunk *chunk, uint32_t from)
{
    for (uint32_t word = from / 64; word * 64 < chunk->slots; word++) {
        uint64_t free_bits = ~chunk->taken[word];
        if (word == from / 64)
            free_bits &= UINT64_MAX << (from % 64);
        if (free_bits)
            return word * 64 + (uint32_t)__builtin_ctzll(free_bits);
    }
    return chunk->slots;
}

uint32_t de_chunk_first_warm(const struct de_chunk *chunk)
{
    uint32_t slot = de_chunk_next_free(chunk, 0);
    while (slot < chunk->slots) {
        int missing = de_chunk_missing_frame(chunk, slot);
        if (missing < 0)
            return slot;
        uint32_t behind = de_chunk_first_slot(chunk, (uint32_t)missing + 1);
        slot = de_chunk_next_free(chunk, behind > slot ? behind : slot + 1);
    }
    return slot;
}

/* Free slots with all frames existing among those that overlap a frame. */
uint16_t de_chunk_warm_at(const struct de_chunk *chunk, uint32_t frame)
{
    uint32_t end = ((frame + 1) * DE_FRAME_BYTES - 1) / de_class_bytes(chunk->class_index) + 1;
    uint16_t warm = 0;
    if (end > chunk->slots)
        end = chunk->slots;
    for (uint32_t slot = de_chunk_first_slot(chunk, frame); slot < end; slot++)
        warm += !de_chunk_taken(chunk, slot) && de_chunk_missing_frame(chunk, slot) < 0;
    return warm;
}

uint16_t de_chunk_count_warm(const struct de_chunk *chunk)
{
    uint16_t warm = 0;
    for (uint32_t slot = 0; slot < chunk->slots; slot++)
        warm += !de_chunk_taken(chunk, slot) && de_chunk_missing_frame(chunk, slot) < 0;
    return warm;
}

void de_chunk_mark_taken(struct de_chunk *chunk, uint32_t slot)
{
    chunk->taken[slot / 64] |= (uint64_t)1 << (slot % 64);
    chunk->used++;
    for (uint32_t frame = de_chunk_first_frame(chunk, slot); frame <= de_chunk_last_frame(chunk, slot);
         frame++)
        chunk->users[frame]++;
}
