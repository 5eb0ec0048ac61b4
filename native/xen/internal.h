/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file internal.h
 * The adapter's own data.
 *
 * One lock guards the list of domains, their rings and their event channels; it is held for as long as it
 * takes to copy an event or to send one notification. Enabling, which takes longer, is done before the domain
 * is listed. All else are plain hypercalls, for which libxc's handles may be used by any thread at the same
 * time.
 */
#ifndef DIFFENGINE_XEN_INTERNAL_H
#define DIFFENGINE_XEN_INTERNAL_H

#include <diffengine/pager.h>
#include <diffengine/xen.h>
#include <pthread.h>

#include "library.h"
#include "record.h"
#include "ring.h"

#define XEN_PORT_NONE (-1)
/** Pages per domain that are remembered as touched by Xen itself. */
#define XEN_PINNED 64u

/** A ring in use: its page mapped, its event channel bound. */
struct xen_channel {
    struct xen_ring ring; /**< page NULL: not in use */
    int port;             /**< our end, or XEN_PORT_NONE */
};

struct xen_domain {
    uint16_t id;
    bool listed;
    bool ready;              /**< to be announced by the next wait(), without an event */
    bool sharing_tried;      /**< the sharing ring was enabled, or can't be */
    uint64_t sharing_due_ns; /**< when what waits in the sharing ring is answered; 0: nothing waits */
    bool several_vcpus;
    bool translates;             /**< its kernel turned paging on */
    uint64_t next_translate_ns;  /**< when to ask again whether it did */
    uint32_t pinned[XEN_PINNED]; /**< gfns that Xen touches when it switches vCPUs */
    uint32_t pinned_count;       /**< ever noted; the last XEN_PINNED are kept */
    struct xen_channel paging, sharing;
    struct xen_record record;
};

struct xen_mapping;

struct de_xen {
    struct xen_library library;
    xc_interface *xc;
    xenforeignmemory_handle *memory;
    xenevtchn_handle *events;
    int privcmd;               /**< for the windows of the store domain */
    uint64_t store_pool_bytes; /**< what its p2m may take, as far as this process set it */
    bool several_vcpus;
    int directory;
    struct de_uuid hidden[DE_XEN_MAX_HIDDEN];
    size_t hidden_count;
    int interrupted; /**< an eventfd */
    _Atomic(uint64_t) no_frame_waits;
    pthread_mutex_t mappings_lock;
    struct xen_mapping *mappings;
    pthread_mutex_t lock;
    uint64_t next_look_ns; /**< for domains that are gone */
    unsigned listed;
    struct xen_domain domains[DE_PAGER_MAX_DOMAINS];
};

/** Call a function of libxc, which sets errno. @return what it gives, or a negative errno. */
#define XEN_CALL(xen, function, ...) xen_result((xen)->library.function((xen)->xc, ##__VA_ARGS__))
int xen_result(long result);

/* domain.c */
/** The listed domain, or NULL. The lock is held. */
struct xen_domain *xen_domain_find(struct de_xen *xen, uint16_t id);
/** What Xen says of a domain. @return 0 or -ESRCH: there is none, or it is dying. */
int xen_domain_information(struct de_xen *xen, uint16_t id, xc_domaininfo_t *information);
int xen_paging_enable(void *context, uint16_t id);
int xen_paging_disable(void *context, uint16_t id);
int xen_paging_take_over(void *context, uint16_t id, uint32_t *answered);
/** Give back what is held of domains that were destroyed: with the ring page mapped they could not go. The
 * lock is held.
 */
void xen_domains_release_gone(struct de_xen *xen);

/* channel.c */
/** Map the ring's page, after putting one in its place if there is none. @return 0 or a negative errno. */
int xen_channel_map(struct de_xen *xen, uint16_t domain, uint32_t gfn, bool populate, void **page);
/** Bind our end. @return the port or a negative errno. */
int xen_channel_bind(struct de_xen *xen, uint16_t domain, uint32_t port);
/** Unmap and unbind what of both is there. */
void xen_channel_close(struct de_xen *xen, struct xen_channel *channel);
void xen_channel_notify(struct de_xen *xen, const struct xen_channel *channel);

/* nominate.c */
int xen_paging_nominate(void *context, uint16_t id, uint32_t gfn);
int xen_paging_touch(void *context, uint16_t id, uint32_t gfn);
int xen_pause_outside_kernel(void *context, uint16_t id);
int xen_go_on(void *context, uint16_t id);
/** Remember what Xen itself touches. The lock is held. */
void xen_pin(struct xen_domain *domain, const struct de_vm_event *event);

/* sharing_ring.c */
/** Have vCPUs that find no frame for their copy of a shared page wait, not crash. Once per domain. Takes the
 * lock. */
void xen_sharing_ring_enable(struct de_xen *xen, uint16_t id);
/** Go on with a dead pager's. The domain is not listed yet. */
void xen_sharing_ring_take_over(struct de_xen *xen, struct xen_domain *domain);
/** Note what waits, and answer what has waited long enough. The lock is held. */
void xen_sharing_ring_serve(struct de_xen *xen, struct xen_domain *domain, uint64_t now_ns);

/* events.c */
int xen_ring_take_event(void *context, uint16_t id, struct de_vm_event *event);
int xen_ring_answer_event(void *context, uint16_t id, const struct de_vm_event *answer);
int xen_wait(void *context, uint64_t timeout_ns, uint16_t *domains, size_t capacity);
void xen_interrupt(void *context);
uint64_t xen_now_ns(void *context);

/* memory.c */
int xen_map(void *context, uint16_t domain, const uint32_t *gfns, size_t count, const uint8_t **pages,
            int32_t *errors);
void xen_unmap(void *context, const uint8_t *const *pages, size_t count);
int xen_unshare(void *context, uint16_t domain, uint32_t gfn);

/* store_domain.c */
extern const struct de_store_domain_operations xen_store_domain_operations;

#endif
