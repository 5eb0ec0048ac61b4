/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "arena_internal.h"
#include <diffengine/status.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * The finest classes pay for themselves only in a large store: each class costs about half a frame at its
 * end. Below this much memory every other class is left out. With the sizes of 58,000 real pages (zstd, 58
 * MB) that loses 2.9 % in all, headers included, and with every sixth of them (10 MB) 4.9 %; always 16-byte
 * steps would lose 2.8 and 5.8 %, always 32-byte steps 3.3 and 4.9 %.
 */
#define FINE_CLASSES_FROM_FRAMES (24u << 20 >> 12)

/*
 * Above this part (1/24) of all memory in holes, an object may take a larger class's hole. A fresh store
 * stays below, and is packed as closely as its classes allow; one whose objects come and go is held at about
 * that part.
 */
#define HOLES_TOLERATED_PART 24u

/* What the class table of the largest possible store takes. */
#define MAX_HEAD_CHUNKS (DE_MAX_CHUNKS * 2 / DE_STORE_CHUNK + 1)

uint32_t de_arena_chunk_limit(uint64_t max_bytes)
{
    /* Frames can be punched out of the middle of chunks, so a store may be spread thin. Addresses cost
     * nothing: 32 times the memory, and one chunk per class to begin with. */
    uint64_t chunks = max_bytes / DE_STORE_CHUNK * 32 + 2 * DE_CLASS_COUNT;
    uint32_t most = DE_MAX_CHUNKS - MAX_HEAD_CHUNKS;
    return chunks < most ? (uint32_t)chunks : most;
}

static uint32_t *list_head(struct de_arena *arena, uint8_t list, uint32_t class_index)
{
    if (list == DE_CHUNK_LIST_WARM)
        return &arena->warm[class_index];
    return list == DE_CHUNK_LIST_COLD ? &arena->cold[class_index] : &arena->pool;
}

static void unlist(struct de_arena *arena, uint32_t number)
{
    struct de_chunk *chunk = de_arena_chunk(arena, number);
    if (chunk->list == DE_CHUNK_LIST_NONE)
        return;
    if (chunk->previous != DE_NONE)
        de_arena_chunk(arena, chunk->previous)->next = chunk->next;
    else
        *list_head(arena, chunk->list, chunk->class_index) = chunk->next;
    if (chunk->next != DE_NONE)
        de_arena_chunk(arena, chunk->next)->previous = chunk->previous;
    chunk->list = DE_CHUNK_LIST_NONE;
}

void de_arena_enlist(struct de_arena *arena, uint32_t number, enum de_chunk_list list)
{
    struct de_chunk *chunk = de_arena_chunk(arena, number);
    if (chunk->list == list)
        return;
    unlist(arena, number);
    if (list == DE_CHUNK_LIST_NONE)
        return;
    uint32_t *head = list_head(arena, (uint8_t)list, chunk->class_index);
    chunk->list = (uint8_t)list;
    chunk->previous = DE_NONE;
    chunk->next = *head;
    if (*head != DE_NONE)
        de_arena_chunk(arena, *head)->previous = number;
    *head = number;
}

void de_arena_relist(struct de_arena *arena, uint32_t number)
{
    const struct de_chunk *chunk = de_arena_chunk(arena, number);
    if (chunk->used == chunk->slots)
        de_arena_enlist(arena, number, DE_CHUNK_LIST_NONE);
    else
        de_arena_enlist(arena, number, chunk->warm_free ? DE_CHUNK_LIST_WARM : DE_CHUNK_LIST_COLD);
}

/* A chunk never used before, into the pool. */
static int add_chunk(struct de_arena *arena)
{
    uint32_t number = arena->chunks_used;
    if (number >= arena->chunk_limit)
        return DE_FULL;
    int status = de_growing_reach(&arena->chunks, number + 1);
    if (status == DE_OK)
        status = de_arena_reach_table(arena, number);
    if (status == DE_OK)
        status = de_arena_reach_memory(arena, ((uint64_t)number + 1) * DE_STORE_CHUNK);
    if (status != DE_OK)
        return status;
    arena->chunks_used++;
    de_arena_enlist(arena, number, DE_CHUNK_LIST_POOL);
    return DE_OK;
}

int de_arena_assign_chunk(struct de_arena *arena, uint32_t number, uint32_t class_index)
{
    struct de_chunk *chunk = de_arena_chunk(arena, number);
    uint16_t slots = (uint16_t)(DE_STORE_CHUNK / de_class_bytes(class_index));
    chunk->taken = calloc((slots + 63u) / 64, sizeof(uint64_t));
    if (!chunk->taken)
        return DE_NO_MEMORY;
    arena->bitmap_bytes += (slots + 63u) / 64 * sizeof(uint64_t);
    unlist(arena, number);
    chunk->class_index = (uint16_t)class_index;
    chunk->slots = slots;
    chunk->used = 0;
    de_arena_set_warm(arena, chunk, de_chunk_count_warm(chunk));
    return DE_OK;
}

