/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file pager.h
 * The pager's core: which page is which object, and the four steps a page takes: watch, evict, rebuild, load.
 *
 * It owns the page table and decides nothing: whatever it is asked is a *proposal* that it checks itself. One
 * thread serves faults (de_pager_start, or de_pager_serve called in turn); it allocates nothing, and takes no
 * lock that anyone holds for long: objects it no longer needs are handed to a second thread, because
 * releasing one takes the store's writers' lock. Proposals may come from any thread; they are carried out one
 * batch at a time.
 *
 * A page table entry is 8 bytes: state, generation, object id. For the order on eviction see
 * de_pager_evict().
 */
#ifndef DIFFENGINE_PAGER_H
#define DIFFENGINE_PAGER_H

#include <diffengine/hypervisor.h>
#include <diffengine/latency.h>
#include <diffengine/store.h>
#include <diffengine/swap.h>

struct de_pager;

#define DE_PAGER_MAX_DOMAINS 256u

/** State of a page table entry. */
enum de_page_state {
    DE_PAGE_RESIDENT = 0, /**< not ours: ram, shared or a hole, and certainly not nominated */
    DE_PAGE_WATCHED = 1,  /**< nominated as far as known: it may be ram or a hole by now */
    DE_PAGE_EVICTING = 2, /**< object verified, the hypercall under way */
    DE_PAGE_EVICTED = 3,  /**< only the object has it */
    DE_PAGE_LOADING =
        4, /**< somebody rebuilds and loads it at this moment; nobody else may change the entry */
    DE_PAGE_NOMINATING = 5, /**< the hypercall is under way; only who makes it may change the entry */
};

/** What became of one page of a proposal. Negative: its content stays where it was (it may stay watched, or
 * shared by one). */
enum de_proposal {
    DE_PROPOSAL_DONE = 0,
    DE_PROPOSAL_BUSY = -1, /**< nominate refused: mapped, shared, special, or on its way in or out */
    DE_PROPOSAL_TOUCHED =
        -2, /**< evict refused: the guest touched it, or somebody mapped it, since it was nominated */
    DE_PROPOSAL_DIFFERS = -3,    /**< the object, or the partner, does not have the frame's bytes */
    DE_PROPOSAL_NO_OBJECT = -4,  /**< no such object, or it is corrupt */
    DE_PROPOSAL_NO_PAGE = -5,    /**< a hole, or evicted already */
    DE_PROPOSAL_NO_DOMAIN = -6,  /**< not one of ours, or gone, or halted for a corrupt object */
    DE_PROPOSAL_INVALID = -7,    /**< gfn beyond the domain */
    DE_PROPOSAL_STALE = -8,      /**< a sharing handle went stale: written meanwhile */
    DE_PROPOSAL_MAPPED = -9,     /**< sharing refused: somebody has it mapped */
    DE_PROPOSAL_FULL = -10,      /**< the frame has as many sharers as it may */
    DE_PROPOSAL_NO_MEMORY = -11, /**< the hypervisor has no room for metadata */
    DE_PROPOSAL_FAILED = -12,    /**< the hypervisor gave an error that it should not */
    DE_PROPOSAL_UNABLE = -13,    /**< the host can't do that, or not with this domain */
    DE_PROPOSAL_SWAPPED = -14,   /**< the object is in swap, or stands on one that is: put the content anew */
    DE_PROPOSAL_NEEDED = -15,    /**< swap-out refused: an object in memory refers to it */
    DE_PROPOSAL_SWAP_FULL = -16, /**< no swap slot is free */
    DE_PROPOSAL_DISK = -17,      /**< the disk refused the write; nothing changed */
    DE_PROPOSAL_HELD = -18,      /**< the domain's device model has the page mapped, or is about to */
    DE_PROPOSAL_NO_HOLDS = -19, /**< the domain has a device model that does not say what it maps (holds.h) */
    DE_PROPOSAL_IN_KERNEL = -20, /**< nominate put off: the guest stayed in its kernel, or is paused */
};

/**
 * @param store      Outlives the pager, which retains the objects of evicted pages.
 * @param hypervisor Copied; its context outlives the pager.
 * @return DE_OK, DE_NO_MEMORY or DE_FULL (no store reader left).
 */
int de_pager_create(struct de_store *store, const struct de_hypervisor *hypervisor, struct de_pager **pager);
/**
 * Stops its threads and forgets all domains, also those that de_pager_remove_domain() would refuse: a live
 * guest with pages out crashes at its next touch of one. Of a state directory, only the directory is left.
 */
void de_pager_free(struct de_pager *pager);

/**
 * Become a domain's pager. @p gfns is its address space.
 * @return DE_OK, DE_INVALID, DE_NO_MEMORY, DE_FULL (DE_PAGER_MAX_DOMAINS), DE_BUSY (has a pager, ours or
 * another; or was released), DE_NOT_FOUND (no such domain) or DE_SYSTEM (not a pageable one; errno).
 */
