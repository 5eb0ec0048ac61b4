/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The event loop: take, bring in, answer. */
#include "internal.h"

#include <errno.h>

#define READY_DOMAINS 16u
/** How soon a load that found no frame is tried again. */
#define HELD_RETRY_NS 1000000u

static void answer(struct de_pager *pager, const struct pager_domain *domain, const struct de_vm_event *event)
{
    struct de_vm_event response = *event;
    /* Xen drops an answer without version, and the guest hangs: what Debian's own xenpaging does. */
    response.version = DE_VM_EVENT_VERSION;
    HYPERCALL(pager, ring_answer, domain->id, &response);
}

static void hold(struct de_pager *pager, struct pager_domain *domain, const struct de_vm_event *event,
                 uint64_t taken_ns)
{
    count(pager, COUNT_LOAD_NO_MEMORY);
    if (domain->held_count == DE_RING_SLOTS) {
        /* More than a ring can hold: somebody scribbled on it. Answered, a real vCPU just asks again. */
        answer(pager, domain, event);
        return;
    }
    domain->held[domain->held_count++] = (struct held_event){.event = *event, .taken_ns = taken_ns};
    pager->held_total++;
}

static void bring_in(struct de_pager *pager, struct pager_domain *domain, const struct de_vm_event *event,
                     uint64_t taken_ns)
{
    bool out = entry_get(domain, event->gfn).object != DE_NONE;
    switch (pager_load(pager, domain, event->gfn, &pager->server)) {
    case LOADED:
        answer(pager, domain, event);
        if (out) {
            count(pager, COUNT_LOADS);
            latency_add(&pager->fault, HYPERCALL(pager, now_ns) - taken_ns);
        }
        return;
    case LOAD_UNNEEDED:
        count(pager, COUNT_DUPLICATES);
        answer(pager, domain, event);
        return;
    case LOAD_NO_MEMORY:
        hold(pager, domain, event, taken_ns);
        return;
    case LOAD_FAILED: /* unanswered: the vCPU must not see a page that isn't there */
    case LOAD_DOMAIN_GONE:
        return;
    }
}

/* The ring lies in guest memory. A scribbled event costs the guest that did it a vCPU that goes on or not;
 * nobody else. */
static void serve_event(struct de_pager *pager, struct pager_domain *domain,
                        const struct de_vm_event *untrusted_event)
{
    uint64_t taken_ns = HYPERCALL(pager, now_ns);
    count(pager, COUNT_EVENTS);
    if (untrusted_event->version != DE_VM_EVENT_VERSION ||
        untrusted_event->reason != DE_VM_EVENT_REASON_PAGING || untrusted_event->gfn >= domain->gfns) {
        count(pager, COUNT_BAD_EVENTS);
        answer(pager, domain, untrusted_event);
        return;
    }
    if (untrusted_event->paging_flags & DE_PAGING_DROP_PAGE) {
        count(pager, COUNT_DROPS);
        pager_drop(pager, domain, untrusted_event->gfn);
        answer(pager, domain, untrusted_event);
        return;
    }
    bring_in(pager, domain, untrusted_event, taken_ns);
}

static size_t serve_domain(struct de_pager *pager, uint16_t id)
{
    struct pager_domain *domain = pager_domain_get(pager, id);
    if (!domain)
        return 0;
    size_t events = 0;
    struct de_vm_event untrusted_event;
    while (HYPERCALL(pager, ring_take, id, &untrusted_event) == 1) {
        serve_event(pager, domain, &untrusted_event);
        events++;
    }
    pager_domain_put(pager, domain);
    return events;
}

static void retry_held(struct de_pager *pager, struct pager_domain *domain)
{
    unsigned waiting = domain->held_count;
    domain->held_count = 0;
    for (unsigned i = 0; i < waiting; i++) {
        /* A copy: what is held again goes to the array's front. */
        struct held_event held = domain->held[i];
        bring_in(pager, domain, &held.event, held.taken_ns);
    }
}

static void retry_all_held(struct de_pager *pager)
{
    /* Counted anew: a domain may have gone together with what was held for it. */
    pager->held_total = 0;
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS; i++) {
        pthread_mutex_lock(&pager->lock);
        struct pager_domain *domain = pager->domains[i];
        if (domain)
            domain->references++;
        pthread_mutex_unlock(&pager->lock);
        if (!domain)
            continue;
        retry_held(pager, domain);
        pager_domain_put(pager, domain);
    }
}

size_t pager_serve_round(struct de_pager *pager, uint64_t timeout_ns)
{
    uint16_t ready[READY_DOMAINS];
    if (pager->held_total && timeout_ns > HELD_RETRY_NS)
        timeout_ns = HELD_RETRY_NS;
    int count_ready = HYPERCALL(pager, wait, timeout_ns, ready, READY_DOMAINS);
    size_t events = 0;
    for (int i = 0; i < count_ready; i++)
        events += serve_domain(pager, ready[i]);
    if (pager->held_total)
        retry_all_held(pager);
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
