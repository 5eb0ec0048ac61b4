/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The pager as a whole: its domains, its page table's entries, its threads, and what it tells of itself. */
#include "bring_in.h"
#include "refusal.h"
#include "released.h"
#include "swap_in.h"

#include <diffengine/status.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define GENERATION_MASK 0x1fffffffu
#define RELEASE_PAUSE_NS 5000000

bool entry_change(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn, struct entry from,
                  struct entry to)
{
    uint64_t expected = entry_pack(from);
    if (!atomic_compare_exchange_strong(&domain->entries[gfn], &expected, entry_pack(to)))
        return false;
    atomic_fetch_sub_explicit(&pager->states[from.state], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&pager->states[to.state], 1, memory_order_relaxed);
    return true;
}

struct entry entry_resident(struct entry entry)
{
    return (struct entry){
        .object = DE_NONE,
        .state = DE_PAGE_RESIDENT,
        .generation = (entry.generation + 1) & GENERATION_MASK,
    };
}

struct entry entry_watched_anew(struct entry entry)
{
    struct entry watched = entry_resident(entry);
    watched.state = DE_PAGE_WATCHED;
    return watched;
}

/* The lock is held. */
static struct pager_domain **find_slot(struct de_pager *pager, uint16_t id)
{
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS; i++)
        if (pager->domains[i] && pager->domains[i]->id == id)
            return &pager->domains[i];
    return NULL;
}

struct pager_domain *pager_domain_get(struct de_pager *pager, uint16_t id)
{
    pthread_mutex_lock(&pager->lock);
    struct pager_domain **slot = find_slot(pager, id);
    struct pager_domain *domain = slot ? *slot : NULL;
    if (domain)
        domain->references++;
    pthread_mutex_unlock(&pager->lock);
    return domain;
}

struct pager_domain *pager_domain_at(struct de_pager *pager, size_t index)
{
    pthread_mutex_lock(&pager->lock);
    struct pager_domain *domain = pager->domains[index];
    if (domain)
        domain->references++;
    pthread_mutex_unlock(&pager->lock);
    return domain;
}

void pager_domain_put(struct de_pager *pager, struct pager_domain *domain)
{
    pthread_mutex_lock(&pager->lock);
    if (--domain->references == 0)
        pthread_cond_broadcast(&pager->changed);
    pthread_mutex_unlock(&pager->lock);
}

int pager_domain_lives(struct de_pager *pager, uint16_t id, const struct de_uuid *uuid)
{
    struct de_uuid now;
    int error = HYPERCALL(pager, domain_uuid, id, &now);
    return error ? error : memcmp(&now, uuid, sizeof now) ? -ESRCH : 0;
}

static int domain_lives(struct de_pager *pager, const struct pager_domain *domain)
{
    return pager_domain_lives(pager, domain->id, &domain->table.header->uuid);
}

void pager_halt(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn, const char *why)
{
    if (atomic_exchange(&domain->halted, true))
        return;
    pthread_mutex_lock(&pager->lock);
    snprintf(domain->table.header->failure, sizeof domain->table.header->failure,
             "domain %u is paused: the page at gfn %#x can't be brought back: %.60s", domain->id, gfn, why);
    pthread_mutex_unlock(&pager->lock);
    if (domain_lives(pager, domain) != -ESRCH)
        HYPERCALL(pager, pause, domain->id);
}

void pager_retire(struct de_pager *pager, uint32_t object)
{
    pthread_mutex_lock(&pager->lock);
    bool room = pager->retired_count < RETIRED_CAPACITY;
    if (room)
        pager->retired[(pager->retired_first + pager->retired_count++) % RETIRED_CAPACITY] = object;
    pthread_mutex_unlock(&pager->lock);
    /* 65,536 behind: now the fault path has to wait for the store's lock itself. */
    if (!room)
        de_store_release(pager->store, object);
}

