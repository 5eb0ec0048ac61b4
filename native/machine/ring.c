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

static void channel_wake(struct channel *channel, struct de_vcpu *vcpu)
{
    block_wake(&channel->events);
    if (channel->announce)
        channel->announce(channel, vcpu);
}

static void pending_add(struct domain *domain, struct de_vcpu *vcpu)
{
    struct channel *channel = domain->ring.channel;
    if (!channel)
        return;
    if (!domain->pending) {
        domain->pending = true;
        domain->next_pending = NULL;
        if (channel->last_pending)
            channel->last_pending->next_pending = domain;
        else
            channel->first_pending = domain;
        channel->last_pending = domain;
    }
    channel_wake(channel, vcpu);
}

void ring_put(struct domain *domain, const struct de_vm_event *event, struct de_vcpu *vcpu)
{
    domain->ring.slots[domain->ring.put++ % DE_RING_SLOTS] = *event;
    pending_add(domain, vcpu);
}

void ring_forget(struct domain *domain)
{
    struct channel *channel = domain->ring.channel;
    if (!domain->pending || !channel)
        return;
    struct domain *previous = NULL;
    struct domain *found = channel->first_pending;
    for (; found != domain; found = found->next_pending)
        previous = found;
    if (previous)
        previous->next_pending = domain->next_pending;
    else
        channel->first_pending = domain->next_pending;
    if (channel->last_pending == domain)
        channel->last_pending = previous;
    domain->pending = false;
}

int channel_init(struct channel *channel)
{
    *channel = (struct channel){.interrupted = false};
    return wait_queue_init(&channel->events);
}

void channel_destroy(struct channel *channel)
{
    wait_queue_destroy(&channel->events);
}

void channel_abandon(struct de_machine *machine, struct channel *channel)
{
    pthread_mutex_lock(&machine->lock);
    for (uint16_t id = 1; id < machine->next_domain; id++) {
        struct domain *domain = machine->domains[id];
        if (!domain || domain->ring.channel != channel)
            continue;
        ring_forget(domain);
        domain->ring.channel = NULL;
    }
    pthread_mutex_unlock(&machine->lock);
}

int ring_enable(struct de_machine *machine, struct channel *channel, uint16_t id)
{
    int error = -ESRCH;
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    if (domain && domain->ring.enabled) {
        error = -EBUSY;
    } else if (domain) {
        domain->ring.enabled = true;
        domain->ring.channel = channel;
        error = 0;
    }
    pthread_mutex_unlock(&machine->lock);
    return error;
}

static bool of_another(const struct domain *domain, const struct channel *channel)
{
    return domain->ring.channel && domain->ring.channel != channel;
}

static int take_over(struct domain *domain, struct channel *channel)
{
    if (!domain->ring.enabled)
        return -EINVAL;
    if (of_another(domain, channel))
        return -EBUSY;
    domain->ring.channel = channel;
    /* As with Xen, where the new pager starts at the last answer it finds in the ring. */
    domain->ring.taken = domain->ring.answered;
    if (domain->ring.put != domain->ring.taken)
        pending_add(domain, NULL);
    return 0;
}

int ring_take_over(struct de_machine *machine, struct channel *channel, uint16_t id, uint32_t *answered)
{
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    int error = domain ? take_over(domain, channel) : -ESRCH;
    if (!error)
        *answered = (uint32_t)domain->ring.answered;
    pthread_mutex_unlock(&machine->lock);
    return error;
}

static int disable(struct domain *domain, const struct channel *channel)
{
    if (domain->ring.waiters || of_another(domain, channel))
        return -EBUSY;
    /* Requests nobody answered are lost with the ring; `put` goes on counting. */
    domain->ring.taken = domain->ring.answered = domain->ring.put;
    ring_forget(domain);
    domain->ring.enabled = false;
    domain->ring.channel = NULL;
    for (size_t i = 0; i < DE_MACHINE_MAX_VCPUS; i++) {
        struct de_vcpu *vcpu = domain->vcpus[i];
        if (!vcpu || !vcpu->pause_count)
            continue;
        vcpu->pause_count = 0;
        block_wake(&vcpu->wake);
    }
    return 0;
}

