/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file internal.h
 * The machine's own data. One lock guards all of it, with a single exception: a vCPU reads a resident page
 * without it.
 *
 * That exception works like a TLB and its shoot-down. A vCPU announces the gfn it is about to access
 * (`accessing`), then reads the p2m entry, copies, and takes the announcement back. Whoever takes rights away
 * from an entry changes it first and then waits until no vCPU of the domain announces that gfn (p2m_set):
 * later accesses see the new entry.
 */
#ifndef DIFFENGINE_MACHINE_INTERNAL_H
#define DIFFENGINE_MACHINE_INTERNAL_H

#include "block.h"

#include <diffengine/machine.h>
#include <stdatomic.h>

#define FRAME_NONE UINT32_MAX
#define CRASH_TEXT_BYTES 128u

struct sharer {
    uint16_t domain;
    uint32_t gfn;
};

/** A shared frame's gfns. The handle is never reused, so an old one is recognised as stale. */
struct share {
    uint64_t handle;
    uint32_t count;
    uint32_t capacity;
    struct sharer sharers[];
};

struct frame {
    uint32_t references; /**< 1 for being allocated, 1 per mapping; 0: free */
    struct share *share; /**< NULL: not shared */
};

/** What tells one pager of events: the domains that have some. Xen has an event channel per ring. */
struct channel {
    struct domain *first_pending;
    struct domain *last_pending;
    bool interrupted;
    struct wait_queue events; /**< the pager sleeps here */
    /**
     * NULL, or called when there is something to wait for; the lock is held. @p vcpu NULL, or the one that
     * waits for an answer from now on, on the caller's thread; it may be given an errand.
     */
    void (*announce)(struct channel *channel, struct de_vcpu *vcpu);
    /** What a vCPU does on its thread, for a short time, before it sleeps; the lock is held before and after.
     */
    void (*run_errand)(struct de_vcpu *vcpu);
};

/**
 * Requests and answers, both counted for ever; slot i % DE_RING_SLOTS is in use from put to answer. It
 * outlives its pager: whoever takes it over gets all that is unanswered once more.
 */
struct ring {
    bool enabled;
    struct channel *channel; /**< its pager's; NULL: none, or the pager died */
    uint64_t put;
    uint64_t taken;
    uint64_t answered;
    unsigned waiters;
    struct de_vm_event slots[DE_RING_SLOTS];
};

struct domain {
    uint16_t id;
    bool dying;
    uint32_t gfns;
    struct de_uuid uuid;
    _Atomic(uint64_t) *p2m; /**< type | frame << 8 */
    atomic_bool halted;     /**< paused, crashed or dying: what a vCPU looks at without the lock */
    unsigned pause_count;
    unsigned references; /**< the domain table, each vCPU, a destroy under way */
    uint64_t type_count[DE_P2M_TYPES];
    uint64_t paging_in_frames; /**< paging_in gfns that still have their frame */
    uint64_t claimed;
    uint8_t *dirty; /**< a bit per gfn; NULL: dirty pages are not logged */
    uint64_t cow_breaks;
    uint64_t slot_waits;
    uint64_t answers_dropped;
    struct ring ring;
    struct wait_queue slots; /**< vCPUs waiting for a free slot */
    bool pending;            /**< in its channel's list of domains with events */
    struct domain *next_pending;
    struct de_vcpu *vcpus[DE_MACHINE_MAX_VCPUS];
    uint32_t *registered; /**< frames that the guest gave the hypervisor for good */
    uint32_t registered_count;
    char crash[CRASH_TEXT_BYTES]; /**< "" = not crashed */
};

struct de_vcpu {
    _Alignas(64) _Atomic(uint64_t) accessing; /**< gfn + 1 while it copies, else 0; written on every access */
    struct de_machine *machine;
    struct domain *domain;
    uint32_t id;
    unsigned pause_count;
    bool kicked;
    void *errand;             /**< NULL, or its channel's */
    struct wait_queue wake;   /**< it sleeps here while it or its domain is paused */
    _Atomic(uint64_t) faults; /**< these four: written by its thread alone, read by any */
    _Atomic(uint64_t) cow_breaks;
    _Atomic(uint64_t) stall_ns;
    _Atomic(uint64_t) stalled_since_ns; /**< the access under way, once it waits for the pager; 0: none */
    uint64_t *samples_ns;
    size_t sample_capacity;
};

