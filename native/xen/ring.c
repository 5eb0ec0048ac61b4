/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "ring.h"

#include "library.h"

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <xen/vm_event.h>

/* Xen's layout of interface version 7, which library.c compares with the hypervisor's. */
_Static_assert(VM_EVENT_INTERFACE_VERSION == DE_VM_EVENT_VERSION,
               "the headers are of another interface version");
_Static_assert(sizeof(vm_event_request_t) == 400, "an event has 400 bytes");
_Static_assert(offsetof(struct vm_event_sring, ring) == 64, "the counts come first");
_Static_assert((DE_PAGE_SIZE - 64) / sizeof(vm_event_request_t) >= DE_RING_SLOTS, "a page has all slots");
_Static_assert(VM_EVENT_REASON_MEM_PAGING == DE_VM_EVENT_REASON_PAGING, "same numbers as Xen");
_Static_assert(VM_EVENT_FLAG_VCPU_PAUSED == DE_VM_EVENT_VCPU_PAUSED, "same numbers as Xen");
_Static_assert(MEM_PAGING_DROP_PAGE == DE_PAGING_DROP_PAGE, "same numbers as Xen");
_Static_assert(MEM_PAGING_EVICT_FAIL == DE_PAGING_EVICT_FAIL, "same numbers as Xen");
_Static_assert(offsetof(struct vm_event_paging, gfn) == offsetof(struct vm_event_sharing, gfn),
               "a sharing event has its gfn where a paging event has it");

/** The part of an event that paging and sharing use. */
union head {
    struct {
        uint32_t version, flags, reason, vcpu_id;
        uint16_t altp2m_idx, pad[3];
        struct vm_event_paging paging;
    } event;
    uint64_t words[5];
};
_Static_assert(offsetof(vm_event_request_t, vcpu_id) == offsetof(union head, event.vcpu_id),
               "same layout as Xen");
_Static_assert(offsetof(vm_event_request_t, u) == offsetof(union head, event.paging), "same layout as Xen");

typedef _Atomic uint32_t shared_count;

static shared_count *count_at(const struct xen_ring *ring, size_t offset)
{
    return (shared_count *)(void *)((uint8_t *)ring->page + offset);
}

#define REQUESTS(ring) count_at(ring, offsetof(struct vm_event_sring, req_prod))
#define REQUEST_EVENT(ring) count_at(ring, offsetof(struct vm_event_sring, req_event))
#define ANSWERS(ring) count_at(ring, offsetof(struct vm_event_sring, rsp_prod))
#define ANSWER_EVENT(ring) count_at(ring, offsetof(struct vm_event_sring, rsp_event))

/* Words, one by one, so that the compiler can't look at the guest's copy twice. */
static _Atomic uint64_t *slot_words(const struct xen_ring *ring, uint32_t position)
{
    size_t offset = offsetof(struct vm_event_sring, ring) +
                    (size_t)(position % DE_RING_SLOTS) * sizeof(vm_event_request_t);
    return (_Atomic uint64_t *)(void *)((uint8_t *)ring->page + offset);
}

void xen_ring_start(struct xen_ring *ring, void *page)
{
    *ring = (struct xen_ring){.page = page};
    memset(page, 0, DE_PAGE_SIZE);
    atomic_store(REQUEST_EVENT(ring), 1);
    atomic_store(ANSWER_EVENT(ring), 1);
}

void xen_ring_resume(struct xen_ring *ring, void *page)
{
    *ring = (struct xen_ring){.page = page};
    uint32_t untrusted_answers = atomic_load(ANSWERS(ring));
    ring->taken = ring->answered = untrusted_answers; /* any number will do: only differences count */
}

void xen_ring_rewind(struct xen_ring *ring)
{
    ring->taken = ring->answered;
}

/* Xen has no more slots than DE_RING_SLOTS, so no more requests can be unanswered; and it writes the count
 * anew with each request, so a wrong one does not stay. */