void pager_release_soon(struct de_pager *pager)
{
    pthread_mutex_lock(&pager->lock);
    if (pager->retired_count && pager->retirer_sleeps) {
        pager->retirer_sleeps = false;
        pthread_cond_signal(&pager->some_retired);
    }
    pthread_mutex_unlock(&pager->lock);
}

size_t de_pager_retire(struct de_pager *pager, size_t limit)
{
    size_t done = 0;
    for (; done < limit; done++) {
        pthread_mutex_lock(&pager->lock);
        bool some = pager->retired_count > 0;
        uint32_t object = pager->retired[pager->retired_first];
        if (some) {
            pager->retired_first = (pager->retired_first + 1) % RETIRED_CAPACITY;
            pager->retired_count--;
        }
        pthread_mutex_unlock(&pager->lock);
        if (!some)
            break;
        de_store_release(pager->store, object);
    }
    return done;
}

int de_pager_create(struct de_store *store, const struct de_hypervisor *hypervisor, struct de_pager **result)
{
    struct de_pager *pager = calloc(1, sizeof *pager);
    if (!pager)
        return DE_NO_MEMORY;
    pager->store = store;
    pager->hypervisor = *hypervisor;
    pager->directory = pager->directory_lock = -1;
    int status = de_rebuilder_create(store, &pager->server.rebuilder);
    if (status == DE_OK)
        status = de_rebuilder_create(store, &pager->proposer.rebuilder);
    if (status != DE_OK) {
        de_rebuilder_free(pager->server.rebuilder);
        free(pager);
        return status;
    }
    pthread_mutex_init(&pager->proposals, NULL);
    pthread_mutex_init(&pager->lock, NULL);
    pthread_cond_init(&pager->changed, NULL);
    pthread_cond_init(&pager->some_retired, NULL);
    *result = pager;
    return DE_OK;
}

static size_t domain_bytes(const struct pager_domain *domain)
{
    const struct de_holds *holds = atomic_load(&domain->holds);
    return sizeof *domain + domain->table.bytes + (holds ? de_holds_bytes(holds) : 0) +
           (domain->swap_in ? sizeof *domain->swap_in + DE_REBUILD_MAX_SWAPPED * DE_PAGE_SIZE : 0);
}

static void stop_bringing_in(struct pager_domain *domain)
{
    if (domain->bring_in)
        bring_in_stop(domain->bring_in);
    bring_in_free(domain->bring_in);
    domain->bring_in = NULL;
}

/* A device model's requests, if there is one and requests are served at all. 0 or an errno value. */
static int start_bringing_in(struct de_pager *pager, struct pager_domain *domain)
{
    if (!atomic_load(&domain->holds) || domain->bring_in)
        return 0;
    int status = bring_in_create(pager, domain, &domain->bring_in);
    if (status != DE_OK)
        return status == DE_SYSTEM ? errno : ENOMEM;
    int error = bring_in_start(domain->bring_in);
    /* Without a thread it must not look as if there were one: the next call is to try again. */
    if (error)
        stop_bringing_in(domain);
    return error;
}

static void domain_free(struct pager_domain *domain)
{
    if (!domain)
        return;
    stop_bringing_in(domain);
    swap_in_free(domain->swap_in);
    de_holds_close(atomic_load(&domain->holds));
    table_close(&domain->table);
    free(domain);
}

/* A domain around a table that it takes over. */
static int domain_make(struct de_pager *pager, uint16_t id, const struct table *table,
                       struct pager_domain **result)
{
    struct pager_domain *domain = calloc(1, sizeof *domain);
    int status = domain ? DE_OK : DE_NO_MEMORY;
    if (domain && pager->swap)
        status = swap_in_create(pager, NULL, &domain->swap_in);
    if (status != DE_OK) {
        free(domain);
        return status;
    }
    domain->id = id;
    domain->gfns = table->header->gfns;
    domain->references = 1;
    domain->table = *table;
    domain->entries = table->entries;
    *result = domain;
    return DE_OK;
}

