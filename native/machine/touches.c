/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the hypervisor itself, and backends through it, do to guests' pages, after Xen's grant_table.c, hvm.c
 * and domain.c. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool is_paging(enum de_p2m_type type)
{
    return type == DE_P2M_PAGING_OUT || type == DE_P2M_PAGED || type == DE_P2M_PAGING_IN;
}

/* check_get_page_from_gfn(). A full ring is no error: whoever tries again asks again. */
static int get_frame(struct de_machine *machine, struct domain *domain, bool writable, uint32_t gfn)
{
    enum de_p2m_type type = gfn < domain->gfns ? entry_type(p2m_get(domain, gfn)) : DE_P2M_INVALID;
    if (type == DE_P2M_INVALID)
        return -EINVAL;
    if (is_paging(type)) {
        paging_populate(machine, domain, gfn, NULL);
        return -EAGAIN;
    }
    if (writable && type == DE_P2M_SHARED && share_break(machine, domain, gfn))
        return -EAGAIN;
    return 0;
}

int de_machine_grant_map(struct de_machine *machine, uint16_t id, bool writable, uint32_t gfn, uint8_t **page)
{
    int error = -ESRCH;
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    if (domain)
        error = get_frame(machine, domain, writable, gfn);
    if (!error) {
        uint32_t frame = entry_frame(p2m_get(domain, gfn));
        machine->frames[frame].references++;
        machine->mapped++;
        *page = frame_address(machine, frame);
    }
    pthread_mutex_unlock(&machine->lock);
    return error;
}

static int register_page(struct de_machine *machine, struct domain *domain, uint32_t gfn)
{
    if (gfn >= domain->gfns || entry_frame(p2m_get(domain, gfn)) == FRAME_NONE)
        return -EINVAL;
    uint32_t *grown =
        realloc(domain->registered, (domain->registered_count + 1) * sizeof *domain->registered);
    if (!grown)
        return -ENOMEM;
    domain->registered = grown;
    if (entry_type(p2m_get(domain, gfn)) == DE_P2M_SHARED && share_break(machine, domain, gfn))
        return -ENOMEM;
    uint32_t frame = entry_frame(p2m_get(domain, gfn));
    machine->frames[frame].references++;
    domain->registered[domain->registered_count++] = frame;
    return 0;
}

int de_machine_register_page(struct de_machine *machine, uint16_t id, uint32_t gfn)
{
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    int error = domain ? register_page(machine, domain, gfn) : -ESRCH;
    pthread_mutex_unlock(&machine->lock);
    return error;
}

void touches_forget(struct de_machine *machine, struct domain *domain)
{
    while (domain->registered_count)
        frame_put(machine, domain->registered[--domain->registered_count]);
}

/* hvm_translate_get_page() for the vCPU that runs. */
static int translate(struct de_vcpu *vcpu, uint32_t gfn)
{
    struct domain *domain = vcpu->domain;
    enum de_p2m_type type = entry_type(p2m_get(domain, gfn));
    if (type == DE_P2M_INVALID)
        return -EFAULT;
    if (type == DE_P2M_SHARED && share_break(vcpu->machine, domain, gfn)) {
        domain_crash(domain, "no free frame for a private copy of gfn %#x", gfn);
        return -ESHUTDOWN;
    }
    if (!is_paging(type))
        return 0;
    int error = paging_populate(vcpu->machine, domain, gfn, vcpu);
    if (vcpu->errand)
        domain->ring.channel->run_errand(vcpu);
    if (error)
        return error == -EOPNOTSUPP ? -ESHUTDOWN : error;
    error = vcpu_wait(vcpu);
    return error ? error : -EFAULT;
}

static int hypercall(struct de_vcpu *vcpu, uint32_t gfn, uint32_t offset, uint8_t *buffer, uint32_t len,
                     bool to_guest)
{
    int error = vcpu_wait(vcpu);
    if (!error)
        error = translate(vcpu, gfn);
    if (error)
        return error;
    uint8_t *memory = frame_address(vcpu->machine, entry_frame(p2m_get(vcpu->domain, gfn))) + offset;
    memcpy(to_guest ? memory : buffer, to_guest ? buffer : memory, len);
    /* The type stays as it is: each such write is noted. */
    if (to_guest)
        mark_dirty(vcpu->domain, gfn);
    return 0;
}

int de_machine_guest_hypercall(struct de_vcpu *vcpu, uint32_t gfn, uint32_t offset, void *buffer,
                               uint32_t len, bool to_guest)
{
    if (offset > DE_PAGE_SIZE || len > DE_PAGE_SIZE - offset)
        return -EINVAL;
    if (gfn >= vcpu->domain->gfns)
        return -EFAULT;
    pthread_mutex_lock(&vcpu->machine->lock);
    int error = hypercall(vcpu, gfn, offset, buffer, len, to_guest);
    pthread_mutex_unlock(&vcpu->machine->lock);
    return error;
}
