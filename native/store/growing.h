/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file growing.h
 * A zero-filled array that grows without moving: its whole address range is reserved at the start, so threads
 * that read it need no lock while another one lets it grow.
 */
#ifndef DIFFENGINE_STORE_GROWING_H
#define DIFFENGINE_STORE_GROWING_H

#include <stddef.h>
#include <stdint.h>

struct de_growing {
    void *base;
    size_t element_bytes;
    size_t usable_bytes;
    size_t reserved_bytes;
};

/** Reserve room for @p limit elements. @return DE_OK or DE_NO_MEMORY. */
int de_growing_create(struct de_growing *array, size_t element_bytes, uint64_t limit);
void de_growing_free(struct de_growing *array);

/** Make elements 0 .. @p count - 1 usable. @return DE_OK, DE_FULL (over the limit) or DE_NO_MEMORY. */
int de_growing_reach(struct de_growing *array, uint64_t count);

#endif
