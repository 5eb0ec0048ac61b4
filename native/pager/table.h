/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file table.h
 * One domain's page table, in a file of the state directory, so that it survives the pager.
 *
 * Besides the entries it has a record of the events that were taken from the ring and not answered: answers
 * go out of order (one page is in swap, the next is not), but a ring only counts them, so a successor could
 * not tell from the ring alone which vCPUs still wait.
 */
#ifndef DIFFENGINE_PAGER_TABLE_H
#define DIFFENGINE_PAGER_TABLE_H

#include <diffengine/hypervisor.h>
#include <stdatomic.h>

#define TABLE_FAILURE_BYTES 160u
#define TABLE_DEVICE_MODEL 1u /**< flag: a device model maps its pages read-write */

enum recorded_state {
    RECORD_FREE = 0,
    RECORD_TAKEN = 1,
    RECORD_ANSWERING = 2, /**< the hypercall is under way; `answered_before` tells whether it came to pass */
};

struct recorded_event {
    struct de_vm_event event;
    _Atomic uint32_t state;
    uint32_t position;        /**< the how manieth it is that was taken from this ring */
    uint32_t answered_before; /**< answers that the ring had had, when ANSWERING */
    uint64_t taken_ns;
};

struct ring_record {
    _Atomic uint32_t taken;
    _Atomic uint32_t answered;
    struct recorded_event events[DE_RING_SLOTS];
};

/** The file's first page; the entries follow. */
struct table_header {
    _Atomic uint64_t magic; /**< comes last: without it, the file is none yet */
    uint32_t version;
    uint32_t gfns;
    struct de_uuid uuid; /**< with the id, which another domain may have later, says whose pages these are */
    uint16_t domain;
    uint16_t reserved;
    _Atomic uint32_t flags;
    struct ring_record ring;
    char failure[TABLE_FAILURE_BYTES];
};

struct table {
    struct table_header *header;
    _Atomic uint64_t *entries;
    size_t bytes;
};

/**
 * Make an empty table. @param directory Of the state, or -1: memory of this process alone. An old file of
 * that name is replaced. @return DE_OK, DE_NO_MEMORY or DE_SYSTEM.
 */
int table_create(int directory, uint16_t domain, const struct de_uuid *uuid, uint32_t gfns,
                 struct table *table);
/** Take over a dead pager's. @return DE_OK, DE_NOT_FOUND, DE_CORRUPT, DE_NO_MEMORY or DE_SYSTEM. */
int table_open(int directory, uint16_t domain, struct table *table);
void table_close(struct table *table);
void table_remove(int directory, uint16_t domain);
/** The domain that a file of the state directory is the table of. @return false: it is none. */
bool table_name_domain(const char *name, uint16_t *domain);
/** Memory that a table of so many gfns takes. */
size_t table_size(uint32_t gfns);

#endif
