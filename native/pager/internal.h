/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file internal.h
 * The pager's own data: the page table, and who may change an entry when.
 *
 * Entries are changed by compare-and-swap alone (entry_change). The thread that proposes takes an entry from
 * resident to evicted; the one that serves faults takes it back. They meet in three states:
 *  - nominating: the proposer's hypercall is under way, and only it leaves this state. A server that found
 * the page touched waits; if it was nominated anew since, the generation is another one, and the touch is
 * history. So a resident entry's page is never nominated, whoever dies when.
 *  - evicting: the proposer's hypercall is under way. It owns the step out of this state, unless
 *  - loading: a server has claimed the entry (from evicting or evicted). Until it lets go nobody else may
 * touch the entry or give its object back, so what is loaded is what was evicted, however long the rebuild
 * takes. An entry's object reference belongs to whoever moves the entry to a state without object.
 */
#ifndef DIFFENGINE_PAGER_INTERNAL_H
#define DIFFENGINE_PAGER_INTERNAL_H

#include <diffengine/holds.h>
#include <diffengine/pager.h>
#include <diffengine/rebuild.h>
#include <pthread.h>
#include <stdatomic.h>

#include "../core/latency.h"
#include "table.h"

#define RETIRED_CAPACITY 65536u
#define REFUSAL_BYTES 240u

/** An entry taken apart; packed into 8 bytes: generation << 35 | state << 32 | object, so packed that 0 is
 * "resident". */
struct entry {
    uint32_t object; /**< DE_NONE when resident or watched */
    enum de_page_state state;
    uint32_t generation; /**< 29 bits */
};

static inline uint64_t entry_pack(struct entry entry)
{
    return (uint64_t)entry.generation << 35 | (uint64_t)entry.state << 32 | (entry.object ^ DE_NONE);
}

static inline struct entry entry_unpack(uint64_t packed)
{
    return (struct entry){
        .object = (uint32_t)packed ^ DE_NONE,
        .state = (enum de_page_state)(packed >> 32 & 7),
        .generation = (uint32_t)(packed >> 35),
    };
}

/** What the serving thread is to do about an event that it could not answer at once. */
enum event_phase {
    EVENT_IDLE,  /**< nothing: free, or being served */
    EVENT_RETRY, /**< no frame was free, or a proposal was in the middle of something: again soon */
    EVENT_DISK,  /**< its page is in swap: again when the disk has given something */
    EVENT_STUCK, /**< its content is lost; the domain is halted */
};

struct swap_in;
struct bring_in;

struct pager_domain {
    uint16_t id;
    uint32_t gfns;
    unsigned references; /**< under the pager's lock: the list's, and the server's while it serves */
    atomic_bool halted;
    struct table table;
    _Atomic(uint64_t) *entries;             /**< in the table */
    enum event_phase phases[DE_RING_SLOTS]; /**< of the recorded events; only the serving thread's */
    _Atomic(struct de_holds *) holds;       /**< NULL: no device model; set once */
    struct bring_in *bring_in;              /**< NULL: no device model, or not started; under `proposals` */
    struct swap_in *swap_in;                /**< NULL: no swap */
    /** gfn + 1 of the page that a proposer touched, until the server has answered an event of it; 0: none. */
    _Atomic(uint64_t) touched;
};

/** What one thread needs to rebuild and load a page. */
struct loader {
    struct de_rebuilder *rebuilder;
    struct de_swap_channel *channel; /**< to read from swap itself; NULL: it must not wait for a disk */
    struct swap_in *swap_in;         /**< then who reads for it; of the server: the domain's */
    /** The server's: the event that the load is for, to be answered with it; NULL: none, or it is answered.
     */
    struct recorded_event *event;
    uint8_t page[DE_PAGE_SIZE];
};

enum pager_counter {
    COUNT_EVICTIONS,
    COUNT_SHARES,
    COUNT_EVENTS,
    COUNT_LOADS,
    COUNT_TOUCHES,
    COUNT_DUPLICATES,
    COUNT_DROPS,
    COUNT_LOAD_NO_MEMORY,
    COUNT_CORRUPT,
    COUNT_BAD_EVENTS,
    COUNT_SWAP_INS,
    COUNT_SWAP_OUTS,
    COUNTERS
};

struct de_pager {
    struct de_store *store;
    struct de_hypervisor hypervisor;

    pthread_mutex_t proposals; /**< one batch at a time; held for long, and never by a server */
    struct loader proposer;
    struct loader server;
    struct de_swap *swap;            /**< NULL: none */
    struct de_store_reader *swapper; /**< for swapping out */
    atomic_bool disk_done;           /**< a swap-in is over */
    int directory, directory_lock;   /**< -1: state in this process's memory only */
    bool owns_state;                 /**< store, swap and files are the pager's own (de_pager_open) */

    pthread_mutex_t lock;   /**< the domain list, retired objects, the refusal; only ever held for a moment */
    pthread_cond_t changed; /**< a domain's references */
    pthread_cond_t some_retired;
    bool retirer_sleeps;
    struct pager_domain *domains[DE_PAGER_MAX_DOMAINS];
    uint32_t retired[RETIRED_CAPACITY]; /**< a ring of objects to release */
    char refusal[REFUSAL_BYTES];        /**< of the last command that was refused; "": told, or none */
    size_t retired_first;
    size_t retired_count;

