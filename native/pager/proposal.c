/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the pager is asked to do: watch, evict, share. Every proposal is checked here, page by page. */
#include "refusal.h"

#include <diffengine/status.h>
#include <errno.h>
#include <string.h>
#include <time.h>

/** How often to try to have a page that is watched be ram again, and to look whether its event is answered.
 */
#define TOUCH_TURNS 1000u
#define ANSWER_TURNS 20000u
#define TOUCH_PAUSE_NS 50000

/** One page of a batch: `proposals` is locked, so the domain stays. */
struct place {
    struct pager_domain *domain;
    uint32_t gfn;
};

static int find_place(struct de_pager *pager, uint16_t id, uint32_t gfn, struct place *place)
{
    struct pager_domain *domain = pager_domain_get(pager, id);
    if (!domain)
        return DE_PROPOSAL_NO_DOMAIN;
    *place = (struct place){.domain = domain, .gfn = gfn};
    bool halted = atomic_load(&domain->halted);
    pager_domain_put(pager, domain);
    if (halted)
        return DE_PROPOSAL_NO_DOMAIN;
    return gfn < domain->gfns ? DE_PROPOSAL_DONE : DE_PROPOSAL_INVALID;
}

/* What the entry of a page becomes that was to be nominated. */
static struct entry nominated(struct entry before, int error)
{
    struct entry watched = before;
    watched.state = DE_PAGE_WATCHED;
    if (before.state == DE_PAGE_RESIDENT)
        return error ? before : watched;
    /* EBUSY is what an already nominated page gives, too. If it is not (given back, or touched just now), the
     * evict will be refused, and no harm is done. Nominated again, it was touched since the last time: a
     * server that is about to note that comes too late. */
    return error ? watched : entry_watched_anew(before);
}

/* After success the entry is `watched` as returned, and the page nominated as far as anyone can know. The
 * domain stands still. */
static int watch(struct de_pager *pager, struct place place, struct entry *watched)
{
    struct entry before = entry_get(place.domain, place.gfn);
    if (before.state != DE_PAGE_RESIDENT && before.state != DE_PAGE_WATCHED)
        return DE_PROPOSAL_NO_PAGE;
    struct entry nominating = before;
    nominating.state = DE_PAGE_NOMINATING;
    if (!entry_change(pager, place.domain, place.gfn, before, nominating))
        return DE_PROPOSAL_TOUCHED;
    int error = HYPERCALL(pager, paging_nominate, place.domain->id, place.gfn);
    *watched = nominated(before, error);
    entry_change(pager, place.domain, place.gfn, nominating, *watched);
    if (!error || (error == -EBUSY && before.state == DE_PAGE_WATCHED))
        return DE_PROPOSAL_DONE;
    if (error == -ESRCH || error == -ENODEV)
        return DE_PROPOSAL_NO_DOMAIN;
    if (error == -EOPNOTSUPP)
        return DE_PROPOSAL_UNABLE;
    return error == -EBUSY ? DE_PROPOSAL_BUSY : DE_PROPOSAL_FAILED;
}

/** For so many a guest stands still at a time: more would stop it for longer, fewer more often. */
#define NOMINATED_AT_ONCE 64u

/* @return what becomes of the proposals if not DONE: the domain runs then. */
static int stand_still(struct de_pager *pager, uint16_t domain)
{
    if (!pager->hypervisor.operations->pause_outside_kernel)
        return DE_PROPOSAL_DONE;
    switch (HYPERCALL(pager, pause_outside_kernel, domain)) {
    case 0:
        return DE_PROPOSAL_DONE;
    case -EAGAIN:
        return DE_PROPOSAL_IN_KERNEL;
    case -ESRCH:
        return DE_PROPOSAL_NO_DOMAIN;
    default:
        return DE_PROPOSAL_FAILED;
    }
}

static void go_on(struct de_pager *pager, uint16_t domain)
{
    if (pager->hypervisor.operations->pause_outside_kernel)
        HYPERCALL(pager, go_on, domain);
}

static int watch_alone(struct de_pager *pager, struct place place, struct entry *watched)
{
    int result = stand_still(pager, place.domain->id);
    if (result)
        return result;
    result = watch(pager, place, watched);
    go_on(pager, place.domain->id);
    return result;
}

static int frame_error(int error)
{
    switch (error) {
    case 0:
        return DE_PROPOSAL_DONE;
    case -ESRCH:
        return DE_PROPOSAL_NO_DOMAIN;
    case -EINVAL:
    case -ENOENT:
        return DE_PROPOSAL_NO_PAGE;
    case -ENOMEM:
        return DE_PROPOSAL_NO_MEMORY;
    default:
        return DE_PROPOSAL_FAILED;
    }
}

