/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The ring in which Xen says that a copy of a shared page found no frame. With nobody to listen, it may crash
 * the domain; with a listener the vCPU is paused until it is answered, and then tries again. All that the
 * pager does is to let it wait: frames are made by those who decide, and the count tells them.
 */
#include "internal.h"

#include <errno.h>
#include <xen/hvm/params.h>
#include <xen/vm_event.h>

#define WAIT_NS 10000000u

static int start(struct de_xen *xen, struct xen_domain *domain, uint32_t gfn)
{
    uint32_t port;
    int error = xen_channel_map(xen, domain->id, gfn, true, &domain->sharing.ring.page);
    if (error)
        return error;
    error = XEN_CALL(xen, xc_memshr_ring_enable, domain->id, &port);
    if (error)
        return error;
    xen_ring_start(&domain->sharing.ring, domain->sharing.ring.page);
    domain->record.sharing_gfn = gfn;
    domain->record.sharing_port = port;
    error = xen_record_write(xen->directory, domain->id, &domain->record);
    if (!error) {
        domain->sharing.port = xen_channel_bind(xen, domain->id, port);
        error = domain->sharing.port < 0 ? domain->sharing.port : 0;
    }
    if (error)
        XEN_CALL(xen, xc_memshr_ring_disable, domain->id);
    return error;
}

void xen_sharing_ring_enable(struct de_xen *xen, uint16_t id)
{
    uint64_t gfn = 0;
    pthread_mutex_lock(&xen->lock);
    struct xen_domain *domain = xen_domain_find(xen, id);
    if (domain && !domain->sharing_tried) {
        domain->sharing_tried = true;
        int error = XEN_CALL(xen, xc_hvm_param_get, id, HVM_PARAM_SHARING_RING_PFN, &gfn);
        if (!error && gfn && gfn < UINT32_MAX && start(xen, domain, (uint32_t)gfn))
            xen_channel_close(xen, &domain->sharing);
    }
    pthread_mutex_unlock(&xen->lock);
}

void xen_sharing_ring_take_over(struct de_xen *xen, struct xen_domain *domain)
{
    void *page;
    domain->sharing_tried = domain->record.sharing_port != 0;
    if (!domain->sharing_tried || xen_channel_map(xen, domain->id, domain->record.sharing_gfn, false, &page))
        return;
    xen_ring_resume(&domain->sharing.ring, page);
    domain->sharing.port = xen_channel_bind(xen, domain->id, domain->record.sharing_port);
    if (domain->sharing.port < 0)
        xen_channel_close(xen, &domain->sharing);
    else
        xen_channel_notify(xen, &domain->sharing);
}

static void answer_all(struct de_xen *xen, struct xen_domain *domain)
{
    struct de_vm_event untrusted_event;
    while (xen_ring_take(&domain->sharing.ring, &untrusted_event)) {
        untrusted_event.version = DE_VM_EVENT_VERSION;
        untrusted_event.reason = VM_EVENT_REASON_MEM_SHARING;
        xen_ring_answer(&domain->sharing.ring, &untrusted_event);
        xen->no_frame_waits++;
    }
    xen_channel_notify(xen, &domain->sharing);
}

void xen_sharing_ring_serve(struct de_xen *xen, struct xen_domain *domain, uint64_t now_ns)
{
    if (!domain->sharing.ring.page)
        return;
    if (domain->sharing_due_ns && now_ns >= domain->sharing_due_ns) {
        answer_all(xen, domain);
        domain->sharing_due_ns = 0;
    }
    if (!domain->sharing_due_ns && xen_ring_ready(&domain->sharing.ring))
        domain->sharing_due_ns = now_ns + WAIT_NS;
}