static int open_chunk(struct de_arena *arena, uint32_t class_index, uint32_t *number)
{
    if (arena->frames >= arena->frame_limit)
        return DE_FULL;
    int status = arena->pool == DE_NONE ? add_chunk(arena) : DE_OK;
    if (status != DE_OK)
        return status;
    *number = arena->pool;
    status = de_arena_assign_chunk(arena, *number, class_index);
    if (status != DE_OK)
        return status;
    de_arena_write_class(arena, *number, class_index);
    de_arena_relist(arena, *number);
    return DE_OK;
}

void de_arena_retire_chunk(struct de_arena *arena, uint32_t number)
{
    struct de_chunk *chunk = de_arena_chunk(arena, number);
    de_arena_punch_unused(arena, number, 0, DE_CHUNK_FRAMES - 1);
    /* Bytes that a refused punch left behind must not be taken for headers where another class has its slots.
     */
    for (uint32_t frame = 0; frame < DE_CHUNK_FRAMES; frame++)
        if (de_chunk_frame_exists(chunk, frame))
            memset(arena->base + (uint64_t)number * DE_STORE_CHUNK + (uint64_t)frame * DE_FRAME_BYTES, 0,
                   DE_FRAME_BYTES);
    unlist(arena, number);
    arena->bitmap_bytes -= (chunk->slots + 63u) / 64 * sizeof(uint64_t);
    free(chunk->taken);
    chunk->taken = NULL;
    de_arena_write_class(arena, number, 0);
    de_arena_set_warm(arena, chunk, 0);
    chunk->class_index = 0;
    de_arena_enlist(arena, number, DE_CHUNK_LIST_POOL);
}

int de_arena_take_at(struct de_arena *arena, uint64_t place)
{
    uint32_t number = de_place_chunk(place), slot = de_place_slot(place);
    struct de_chunk *chunk = de_arena_chunk(arena, number);
    int status = de_arena_populate_slot(arena, number, slot);
    if (status == DE_OK) {
        de_chunk_mark_taken(chunk, slot);
        de_arena_set_warm(arena, chunk, chunk->warm_free - 1u);
    }
    de_arena_relist(arena, number);
    return status;
}

static bool take_warm(struct de_arena *arena, uint32_t class_index, uint64_t *place)
{
    uint32_t number = arena->warm[class_index];
    if (number == DE_NONE)
        return false;
    *place = de_place(number, de_chunk_first_warm(de_arena_chunk(arena, number)));
    return de_arena_take_at(arena, *place) == DE_OK;
}

static int take_cold(struct de_arena *arena, uint32_t class_index, uint64_t *place)
{
    uint32_t number = arena->cold[class_index];
    if (number == DE_NONE) {
        int status = open_chunk(arena, class_index, &number);
        if (status != DE_OK)
            return status;
    }
    *place = de_place(number, de_chunk_next_free(de_arena_chunk(arena, number), 0));
    int status = de_arena_take_at(arena, *place);
    if (status != DE_OK && de_arena_chunk(arena, number)->used == 0)
        de_arena_retire_chunk(arena, number);
    return status;
}

static uint32_t choose_class(const struct de_arena *arena, uint32_t object_bytes)
{
    uint32_t class_index = de_class_of(object_bytes);
    bool finest = class_index < DE_CLASS_PAGES && class_index % 2;
    return finest && arena->frames < FINE_CLASSES_FROM_FRAMES ? class_index + 1 : class_index;
}

/* How much larger than its object a slot may be, so that a hole is used before a new frame is made. */
static uint32_t tolerated_bytes(const struct de_arena *arena, uint32_t object_bytes)
{
    bool holey = arena->warm_bytes > arena->frames * (DE_FRAME_BYTES / HOLES_TOLERATED_PART);
    return holey ? object_bytes + object_bytes / 16 + 2 * DE_CLASS_STEP : object_bytes;
}

static bool take_larger(struct de_arena *arena, uint32_t object_bytes, uint32_t most_bytes, uint64_t *place)
{
    for (uint32_t larger = de_class_of(object_bytes);
         larger < DE_CLASS_COUNT && de_class_bytes(larger) <= most_bytes; larger++)
        if (take_warm(arena, larger, place))
            return true;
    return false;
}

