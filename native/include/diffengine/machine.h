/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file machine.h
 * The embedded machine: frames, domains, p2m, sharing, paging and event rings with Xen's semantics, in this
 * process.
 *
 * It answers each call exactly as Xen 4.17 does (hypervisor.h names the errors), so that an engine proven on
 * it only has to change its hypercalls. All frames are one memfd; a free frame is a hole in it, so that what
 * the engine saves shows in the kernel's own accounting of this process (RssShmem).
 *
 * What brings a host with Xen down brings the machine down, too: it says why on stderr and aborts.
 *
 * Functions return 0 (or a count) or a negative errno value. Any thread may call anything at any time, except
 * that a vCPU and a guest belong to the thread that uses them; freeing the machine ends all use of it.
 */
#ifndef DIFFENGINE_MACHINE_H
#define DIFFENGINE_MACHINE_H

#include <diffengine/hypervisor.h>

struct de_machine;

/** Domains get ids from 1 upwards, never twice unless asked for. Xen's own limit. */
#define DE_MACHINE_MAX_DOMAIN_ID 32751u
#define DE_MACHINE_MAX_VCPUS 16u /**< per domain */

/** Frame counts of the whole machine; frames == used + free. */
struct de_machine_accounting {
    uint64_t frames;
    uint64_t free;
    uint64_t used;
    uint64_t claimed;        /**< free, but promised to domains (de_machine_claim) */
    uint64_t shared_frames;  /**< frames with p2m type shared; Xen: xc_sharing_used_frames */
    uint64_t sharing_saved;  /**< gfns that need no frame because they share; Xen: xc_sharing_freed_pages */
    uint64_t paged;          /**< gfns without frame: paged, or paging_in from paged */
    uint64_t mapped;         /**< mappings by dom0 now held */
    uint64_t metadata_bytes; /**< what sharing costs the hypervisor */
};

/** One domain. gfns with a frame: private + shared. */
struct de_domain_accounting {
    uint64_t gfns; /**< size of its physical address space */
    uint64_t holes;
    uint64_t private_gfns; /**< with a frame of its own: ram_rw, logdirty, paging_out, paging_in with
                              frame (Xen: tot_pages) */
    uint64_t shared_gfns;
    uint64_t paged;
    uint64_t nominated;       /**< of the private ones, paging_out */
    uint64_t claimed;         /**< frames still promised */
    uint64_t cow_breaks;      /**< copies made because a shared page was written or mapped read-write */
    uint64_t paging_events;   /**< put into its ring so far */
    uint64_t slot_waits;      /**< times a vCPU found the ring full */
    uint64_t answers_dropped; /**< answers with a wrong version */
};

/** A domain that exists, and the size of its physical address space. */
struct de_domain_info {
    uint32_t gfns;
    uint16_t domain;
};

/** @param frames 1 .. 2^31. -EINVAL, -ENOMEM, or the errno of memfd_create, ftruncate or mmap. */
int de_machine_create(uint32_t frames, struct de_machine **machine);
/** Destroys all domains. No vCPU, guest or mapping may be left. */
void de_machine_free(struct de_machine *machine);
/** The memfd, owned by the machine: fstat's st_blocks * 512 is the memory that frames really take. */
int de_machine_fd(const struct de_machine *machine);
/** The operations table on this machine; valid as long as it. */
struct de_hypervisor de_machine_hypervisor(struct de_machine *machine);
void de_machine_account(struct de_machine *machine, struct de_machine_accounting *accounting);

/** A domain of @p gfns holes, with a random UUID. -EINVAL (0 gfns), -ENOMEM (also: no id left). */
int de_machine_domain_create(struct de_machine *machine, uint32_t gfns, uint16_t *domain);
/**
 * The same with a given UUID, and perhaps with an id that comes round again.
 * @param domain In: 0, or the id that a domain had before. Out: the id. -EINVAL (0 gfns, no domain ever had
 * that id), -EEXIST (one has it now), -ENOMEM.
 */
int de_machine_domain_create_as(struct de_machine *machine, uint32_t gfns, const struct de_uuid *uuid,
                                uint16_t *domain);
/**
 * Destroy a domain: its vCPUs' accesses return -ESHUTDOWN from now on, its frames go free (those that dom0
 * has mapped, at the unmap), its ring is gone. -ESRCH.
 */
int de_machine_domain_destroy(struct de_machine *machine, uint16_t domain);
/**
 * The domains from id @p first on, in order, as xc_domain_getinfolist(); dying ones are not listed.
 * @param[out] infos Room for @p capacity. @return how many were written.
 */
int de_machine_domain_list(struct de_machine *machine, uint16_t first, struct de_domain_info *infos,
                           size_t capacity);
int de_machine_domain_account(struct de_machine *machine, uint16_t domain,
                              struct de_domain_accounting *accounting);