static int map(struct de_pager *pager, struct place place, const uint8_t **page)
{
    int32_t error = 0;
    int mapped = HYPERCALL(pager, map, place.domain->id, &place.gfn, 1, page, &error);
    /* A hole has nothing to watch: the guest gave the page back. Only proposals nominate, so it stays so. */
    struct entry entry = entry_get(place.domain, place.gfn);
    if (error == -EINVAL && entry.state == DE_PAGE_WATCHED)
        entry_change(pager, place.domain, place.gfn, entry, entry_resident(entry));
    return frame_error(mapped < 0 ? mapped : error);
}

static int verify(struct de_pager *pager, struct place place, uint32_t object)
{
    struct loader *loader = &pager->proposer;
    int status = de_rebuild_page(loader->rebuilder, object, loader->page);
    /* Nothing an eviction stands on is in swap: so a fault in its middle never finds it waiting for a disk.
     */
    if (status != DE_OK)
        return status == DE_BUSY ? DE_PROPOSAL_SWAPPED : DE_PROPOSAL_NO_OBJECT;
    const uint8_t *page;
    int result = map(pager, place, &page);
    if (result)
        return result;
    bool equal = memcmp(page, loader->page, DE_PAGE_SIZE) == 0;
    HYPERCALL(pager, unmap, &page, 1);
    return equal ? DE_PROPOSAL_DONE : DE_PROPOSAL_DIFFERS;
}

/* After the hypercall: evicted, or watched as before. A server may have claimed the entry, or settled it
 * already. */
static bool settle(struct de_pager *pager, struct place place, struct entry evicting, bool evicted)
{
    struct entry after = evicting;
    after.state = evicted ? DE_PAGE_EVICTED : DE_PAGE_WATCHED;
    if (!evicted)
        after.object = DE_NONE;
    while (!entry_change(pager, place.domain, place.gfn, evicting, after)) {
        struct entry now = entry_get(place.domain, place.gfn);
        if (now.state == DE_PAGE_LOADING)
            HYPERCALL(pager, yield);
        else if (entry_pack(now) != entry_pack(evicting))
            return false;
        /* Else the server gave up its claim in between: it is ours again. */
    }
    return true;
}

/* The object reference is the page table's from the moment the entry names it. */
static int evict_verified(struct de_pager *pager, struct place place, struct entry watched, uint32_t object)
{
    struct entry evicting = watched;
    evicting.state = DE_PAGE_EVICTING;
    evicting.object = object;
    if (!entry_change(pager, place.domain, place.gfn, watched, evicting)) {
        de_store_release(pager->store, object);
        return DE_PROPOSAL_TOUCHED;
    }
    /* First, so that a load in between takes it back. */
    pager_note(place.domain, place.gfn, DE_HOLDS_OUT, true);
    int error = HYPERCALL(pager, paging_evict, place.domain->id, place.gfn);
    bool ours = settle(pager, place, evicting, error == 0);
    if (error)
        pager_note(place.domain, place.gfn, DE_HOLDS_OUT, false);
    if (error && ours)
        de_store_release(pager->store, object);
    if (!error)
        count(pager, COUNT_EVICTIONS);
    if (error == -ESRCH || error == -ENODEV)
        return DE_PROPOSAL_NO_DOMAIN;
    return error ? DE_PROPOSAL_TOUCHED : DE_PROPOSAL_DONE;
}

static int evict_watched(struct de_pager *pager, struct place place, struct entry watched, uint32_t object)
{
    if (de_store_retain(pager->store, object) != DE_OK)
        return DE_PROPOSAL_NO_OBJECT;
    int result = verify(pager, place, object);
    if (!result)
        return evict_verified(pager, place, watched, object);
    de_store_release(pager->store, object);
    return result;
}

/* The eviction itself tells whether a watched page is still nominated, and so has not changed since we
 * looked. */
static int evict_locked(struct de_pager *pager, struct place place, uint32_t object)
{
    struct entry watched = entry_get(place.domain, place.gfn);
    int result = DE_PROPOSAL_TOUCHED;
    if (de_store_retain(pager->store, object) != DE_OK)
        return DE_PROPOSAL_NO_OBJECT;
    if (watched.state == DE_PAGE_WATCHED)
        result = evict_watched(pager, place, watched, object);
    if (result == DE_PROPOSAL_TOUCHED) {
        result = watch_alone(pager, place, &watched);
        if (!result)
            result = evict_watched(pager, place, watched, object);
    }
    de_store_release(pager->store, object);
    return result;
}

