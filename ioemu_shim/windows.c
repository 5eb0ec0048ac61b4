/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "windows.h"

#include "faults.h"
#include "next.h"
#include "pager_link.h"
#include "settings.h"

#include <diffengine/page.h>
#include <diffengine/status.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define NS_PER_MS 1000000
#define MS_PER_S 1000
/** How soon after it was unmapped a cluster is back "at once". */
#define AT_ONCE_MS 1000u
/** How often the time that it may be idle doubles then. */
#define MAX_PATIENCE 2u
#define BRING_IN_MS 1000u
#define LOOK_FOR_PAGER_MS 250u
#define CACHE_LINE 64

struct cluster {
    uint64_t mapped; /**< a bit per page: it has its frame, or, being no guest memory, a page in its place */
    uint64_t held;   /**< of those, whose gfn has a hold in the table */
    _Atomic(uint64_t) touched_ms;
    uint64_t emptied_ms;
    _Atomic(uint32_t) calls; /**< system calls under way that use it: more only under the lock */
    uint8_t runs;            /**< of pages that were mapped together */
    uint8_t patience;
    bool working;
};

/** A window of which only a part goes gets all its frames before that. */
enum cut { CUT_NOT, CUT_UNDER_WAY, CUT_READY };

struct window {
    uintptr_t from;
    size_t pages;
    int protection;
    uint32_t domain;
    xenforeignmemory_handle *xen;
    unsigned cluster_shift; /**< a cluster has 2^this pages */
    size_t cluster_count;
    struct cluster *clusters;
    bool *missing; /**< per page: no such guest memory when it was made */
    enum cut cut;
    struct window *next; /**< taken out together */
    uint32_t gfns[];
};

/** A mapping that is no window. */
struct plain {
    uintptr_t from; /**< 0: being made */
    size_t pages;
    bool held;
    struct plain *next;
    uint32_t gfns[];
};

/* Taken by every system call on a window, and let go by whoever maps or unmaps; held for longer only to say
 * hello to the pager, and to attach. */
static pthread_mutex_t lock = PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct window **windows; /**< by address */
static size_t window_count, window_capacity;
static struct window *left_overs; /**< of which parts went: mapped, perhaps, and held for ever */
static struct plain *plains, *left_over_plains;
static uint64_t mapped_runs; /**< of all windows: the kernel allows a process only so many mappings */
static unsigned workers;
static unsigned takings; /**< what is taken out, and listed nowhere: nobody is to attach meanwhile */
static bool attaching;   /**< nobody is to begin to work, or to take anything out */
static uint32_t bound_domain;
static bool bound;
static uint64_t link_looked_ms;
/* Of all windows there ever were. In a cache line of its own: it is looked at without the lock, in every
 * call. */
static struct {
    _Alignas(CACHE_LINE) _Atomic(uintptr_t) lowest;
    _Atomic(uintptr_t) highest;
} bounds = {.lowest = UINTPTR_MAX};
/* Looked at in every system call on a window; the library is loaded with the program. */
#define OWN static __thread __attribute__((tls_model("initial-exec")))
OWN bool mapping_here;
OWN bool has_lock; /**< of what it unmaps now nothing is in a window */

/* Some milliseconds late, and so only read from memory. */
static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * MS_PER_S + (uint64_t)(now.tv_nsec / NS_PER_MS);
}

bool windows_mapping_here(void)
{
    return mapping_here;
}

bool windows_near(const void *address, size_t bytes)
{
    uintptr_t from = (uintptr_t)address;
    return bytes && !has_lock && from < atomic_load(&bounds.highest) &&
           from + bytes > atomic_load(&bounds.lowest);
}

