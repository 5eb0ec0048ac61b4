/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which pages are left alone although Xen would nominate them; when others are nominated; how one is ram
 * again.
 *
 * Xen writes a vCPU's runstate area through the guest's page tables whenever it switches that vCPU out or in.
 * If one of those pages is nominated or evicted, each switch puts up to three events; and if the ring has no
 * room for one, Xen sleeps in the middle of its scheduler, which is a BUG there: the host goes down. One vCPU
 * can't fill a ring of eight so, two can. Hence guests with several vCPUs are not evicted from, unless
 * whoever runs the host wants it; and pages that are seen to be touched like that are never nominated again.
 */
#include "internal.h"

#include <errno.h>
#include <time.h>
#include <xen/hvm/hvm_info_table.h>
#include <xen/hvm/save.h>

#define CR0_PAGING (UINT64_C(1) << 31)
#define ASK_AGAIN_NS 1000000000u
/* The stack segment's DPL is the privilege level, as Xen saves it. */
#define SEGMENT_DPL_BIT 5
#define SEGMENT_DPL_USER 3u
/* A guest that is in its kernel nine tenths of the time is found outside it in all but one of 200 tries. */
#define LOOKS 50u
#define BETWEEN_LOOKS_NS 50000

void xen_pin(struct xen_domain *domain, const struct de_vm_event *event)
{
    uint32_t untrusted_gfns[DE_RING_SLOTS];
    unsigned count = xen_ring_touched_by_xen(&domain->paging.ring, event, untrusted_gfns);
    for (unsigned i = 0; i < count; i++) {
        bool known = false;
        for (uint32_t k = 0; k < XEN_PINNED && k < domain->pinned_count && !known; k++)
            known = domain->pinned[k] == untrusted_gfns[i];
        if (!known)
            domain->pinned[domain->pinned_count++ % XEN_PINNED] = untrusted_gfns[i];
    }
}

static bool pinned(const struct xen_domain *domain, uint32_t gfn)
{
    for (uint32_t i = 0; i < XEN_PINNED && i < domain->pinned_count; i++)
        if (domain->pinned[i] == gfn)
            return true;
    return false;
}

/* A kernel that has not turned its paging on yet is a boot loader, firmware, or one that never will. */
static bool any_vcpu_translates(struct de_xen *xen, uint16_t id)
{
    HVM_SAVE_TYPE(CPU) registers;
    for (uint16_t vcpu = 0; vcpu < HVM_MAX_VCPUS; vcpu++) {
        if (XEN_CALL(xen, xc_domain_hvm_getcontext_partial, id, HVM_SAVE_CODE(CPU), vcpu, &registers,
                     sizeof registers))
            return false;
        if (registers.cr0 & CR0_PAGING)
            return true;
    }
    return false;
}

static bool translates(struct de_xen *xen, struct xen_domain *domain)
{
    uint64_t now_ns = xen_now_ns(xen);
    if (!domain->translates && now_ns >= domain->next_translate_ns) {
        domain->translates = any_vcpu_translates(xen, domain->id);
        domain->next_translate_ns = now_ns + ASK_AGAIN_NS;
    }
    return domain->translates;
}

/* Pages are nominated while each vCPU is in a program, where there are no hypercalls, or waits for an
 * interrupt, whose handler touches what it uses. @return 1: it is not there; 0; or a negative errno. */
static int in_kernel(struct de_xen *xen, uint16_t id, uint16_t vcpu)
{
    xc_vcpuinfo_t state;
    HVM_SAVE_TYPE(CPU) registers;
    int error = XEN_CALL(xen, xc_vcpu_getinfo, id, vcpu, &state);
    if (error || state.blocked || !state.online)
        return error == -ESRCH ? 0 : error; /* numbers of vCPUs may have gaps */
    error = XEN_CALL(xen, xc_domain_hvm_getcontext_partial, id, HVM_SAVE_CODE(CPU), vcpu, &registers,
                     sizeof registers);
    return error ? error : (registers.ss_arbytes >> SEGMENT_DPL_BIT & SEGMENT_DPL_USER) != SEGMENT_DPL_USER;
}

