/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A pager whose page table, store and swap key are files, so that the next one can go on where this one ends,
 * however it ends.
 *
 * Taking over: the store finds its objects; each page table entry claims its object again; what then has no
 * claim goes. Entries that were in between (evicting, loading) are settled by asking the hypervisor. Last
 * come the events that were taken and not answered.
 */
#include "swap_in.h"

#include "../store/place.h"

#include <diffengine/status.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LOCK_NAME "lock"
#define KEY_NAME "swap-key"
#define PATH_BYTES 4096
#define BUSY_TRIES 2000u
#define BUSY_RETRY_NS 1000000

/** The object of a page whose object was not found: no store has it, so a fault halts the domain. */
#define OBJECT_LOST (DE_NONE - 1)

struct opening {
    const struct de_pager_state *state;
    const struct de_hypervisor *hypervisor;
    struct de_pager *pager; /**< NULL until made */
    int directory, lock;
    struct de_store *store;
    struct de_swap *swap;
    char *error;
    size_t capacity;
};

__attribute__((format(printf, 3, 4))) static int refuse(struct opening *opening, int status,
                                                        const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (opening->capacity)
        vsnprintf(opening->error, opening->capacity, format, arguments);
    va_end(arguments);
    return status;
}

/* Evicted pages' content is as secret as the guest: nobody else may look into the directory. */
static int open_directory(struct opening *opening)
{
    const char *path = opening->state->directory;
    struct stat status;
    opening->directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (opening->directory < 0 || fstat(opening->directory, &status))
        return refuse(opening, DE_SYSTEM, "state directory %s: %s", path, strerror(errno));
    if (status.st_uid != geteuid() || status.st_mode & 077)
        return refuse(opening, DE_INVALID, "state directory %s: must belong to this user, mode 0700", path);
    opening->lock = openat(opening->directory, LOCK_NAME, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (opening->lock >= 0 && fcntl(opening->lock, F_SETLK, &lock) == 0)
        return DE_OK;
    if (opening->lock >= 0 && (errno == EACCES || errno == EAGAIN))
        return refuse(opening, DE_BUSY, "state directory %s: another pager uses it", path);
    return refuse(opening, DE_SYSTEM, "%s/" LOCK_NAME ": %s", path, strerror(errno));
}

/* Until @p visit gives something else than DE_OK, which is the result. */
static int for_each_table(struct opening *opening, int (*visit)(struct opening *opening, uint16_t domain))
{
    int status = DE_OK;
    uint16_t domain;
    int fd = openat(opening->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (fd >= 0 && !directory)
        close(fd);
    if (!directory)
        return refuse(opening, DE_SYSTEM, "%s: %s", opening->state->directory, strerror(errno));
    for (struct dirent *entry; status == DE_OK && (entry = readdir(directory));)
        if (table_name_domain(entry->d_name, &domain))
            status = visit(opening, domain);
    closedir(directory);
    return status;
}

static int is_there(struct opening *opening, uint16_t domain)
{
    (void)opening;
    (void)domain;
    return DE_BUSY;
}

static int open_store(struct opening *opening)
{
    const struct store_place place = {
        .directory = opening->directory,
        .path = opening->state->directory,
        .hypervisor = opening->hypervisor,
        .max_bytes = opening->state->store_bytes,
        .in_domain = opening->state->store_domain,
    };
    const char *name;
    bool needed = for_each_table(opening, is_there) != DE_OK;
    int status = store_place_open(&place, needed, &opening->store, &name);
    if (status == DE_OK)
        return DE_OK;
    opening->store = NULL;
    const char *why = status == DE_SYSTEM || status == DE_FULL ? strerror(errno) : de_status_text(status);
    return refuse(opening, status, "%s/%s: %s", place.path, name,
                  status == DE_INVALID ? "this hypervisor has no store domain" : why);
}

static int open_swap(struct opening *opening)
{
    char key[PATH_BYTES];
    if (!opening->state->swap_path)
        return DE_OK;
    snprintf(key, sizeof key, "%s/" KEY_NAME, opening->state->directory);
    struct de_swap_options options = {.path = opening->state->swap_path,
                                      .bytes = opening->state->swap_bytes,
                                      .key_path = key,
                                      .disk = opening->state->swap_disk};
    int status = de_swap_open(&options, &opening->swap);
    if (status == DE_OK)
        return DE_OK;
    return refuse(opening, status, "swap file %s of %llu bytes: %s", options.path,
                  (unsigned long long)options.bytes,
                  status == DE_SYSTEM ? strerror(errno) : de_status_text(status));
}

/* Give the entry its claim on its object back. */
static struct entry claim(struct de_pager *pager, struct entry entry)
{
    if (entry.state == DE_PAGE_NOMINATING)
        entry = entry_watched_anew(entry); /* whether or not it came to that */
    if (entry.state == DE_PAGE_RESIDENT || entry.state == DE_PAGE_WATCHED) {
        entry.object = DE_NONE;
        return entry;
    }
    if (entry.state > DE_PAGE_NOMINATING)
        entry = (struct entry){.object = OBJECT_LOST, .state = DE_PAGE_EVICTED};
    if (entry.object == DE_NONE || de_store_retain(pager->store, entry.object) != DE_OK)
        entry.object = OBJECT_LOST;
    return entry;
}

/*
 * What an in-between entry is now. A load without a buffer changes nothing but a page that still has its
 * frame: 0: it had, and is resident; EINVAL: it is out; ENOENT: resident *or still nominated*, and "watched"
 * is right for both. The object is given back unless the page is out.
 */
static void settle(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn)
{
    struct entry entry = entry_get(domain, gfn);
    struct entry after = entry;
    if (entry.state != DE_PAGE_EVICTING && entry.state != DE_PAGE_LOADING)
        return;
    after.state = DE_PAGE_EVICTED;
    int error = HYPERCALL(pager, paging_load, domain->id, gfn, NULL);
    if (error == 0)
        after = entry_resident(entry);
    else if (error == -ENOENT)
        after = entry_watched_anew(entry);
    entry_change(pager, domain, gfn, entry, after);
    if (after.object == DE_NONE && entry.object != OBJECT_LOST)
        de_store_release(pager->store, entry.object);
}

/* Which of the recorded events still want an answer, and how far the ring is. */
static void settle_events(struct de_pager *pager, struct pager_domain *domain, uint32_t answered)
{
    struct ring_record *ring = &domain->table.header->ring;
    for (unsigned slot = 0; slot < DE_RING_SLOTS; slot++) {
        struct recorded_event *recorded = &ring->events[slot];
        bool counted = (int32_t)(recorded->position - ring->taken) < 0;
        bool done = recorded->state == RECORD_ANSWERING && answered != recorded->answered_before;
        if (recorded->state == RECORD_FREE || !counted || done) {
            recorded->state = RECORD_FREE;
            continue;
        }
        recorded->state = RECORD_TAKEN;
        domain->phases[slot] = EVENT_RETRY;
        pager->retries++;
    }
    /* The ring offers all events after its last answer again: those on record are skipped. */
    uint32_t known = ring->taken - answered;
    struct de_vm_event untrusted_event;
    for (uint32_t i = 0; i < known && known <= DE_RING_SLOTS; i++)
        HYPERCALL(pager, ring_take, domain->id, &untrusted_event);
    if (known > DE_RING_SLOTS)
        ring->taken = answered;
    ring->answered = answered;
}

static void claim_entries(struct de_pager *pager, struct pager_domain *domain)
{
    for (uint32_t gfn = 0; gfn < domain->gfns; gfn++) {
        struct entry entry = claim(pager, entry_get(domain, gfn));
        atomic_store(&domain->entries[gfn], entry_pack(entry));
        atomic_fetch_add(&pager->states[entry.state], 1);
    }
}

/* A damaged table is replaced: nobody keeps the new one, so the domain is not evicted from until somebody
 * does. */
static int take_holds(struct opening *opening, struct pager_domain *domain)
{
    const struct de_uuid *uuid = &domain->table.header->uuid;
    struct de_holds *holds;
    int status = de_holds_reopen(opening->directory, domain->id, uuid, domain->gfns, &holds);
    if (status == DE_NOT_FOUND || status == DE_CORRUPT)
        status = de_holds_create(opening->directory, domain->id, uuid, domain->gfns, &holds);
    if (status == DE_OK)
        pager_set_holds(opening->pager, domain, holds);
    return status;
}

/* We have the state directory's lock, so the former pager is dead; but the machine may hear of that later. */
static int take_ring(struct de_pager *pager, uint16_t id, uint32_t *answered)
{
    int error = -EBUSY;
    for (unsigned tries = 0; error == -EBUSY && tries < BUSY_TRIES; tries++) {
        if (tries)
            nanosleep(&(struct timespec){.tv_nsec = BUSY_RETRY_NS}, NULL);
        error = HYPERCALL(pager, paging_take_over, id, answered);
    }
    return error;
}

/* Nothing of that domain is out: it is gone, or was not paged yet. Or the id is another one's by now. */
static int forget_files(const struct opening *opening, uint16_t id)
{
    de_holds_remove(opening->directory, id);
    table_remove(opening->directory, id);
    return DE_OK;
}

static int refuse_domain(struct opening *opening, uint16_t id, int error)
{
    if (error == -EBUSY)
        return refuse(opening, DE_BUSY, "domain %u: its pager is alive", id);
    errno = -error;
    return refuse(opening, DE_SYSTEM, "taking over domain %u: %s", id, strerror(errno));
}

/* A file that is no table: of a pager that died when it made it, unless the ring says that pages may be out.
 */
static int take_damaged(struct opening *opening, uint16_t id)
{
    uint32_t answered;
    int error = take_ring(opening->pager, id, &answered);
    if (error == -ESRCH || error == -EINVAL)
        return forget_files(opening, id);
    if (error)
        return refuse_domain(opening, id, error);
    /* Its pages can't be told apart any more; the others' can. */
    HYPERCALL(opening->pager, pause, id);
    return DE_OK;
}

static int adopt(struct opening *opening, uint16_t id, struct table *table, uint32_t answered)
{
    struct pager_domain *domain;
    int status = pager_adopt(opening->pager, id, table, &domain);
    if (status != DE_OK) {
        table_close(table);
        return refuse(opening, status, "domain %u: %s", id, de_status_text(status));
    }
    atomic_store(&domain->halted, table->header->failure[0] != 0);
    claim_entries(opening->pager, domain);
    if (table->header->flags & TABLE_DEVICE_MODEL) {
        int taken = take_holds(opening, domain);
        if (taken != DE_OK)
            return refuse(opening, taken, "hold table of domain %u: %s", id, de_status_text(taken));
    }
    settle_events(opening->pager, domain, answered);
    return DE_OK;
}

/* Its ring is out of reach for good (the price of hiding it): what is out can't come back. Others can be
 * served. */
static int give_up(struct opening *opening, uint16_t id, struct table *table)
{
    snprintf(table->header->failure, sizeof table->header->failure,
             "domain %u is paused: its pager died, and its event ring can't be taken over; destroy it", id);
    HYPERCALL(opening->pager, pause, id);
    table_close(table);
    return DE_OK;
}

/* @return DE_OK also if there is nothing left to take over. */
static int take_domain(struct opening *opening, uint16_t id)
{
    struct de_pager *pager = opening->pager;
    struct table table;
    uint32_t answered = 0;
    int status = table_open(opening->directory, id, &table);
    if (status == DE_CORRUPT)
        return take_damaged(opening, id);
    if (status != DE_OK)
        return refuse(opening, status, "page table of domain %u: %s", id, de_status_text(status));
    int error = pager_domain_lives(pager, id, &table.header->uuid);
    if (!error)
        error = take_ring(pager, id, &answered);
    if (!error)
        return adopt(opening, id, &table, answered);
    if (error == -EOPNOTSUPP)
        return give_up(opening, id, &table);
    table_close(&table);
    /* EINVAL: the table was there before the ring was, or after it. */
    return error == -ESRCH || error == -EINVAL ? forget_files(opening, id)
                                               : refuse_domain(opening, id, error);
}

static int make_pager(struct opening *opening, const struct de_hypervisor *hypervisor)
{
    int status = de_pager_create(opening->store, hypervisor, &opening->pager);
    if (status == DE_OK) {
        opening->pager->directory = opening->directory;
        opening->pager->directory_lock = opening->lock;
        if (opening->swap)
            status = de_pager_attach_swap(opening->pager, opening->swap);
    }
    if (status == DE_OK)
        status = for_each_table(opening, take_domain);
    else
        refuse(opening, status, "making the pager: %s", de_status_text(status));
    if (status != DE_OK)
        return status;
    de_store_sweep(opening->store);
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS; i++) {
        struct pager_domain *domain = opening->pager->domains[i];
        for (uint32_t gfn = 0; domain && gfn < domain->gfns; gfn++)
            settle(opening->pager, domain, gfn);
    }
    opening->pager->owns_state = true;
    return DE_OK;
}

static void close_state(int directory, int lock, struct de_store *store, struct de_swap *swap)
{
    de_store_close(store);
    de_swap_close(swap);
    if (lock >= 0)
        close(lock);
    if (directory >= 0)
        close(directory);
}

int de_pager_open(const struct de_pager_state *state, const struct de_hypervisor *hypervisor,
                  struct de_pager **pager, char *error, size_t capacity)
{
    struct opening opening = {.state = state,
                              .hypervisor = hypervisor,
                              .directory = -1,
                              .lock = -1,
                              .error = error,
                              .capacity = capacity};
    int status = open_directory(&opening);
    if (status == DE_OK)
        status = open_store(&opening);
    if (status == DE_OK)
        status = open_swap(&opening);
    if (status == DE_OK)
        status = make_pager(&opening, hypervisor);
    if (status == DE_OK) {
        *pager = opening.pager;
        return DE_OK;
    }
    int saved = errno;
    if (opening.pager)
        pager_unmake(opening.pager);
    close_state(opening.directory, opening.lock, opening.store, opening.swap);
    errno = saved;
    return status;
}

static bool any_domain(const struct de_pager *pager)
{
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS; i++)
        if (pager->domains[i])
            return true;
    return false;
}

void de_pager_leave(struct de_pager *pager)
{
    if (!pager)
        return;
    int directory = pager->directory, lock = pager->directory_lock;
    struct de_hypervisor hypervisor = pager->hypervisor;
    bool unused = pager->owns_state && !any_domain(pager);
    struct de_store *store = pager->owns_state ? pager->store : NULL;
    struct de_swap *swap = pager->owns_state ? pager->swap : NULL;
    pager_unmake(pager);
    de_store_close(store);
    /* A domain that nobody needs would stand in the way of a host that shuts down. */
    if (unused)
        store_place_remove(directory, &hypervisor);
    close_state(directory, lock, NULL, swap);
}

void pager_remove_state(struct de_pager *pager)
{
    if (!pager->owns_state)
        return;
    unlinkat(pager->directory, KEY_NAME, 0);
    unlinkat(pager->directory, LOCK_NAME, 0);
}

struct de_store *de_pager_store(struct de_pager *pager)
{
    return pager->store;
}

struct de_swap *de_pager_swap(struct de_pager *pager)
{
    return pager->swap;
}
