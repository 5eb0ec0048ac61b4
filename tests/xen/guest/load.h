/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file load.h
 * Reads and writes of random pages on a thread of its own, every byte checked, while the console goes on. One
 * load at a time.
 */
#ifndef GUEST_LOAD_H
#define GUEST_LOAD_H

#include "regions.h"

struct load_options {
    int first_region;
    int last_region;
    uint32_t operations_per_s; /**< at least 1 */
    uint32_t write_percent;    /**< 0 .. 100 */
    uint64_t seed;
};

/** Counters begin at 0. -EBUSY: a load runs. -EINVAL: a range above. -ENOENT: no such region. */
int load_start(const struct load_options *options);
/** Counters so far, of the load that runs or ran last. */
void load_read(struct access_counts *counts);
/** Waits for its end. */
void load_stop(void);

#endif