/* Proposals are locked, so nobody else adds or removes. */
static int domain_list(struct de_pager *pager, struct pager_domain *domain)
{
    pthread_mutex_lock(&pager->lock);
    size_t place = 0;
    while (place < DE_PAGER_MAX_DOMAINS && pager->domains[place])
        place++;
    if (place < DE_PAGER_MAX_DOMAINS)
        pager->domains[place] = domain;
    pthread_mutex_unlock(&pager->lock);
    if (place == DE_PAGER_MAX_DOMAINS)
        return DE_FULL;
    atomic_fetch_add(&pager->table_bytes, domain_bytes(domain));
    return DE_OK;
}

static void domain_unlist(struct de_pager *pager, struct pager_domain *domain)
{
    pthread_mutex_lock(&pager->lock);
    *find_slot(pager, domain->id) = NULL;
    domain->references--;
    while (domain->references)
        pthread_cond_wait(&pager->changed, &pager->lock);
    pthread_mutex_unlock(&pager->lock);
    stop_bringing_in(domain);
    if (domain->swap_in)
        swap_in_stop(domain->swap_in);
    atomic_fetch_sub(&pager->table_bytes, domain_bytes(domain));
}

int pager_adopt(struct de_pager *pager, uint16_t id, const struct table *table, struct pager_domain **result)
{
    struct pager_domain *domain;
    int status = domain_make(pager, id, table, &domain);
    if (status != DE_OK)
        return status;
    status = domain_list(pager, domain);
    if (status == DE_OK) {
        *result = domain;
        return DE_OK;
    }
    domain->table.header = NULL;
    domain_free(domain);
    return status;
}

/* The ring, from its present state on. */
static int enable(struct de_pager *pager, struct pager_domain *domain)
{
    struct ring_record *ring = &domain->table.header->ring;
    uint32_t answered = 0;
    int error = HYPERCALL(pager, paging_enable, domain->id);
    if (!error)
        error = HYPERCALL(pager, paging_take_over, domain->id, &answered);
    ring->taken = ring->answered = answered;
    return refuse_paging(pager, domain->id, error);
}

/* Unlink and free; proposals are locked, so only a server may still hold the domain. */
static void domain_forget(struct de_pager *pager, struct pager_domain *domain)
{
    domain_unlist(pager, domain);
    for (uint32_t gfn = 0; gfn < domain->gfns; gfn++) {
        struct entry entry = entry_get(domain, gfn);
        entry_change(pager, domain, gfn, entry, entry_resident(entry));
        if (entry.object != DE_NONE)
            de_store_release(pager->store, entry.object);
    }
    de_holds_remove(pager->directory, domain->id);
    table_remove(pager->directory, domain->id);
    domain_free(domain);
}

static int add_domain(struct de_pager *pager, uint16_t id, uint32_t gfns)
{
    struct de_uuid uuid;
    struct table table;
    struct pager_domain *domain;
    int status = refuse_paging(pager, id, HYPERCALL(pager, domain_uuid, id, &uuid));
    if (status == DE_OK && released_has(pager->directory, id, &uuid))
        return refuse(pager, DE_BUSY, "domain %u: it was released: diffengine release --undo %u", id, id);
    if (status != DE_OK)
        return status;
    status = table_create(pager->directory, id, &uuid, gfns, &table);
    if (status != DE_OK)
        return refuse(pager, status,
                      "domain %u: no page table of %u pages: %s: give the state directory's tmpfs more", id,
                      gfns, status == DE_SYSTEM ? strerror(errno) : de_status_text(status));
    status = pager_adopt(pager, id, &table, &domain);
    if (status != DE_OK) {
        table_close(&table);
        table_remove(pager->directory, id);
        return status == DE_FULL
                   ? refuse(pager, status, "domain %u: there are %u domains already, which is the most", id,
                            DE_PAGER_MAX_DOMAINS)
                   : status;
    }
    int error = pager->started && domain->swap_in ? swap_in_start(domain->swap_in) : 0;
    status = error ? DE_SYSTEM : enable(pager, domain);
    if (error)
        errno = error;
    if (status == DE_OK)
        return DE_OK;
    error = errno;
    domain_forget(pager, domain);
    errno = error;
    return status;
}

