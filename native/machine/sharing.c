/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Sharing, after Xen's mem_sharing.c: nominate_page(), share_pages(), __mem_sharing_unshare_page().
 *
 * share_pages() moves all sharers of the client's frame. It holds the p2m locks of the two domains that it
 * was called for, and the frames'; for a sharer of a third one it takes that domain's p2m lock after them,
 * which Xen's order of locks forbids, and the host stops ("mm locking order violation: 24 > 16", seen on
 * Xen 4.17).
 */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_SHARERS 4u

static size_t share_bytes(uint32_t capacity)
{
    return sizeof(struct share) + capacity * sizeof(struct sharer);
}

static struct share *share_resize(struct de_machine *machine, struct share *old, uint32_t capacity)
{
    size_t before = old ? share_bytes(old->capacity) : 0;
    struct share *share = realloc(old, share_bytes(capacity));
    if (!share)
        return NULL;
    if (!old)
        *share = (struct share){.count = 0};
    share->capacity = capacity;
    machine->share_bytes += share_bytes(capacity) - before;
    return share;
}

/* The frame is not a shared one any more. */
static void share_free(struct de_machine *machine, uint32_t frame)
{
    struct share *share = machine->frames[frame].share;
    machine->share_bytes -= share_bytes(share->capacity);
    machine->shared_frames--;
    machine->frames[frame].share = NULL;
    free(share);
}

static int nominate(struct de_machine *machine, struct domain *domain, uint32_t gfn, uint64_t *handle)
{
    uint64_t entry = p2m_get(domain, gfn);
    uint32_t frame = entry_frame(entry);
    if (entry_type(entry) == DE_P2M_SHARED) {
        *handle = machine->frames[frame].share->handle;
        return 0;
    }
    if (!is_ram(entry_type(entry)))
        return -EINVAL;
    if (machine->frames[frame].references != 1)
        return -E2BIG;
    /* Xen's own memory comes from frames that nobody has a claim to; it would stop here, so its adapter asks.
     */
    if (machine->free_count <= machine->claimed)
        return -ENOMEM;
    struct share *share = share_resize(machine, NULL, FIRST_SHARERS);
    if (!share)
        return -ENOMEM;
    *handle = share->handle = ++machine->next_handle;
    share->sharers[share->count++] = (struct sharer){.domain = domain->id, .gfn = gfn};
    machine->frames[frame].share = share;
    machine->shared_frames++;
    p2m_set(machine, domain, gfn, DE_P2M_SHARED, frame);
    return 0;
}

int machine_share_nominate(void *context, uint16_t id, uint32_t gfn, uint64_t *handle)
{
    struct de_machine *machine = context;
    int error = -ESRCH;
    *handle = 0;
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    if (domain)
        error = gfn < domain->gfns ? nominate(machine, domain, gfn, handle) : -EINVAL;
    pthread_mutex_unlock(&machine->lock);
    return error;
}

/* The frame that a live handle stands for, or FRAME_NONE: written, unshared or paged since. */
static uint32_t handle_frame(const struct de_machine *machine, const struct domain *domain, uint32_t gfn,
                             uint64_t handle)
{
    if (gfn >= domain->gfns)
        return FRAME_NONE;
    uint64_t entry = p2m_get(domain, gfn);
    if (entry_type(entry) != DE_P2M_SHARED)
        return FRAME_NONE;
    uint32_t frame = entry_frame(entry);
    return machine->frames[frame].share->handle == handle ? frame : FRAME_NONE;
}

static int make_room(struct de_machine *machine, uint32_t frame, uint32_t count)
{
    struct share *share = machine->frames[frame].share;
    if (count > DE_SHARE_MAX_GFNS)
        return -ENOSPC;
    if (count <= share->capacity)
        return 0;
    uint32_t capacity = share->capacity * 2 > count ? share->capacity * 2 : count;
    share = share_resize(machine, share, capacity);
    if (!share)
        return -ENOMEM;
    machine->frames[frame].share = share;
    return 0;
}

