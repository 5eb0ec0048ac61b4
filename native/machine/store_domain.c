/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The store domain on the machine, for a pager in this process. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

/** A frame's content is not the last owner's any more, nor zero. */
#define ANY_CONTENT 0xdb

static int find(void *context, const struct de_uuid *uuid, uint16_t *id)
{
    struct de_machine *machine = context;
    int error = -ESRCH;
    pthread_mutex_lock(&machine->lock);
    for (uint16_t i = 1; i < machine->next_domain && error; i++) {
        const struct domain *domain = domain_find(machine, i);
        if (domain && !memcmp(&domain->uuid, uuid, sizeof *uuid)) {
            *id = i;
            error = 0;
        }
    }
    pthread_mutex_unlock(&machine->lock);
    return error;
}

static int create_domain(void *context, const struct de_uuid *uuid, uint64_t gfns, uint64_t frames,
                         uint16_t *id)
{
    (void)frames;
    *id = 0;
    if (find(context, uuid, id) == 0)
        return 0;
    return gfns <= UINT32_MAX ? de_machine_domain_create_as(context, (uint32_t)gfns, uuid, id) : -EINVAL;
}

static int destroy(void *context, uint16_t id)
{
    return de_machine_domain_destroy(context, id);
}

static int populate(void *context, uint16_t id, uint32_t gfn)
{
    struct de_machine *machine = context;
    int32_t error = 0;
    int64_t count = de_machine_populate(machine, id, &gfn, NULL, 1, &error);
    if (count != 1)
        return count < 0 ? (int)count : error;
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    if (domain)
        memset(frame_address(machine, entry_frame(p2m_get(domain, gfn))), ANY_CONTENT, DE_PAGE_SIZE);
    pthread_mutex_unlock(&machine->lock);
    return domain ? 0 : -ESRCH;
}

static int depopulate(void *context, uint16_t id, const uint32_t *gfns, size_t count)
{
    struct de_machine *machine = context;
    int error = 0;
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    for (size_t i = 0; domain && i < count; i++) {
        if (gfns[i] < domain->gfns && entry_frame(p2m_get(domain, gfns[i])) != FRAME_NONE)
            domain_drop_gfn(machine, domain, gfns[i]);
        else
            error = -EINVAL;
    }
    pthread_mutex_unlock(&machine->lock);
    return domain ? error : -ESRCH;
}

/* @return the frame, or FRAME_NONE. The lock is held. */
static uint32_t frame_of(struct de_machine *machine, uint16_t id, uint32_t gfn)
{
    struct domain *domain = domain_find(machine, id);
    return domain && gfn < domain->gfns ? entry_frame(p2m_get(domain, gfn)) : FRAME_NONE;
}

static int map_frame(struct de_machine *machine, uint32_t frame, uint8_t *address)
{
    return mmap(address, DE_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, machine->fd,
                (off_t)frame * DE_PAGE_SIZE) == MAP_FAILED
               ? -errno
               : 0;
}

static int map_added(void *context, uint16_t id, uint32_t gfn, uint8_t *address)
{
    struct de_machine *machine = context;
    pthread_mutex_lock(&machine->lock);
    uint32_t frame = frame_of(machine, id, gfn);
    int error = frame == FRAME_NONE ? -EINVAL : map_frame(machine, frame, address);
    pthread_mutex_unlock(&machine->lock);
    return error;
}

static int map_range(void *context, uint16_t id, uint32_t first, size_t count, uint8_t *address,
                     bool *present)
{
    int error = 0;
    for (size_t i = 0; i < count && (!error || error == -EINVAL); i++) {
        error = map_added(context, id, first + (uint32_t)i, address + i * DE_PAGE_SIZE);
        present[i] = !error;
    }
    return error == -EINVAL ? 0 : error;
}

static int unmap(void *context, uint8_t *address, size_t count)
{
    (void)context;
    return mmap(address, count * DE_PAGE_SIZE, PROT_NONE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED
               ? -errno
               : 0;
}

const struct de_store_domain_operations machine_store_domain_operations = {
    .create = create_domain,
    .find = find,
    .destroy = destroy,
    .populate = populate,
    .depopulate = depopulate,
    .map = map_range,
    .map_added = map_added,
    .unmap = unmap,
};
