/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file holds.h
 * The hold table: which pages of a domain its device model has mapped, in memory shared with the pager.
 *
 * A device model that maps a page, writes and unmaps it between the pager's last look at the page and its
 * eviction loses that write (the hypervisor lets the eviction pass: nothing is mapped any more). So it takes
 * a hold before it maps and drops it after it unmapped; the pager locks a page that nobody holds before its
 * last look, and unlocks it after the eviction. One byte per page decides between them:
 *
 *     bits 0-6  holds of the device model        bit 7  locked by the pager
 *
 * take: wait until bit 7 is clear, add 1. drop: subtract 1. lock: 0 -> 0x80, else the page is not evicted.
 *
 * The device model keeps a flock() on the table as long as it lives. Without one the counts mean nothing (who
 * had them is gone, and so are its mappings), and a domain that has a device model is not evicted from.
 */
#ifndef DIFFENGINE_HOLDS_H
#define DIFFENGINE_HOLDS_H

#include <diffengine/hypervisor.h>
#include <stdbool.h>

struct de_holds;

#define DE_HOLDS_MAX 127u /**< of one page */

/**
 * The pager: make a domain's table. @param directory Of its state: file holds-DOMAIN, 0600, which replaces
 * one that is there; or -1: a memfd. @return DE_OK, DE_NO_MEMORY or DE_SYSTEM.
 */
int de_holds_create(int directory, uint16_t domain, const struct de_uuid *uuid, uint32_t gfns,
                    struct de_holds **holds);
/** The pager after a takeover: the same table, with nothing locked. DE_OK, DE_NOT_FOUND, DE_CORRUPT (also:
 * another domain's, which had this id before), DE_NO_MEMORY, DE_SYSTEM. */
int de_holds_reopen(int directory, uint16_t domain, const struct de_uuid *uuid, uint32_t gfns,
                    struct de_holds **holds);
/** Also gives up what de_holds_attach() got. */
void de_holds_close(struct de_holds *holds);
void de_holds_remove(int directory, uint16_t domain);
/** The table's descriptor, owned by the table. */
int de_holds_fd(const struct de_holds *holds);
size_t de_holds_bytes(const struct de_holds *holds);

/** The pager: whether a device model keeps the table now. */
bool de_holds_attached(const struct de_holds *holds);
/** The pager: whether nobody held the page, which nobody can hold now until it is unlocked. */
bool de_holds_lock(struct de_holds *holds, uint32_t gfn);
void de_holds_unlock(struct de_holds *holds, uint32_t gfn);

/**
 * A device model: attach to the table at @p path (de_pager_holds_path()). Counts that a dead one left are
 * cleared. @return DE_OK, DE_BUSY (another one has it), DE_CORRUPT (no hold table), DE_NO_MEMORY or
 * DE_SYSTEM.
 */
int de_holds_attach(const char *path, struct de_holds **holds);
/**
 * A device model, before it maps: waits while the pager evicts the page (some 10 us; after a pager's death
 * until the next one). Any thread. @return DE_OK, DE_INVALID (no such page) or DE_FULL (DE_HOLDS_MAX).
 */
int de_holds_take(struct de_holds *holds, uint32_t gfn);
/** A device model, after it unmapped. */
void de_holds_drop(struct de_holds *holds, uint32_t gfn);

#endif
