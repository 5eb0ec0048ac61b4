/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Xen as hypervisor.h's operations table. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <xen/memory.h>

_Static_assert(sizeof(xen_domain_handle_t) == DE_UUID_BYTES, "a domain's handle is its UUID");
_Static_assert(XENMEM_SHARING_OP_S_HANDLE_INVALID == DE_SHARE_SOURCE_STALE, "same numbers as Xen");
_Static_assert(XENMEM_SHARING_OP_C_HANDLE_INVALID == DE_SHARE_CLIENT_STALE, "same numbers as Xen");

/* libxc would write a line for every page that can't be nominated. */
static void discard(struct xentoollog_logger *logger, xentoollog_level level, int error, const char *context,
                    const char *format, va_list arguments)
{
    (void)logger, (void)level, (void)error, (void)context, (void)format, (void)arguments;
}

static void keep(struct xentoollog_logger *logger)
{
    (void)logger;
}

static struct xentoollog_logger silence = {.vmessage = discard, .destroy = keep};

static int domain_uuid(void *context, uint16_t domain, struct de_uuid *uuid)
{
    xc_domaininfo_t information;
    int error = xen_domain_information(context, domain, &information);
    if (!error)
        memcpy(uuid->bytes, information.handle, sizeof uuid->bytes);
    return error;
}

static int paging_evict(void *context, uint16_t domain, uint32_t gfn)
{
    return XEN_CALL((struct de_xen *)context, xc_mem_paging_evict, domain, gfn);
}

static int paging_load(void *context, uint16_t domain, uint32_t gfn, const uint8_t *page)
{
    struct de_xen *xen = context;
    return page ? XEN_CALL(xen, xc_mem_paging_load, domain, gfn, (void *)(uintptr_t)page)
                : XEN_CALL(xen, xc_mem_paging_prep, domain, gfn);
}

#define NOMINATE_FRAMES 1024u

/* nominate_page() in Xen's mem_sharing.c stops the host if it finds no memory for what it notes of a page:
 * BUG_ON(page_make_private()), which fails whenever it is called there ("Xen BUG at mem_sharing.c:982", seen
 * on 4.17). A frame that somebody has a claim to is none for Xen itself. Others may take frames between the
 * question and the nomination, a superpage at a time, so it is not asked for the last ones. */
static int room_to_nominate(struct de_xen *xen)
{
    xc_physinfo_t host = {.free_pages = 0};
    int error = XEN_CALL(xen, xc_physinfo, &host);
    if (error)
        return error;
    return host.free_pages >= host.outstanding_pages + NOMINATE_FRAMES ? 0 : -ENOMEM;
}

static int share_nominate(void *context, uint16_t domain, uint32_t gfn, uint64_t *handle)
{
    struct de_xen *xen = context;
    *handle = 0;
    int error = room_to_nominate(xen);
    if (!error)
        error = XEN_CALL(xen, xc_memshr_nominate_gfn, domain, gfn, handle);
    if (!error)
        xen_sharing_ring_enable(xen, domain);
    return error;
}

static int share(void *context, uint16_t source, uint32_t source_gfn, uint64_t source_handle, uint16_t client,
                 uint32_t client_gfn, uint64_t client_handle)
{
    return XEN_CALL((struct de_xen *)context, xc_memshr_share_gfns, source, source_gfn, source_handle, client,
                    client_gfn, client_handle);
}

static int pause_domain(void *context, uint16_t domain)
{
    return XEN_CALL((struct de_xen *)context, xc_domain_pause, domain);
}

static int unpause_domain(void *context, uint16_t domain)
{
    return XEN_CALL((struct de_xen *)context, xc_domain_unpause, domain);
}

static void yield(void *context)
{
    (void)context;
    sched_yield();
}

static const struct de_hypervisor_operations xen_operations = {
    .domain_uuid = domain_uuid,
    .map = xen_map,
    .unmap = xen_unmap,
    .paging_enable = xen_paging_enable,
    .paging_disable = xen_paging_disable,
    .paging_take_over = xen_paging_take_over,
    .paging_nominate = xen_paging_nominate,
    .paging_touch = xen_paging_touch,
    .paging_evict = paging_evict,
    .paging_load = paging_load,
    .share_nominate = share_nominate,
    .share = share,
    .unshare = xen_unshare,
    .ring_take = xen_ring_take_event,
    .ring_answer = xen_ring_answer_event,
    .wait = xen_wait,
    .interrupt = xen_interrupt,
    .pause = pause_domain,
    .unpause = unpause_domain,
    .pause_outside_kernel = xen_pause_outside_kernel,
    .go_on = xen_go_on,
    .yield = yield,
    .now_ns = xen_now_ns,
    .store_domain = &xen_store_domain_operations,
};

