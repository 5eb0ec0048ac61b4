/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The pager as a whole: its domains, its page table's entries, its threads, and what it tells of itself. */
#include "internal.h"

#include <diffengine/status.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GENERATION_MASK 0x1fffffffu

static const struct entry entry_new = {.object = DE_NONE, .state = DE_PAGE_RESIDENT};

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

void pager_domain_put(struct de_pager *pager, struct pager_domain *domain)
{
    pthread_mutex_lock(&pager->lock);
    if (--domain->references == 0)
        pthread_cond_broadcast(&pager->changed);
    pthread_mutex_unlock(&pager->lock);
}

void pager_halt(struct de_pager *pager, struct pager_domain *domain, uint32_t gfn, const char *why)
{
    if (atomic_exchange(&domain->halted, true))
        return;
    pthread_mutex_lock(&pager->lock);
    snprintf(domain->failure, sizeof domain->failure,
             "domain %u is paused: the page at gfn %#x can't be brought back: %.60s", domain->id, gfn, why);
    pthread_mutex_unlock(&pager->lock);
    HYPERCALL(pager, pause, domain->id);
}

void pager_retire(struct de_pager *pager, uint32_t object)
{
    pthread_mutex_lock(&pager->lock);
    bool room = pager->retired_count < RETIRED_CAPACITY;
    if (room)
        pager->retired[(pager->retired_first + pager->retired_count++) % RETIRED_CAPACITY] = object;
    if (pager->retired_count == 1)
        pthread_cond_broadcast(&pager->changed);
    pthread_mutex_unlock(&pager->lock);
    /* 65,536 behind: now the fault path has to wait for the store's lock itself. */
    if (!room)
        de_store_release(pager->store, object);
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
    *result = pager;
    return DE_OK;
}

static int enable_status(int error)
{
    switch (error) {
    case 0:
        return DE_OK;
    case -ESRCH:
        return DE_NOT_FOUND;
    case -EBUSY:
        return DE_BUSY;
    default:
        errno = -error;
        return DE_SYSTEM;
    }
}

static size_t table_bytes(uint32_t gfns)
{
    return sizeof(struct pager_domain) + gfns * sizeof(uint64_t);
}

static struct pager_domain *domain_allocate(uint16_t id, uint32_t gfns)
{
    struct pager_domain *domain = malloc(table_bytes(gfns));
    if (!domain)
        return NULL;
    memset(domain, 0, sizeof *domain);
    domain->id = id;
    domain->gfns = gfns;
    domain->references = 1;
    for (uint32_t gfn = 0; gfn < gfns; gfn++)
        atomic_init(&domain->entries[gfn], entry_pack(entry_new));
    return domain;
}

/* Proposals are locked, so nobody else adds or removes. */
static int domain_insert(struct de_pager *pager, struct pager_domain *domain)
{
    pthread_mutex_lock(&pager->lock);
    struct pager_domain **slot = NULL;
    bool known = find_slot(pager, domain->id) != NULL;
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS && !slot; i++)
        if (!pager->domains[i])
            slot = &pager->domains[i];
    pthread_mutex_unlock(&pager->lock);
    if (known)
        return DE_BUSY;
    if (!slot)
        return DE_FULL;
    int status = enable_status(HYPERCALL(pager, paging_enable, domain->id));
    if (status != DE_OK)
        return status;
    pthread_mutex_lock(&pager->lock);
    *slot = domain;
    pthread_mutex_unlock(&pager->lock);
    return DE_OK;
}

int de_pager_add_domain(struct de_pager *pager, uint16_t id, uint32_t gfns)
{
    if (!gfns)
        return DE_INVALID;
    struct pager_domain *domain = domain_allocate(id, gfns);
    if (!domain)
        return DE_NO_MEMORY;
    pthread_mutex_lock(&pager->proposals);
    int status = domain_insert(pager, domain);
    pthread_mutex_unlock(&pager->proposals);
    if (status == DE_OK)
        atomic_fetch_add(&pager->table_bytes, table_bytes(gfns));
    else
        free(domain);
    return status;
}