/* Make room for a domain, where one may be listed that had its id before and is gone. */
static int make_way(struct de_pager *pager, uint16_t id)
{
    struct pager_domain *former = pager_domain_get(pager, id);
    if (!former)
        return DE_OK;
    int error = domain_lives(pager, former);
    pager_domain_put(pager, former);
    if (error != -ESRCH)
        return refuse(pager, DE_BUSY, "domain %u: it has this pager already", id);
    domain_forget(pager, former);
    return DE_OK;
}

int de_pager_add_domain(struct de_pager *pager, uint16_t id, uint32_t gfns)
{
    if (!gfns)
        return DE_INVALID;
    pthread_mutex_lock(&pager->proposals);
    int status = make_way(pager, id);
    if (status == DE_OK)
        status = add_domain(pager, id, gfns);
    pthread_mutex_unlock(&pager->proposals);
    return status;
}

/* A live domain with a page out, or nominated, would crash at its next touch once the ring is gone. */
static int disable(struct de_pager *pager, struct pager_domain *domain)
{
    int error = domain_lives(pager, domain);
    if (error == -ESRCH)
        return DE_OK;
    if (error)
        return refuse(pager, DE_BUSY, "domain %u: whether it lives can't be told: %s", domain->id,
                      strerror(-error));
    for (uint32_t gfn = 0; gfn < domain->gfns; gfn++)
        if (entry_get(domain, gfn).state != DE_PAGE_RESIDENT)
            return refuse(pager, DE_BUSY, "domain %u: it has pages out, or watched: bring them back first",
                          domain->id);
    if (HYPERCALL(pager, paging_disable, domain->id) != -EBUSY)
        return DE_OK;
    return refuse(pager, DE_BUSY, "domain %u: its vCPUs wait for the pager: try again", domain->id);
}

int de_pager_remove_domain(struct de_pager *pager, uint16_t id)
{
    struct de_uuid uuid;
    pthread_mutex_lock(&pager->proposals);
    int status = DE_NOT_FOUND;
    struct pager_domain *domain = pager_domain_get(pager, id);
    if (domain) {
        status = disable(pager, domain);
        pager_domain_put(pager, domain);
        if (status == DE_OK)
            domain_forget(pager, domain);
    }
    /* That it was released matters as long as it lives. */
    if (HYPERCALL(pager, domain_uuid, id, &uuid) == -ESRCH)
        released_remove(pager->directory, id);
    pthread_mutex_unlock(&pager->proposals);
    return status;
}

static bool has_pages_out(struct pager_domain *domain)
{
    for (uint32_t gfn = 0; gfn < domain->gfns; gfn++)
        if (entry_get(domain, gfn).object != DE_NONE)
            return true;
    return false;
}

void de_pager_remove_idle(struct de_pager *pager)
{
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS; i++) {
        struct pager_domain *domain = pager->domains[i];
        if (!domain || has_pages_out(domain))
            continue;
        uint16_t id = domain->id;
        /* Pages may be watched. */
        if (de_pager_restore(pager, id) == DE_OK)
            de_pager_remove_domain(pager, id);
    }
}

int de_pager_release(struct de_pager *pager, uint16_t id)
{
    struct de_uuid uuid;
    int error = HYPERCALL(pager, domain_uuid, id, &uuid);
    if (error || pager->directory < 0)
        return error ? refuse_paging(pager, id, error) : DE_INVALID;
    int status = released_add(pager->directory, id, &uuid);
    if (status == DE_OK)
        status = de_pager_restore(pager, id);
    if (status == DE_OK)
        status = de_pager_remove_domain(pager, id);
    /* One that was not paged is not to be paged from now on, either. */
    if (status == DE_NOT_FOUND)
        status = DE_OK;
    if (status != DE_OK)
        released_remove(pager->directory, id);
    return status;
}

