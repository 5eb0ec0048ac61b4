/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file regions.h
 * Memory whose every byte is known: regions of the generator's pages (native/machine/content.h), changed by
 * the guest's own writes. Write n to a page adds 0xff to each of 16 bytes, as the generator's write phase
 * does for the first; so a page's right content follows from (generator, page, number of writes).
 *
 * Any thread; a region's pages are read and changed under the region's lock. Functions return 0 or a negative
 * errno value.
 */
#ifndef GUEST_REGIONS_H
#define GUEST_REGIONS_H

#include "content.h"

#include <stdbool.h>
#include <stdint.h>

struct access_counts {
    uint64_t reads; /**< whole pages, every byte compared */
    uint64_t writes;
    uint64_t wrong_pages;
    uint64_t wrong_bytes;
    uint64_t longest_ns; /**< the longest that one page's access took */
};

/** Fill a new region. @return its number, -ENOSPC (no more regions), -ENOMEM. */
int region_fill(const struct generator *generator, uint32_t pages);
/** Give it back to the kernel, which leaves what the pages hold. -ENOENT: no such region. */
int region_free(int number);
/** Pages of the region, 0: there is none. */
uint32_t region_pages(int number);
/** Compare a page with what it must hold. -ENOENT, -ERANGE. */
int region_check(int number, uint32_t page, struct access_counts *counts);
/** Change a page, then compare the rest of it. -ENOENT, -ERANGE. */
int region_change(int number, uint32_t page, struct access_counts *counts);
/** The page's address; NULL: none. For those who read its bytes in another way (disk, network). */
uint8_t *region_page(int number, uint32_t page);
/** Wrong bytes of a copy of the page. */
uint64_t region_wrong(int number, uint32_t page, const uint8_t *copy);

#endif