static int check_device_model(struct place place)
{
    const struct de_holds *holds = atomic_load(&place.domain->holds);
    return holds && !de_holds_attached(holds) ? DE_PROPOSAL_NO_HOLDS : DE_PROPOSAL_DONE;
}

/* A device model's write between our last look and the eviction would be lost: it is kept out from before the
 * one until after the other. */
static int evict(struct de_pager *pager, struct place place, uint32_t object)
{
    struct de_holds *holds = atomic_load(&place.domain->holds);
    int result = check_device_model(place);
    if (result)
        return result;
    if (holds && !de_holds_lock(holds, place.gfn))
        return DE_PROPOSAL_HELD;
    result = evict_locked(pager, place, object);
    if (holds)
        de_holds_unlock(holds, place.gfn);
    return result;
}

/* One page of a batch. @param object If the proposal names one. @return enum de_proposal. */
typedef int carry_out(struct de_pager *pager, struct place place, uint32_t object);

static void propose(struct de_pager *pager, carry_out *step, const uint16_t *domains, const uint32_t *gfns,
                    const uint32_t *objects, size_t count, int32_t *results)
{
    pthread_mutex_lock(&pager->proposals);
    for (size_t i = 0; i < count; i++) {
        struct place place;
        results[i] = find_place(pager, domains[i], gfns[i], &place);
        if (!results[i])
            results[i] = step(pager, place, objects ? objects[i] : DE_NONE);
    }
    pthread_mutex_unlock(&pager->proposals);
}

/* One after the other, all of one domain, which stands still. @return as stand_still(). */
static int watch_some(struct de_pager *pager, uint16_t domain, const uint32_t *gfns, size_t count,
                      int32_t *results)
{
    struct place places[NOMINATED_AT_ONCE];
    struct entry watched;
    size_t wanted = 0;
    for (size_t i = 0; i < count; i++) {
        results[i] = find_place(pager, domain, gfns[i], &places[i]);
        if (!results[i])
            results[i] = check_device_model(places[i]);
        wanted += results[i] == DE_PROPOSAL_DONE;
    }
    int standing = wanted ? stand_still(pager, domain) : DE_PROPOSAL_DONE;
    for (size_t i = 0; i < count; i++)
        if (!results[i])
            results[i] = standing ? standing : watch(pager, places[i], &watched);
    if (wanted && !standing)
        go_on(pager, domain);
    return standing;
}

void de_pager_watch(struct de_pager *pager, const uint16_t *domains, const uint32_t *gfns, size_t count,
                    int32_t *results)
{
    int standing = DE_PROPOSAL_DONE;
    pthread_mutex_lock(&pager->proposals);
    for (size_t i = 0, some; i < count; i += some) {
        for (some = 1; some < NOMINATED_AT_ONCE && i + some < count && domains[i + some] == domains[i];)
            some++;
        /* A guest that could not be had a moment ago is not asked again so soon. */
        if (standing && domains[i] == domains[i - 1])
            for (size_t k = 0; k < some; k++)
                results[i + k] = standing;
        else
            standing = watch_some(pager, domains[i], gfns + i, some, results + i);
    }
    pthread_mutex_unlock(&pager->proposals);
}

void de_pager_evict(struct de_pager *pager, const uint16_t *domains, const uint32_t *gfns,
                    const uint32_t *objects, size_t count, int32_t *results)
{
    propose(pager, evict, domains, gfns, objects, count, results);
}

static int share_error(int error)
{
    switch (error) {
    case 0:
        return DE_PROPOSAL_DONE;
    case DE_SHARE_SOURCE_STALE:
    case DE_SHARE_CLIENT_STALE:
        return DE_PROPOSAL_STALE;
    case -E2BIG:
        return DE_PROPOSAL_MAPPED;
    case -EINVAL:
        return DE_PROPOSAL_BUSY;
    case -ENOSPC:
        return DE_PROPOSAL_FULL;
    case -ENOMEM:
        return DE_PROPOSAL_NO_MEMORY;
    case -ESRCH:
        return DE_PROPOSAL_NO_DOMAIN;
    default:
        return DE_PROPOSAL_FAILED;
    }
}

static int compare(struct de_pager *pager, struct place left, struct place right)
{
    const uint8_t *pages[2] = {NULL, NULL};
    int result = map(pager, left, &pages[0]);
    if (!result)
        result = map(pager, right, &pages[1]);
    if (!result && memcmp(pages[0], pages[1], DE_PAGE_SIZE) != 0)
        result = DE_PROPOSAL_DIFFERS;
    HYPERCALL(pager, unmap, pages, 2);
    return result;
}