int de_pager_take_back(struct de_pager *pager, uint16_t id)
{
    struct de_uuid uuid;
    int error = HYPERCALL(pager, domain_uuid, id, &uuid);
    if (error)
        return refuse_paging(pager, id, error);
    released_remove(pager->directory, id);
    return DE_OK;
}

static void *server_thread(void *argument)
{
    struct de_pager *pager = argument;
    while (!atomic_load(&pager->stop) && !atomic_load(&pager->gone))
        pager_serve_round(pager, UINT64_MAX);
    return NULL;
}

static void *retire_thread(void *argument)
{
    struct de_pager *pager = argument;
    while (!atomic_load(&pager->stop)) {
        pthread_mutex_lock(&pager->lock);
        pager->retirer_sleeps = true;
        while (!pager->retired_count && !atomic_load(&pager->stop))
            pthread_cond_wait(&pager->some_retired, &pager->lock);
        pager->retirer_sleeps = false;
        pthread_mutex_unlock(&pager->lock);
        /* The guest that has its page back comes first, perhaps on this very processor. */
        nanosleep(&(struct timespec){.tv_nsec = RELEASE_PAUSE_NS}, NULL);
        de_pager_retire(pager, RETIRED_CAPACITY);
    }
    return NULL;
}

static void request_stop(struct de_pager *pager)
{
    pthread_mutex_lock(&pager->lock);
    atomic_store(&pager->stop, true);
    pthread_cond_broadcast(&pager->some_retired);
    pthread_mutex_unlock(&pager->lock);
    HYPERCALL(pager, interrupt);
}

static void stop_domains(struct de_pager *pager)
{
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS; i++) {
        if (!pager->domains[i])
            continue;
        stop_bringing_in(pager->domains[i]);
        if (pager->domains[i]->swap_in)
            swap_in_stop(pager->domains[i]->swap_in);
    }
}

static int start_domains(struct de_pager *pager)
{
    int error = 0;
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS && !error; i++) {
        struct pager_domain *domain = pager->domains[i];
        if (domain && domain->swap_in)
            error = swap_in_start(domain->swap_in);
    }
    return error;
}

int de_pager_serve_requests(struct de_pager *pager)
{
    int error = 0;
    pthread_mutex_lock(&pager->proposals);
    pager->serves_requests = true;
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS && !error; i++)
        if (pager->domains[i])
            error = start_bringing_in(pager, pager->domains[i]);
    pthread_mutex_unlock(&pager->proposals);
    errno = error;
    return error ? DE_SYSTEM : DE_OK;
}

static int start_threads(struct de_pager *pager)
{
    int error = pthread_create(&pager->server_thread, NULL, server_thread, pager);
    if (error)
        return error;
    error = pthread_create(&pager->retire_thread, NULL, retire_thread, pager);
    if (error) {
        request_stop(pager);
        pthread_join(pager->server_thread, NULL);
    }
    return error;
}

int de_pager_start(struct de_pager *pager)
{
    if (pager->started)
        return DE_BUSY;
    atomic_store(&pager->stop, false);
    pthread_mutex_lock(&pager->proposals);
    int error = start_domains(pager);
    if (!error)
        error = start_threads(pager);
    if (error)
        stop_domains(pager);
    pager->started = !error;
    pthread_mutex_unlock(&pager->proposals);
    errno = error;
    return error ? DE_SYSTEM : DE_OK;
}

void de_pager_stop(struct de_pager *pager)
{
    if (!pager->started)
        return;
    request_stop(pager);
    pthread_join(pager->server_thread, NULL);
    pthread_join(pager->retire_thread, NULL);
    pthread_mutex_lock(&pager->proposals);
    pager->started = false;
    pager->serves_requests = false;
    stop_domains(pager);
    pthread_mutex_unlock(&pager->proposals);
}