/* Unlink and free; proposals are locked, so only a server may still hold the domain. */
static void domain_forget(struct de_pager *pager, struct pager_domain *domain)
{
    pthread_mutex_lock(&pager->lock);
    *find_slot(pager, domain->id) = NULL;
    domain->references--;
    while (domain->references)
        pthread_cond_wait(&pager->changed, &pager->lock);
    pthread_mutex_unlock(&pager->lock);
    for (uint32_t gfn = 0; gfn < domain->gfns; gfn++) {
        struct entry entry = entry_get(domain, gfn);
        entry_change(pager, domain, gfn, entry, entry_new);
        if (entry.object != DE_NONE)
            de_store_release(pager->store, entry.object);
    }
    atomic_fetch_sub(&pager->table_bytes, table_bytes(domain->gfns));
    free(domain);
}

/* A live domain with a page out, or nominated, would crash at its next touch once the ring is gone. */
static int disable(struct de_pager *pager, struct pager_domain *domain)
{
    for (uint32_t gfn = 0; gfn < domain->gfns; gfn++) {
        if (entry_get(domain, gfn).state == DE_PAGE_RESIDENT)
            continue;
        /* Changes nothing, unless it was touched already, and tells a dead domain from a live one. */
        if (HYPERCALL(pager, paging_load, domain->id, gfn, NULL) == -ESRCH)
            return DE_OK;
        return DE_BUSY;
    }
    return HYPERCALL(pager, paging_disable, domain->id) == -EBUSY ? DE_BUSY : DE_OK;
}

int de_pager_remove_domain(struct de_pager *pager, uint16_t id)
{
    pthread_mutex_lock(&pager->proposals);
    int status = DE_NOT_FOUND;
    struct pager_domain *domain = pager_domain_get(pager, id);
    if (domain) {
        status = disable(pager, domain);
        pager_domain_put(pager, domain);
        if (status == DE_OK)
            domain_forget(pager, domain);
    }
    pthread_mutex_unlock(&pager->proposals);
    return status;
}

static void *server_thread(void *argument)
{
    struct de_pager *pager = argument;
    while (!atomic_load(&pager->stop))
        pager_serve_round(pager, UINT64_MAX);
    return NULL;
}

static void *retire_thread(void *argument)
{
    struct de_pager *pager = argument;
    while (!atomic_load(&pager->stop)) {
        pthread_mutex_lock(&pager->lock);
        while (!pager->retired_count && !atomic_load(&pager->stop))
            pthread_cond_wait(&pager->changed, &pager->lock);
        pthread_mutex_unlock(&pager->lock);
        de_pager_retire(pager, RETIRED_CAPACITY);
    }
    return NULL;
}

static void request_stop(struct de_pager *pager)
{
    pthread_mutex_lock(&pager->lock);
    atomic_store(&pager->stop, true);
    pthread_cond_broadcast(&pager->changed);
    pthread_mutex_unlock(&pager->lock);
    HYPERCALL(pager, interrupt);
}

int de_pager_start(struct de_pager *pager)
{
    if (pager->started)
        return DE_BUSY;
    atomic_store(&pager->stop, false);
    int error = pthread_create(&pager->server_thread, NULL, server_thread, pager);
    if (!error) {
        error = pthread_create(&pager->retire_thread, NULL, retire_thread, pager);
        if (error) {
            request_stop(pager);
            pthread_join(pager->server_thread, NULL);
        }
    }
    if (error) {
        errno = error;
        return DE_SYSTEM;
    }
    pager->started = true;
    return DE_OK;
}

void de_pager_stop(struct de_pager *pager)
{
    if (!pager->started)
        return;
    request_stop(pager);
    pthread_join(pager->server_thread, NULL);
    pthread_join(pager->retire_thread, NULL);
    pager->started = false;
}

void de_pager_free(struct de_pager *pager)
{
    if (!pager)
        return;
    de_pager_stop(pager);
    for (size_t i = 0; i < DE_PAGER_MAX_DOMAINS; i++) {
        if (!pager->domains[i])
            continue;
        HYPERCALL(pager, paging_disable, pager->domains[i]->id);
        domain_forget(pager, pager->domains[i]);
    }
    de_pager_retire(pager, RETIRED_CAPACITY);
    de_rebuilder_free(pager->server.rebuilder);
    de_rebuilder_free(pager->proposer.rebuilder);
    pthread_cond_destroy(&pager->changed);
    pthread_mutex_destroy(&pager->lock);
    pthread_mutex_destroy(&pager->proposals);
    free(pager);
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
        snprintf(text, capacity, "%s", (*slot)->failure);
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
        .table_bytes = atomic_load(&pager->table_bytes),
    };
    latency_read(&pager->rebuild, &statistics->rebuild);
    latency_read(&pager->fault, &statistics->fault);
}