/* Nominate, then compare, then share: a write after the nominate makes a handle stale, so what was compared
 * is shared. */
static int share(struct de_pager *pager, struct place source, struct place client)
{
    if (source.domain == client.domain && source.gfn == client.gfn)
        return DE_PROPOSAL_INVALID;
    if (entry_get(source.domain, source.gfn).object != DE_NONE ||
        entry_get(client.domain, client.gfn).object != DE_NONE)
        return DE_PROPOSAL_NO_PAGE;
    uint64_t source_handle, client_handle;
    /* Xen moves all sharers of the client's frame. If one of them is of a third domain, it takes that
     * domain's p2m lock below the frames' own, which is the wrong order, and the host stops (share_pages() in
     * Xen's mem_sharing.c; "mm locking order violation: 24 > 16", seen). So the client comes alone. */
    int error = HYPERCALL(pager, unshare, client.domain->id, client.gfn);
    if (error)
        return frame_error(error);
    error = HYPERCALL(pager, share_nominate, source.domain->id, source.gfn, &source_handle);
    if (!error)
        error = HYPERCALL(pager, share_nominate, client.domain->id, client.gfn, &client_handle);
    if (error)
        return share_error(error);
    int result = compare(pager, source, client);
    if (result)
        return result;
    error = HYPERCALL(pager, share, source.domain->id, source.gfn, source_handle, client.domain->id,
                      client.gfn, client_handle);
    if (error)
        return share_error(error);
    count(pager, COUNT_SHARES);
    pager_note(source.domain, source.gfn, DE_HOLDS_SHARED, true);
    pager_note(client.domain, client.gfn, DE_HOLDS_SHARED, true);
    return DE_PROPOSAL_DONE;
}

void de_pager_share(struct de_pager *pager, const uint16_t *source_domains, const uint32_t *source_gfns,
                    const uint16_t *client_domains, const uint32_t *client_gfns, size_t count,
                    int32_t *results)
{
    /* What the hypervisor has no memory for it has none for at the next pair, either, and each takes time. */
    bool no_memory = false;
    pthread_mutex_lock(&pager->proposals);
    for (size_t i = 0; i < count; i++) {
        struct place source, client;
        results[i] = find_place(pager, source_domains[i], source_gfns[i], &source);
        if (!results[i])
            results[i] = find_place(pager, client_domains[i], client_gfns[i], &client);
        if (!results[i])
            results[i] = no_memory ? DE_PROPOSAL_NO_MEMORY : share(pager, source, client);
        no_memory |= results[i] == DE_PROPOSAL_NO_MEMORY;
    }
    pthread_mutex_unlock(&pager->proposals);
}

static int unshare_page(struct de_pager *pager, struct place place, uint32_t object)
{
    (void)object;
    int result = frame_error(HYPERCALL(pager, unshare, place.domain->id, place.gfn));
    if (!result)
        pager_note(place.domain, place.gfn, DE_HOLDS_SHARED, false);
    return result;
}

void de_pager_unshare(struct de_pager *pager, const uint16_t *domains, const uint32_t *gfns, size_t count,
                      int32_t *results)
{
    propose(pager, unshare_page, domains, gfns, NULL, count, results);
}

static int swap_error(int status)
{
    switch (status) {
    case DE_OK:
        return DE_PROPOSAL_DONE;
    case DE_BUSY:
        return DE_PROPOSAL_NEEDED;
    case DE_FULL:
        return DE_PROPOSAL_SWAP_FULL;
    case DE_SYSTEM:
        return DE_PROPOSAL_DISK;
    case DE_INVALID:
        return DE_PROPOSAL_INVALID;
    case DE_NO_MEMORY:
        return DE_PROPOSAL_NO_MEMORY;
    default:
        return DE_PROPOSAL_NO_OBJECT;
    }
}

void de_pager_swap_out(struct de_pager *pager, const uint32_t *objects, size_t count_objects,
                       int32_t *results)
{
    pthread_mutex_lock(&pager->proposals);
    for (size_t i = 0; i < count_objects; i++)
        results[i] = DE_PROPOSAL_SWAP_FULL;
    if (pager->swap)
        de_store_swap_out(pager->store, pager->swapper, pager->proposer.channel, objects, count_objects,
                          results);
    for (size_t i = 0; i < count_objects && pager->swap; i++) {
        results[i] = swap_error(results[i]);
        if (results[i] == DE_PROPOSAL_DONE)
            count(pager, COUNT_SWAP_OUTS);
    }
    pthread_mutex_unlock(&pager->proposals);
}