struct de_machine {
    pthread_mutex_t lock;
    int fd;
    uint32_t frame_count;
    uint8_t *memory;
    struct frame *frames;
    uint32_t *free_frames; /**< a stack */
    uint32_t free_count;
    uint64_t claimed;
    uint64_t mapped;
    uint64_t shared_frames;
    uint64_t shared_gfns;
    uint64_t paged;
    uint64_t share_bytes;
    uint64_t next_handle;
    struct domain **domains; /**< by id, up to next_domain */
    uint16_t next_domain;
    struct channel channel; /**< of the pager in this process */
};

/* All functions below: the machine's lock is held. */

/* frames.c */
/** What makes Xen stop the host: say so on stderr, and abort. */
_Noreturn void machine_panic(const char *format, ...) __attribute__((format(printf, 1, 2)));
static inline uint8_t *frame_address(const struct de_machine *machine, uint32_t frame)
{
    return machine->memory + (size_t)frame * DE_PAGE_SIZE;
}
/** A frame for the domain with unspecified content; FRAME_NONE: none to have. The p2m entry that gets it
 * draws on the domain's claim. */
uint32_t frame_allocate(struct de_machine *machine, struct domain *domain);
void frame_put(struct de_machine *machine, uint32_t frame);

/* p2m.c */
static inline enum de_p2m_type entry_type(uint64_t entry)
{
    return (enum de_p2m_type)(entry & 0xff);
}
static inline uint32_t entry_frame(uint64_t entry)
{
    return (uint32_t)(entry >> 8);
}
static inline uint64_t p2m_get(const struct domain *domain, uint32_t gfn)
{
    return atomic_load(&domain->p2m[gfn]);
}
/** Change an entry, keep the counts and the domain's claim, and wait for vCPUs that still use the old one. */
void p2m_set(struct de_machine *machine, struct domain *domain, uint32_t gfn, enum de_p2m_type type,
             uint32_t frame);

/* domain.c */
struct domain *domain_find(struct de_machine *machine, uint16_t id); /**< NULL: none, or dying */
void domain_put(struct domain *domain);
void domain_crash(struct domain *domain, const char *format, uint32_t gfn);
uint64_t domain_private(const struct domain *domain);
/** Keep vCPUs from accesses without the lock, and wait until none is in the middle of one. */
void domain_halt(struct domain *domain);
/** Undo that, unless the domain is paused, crashed or dying. */
void domain_go_on(struct domain *domain);
/** Take the frame (if any) out of a gfn, which becomes a hole. */
void domain_drop_gfn(struct de_machine *machine, struct domain *domain, uint32_t gfn);

/* log_dirty.c */
/** The type of private memory that was not written since the last clean: as Xen's loads and answers choose
 * it. */
static inline enum de_p2m_type unwritten_type(const struct domain *domain)
{
    return domain->dirty ? DE_P2M_LOGDIRTY : DE_P2M_RAM_RW;
}
static inline bool is_ram(enum de_p2m_type type)
{
    return type == DE_P2M_RAM_RW || type == DE_P2M_LOGDIRTY;
}
/** Note a write, if such are logged: paging_mark_pfn_dirty(). */
static inline void mark_dirty(struct domain *domain, uint32_t gfn)
{
    if (domain->dirty)
        domain->dirty[gfn / 8] |= (uint8_t)(1u << gfn % 8);
}

/* sharing.c */
/** Make a shared gfn private: in place if it is the frame's only one, else by copy. 0 or -ENOMEM. */
int share_break(struct de_machine *machine, struct domain *domain, uint32_t gfn);
/** Take one gfn off its shared frame, which goes with the last. The p2m entry is the caller's. */
void share_leave(struct de_machine *machine, struct domain *domain, uint32_t gfn, uint32_t frame);

/* ring.c */
/** Wait for a free slot. 0; -EBUSY: full, and @p vcpu is NULL (dom0 can't wait); -EOPNOTSUPP: no ring; or as
 * vcpu_wait(). */
int ring_claim_slot(struct de_machine *machine, struct domain *domain, struct de_vcpu *vcpu);
/** @param vcpu As channel.announce's. */
void ring_put(struct domain *domain, const struct de_vm_event *event, struct de_vcpu *vcpu);
/** The domain is not announced to its pager any more. */
void ring_forget(struct domain *domain);

