/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The event loop: take, bring in, answer. */
#include "swap_in.h"

#include <errno.h>

#define READY_DOMAINS 16u
/** How soon a load that found no frame is tried again. */
#define RETRY_NS 1000000u
/** After a wait as long as this the caches are somebody else's. */
#define COLD_NS 1000000u

static struct ring_record *ring_of(const struct pager_domain *domain)
{
    return &domain->table.header->ring;
}

static struct de_vm_event answer_to(const struct de_vm_event *event)
{
    struct de_vm_event response = *event;
    /* Xen drops an answer without version, and the guest hangs: what Debian's own xenpaging does. */
    response.version = DE_VM_EVENT_VERSION;
    return response;
}

/* See table.h for what a successor makes of the steps. */
struct de_vm_event pager_answer_begin(struct pager_domain *domain, struct recorded_event *event)
{
    event->answered_before = ring_of(domain)->answered;
    atomic_store(&event->state, RECORD_ANSWERING);
    return answer_to(&event->event);
}

void pager_answer_end(struct pager_domain *domain, struct recorded_event *event, bool answered)
{
    atomic_store(&event->state, answered ? RECORD_FREE : RECORD_TAKEN);
    if (!answered)
        return;
    atomic_fetch_add(&ring_of(domain)->answered, 1);
    uint64_t touched = (uint64_t)event->event.gfn + 1;
    atomic_compare_exchange_strong(&domain->touched, &touched, 0);
}

/* Answer a recorded event, if it is not. */
static void answer(struct de_pager *pager, struct pager_domain *domain, unsigned slot)
{
    struct recorded_event *recorded = &ring_of(domain)->events[slot];
    domain->phases[slot] = EVENT_IDLE;
    if (atomic_load(&recorded->state) == RECORD_FREE)
        return;
    struct de_vm_event response = pager_answer_begin(domain, recorded);
    HYPERCALL(pager, ring_answer, domain->id, &response);
    pager_answer_end(domain, recorded, true);
}

/* What becomes of an event, by what became of its page. */
static void conclude(struct de_pager *pager, struct pager_domain *domain, unsigned slot, enum loaded loaded,
                     bool out, bool from_disk)
{
    struct recorded_event *recorded = &ring_of(domain)->events[slot];
    domain->phases[slot] = EVENT_IDLE;
    switch (loaded) {
    case LOADED:
        answer(pager, domain, slot);
        if (out) {
            count(pager, COUNT_LOADS);
            latency_add(from_disk ? &pager->swap_fault : &pager->fault,
                        HYPERCALL(pager, now_ns) - recorded->taken_ns);
        }
        return;
    case LOAD_UNNEEDED:
        count(pager, COUNT_DUPLICATES);
        answer(pager, domain, slot);
        return;
    case LOAD_NO_MEMORY:
    case LOAD_LATER:
        domain->phases[slot] = EVENT_RETRY;
        pager->retries++;
        return;
    case LOAD_DISK:
        domain->phases[slot] = EVENT_DISK;
        return;
    case LOAD_FAILED: /* unanswered: the vCPU must not see a page that isn't there */
        domain->phases[slot] = EVENT_STUCK;
        return;
    case LOAD_DOMAIN_GONE:
        atomic_store(&recorded->state, RECORD_FREE);
        return;
    }
}

static void bring_in(struct de_pager *pager, struct pager_domain *domain, unsigned slot)
{
    uint32_t gfn = ring_of(domain)->events[slot].event.gfn;
    bool out = entry_get(domain, gfn).object != DE_NONE;
    pager->server.event = &ring_of(domain)->events[slot];
    enum loaded loaded = pager_load(pager, domain, gfn, &pager->server);
    pager->server.event = NULL;
    if (loaded == LOAD_NO_MEMORY)
        count(pager, COUNT_LOAD_NO_MEMORY);
    conclude(pager, domain, slot, loaded, out, false);
}

/* The ring lies in guest memory. A scribbled event costs the guest that did it a vCPU that goes on or not;
 * nobody else. */
static void serve_event(struct de_pager *pager, struct pager_domain *domain, unsigned slot)
{
    const struct de_vm_event *untrusted_event = &ring_of(domain)->events[slot].event;
    if (untrusted_event->version != DE_VM_EVENT_VERSION ||
        untrusted_event->reason != DE_VM_EVENT_REASON_PAGING || untrusted_event->gfn >= domain->gfns) {
        count(pager, COUNT_BAD_EVENTS);
        answer(pager, domain, slot);
    } else if (untrusted_event->paging_flags & DE_PAGING_DROP_PAGE) {
        count(pager, COUNT_DROPS);
        pager_drop(pager, domain, untrusted_event->gfn);
        answer(pager, domain, slot);
    } else {
        bring_in(pager, domain, slot);
    }
}