/* Xen only finds out at that sharer, but nobody gets to see what it did until then. */
static void check_lock_order(const struct share *moved, uint16_t source, uint16_t client)
{
    for (uint32_t i = 0; i < moved->count; i++)
        if (moved->sharers[i].domain != source && moved->sharers[i].domain != client)
            machine_panic(
                "mm locking order violation: domain %u's frame is shared with domain %u's, and was to "
                "become domain %u's",
                client, moved->sharers[i].domain, source);
}

static int merge(struct de_machine *machine, uint32_t source, uint32_t client)
{
    struct share *from = machine->frames[client].share;
    int error = make_room(machine, source, machine->frames[source].share->count + from->count);
    if (error)
        return error;
    struct share *to = machine->frames[source].share;
    for (uint32_t i = 0; i < from->count; i++) {
        /* A sharer may be dying: until its memory is released it is still in the table. */
        struct domain *domain = machine->domains[from->sharers[i].domain];
        p2m_set(machine, domain, from->sharers[i].gfn, DE_P2M_SHARED, source);
        to->sharers[to->count++] = from->sharers[i];
    }
    share_free(machine, client);
    frame_put(machine, client);
    return 0;
}

int machine_share(void *context, uint16_t source_id, uint32_t source_gfn, uint64_t source_handle,
                  uint16_t client_id, uint32_t client_gfn, uint64_t client_handle)
{
    struct de_machine *machine = context;
    int error = -ESRCH;
    pthread_mutex_lock(&machine->lock);
    struct domain *source = domain_find(machine, source_id);
    struct domain *client = domain_find(machine, client_id);
    if (source && client) {
        uint32_t source_frame = handle_frame(machine, source, source_gfn, source_handle);
        uint32_t client_frame = handle_frame(machine, client, client_gfn, client_handle);
        if (source_frame == FRAME_NONE)
            error = DE_SHARE_SOURCE_STALE;
        else if (client_frame == FRAME_NONE)
            error = DE_SHARE_CLIENT_STALE;
        else if (source_frame == client_frame)
            error = 0;
        else {
            check_lock_order(machine->frames[client_frame].share, source_id, client_id);
            error = merge(machine, source_frame, client_frame);
        }
    }
    pthread_mutex_unlock(&machine->lock);
    return error;
}

void share_leave(struct de_machine *machine, struct domain *domain, uint32_t gfn, uint32_t frame)
{
    struct share *share = machine->frames[frame].share;
    for (uint32_t i = 0; i < share->count; i++) {
        if (share->sharers[i].domain == domain->id && share->sharers[i].gfn == gfn) {
            share->sharers[i] = share->sharers[--share->count];
            break;
        }
    }
    if (share->count)
        return;
    share_free(machine, frame);
    frame_put(machine, frame);
}

int share_break(struct de_machine *machine, struct domain *domain, uint32_t gfn)
{
    uint32_t shared = entry_frame(p2m_get(domain, gfn));
    if (machine->frames[shared].share->count == 1) {
        /* The only one left: private in place, and the handle is stale from now on. */
        share_free(machine, shared);
        p2m_set(machine, domain, gfn, DE_P2M_RAM_RW, shared);
        mark_dirty(domain, gfn);
        return 0;
    }
    uint32_t copy = frame_allocate(machine, domain);
    if (copy == FRAME_NONE)
        return -ENOMEM;
    memcpy(frame_address(machine, copy), frame_address(machine, shared), DE_PAGE_SIZE);
    p2m_set(machine, domain, gfn, DE_P2M_RAM_RW, copy);
    mark_dirty(domain, gfn);
    share_leave(machine, domain, gfn, shared);
    domain->cow_breaks++;
    return 0;
}

static int unshare(struct de_machine *machine, struct domain *domain, uint32_t gfn)
{
    uint64_t entry = p2m_get(domain, gfn);
    if (entry_frame(entry) == FRAME_NONE)
        return -EINVAL;
    return entry_type(entry) == DE_P2M_SHARED ? share_break(machine, domain, gfn) : 0;
}

int machine_unshare(void *context, uint16_t id, uint32_t gfn)
{
    struct de_machine *machine = context;
    int error = -ESRCH;
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    if (domain)
        error = gfn < domain->gfns ? unshare(machine, domain, gfn) : -EINVAL;
    pthread_mutex_unlock(&machine->lock);
    return error;
}
