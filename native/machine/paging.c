/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Paging, after Xen's mem_paging.c: nominate, evict, populate, prep ("load") and drop. */
#include "internal.h"

#include <errno.h>
#include <string.h>

/* A domain that is paged, as mem_paging_memop() demands first. */
static struct domain *find_paged(struct de_machine *machine, uint16_t id, int *error)
{
    struct domain *domain = domain_find(machine, id);
    *error = !domain ? -ESRCH : domain->ring.enabled ? 0 : -ENODEV;
    return *error ? NULL : domain;
}

/* Both nominate (ram) and evict (what was nominated) want a page that nobody but the guest refers to. */
static int change_idle(struct de_machine *machine, uint16_t id, uint32_t gfn, enum de_p2m_type to)
{
    int error;
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = find_paged(machine, id, &error);
    if (domain)
        error = -EBUSY;
    uint64_t entry = domain && gfn < domain->gfns ? p2m_get(domain, gfn) : 0;
    bool keep = to == DE_P2M_PAGING_OUT;
    bool right = keep ? is_ram(entry_type(entry)) : entry_type(entry) == DE_P2M_PAGING_OUT;
    if (domain && right && machine->frames[entry_frame(entry)].references == 1) {
        p2m_set(machine, domain, gfn, to, keep ? entry_frame(entry) : FRAME_NONE);
        if (!keep)
            frame_put(machine, entry_frame(entry));
        error = 0;
    }
    pthread_mutex_unlock(&machine->lock);
    return error;
}

int machine_paging_nominate(void *context, uint16_t id, uint32_t gfn)
{
    return change_idle(context, id, gfn, DE_P2M_PAGING_OUT);
}

int machine_paging_evict(void *context, uint16_t id, uint32_t gfn)
{
    return change_idle(context, id, gfn, DE_P2M_PAGED);
}

static int load(struct de_machine *machine, struct domain *domain, uint32_t gfn, const uint8_t *page)
{
    uint64_t entry = p2m_get(domain, gfn);
    if (entry_type(entry) != DE_P2M_PAGED && entry_type(entry) != DE_P2M_PAGING_IN)
        return -ENOENT;
    uint32_t frame = entry_frame(entry);
    if (frame == FRAME_NONE) {
        if (!page)
            return -EINVAL;
        frame = frame_allocate(machine, domain);
        if (frame == FRAME_NONE)
            return -ENOMEM;
        memcpy(frame_address(machine, frame), page, DE_PAGE_SIZE);
    }
    p2m_set(machine, domain, gfn, unwritten_type(domain), frame);
    return 0;
}

int machine_paging_load(void *context, uint16_t id, uint32_t gfn, const uint8_t *page)
{
    struct de_machine *machine = context;
    int error;
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = find_paged(machine, id, &error);
    if (domain)
        error = gfn < domain->gfns ? load(machine, domain, gfn, page) : -ENOENT;
    pthread_mutex_unlock(&machine->lock);
    return error;
}

int paging_populate(struct de_machine *machine, struct domain *domain, uint32_t gfn, struct de_vcpu *vcpu)
{
    int error = ring_claim_slot(machine, domain, vcpu);
    if (error == -EOPNOTSUPP)
        domain_crash(domain, "gfn %#x is paged and no pager is there", gfn);
    if (error)
        return error;
    /* A wait for the slot let others in: only the type of now counts. */
    uint64_t entry = p2m_get(domain, gfn);
    enum de_p2m_type type = entry_type(entry);
    bool out = type == DE_P2M_PAGING_OUT || type == DE_P2M_PAGED;
    if (out)
        p2m_set(machine, domain, gfn, DE_P2M_PAGING_IN, entry_frame(entry));
    /* A vCPU that meets paging_in asks once more: pagers see such duplicates. */
    bool pause = vcpu && (out || type == DE_P2M_PAGING_IN);
    if (!out && !pause)
        return 0;
    if (pause)
        vcpu->pause_count++;
    struct de_vm_event event = {
        .version = DE_VM_EVENT_VERSION,
        .flags = pause ? DE_VM_EVENT_VCPU_PAUSED : 0,
        .reason = DE_VM_EVENT_REASON_PAGING,
        .vcpu_id = vcpu ? vcpu->id : 0,
        .gfn = gfn,
        .p2m_type = type,
        .paging_flags = type == DE_P2M_PAGING_OUT ? DE_PAGING_EVICT_FAIL : 0,
    };
    ring_put(domain, &event, pause ? vcpu : NULL);
    return 0;
}

/* dm.c's set_mem_type(), to ram_rw. */
static int touch(struct de_machine *machine, struct domain *domain, uint32_t gfn)
{
    uint64_t entry = p2m_get(domain, gfn);
    switch (entry_type(entry)) {
    case DE_P2M_PAGING_OUT:
    case DE_P2M_PAGED:
    case DE_P2M_PAGING_IN:
        (void)paging_populate(machine, domain, gfn, NULL);
        return -EAGAIN;
    case DE_P2M_SHARED:
        return share_break(machine, domain, gfn);
    case DE_P2M_RAM_RW:
    case DE_P2M_LOGDIRTY:
        p2m_set(machine, domain, gfn, DE_P2M_RAM_RW, entry_frame(entry));
        mark_dirty(domain, gfn);
        return 0;
    default:
        return -EINVAL;
    }
}

int machine_paging_touch(void *context, uint16_t id, uint32_t gfn)
{
    struct de_machine *machine = context;
    int error;
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = find_paged(machine, id, &error);
    if (domain)
        error = gfn < domain->gfns ? touch(machine, domain, gfn) : -EINVAL;
    pthread_mutex_unlock(&machine->lock);
    return error;
}

/* The page is gone before the pager hears of it: p2m_mem_paging_drop_page() comes last, and may wait for a
 * slot. */
static int release(struct de_machine *machine, struct de_vcpu *vcpu, uint32_t gfn)
{
    struct domain *domain = vcpu->domain;
    enum de_p2m_type type = gfn < domain->gfns ? entry_type(p2m_get(domain, gfn)) : DE_P2M_INVALID;
    if (type == DE_P2M_INVALID)
        return -EFAULT;
    domain_drop_gfn(machine, domain, gfn);
    if (type != DE_P2M_PAGED && type != DE_P2M_PAGING_IN && type != DE_P2M_PAGING_OUT)
        return 0;
    int error = ring_claim_slot(machine, domain, vcpu);
    if (error)
        return error == -EOPNOTSUPP ? 0 : error;
    struct de_vm_event event = {
        .version = DE_VM_EVENT_VERSION,
        .reason = DE_VM_EVENT_REASON_PAGING,
        .gfn = gfn,
        .p2m_type = type,
        .paging_flags =
            DE_PAGING_DROP_PAGE | (type == DE_P2M_PAGING_OUT ? (uint32_t)DE_PAGING_EVICT_FAIL : 0),
    };
    ring_put(domain, &event, NULL);
    return 0;
}

int de_machine_guest_release(struct de_vcpu *vcpu, uint32_t gfn)
{
    struct de_machine *machine = vcpu->machine;
    pthread_mutex_lock(&machine->lock);
    int error = vcpu_wait(vcpu);
    if (!error)
        error = release(machine, vcpu, gfn);
    pthread_mutex_unlock(&machine->lock);
    return error;
}
