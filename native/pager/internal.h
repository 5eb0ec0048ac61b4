/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file internal.h
 * The pager's own data: the page table, and who may change an entry when.
 *
 * Entries are changed by compare-and-swap alone (entry_change). The thread that proposes takes an entry from
 * resident to evicted; the one that serves faults takes it back. They meet in two states:
 *  - evicting: the proposer's hypercall is under way. It owns the step out of this state, unless
 *  - loading: a server has claimed the entry (from evicting or evicted). Until it lets go nobody else may
 * touch the entry or give its object back, so what is loaded is what was evicted, however long the rebuild
 * takes. An entry's object reference belongs to whoever moves the entry to a state without object.
 */
#ifndef DIFFENGINE_PAGER_INTERNAL_H
#define DIFFENGINE_PAGER_INTERNAL_H

#include <diffengine/pager.h>
#include <diffengine/rebuild.h>
#include <pthread.h>
#include <stdatomic.h>

#define RETIRED_CAPACITY 65536u
#define FAILURE_TEXT_BYTES 160u

/** An entry taken apart; packed into 8 bytes: generation << 35 | state << 32 | object. */
struct entry {
    uint32_t object; /**< DE_NONE when resident or watched */
    enum de_page_state state;
    uint32_t generation; /**< 29 bits */
};

static inline uint64_t entry_pack(struct entry entry)
{
    return (uint64_t)entry.generation << 35 | (uint64_t)entry.state << 32 | entry.object;
}

static inline struct entry entry_unpack(uint64_t packed)
{
    return (struct entry){
        .object = (uint32_t)packed,
        .state = (enum de_page_state)(packed >> 32 & 7),
        .generation = (uint32_t)(packed >> 35),
    };
}

/** An event whose load found no frame. It keeps its ring slot, so a domain has no more than the ring has
 * slots. */
struct held_event {
    struct de_vm_event event;
    uint64_t taken_ns;
};

struct pager_domain {
    uint16_t id;
    uint32_t gfns;
    unsigned references; /**< under the pager's lock: the list's, and the server's while it serves */
    atomic_bool halted;
    char failure[FAILURE_TEXT_BYTES]; /**< under the pager's lock */
    struct held_event held[DE_RING_SLOTS];
    unsigned held_count; /**< this and `held`: only the serving thread's */
    _Atomic(uint64_t) entries[];
};

/** What one thread needs to rebuild and load a page. */
struct loader {
    struct de_rebuilder *rebuilder;
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
    COUNTERS
};

struct atomic_latency {
    _Atomic(uint64_t) counts[DE_LATENCY_BUCKETS];
};

struct de_pager {
    struct de_store *store;
    struct de_hypervisor hypervisor;

    pthread_mutex_t proposals; /**< one batch at a time; held for long, and never by a server */
    struct loader proposer;
    struct loader server;

    pthread_mutex_t lock; /**< the domain list and the retired objects; only ever held for a moment */
    pthread_cond_t changed;
    struct pager_domain *domains[DE_PAGER_MAX_DOMAINS];
    uint32_t retired[RETIRED_CAPACITY]; /**< a ring of objects to release */
    size_t retired_first;
    size_t retired_count;

    bool started;
    atomic_bool stop;
    pthread_t server_thread;
    pthread_t retire_thread;
    unsigned held_total; /**< the serving thread's */

    _Atomic(uint64_t) counters[COUNTERS];
    _Atomic(uint64_t) states[DE_PAGE_LOADING + 1]; /**< entries per state, except resident */
    _Atomic(uint64_t) table_bytes;
    struct atomic_latency rebuild;
    struct atomic_latency fault;
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
/** Find a domain and hold it; NULL: not ours. */
struct pager_domain *pager_domain_get(struct de_pager *pager, uint16_t id);
void pager_domain_put(struct de_pager *pager, struct pager_domain *domain);
/** Have an object released by someone who may wait for the store's lock. */
void pager_retire(struct de_pager *pager, uint32_t object);
/** Pause the domain for good, and remember why. */
void pager_halt(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn, const char *why);

/* latency.c */
void latency_add(struct atomic_latency *latency, uint64_t ns);
void latency_read(const struct atomic_latency *latency, struct de_latency *copy);

/* load.c */
enum loaded {
    LOADED,         /**< the page is resident now */
    LOAD_UNNEEDED,  /**< it was, or is a hole, or its eviction is not over */
    LOAD_NO_MEMORY, /**< try again later */
    LOAD_FAILED,    /**< no right content to be had; the domain is halted */
    LOAD_DOMAIN_GONE,
};
/** Make a page resident, whatever its entry says now. @p loader is the calling thread's. */
enum loaded pager_load(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn,
                       struct loader *loader);
/** The guest gave the page back: forget its object, unless the gfn has a newer page that is out. */
void pager_drop(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn);

/* serve.c */
/** Wait up to @p timeout_ns and serve what came. @return events. */
size_t pager_serve_round(struct de_pager *pager, uint64_t timeout_ns);

#endif