int de_machine_domain_pause(struct de_machine *machine, uint16_t domain);
int de_machine_domain_unpause(struct de_machine *machine, uint16_t domain);
/** Why a domain crashed, as text, "" if it did not. -ESRCH. */
int de_machine_domain_crash_reason(struct de_machine *machine, uint16_t domain, char *text, size_t capacity);
/** One gfn's p2m type (enum de_p2m_type). -EINVAL: beyond the address space. */
int de_machine_p2m_type(struct de_machine *machine, uint16_t domain, uint32_t gfn);

/**
 * Give frames to holes.
 * @param gfns   The gfns, or NULL: 0 .. count - 1.
 * @param pages  Their contents, DE_PAGE_SIZE bytes each, or a NULL entry: a zero page. @p pages itself may be
 * NULL.
 * @param[out] errors Per page: 0; -EINVAL: beyond the address space; -EEXIST: not a hole; -ENOMEM. May be
 * NULL.
 * @return number of pages populated, or -ESRCH.
 */
int64_t de_machine_populate(struct de_machine *machine, uint16_t domain, const uint32_t *gfns,
                            const uint8_t *const *pages, size_t count, int32_t *errors);

/**
 * Promise frames, as xc_domain_claim_pages: the domain may have @p pages private frames in all, and
 * allocations for others can't take the free frames that this needs. 0 pages: give the claim back. -EINVAL:
 * not more than it has, or a claim is there already. -ENOMEM: too few free unclaimed frames.
 *
 * As in Xen's domain_adjust_tot_pages(), every private frame that the domain gets, by populating, loading or
 * a copy on write, comes out of the claim; and as long as some of it is left, every one that it gives up
 * (evicted, nominated for sharing, released) goes back into it, and so to nobody else.
 */
int de_machine_claim(struct de_machine *machine, uint16_t domain, uint64_t pages);

/**
 * Log which pages the guest's vCPUs write, as XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY does under HAP: exact for
 * them, blind for what dom0 writes through a mapping. No bit is set at first, and none by a load, or by
 * populating a hole; a private copy sets one. -EINVAL: on already, by whomever. -ENOMEM.
 */
int de_machine_log_dirty_enable(struct de_machine *machine, uint16_t domain);
/** XEN_DOMCTL_SHADOW_OP_OFF. 0 also if it was off. */
int de_machine_log_dirty_disable(struct de_machine *machine, uint16_t domain);
/**
 * XEN_DOMCTL_SHADOW_OP_PEEK, or CLEAN: gfns written since the last clean.
 * @param first,count The range; whole bytes, but at the domain's end. Xen's begins at 0.
 * @param[out] bits   (count + 7) / 8 bytes, the first gfn in the lowest bit.
 * @return 0, -ESRCH, or -EINVAL (range). Off, it gives 0 and no bits: Xen does not check either.
 */
int de_machine_log_dirty_read(struct de_machine *machine, uint16_t domain, bool clean, uint32_t first,
                              uint32_t count, uint8_t *bits);

/**
 * Map frames as any dom0 process does; hypervisor.h's map() is the read-only form. Read-write **unshares**
 * shared pages
 * (-ENOMEM per page if no frame is free for the copy); read-only leaves them shared.
 * @return number of pages mapped, or -ESRCH.
 */
int de_machine_map(struct de_machine *machine, uint16_t domain, bool writable, const uint32_t *gfns,
                   size_t count, uint8_t **pages, int32_t *errors);
void de_machine_unmap(struct de_machine *machine, const uint8_t *const *pages, size_t count);

/**
 * A grant of one page mapped by a backend in dom0, as get_paged_frame() does for GNTTABOP_map_grant_ref;
 * undone by de_machine_unmap(). Other than with de_machine_map(), a page that is only nominated is asked for,
 * too, without a paused vCPU, and so is one that is on its way in already.
 * @return 0; -EAGAIN: asked for, if the ring had room, or no frame for the private copy of a shared page that
 * is mapped writable (GNTST_eagain: the backend tries again); -EINVAL: a hole; -ESRCH.
 */
int de_machine_grant_map(struct de_machine *machine, uint16_t domain, bool writable, uint32_t gfn,
                         uint8_t **page);
/**
 * A page that the guest gives the hypervisor for good: vcpu_info, an event channel's FIFO. It is made
 * private, and referred to until the domain is destroyed: -EBUSY for paging, -E2BIG for sharing. 0, -EINVAL:
 * no frame, -ENOMEM, -ESRCH.
 */
int de_machine_register_page(struct de_machine *machine, uint16_t domain, uint32_t gfn);

/* vCPUs: what a guest does. */

struct de_vcpu;

struct de_vcpu_statistics {
    uint64_t faults;     /**< accesses that waited for the pager at least once */
    uint64_t cow_breaks; /**< accesses that copied a shared page */
    uint64_t stall_ns;   /**< time in those accesses, also in the fault that is under way */
};

