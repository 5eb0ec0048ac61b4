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

struct de_rebuilder;

/** A rebuilder belongs to one thread; it makes its own store reader. DE_OK, DE_FULL or DE_NO_MEMORY. */
int de_rebuilder_create(struct de_store *store, struct de_rebuilder **rebuilder);
void de_rebuilder_free(struct de_rebuilder *rebuilder);

/**
 * Rebuild object @p id into @p page and compare with its checksum.
 * @return DE_OK, DE_NOT_FOUND or DE_CORRUPT (the page's content is then undefined).
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
 * Rebuild @p count objects, each compared byte for byte with the page it must give ("verify before free").
 * @param[out] right right[i] = 1 if object ids[i] gives pages[i], else 0. ids[i] == DE_NONE: left at 1.
 */
void de_rebuild_verify_batch(struct de_rebuilder *rebuilder, const uint32_t *ids, const uint8_t *const *pages,
                             size_t count, uint8_t *right);

#endif