/* The first window that ends behind the address; the lock is held. */
static size_t place_of(uintptr_t address)
{
    size_t low = 0, high = window_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (windows[middle]->from + windows[middle]->pages * DE_PAGE_SIZE <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct window *find(uintptr_t address)
{
    size_t place = place_of(address);
    return place < window_count && windows[place]->from <= address ? windows[place] : NULL;
}

bool windows_covers(uintptr_t address)
{
    pthread_mutex_lock(&lock);
    bool covers = find(address) != NULL;
    pthread_mutex_unlock(&lock);
    return covers;
}

static size_t first_page(const struct window *window, size_t index)
{
    return index << window->cluster_shift;
}

static size_t cluster_pages(const struct window *window, size_t index)
{
    size_t size = first_page(window, 1), rest = window->pages - first_page(window, index);
    return rest < size ? rest : size;
}

static uintptr_t cluster_from(const struct window *window, size_t index)
{
    return window->from + first_page(window, index) * DE_PAGE_SIZE;
}

static size_t cluster_of(const struct window *window, uintptr_t address)
{
    return (address - window->from) / DE_PAGE_SIZE >> window->cluster_shift;
}

/* A bit per page of a cluster. */
static uint64_t bits(size_t from, size_t to)
{
    uint64_t below_to = to >= 64 ? UINT64_MAX : (UINT64_C(1) << to) - 1;
    return below_to & ~((UINT64_C(1) << from) - 1);
}

/* Holds. */

static bool take_hold(uint32_t gfn)
{
    struct de_holds *holds = link_holds();
    return holds && de_holds_take(holds, gfn) == DE_OK;
}

static void drop_holds(const uint32_t *gfns, uint64_t held)
{
    for (; held; held &= held - 1)
        de_holds_drop(link_holds(), gfns[__builtin_ctzll(held)]);
}

/* Mapping: the cluster is worked on, the lock not held. */

static void pause_before_retry(void)
{
    nanosleep(&(struct timespec){.tv_nsec = NS_PER_MS}, NULL);
}

/* What a device model does with a page that the guest gave back, or after the domain's end, is lost with or
 * without us; but it may not die of it. */
static bool is_gone(int error)
{
    return error == -EINVAL || error == -ESRCH;
}

static void put_page_in_place(void *address, int protection)
{
    while (next_functions()->mmap(address, DE_PAGE_SIZE, protection,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1,
                                  0) == MAP_FAILED)
        pause_before_retry();
}

/* What a mapping that failed left there is nobody's, and its touches are not heard. */
static void put_empty_back(void *address, int protection)
{
    while (!faults_empty(address, DE_PAGE_SIZE, protection))
        pause_before_retry();
}

/* @param[out] errors Per page, also if the call fails as a whole. */
static void try_to_map(const struct window *window, size_t first, unsigned count, int *errors)
{
    xen_pfn_t gfns[MAX_CLUSTER_PAGES];
    for (unsigned i = 0; i < count; i++)
        gfns[i] = window->gfns[first + i];
    mapping_here = true;
    void *mapped =
        next_functions()->map2(window->xen, window->domain, (uint8_t *)window->from + first * DE_PAGE_SIZE,
                               window->protection, MAP_FIXED, count, gfns, errors);
    int error = errno;
    mapping_here = false;
    for (unsigned i = 0; i < count && !mapped; i++)
        errors[i] = error ? -error : -ENOMEM;
}

/*
 * Map pages that follow one another. One that is guest memory and can't be mapped now stays empty, to be
 * tried again: what is written to a page in its place would be lost. That is a shared one whose copy finds no
 * frame (ENOMEM; Xen says EBUSY, get_page_from_l1e() in its arch/x86/mm.c), or dom0 has no memory for the
 * call.
 * @param[out] gone Those that are no guest memory, which have another page in their place.
 * @return those that are to be tried again.
 */
static uint64_t map_run(const struct window *window, size_t first, unsigned count, uint64_t *gone)
{
    int errors[MAX_CLUSTER_PAGES];
    uint64_t later = 0;
    uint8_t *address = (uint8_t *)window->from + first * DE_PAGE_SIZE;
    *gone = 0;
    try_to_map(window, first, count, errors);
    for (unsigned i = 0; i < count; i++) {
        uint8_t *page = address + (size_t)i * DE_PAGE_SIZE;
        if (is_gone(errors[i])) {
            put_page_in_place(page, window->protection);
            *gone |= UINT64_C(1) << i;
        } else if (errors[i]) {
            put_empty_back(page, window->protection);
            later |= UINT64_C(1) << i;
        }
    }
    return later;
}

static void forget_shares(const struct window *window, size_t first, uint64_t pages)
{
    for (; pages; pages &= pages - 1) {
        uint32_t gfn = window->gfns[first + (size_t)__builtin_ctzll(pages)];
        if (de_holds_hints(link_holds(), gfn) & DE_HOLDS_SHARED)
            de_holds_note(link_holds(), gfn, DE_HOLDS_SHARED, false);
    }
}

/* Of what the cluster does not have yet: what can be had at once, and would be had without harm. */
static uint64_t hold_around(const struct window *window, size_t first, size_t count, uint64_t but)
{
    uint64_t pages = 0;
    struct de_holds *holds = link_holds();
    for (size_t i = 0; i < count; i++) {
        uint64_t bit = UINT64_C(1) << i;
        if (!(but & bit) && !window->missing[first + i] && holds &&
            de_holds_take_plain(holds, window->gfns[first + i]) == DE_OK)
            pages |= bit;
    }
    return pages;
}

static bool is_out(uint32_t gfn)
{
    return link_holds() && de_holds_hints(link_holds(), gfn) & DE_HOLDS_OUT;
}

/*
 * Hold what is wanted, and have brought in what of it is out.
 * @param[out] held Of the wanted pages.
 * @return those that are to be tried again: out still, and mapping one would wait for it, however long.
 */
static uint64_t hold_wanted(const struct window *window, size_t first, uint64_t wanted, uint64_t *held)
{
    uint32_t gfns[MAX_CLUSTER_PAGES];
    uint64_t later = 0;
    size_t count = 0;
    for (uint64_t left = wanted; left; left &= left - 1) {
        unsigned i = (unsigned)__builtin_ctzll(left);
        gfns[count] = window->gfns[first + i];
        if (take_hold(gfns[count])) {
            *held |= UINT64_C(1) << i;
            count++;
        }
    }
    if (!count || de_holds_bring_in(link_holds(), gfns, count, BRING_IN_MS) == DE_OK)
        return 0;
    for (uint64_t left = *held; left; left &= left - 1)
        if (is_out(window->gfns[first + (size_t)__builtin_ctzll(left)]))
            later |= left & -left;
    return later;
}

/*
 * @param most Pages of one mapping.
 * @param[out] gone,runs Those that are no guest memory; how many mappings there were.
 * @return those that are to be tried again.
 */
static uint64_t map_runs(const struct window *window, size_t first, uint64_t pages, unsigned most,
                         uint64_t *gone, uint8_t *runs)
{
    uint64_t later = 0;
    while (pages) {
        unsigned from = (unsigned)__builtin_ctzll(pages);
        uint64_t rest = ~(pages >> from), run_gone;
        unsigned count = rest ? (unsigned)__builtin_ctzll(rest) : MAX_CLUSTER_PAGES;
        count = count < most ? count : most;
        uint64_t run_later = map_run(window, first + from, count, &run_gone);
        later |= run_later << from;
        *gone |= run_gone << from;
        *runs += run_later != bits(0, count);
        pages = from + count == 64 ? 0 : pages >> (from + count) << (from + count);
    }
    return later;
}

/* Give pages of a cluster their frames, those that can have them now, and their neighbours.
 * @param again They could not have them before: each is tried for itself now. */
static void map_pages(const struct window *window, size_t index, uint64_t wanted, bool again,
                      struct cluster *gained)
{
    size_t first = first_page(window, index), count = cluster_pages(window, index);
    uint64_t held = 0, gone = 0;
    uint64_t later = hold_wanted(window, first, wanted, &held);
    if (!again)
        held |= hold_around(window, first, count, wanted | gained->mapped);
    uint64_t pages = (wanted | held) & ~later;
    later |= map_runs(window, first, pages, again ? 1 : MAX_CLUSTER_PAGES, &gone, &gained->runs);
    drop_holds(window->gfns + first, held & (gone | later));
    forget_shares(window, first, held & ~gone & ~later);
    gained->mapped = pages & ~later;
    gained->held = held & ~gone & ~later;
}

/* The lock is held. */

static void begin(struct cluster *cluster)
{
    cluster->working = true;
    workers++;
}

static void end(struct cluster *cluster)
{
    cluster->working = false;
    workers--;
    pthread_cond_broadcast(&changed);
}

/* Work on no cluster. */
static void begin_alone(void)
{
    pthread_mutex_lock(&lock);
    while (attaching)
        pthread_cond_wait(&changed, &lock);
    workers++;
    pthread_mutex_unlock(&lock);
}

static void end_alone(void)
{
    pthread_mutex_lock(&lock);
    workers--;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void note_return(struct cluster *cluster, uint64_t now)
{
    if (!cluster->emptied_ms)
        return;
    if (now - cluster->emptied_ms > AT_ONCE_MS)
        cluster->patience = 0;
    else if (cluster->patience < MAX_PATIENCE)
        cluster->patience++;
    cluster->emptied_ms = 0;
}

/*
 * Have frames in the part of the range from `from` on that lies in one cluster. Whoever waits for a frame
 * does so without working on the cluster: others may have what they need of it.
 * @param[out] to Where that part ends. @return whether it is in a window.
 */
static bool ensure_cluster(uintptr_t from, uintptr_t end_of_range, bool for_call, uintptr_t *to)
{
    pthread_mutex_lock(&lock);
    for (bool again = false;;) {
        struct window *window = find(from);
        if (!window) {
            size_t place = place_of(from);
            *to = place < window_count && windows[place]->from < end_of_range ? windows[place]->from
                                                                              : end_of_range;
            pthread_mutex_unlock(&lock);
            return false;
        }
        size_t index = cluster_of(window, from);
        struct cluster *cluster = &window->clusters[index];
        if (cluster->working || attaching) {
            pthread_cond_wait(&changed, &lock);
            continue;
        }
        uintptr_t base = cluster_from(window, index);
        uintptr_t cluster_end = base + cluster_pages(window, index) * DE_PAGE_SIZE;
        *to = cluster_end < end_of_range ? cluster_end : end_of_range;
        uint64_t wanted = bits((from - base) / DE_PAGE_SIZE, (*to - base + DE_PAGE_SIZE - 1) / DE_PAGE_SIZE) &
                          ~cluster->mapped;
        if (wanted) {
            struct cluster gained = {.mapped = cluster->mapped};
            begin(cluster);
            pthread_mutex_unlock(&lock);
            map_pages(window, index, wanted, again, &gained);
            pthread_mutex_lock(&lock);
            cluster->mapped |= gained.mapped;
            cluster->held |= gained.held;
            cluster->runs += gained.runs;
            mapped_runs += gained.runs;
            if (gained.mapped)
                note_return(cluster, now_ms());
            end(cluster);
        }
        cluster->touched_ms = now_ms();
        again = (wanted & ~cluster->mapped) != 0;
        if (again) {
            pthread_mutex_unlock(&lock);
            pause_before_retry();
            pthread_mutex_lock(&lock);
            continue;
        }
        atomic_fetch_add(&cluster->calls, for_call);
        pthread_mutex_unlock(&lock);
        return true;
    }
}

bool windows_touch(uintptr_t address)
{
    uintptr_t to;
    return ensure_cluster(address, address + 1, false, &to);
}

/* Of the pages that the range takes of a cluster, those that have no frame; the lock is held. */
static uint64_t lacking(const struct window *window, size_t index, uintptr_t from, uintptr_t to)
{
    uintptr_t base = cluster_from(window, index);
    size_t first = from > base ? (from - base) / DE_PAGE_SIZE : 0;
    size_t last = (to - base + DE_PAGE_SIZE - 1) / DE_PAGE_SIZE;
    return bits(first, last) & bits(0, cluster_pages(window, index)) & ~window->clusters[index].mapped;
}

/* Most calls are on pages that have their frames: one look at all of them. */
static bool prepare_mapped(uintptr_t from, uintptr_t to, struct use *use)
{
    pthread_mutex_lock(&lock);
    struct window *window = find(from);
    bool mapped = window && to <= window->from + window->pages * DE_PAGE_SIZE && !attaching;
    size_t first = mapped ? cluster_of(window, from) : 0;
    size_t last = mapped ? cluster_of(window, to - 1) : 0;
    for (size_t i = first; mapped && i <= last; i++)
        mapped = !window->clusters[i].working && !lacking(window, i, from, to);
    for (size_t i = first; mapped && i <= last; i++)
        atomic_fetch_add(&window->clusters[i].calls, 1);
    pthread_mutex_unlock(&lock);
    *use = (struct use){.window = mapped ? window : NULL, .first = first, .last = last};
    return mapped;
}

bool windows_prepare(const void *address, size_t bytes, struct use *use)
{
    uintptr_t from = (uintptr_t)address, to = from + bytes;
    bool some = false;
    if (prepare_mapped(from, to, use))
        return true;
    while (from < to)
        some |= ensure_cluster(from, to, true, &from);
    return some;
}

void windows_end_use(const struct use *use)
{
    /* It is there as long as there are calls: window_free(). */
    struct cluster *clusters = use->window->clusters;
    uint64_t now = now_ms();
    for (size_t i = use->first; i <= use->last; i++) {
        atomic_store(&clusters[i].touched_ms, now);
        atomic_fetch_sub(&clusters[i].calls, 1);
    }
}

/* There may be another window at its address by now. */
static void end_call(struct cluster *cluster)
{
    uint32_t calls = atomic_load(&cluster->calls);
    while (calls && !atomic_compare_exchange_weak(&cluster->calls, &calls, calls - 1))
        ;
}

bool windows_finish(const void *address, size_t bytes)
{
    bool some = false;
    uintptr_t from = (uintptr_t)address, to = from + bytes;
    uint64_t now = now_ms();
    pthread_mutex_lock(&lock);
    for (size_t place = place_of(from); place < window_count && windows[place]->from < to; place++) {
        struct window *window = windows[place];
        size_t first = from > window->from ? cluster_of(window, from) : 0;
        for (size_t i = first; i < window->cluster_count && cluster_from(window, i) < to; i++) {
            struct cluster *cluster = &window->clusters[i];
            cluster->touched_ms = now;
            end_call(cluster);
            some = true;
        }
    }
    pthread_mutex_unlock(&lock);
    return some;
}

/* Windows come and go. */

/* Whoever unmaps it while a call uses it is wrong; the end of that call will write to it all the same. */
static bool has_calls(const struct window *window)
{
    for (size_t i = 0; window->clusters && i < window->cluster_count; i++)
        if (atomic_load(&window->clusters[i].calls))
            return true;
    return false;
}

static void window_free(struct window *window)
{
    if (has_calls(window))
        return;
    free(window->clusters);
    free(window->missing);
    free(window);
}

static struct window *window_make(const struct request *request)
{
    struct window *window = calloc(1, sizeof *window + request->pages * sizeof window->gfns[0]);
    if (!window)
        return NULL;
    window->pages = request->pages;
    window->protection = request->protection;
    window->domain = request->domain;
    window->xen = request->xen;
    window->cluster_shift = (unsigned)__builtin_ctz(settings_get()->cluster_pages);
    window->cluster_count = ((request->pages - 1) >> window->cluster_shift) + 1;
    window->clusters = calloc(window->cluster_count, sizeof *window->clusters);
    window->missing = calloc(request->pages, sizeof *window->missing);
    if (!window->clusters || !window->missing) {
        window_free(window);
        return NULL;
    }
    for (size_t i = 0; i < request->pages; i++) {
        window->gfns[i] = request->gfns[i] > UINT32_MAX ? UINT32_MAX : (uint32_t)request->gfns[i];
        window->missing[i] = request->gfns[i] > UINT32_MAX;
    }
    return window;
}

/*
 * What a mapping would have said, page by page: by making one, read-only so that what is shared stays so.
 * What is out is guest memory, and need not come in to be found so. @return false: the mapping as a whole
 * fails.
 */
static bool probe(struct window *window, const struct request *request, int *errors)
{
    begin_alone();
    size_t count = 0;
    xen_pfn_t *gfns = calloc(request->pages, sizeof *gfns);
    uint32_t *places = calloc(request->pages, sizeof *places);
    int *found = calloc(request->pages, sizeof *found);
    bool *held = calloc(request->pages, sizeof *held);
    void *mapped = NULL;
    if (gfns && places && found && held) {
        for (size_t i = 0; i < request->pages; i++) {
            errors[i] = 0;
            held[i] = !window->missing[i] && take_hold(window->gfns[i]);
            if (held[i] && (de_holds_hints(link_holds(), window->gfns[i]) & DE_HOLDS_OUT))
                continue;
            gfns[count] = request->gfns[i];
            places[count++] = (uint32_t)i;
        }
        mapping_here = true;
        mapped = count ? next_functions()->map2(request->xen, request->domain, NULL, PROT_READ, 0, count,
                                                gfns, found)
                       : window;
        if (count && mapped)
            next_functions()->unmap(request->xen, mapped, count);
        mapping_here = false;
        for (size_t i = 0; i < count && mapped; i++) {
            errors[places[i]] = found[i];
            window->missing[places[i]] = found[i] && is_gone(found[i]);
        }
        for (size_t i = 0; i < request->pages; i++)
            if (held[i])
                de_holds_drop(link_holds(), window->gfns[i]);
    }
    free(gfns);
    free(places);
    free(found);
    free(held);
    end_alone();
    return mapped != NULL;
}

/* The lock is held. */
static bool list(struct window *window)
{
    bool listed = true;
    if (window_count == window_capacity) {
        size_t capacity = window_capacity ? 2 * window_capacity : 64;
        struct window **grown = realloc(windows, capacity * sizeof *grown);
        listed = grown != NULL;
        if (grown) {
            windows = grown;
            window_capacity = capacity;
        }
    }
    if (listed) {
        size_t place = place_of(window->from);
        memmove(&windows[place + 1], &windows[place], (window_count - place) * sizeof *windows);
        windows[place] = window;
        window_count++;
        if (window->from < atomic_load(&bounds.lowest))
            atomic_store(&bounds.lowest, window->from);
        if (window->from + window->pages * DE_PAGE_SIZE > atomic_load(&bounds.highest))
            atomic_store(&bounds.highest, window->from + window->pages * DE_PAGE_SIZE);
    }
    return listed;
}

/* Whether the pager is there, for this domain, or was, and may come back. */
static bool is_possible(uint32_t domain)
{
    pthread_mutex_lock(&lock);
    if (!bound) {
        bound = true;
        bound_domain = domain;
    }
    bool possible = domain == bound_domain && (link_continue(domain) != LINK_NONE || link_holds());
    pthread_mutex_unlock(&lock);
    return possible && faults_start();
}

void *windows_map(const struct request *request, int *errors)
{
    const int both = PROT_READ | PROT_WRITE;
    if ((request->protection & both) != both || request->pages < settings_get()->window_pages ||
        !is_possible(request->domain))
        return NULL;
    struct window *window = window_make(request);
    if (!window)
        return NULL;
    void *address = MAP_FAILED;
    if (probe(window, request, errors))
        address = faults_reserve(request->address, request->pages * DE_PAGE_SIZE, request->protection,
                                 request->flags);
    window->from = (uintptr_t)address;
    pthread_mutex_lock(&lock);
    bool listed = address != MAP_FAILED && list(window);
    pthread_mutex_unlock(&lock);
    if (listed)
        return address;
    if (address != MAP_FAILED)
        next_functions()->munmap(address, request->pages * DE_PAGE_SIZE);
    window_free(window);
    return NULL;
}

struct plain *windows_plain_begin(const struct request *request)
{
    if (!(request->protection & PROT_WRITE))
        return NULL;
    struct plain *plain = calloc(1, sizeof *plain + request->pages * sizeof plain->gfns[0]);
    if (!plain)
        return NULL;
    plain->pages = request->pages;
    for (size_t i = 0; i < request->pages; i++)
        plain->gfns[i] = request->gfns[i] > UINT32_MAX ? UINT32_MAX : (uint32_t)request->gfns[i];
    pthread_mutex_lock(&lock);
    if (!bound) {
        bound = true;
        bound_domain = request->domain;
    }
    bool ours = request->domain == bound_domain;
    while (attaching)
        pthread_cond_wait(&changed, &lock);
    plain->held = ours && link_holds();
    if (ours) {
        plain->next = plains;
        plains = plain;
    }
    workers++; /* who attaches waits until its holds are taken */
    pthread_mutex_unlock(&lock);
    for (size_t i = 0; i < plain->pages && plain->held; i++)
        take_hold(plain->gfns[i]);
    end_alone();
    if (ours)
        return plain;
    free(plain);
    return NULL;
}

static void drop_plain_holds(const struct plain *plain)
{
    for (size_t i = 0; i < plain->pages && plain->held; i++)
        de_holds_drop(link_holds(), plain->gfns[i]);
}

void windows_plain_made(struct plain *plain, void *address)
{
    if (!plain)
        return;
    pthread_mutex_lock(&lock);
    plain->from = (uintptr_t)address;
    if (address && plain->from < atomic_load(&bounds.lowest))
        atomic_store(&bounds.lowest, plain->from);
    if (address && plain->from + plain->pages * DE_PAGE_SIZE > atomic_load(&bounds.highest))
        atomic_store(&bounds.highest, plain->from + plain->pages * DE_PAGE_SIZE);
    struct plain **link = &plains;
    while (!address && *link != plain)
        link = &(*link)->next;
    if (!address) {
        *link = plain->next;
        drop_plain_holds(plain);
    }
    pthread_mutex_unlock(&lock);
    if (!address)
        free(plain);
}

static bool is_worked_on(const struct window *window)
{
    for (size_t i = 0; i < window->cluster_count; i++)
        if (window->clusters[i].working)
            return true;
    return false;
}

static void unlist(size_t place)
{
    window_count--;
    memmove(&windows[place], &windows[place + 1], (window_count - place) * sizeof *windows);
}

static uint64_t runs_of(const struct window *window)
{
    uint64_t runs = 0;
    for (size_t i = 0; i < window->cluster_count; i++)
        runs += window->clusters[i].runs;
    return runs;
}

/* Whoever comes meanwhile waits; the lock is held, and is not in between. */
static void cut(struct window *window)
{
    struct use use; /* until its end: it is mapped, and held, for ever */
    window->cut = CUT_UNDER_WAY;
    pthread_mutex_unlock(&lock);
    windows_prepare((const void *)window->from, window->pages * DE_PAGE_SIZE, &use);
    pthread_mutex_lock(&lock);
    window->cut = CUT_READY;
    pthread_cond_broadcast(&changed);
}

/* The lock is held, and is not while it waits. */
static struct window *take_windows(uintptr_t from, uintptr_t to)
{
    struct window *taken = NULL;
    for (;;) {
        size_t place = place_of(from);
        struct window *window = place < window_count && windows[place]->from < to ? windows[place] : NULL;
        if (!window)
            return taken;
        bool whole = from <= window->from && to >= window->from + window->pages * DE_PAGE_SIZE;
        if (window->cut == CUT_UNDER_WAY || is_worked_on(window)) {
            pthread_cond_wait(&changed, &lock);
        } else if (!whole && window->cut == CUT_NOT) {
            cut(window);
        } else {
            struct window **list = whole ? &taken : &left_overs;
            unlist(place);
            mapped_runs -= runs_of(window);
            window->next = *list;
            *list = window;
        }
    }
}

/* The lock is held. */
static struct plain *take_plains(uintptr_t from, uintptr_t to)
{
    struct plain *taken = NULL;
    for (struct plain **link = &plains; *link;) {
        struct plain *plain = *link;
        if (plain->from && from <= plain->from && plain->from + plain->pages * DE_PAGE_SIZE <= to) {
            *link = plain->next;
            plain->next = taken;
            taken = plain;
        } else {
            link = &plain->next;
        }
    }
    return taken;
}

static bool is_nothing(struct taken taken)
{
    return !taken.windows && !taken.plains;
}

struct taken windows_take_out(uintptr_t from, size_t bytes)
{
    pthread_mutex_lock(&lock);
    while (attaching)
        pthread_cond_wait(&changed, &lock);
    takings++;
    struct taken taken = {.windows = take_windows(from, from + bytes),
                          .plains = take_plains(from, from + bytes)};
    takings -= is_nothing(taken);
    pthread_mutex_unlock(&lock);
    return taken;
}

static void drop_window_holds(const struct window *window)
{
    for (size_t i = 0; i < window->cluster_count; i++)
        drop_holds(window->gfns + first_page(window, i), window->clusters[i].held);
}

void windows_forget(struct taken taken)
{
    if (is_nothing(taken))
        return;
    while (taken.windows) {
        struct window *window = taken.windows;
        taken.windows = window->next;
        drop_window_holds(window);
        window_free(window);
    }
    while (taken.plains) {
        struct plain *plain = taken.plains;
        taken.plains = plain->next;
        drop_plain_holds(plain);
        free(plain);
    }
    pthread_mutex_lock(&lock);
    takings--;
    pthread_mutex_unlock(&lock);
}

static void leave_over_window(struct window *window)
{
    window->next = left_overs;
    left_overs = window;
}

void windows_abandon(struct taken taken)
{
    if (is_nothing(taken))
        return;
    pthread_mutex_lock(&lock);
    while (taken.windows) {
        struct window *window = taken.windows;
        taken.windows = window->next;
        leave_over_window(window);
    }
    while (taken.plains) {
        struct plain *plain = taken.plains;
        taken.plains = plain->next;
        plain->next = left_over_plains;
        left_over_plains = plain;
    }
    takings--;
    pthread_mutex_unlock(&lock);
}

/* What is mapped and has no hold yet; the lock is held. */
static void hold_window(struct window *window)
{
    for (size_t i = 0; i < window->cluster_count; i++) {
        struct cluster *cluster = &window->clusters[i];
        for (uint64_t pages = cluster->mapped & ~cluster->held; pages; pages &= pages - 1) {
            unsigned bit = (unsigned)__builtin_ctzll(pages);
            if (take_hold(window->gfns[first_page(window, i) + bit]))
                cluster->held |= UINT64_C(1) << bit;
        }
    }
}

static void hold_plain(struct plain *plain)
{
    for (size_t i = 0; i < plain->pages && !plain->held; i++)
        take_hold(plain->gfns[i]);
    plain->held = true;
}

void windows_put_back(struct taken taken)
{
    pthread_mutex_lock(&lock);
    takings -= !is_nothing(taken);
    while (taken.windows) {
        struct window *window = taken.windows;
        taken.windows = window->next;
        if (link_holds())
            hold_window(window);
        mapped_runs += runs_of(window);
        if (list(window))
            continue;
        mapped_runs -= runs_of(window);
        leave_over_window(window);
    }
    while (taken.plains) {
        struct plain *plain = taken.plains;
        taken.plains = plain->next;
        if (link_holds())
            hold_plain(plain);
        plain->next = plains;
        plains = plain;
    }
    pthread_mutex_unlock(&lock);
}

/* Ageing. */

/* @param most Mappings: with more, it need not have been idle. */
static bool is_due(const struct cluster *cluster, uint64_t now, uint64_t most)
{
    uint64_t idle_ms = mapped_runs > most ? 0 : (uint64_t)settings_get()->idle_ms << cluster->patience;
    /* It may have been touched after `now` was taken. */
    return cluster->mapped && !cluster->working && !cluster->calls && now >= cluster->touched_ms + idle_ms;
}

/* Clusters that follow one another; the lock is held, and is not in between. */
static void empty(struct window *window, size_t first, size_t count)
{
    size_t pages = first_page(window, count - 1) + cluster_pages(window, first + count - 1);
    for (size_t i = 0; i < count; i++)
        begin(&window->clusters[first + i]);
    pthread_mutex_unlock(&lock);
    bool emptied =
        faults_empty((uint8_t *)cluster_from(window, first), pages * DE_PAGE_SIZE, window->protection);
    for (size_t i = first; i < first + count && emptied; i++)
        drop_holds(window->gfns + first_page(window, i), window->clusters[i].held);
    pthread_mutex_lock(&lock);
    uint64_t now = now_ms();
    for (size_t i = first; i < first + count; i++) {
        struct cluster *cluster = &window->clusters[i];
        if (emptied) {
            mapped_runs -= cluster->runs;
            cluster->mapped = cluster->held = 0;
            cluster->runs = 0;
            cluster->emptied_ms = now;
        }
        end(cluster);
    }
}

static void age(uint64_t now)
{
    /* With too many of them a mapping fails, and so does taking one away; far fewer, and this is rare. */
    uint64_t most = settings_get()->mappings;
    most = mapped_runs > most ? most / 2 : most;
    for (size_t place = 0; place < window_count; place++) {
        struct window *window = windows[place];
        for (size_t first = 0; first < window->cluster_count; first++) {
            size_t count = 0;
            while (first + count < window->cluster_count &&
                   is_due(&window->clusters[first + count], now, most))
                count++;
            if (!count)
                continue;
            uintptr_t from = window->from;
            empty(window, first, count);
            /* The list may be another one now: on with the window at this address, if there is one. */
            window = find(from);
            if (!window)
                break;
            place = place_of(from);
            first += count;
        }
    }
}

/* What holds there were, were in another table. */
static void hold_window_anew(struct window *window)
{
    for (size_t i = 0; i < window->cluster_count; i++)
        window->clusters[i].held = 0;
    hold_window(window);
}

static void hold_plains_anew(struct plain *list)
{
    for (struct plain *plain = list; plain; plain = plain->next) {
        plain->held = false;
        hold_plain(plain);
    }
}

/* The lock is held, nobody works, nothing is taken out: what is mapped stays mapped until its holds are
 * taken.
 */
static void take_all_holds(void)
{
    for (size_t place = 0; place < window_count; place++)
        hold_window_anew(windows[place]);
    for (struct window *window = left_overs; window; window = window->next)
        hold_window_anew(window);
    hold_plains_anew(plains);
    hold_plains_anew(left_over_plains);
}

static void look_for_pager(uint64_t now)
{
    if (!bound || now - link_looked_ms < LOOK_FOR_PAGER_MS)
        return;
    link_looked_ms = now;
    /* What is being unmapped is in no list: its holds could not be taken. So, the next time. */
    if (link_continue(bound_domain) != LINK_RECEIVED || takings)
        return;
    attaching = true;
    while (workers)
        pthread_cond_wait(&changed, &lock);
    has_lock = true;
    if (link_attach()) {
        take_all_holds();
        de_holds_complete(link_holds());
    }
    has_lock = false;
    attaching = false;
    pthread_cond_broadcast(&changed);
}

void windows_age(void)
{
    uint64_t now = now_ms();
    pthread_mutex_lock(&lock);
    look_for_pager(now);
    age(now);
    pthread_mutex_unlock(&lock);
}
