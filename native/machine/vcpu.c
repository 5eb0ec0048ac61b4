/* SPDX-License-Identifier: GPL-2.0-or-later */
/* vCPUs and their software MMU: a resident page costs two atomic stores and a load, all else goes through
 * fault(). */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_THREAD__)
#define THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define THREAD_SANITIZER 1
#endif
#endif

#ifdef THREAD_SANITIZER
/* A guest may write a page while dom0 reads it, as with real memory: who reads so must find out afterwards (a
 * stale handle, a refused evict). Out of ThreadSanitizer's sight, so that it reports only races of the
 * machine itself. */
__attribute__((no_sanitize("thread"))) static void copy(volatile uint8_t *to, const volatile uint8_t *from,
                                                        size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = from[i];
}
#else
static void copy(uint8_t *to, const uint8_t *from, size_t n)
{
    memcpy(to, from, n);
}
#endif

int vcpu_stopped(const struct de_vcpu *vcpu)
{
    if (vcpu->domain->dying || vcpu->domain->crash[0])
        return -ESHUTDOWN;
    return vcpu->kicked ? -EINTR : 0;
}

int vcpu_wait(struct de_vcpu *vcpu)
{
    for (;;) {
        int stopped = vcpu_stopped(vcpu);
        if (stopped)
            return stopped;
        if (!vcpu->domain->pause_count && !vcpu->pause_count)
            return 0;
        block_on(&vcpu->wake, &vcpu->machine->lock);
    }
}

static uint64_t counter(const _Atomic(uint64_t) *value)
{
    return atomic_load_explicit(value, memory_order_relaxed);
}

static void count(_Atomic(uint64_t) *value, uint64_t change)
{
    atomic_store_explicit(value, counter(value) + change, memory_order_relaxed);
}

static int resolve(struct de_vcpu *vcpu, uint32_t gfn, bool write, uint64_t start_ns)
{
    struct domain *domain = vcpu->domain;
    int error = vcpu_wait(vcpu);
    if (error)
        return error;
    switch (entry_type(p2m_get(domain, gfn))) {
    case DE_P2M_RAM_RW:
        return 0;
    case DE_P2M_LOGDIRTY:
        if (write) {
            mark_dirty(domain, gfn);
            p2m_set(vcpu->machine, domain, gfn, DE_P2M_RAM_RW, entry_frame(p2m_get(domain, gfn)));
        }
        return 0;
    case DE_P2M_INVALID:
        return -EFAULT;
    case DE_P2M_SHARED:
        if (write && share_break(vcpu->machine, domain, gfn)) {
            domain_crash(domain, "no free frame for a private copy of gfn %#x", gfn);
        } else if (write) {
            count(&vcpu->cow_breaks, 1);
            /* Else it is part of a fault's time. */
            if (!counter(&vcpu->stalled_since_ns))
                count(&vcpu->stall_ns, block_now_ns() - start_ns);
        }
        return vcpu_stopped(vcpu);
    default:
        if (!counter(&vcpu->stalled_since_ns))
            count(&vcpu->stalled_since_ns, start_ns);
        error = paging_populate(vcpu->machine, domain, gfn, vcpu);
        if (vcpu->errand)
            domain->ring.channel->run_errand(vcpu);
        return error == -EOPNOTSUPP ? -ESHUTDOWN : error ? error : vcpu_wait(vcpu);
    }
}

static int fault(struct de_vcpu *vcpu, uint32_t gfn, bool write)
{
    uint64_t start_ns = block_now_ns();
    pthread_mutex_lock(&vcpu->machine->lock);
    int error = resolve(vcpu, gfn, write, start_ns);
    pthread_mutex_unlock(&vcpu->machine->lock);
    return error;
}

static void note_fault(struct de_vcpu *vcpu, uint64_t start_ns)
{
    uint64_t took_ns = block_now_ns() - start_ns;
    if (vcpu->sample_capacity)
        vcpu->samples_ns[counter(&vcpu->faults) % vcpu->sample_capacity] = took_ns;
    atomic_store_explicit(&vcpu->stalled_since_ns, 0, memory_order_relaxed);
    count(&vcpu->faults, 1);
    count(&vcpu->stall_ns, took_ns);
}