int de_arena_take(struct de_arena *arena, uint32_t object_bytes, uint64_t *place)
{
    uint32_t class_index = choose_class(arena, object_bytes);
    if (take_warm(arena, class_index, place) ||
        take_larger(arena, object_bytes, tolerated_bytes(arena, object_bytes), place))
        return DE_OK;
    int status = take_cold(arena, class_index, place);
    /* Rather a slot somewhat too large than none. */
    if (status == DE_FULL && take_larger(arena, object_bytes, object_bytes * 9 / 8, place))
        return DE_OK;
    return status;
}

void de_arena_give(struct de_arena *arena, uint64_t place)
{
    uint32_t number = de_place_chunk(place), slot = de_place_slot(place);
    struct de_chunk *chunk = de_arena_chunk(arena, number);
    uint32_t first = de_chunk_first_frame(chunk, slot), last = de_chunk_last_frame(chunk, slot);
    chunk->taken[slot / 64] &= ~((uint64_t)1 << (slot % 64));
    chunk->used--;
    de_arena_set_warm(arena, chunk, chunk->warm_free + 1u);
    for (uint32_t frame = first; frame <= last; frame++)
        chunk->users[frame]--;
    de_arena_punch_unused(arena, number, first, last);
    if (chunk->used)
        de_arena_relist(arena, number);
    else
        de_arena_retire_chunk(arena, number);
}

static int write_superblock(struct de_arena *arena, uint64_t max_bytes)
{
    struct de_superblock superblock = {
        .version = DE_LAYOUT_VERSION, .chunk_bytes = DE_STORE_CHUNK, .max_bytes = max_bytes};
    memcpy(superblock.magic, DE_SUPERBLOCK_MAGIC, sizeof(superblock.magic));
    int status = de_arena_reach_memory(arena, (uint64_t)arena->head_chunks * DE_STORE_CHUNK);
    if (status == DE_OK)
        status = de_arena_reach_table(arena, 0);
    if (status == DE_OK)
        memcpy(arena->base, &superblock, sizeof(superblock));
    return status;
}

/* As much of the wanted address space as there is: with less, a store may not spread as thin. */
static int map_memory(struct de_arena *arena, uint64_t least_bytes)
{
    const struct de_store_memory *memory = &arena->memory;
    uint64_t bytes = (uint64_t)arena->chunk_limit * DE_STORE_CHUNK;
    while (!(arena->base = memory->operations->map(memory->context, bytes))) {
        if (errno != ENOMEM)
            return DE_SYSTEM;
        arena->chunk_limit /= 2;
        bytes = (uint64_t)arena->chunk_limit * DE_STORE_CHUNK;
        if (bytes < least_bytes)
            return DE_NO_MEMORY;
    }
    return DE_OK;
}

int de_arena_create(struct de_arena *arena, const struct de_store_memory *memory, uint64_t max_bytes)
{
    uint64_t old_bytes = memory->operations->length(memory->context);
    *arena = (struct de_arena){.memory = *memory, .memory_bytes = old_bytes, .pool = DE_NONE};
    arena->frame_limit = max_bytes / DE_FRAME_BYTES;
    arena->chunk_limit = de_arena_chunk_limit(max_bytes);
    arena->head_chunks =
        (uint32_t)(de_arena_table_offset(arena->chunk_limit + MAX_HEAD_CHUNKS) / DE_STORE_CHUNK) + 1;
    arena->chunk_limit += arena->head_chunks;
    arena->chunks_used = arena->head_chunks;
    memset(arena->warm, 0xff, sizeof(arena->warm));
    memset(arena->cold, 0xff, sizeof(arena->cold));
    uint64_t twice_bytes = 2 * max_bytes + 2 * DE_STORE_CHUNK;
    int status = map_memory(arena, old_bytes > twice_bytes ? old_bytes : twice_bytes);
    if (status == DE_OK)
        status = de_growing_create(&arena->chunks, sizeof(struct de_chunk), arena->chunk_limit);
    if (status == DE_OK && !old_bytes)
        status = write_superblock(arena, max_bytes);
    if (status != DE_OK)
        de_arena_free(arena);
    return status;
}

void de_arena_free(struct de_arena *arena)
{
    for (uint32_t number = arena->head_chunks; arena->chunks.base && number < arena->chunks_used; number++)
        free(de_arena_chunk(arena, number)->taken);
    de_growing_free(&arena->chunks);
}

bool de_arena_exists(const struct de_arena *arena, uint32_t chunk, uint32_t slot)
{
    return de_chunk_missing_frame(de_arena_chunk(arena, chunk), slot) < 0;
}

void de_arena_mark(struct de_arena *arena, uint64_t place)
{
    de_chunk_mark_taken(de_arena_chunk(arena, de_place_chunk(place)), de_place_slot(place));
}

uint64_t de_arena_table_bytes(const struct de_arena *arena)
{
    return (uint64_t)arena->chunks_used * sizeof(struct de_chunk) + arena->bitmap_bytes;
}