bool de_pager_gone(struct de_pager *pager)
{
    return atomic_load(&pager->gone);
}

int de_pager_attach_swap(struct de_pager *pager, struct de_swap *swap)
{
    int status = DE_BUSY;
    pthread_mutex_lock(&pager->proposals);
    if (!pager->swap && !atomic_load(&pager->table_bytes))
        status = de_swap_channel_create(swap, DE_STORE_SWAP_BATCH, &pager->proposer.channel);
    if (status == DE_OK) {
        status = de_store_reader_create(pager->store, &pager->swapper);
        if (status == DE_OK)
            status = de_store_attach_swap(pager->store, swap);
        if (status == DE_OK) {
            pager->swap = swap;
        } else {
            de_store_reader_free(pager->swapper);
            de_swap_channel_free(pager->proposer.channel);
            pager->swapper = NULL;
            pager->proposer.channel = NULL;
        }
    }
    pthread_mutex_unlock(&pager->proposals);
    return status;
}

void pager_unmake(struct de_pager *pager)
{
    de_pager_stop(pager);
    de_pager_retire(pager, RETIRED_CAPACITY);
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS; i++)
        domain_free(pager->domains[i]);
    de_rebuilder_free(pager->server.rebuilder);
    de_rebuilder_free(pager->proposer.rebuilder);
    de_swap_channel_free(pager->proposer.channel);
    de_store_reader_free(pager->swapper);
    pthread_cond_destroy(&pager->some_retired);
    pthread_cond_destroy(&pager->changed);
    pthread_mutex_destroy(&pager->lock);
    pthread_mutex_destroy(&pager->proposals);
    free(pager);
}

void de_pager_free(struct de_pager *pager)
{
    if (!pager)
        return;
    de_pager_stop(pager);
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS; i++) {
        if (!pager->domains[i])
            continue;
        if (domain_lives(pager, pager->domains[i]) != -ESRCH)
            HYPERCALL(pager, paging_disable, pager->domains[i]->id);
        domain_forget(pager, pager->domains[i]);
    }
    pager_remove_state(pager);
    de_pager_leave(pager);
}

/* What a server changes meanwhile it notes once the table is there; what it changed before is seen here. */
void pager_set_holds(struct de_pager *pager, struct pager_domain *domain, struct de_holds *holds)
{
    atomic_store(&domain->holds, holds);
    atomic_fetch_add(&pager->table_bytes, de_holds_bytes(holds));
    for (uint32_t gfn = 0; gfn < domain->gfns; gfn++) {
        if (entry_get(domain, gfn).object == DE_NONE)
            continue;
        de_holds_note(holds, gfn, DE_HOLDS_OUT, true);
        if (entry_get(domain, gfn).object == DE_NONE)
            de_holds_note(holds, gfn, DE_HOLDS_OUT, false);
    }
}

static int give_holds(struct de_pager *pager, struct pager_domain *domain)
{
    struct de_holds *holds = NULL;
    if (atomic_load(&domain->holds))
        return DE_OK;
    int status =
        de_holds_create(pager->directory, domain->id, &domain->table.header->uuid, domain->gfns, &holds);
    if (status != DE_OK)
        return status;
    pager_set_holds(pager, domain, holds);
    atomic_fetch_or(&domain->table.header->flags, TABLE_DEVICE_MODEL);
    return DE_OK;
}

int de_pager_set_device_model(struct de_pager *pager, uint16_t id)
{
    int status = DE_NOT_FOUND;
    pthread_mutex_lock(&pager->proposals);
    struct pager_domain *domain = pager_domain_get(pager, id);
    if (domain)
        status = give_holds(pager, domain);
    if (status == DE_OK && pager->serves_requests) {
        errno = start_bringing_in(pager, domain);
        status = errno ? DE_SYSTEM : DE_OK;
    }
    if (domain)
        pager_domain_put(pager, domain);
    pthread_mutex_unlock(&pager->proposals);
    return status;
}