/* paging.c */
/**
 * Ask for a page on behalf of a vCPU (then paused), or of dom0 (NULL), as p2m_mem_paging_populate() does.
 * No ring: the domain crashes. 0, or as ring_claim_slot().
 */
int paging_populate(struct de_machine *machine, struct domain *domain, uint32_t gfn, struct de_vcpu *vcpu);

/* touches.c */
/** Let go of the pages that the guest had registered. */
void touches_forget(struct de_machine *machine, struct domain *domain);

/* vcpu.c */
/** Sleep until this vCPU may run. 0, -ESHUTDOWN or -EINTR. */
int vcpu_wait(struct de_vcpu *vcpu);
/** 0, -ESHUTDOWN or -EINTR without sleeping. */
int vcpu_stopped(const struct de_vcpu *vcpu);

/* Operations of hypervisor.h, with the machine as context; they take the lock themselves. */
int machine_domain_uuid(void *context, uint16_t domain, struct de_uuid *uuid);
int machine_paging_nominate(void *context, uint16_t domain, uint32_t gfn);
int machine_paging_touch(void *context, uint16_t domain, uint32_t gfn);
int machine_paging_evict(void *context, uint16_t domain, uint32_t gfn);
int machine_paging_load(void *context, uint16_t domain, uint32_t gfn, const uint8_t *page);
int machine_share_nominate(void *context, uint16_t domain, uint32_t gfn, uint64_t *handle);
int machine_share(void *context, uint16_t source, uint32_t source_gfn, uint64_t source_handle,
                  uint16_t client, uint32_t client_gfn, uint64_t client_handle);
int machine_unshare(void *context, uint16_t domain, uint32_t gfn);

/* store_domain.c */
extern const struct de_store_domain_operations machine_store_domain_operations;

/* Rings, for the pager whose channel this is; they take the lock themselves. Errors: hypervisor.h. */
int channel_init(struct channel *channel); /**< 0 or a negative errno value */
void channel_destroy(struct channel *channel);
/** Its pager is gone: rings stay as they are, without one. */
void channel_abandon(struct de_machine *machine, struct channel *channel);
int ring_enable(struct de_machine *machine, struct channel *channel, uint16_t domain);
int ring_disable(struct de_machine *machine, struct channel *channel, uint16_t domain);
int ring_take_over(struct de_machine *machine, struct channel *channel, uint16_t domain, uint32_t *answered);
int ring_take(struct de_machine *machine, struct channel *channel, uint16_t domain,
              struct de_vm_event *event);
int ring_answer(struct de_machine *machine, struct channel *channel, uint16_t domain,
                const struct de_vm_event *answer);
int ring_wait(struct de_machine *machine, struct channel *channel, uint64_t timeout_ns, uint16_t *domains,
              size_t capacity);
/** All events of its ring. The number taken; 0 also if it is not this channel's, or has none. */
uint32_t ring_take_all(struct de_machine *machine, struct channel *channel, uint16_t domain,
                       struct de_vm_event events[DE_RING_SLOTS]);
/** The last @p count events taken are in the ring again, unannounced; none if it has not so many unanswered.
 */
void ring_put_back(struct de_machine *machine, const struct channel *channel, uint16_t domain,
                   uint64_t count);
/** End the wait that is under way on this channel, or else the next one. */
void ring_interrupt(struct de_machine *machine, struct channel *channel);
/** Whether ring_interrupt() was called for a wait that has not ended yet; that wait ends with this. */
bool ring_interrupted(struct de_machine *machine, struct channel *channel);

/* The same for who holds the lock. */
void channel_put_back(struct de_machine *machine, const struct channel *channel, uint16_t domain,
                      uint64_t count);
bool channel_ready(const struct channel *channel); /**< a wait would not wait */
/** End a wait: the domains that have events, up to @p capacity; the rest is for the next one. */
size_t channel_collect(struct channel *channel, uint16_t *domains, size_t capacity);
/** As ring_take_all(). */
uint32_t channel_take_all(struct de_machine *machine, const struct channel *channel, uint16_t domain,
                          struct de_vm_event events[DE_RING_SLOTS]);

#endif