/* Put an event on record. First the event, then the count that makes it one: what is not counted a successor
 * finds in the ring. @return its slot, or DE_RING_SLOTS. */
static unsigned record(struct de_pager *pager, struct pager_domain *domain, const struct de_vm_event *event)
{
    struct ring_record *ring = ring_of(domain);
    unsigned slot = 0;
    while (slot < DE_RING_SLOTS && ring->events[slot].state != RECORD_FREE)
        slot++;
    if (slot < DE_RING_SLOTS) {
        struct recorded_event *recorded = &ring->events[slot];
        recorded->event = *event;
        recorded->taken_ns = HYPERCALL(pager, now_ns);
        recorded->position = ring->taken;
        atomic_store(&recorded->state, RECORD_TAKEN);
    }
    atomic_fetch_add(&ring->taken, 1);
    return slot;
}

static size_t serve_domain(struct de_pager *pager, uint16_t id)
{
    struct pager_domain *domain = pager_domain_get(pager, id);
    if (!domain)
        return 0;
    size_t events = 0;
    struct de_vm_event untrusted_event;
    while (HYPERCALL(pager, ring_take, id, &untrusted_event) == 1) {
        count(pager, COUNT_EVENTS);
        events++;
        unsigned slot = record(pager, domain, &untrusted_event);
        if (slot < DE_RING_SLOTS) {
            serve_event(pager, domain, slot);
            continue;
        }
        /* More than a ring can hold: somebody scribbled on it. Answered, a real vCPU just asks again. */
        struct de_vm_event response = answer_to(&untrusted_event);
        HYPERCALL(pager, ring_answer, id, &response);
        atomic_fetch_add(&ring_of(domain)->answered, 1);
    }
    pager_domain_put(pager, domain);
    return events;
}

static void retry(struct de_pager *pager, struct pager_domain *domain, enum event_phase phase)
{
    bool due[DE_RING_SLOTS];
    for (unsigned slot = 0; slot < DE_RING_SLOTS; slot++)
        due[slot] = domain->phases[slot] == phase;
    for (unsigned slot = 0; slot < DE_RING_SLOTS; slot++)
        if (due[slot])
            serve_event(pager, domain, slot);
}

/* Load what the domain's disk thread has read, answer those who wait for it, and let the next one begin. */
static void finish_swap_in(struct de_pager *pager, struct pager_domain *domain)
{
    uint32_t gfn;
    enum loaded loaded = pager_load_swapped(pager, domain, &pager->server, &gfn);
    if (loaded == LOAD_NO_MEMORY) {
        count(pager, COUNT_LOAD_NO_MEMORY);
        pager->retries++;
        return;
    }
    if (loaded == LOAD_DISK)
        return;
    bool first = true;
    for (unsigned slot = 0; slot < DE_RING_SLOTS; slot++) {
        if (domain->phases[slot] != EVENT_DISK || ring_of(domain)->events[slot].event.gfn != gfn)
            continue;
        conclude(pager, domain, slot, first || loaded != LOADED ? loaded : LOAD_UNNEEDED, true, true);
        first = false;
    }
    retry(pager, domain, EVENT_DISK);
}

static void look_after(struct de_pager *pager, struct pager_domain *domain)
{
    if (domain->swap_in && atomic_load(&domain->swap_in->state) == SWAP_IN_READ)
        finish_swap_in(pager, domain);
    retry(pager, domain, EVENT_RETRY);
}

static void look_after_all(struct de_pager *pager)
{
    /* Counted anew: a domain may have gone together with what waited for it. */
    pager->retries = 0;
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS; i++) {
        struct pager_domain *domain = pager_domain_at(pager, i);
        if (!domain)
            continue;
        look_after(pager, domain);
        pager_domain_put(pager, domain);
    }
}

size_t pager_serve_round(struct de_pager *pager, uint64_t timeout_ns)
{
    uint16_t ready[READY_DOMAINS];
    if (pager->retries && timeout_ns > RETRY_NS)
        timeout_ns = RETRY_NS;
    uint64_t start_ns = HYPERCALL(pager, now_ns);
    int count_ready = HYPERCALL(pager, wait, timeout_ns, ready, READY_DOMAINS);
    if (HYPERCALL(pager, now_ns) - start_ns > COLD_NS)
        de_rebuild_after_pause(pager->server.rebuilder);
    if (count_ready < 0)
        atomic_store(&pager->gone, true);
    size_t events = 0;
    for (int i = 0; i < count_ready; i++)
        events += serve_domain(pager, ready[i]);
    if (atomic_exchange(&pager->disk_done, false) || pager->retries)
        look_after_all(pager);
    pager_release_soon(pager);
    return events;
}

size_t de_pager_serve(struct de_pager *pager)
{
    size_t total = 0;
    size_t events;
    do {
        events = pager_serve_round(pager, 0);
        total += events;
    } while (events);
    return total;
}
