/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file record.h
 * What a successor must know of a domain's rings, in a file of the state directory (ring-DOMAIN): Xen tells
 * the event channel's port once, to who enables the ring.
 */
#ifndef DIFFENGINE_XEN_RECORD_H
#define DIFFENGINE_XEN_RECORD_H

#include <diffengine/hypervisor.h>

#define XEN_RECORD_MAGIC 0x0a676e6972454400u /* "\0DEring\n" */
#define XEN_RECORD_HIDDEN 1u /**< flag: the ring page is out of the guest's physmap; no takeover */

struct xen_record {
    uint64_t magic;
    struct de_uuid uuid; /**< of the domain: numbers come again */
    uint32_t flags;
    uint32_t gfn;                       /**< of the paging ring */
    uint32_t port;                      /**< of the paging ring, in the domain; 0: about to be enabled */
    uint32_t sharing_gfn, sharing_port; /**< of the sharing ring; 0: none */
};

/** Write a whole record, which replaces an older one or leaves it. @return 0 or a negative errno. */
int xen_record_write(int directory, uint16_t domain, const struct xen_record *record);
/** @return 0, -ENOENT (none), -EINVAL (damaged) or another negative errno. */
int xen_record_read(int directory, uint16_t domain, struct xen_record *record);
void xen_record_remove(int directory, uint16_t domain);

/** From before this process pauses a domain until it goes on: whoever comes next lets it. */
int xen_record_pause(int directory, uint16_t domain);
/** @return whether there was a note. */
bool xen_record_end_pause(int directory, uint16_t domain);

#endif
