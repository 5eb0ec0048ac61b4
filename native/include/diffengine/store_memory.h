/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file store_memory.h
 * What a store lies in: frames at offsets of a sparse range of addresses. The store itself knows how it lies
 * in a file (store.h); whoever has other memory for it gives these operations.
 *
 * The store calls them with its lock held, one at a time; what map() returned is read by any thread
 * meanwhile. Offsets are multiples of DE_PAGE_SIZE.
 */
#ifndef DIFFENGINE_STORE_MEMORY_H
#define DIFFENGINE_STORE_MEMORY_H

#include <diffengine/store.h>

struct de_store_memory_operations {
    /** What can be given back: a frame (DE_PAGE_SIZE), or only whole chunks (DE_STORE_CHUNK). */
    uint32_t piece_bytes;
    /** Beyond these bytes there are no frames; 0: new memory. */
    uint64_t (*length)(void *context);
    /** Copy the first bytes, before map(). DE_OK; DE_CORRUPT: there are not so many; DE_SYSTEM (errno). */
    int (*peek)(void *context, void *bytes, size_t count);
    /** Reserve @p bytes of addresses and have there, now and later, every frame that exists. Once. @return
     * NULL: errno; ENOMEM: fewer may do. */
    uint8_t *(*map)(void *context, uint64_t bytes);
    /** Let frames be made up to @p bytes. DE_OK or DE_SYSTEM (errno). */
    int (*grow)(void *context, uint64_t bytes);
    /** Make a frame of zeros; one that exists may stay as it is. DE_OK, DE_FULL (no memory) or DE_SYSTEM. */
    int (*populate)(void *context, uint64_t offset);
    /** Give frames back, whole pieces; whoever reads there later gets zeros or dies. @return false: they
     * stay. */
    bool (*punch)(void *context, uint64_t offset, uint64_t bytes);
    /** The next frames that exist, from *begin on. DE_OK, DE_NOT_FOUND (none) or DE_SYSTEM. */
    int (*find)(void *context, uint64_t *begin, uint64_t *end);
    /** Unmap, and let go: the frames stay for a successor, if they can have one. */
    void (*leave)(void *context);
};

struct de_store_memory {
    const struct de_store_memory_operations *operations;
    void *context;
};

/** As de_store_create(); @p memory, new, is the store's with success. */
int de_store_create_in(const struct de_store_memory *memory, uint64_t max_bytes, struct de_store **store);
/** As de_store_open(); @p memory is the store's with success. */
int de_store_open_in(const struct de_store_memory *memory, struct de_store **store);

#endif
