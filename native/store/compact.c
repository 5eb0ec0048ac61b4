/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "internal.h"
#include <diffengine/status.h>
#include <stdlib.h>
#include <string.h>

/*
 * Two fingers per size class: chunks in order of use, the fullest first; objects move from the last taken
 * slot into the first free one until the fingers meet. So the class ends up as dense as if freshly filled,
 * and no object moves twice.
 */

/** Moves before the lock is let go: some 50 us. */
#define MOVES_AT_A_TIME 32u

struct finger {
    uint32_t chunk; /**< index into the order */
    uint32_t slot;
};

struct ranked_chunk {
    uint32_t number;
    uint16_t class_index, used;
};

static int compare_rank(const void *left, const void *right)
{
    const struct ranked_chunk *a = left, *b = right;
    if (a->class_index != b->class_index)
        return a->class_index < b->class_index ? -1 : 1;
    if (a->used != b->used)
        return a->used > b->used ? -1 : 1;
    return a->number < b->number ? -1 : 1;
}

static uint32_t rank_chunks(const struct de_arena *arena, struct ranked_chunk **ranked)
{
    uint32_t count = 0;
    *ranked = malloc((arena->chunks_used + 1) * sizeof(**ranked));
    if (!*ranked)
        return 0;
    for (uint32_t number = arena->head_chunks; number < arena->chunks_used; number++) {
        const struct de_chunk *chunk = de_arena_chunk(arena, number);
        if (chunk->class_index)
            (*ranked)[count++] = (struct ranked_chunk){number, chunk->class_index, chunk->used};
    }
    qsort(*ranked, count, sizeof(**ranked), compare_rank);
    return count;
}

/* Frames that @p slots slots of a class take when packed. */
static uint64_t packed_frames(uint32_t class_index, uint64_t slots)
{
    uint64_t bytes = de_class_bytes(class_index), per_chunk = DE_STORE_CHUNK / bytes;
    uint64_t full_frames = (per_chunk * bytes + DE_FRAME_BYTES - 1) / DE_FRAME_BYTES;
    uint64_t rest_frames = (slots % per_chunk * bytes + DE_FRAME_BYTES - 1) / DE_FRAME_BYTES;
    return slots / per_chunk * full_frames + rest_frames;
}

static bool worth_moving(const struct de_arena *arena, const struct ranked_chunk *order, uint32_t count)
{
    uint64_t used = 0, frames = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct de_chunk *chunk = de_arena_chunk(arena, order[i].number);
        used += chunk->used;
        for (uint32_t word = 0; word < DE_CHUNK_FRAMES / 64; word++)
            frames += (uint64_t)__builtin_popcountll(chunk->populated[word]);
    }
    return frames > packed_frames(order->class_index, used);
}

static bool advance_to_free(const struct de_arena *arena, const struct ranked_chunk *order, uint32_t count,
                            struct finger *to)
{
    for (; to->chunk < count; to->chunk++, to->slot = 0) {
        const struct de_chunk *chunk = de_arena_chunk(arena, order[to->chunk].number);
        if (chunk->class_index != order->class_index)
            continue;
        while (to->slot < chunk->slots && de_chunk_taken(chunk, to->slot))
            to->slot++;
        if (to->slot < chunk->slots)
            return true;
    }
    return false;
}

/* Step back to a slot with an object in it (not one in limbo, nor one whose header is damaged). */
static bool retreat_to_object(const struct de_store *store, const struct ranked_chunk *order,
                              struct finger *from, uint32_t *id, struct de_object *object)
{
    for (;;) {
        const struct de_chunk *chunk = de_arena_chunk(&store->arena, order[from->chunk].number);
        while (chunk->class_index == order->class_index && from->slot-- > 0) {
            uint64_t place = de_place(order[from->chunk].number, from->slot);
            if (!de_chunk_taken(chunk, from->slot))
                continue;
            if (de_object_read(de_arena_slot(&store->arena, place), de_class_bytes(chunk->class_index), id,
                               object) &&
                de_entry_place(de_store_lookup(store, *id)) == place)
                return true;
        }
        if (from->chunk == 0)
            return false;
        from->chunk--;
        from->slot = DE_STORE_CHUNK / de_class_bytes(order->class_index);
    }
}

static bool before(const struct finger *left, const struct finger *right)
{
    return left->chunk != right->chunk ? left->chunk < right->chunk : left->slot < right->slot;
}

static bool move(struct de_store *store, uint32_t id, const struct de_object *object, uint64_t to)
{
    uint64_t entry = de_store_lookup(store, id);
    if (!de_epochs_prepare(&store->epochs) || de_arena_take_at(&store->arena, to) != DE_OK)
        return false;
    de_object_write(de_arena_slot(&store->arena, to), id, object);
    atomic_store(de_store_entry(store, id), de_entry(to, de_entry_count(entry)));
    de_store_retire(store, de_entry_place(entry), DE_NONE);
    return true;
}

/*
 * Free old slots, and let waiting writers in. What they change is noticed: each step looks at its chunk's
 * class anew, and a slot freed or taken behind the fingers only makes the result less perfect.
 */
static void let_others_in(struct de_store *store)
{
    de_store_reclaim(store);
    pthread_mutex_unlock(&store->lock);
    pthread_mutex_lock(&store->lock);
}

static void compact_class(struct de_store *store, const struct ranked_chunk *order, uint32_t count)
{
    struct finger to = {0, 0};
    struct finger from = {count - 1, DE_STORE_CHUNK / de_class_bytes(order->class_index)};
    uint32_t id, moves = 0;
    struct de_object object;
    if (!worth_moving(&store->arena, order, count))
        return;
    while (retreat_to_object(store, order, &from, &id, &object) &&
           advance_to_free(&store->arena, order, count, &to) && before(&to, &from)) {
        if (!move(store, id, &object, de_place(order[to.chunk].number, to.slot)))
            break;
        if (++moves % MOVES_AT_A_TIME == 0)
            let_others_in(store);
    }
    de_store_reclaim(store);
}

uint64_t de_store_compact(struct de_store *store)
{
    struct ranked_chunk *ranked;
    pthread_mutex_lock(&store->lock);
    de_store_reclaim(store);
    uint64_t frames = store->arena.frames;
    uint32_t count = rank_chunks(&store->arena, &ranked);
    for (uint32_t first = 0, end; first < count; first = end) {
        for (end = first + 1; end < count && ranked[end].class_index == ranked[first].class_index;)
            end++;
        compact_class(store, ranked + first, end - first);
    }
    frames = store->arena.frames < frames ? frames - store->arena.frames : 0;
    pthread_mutex_unlock(&store->lock);
    free(ranked);
    return frames * DE_FRAME_BYTES;
}