static int any_in_kernel(struct de_xen *xen, uint16_t id, uint32_t vcpus)
{
    int found = 0;
    for (uint32_t vcpu = 0; vcpu < vcpus && !found; vcpu++)
        found = in_kernel(xen, id, (uint16_t)vcpu);
    return found;
}

/* One look. @return 0: it stands still; 1: it was in its kernel, and runs. */
static int pause_once(struct de_xen *xen, uint16_t id, uint32_t vcpus)
{
    int error = XEN_CALL(xen, xc_domain_pause, id);
    if (error)
        return error;
    int found = any_in_kernel(xen, id, vcpus);
    if (found)
        XEN_CALL(xen, xc_domain_unpause, id);
    return found;
}

/* One that somebody else has paused may stand in the middle of its kernel until who knows when. */
static int may_be_paused(struct de_xen *xen, uint16_t id, uint32_t *vcpus)
{
    xc_domaininfo_t information;
    int error = xen_domain_information(xen, id, &information);
    if (error)
        return error;
    *vcpus = information.max_vcpu_id + 1;
    return information.flags & XEN_DOMINF_paused ? -EAGAIN : 0;
}

int xen_pause_outside_kernel(void *context, uint16_t id)
{
    struct de_xen *xen = context;
    uint32_t vcpus;
    int error = may_be_paused(xen, id, &vcpus);
    if (!error)
        error = xen_record_pause(xen->directory, id);
    if (error)
        return error;
    int found = 1;
    for (unsigned look = 0; look < LOOKS && found == 1; look++) {
        if (look)
            nanosleep(&(struct timespec){.tv_nsec = BETWEEN_LOOKS_NS}, NULL);
        found = pause_once(xen, id, vcpus);
    }
    if (found)
        xen_record_end_pause(xen->directory, id);
    return found == 1 ? -EAGAIN : found;
}

int xen_go_on(void *context, uint16_t id)
{
    struct de_xen *xen = context;
    int error = XEN_CALL(xen, xc_domain_unpause, id);
    xen_record_end_pause(xen->directory, id);
    return error;
}

int xen_paging_nominate(void *context, uint16_t id, uint32_t gfn)
{
    struct de_xen *xen = context;
    int error = 0;
    pthread_mutex_lock(&xen->lock);
    struct xen_domain *domain = xen_domain_find(xen, id);
    if (domain && domain->several_vcpus && !xen->several_vcpus)
        error = -EOPNOTSUPP;
    else if (domain && (gfn == domain->record.gfn || pinned(domain, gfn) || !translates(xen, domain)))
        error = -EBUSY;
    pthread_mutex_unlock(&xen->lock);
    return error ? error : XEN_CALL(xen, xc_mem_paging_nominate, id, gfn);
}

/*
 * A device model's call, and the only one by which dom0 can have a nominated page be ram again: to set its
 * type to what it was. Xen first looks whether it is paged, and has it populated (set_mem_type() in its
 * arch/x86/hvm/dm.c); EAGAIN. Ram becomes ram_rw, also where dirty pages are logged: as after a write, and so
 * it has to count as written.
 */
int xen_paging_touch(void *context, uint16_t id, uint32_t gfn)
{
    struct de_xen *xen = context;
    pthread_mutex_lock(&xen->lock);
    bool paged = xen_domain_find(xen, id) != NULL;
    pthread_mutex_unlock(&xen->lock);
    if (!paged)
        return -ENODEV;
    int error = XEN_CALL(xen, xc_hvm_set_mem_type, id, HVMMEM_ram_rw, gfn, 1);
    return error ? error : XEN_CALL(xen, xc_hvm_modified_memory, id, gfn, 1);
}