/** @return 0, -ESRCH, -ENOSPC (DE_MACHINE_MAX_VCPUS) or -ENOMEM. The vCPU belongs to one thread. */
int de_vcpu_create(struct de_machine *machine, uint16_t domain, struct de_vcpu **vcpu);
void de_vcpu_free(struct de_vcpu *vcpu);
/** Each fault's duration goes to samples_ns[faults % capacity] from now on. Owned by the caller. */
void de_vcpu_sample(struct de_vcpu *vcpu, uint64_t *samples_ns, size_t capacity);
/** Any thread. */
void de_vcpu_statistics(const struct de_vcpu *vcpu, struct de_vcpu_statistics *statistics);
/** Make the access that blocks now, and every later one that would, return -EINTR. Any thread. */
void de_vcpu_kick(struct de_vcpu *vcpu);

/**
 * Read or write guest memory; blocks while the domain or the vCPU is paused, a page is on its way in or the
 * ring is full. A resident page takes no lock.
 * @param offset,len offset + len <= DE_PAGE_SIZE.
 * @return 0; -EINVAL: offset or len; -EFAULT: a hole or beyond the address space; -ESHUTDOWN: the domain
 * crashed or is being destroyed; -EINTR: de_vcpu_kick(). A write to a shared page with no frame free crashes
 * the domain, as Xen does when nobody listens for it; so does a fault on an evicted page without a ring.
 */
int de_machine_guest_read(struct de_vcpu *vcpu, uint32_t gfn, uint32_t offset, void *buffer, uint32_t len);
int de_machine_guest_write(struct de_vcpu *vcpu, uint32_t gfn, uint32_t offset, const void *buffer,
                           uint32_t len);

/**
 * A hypercall of this vCPU copies from or to guest memory, as hvm_copy_from_guest_linear() and its like do:
 * a shared page is made private even if it is only read; a page that is nominated or out is asked for, and
 * the hypercall fails although its argument is good.
 * @return 0; -EFAULT: no frame, or none *now*: by the time the vCPU goes on, the page is in; the rest as
 * de_machine_guest_read().
 */
int de_machine_guest_hypercall(struct de_vcpu *vcpu, uint32_t gfn, uint32_t offset, void *buffer,
                               uint32_t len, bool to_guest);

/**
 * The guest gives a page back (balloons it out): the gfn becomes a hole. If it was in the hands of the pager,
 * a DROP event tells so, waiting for a slot if need be. 0, -EFAULT (a hole), -ESHUTDOWN, -EINTR.
 */
int de_machine_guest_release(struct de_vcpu *vcpu, uint32_t gfn);
/** The guest gets a zero page at a hole. 0, -EFAULT (beyond), -EEXIST, -ENOMEM, -ESHUTDOWN. */
int de_machine_guest_obtain(struct de_vcpu *vcpu, uint32_t gfn);

/* A guest program: random reads and writes, each checked byte by byte. */

struct de_guest;

struct de_guest_options {
    uint64_t seed;
    uint64_t operations;
    double write_fraction; /**< 0 .. 1 */
    uint32_t first_gfn;    /**< it uses gfns first_gfn .. first_gfn + gfns - 1, and no other guest may */
    uint32_t gfns;
    const uint8_t *const *content; /**< gfns addresses: what those pages hold at the start; NULL entries:
                                      zero. Owned by the caller, unchanged until join. */
    size_t sample_capacity;        /**< fault latencies kept, 0: none */
};

struct de_guest_result {
    int32_t status; /**< 0, or the negative errno value of the access that ended the run early */
    uint64_t reads; /**< each of a whole page */
    uint64_t writes;
    uint64_t wrong_bytes;
    uint64_t faults;
    uint64_t cow_breaks;
    uint64_t stall_ns;
    uint64_t run_ns;
    size_t samples; /**< fault latencies written to the caller's array */
};

/**
 * Start a thread with a vCPU of its own. A read takes a whole page and compares every byte with the image's
 * content as changed by this guest's own writes; a write changes 1 to 64 bytes, or a whole page now and then.
 * @return 0, -EINVAL (range, fraction), -ESRCH, -ENOSPC, -ENOMEM, -EAGAIN (no thread).
 */
int de_guest_start(struct de_machine *machine, uint16_t domain, const struct de_guest_options *options,
                   struct de_guest **guest);
/** Operations done so far; once it has ended, all of them, those given up on an early end too. Any thread. */
uint64_t de_guest_progress(const struct de_guest *guest);
/** Ask it to end soon, also out of an access that waits for ever. */
void de_guest_stop(struct de_guest *guest);
/**
 * Wait for its end, and free it.
 * @param[out] samples_ns Fault latencies, up to the sample_capacity it was started with; may be NULL.
 */
void de_guest_join(struct de_guest *guest, struct de_guest_result *result, uint64_t *samples_ns);

#endif
