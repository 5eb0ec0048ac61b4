/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Waiting for events of all domains at once, and taking and answering them. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "internal.h"

#include <errno.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000u
/** How often to look for domains that are gone; Xen does not announce it, except to xenstored. */
#define LOOK_NS NS_PER_S

/** Whom to tell of. */
struct found {
    uint16_t *domains;
    size_t capacity, count;
};

uint64_t xen_now_ns(void *context)
{
    (void)context;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

int xen_ring_take_event(void *context, uint16_t id, struct de_vm_event *event)
{
    struct de_xen *xen = context;
    pthread_mutex_lock(&xen->lock);
    struct xen_domain *domain = xen_domain_find(xen, id);
    int result = !domain ? -EINVAL : xen_ring_take(&domain->paging.ring, event);
    if (result == 1)
        xen_pin(domain, event);
    pthread_mutex_unlock(&xen->lock);
    return result;
}

int xen_ring_answer_event(void *context, uint16_t id, const struct de_vm_event *answer)
{
    struct de_xen *xen = context;
    int error = -EINVAL;
    pthread_mutex_lock(&xen->lock);
    struct xen_domain *domain = xen_domain_find(xen, id);
    if (domain && xen_ring_answer(&domain->paging.ring, answer)) {
        xen_channel_notify(xen, &domain->paging);
        error = 0;
    }
    pthread_mutex_unlock(&xen->lock);
    return error;
}

static void drain_channels(struct de_xen *xen)
{
    for (int port; (port = xen->library.xenevtchn_pending(xen->events)) >= 0;) {
        xen->library.xenevtchn_unmask(xen->events, (evtchn_port_t)port);
        for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS; i++) {
            struct xen_domain *domain = &xen->domains[i];
            if (domain->listed && domain->paging.port == port)
                domain->ready = true;
        }
    }
}

/* What is to be told; what does not find room is told next time. */
static void collect(struct de_xen *xen, struct found *found)
{
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS && xen->listed; i++) {
        struct xen_domain *domain = &xen->domains[i];
        if (!domain->listed || !domain->ready || found->count == found->capacity)
            continue;
        domain->ready = false;
        found->domains[found->count++] = domain->id;
    }
}

/* @return when to look again, if nothing comes. */
static uint64_t look(struct de_xen *xen, struct found *found)
{
    pthread_mutex_lock(&xen->lock);
    uint64_t now_ns = xen_now_ns(xen), next_ns = UINT64_MAX;
    drain_channels(xen);
    if (xen->listed && now_ns >= xen->next_look_ns) {
        xen_domains_release_gone(xen);
        xen->next_look_ns = now_ns + LOOK_NS;
    }
    if (xen->listed)
        next_ns = xen->next_look_ns;
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS && xen->listed; i++) {
        struct xen_domain *domain = &xen->domains[i];
        if (!domain->listed)
            continue;
        xen_sharing_ring_serve(xen, domain, now_ns);
        if (domain->sharing_due_ns && domain->sharing_due_ns < next_ns)
            next_ns = domain->sharing_due_ns;
    }
    collect(xen, found);
    pthread_mutex_unlock(&xen->lock);
    return next_ns;
}

/* @return whether interrupt() was called. */
static bool sleep_until(struct de_xen *xen, uint64_t deadline_ns)
{
    struct pollfd descriptors[2] = {{.fd = xen->library.xenevtchn_fd(xen->events), .events = POLLIN},
                                    {.fd = xen->interrupted, .events = POLLIN}};
    uint64_t now_ns = xen_now_ns(xen), left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
    struct timespec timeout = {.tv_sec = (time_t)(left_ns / NS_PER_S), .tv_nsec = (long)(left_ns % NS_PER_S)};
    ppoll(descriptors, 2, deadline_ns == UINT64_MAX ? NULL : &timeout, NULL);
    uint64_t count;
    return read(xen->interrupted, &count, sizeof count) > 0;
}

int xen_wait(void *context, uint64_t timeout_ns, uint16_t *domains, size_t capacity)
{
    struct de_xen *xen = context;
    struct found found = {.domains = domains, .capacity = capacity};
    uint64_t now_ns = xen_now_ns(xen);
    uint64_t deadline_ns = timeout_ns < UINT64_MAX - now_ns ? now_ns + timeout_ns : UINT64_MAX;
    for (bool over = !timeout_ns;;) {
        uint64_t next_ns = look(xen, &found);
        if (found.count || over)
            return (int)found.count;
        over =
            sleep_until(xen, next_ns < deadline_ns ? next_ns : deadline_ns) || xen_now_ns(xen) >= deadline_ns;
    }
}

void xen_interrupt(void *context)
{
    struct de_xen *xen = context;
    uint64_t one = 1;
    if (write(xen->interrupted, &one, sizeof one) < 0 && errno != EAGAIN)
        return; /* an eventfd of this process gives nothing else */
}
