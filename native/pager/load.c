/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The way back: from an entry's object to the guest's frame. Fault path: nothing here allocates or waits for
 * long. What a page is, the hypervisor is asked, not the event: events may be stale, doubled, or scribbled
 * on.
 */
#include "swap_in.h"

#include <diffengine/status.h>
#include <errno.h>

/** How often to look whether another thread is done with a page; each is at least a system call. */
#define LOADING_TURNS 64u

/* A page that is ram again must not go on counting as watched, also if somebody nominates or tries to evict
 * it just now: that will be refused, and leave the entry as it was, or it is nominated anew. */
static void note_touch(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn, struct entry seen)
{
    struct entry watched = seen;
    watched.state = DE_PAGE_WATCHED;
    if (seen.state == DE_PAGE_RESIDENT)
        return;
    while (!entry_change(pager, domain, gfn, watched, entry_resident(watched))) {
        struct entry now = entry_get(domain, gfn);
        bool under_way = now.state == DE_PAGE_EVICTING || now.state == DE_PAGE_NOMINATING;
        if (now.generation != seen.generation || (!under_way && now.state != DE_PAGE_WATCHED))
            return;
        HYPERCALL(pager, yield);
    }
}

/* The hypercall; with an event to answer, both in one where that is to be had. The guest then goes on while
 * its entry still says "loading", which is nobody's business but ours. */
static int load(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn, const uint8_t *page,
                struct loader *loader)
{
    struct recorded_event *event = loader->event;
    if (!event || !pager->hypervisor.operations->paging_load_answer)
        return HYPERCALL(pager, paging_load, domain->id, gfn, page);
    struct de_vm_event answer = pager_answer_begin(domain, event);
    int error = HYPERCALL(pager, paging_load_answer, domain->id, gfn, page, &answer);
    pager_answer_end(domain, event, !error);
    if (!error)
        loader->event = NULL;
    return error;
}

/*
 * An entry without object. A load without a buffer makes a touched page ram and can overwrite nothing.
 * @return false: the entry changed meanwhile (the page was evicted since we looked), start again.
 */
static bool load_watched(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn,
                         struct entry entry, struct loader *loader, enum loaded *result)
{
    int error = load(pager, domain, gfn, NULL, loader);
    switch (error) {
    case 0:
        count(pager, COUNT_TOUCHES);
        note_touch(pager, domain, gfn, entry);
        *result = LOADED;
        return true;
    case -ENOENT:
        *result = LOAD_UNNEEDED;
        return true;
    case -ESRCH:
    case -ENODEV: /* another domain has its id by now */
        *result = LOAD_DOMAIN_GONE;
        return true;
    default:
        if (entry_pack(entry_get(domain, gfn)) != entry_pack(entry))
            return false;
        pager_halt(pager, domain, gfn, "it is paged out, and not by this pager");
        *result = LOAD_FAILED;
        return true;
    }
}

static void unclaim(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn, struct entry claimed,
                    enum de_page_state from)
{
    struct entry back = claimed;
    back.state = from;
    entry_change(pager, domain, gfn, claimed, back);
}

/* What a claimed entry becomes after the hypercall. */
static enum loaded settle(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn,
                          struct entry claimed, enum de_page_state from, int error)
{
    /* ENOENT while evicting says nothing: it may be nominated still, so the step stays the proposer's. */
    if (error == 0 || (error == -ENOENT && from == DE_PAGE_EVICTED)) {
        entry_change(pager, domain, gfn, claimed, entry_resident(claimed));
        pager_note(domain, gfn, DE_HOLDS_OUT, false);
        pager_retire(pager, claimed.object);
    } else {
        unclaim(pager, domain, gfn, claimed, from);
    }
    switch (error) {
    case 0:
        return LOADED;
    case -ENOENT:
        return LOAD_UNNEEDED;
    case -ENOMEM:
        return LOAD_NO_MEMORY;
    case -ESRCH:
    case -ENODEV:
        return LOAD_DOMAIN_GONE;
    default:
        pager_halt(pager, domain, gfn, "the hypervisor refused to load it");
        return LOAD_FAILED;
    }
}