    bool started;
    bool serves_requests; /**< of device models; under `proposals` */
    atomic_bool stop;
    atomic_bool gone; /**< the hypervisor does not answer any more */
    pthread_t server_thread;
    pthread_t retire_thread;
    unsigned retries; /**< events to try again soon; the serving thread's */

    _Atomic(uint64_t) counters[COUNTERS];
    _Atomic(uint64_t) states[DE_PAGE_NOMINATING + 1]; /**< entries per state, except resident */
    _Atomic(uint64_t) table_bytes;
    struct atomic_latency rebuild;
    struct atomic_latency fault;
    struct atomic_latency swap_fault;
};

/** Call one of the hypervisor's operations. */
#define HYPERCALL(pager, operation, ...)                                                                     \
    (pager)->hypervisor.operations->operation((pager)->hypervisor.context, ##__VA_ARGS__)

static inline void count(struct de_pager *pager, enum pager_counter counter)
{
    atomic_fetch_add_explicit(&pager->counters[counter], 1, memory_order_relaxed);
}

/* pager.c */
static inline struct entry entry_get(const struct pager_domain *domain, uint32_t gfn)
{
    return entry_unpack(atomic_load(&domain->entries[gfn]));
}
/** @return false if the entry is not @p from any more. */
bool entry_change(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn, struct entry from,
                  struct entry to);
/** The same entry without object, resident, one generation on. */
struct entry entry_resident(struct entry entry);
/** The same entry without object, watched, one generation on. */
struct entry entry_watched_anew(struct entry entry);
/** Find a domain and hold it; NULL: not ours. */
struct pager_domain *pager_domain_get(struct de_pager *pager, uint16_t id);
void pager_domain_put(struct de_pager *pager, struct pager_domain *domain);
/** Have an object released by someone who may wait for the store's lock. */
void pager_retire(struct de_pager *pager, uint32_t object);
/** Wake that someone, if it sleeps: once nobody waits for the calling thread any more. */
void pager_release_soon(struct de_pager *pager);
/**
 * Whether the domain that a table is of is still there: its id may be another one's by now.
 * @return 0; -ESRCH: it is gone; another negative errno value: can't tell.
 */
int pager_domain_lives(struct de_pager *pager, uint16_t id, const struct de_uuid *uuid);
/** Pause the domain for good, and remember why. */
void pager_halt(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn, const char *why);

/** Make a domain of a table, which it takes over with success, and list it. DE_OK, DE_FULL or DE_NO_MEMORY.
 */
int pager_adopt(struct de_pager *pager, uint16_t id, const struct table *table, struct pager_domain **domain);
/** Stop, and free the memory; hypervisor, tables' files and store stay as they are. */
void pager_unmake(struct de_pager *pager);
/** The domain in a place of the list, held; NULL: none. */
struct pager_domain *pager_domain_at(struct de_pager *pager, size_t index);

/** What the hold table says of a page, if there is one. */
static inline void pager_note(struct pager_domain *domain, uint32_t gfn, enum de_holds_hint hint, bool now)
{
    struct de_holds *holds = atomic_load(&domain->holds);
    if (holds)
        de_holds_note(holds, gfn, hint, now);
}
/** Give the domain its hold table, with what is known of its pages. */
void pager_set_holds(struct de_pager *pager, struct pager_domain *domain, struct de_holds *holds);

/* serve.c */
/** Note that an event's answer is about to be put. @return the answer. */
struct de_vm_event pager_answer_begin(struct pager_domain *domain, struct recorded_event *event);
/** Note what became of it. */
void pager_answer_end(struct pager_domain *domain, struct recorded_event *event, bool answered);

/* load.c */
enum loaded {
    LOADED,         /**< the page is resident now */
    LOAD_UNNEEDED,  /**< it was, or is a hole, or its eviction is not over */
    LOAD_NO_MEMORY, /**< try again later */
    LOAD_LATER,     /**< another thread is in the middle of something with this page: try again soon */
    LOAD_DISK,      /**< it is in swap: swap_in_finish() brings it, or try again when one is over */
    LOAD_FAILED,    /**< no right content to be had; the domain is halted */
    LOAD_DOMAIN_GONE,
};
/** Make a page resident, whatever its entry says now. @p loader is the calling thread's. */
enum loaded pager_load(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn,
                       struct loader *loader);
/** Load what a swap-in has read, unless it still reads. @param[out] gfn Whose result this is. */
enum loaded pager_load_swapped(struct de_pager *pager, struct pager_domain *domain, struct loader *loader,
                               uint32_t *gfn);
/** Give up what a swap-in, whose thread is stopped, has claimed. */
void pager_abandon_swap_in(struct de_pager *pager, struct pager_domain *domain, struct swap_in *swap_in);
/** The guest gave the page back: forget its object, unless the gfn has a newer page that is out. */
void pager_drop(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn);

/* takeover.c */
/** Remove the files that are no domain's; but the store domain's record, whose frames are still mapped:
 * de_pager_leave(). */
void pager_remove_state(struct de_pager *pager);

/* serve.c */
/** Wait up to @p timeout_ns and serve what came. @return events. */
size_t pager_serve_round(struct de_pager *pager, uint64_t timeout_ns);

#endif
