/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file place.h
 * Where a store outlives the pager that made it: in the file `store` of its state directory, or in the frames
 * of a domain that the file `store-domain` there tells of (store_domain.h).
 */
#ifndef DIFFENGINE_STORE_PLACE_H
#define DIFFENGINE_STORE_PLACE_H

#include <diffengine/hypervisor.h>
#include <diffengine/store.h>

struct store_place {
    int directory;
    const char *path; /**< of the directory */
    const struct de_hypervisor *hypervisor;
    uint64_t max_bytes; /**< of a new store */
    bool in_domain;     /**< likewise */
};

/**
 * The store that is there; else, or if nobody needs it and it is of the other kind, a new one.
 * @param needed Pages are out in it.
 * @param[out] name Of the file that the result is about.
 * @return DE_OK; DE_INVALID: this hypervisor has no store domain; DE_NOT_FOUND, DE_CORRUPT, DE_NO_MEMORY,
 * DE_FULL or DE_SYSTEM (the last two: errno).
 */
int store_place_open(const struct store_place *place, bool needed, struct de_store **store,
                     const char **name);
/** Nothing is in the store, which is closed: it goes, wherever it lies. */
void store_place_remove(int directory, const struct de_hypervisor *hypervisor);

#endif