static enum loaded fail(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn,
                        struct entry claimed, enum de_page_state from, const char *why)
{
    unclaim(pager, domain, gfn, claimed, from);
    count(pager, COUNT_CORRUPT);
    pager_halt(pager, domain, gfn, why);
    return LOAD_FAILED;
}

static const char *rebuild_failure(int status)
{
    return status == DE_NOT_FOUND ? "its object is missing" : "its object is corrupt";
}

static const char *read_failure(int status)
{
    return status == DE_SYSTEM ? "its swap slot can't be read" : "its swap slot is corrupt";
}

/* Rebuild with what the disk has to give; for a thread that may wait for it. */
static int rebuild_waiting(struct loader *loader, uint32_t object, const char **why)
{
    struct de_swapped_parts parts;
    int status;
    do {
        status = de_rebuild_find_swapped(loader->rebuilder, object, &parts);
        *why = rebuild_failure(status);
        if (status != DE_OK)
            return status;
        status = swap_read_parts(loader->channel, &parts);
        *why = read_failure(status);
        if (status != DE_OK)
            return status;
        status = de_rebuild_swapped(loader->rebuilder, object, &parts, loader->page);
        *why = rebuild_failure(status);
    } while (status == DE_BUSY);
    return status;
}

/* Who reads for a thread that must not wait. */
static struct swap_in *reader_of(const struct de_pager *pager, const struct pager_domain *domain,
                                 const struct loader *loader)
{
    return loader == &pager->server ? domain->swap_in : loader->swap_in;
}

/* Have the reading thread begin, if it is free. */
static enum loaded begin_swap_in(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn,
                                 struct entry claimed, enum de_page_state from, struct loader *loader)
{
    struct swap_in *swap_in = reader_of(pager, domain, loader);
    if (atomic_load(&swap_in->state) != SWAP_IN_FREE) {
        unclaim(pager, domain, gfn, claimed, from);
        return LOAD_DISK;
    }
    int status = de_rebuild_find_swapped(loader->rebuilder, claimed.object, &swap_in->parts);
    if (status != DE_OK)
        return fail(pager, domain, gfn, claimed, from, rebuild_failure(status));
    swap_in->gfn = gfn;
    swap_in->claimed = claimed;
    swap_in->from = from;
    swap_in_begin(swap_in);
    return LOAD_DISK;
}

static enum loaded load_evicted(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn,
                                struct entry claimed, enum de_page_state from, struct loader *loader)
{
    uint64_t start_ns = HYPERCALL(pager, now_ns);
    int status = de_rebuild_page(loader->rebuilder, claimed.object, loader->page);
    const char *why = rebuild_failure(status);
    if (status == DE_BUSY && !pager->swap)
        why = "it is in swap, and there is no swap file";
    else if (status == DE_BUSY && loader->channel)
        status = rebuild_waiting(loader, claimed.object, &why);
    else if (status == DE_BUSY)
        return begin_swap_in(pager, domain, gfn, claimed, from, loader);
    else
        latency_add(&pager->rebuild, HYPERCALL(pager, now_ns) - start_ns);
    if (status != DE_OK)
        return fail(pager, domain, gfn, claimed, from, why);
    int error = load(pager, domain, gfn, loader->page, loader);
    return settle(pager, domain, gfn, claimed, from, error);
}

