/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One ring's page and event channel. */
#include "internal.h"

#include <errno.h>
#include <sys/mman.h>

int xen_result(long result)
{
    return result < 0 ? -errno : (int)result;
}

static int map_page(struct de_xen *xen, uint16_t domain, uint32_t gfn, void **page)
{
    xen_pfn_t frame = gfn;
    int error = 0;
    *page = xen->library.xenforeignmemory_map(xen->memory, domain, PROT_READ | PROT_WRITE, 1, &frame, &error);
    if (!*page)
        return -errno;
    if (!error)
        return 0;
    xen->library.xenforeignmemory_unmap(xen->memory, *page, 1);
    *page = NULL;
    return error;
}

int xen_channel_map(struct de_xen *xen, uint16_t domain, uint32_t gfn, bool populate, void **page)
{
    xen_pfn_t frame = gfn;
    int error = map_page(xen, domain, gfn, page);
    if (!error || !populate)
        return error;
    error = XEN_CALL(xen, xc_domain_populate_physmap_exact, domain, 1, 0, 0, &frame);
    return error ? error : map_page(xen, domain, gfn, page);
}

int xen_channel_bind(struct de_xen *xen, uint16_t domain, uint32_t port)
{
    return xen_result(xen->library.xenevtchn_bind_interdomain(xen->events, domain, port));
}

void xen_channel_close(struct de_xen *xen, struct xen_channel *channel)
{
    if (channel->port >= 0)
        xen->library.xenevtchn_unbind(xen->events, (evtchn_port_t)channel->port);
    if (channel->ring.page)
        xen->library.xenforeignmemory_unmap(xen->memory, channel->ring.page, 1);
    *channel = (struct xen_channel){.port = XEN_PORT_NONE};
}

void xen_channel_notify(struct de_xen *xen, const struct xen_channel *channel)
{
    /* Fails when the domain is gone; then nobody waits for it. */
    xen->library.xenevtchn_notify(xen->events, (evtchn_port_t)channel->port);
}
