/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file hypervisor.h
 * What the pager needs of a hypervisor: one table of operations, with an adapter for the embedded machine
 * (machine.h) and, later, one for Xen.
 *
 * Every operation returns 0 (or a count) or a negative errno value, as Xen's hypercalls do; the errors named
 * at each are those that Xen 4.17 gives in that situation. Operations may be called from any thread at the
 * same time, except that one domain's ring has one consumer. -ESRCH (no such domain, or it is being
 * destroyed) is possible everywhere, -ENODEV (no paging ring enabled) wherever a page is nominated, evicted
 * or loaded.
 */
#ifndef DIFFENGINE_HYPERVISOR_H
#define DIFFENGINE_HYPERVISOR_H

#include <diffengine/page.h>
#include <stdbool.h>

/** Slots in a paging ring: a page holds eight of Xen's 400-byte events. A slot is free again once its answer
 * is in. */
#define DE_RING_SLOTS 8u

/** Xen drops every answer whose version differs (and the guest then hangs: the bug of Debian's xenpaging). */
#define DE_VM_EVENT_VERSION 7u
#define DE_VM_EVENT_REASON_PAGING 3u

#define DE_VM_EVENT_VCPU_PAUSED                                                                              \
    1u                         /**< event.flags: vcpu waits for the answer, which must repeat this flag      \
                                */
#define DE_PAGING_DROP_PAGE 1u /**< event.paging_flags: the guest gave the page back; drop the copy */
#define DE_PAGING_EVICT_FAIL                                                                                 \
    2u /**< event.paging_flags: the page was only nominated; its frame is still there */

/** The physical-to-machine types that paging and sharing tell apart. Names as in Xen, without the p2m_ram_
 * prefix. */
enum de_p2m_type {
    DE_P2M_INVALID = 0, /**< a hole */
    DE_P2M_RAM_RW = 1,
    DE_P2M_SHARED = 2, /**< read-only, one frame for up to DE_SHARE_MAX_GFNS gfns; or for one: a candidate */
    DE_P2M_PAGING_OUT = 3, /**< nominated: still has its frame, but the guest faults on it */
    DE_P2M_PAGED = 4,      /**< evicted: no frame */
    DE_P2M_PAGING_IN = 5,  /**< asked for; with its frame (it was nominated) or without (it was paged) */
    DE_P2M_LOGDIRTY = 6,   /**< as ram_rw, but the guest's next write makes it that and is noted first */
    DE_P2M_TYPES,
};

#define DE_UUID_BYTES 16u

/** A domain's UUID. A host gives the id of a domain that is gone to another one, and a guest that reboots
 * keeps its UUID under another id: together they name one domain for ever. */
struct de_uuid {
    uint8_t bytes[DE_UUID_BYTES];
};

/** One paging event, and its answer. The ring is guest memory: every field of an event is untrusted. */
struct de_vm_event {
    uint32_t version;
    uint32_t flags;
    uint32_t reason;
    uint32_t vcpu_id;
    uint32_t gfn;
    uint32_t p2m_type; /**< the type at the time of the fault */
    uint32_t paging_flags;
};

/** share() found a handle stale: that page was written, unshared or paged since. Xen returns these two raw
 * numbers. */
#define DE_SHARE_SOURCE_STALE (-10)
#define DE_SHARE_CLIENT_STALE (-9)

/** A sharers' list has 256 buckets under one lock in Xen, which sets no limit itself: the caller keeps to
 * this one. */
#define DE_SHARE_MAX_GFNS 256u

/**
 * Frames of the caller's own, in a domain that never runs: the store domain. It is told from guests by how
 * its UUID begins, and nobody else looks at it. For one thread at a time.
 */
#define DE_STORE_DOMAIN_PREFIX "DEstore\n"
struct de_store_domain_operations {
    /**
     * The domain with this UUID, which begins with the prefix; made, without a frame, if there is none.
     * @param gfns Its address space. @param frames The most that it may have. Both for one that is made.
     */
    int (*create)(void *context, const struct de_uuid *uuid, uint64_t gfns, uint64_t frames,
                  uint16_t *domain);
    /** -ESRCH: there is none with this UUID. */
    int (*find)(void *context, const struct de_uuid *uuid, uint16_t *domain);
    int (*destroy)(void *context, uint16_t domain);
    /** Give a gfn a frame, with any content. -ENOMEM: none is free, or all are claimed by other domains. */
    int (*populate)(void *context, uint16_t domain, uint32_t gfn);
    /** Take frames away, whose content others may see from now on. They are in no window. */
    int (*depopulate)(void *context, uint16_t domain, const uint32_t *gfns, size_t count);
    /**
     * Map a range of gfns read-write, as a window: @p address is of addresses that the caller has reserved
     * (PROT_NONE). @param[out] present Per gfn, whether it has a frame; the rest of the window has nothing.
     */
    int (*map)(void *context, uint16_t domain, uint32_t first, size_t count, uint8_t *address, bool *present);
    /** Map a gfn that was populated since, at its place in its window. */
    int (*map_added)(void *context, uint16_t domain, uint32_t gfn, uint8_t *address);
    /** Unmap a whole window; its addresses are reserved again. With an error it is as it was. */
    int (*unmap)(void *context, uint8_t *address, size_t count);
};