enum loaded pager_load_swapped(struct de_pager *pager, struct pager_domain *domain, struct loader *loader,
                               uint32_t *gfn)
{
    struct swap_in *swap_in = reader_of(pager, domain, loader);
    struct entry claimed = swap_in->claimed;
    *gfn = swap_in->gfn;
    if (swap_in->status != DE_OK) {
        swap_in_end(swap_in);
        return fail(pager, domain, *gfn, claimed, swap_in->from, read_failure(swap_in->status));
    }
    int status = de_rebuild_swapped(loader->rebuilder, claimed.object, &swap_in->parts, loader->page);
    if (status == DE_BUSY) {
        /* What it stands on went to swap as well, meanwhile. */
        status = de_rebuild_find_swapped(loader->rebuilder, claimed.object, &swap_in->parts);
        if (status == DE_OK) {
            swap_in_begin(swap_in);
            return LOAD_DISK;
        }
    }
    if (status != DE_OK) {
        swap_in_end(swap_in);
        return fail(pager, domain, *gfn, claimed, swap_in->from, rebuild_failure(status));
    }
    int error = HYPERCALL(pager, paging_load, domain->id, *gfn, loader->page);
    if (error == -ENOMEM)
        return LOAD_NO_MEMORY; /* what was read is kept, and the page stays claimed */
    count(pager, COUNT_SWAP_INS);
    swap_in_end(swap_in);
    return settle(pager, domain, *gfn, claimed, swap_in->from, error);
}

/* Somebody else is at it: microseconds, unless a disk is involved. A server must not wait for that. */
static bool wait_for_other(struct de_pager *pager, const struct pager_domain *domain, uint32_t gfn)
{
    for (unsigned turns = 0; turns < LOADING_TURNS; turns++) {
        if (entry_get(domain, gfn).state != DE_PAGE_LOADING)
            return true;
        HYPERCALL(pager, yield);
    }
    return false;
}

void pager_abandon_swap_in(struct de_pager *pager, struct pager_domain *domain, struct swap_in *swap_in)
{
    if (atomic_load(&swap_in->state) != SWAP_IN_FREE)
        unclaim(pager, domain, swap_in->gfn, swap_in->claimed, swap_in->from);
    swap_in_end(swap_in);
}

static bool own_swap_in(const struct swap_in *swap_in, uint32_t gfn)
{
    return swap_in && atomic_load(&swap_in->state) != SWAP_IN_FREE && swap_in->gfn == gfn;
}

enum loaded pager_load(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn,
                       struct loader *loader)
{
    for (;;) {
        struct entry entry = entry_get(domain, gfn);
        if (entry.state == DE_PAGE_LOADING) {
            if (own_swap_in(reader_of(pager, domain, loader), gfn))
                return LOAD_DISK;
            if (!wait_for_other(pager, domain, gfn))
                return LOAD_LATER;
            continue;
        }
        if (entry.object == DE_NONE) {
            enum loaded result;
            if (load_watched(pager, domain, gfn, entry, loader, &result))
                return result;
            continue;
        }
        struct entry claimed = entry;
        claimed.state = DE_PAGE_LOADING;
        if (entry_change(pager, domain, gfn, entry, claimed))
            return load_evicted(pager, domain, gfn, claimed, entry.state, loader);
    }
}

void pager_drop(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn)
{
    for (;;) {
        struct entry entry = entry_get(domain, gfn);
        struct entry after = entry_resident(entry);
        switch (entry.state) {
        case DE_PAGE_NOMINATING:
        case DE_PAGE_EVICTING:
            /* It may be over already as far as the hypervisor goes: then its page is what was given back. */
            HYPERCALL(pager, yield);
            continue;
        case DE_PAGE_WATCHED:
            /* Nobody can tell whether that gfn has a newer page that is nominated. */
            after = entry_watched_anew(entry);
            break;
        case DE_PAGE_EVICTED: {
            /* EINVAL: paged, so this event is of an earlier page of that gfn, given back and evicted anew
             * since.
             */
            int error = HYPERCALL(pager, paging_load, domain->id, gfn, NULL);
            if (error == -EINVAL || error == -ESRCH || error == -ENODEV)
                return;
            break;
        }
        default:
            return;
        }
        if (!entry_change(pager, domain, gfn, entry, after))
            continue;
        pager_note(domain, gfn, DE_HOLDS_OUT, false);
        if (entry.object != DE_NONE)
            pager_retire(pager, entry.object);
        return;
    }
}
