/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Becoming a domain's pager, a dead pager's successor, and stopping to be one. */
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <xen/hvm/params.h>

#define LIST_BATCH 256u

struct xen_domain *xen_domain_find(struct de_xen *xen, uint16_t id)
{
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS; i++)
        if (xen->domains[i].listed && xen->domains[i].id == id)
            return &xen->domains[i];
    return NULL;
}

static int list_domain(struct de_xen *xen, const struct xen_domain *domain)
{
    int error = -ENOSPC;
    pthread_mutex_lock(&xen->lock);
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS && error; i++) {
        if (xen->domains[i].listed)
            continue;
        xen->domains[i] = *domain;
        xen->domains[i].listed = true;
        xen->listed++;
        error = 0;
    }
    pthread_mutex_unlock(&xen->lock);
    return error;
}

static void let_go(struct de_xen *xen, struct xen_domain *domain)
{
    xen_channel_close(xen, &domain->paging);
    xen_channel_close(xen, &domain->sharing);
}

int xen_domain_information(struct de_xen *xen, uint16_t id, xc_domaininfo_t *information)
{
    int found = XEN_CALL(xen, xc_domain_getinfolist, id, 1, information);
    if (found < 0)
        return found;
    /* Xen lists domains from this number on. */
    return found == 1 && information->domain == id && !(information->flags & XEN_DOMINF_dying) ? 0 : -ESRCH;
}

/* From here on Xen asks this pager. The record comes before and after: a successor that finds no port knows
 * that no page can be out yet. */
static int enable(struct de_xen *xen, struct xen_domain *domain)
{
    struct xen_record *record = &domain->record;
    uint32_t port;
    int error = xen_record_write(xen->directory, domain->id, record);
    if (!error)
        error = XEN_CALL(xen, xc_mem_paging_enable, domain->id, &port);
    if (error) {
        xen_record_remove(xen->directory, domain->id);
        return error;
    }
    xen_ring_start(&domain->paging.ring, domain->paging.ring.page);
    record->port = port;
    error = xen_record_write(xen->directory, domain->id, record);
    if (!error) {
        domain->paging.port = xen_channel_bind(xen, domain->id, port);
        error = domain->paging.port < 0 ? domain->paging.port : 0;
    }
    if (error) {
        XEN_CALL(xen, xc_mem_paging_disable, domain->id);
        xen_record_remove(xen->directory, domain->id);
    }
    return error;
}

static bool hidden(const struct de_xen *xen, const struct xen_record *record)
{
    for (size_t i = 0; i < xen->hidden_count; i++)
        if (!memcmp(&xen->hidden[i], &record->uuid, sizeof record->uuid))
            return true;
    return false;
}

/* The guest can't write to a page that it does not have; but a successor can't map it, either. */
static int hide(struct de_xen *xen, struct xen_domain *domain)
{
    xen_pfn_t frame = domain->record.gfn;
    if (!hidden(xen, &domain->record))
        return 0;
    domain->record.flags |= XEN_RECORD_HIDDEN;
    int error = xen_record_write(xen->directory, domain->id, &domain->record);
    return error ? error : XEN_CALL(xen, xc_domain_decrease_reservation_exact, domain->id, 1, 0, &frame);
}

static int prepare(struct de_xen *xen, uint16_t id, struct xen_domain *domain)
{
    xc_domaininfo_t information;
    uint64_t gfn = 0;
    int error = xen_domain_information(xen, id, &information);
    if (error)
        return error;
    /* Xen would say so, too, but only after a page was put in the ring's place. */
    if (!(information.flags & XEN_DOMINF_hvm_guest) || !(information.flags & XEN_DOMINF_hap))
        return -ENODEV;
    error = XEN_CALL(xen, xc_hvm_param_get, id, HVM_PARAM_PAGING_RING_PFN, &gfn);
    if (error)
        return error;
    if (!gfn || gfn > UINT32_MAX)
        return -EOPNOTSUPP;
    *domain = (struct xen_domain){
        .id = id,
        .paging.port = XEN_PORT_NONE,
        .sharing.port = XEN_PORT_NONE,
        .several_vcpus = information.max_vcpu_id > 0,
        .record = {.magic = XEN_RECORD_MAGIC, .gfn = (uint32_t)gfn},
    };
    memcpy(domain->record.uuid.bytes, information.handle, DE_UUID_BYTES);
    return 0;
}

int xen_paging_enable(void *context, uint16_t id)
{
    struct de_xen *xen = context;
    struct xen_domain domain;
    pthread_mutex_lock(&xen->lock);
    bool ours = xen_domain_find(xen, id) != NULL;
    pthread_mutex_unlock(&xen->lock);
    if (ours)
        return -EBUSY;
    int error = prepare(xen, id, &domain);
    if (error)
        return error;
    error = xen_channel_map(xen, id, domain.record.gfn, true, &domain.paging.ring.page);
    if (!error)
        error = enable(xen, &domain);
    if (!error) {
        error = hide(xen, &domain);
        if (!error)
            error = list_domain(xen, &domain);
        if (error) {
            XEN_CALL(xen, xc_mem_paging_disable, id);
            xen_record_remove(xen->directory, id);
        }
    }
    if (error)
        let_go(xen, &domain);
    return error;
}

static void unlist(struct de_xen *xen, struct xen_domain *domain)
{
    let_go(xen, domain);
    xen_record_remove(xen->directory, domain->id);
    *domain = (struct xen_domain){.listed = false};
    xen->listed--;
}

