/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file ring.h
 * The pager's side of a vm_event ring, and nothing else: no Xen is needed to test or fuzz it.
 *
 * The page lies in guest memory, so the guest may write to it at any time. Only our own two counts are
 * believed. What is read is copied once and comes out as `untrusted`; what a wrong count or event can do is
 * to answer for a vCPU of that guest too early, or never.
 */
#ifndef DIFFENGINE_XEN_RING_H
#define DIFFENGINE_XEN_RING_H

#include <diffengine/hypervisor.h>

struct xen_ring {
    void *page;         /**< DE_PAGE_SIZE bytes */
    uint32_t taken;     /**< requests taken so far (Xen's req_cons) */
    uint32_t answered;  /**< answers put so far (Xen's rsp_prod_pvt); at most DE_RING_SLOTS behind `taken` */
    uint64_t scribbled; /**< looks that found a count that Xen can't have written */
};

/** Start a ring that nothing is in. Only after Xen accepted it, for before that it may be another pager's. */
void xen_ring_start(struct xen_ring *ring, void *page);
/** Go on with a ring that a dead pager had: from its last answer. */
void xen_ring_resume(struct xen_ring *ring, void *page);
/** Offer again whatever is not answered. */
void xen_ring_rewind(struct xen_ring *ring);

/** Copy the next request out. @return false: there is none, or the count is not to be believed. */
bool xen_ring_take(struct xen_ring *ring, struct de_vm_event *untrusted_event);
/**
 * Put an answer with the event's vCPU, gfn, reason, version and its flag for a paused vCPU, and none of the
 * flags that would let Xen look at more.
 * @return false: no request is unanswered.
 */
bool xen_ring_answer(struct xen_ring *ring, const struct de_vm_event *event);
/**
 * What else waits in the ring for the vCPU that the event just taken paused. A paused vCPU runs no more of
 * the guest's code: these are touches by Xen itself, when it switches that vCPU out or in.
 * @param[out] untrusted_gfns DE_RING_SLOTS of them. @return how many.
 */
unsigned xen_ring_touched_by_xen(const struct xen_ring *ring, const struct de_vm_event *event,
                                 uint32_t *untrusted_gfns);
/** Whether something can be taken. */
bool xen_ring_ready(const struct xen_ring *ring);

#endif