static uint32_t waiting(const struct xen_ring *ring, bool *scribbled)
{
    uint32_t untrusted_requests = atomic_load_explicit(REQUESTS(ring), memory_order_acquire);
    *scribbled = untrusted_requests - ring->answered > DE_RING_SLOTS ||
                 untrusted_requests - ring->answered < ring->taken - ring->answered;
    return *scribbled ? 0 : untrusted_requests - ring->taken;
}

bool xen_ring_ready(const struct xen_ring *ring)
{
    bool scribbled;
    return waiting(ring, &scribbled) > 0;
}

static struct de_vm_event read_slot(const struct xen_ring *ring, uint32_t position)
{
    union head untrusted_head;
    const _Atomic uint64_t *words = slot_words(ring, position);
    for (size_t i = 0; i < sizeof untrusted_head.words / sizeof *untrusted_head.words; i++)
        untrusted_head.words[i] = atomic_load_explicit(&words[i], memory_order_relaxed);
    uint64_t untrusted_gfn = untrusted_head.event.paging.gfn;
    return (struct de_vm_event){
        .version = untrusted_head.event.version,
        .flags = untrusted_head.event.flags,
        .reason = untrusted_head.event.reason,
        .vcpu_id = untrusted_head.event.vcpu_id,
        /* No domain is so large that its last gfn has 32 bits set: what does not fit stays a gfn that nobody
           has. */
        .gfn = untrusted_gfn < UINT32_MAX ? (uint32_t)untrusted_gfn : UINT32_MAX,
        .p2m_type = untrusted_head.event.paging.p2mt,
        .paging_flags = untrusted_head.event.paging.flags,
    };
}

bool xen_ring_take(struct xen_ring *ring, struct de_vm_event *untrusted_event)
{
    bool scribbled;
    uint32_t count = waiting(ring, &scribbled);
    ring->scribbled += scribbled;
    if (!count)
        return false;
    *untrusted_event = read_slot(ring, ring->taken);
    ring->taken++;
    atomic_store_explicit(REQUEST_EVENT(ring), ring->taken + 1, memory_order_release);
    return true;
}

unsigned xen_ring_touched_by_xen(const struct xen_ring *ring, const struct de_vm_event *event,
                                 uint32_t *untrusted_gfns)
{
    bool scribbled;
    unsigned found = 0;
    uint32_t count = event->flags & DE_VM_EVENT_VCPU_PAUSED ? waiting(ring, &scribbled) : 0;
    for (uint32_t i = 0; i < count; i++) {
        struct de_vm_event untrusted_event = read_slot(ring, ring->taken + i);
        if (untrusted_event.vcpu_id == event->vcpu_id && untrusted_event.flags & DE_VM_EVENT_VCPU_PAUSED)
            untrusted_gfns[found++] = untrusted_event.gfn;
    }
    return found;
}

bool xen_ring_answer(struct xen_ring *ring, const struct de_vm_event *event)
{
    if (ring->answered == ring->taken)
        return false;
    union head head = {.event = {
                           .version = event->version,
                           /* Others have Xen set registers, emulate, reset a fork. */
                           .flags = event->flags & DE_VM_EVENT_VCPU_PAUSED,
                           .reason = event->reason,
                           .vcpu_id = event->vcpu_id,
                           .paging = {.gfn = event->gfn,
                                      .p2mt = event->p2m_type,
                                      .flags = event->paging_flags & DE_PAGING_DROP_PAGE},
                       }};
    _Atomic uint64_t *words = slot_words(ring, ring->answered);
    for (size_t i = 0; i < sizeof head.words / sizeof *head.words; i++)
        atomic_store_explicit(&words[i], head.words[i], memory_order_relaxed);
    ring->answered++;
    atomic_store_explicit(ANSWERS(ring), ring->answered, memory_order_release);
    return true;
}