int xen_paging_disable(void *context, uint16_t id)
{
    struct de_xen *xen = context;
    pthread_mutex_lock(&xen->lock);
    struct xen_domain *domain = xen_domain_find(xen, id);
    int error = domain ? 0 : -EINVAL;
    if (domain)
        error = XEN_CALL(xen, xc_mem_paging_disable, id);
    if (domain && error != -EBUSY) {
        if (domain->sharing.ring.page)
            XEN_CALL(xen, xc_memshr_ring_disable, id);
        unlist(xen, domain);
    }
    pthread_mutex_unlock(&xen->lock);
    return error;
}

/* The record says that a ring was enabled: is this still so, and of this domain? */
static int check_record(struct de_xen *xen, uint16_t id, const struct xen_record *record, bool *several_vcpus)
{
    xc_domaininfo_t information;
    int error = xen_domain_information(xen, id, &information);
    if (!error && memcmp(information.handle, record->uuid.bytes, DE_UUID_BYTES))
        error = -ESRCH;
    if (error)
        return error;
    *several_vcpus = information.max_vcpu_id > 0;
    if (record->flags & XEN_RECORD_HIDDEN)
        return -EOPNOTSUPP;
    if (record->port)
        return 0;
    /* The pager died before it had the port, and so before anything was evicted. */
    XEN_CALL(xen, xc_mem_paging_disable, id);
    return -EINVAL;
}

/* Why the channel can't be bound: the ring is gone (Xen then has nothing to resume), or its pager still has
 * it. */
static int why_unbound(struct de_xen *xen, uint16_t id)
{
    int error = XEN_CALL(xen, xc_mem_paging_resume, id);
    return error == -ENODEV || error == -EINVAL ? -EINVAL : error ? error : -EBUSY;
}

static int attach(struct de_xen *xen, struct xen_domain *domain)
{
    void *page;
    int error = xen_channel_map(xen, domain->id, domain->record.gfn, false, &page);
    if (error) /* the guest gave the page away */
        return error == -EINVAL || error == -ENOENT ? -EOPNOTSUPP : error;
    xen_ring_resume(&domain->paging.ring, page);
    domain->paging.port = xen_channel_bind(xen, domain->id, domain->record.port);
    if (domain->paging.port < 0)
        return why_unbound(xen, domain->id);
    domain->ready = true;
    /* An answer that the dead pager put and did not announce. */
    xen_channel_notify(xen, &domain->paging);
    return 0;
}

static int take_over_record(struct de_xen *xen, uint16_t id, struct xen_domain *domain)
{
    int error = xen_record_read(xen->directory, id, &domain->record);
    if (error)
        return error == -ENOENT ? -EINVAL : error;
    error = check_record(xen, id, &domain->record, &domain->several_vcpus);
    /* It died while the domain stood still. */
    if (error != -ESRCH && xen_record_end_pause(xen->directory, id))
        XEN_CALL(xen, xc_domain_unpause, id);
    if (error == -ESRCH || error == -EINVAL)
        xen_record_remove(xen->directory, id);
    return error;
}

static int take_over_dead(struct de_xen *xen, uint16_t id, uint32_t *answered)
{
    struct xen_domain domain = {.id = id, .paging.port = XEN_PORT_NONE, .sharing.port = XEN_PORT_NONE};
    int error = take_over_record(xen, id, &domain);
    if (error)
        return error;
    error = attach(xen, &domain);
    if (!error) {
        *answered = domain.paging.ring.answered;
        xen_sharing_ring_take_over(xen, &domain);
        error = list_domain(xen, &domain);
    }
    if (error)
        let_go(xen, &domain);
    if (error == -EINVAL)
        xen_record_remove(xen->directory, id);
    return error;
}

int xen_paging_take_over(void *context, uint16_t id, uint32_t *answered)
{
    struct de_xen *xen = context;
    pthread_mutex_lock(&xen->lock);
    struct xen_domain *domain = xen_domain_find(xen, id);
    if (domain) {
        xen_ring_rewind(&domain->paging.ring);
        *answered = domain->paging.ring.answered;
        domain->ready = xen_ring_ready(&domain->paging.ring);
    }
    pthread_mutex_unlock(&xen->lock);
    int error = domain ? 0 : take_over_dead(xen, id, answered);
    xen_interrupt(xen);
    return error;
}

static bool still_there(const struct xen_domain *domain, const xc_domaininfo_t *list, int count)
{
    for (int i = 0; i < count; i++)
        if (list[i].domain == domain->id)
            return !(list[i].flags & XEN_DOMINF_dying) &&
                   !memcmp(list[i].handle, domain->record.uuid.bytes, DE_UUID_BYTES);
    return false;
}

static void release_gone_between(struct de_xen *xen, uint32_t first, uint32_t next,
                                 const xc_domaininfo_t *list, int count)
{
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS; i++) {
        struct xen_domain *domain = &xen->domains[i];
        if (domain->listed && domain->id >= first && domain->id < next && !still_there(domain, list, count))
            unlist(xen, domain);
    }
}

void xen_domains_release_gone(struct de_xen *xen)
{
    xc_domaininfo_t list[LIST_BATCH];
    for (uint32_t first = 0; first < DOMID_FIRST_RESERVED;) {
        int count = XEN_CALL(xen, xc_domain_getinfolist, first, LIST_BATCH, list);
        if (count < 0)
            return;
        uint32_t next = count == LIST_BATCH ? list[count - 1].domain + 1u : DOMID_FIRST_RESERVED;
        release_gone_between(xen, first, next, list, count);
        first = next;
    }
}
