/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The way back: from an entry's object to the guest's frame. Fault path: nothing here allocates or waits for
 * long. What a page is, the hypervisor is asked, not the event: events may be stale, doubled, or scribbled
 * on.
 */
#include "internal.h"

#include <diffengine/status.h>
#include <errno.h>

/*
 * An entry without object. A load without a buffer makes a touched page ram and can overwrite nothing.
 * @return false: the entry changed meanwhile (the page was evicted since we looked), start again.
 */
static bool load_watched(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn,
                         struct entry entry, enum loaded *result)
{
    int error = HYPERCALL(pager, paging_load, domain->id, gfn, NULL);
    switch (error) {
    case 0:
        count(pager, COUNT_TOUCHES);
        if (entry.state == DE_PAGE_WATCHED)
            entry_change(pager, domain, gfn, entry, entry_resident(entry));
        *result = LOADED;
        return true;
    case -ENOENT:
        *result = LOAD_UNNEEDED;
        return true;
    case -ESRCH:
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

/* What a claimed entry becomes after the hypercall. */
static enum loaded settle(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn,
                          struct entry claimed, enum de_page_state from, int error)
{
    struct entry back = claimed;
    back.state = from;
    /* ENOENT while evicting says nothing: it may be nominated still, so the step stays the proposer's. */
    bool resident = error == 0 || (error == -ENOENT && from == DE_PAGE_EVICTED);
    entry_change(pager, domain, gfn, claimed, resident ? entry_resident(claimed) : back);
    if (resident)
        pager_retire(pager, claimed.object);
    switch (error) {
    case 0:
        return LOADED;
    case -ENOENT:
        return LOAD_UNNEEDED;
    case -ENOMEM:
        return LOAD_NO_MEMORY;
    case -ESRCH:
        return LOAD_DOMAIN_GONE;
    default:
        pager_halt(pager, domain, gfn, "the hypervisor refused to load it");
        return LOAD_FAILED;
    }
}

static enum loaded load_evicted(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn,
                                struct entry claimed, enum de_page_state from, struct loader *loader)
{
    uint64_t start_ns = HYPERCALL(pager, now_ns);
    int status = de_rebuild_page(loader->rebuilder, claimed.object, loader->page);
    if (status != DE_OK) {
        struct entry back = claimed;
        back.state = from;
        entry_change(pager, domain, gfn, claimed, back);
        count(pager, COUNT_CORRUPT);
        pager_halt(pager, domain, gfn,
                   status == DE_NOT_FOUND ? "its object is missing" : "its object is corrupt");
        return LOAD_FAILED;
    }
    latency_add(&pager->rebuild, HYPERCALL(pager, now_ns) - start_ns);
    int error = HYPERCALL(pager, paging_load, domain->id, gfn, loader->page);
    return settle(pager, domain, gfn, claimed, from, error);
}

enum loaded pager_load(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn,
                       struct loader *loader)
{
    for (;;) {
        struct entry entry = entry_get(domain, gfn);
        if (entry.state == DE_PAGE_LOADING) {
            HYPERCALL(pager, yield); /* the other thread needs microseconds */
            continue;
        }
        if (entry.state == DE_PAGE_RESIDENT || entry.state == DE_PAGE_WATCHED) {
            enum loaded result;
            if (load_watched(pager, domain, gfn, entry, &result))
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
    struct entry entry = entry_get(domain, gfn);
    /* While evicting the hypercall will be refused, and the proposer clears up itself. */
    if (entry.state != DE_PAGE_EVICTED && entry.state != DE_PAGE_WATCHED)
        return;
    /* EINVAL: paged, so this event is of an earlier page of that gfn, given back and evicted anew since. */
    int error = HYPERCALL(pager, paging_load, domain->id, gfn, NULL);
    if (error == -EINVAL || error == -ESRCH)
        return;
    if (entry_change(pager, domain, gfn, entry, entry_resident(entry)) && entry.object != DE_NONE)
        pager_retire(pager, entry.object);
}