struct de_hypervisor_operations {
    /** The UUID of the domain that has this id now. -ESRCH. */
    int (*domain_uuid)(void *context, uint16_t domain, struct de_uuid *uuid);

    /**
     * Map @p count frames of @p domain read-only. A mapping is a reference on the frame: until unmap() its
     * gfn can be neither nominated for paging (-EBUSY), evicted (-EBUSY) nor nominated for sharing (-E2BIG).
     * @param[out] pages  Addresses, NULL where errors[i] != 0.
     * @param[out] errors Per page: 0; -EINVAL: a hole; -ENOENT: evicted, and a populate request without a
     * paused vCPU is now in the ring (none if the ring is full), or already on its way in. (Xen's library
     * spins if the *last* page of a batch is evicted; native/xen/memory.c ends each batch with another.)
     * @return number of pages mapped, or -ESRCH, -ENOMEM (nothing mapped).
     */
    int (*map)(void *context, uint16_t domain, const uint32_t *gfns, size_t count, const uint8_t **pages,
               int32_t *errors);
    /** Undo map(); NULL entries are passed over. The domain may be gone by now. */
    void (*unmap)(void *context, const uint8_t *const *pages, size_t count);

    /** Become the domain's pager. -EBUSY: it has one. -ENODEV, -EMLINK, -EXDEV, -EOPNOTSUPP: not a pageable
     * domain. */
    int (*paging_enable)(void *context, uint16_t domain);
    /**
     * Stop being it. -EBUSY: vCPUs wait for a free slot. Paused vCPUs go on; whatever then touches an evicted
     * page crashes the domain, so load everything first.
     */
    int (*paging_disable)(void *context, uint16_t domain);
    /**
     * Become the pager of a domain whose pager is gone without having disabled: pages out stay out. Every
     * event after the last answer is in the ring once more, and is announced by wait(). -EBUSY: its pager is
     * alive. -EINVAL: no ring enabled. -EOPNOTSUPP: the ring is out of reach. With the machine in this
     * process every pager counts as gone: it is the caller who knows.
     * @param[out] answered How many answers the ring has had (Xen: its rsp_prod). Answers are counted, not
     * matched: after answers out of order one event comes twice and another not at all, unless the pager
     * keeps a record of its own, which this number completes.
     */
    int (*paging_take_over)(void *context, uint16_t domain, uint32_t *answered);

    /**
     * ram_rw or logdirty -> paging_out. The next guest access gives an event with DE_PAGING_EVICT_FAIL.
     * -EBUSY: a hole, shared, already nominated, evicted or on its way in, mapped, or a special page.
     * -EOPNOTSUPP: pages of this domain are not to be nominated. See pause_outside_kernel() for when to.
     */
    int (*paging_nominate)(void *context, uint16_t domain, uint32_t gfn);
    /** paging_out -> paged; the frame is free. -EBUSY: not nominated (any more), or mapped. Nothing happened
     * then. */
    int (*paging_evict)(void *context, uint16_t domain, uint32_t gfn);
    /**
     * paged or paging_in -> ram_rw (logdirty if dirty pages are logged; no bit is set). If the frame was
     * still there its content is kept and @p page is not looked at.
     * @param page DE_PAGE_SIZE bytes, or NULL: then only a page that still has its frame can be loaded.
     * -ENOENT: anything else: ram, shared, a hole, *or still nominated*. -EINVAL: frame gone and page NULL.
     * -ENOMEM: no frame free, or all free ones claimed by other domains.
     */
    int (*paging_load)(void *context, uint16_t domain, uint32_t gfn, const uint8_t *page);

