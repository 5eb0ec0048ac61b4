/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "epoch.h"
#include <stdlib.h>

#define BLOCK_ENTRIES 168u /* blocks of just under 4 KiB */

/* A queue in blocks: retired at the newest block's end, reclaimed at the oldest block's start. */
struct de_limbo_block {
    struct de_limbo_block *newer;
    uint32_t first, end;
    struct de_retired entries[BLOCK_ENTRIES];
};

void de_epochs_init(struct de_epochs *epochs)
{
    *epochs = (struct de_epochs){0};
    for (unsigned i = 0; i < DE_EPOCH_READERS; i++)
        atomic_store(&epochs->readers[i].entered, DE_EPOCH_IDLE);
}

void de_epochs_free(struct de_epochs *epochs)
{
    while (epochs->oldest) {
        struct de_limbo_block *block = epochs->oldest;
        epochs->oldest = block->newer;
        free(block);
    }
    free(epochs->spare);
}

int de_epochs_join(struct de_epochs *epochs)
{
    uint64_t taken = atomic_load(&epochs->readers_taken);
    while (~taken) {
        int reader = __builtin_ctzll(~taken);
        if (atomic_compare_exchange_weak(&epochs->readers_taken, &taken, taken | (uint64_t)1 << reader))
            return reader;
    }
    return -1;
}

void de_epochs_part(struct de_epochs *epochs, int reader)
{
    de_epochs_leave(epochs, reader);
    atomic_fetch_and(&epochs->readers_taken, ~((uint64_t)1 << reader));
}

bool de_epochs_prepare(struct de_epochs *epochs)
{
    if (epochs->newest && epochs->newest->end < BLOCK_ENTRIES)
        return true;
    struct de_limbo_block *block = epochs->spare;
    epochs->spare = NULL;
    if (!block) {
        block = malloc(sizeof(*block));
        if (!block)
            return false;
        epochs->limbo_blocks++;
    }
    block->newer = NULL;
    block->first = block->end = 0;
    if (epochs->newest)
        epochs->newest->newer = block;
    else
        epochs->oldest = block;
    epochs->newest = block;
    return true;
}

void de_epochs_retire(struct de_epochs *epochs, uint64_t place, uint32_t id)
{
    uint64_t epoch = atomic_load_explicit(&epochs->now, memory_order_relaxed);
    struct de_limbo_block *block = epochs->newest;
    block->entries[block->end++] = (struct de_retired){.epoch = epoch, .place = place, .id = id};
    /* A reader that enters from here on sees the unlinking, so it counts as later. */
    atomic_store(&epochs->now, epoch + 1);
}

uint64_t de_epochs_oldest(struct de_epochs *epochs)
{
    uint64_t oldest = DE_EPOCH_IDLE;
    for (uint64_t left = atomic_load(&epochs->readers_taken); left; left &= left - 1) {
        uint64_t entered = atomic_load(&epochs->readers[__builtin_ctzll(left)].entered);
        if (entered < oldest)
            oldest = entered;
    }
    return oldest;
}

static void drop_oldest_block(struct de_epochs *epochs)
{
    struct de_limbo_block *block = epochs->oldest;
    epochs->oldest = block->newer;
    if (!epochs->oldest)
        epochs->newest = NULL;
    if (!epochs->spare) {
        epochs->spare = block;
        return;
    }
    epochs->limbo_blocks--;
    free(block);
}

bool de_epochs_reclaim(struct de_epochs *epochs, uint64_t before, struct de_retired *retired)
{
    struct de_limbo_block *block = epochs->oldest;
    if (!block || block->first == block->end || block->entries[block->first].epoch >= before)
        return false;
    *retired = block->entries[block->first++];
    if (block->first == block->end)
        drop_oldest_block(epochs);
    return true;
}

uint64_t de_epochs_bytes(const struct de_epochs *epochs)
{
    return epochs->limbo_blocks * sizeof(struct de_limbo_block);
}