struct de_hypervisor de_xen_hypervisor(struct de_xen *xen)
{
    return (struct de_hypervisor){.operations = &xen_operations, .context = xen};
}

static int refuse(char *error, size_t capacity, const char *what)
{
    int saved = errno;
    snprintf(error, capacity, "%s: %s (is this dom0 of a running Xen, and are you root?)", what,
             strerror(saved));
    return saved ? -saved : -EIO;
}

static int open_handles(struct de_xen *xen, char *error, size_t capacity)
{
    struct xen_library *library = &xen->library;
    xen->xc = library->xc_interface_open(&silence, &silence, 0);
    if (!xen->xc)
        return refuse(error, capacity, "Xen's /dev/xen/privcmd can't be opened");
    xen->memory = library->xenforeignmemory_open(&silence, 0);
    if (!xen->memory)
        return refuse(error, capacity, "Xen's /dev/xen/privcmd can't be opened");
    xen->privcmd = open("/dev/xen/privcmd", O_RDWR | O_CLOEXEC);
    if (xen->privcmd < 0)
        return refuse(error, capacity, "Xen's /dev/xen/privcmd can't be opened");
    xen->events = library->xenevtchn_open(&silence, 0);
    if (!xen->events)
        return refuse(error, capacity, "Xen's /dev/xen/evtchn can't be opened");
    /* Read until nothing is pending. */
    int fd = library->xenevtchn_fd(xen->events);
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK))
        return refuse(error, capacity, "Xen's /dev/xen/evtchn can't be read");
    return xen_library_check(library, xen->xc, error, capacity);
}

static int open_own(struct de_xen *xen, const char *state_directory, char *error, size_t capacity)
{
    xen->interrupted = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    xen->directory = open(state_directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (xen->interrupted >= 0 && xen->directory >= 0)
        return 0;
    int saved = errno;
    snprintf(error, capacity, "state directory %s: %s", state_directory, strerror(saved));
    return -saved;
}

int de_xen_open(const struct de_xen_options *options, struct de_xen **result, char *error, size_t capacity)
{
    struct de_xen *xen = calloc(1, sizeof *xen);
    if (!xen) {
        snprintf(error, capacity, "no memory");
        return -ENOMEM;
    }
    xen->directory = xen->interrupted = xen->privcmd = -1;
    xen->several_vcpus = options->several_vcpus;
    xen->hidden_count = options->hidden_count;
    memcpy(xen->hidden, options->hidden, sizeof xen->hidden);
    pthread_mutex_init(&xen->lock, NULL);
    pthread_mutex_init(&xen->mappings_lock, NULL);
    int status = xen_library_open(&xen->library, NULL, error, capacity);
    if (!status)
        status = open_handles(xen, error, capacity);
    if (!status)
        status = open_own(xen, options->state_directory, error, capacity);
    if (status)
        de_xen_close(xen);
    else
        *result = xen;
    return status;
}

static void close_domains(struct de_xen *xen)
{
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS; i++) {
        if (!xen->domains[i].listed)
            continue;
        xen_channel_close(xen, &xen->domains[i].paging);
        xen_channel_close(xen, &xen->domains[i].sharing);
    }
}

void de_xen_close(struct de_xen *xen)
{
    if (!xen)
        return;
    close_domains(xen);
    if (xen->events)
        xen->library.xenevtchn_close(xen->events);
    if (xen->memory)
        xen->library.xenforeignmemory_close(xen->memory);
    if (xen->xc)
        xen->library.xc_interface_close(xen->xc);
    if (xen->privcmd >= 0)
        close(xen->privcmd);
    if (xen->directory >= 0)
        close(xen->directory);
    if (xen->interrupted >= 0)
        close(xen->interrupted);
    xen_library_close(&xen->library);
    pthread_mutex_destroy(&xen->lock);
    pthread_mutex_destroy(&xen->mappings_lock);
    free(xen);
}