int ring_disable(struct de_machine *machine, struct channel *channel, uint16_t id)
{
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    int error = domain ? disable(domain, channel) : -ESRCH;
    pthread_mutex_unlock(&machine->lock);
    return error;
}

int ring_take(struct de_machine *machine, struct channel *channel, uint16_t id, struct de_vm_event *event)
{
    int result = -ESRCH;
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    if (domain && (!domain->ring.enabled || domain->ring.channel != channel))
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
            p2m_set(machine, domain, answer->gfn, unwritten_type(domain), entry_frame(entry));
    }
    if (of_vcpu && --vcpu->pause_count == 0)
        block_wake(&vcpu->wake);
    return 0;
}

int ring_answer(struct de_machine *machine, struct channel *channel, uint16_t id,
                const struct de_vm_event *answer)
{
    int error = -ESRCH;
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    if (domain && (!domain->ring.enabled || domain->ring.channel != channel ||
                   domain->ring.answered == domain->ring.taken))
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

bool channel_ready(const struct channel *channel)
{
    return channel->first_pending || channel->interrupted;
}

size_t channel_collect(struct channel *channel, uint16_t *domains, size_t capacity)
{
    size_t count = 0;
    channel->interrupted = false;
    while (channel->first_pending && count < capacity) {
        struct domain *domain = channel->first_pending;
        domains[count++] = domain->id;
        ring_forget(domain);
    }
    return count;
}

static struct domain *find_served(struct de_machine *machine, const struct channel *channel, uint16_t id)
{
    struct domain *domain = domain_find(machine, id);
    return domain && domain->ring.enabled && domain->ring.channel == channel ? domain : NULL;
}

uint32_t channel_take_all(struct de_machine *machine, const struct channel *channel, uint16_t id,
                          struct de_vm_event events[DE_RING_SLOTS])
{
    struct domain *domain = find_served(machine, channel, id);
    uint32_t count = 0;
    while (domain && domain->ring.put != domain->ring.taken)
        events[count++] = domain->ring.slots[domain->ring.taken++ % DE_RING_SLOTS];
    return count;
}

uint32_t ring_take_all(struct de_machine *machine, struct channel *channel, uint16_t id,
                       struct de_vm_event events[DE_RING_SLOTS])
{
    pthread_mutex_lock(&machine->lock);
    uint32_t count = channel_take_all(machine, channel, id, events);
    pthread_mutex_unlock(&machine->lock);
    return count;
}

void channel_put_back(struct de_machine *machine, const struct channel *channel, uint16_t id, uint64_t count)
{
    struct domain *domain = find_served(machine, channel, id);
    if (domain && domain->ring.taken - domain->ring.answered >= count)
        domain->ring.taken -= count;
}

void ring_put_back(struct de_machine *machine, const struct channel *channel, uint16_t id, uint64_t count)
{
    pthread_mutex_lock(&machine->lock);
    channel_put_back(machine, channel, id, count);
    pthread_mutex_unlock(&machine->lock);
}

bool ring_interrupted(struct de_machine *machine, struct channel *channel)
{
    pthread_mutex_lock(&machine->lock);
    bool interrupted = channel->interrupted;
    channel->interrupted = false;
    pthread_mutex_unlock(&machine->lock);
    return interrupted;
}

int ring_wait(struct de_machine *machine, struct channel *channel, uint64_t timeout_ns, uint16_t *domains,
              size_t capacity)
{
    uint64_t now_ns = timeout_ns ? block_now_ns() : 0;
    uint64_t deadline_ns = timeout_ns < BLOCK_FOREVER - now_ns ? now_ns + timeout_ns : BLOCK_FOREVER;
    pthread_mutex_lock(&machine->lock);
    while (timeout_ns && !channel_ready(channel))
        if (!block_until(&channel->events, &machine->lock, deadline_ns))
            break;
    bool interrupted = channel->interrupted;
    size_t count = channel_collect(channel, domains, capacity);
    if (!timeout_ns)
        channel->interrupted = interrupted; /* which is for one that waits */
    pthread_mutex_unlock(&machine->lock);
    return (int)count;
}

void ring_interrupt(struct de_machine *machine, struct channel *channel)
{
    pthread_mutex_lock(&machine->lock);
    channel->interrupted = true;
    channel_wake(channel, NULL);
    pthread_mutex_unlock(&machine->lock);
}