    /**
     * Touch a page as a dom0 tool may that tells a guest's pager so. Nominated -> paging_in, with an event of
     * no vCPU. Of ram it makes a page that was just written: private, its bit set where dirty pages are
     * logged; what it holds stays.
     * @return 0: it is ram. -EAGAIN: it was out, nominated, or on its way in: then load it (a full ring
     * leaves it as it was). -EINVAL: a hole. -ESRCH, -ENODEV: no such domain, no ring. -ENOMEM: no frame to
     * unshare.
     */
    int (*paging_touch)(void *context, uint16_t domain, uint32_t gfn);

    /**
     * ram_rw or logdirty -> shared (by one). Shared already: its present handle.
     * -EINVAL: a hole, nominated, evicted or on its way in. -E2BIG: mapped. -ENOMEM: no room for metadata, as
     * (almost) no frame is both free and unclaimed.
     */
    int (*share_nominate)(void *context, uint16_t domain, uint32_t gfn, uint64_t *handle);
    /**
     * Give all gfns of the client's frame the source's frame, and free the client's. Contents are not
     * compared. 0 also if both have the same frame already. DE_SHARE_SOURCE_STALE, DE_SHARE_CLIENT_STALE.
     * -ENOSPC: more than DE_SHARE_MAX_GFNS together (the embedded machine's own check). -ENOMEM: no room for
     * metadata.
     *
     * **The host stops** if the client's frame is shared with a third domain: unshare the client first.
     */
    int (*share)(void *context, uint16_t source, uint32_t source_gfn, uint64_t source_handle, uint16_t client,
                 uint32_t client_gfn, uint64_t client_handle);

    /** Make a shared page private, as a read-write map does. 0 also if it is. -EINVAL: no frame. -ENOMEM. */
    int (*unshare)(void *context, uint16_t domain, uint32_t gfn);

    /** Take the ring's next event. 1: taken, 0: none when the last wait() ended (which is told of what came
     * since, the next time), or none now. -EINVAL: no ring enabled. */
    int (*ring_take)(void *context, uint16_t domain, struct de_vm_event *event);
    /**
     * Put an answer: the event's flags, vcpu_id, gfn and version. A wrong version is dropped silently, the
     * slot is free all the same. If that vCPU is paused and the gfn is paging_in with a frame, it becomes
     * ram_rw; with DE_VM_EVENT_VCPU_PAUSED the vCPU goes on. An answer to an event of no vCPU has no effect
     * at all. -EINVAL: no ring, no event unanswered, or no such vCPU.
     */
    int (*ring_answer)(void *context, uint16_t domain, const struct de_vm_event *answer);
    /**
     * Wait until some ring has events, or interrupt() is called, or @p timeout_ns passed (0: only look).
     * @param[out] domains Up to @p capacity domains that have (or had) events.
     * @return their number; 0 after a timeout or an interrupt.
     */
    int (*wait)(void *context, uint64_t timeout_ns, uint16_t *domains, size_t capacity);
    /** Make the current or the next wait() return at once. Any thread. */
    void (*interrupt)(void *context);

    /** No vCPU of the domain runs when this returns. Counted: as many unpause()s let it run again. */
    int (*pause)(void *context, uint16_t domain);
    int (*unpause)(void *context, uint16_t domain); /**< -EINVAL: not paused */
    /**
     * As pause(), with each vCPU outside the guest's kernel: in a program, or waiting for an interrupt. So
     * pages are nominated: a kernel puts a hypercall's arguments somewhere and calls, and the hypervisor then
     * reads them without a fault that could be waited for. If that page, or a page table on the way there,
     * was nominated in between, the call fails with -EFAULT, which few kernels live with. NULL: at any time
     * will do. Should this process die meanwhile, who takes over lets the domain go on. -EAGAIN: it stayed in
     * its kernel for as long as is waited, or somebody else has paused it there.
     */
    int (*pause_outside_kernel)(void *context, uint16_t domain);
    int (*go_on)(void *context, uint16_t domain); /**< after pause_outside_kernel() */

    /**
     * paging_load(), and ring_answer() if that gave 0: where two calls cost more than one. NULL: make both.
     * @return what paging_load() gave.
     */
    int (*paging_load_answer)(void *context, uint16_t domain, uint32_t gfn, const uint8_t *page,
                              const struct de_vm_event *answer);

    /** Let another thread of the caller's get on, for it is in the middle of a step that this one waits for.
     */
    void (*yield)(void *context);
    /** A clock for latencies in nanoseconds; virtual in a simulation. */
    uint64_t (*now_ns)(void *context);

    const struct de_store_domain_operations *store_domain; /**< NULL: there is none to be had */
};

/** A hypervisor as the pager holds it. The context outlives every user of the table. */
struct de_hypervisor {
    const struct de_hypervisor_operations *operations;
    void *context;
};

#endif