int de_pager_add_domain(struct de_pager *pager, uint16_t domain, uint32_t gfns);
/**
 * Forget a domain that was destroyed, or whose pages are all loaded (de_pager_restore): its objects are
 * released.
 * @return DE_OK, DE_NOT_FOUND, or DE_BUSY: it lives and pages are still out (without a pager they would crash
 * it).
 */
int de_pager_remove_domain(struct de_pager *pager, uint16_t domain);
/**
 * Before a pager ends: stop being that of each domain with nothing out, since whoever comes may know nothing
 * of this pager's state. Others are left for a successor that does. Nobody else makes proposals meanwhile.
 */
void de_pager_remove_idle(struct de_pager *pager);

/** A pager whose page table, store and swap key outlive it. */
struct de_pager_state {
    const char
        *directory; /**< on a tmpfs, mode 0700, this user's: what lies there is as secret as the guests */
    uint64_t store_bytes;  /**< of a new store */
    bool store_domain;     /**< a new store lies in the frames of a domain that never runs, not in a file */
    const char *swap_path; /**< NULL: no swap */
    uint64_t swap_bytes;   /**< of a new swap file */
    const struct de_swap_disk *swap_disk; /**< NULL: the real one */
};

/**
 * Make a pager with its own store and swap, with all its state in files; or, if the directory has the state
 * of one that is gone, take over from that: its rings with the events it did not answer, its page tables, its
 * objects. Domains destroyed meanwhile are forgotten. What counted on an object but was no page (the daemon)
 * does not any more.
 * @param[out] error Says what failed, with the file's name.
 * @return DE_OK; DE_INVALID (directory open to others), DE_BUSY (another pager is alive), DE_CORRUPT,
 * DE_FULL, DE_NO_MEMORY or DE_SYSTEM (errno).
 */
int de_pager_open(const struct de_pager_state *state, const struct de_hypervisor *hypervisor,
                  struct de_pager **pager, char *error, size_t capacity);
/** Stop and free everything in memory; state and pages that are out are left for a successor (but a store
 * domain goes if no domain is paged). Its guests wait when they touch one. */
void de_pager_leave(struct de_pager *pager);
struct de_store *de_pager_store(struct de_pager *pager);
struct de_swap *de_pager_swap(struct de_pager *pager); /**< NULL: none */

/**
 * Let objects go to swap. Before domains are added (after a takeover of the store: before its sweep); @p swap
 * outlives the pager. @return DE_OK, DE_BUSY (has swap, or domains), DE_FULL or DE_NO_MEMORY.
 */
int de_pager_attach_swap(struct de_pager *pager, struct de_swap *swap);

/**
 * The domain has a device model, which maps its pages read-write: from now on it is only evicted from (and
 * watched) while the device model keeps the domain's hold table (holds.h), and never a page that is held. Say
 * so before the device model starts. Stays so for the domain's life, and for a successor.
 * @return DE_OK, DE_NOT_FOUND, DE_NO_MEMORY or DE_SYSTEM.
 */
int de_pager_set_device_model(struct de_pager *pager, uint16_t domain);
/** Where its device model finds the hold table, as long as this pager lives (in a state directory:
 * holds-DOMAIN, for ever). DE_OK or DE_NOT_FOUND. */
int de_pager_holds_path(struct de_pager *pager, uint16_t domain, char *path, size_t capacity);

/** Serve faults on two threads of the pager's own, until de_pager_stop(). DE_OK, DE_BUSY or DE_SYSTEM. */
int de_pager_start(struct de_pager *pager);
/** Also load what device models ask for (holds.h), on a thread per domain that has one, until
 * de_pager_stop(). DE_OK or DE_SYSTEM. */
int de_pager_serve_requests(struct de_pager *pager);
void de_pager_stop(struct de_pager *pager);
/** The hypervisor does not answer any more: nothing is left to serve. */
bool de_pager_gone(struct de_pager *pager);
/** Serve what is in the rings now, without waiting. One thread at a time, and none while started. @return
 * events. */
size_t de_pager_serve(struct de_pager *pager);
/** Release up to @p limit objects that faults left behind (started: the second thread does). @return number
 * done. */
size_t de_pager_retire(struct de_pager *pager, size_t limit);

/** Do now what disk threads would do (started: they do): read for faults on swapped pages, which the next
 * de_pager_serve() then loads. @return reads. */
size_t de_pager_swap_read(struct de_pager *pager);

/** Nominate pages: the next guest access shows, see de_pager_states(). @param[out] results enum de_proposal.
 */
void de_pager_watch(struct de_pager *pager, const uint16_t *domains, const uint32_t *gfns, size_t count,
                    int32_t *results);
