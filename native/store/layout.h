/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file layout.h
 * What the store's file looks like: its first frame, size classes, and the header in front of every object.
 *
 * The file is the store's truth, but whoever damaged it may have done so anywhere: everything read here is
 * checked. All numbers are in the CPU's own byte order; a store never leaves its host.
 */
#ifndef DIFFENGINE_STORE_LAYOUT_H
#define DIFFENGINE_STORE_LAYOUT_H

#include <diffengine/store.h>
#include <diffengine/swap.h>

#define DE_FRAME_BYTES DE_PAGE_SIZE
#define DE_CHUNK_FRAMES (DE_STORE_CHUNK / DE_FRAME_BYTES)

/** At the file's start; behind it, one uint16_t per chunk: its size class, 0 = in no use. */
struct de_superblock {
    uint8_t magic[8];
    uint32_t version;
    uint32_t chunk_bytes;
    uint64_t max_bytes;
    uint8_t reserved[40];
};
#define DE_SUPERBLOCK_MAGIC "DEstore\n"
#define DE_LAYOUT_VERSION 1u

/*
 * Size classes. Up to the largest page object (RAW size and all references) they are 16 bytes apart, above
 * (models only) 2048. A class's index is stored in the file; 0 and 1 would be too small for any object.
 */
#define DE_CLASS_STEP 16u
#define DE_CLASS_PAGES 258u /**< the last 16-byte class: 4128 bytes */
#define DE_MODEL_STEP 2048u
#define DE_CLASS_COUNT 273u
#define DE_CLASS_MIN 2u

/** In front of every object: id, checksum, state; then its references, then its payload. */
#define DE_HEADER_BYTES 12u

static inline uint32_t de_object_bytes(uint32_t references, uint32_t payload_bytes)
{
    return DE_HEADER_BYTES + 4u * references + payload_bytes;
}

/** The smallest class that holds @p object_bytes. */
uint32_t de_class_of(uint32_t object_bytes);
uint32_t de_class_bytes(uint32_t class_index);

/** Whether @p object, apart from what its references are, may exist at all. */
bool de_object_shape_valid(const struct de_object *object);

/** Where a SWAPPED object's payload is. */
struct de_swap_place de_object_swap_place(const struct de_object *object);
/** How the object's page is encoded, wherever its payload is. */
enum de_encoding de_object_codec(const struct de_object *object);

/**
 * Write an object into a free slot: everything else first, then, with release order, the state word that
 * makes the slot count. Whoever dies in between leaves a free slot.
 */
void de_object_write(uint8_t *slot, uint32_t id, const struct de_object *object);

/** Make the slot count as free. */
void de_object_erase(uint8_t *slot);

/** Whether the slot claims to be in use (its header may still be nonsense). */
bool de_object_claimed(const uint8_t *slot);

/**
 * Read a slot of @p slot_bytes. @return false if its header is free, torn or damaged.
 * @param[out] object Its payload points into the slot.
 */
bool de_object_read(const uint8_t *untrusted_slot, uint32_t slot_bytes, uint32_t *id,
                    struct de_object *object);

#endif
