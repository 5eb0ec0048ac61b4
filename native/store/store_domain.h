/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file store_domain.h
 * The store's memory in the frames of a domain that never runs, so that evicting gives frames back to the
 * host also where dom0 is small.
 *
 * What a successor must know is in a file of the state directory, `store-domain`, which is mapped, and
 * written before what it tells of is done. Frames are mapped one by one as they are made, in windows of a
 * chunk, and given back by whole chunks: Linux lets a window be unmapped as a whole only.
 */
#ifndef DIFFENGINE_STORE_STORE_DOMAIN_H
#define DIFFENGINE_STORE_STORE_DOMAIN_H

#include <diffengine/hypervisor.h>
#include <diffengine/store_memory.h>

/** Of the record, in the state directory. */
#define STORE_DOMAIN_NAME "store-domain"

/**
 * New memory, for which there is no domain yet. A record that is there is replaced, and its domain destroyed.
 * @return DE_OK, DE_INVALID (this hypervisor has no store domains), DE_NO_MEMORY or DE_SYSTEM (errno).
 */
int store_domain_create(const struct de_hypervisor *hypervisor, int directory, uint64_t max_bytes,
                        struct de_store_memory *memory);
/**
 * The memory that the record tells of, which a dead pager left.
 * @return DE_OK; DE_NOT_FOUND: no record, or its domain is gone; DE_CORRUPT: no record that makes sense; as
 * store_domain_create().
 */
int store_domain_open(const struct de_hypervisor *hypervisor, int directory, struct de_store_memory *memory);
/** Destroy the recorded domain, if there is one, and remove the record. The memory is closed. */
void store_domain_remove(const struct de_hypervisor *hypervisor, int directory);
/** Whether there is a record. */
bool store_domain_recorded(int directory);

#endif
