/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file rebuild.h
 * From an object id to its page: decode the object and everything it refers to.
 *
 * The fault path: no allocation after creation, no lock, bounded depth.
 */
#ifndef DIFFENGINE_REBUILD_H
#define DIFFENGINE_REBUILD_H

#include <diffengine/store.h>
#include <diffengine/swap.h>

struct de_rebuilder;

/** A rebuilder belongs to one thread; it makes its own store reader. DE_OK, DE_FULL or DE_NO_MEMORY. */
int de_rebuilder_create(struct de_store *store, struct de_rebuilder **rebuilder);
void de_rebuilder_free(struct de_rebuilder *rebuilder);

/** Others have used the caches since the last rebuild: the next dense one begins with bringing its tables
 * near. */
void de_rebuild_after_pause(struct de_rebuilder *rebuilder);
/**
 * Rebuild object @p id into @p page and compare with its checksum.
 * @return DE_OK, DE_NOT_FOUND, DE_CORRUPT or DE_BUSY: part of it is in the swap file, see
 * de_rebuild_find_swapped(). Unless DE_OK, the page's content is undefined.
 */
int de_rebuild_page(struct de_rebuilder *rebuilder, uint32_t id, uint8_t *page);

/**
 * Rebuild @p count objects: what patches against them are made from.
 * @param[out] pages count * DE_PAGE_SIZE bytes.
 * @param[out] right 1 per object, or 0: there is none, or it is corrupt (its page's content is then
 * undefined).
 */
void de_rebuild_batch(struct de_rebuilder *rebuilder, const uint32_t *ids, size_t count, uint8_t *pages,
                      uint8_t *right);

/**
 * How @p count objects are kept. @param[out] encodings,bytes Of each payload; 0 bytes: there is no such
 * object. @param[out] patched 1: it stands on another page's object, else 0.
 */
void de_rebuild_describe_batch(struct de_rebuilder *rebuilder, const uint32_t *ids, size_t count,
                               uint8_t *encodings, uint16_t *bytes, uint8_t *patched);

/** A page and what it stands on, one below the other: so many objects may be in the swap file. */
#define DE_REBUILD_MAX_SWAPPED 4u

/** What must be read from the swap file to rebuild a page. */
struct de_swapped_parts {
    size_t count;
    struct de_swap_place places[DE_REBUILD_MAX_SWAPPED];
    uint32_t ids[DE_REBUILD_MAX_SWAPPED];
    const uint8_t *payloads[DE_REBUILD_MAX_SWAPPED]; /**< the caller's: what it read */
};

/**
 * Find which parts of object @p id are in the swap file. They stay where they are as long as the caller holds
 * a count on the object, but others may join them. @return DE_OK, DE_NOT_FOUND or DE_CORRUPT.
 */
int de_rebuild_find_swapped(struct de_rebuilder *rebuilder, uint32_t id, struct de_swapped_parts *parts);

/** de_rebuild_page() with these parts at hand. DE_BUSY: others are in the swap file by now; find them. */
int de_rebuild_swapped(struct de_rebuilder *rebuilder, uint32_t id, const struct de_swapped_parts *parts,
                       uint8_t *page);

/**
 * Rebuild @p count objects, each compared byte for byte with the page it must give ("verify before free").
 * @param[out] right right[i] = 1 if object ids[i] gives pages[i], else 0. ids[i] == DE_NONE: left at 1.
 */
void de_rebuild_verify_batch(struct de_rebuilder *rebuilder, const uint32_t *ids, const uint8_t *const *pages,
                             size_t count, uint8_t *right);

#endif
