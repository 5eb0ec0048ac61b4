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
 *     bits 0-4  holds of the device model        bit 5  shared (a hint, enum de_holds_hint)
 *     bit 6     out (likewise)                   bit 7  locked by the pager
 *
 * take: wait until bit 7 is clear, add 1. drop: subtract 1. (A count of 31 stays: whoever would be the 32nd
 * need not wait for another.) lock: nobody holds it, set bit 7, else the page is not evicted.
 *
 * Who holds a page that is out can have it brought in: a place for the request is in the table, too.
 *
 * The device model keeps a flock() on the table as long as it lives. Without one the counts mean nothing (who
 * had them is gone, and so are its mappings), and a domain that has a device model is not evicted from.
 * Nothing in the table is trusted by the pager: see docs/ioemu.md.
 */
#ifndef DIFFENGINE_HOLDS_H
#define DIFFENGINE_HOLDS_H

#include <diffengine/hypervisor.h>
#include <stdbool.h>

struct de_holds;

#define DE_HOLDS_MAX 31u      /**< of one page; so many are never dropped any more */
#define DE_HOLDS_REQUESTS 64u /**< under way at a time */

/** What the pager knows of a page. Wrong ones cost time, nothing else. */
enum de_holds_hint {
    /** It shared the page. Mapping it read-write would take the share apart. */
    DE_HOLDS_SHARED = 0x20,
    /** Its content is with the pager. Set before the eviction, so: held and not out, it is in. */
    DE_HOLDS_OUT = 0x40,
};

/**
 * The pager: make a domain's table. @param directory Of its state: file holds-DOMAIN, 0600, which replaces
 * one that is there; or -1: a memfd. @return DE_OK, DE_NO_MEMORY or DE_SYSTEM.
 *
 * A device model can truncate what it was given a descriptor of. So this, and de_holds_reopen(), have SIGBUS
 * handled for the process: a table that lost its memory gets other memory, and is void (not attached).
 */
int de_holds_create(int directory, uint16_t domain, const struct de_uuid *uuid, uint32_t gfns,
                    struct de_holds **holds);
/** The pager after a takeover: the same table, with nothing locked and no hints. DE_OK, DE_NOT_FOUND,
 * DE_CORRUPT (also: it ended, or is another domain's, which had this id before), DE_NO_MEMORY, DE_SYSTEM. */
int de_holds_reopen(int directory, uint16_t domain, const struct de_uuid *uuid, uint32_t gfns,
                    struct de_holds **holds);
/** Also gives up what de_holds_attach() got. */
void de_holds_close(struct de_holds *holds);
/** The pager: the domain is gone, not its own any more, or gets another table. A device model that waits for
 * a page of it goes on, and finds that the table ended. */
void de_holds_remove(int directory, uint16_t domain);
/** The table's descriptor, owned by the table. Of a device model's: -1. */
int de_holds_fd(const struct de_holds *holds);
uint32_t de_holds_gfns(const struct de_holds *holds);
size_t de_holds_bytes(const struct de_holds *holds);

/** The pager: whether a device model keeps the table now. */
bool de_holds_attached(const struct de_holds *holds);
/** The pager: whether nobody held the page, which nobody can hold now until it is unlocked. */
bool de_holds_lock(struct de_holds *holds, uint32_t gfn);
void de_holds_unlock(struct de_holds *holds, uint32_t gfn);
/** Any side: change a hint. */
void de_holds_note(struct de_holds *holds, uint32_t gfn, enum de_holds_hint hint, bool now);

/** The pager: how often it was asked so far; for de_holds_await(). */
uint32_t de_holds_asked(const struct de_holds *holds);
/** The pager: sleep until somebody asks who had not when de_holds_asked() gave @p asked, or for a second. */
void de_holds_await(struct de_holds *holds, uint32_t asked);
/** The pager: have de_holds_await() return. */
void de_holds_interrupt(struct de_holds *holds);
/** The pager: look at request @p slot. @return whether there is one; its @p gfn is below de_holds_gfns(). */
bool de_holds_request(struct de_holds *holds, uint32_t slot, uint32_t *gfn);
/** The pager: what could be done is done. */
void de_holds_answer(struct de_holds *holds, uint32_t slot);

/**
 * A device model that has nothing mapped: attach to the table at @p path (de_pager_holds_path()). Counts that
 * a dead one left are cleared. @return DE_OK, DE_BUSY (another one has it), DE_CORRUPT (no hold table),
 * DE_NO_MEMORY or DE_SYSTEM.
 */
int de_holds_attach(const char *path, struct de_holds **holds);
/** The same with a descriptor from the pager, which is closed, with success or without: the mapping keeps
 * what the lock is on, and a descriptor that is not there can't be used to truncate the table. Attached for
 * the pager from de_holds_complete() on. */
int de_holds_attach_fd(int fd, struct de_holds **holds);
/** A device model: all that it has mapped is held. */
void de_holds_complete(struct de_holds *holds);
/** A device model: whether the pager gave the table up, for good. Then it is to attach to another one. */
bool de_holds_ended(const struct de_holds *holds);
/**
 * A device model, before it maps: waits while the pager evicts the page (some 10 us; after a pager's death
 * until the next one). Any thread. @return DE_OK, or DE_INVALID: no such page.
 */
int de_holds_take(struct de_holds *holds, uint32_t gfn);
/** The same without waiting, and only if none of the hints is given: DE_BUSY, else as above. */
int de_holds_take_plain(struct de_holds *holds, uint32_t gfn);
/** A device model, after it unmapped. */
void de_holds_drop(struct de_holds *holds, uint32_t gfn);
/** The page's hints. Pages that are not in the table have none. */
unsigned de_holds_hints(const struct de_holds *holds, uint32_t gfn);
/**
 * A device model that holds pages: have those that are out brought in. Any thread.
 * @return DE_OK (it was tried with all of them), or DE_BUSY: no answer within @p timeout_ms, perhaps because
 * no pager is there. Then mapping asks the pager once more, over the hypervisor.
 */
int de_holds_bring_in(struct de_holds *holds, const uint32_t *gfns, size_t count, unsigned timeout_ms);

#endif
