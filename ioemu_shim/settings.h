/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file settings.h
 * What the environment says (docs/ioemu.md). A value that is not allowed counts as not given; stderr, which
 * is the device model's log, says so.
 */
#ifndef DIFFENGINE_IOEMU_SETTINGS_H
#define DIFFENGINE_IOEMU_SETTINGS_H

#include <stdbool.h>
#include <stdint.h>

#define MAX_CLUSTER_PAGES 64u

struct settings {
    const char *state;      /**< the pager's state directory */
    uint32_t idle_ms;       /**< frames that were not touched for so long are unmapped */
    uint32_t cluster_pages; /**< mapped together; a power of two */
    uint32_t mappings;      /**< so many at a time; more are unmapped although they were touched */
    uint32_t window_pages;  /**< mappings of at least so many pages become windows */
    bool by_signal;         /**< faults come as SIGSEGV, not over userfaultfd */
};

/** Of the environment at the first call. Any thread. */
const struct settings *settings_get(void);

#endif