int de_pager_holds_path(struct de_pager *pager, uint16_t id, char *path, size_t capacity)
{
    int status = DE_NOT_FOUND;
    pthread_mutex_lock(&pager->proposals);
    struct pager_domain *domain = pager_domain_get(pager, id);
    if (domain && atomic_load(&domain->holds)) {
        snprintf(path, capacity, "/proc/%d/fd/%d", (int)getpid(), de_holds_fd(atomic_load(&domain->holds)));
        status = DE_OK;
    }
    if (domain)
        pager_domain_put(pager, domain);
    pthread_mutex_unlock(&pager->proposals);
    return status;
}

int de_pager_states(struct de_pager *pager, uint16_t id, uint32_t first, size_t count, uint8_t *states,
                    uint32_t *objects, uint32_t *generations)
{
    struct pager_domain *domain = pager_domain_get(pager, id);
    if (!domain)
        return DE_NOT_FOUND;
    bool inside = first <= domain->gfns && count <= domain->gfns - first;
    for (size_t i = 0; inside && i < count; i++) {
        struct entry entry = entry_get(domain, first + (uint32_t)i);
        if (states)
            states[i] = (uint8_t)entry.state;
        if (objects)
            objects[i] = entry.object;
        if (generations)
            generations[i] = entry.generation;
    }
    pager_domain_put(pager, domain);
    return inside ? DE_OK : DE_INVALID;
}

int de_pager_failure(struct de_pager *pager, uint16_t id, char *text, size_t capacity)
{
    pthread_mutex_lock(&pager->lock);
    struct pager_domain **slot = find_slot(pager, id);
    if (slot && capacity)
        snprintf(text, capacity, "%s", (*slot)->table.header->failure);
    pthread_mutex_unlock(&pager->lock);
    return slot ? DE_OK : DE_NOT_FOUND;
}

static uint64_t counter(const struct de_pager *pager, enum pager_counter which)
{
    return atomic_load_explicit(&pager->counters[which], memory_order_relaxed);
}

void de_pager_read_statistics(struct de_pager *pager, struct de_pager_statistics *statistics)
{
    uint64_t domains = 0;
    pthread_mutex_lock(&pager->lock);
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS; i++)
        domains += pager->domains[i] != NULL;
    pthread_mutex_unlock(&pager->lock);
    *statistics = (struct de_pager_statistics){
        .domains = domains,
        .evicted =
            atomic_load(&pager->states[DE_PAGE_EVICTED]) + atomic_load(&pager->states[DE_PAGE_LOADING]),
        .watched = atomic_load(&pager->states[DE_PAGE_WATCHED]),
        .evictions = counter(pager, COUNT_EVICTIONS),
        .shares = counter(pager, COUNT_SHARES),
        .events = counter(pager, COUNT_EVENTS),
        .loads = counter(pager, COUNT_LOADS),
        .touches = counter(pager, COUNT_TOUCHES),
        .duplicates = counter(pager, COUNT_DUPLICATES),
        .drops = counter(pager, COUNT_DROPS),
        .load_no_memory = counter(pager, COUNT_LOAD_NO_MEMORY),
        .corrupt = counter(pager, COUNT_CORRUPT),
        .bad_events = counter(pager, COUNT_BAD_EVENTS),
        .swap_ins = counter(pager, COUNT_SWAP_INS),
        .swap_outs = counter(pager, COUNT_SWAP_OUTS),
        .table_bytes = atomic_load(&pager->table_bytes),
    };
    latency_read(&pager->rebuild, &statistics->rebuild);
    latency_read(&pager->fault, &statistics->fault);
    latency_read(&pager->swap_fault, &statistics->swap_fault);
}
