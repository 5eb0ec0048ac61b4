/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The paging ring of each domain, after Xen's vm_event.c, and the event channel that tells of it. */
#include "internal.h"

#include <errno.h>
#include <string.h>

static bool ring_full(const struct ring *ring)
{
    return ring->put - ring->answered >= DE_RING_SLOTS;
}

int ring_claim_slot(struct de_machine *machine, struct domain *domain, struct de_vcpu *vcpu)
{
    while (domain->ring.enabled && ring_full(&domain->ring)) {
        if (!vcpu)
            return -EBUSY;
        int stopped = vcpu_stopped(vcpu);
        if (stopped)
            return stopped;
        domain->slot_waits++;
        domain->ring.waiters++;
        block_on(&domain->slots, &machine->lock);
        domain->ring.waiters--;
    }
    return domain->ring.enabled ? 0 : -EOPNOTSUPP;
}

void ring_put(struct de_machine *machine, struct domain *domain, const struct de_vm_event *event)
{
    domain->ring.slots[domain->ring.put++ % DE_RING_SLOTS] = *event;
    if (!domain->pending) {
        domain->pending = true;
        domain->next_pending = NULL;
        if (machine->last_pending)
            machine->last_pending->next_pending = domain;
        else
            machine->first_pending = domain;
        machine->last_pending = domain;
    }
    block_wake(&machine->events);
}

void pending_remove(struct de_machine *machine, struct domain *domain)
{
    struct domain *previous = NULL;
    for (struct domain *d = machine->first_pending; d; previous = d, d = d->next_pending) {
        if (d != domain)
            continue;
        if (previous)
            previous->next_pending = d->next_pending;
        else
            machine->first_pending = d->next_pending;
        if (machine->last_pending == d)
            machine->last_pending = previous;
        d->pending = false;
        return;
    }
}

int machine_paging_enable(void *context, uint16_t id)
{
    struct de_machine *machine = context;
    int error = -ESRCH;
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    if (domain) {
        error = domain->ring.enabled ? -EBUSY : 0;
        domain->ring.enabled = true;
    }
    pthread_mutex_unlock(&machine->lock);
    return error;
}

static int disable(struct de_machine *machine, struct domain *domain)
{
    if (domain->ring.waiters)
        return -EBUSY;
    domain->ring.enabled = false;
    /* Requests nobody answered are lost with the ring; `put` goes on counting. */
    domain->ring.taken = domain->ring.answered = domain->ring.put;
    pending_remove(machine, domain);
    for (size_t i = 0; i < DE_MACHINE_MAX_VCPUS; i++) {
        struct de_vcpu *vcpu = domain->vcpus[i];
        if (!vcpu || !vcpu->pause_count)
            continue;
        vcpu->pause_count = 0;
        block_wake(&vcpu->wake);
    }
    return 0;
}

int machine_paging_disable(void *context, uint16_t id)
{
    struct de_machine *machine = context;
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    int error = domain ? disable(machine, domain) : -ESRCH;
    pthread_mutex_unlock(&machine->lock);
    return error;
}

int machine_ring_take(void *context, uint16_t id, struct de_vm_event *event)
{
    struct de_machine *machine = context;
    int result = -ESRCH;
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    if (domain && !domain->ring.enabled)
        result = -EINVAL;
    else if (domain) {
        result = domain->ring.put != domain->ring.taken;
        if (result)
            *event = domain->ring.slots[domain->ring.taken++ % DE_RING_SLOTS];
    }
    pthread_mutex_unlock(&machine->lock);
    return result;
}

/* vm_event_resume(): what an answer does depends on the vCPU's real state, not only on what the answer says.
 */
static int resume(struct de_machine *machine, struct domain *domain, const struct de_vm_event *answer)
{
    if (answer->version != DE_VM_EVENT_VERSION) {
        domain->answers_dropped++;
        return 0;
    }
    struct de_vcpu *vcpu = answer->vcpu_id < DE_MACHINE_MAX_VCPUS ? domain->vcpus[answer->vcpu_id] : NULL;
    bool of_vcpu = answer->flags & DE_VM_EVENT_VCPU_PAUSED;
    if (!vcpu)
        return of_vcpu ? -EINVAL : 0;
    if (!vcpu->pause_count)
        return 0;
    if (answer->gfn < domain->gfns && !(answer->paging_flags & DE_PAGING_DROP_PAGE)) {
        uint64_t entry = p2m_get(domain, answer->gfn);
        if (entry_type(entry) == DE_P2M_PAGING_IN && entry_frame(entry) != FRAME_NONE)
            p2m_set(machine, domain, answer->gfn, DE_P2M_RAM_RW, entry_frame(entry));
    }
    if (of_vcpu && --vcpu->pause_count == 0)
        block_wake(&vcpu->wake);
    return 0;
}

int machine_ring_answer(void *context, uint16_t id, const struct de_vm_event *answer)
{
    struct de_machine *machine = context;
    int error = -ESRCH;
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    if (domain && (!domain->ring.enabled || domain->ring.answered == domain->ring.taken))
        error = -EINVAL;
    else if (domain) {
        domain->ring.answered++;
        if (domain->ring.waiters)
            block_wake(&domain->slots);
        error = resume(machine, domain, answer);
    }
    pthread_mutex_unlock(&machine->lock);
    return error;
}

int machine_ring_wait(void *context, uint64_t timeout_ns, uint16_t *domains, size_t capacity)
{
    struct de_machine *machine = context;
    uint64_t now_ns = timeout_ns ? block_now_ns() : 0;
    uint64_t deadline_ns = timeout_ns < BLOCK_FOREVER - now_ns ? now_ns + timeout_ns : BLOCK_FOREVER;
    size_t count = 0;
    pthread_mutex_lock(&machine->lock);
    while (timeout_ns && !machine->first_pending && !machine->interrupted)
        if (!block_until(&machine->events, &machine->lock, deadline_ns))
            break;
    if (timeout_ns)
        machine->interrupted = false;
    while (machine->first_pending && count < capacity) {
        struct domain *domain = machine->first_pending;
        domains[count++] = domain->id;
        pending_remove(machine, domain);
    }
    pthread_mutex_unlock(&machine->lock);
    return (int)count;
}

void machine_ring_interrupt(void *context)
{
    struct de_machine *machine = context;
    pthread_mutex_lock(&machine->lock);
    machine->interrupted = true;
    block_wake(&machine->events);
    pthread_mutex_unlock(&machine->lock);
}