static int restored(enum loaded loaded)
{
    switch (loaded) {
    case LOADED:
    case LOAD_UNNEEDED:
        return DE_OK;
    case LOAD_NO_MEMORY:
        return DE_NO_MEMORY;
    case LOAD_LATER:
    case LOAD_DISK:
        return DE_BUSY;
    case LOAD_FAILED:
        return DE_CORRUPT;
    default:
        return DE_NOT_FOUND;
    }
}

static void pause_before_retry(void)
{
    nanosleep(&(struct timespec){.tv_nsec = TOUCH_PAUSE_NS}, NULL);
}

/*
 * Touch and load, until the page is ram or a hole. The entry may be out of date: it may be so already.
 * @param[out] asked There was, or will be, an event of it.
 */
static int make_ram(struct de_pager *pager, struct place place, bool *asked)
{
    for (unsigned turns = 0; turns < TOUCH_TURNS; turns++) {
        struct entry entry = entry_get(place.domain, place.gfn);
        if (entry.state != DE_PAGE_WATCHED)
            return DE_OK;
        int error = HYPERCALL(pager, paging_touch, place.domain->id, place.gfn);
        if (!error || error == -EINVAL) {
            /* Nobody else nominates. If the entry is another one by now, a server has noted it. */
            entry_change(pager, place.domain, place.gfn, entry, entry_resident(entry));
            return DE_OK;
        }
        if (error == -ESRCH || error == -ENODEV)
            return DE_NOT_FOUND;
        if (error != -EAGAIN)
            return error == -ENOMEM ? DE_NO_MEMORY : DE_BUSY;
        *asked = true;
        enum loaded loaded = pager_load(pager, place.domain, place.gfn, &pager->proposer);
        if (loaded != LOAD_UNNEEDED)
            return restored(loaded);
        /* A server was there first, and has yet to note it; or its ring is full. */
        pause_before_retry();
    }
    return DE_BUSY;
}

/*
 * A nominated page is ram again once it was touched and loaded; no matter who has it mapped, whether a device
 * model says so or not, and nothing is given up. Each touch takes a place in the ring, and a full one can
 * stop the host (native/xen/nominate.c): so there is one at a time.
 */
static int unwatch(struct de_pager *pager, struct place place)
{
    bool asked = false;
    atomic_store(&place.domain->touched, (uint64_t)place.gfn + 1);
    int status = make_ram(pager, place, &asked);
    asked = asked && pager->started; /* else nobody answers now */
    for (unsigned turns = 0; asked && status == DE_OK && atomic_load(&place.domain->touched); turns++) {
        if (turns == ANSWER_TURNS)
            status = DE_BUSY;
        pause_before_retry();
    }
    atomic_store(&place.domain->touched, 0);
    return status;
}

static int restore_page(struct de_pager *pager, struct place place)
{
    switch (entry_get(place.domain, place.gfn).state) {
    case DE_PAGE_RESIDENT:
        return DE_OK;
    case DE_PAGE_WATCHED:
        return unwatch(pager, place);
    default:
        return restored(pager_load(pager, place.domain, place.gfn, &pager->proposer));
    }
}

static const char *why_not_restored(int status)
{
    switch (status) {
    case DE_NO_MEMORY:
        return "not all of its pages came back: the host has no frame free: make room, then try again";
    case DE_BUSY:
        return "not all of its pages came back: some are on their way: try again";
    case DE_CORRUPT:
        return "it is paused for a page that is lost: destroy it";
    default:
        return "it is not paged by this pager, or gone";
    }
}

int de_pager_restore_part(struct de_pager *pager, uint16_t id, uint32_t first, uint32_t count)
{
    int worst = DE_OK;
    struct place place = {.domain = NULL};
    pthread_mutex_lock(&pager->proposals);
    if (find_place(pager, id, 0, &place) == DE_PROPOSAL_NO_DOMAIN)
        worst = place.domain ? DE_CORRUPT : DE_NOT_FOUND;
    uint32_t gfns = place.domain ? place.domain->gfns : 0;
    uint32_t end = first < gfns && count < gfns - first ? first + count : gfns;
    /* A page that can't come back now is no reason to leave the others out. */
    for (place.gfn = first; worst != DE_NOT_FOUND && worst != DE_CORRUPT && place.gfn < end; place.gfn++) {
        int status = restore_page(pager, place);
        if (status != DE_OK)
            worst = status;
    }
    pthread_mutex_unlock(&pager->proposals);
    pager_release_soon(pager);
    return worst == DE_OK ? DE_OK : refuse(pager, worst, "domain %u: %s", id, why_not_restored(worst));
}

int de_pager_restore(struct de_pager *pager, uint16_t id)
{
    return de_pager_restore_part(pager, id, 0, UINT32_MAX);
}
