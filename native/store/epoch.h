/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file epoch.h
 * Epoch-based reclamation (K. Fraser, "Practical lock-freedom", 2004): what is taken out of use is reused
 * only when no reader is left that entered before.
 *
 * Readers are wait-free. Retiring and reclaiming are for one thread at a time (the store's lock).
 */
#ifndef DIFFENGINE_STORE_EPOCH_H
#define DIFFENGINE_STORE_EPOCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DE_EPOCH_READERS 64u
#define DE_EPOCH_IDLE UINT64_MAX

/** One cache line per reader, so that readers on different CPUs do not slow each other down. */
struct de_epoch_reader {
    _Alignas(64) _Atomic uint64_t entered; /**< the epoch at which it entered, DE_EPOCH_IDLE outside */
};

/** Something retired: an old slot, and the id that becomes free with it (DE_NONE: the object only moved). */
struct de_retired {
    uint64_t epoch;
    uint64_t place;
    uint32_t id;
};

struct de_limbo_block;

struct de_epochs {
    _Atomic uint64_t now;
    _Atomic uint64_t readers_taken; /**< one bit per element of readers */
    struct de_limbo_block *oldest, *newest, *spare;
    uint64_t limbo_blocks;
    struct de_epoch_reader readers[DE_EPOCH_READERS];
};

void de_epochs_init(struct de_epochs *epochs);
void de_epochs_free(struct de_epochs *epochs);

/** @return a free reader's number, or -1. Any thread. */
int de_epochs_join(struct de_epochs *epochs);
void de_epochs_part(struct de_epochs *epochs, int reader);

/*
 * Either the reader sees what the writer unlinked before it looked for readers, or the writer sees the
 * reader: both sides store, then load (Dekker), so these and the loads and stores of the links are
 * sequentially consistent.
 */
static inline void de_epochs_enter(struct de_epochs *epochs, int reader)
{
    atomic_store(&epochs->readers[reader].entered, atomic_load(&epochs->now));
}

static inline void de_epochs_leave(struct de_epochs *epochs, int reader)
{
    atomic_store_explicit(&epochs->readers[reader].entered, DE_EPOCH_IDLE, memory_order_release);
}

/** Make room for one more retired thing. @return false if there is no memory: do not retire it now. */
bool de_epochs_prepare(struct de_epochs *epochs);

/** Put something, already unlinked, in limbo. Only after de_epochs_prepare(). */
void de_epochs_retire(struct de_epochs *epochs, uint64_t place, uint32_t id);

/** The epoch before which everything retired is out of every reader's sight. */
uint64_t de_epochs_oldest(struct de_epochs *epochs);

/** Take the oldest thing out of limbo if it was retired before epoch @p before. In the order of retirement.
 */
bool de_epochs_reclaim(struct de_epochs *epochs, uint64_t before, struct de_retired *retired);

static inline bool de_epochs_limbo_empty(const struct de_epochs *epochs)
{
    return epochs->oldest == NULL;
}

/** Memory taken by the limbo list. */
uint64_t de_epochs_bytes(const struct de_epochs *epochs);

#endif