/* One try, without the lock. */
static bool access_resident(struct de_vcpu *vcpu, uint32_t gfn, uint32_t offset, uint8_t *buffer,
                            uint32_t len, bool write)
{
    struct domain *domain = vcpu->domain;
    bool done = false;
    atomic_store(&vcpu->accessing, (uint64_t)gfn + 1);
    uint64_t entry = atomic_load(&domain->p2m[gfn]);
    enum de_p2m_type type = entry_type(entry);
    bool readable = is_ram(type) || type == DE_P2M_SHARED;
    if (!atomic_load(&domain->halted) && (write ? type == DE_P2M_RAM_RW : readable)) {
        uint8_t *memory = frame_address(vcpu->machine, entry_frame(entry)) + offset;
        copy(write ? memory : buffer, write ? buffer : memory, len);
        done = true;
    }
    atomic_store_explicit(&vcpu->accessing, 0, memory_order_release);
    return done;
}

static int guest_access(struct de_vcpu *vcpu, uint32_t gfn, uint32_t offset, uint8_t *buffer, uint32_t len,
                        bool write)
{
    if (offset > DE_PAGE_SIZE || len > DE_PAGE_SIZE - offset)
        return -EINVAL;
    if (gfn >= vcpu->domain->gfns)
        return -EFAULT;
    int error = 0;
    while (!error && !access_resident(vcpu, gfn, offset, buffer, len, write))
        error = fault(vcpu, gfn, write);
    uint64_t stalled_since_ns = counter(&vcpu->stalled_since_ns);
    if (stalled_since_ns)
        note_fault(vcpu, stalled_since_ns);
    return error;
}

int de_machine_guest_read(struct de_vcpu *vcpu, uint32_t gfn, uint32_t offset, void *buffer, uint32_t len)
{
    return guest_access(vcpu, gfn, offset, buffer, len, false);
}

int de_machine_guest_write(struct de_vcpu *vcpu, uint32_t gfn, uint32_t offset, const void *buffer,
                           uint32_t len)
{
    return guest_access(vcpu, gfn, offset, (uint8_t *)buffer, len, true);
}

static int attach(struct de_machine *machine, uint16_t id, struct de_vcpu *vcpu)
{
    struct domain *domain = domain_find(machine, id);
    if (!domain)
        return -ESRCH;
    uint32_t slot = 0;
    while (slot < DE_MACHINE_MAX_VCPUS && domain->vcpus[slot])
        slot++;
    if (slot == DE_MACHINE_MAX_VCPUS)
        return -ENOSPC;
    vcpu->machine = machine;
    vcpu->domain = domain;
    vcpu->id = slot;
    domain->vcpus[slot] = vcpu;
    domain->references++;
    return 0;
}

int de_vcpu_create(struct de_machine *machine, uint16_t id, struct de_vcpu **result)
{
    struct de_vcpu *vcpu = aligned_alloc(_Alignof(struct de_vcpu), sizeof *vcpu);
    if (!vcpu)
        return -ENOMEM;
    memset(vcpu, 0, sizeof *vcpu);
    int error = wait_queue_init(&vcpu->wake);
    if (error) {
        free(vcpu);
        return error;
    }
    pthread_mutex_lock(&machine->lock);
    error = attach(machine, id, vcpu);
    pthread_mutex_unlock(&machine->lock);
    if (error) {
        wait_queue_destroy(&vcpu->wake);
        free(vcpu);
        return error;
    }
    *result = vcpu;
    return 0;
}

void de_vcpu_free(struct de_vcpu *vcpu)
{
    if (!vcpu)
        return;
    struct de_machine *machine = vcpu->machine;
    pthread_mutex_lock(&machine->lock);
    vcpu->domain->vcpus[vcpu->id] = NULL;
    domain_put(vcpu->domain);
    pthread_mutex_unlock(&machine->lock);
    wait_queue_destroy(&vcpu->wake);
    free(vcpu);
}

void de_vcpu_sample(struct de_vcpu *vcpu, uint64_t *samples_ns, size_t capacity)
{
    vcpu->samples_ns = samples_ns;
    vcpu->sample_capacity = capacity;
}

void de_vcpu_statistics(const struct de_vcpu *vcpu, struct de_vcpu_statistics *statistics)
{
    uint64_t since_ns = counter(&vcpu->stalled_since_ns);
    *statistics = (struct de_vcpu_statistics){
        .faults = counter(&vcpu->faults),
        .cow_breaks = counter(&vcpu->cow_breaks),
        .stall_ns = counter(&vcpu->stall_ns) + (since_ns ? block_now_ns() - since_ns : 0),
    };
}

void de_vcpu_kick(struct de_vcpu *vcpu)
{
    pthread_mutex_lock(&vcpu->machine->lock);
    vcpu->kicked = true;
    block_wake(&vcpu->wake);
    block_wake(&vcpu->domain->slots);
    pthread_mutex_unlock(&vcpu->machine->lock);
}