/**
 * Evict pages as the given objects. Per page, at once: nominate (unless watched), map read-only, rebuild the
 * object and compare, unmap; entry = "evicting, object n"; evict; entry = "evicted". A refused evict leaves
 * all as it was. The page table takes a reference of its own on the object; the caller keeps, and in the end
 * releases, the one it has.
 */
void de_pager_evict(struct de_pager *pager, const uint16_t *domains, const uint32_t *gfns,
                    const uint32_t *objects, size_t count, int32_t *results);
/**
 * Share pairs: nominate both, map both read-only, compare, unmap, share: race-free, as a write in between
 * makes a handle stale. The client's frame goes. Where the hypervisor has no memory for one pair
 * (DE_PROPOSAL_NO_MEMORY), the rest is not tried.
 */
void de_pager_share(struct de_pager *pager, const uint16_t *source_domains, const uint32_t *source_gfns,
                    const uint16_t *client_domains, const uint32_t *client_gfns, size_t count,
                    int32_t *results);
/** Make shared pages private again, which takes a frame each, so that they can be watched and evicted. */
void de_pager_unshare(struct de_pager *pager, const uint16_t *domains, const uint32_t *gfns, size_t count,
                      int32_t *results);
/**
 * Move objects to the swap file, patches before what they refer to (see de_store_swap_out()). A page that is
 * out as such an object takes a disk read to come back, on a thread of its domain's own: nobody else's fault
 * waits for it.
 */
void de_pager_swap_out(struct de_pager *pager, const uint32_t *objects, size_t count, int32_t *results);
/**
 * Load every page of a domain that is out, and un-watch every watched one (by touching and loading it), so
 * that it can do without a pager. @return DE_OK, DE_NOT_FOUND, DE_NO_MEMORY or DE_BUSY
 * (try again later) or DE_CORRUPT. */
int de_pager_restore(struct de_pager *pager, uint16_t domain);
/** The same of gfns @p first .. @p first + @p count - 1, as far as the domain has them. */
int de_pager_restore_part(struct de_pager *pager, uint16_t domain, uint32_t first, uint32_t count);

/**
 * Bring everything of a domain back (de_pager_restore()), stop being its pager, and refuse to become it again
 * until de_pager_take_back(): before it is saved, migrated or suspended. Needs a state directory, which keeps
 * this for a successor. Either all of it happens or, but for pages that came back, nothing.
 * @return DE_OK (also if it was not paged), DE_NOT_FOUND (no such domain), or as de_pager_restore().
 */
int de_pager_release(struct de_pager *pager, uint16_t domain);
/** It may be paged again; de_pager_add_domain() does it. DE_OK or DE_NOT_FOUND (no such domain). */
int de_pager_take_back(struct de_pager *pager, uint16_t domain);

/**
 * Page table entries of gfns first .. first + count - 1. @p states (enum de_page_state), @p objects (DE_NONE
 * if none) and
 * @p generations (changes whenever a page becomes resident again: a touch) may each be NULL. DE_OK,
 * DE_NOT_FOUND, DE_INVALID.
 */
int de_pager_states(struct de_pager *pager, uint16_t domain, uint32_t first, size_t count, uint8_t *states,
                    uint32_t *objects, uint32_t *generations);
/** Why a domain was halted (a corrupt object), as text, "" if it was not. DE_OK or DE_NOT_FOUND. */
int de_pager_failure(struct de_pager *pager, uint16_t domain, char *text, size_t capacity);

/** Why the last command that failed (other than a proposal, whose results say it) did: one line, for whoever
 * runs the host; "" if it has no words, or they were told already. */
void de_pager_refusal(struct de_pager *pager, char *text, size_t capacity);

/** Counters since creation. Reading them disturbs nobody; they may be a few events apart from one another. */
struct de_pager_statistics {
    uint64_t domains;
    uint64_t evicted; /**< pages out now */
    uint64_t watched; /**< pages nominated now, as far as known */
    uint64_t evictions;
    uint64_t shares;
    uint64_t events;
    uint64_t loads;          /**< events that a rebuild and a load answered */
    uint64_t touches;        /**< a watched page was touched */
    uint64_t duplicates;     /**< nothing left to do */
    uint64_t drops;          /**< pages the guest gave back */
    uint64_t load_no_memory; /**< a load found no frame; it is tried again */
    uint64_t corrupt;        /**< rebuilds that failed */
    uint64_t bad_events;     /**< with fields that make no sense: a scribbled ring */
    uint64_t swap_ins;       /**< pages loaded from swap for a fault */
    uint64_t swap_outs;      /**< objects moved to swap */
    uint64_t table_bytes;
    struct de_latency rebuild;    /**< object to page */
    struct de_latency fault;      /**< event taken to answer put, of those that needed a rebuild */
    struct de_latency swap_fault; /**< the same, of those that needed the disk */
};
void de_pager_read_statistics(struct de_pager *pager, struct de_pager_statistics *statistics);

#endif
