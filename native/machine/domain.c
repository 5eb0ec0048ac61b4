/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Domains: created, paused, crashed, accounted for, destroyed. */
#include "internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/** gfns that a destroy releases before it lets others have the lock. */
#define DESTROY_BATCH 64u

struct domain *domain_find(struct de_machine *machine, uint16_t id)
{
    if (!id || id >= machine->next_domain)
        return NULL;
    struct domain *domain = machine->domains[id];
    return domain && !domain->dying ? domain : NULL;
}

uint64_t domain_private(const struct domain *domain)
{
    return domain->type_count[DE_P2M_RAM_RW] + domain->type_count[DE_P2M_LOGDIRTY] +
           domain->type_count[DE_P2M_PAGING_OUT] + domain->paging_in_frames;
}

static void domain_free(struct domain *domain)
{
    if (!domain)
        return;
    free((void *)domain->p2m);
    free(domain->dirty);
    free(domain->registered);
    wait_queue_destroy(&domain->slots);
    free(domain);
}

void domain_put(struct domain *domain)
{
    if (--domain->references == 0)
        domain_free(domain);
}

static struct domain *domain_allocate(uint32_t gfns)
{
    struct domain *domain = calloc(1, sizeof *domain);
    if (!domain)
        return NULL;
    if (wait_queue_init(&domain->slots)) {
        free(domain);
        return NULL;
    }
    domain->gfns = gfns;
    domain->references = 1;
    domain->type_count[DE_P2M_INVALID] = gfns;
    domain->p2m = malloc(gfns * sizeof *domain->p2m);
    if (!domain->p2m) {
        domain_free(domain);
        return NULL;
    }
    for (uint32_t gfn = 0; gfn < gfns; gfn++)
        atomic_init(&domain->p2m[gfn], (uint64_t)DE_P2M_INVALID | (uint64_t)FRAME_NONE << 8);
    return domain;
}

static int domain_place(struct de_machine *machine, struct domain *domain, uint16_t *id)
{
    if (*id >= machine->next_domain)
        return -EINVAL;
    if (*id && machine->domains[*id])
        return -EEXIST;
    if (!*id && machine->next_domain > DE_MACHINE_MAX_DOMAIN_ID)
        return -ENOMEM;
    if (!*id)
        *id = machine->next_domain++;
    domain->id = *id;
    machine->domains[*id] = domain;
    return 0;
}

int de_machine_domain_create_as(struct de_machine *machine, uint32_t gfns, const struct de_uuid *uuid,
                                uint16_t *id)
{
    if (!gfns)
        return -EINVAL;
    struct domain *domain = domain_allocate(gfns);
    if (!domain)
        return -ENOMEM;
    domain->uuid = *uuid;
    pthread_mutex_lock(&machine->lock);
    int error = domain_place(machine, domain, id);
    pthread_mutex_unlock(&machine->lock);
    if (error)
        domain_free(domain);
    return error;
}

int de_machine_domain_create(struct de_machine *machine, uint32_t gfns, uint16_t *id)
{
    struct de_uuid uuid;
    *id = 0;
    if (getrandom(&uuid, sizeof uuid, 0) != sizeof uuid)
        return -errno;
    /* RFC 4122: version 4, variant 1. */
    uuid.bytes[6] = (uint8_t)((uuid.bytes[6] & 0x0f) | 0x40);
    uuid.bytes[8] = (uint8_t)((uuid.bytes[8] & 0x3f) | 0x80);
    return de_machine_domain_create_as(machine, gfns, &uuid, id);
}

int machine_domain_uuid(void *context, uint16_t id, struct de_uuid *uuid)
{
    struct de_machine *machine = context;
    pthread_mutex_lock(&machine->lock);
    const struct domain *domain = domain_find(machine, id);
    if (domain)
        *uuid = domain->uuid;
    pthread_mutex_unlock(&machine->lock);
    return domain ? 0 : -ESRCH;
}

static void wake_everyone(struct domain *domain)
{
    for (size_t i = 0; i < DE_MACHINE_MAX_VCPUS; i++)
        if (domain->vcpus[i])
            block_wake(&domain->vcpus[i]->wake);
    block_wake(&domain->slots);
}

/* From here on each vCPU needs the lock. */
void domain_halt(struct domain *domain)
{
    atomic_store(&domain->halted, true);
    for (size_t i = 0; i < DE_MACHINE_MAX_VCPUS; i++)
        while (domain->vcpus[i] && atomic_load(&domain->vcpus[i]->accessing))
            block_yield();
}

void domain_go_on(struct domain *domain)
{
    atomic_store(&domain->halted, domain->pause_count || domain->crash[0] || domain->dying);
}

void domain_crash(struct domain *domain, const char *format, uint32_t gfn)
{
    if (domain->crash[0])
        return;
    char reason[CRASH_TEXT_BYTES];
    snprintf(reason, sizeof reason, format, gfn);
    snprintf(domain->crash, sizeof domain->crash, "domain %u crashed: %.90s", domain->id, reason);
    domain_halt(domain);
    wake_everyone(domain);
}

void domain_drop_gfn(struct de_machine *machine, struct domain *domain, uint32_t gfn)
{
    uint64_t entry = p2m_get(domain, gfn);
    uint32_t frame = entry_frame(entry);
    p2m_set(machine, domain, gfn, DE_P2M_INVALID, FRAME_NONE);
    if (entry_type(entry) == DE_P2M_SHARED)
        share_leave(machine, domain, gfn, frame);
    else if (frame != FRAME_NONE)
        frame_put(machine, frame);
}

/* Frames go batch by batch: other domains' faults must not wait for a whole guest to be torn down. */
static void release_memory(struct de_machine *machine, struct domain *domain)
{
    unsigned dropped = 0;
    for (uint32_t gfn = 0; gfn < domain->gfns; gfn++) {
        if (entry_type(p2m_get(domain, gfn)) == DE_P2M_INVALID)
            continue;
        domain_drop_gfn(machine, domain, gfn);
        if (++dropped % DESTROY_BATCH == 0) {
            pthread_mutex_unlock(&machine->lock);
            block_yield();
            pthread_mutex_lock(&machine->lock);
        }
    }
}

int de_machine_domain_destroy(struct de_machine *machine, uint16_t id)
{
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    if (!domain) {
        pthread_mutex_unlock(&machine->lock);
        return -ESRCH;
    }
    domain->dying = true;
    domain_halt(domain);
    wake_everyone(domain);
    ring_forget(domain);
    domain->ring.channel = NULL;
    machine->claimed -= domain->claimed;
    domain->claimed = 0;
    touches_forget(machine, domain);
    release_memory(machine, domain);
    machine->domains[id] = NULL;
    domain_put(domain);
    pthread_mutex_unlock(&machine->lock);
    return 0;
}

int de_machine_domain_pause(struct de_machine *machine, uint16_t id)
{
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    if (domain) {
        domain->pause_count++;
        domain_halt(domain);
    }
    pthread_mutex_unlock(&machine->lock);
    return domain ? 0 : -ESRCH;
}

int de_machine_domain_unpause(struct de_machine *machine, uint16_t id)
{
    int error = 0;
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    if (!domain)
        error = -ESRCH;
    else if (!domain->pause_count)
        error = -EINVAL;
    else if (--domain->pause_count == 0) {
        domain_go_on(domain);
        wake_everyone(domain);
    }
    pthread_mutex_unlock(&machine->lock);
    return error;
}

int de_machine_domain_crash_reason(struct de_machine *machine, uint16_t id, char *text, size_t capacity)
{
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    if (domain && capacity)
        snprintf(text, capacity, "%s", domain->crash);
    pthread_mutex_unlock(&machine->lock);
    return domain ? 0 : -ESRCH;
}

int de_machine_domain_list(struct de_machine *machine, uint16_t first, struct de_domain_info *infos,
                           size_t capacity)
{
    size_t count = 0;
    pthread_mutex_lock(&machine->lock);
    for (uint16_t id = first; id < machine->next_domain && count < capacity; id++) {
        const struct domain *domain = domain_find(machine, id);
        if (domain)
            infos[count++] = (struct de_domain_info){.domain = id, .gfns = domain->gfns};
    }
    pthread_mutex_unlock(&machine->lock);
    return (int)count;
}

int de_machine_domain_account(struct de_machine *machine, uint16_t id,
                              struct de_domain_accounting *accounting)
{
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    if (domain) {
        const uint64_t *count = domain->type_count;
        *accounting = (struct de_domain_accounting){
            .gfns = domain->gfns,
            .holes = count[DE_P2M_INVALID],
            .private_gfns = domain_private(domain),
            .shared_gfns = count[DE_P2M_SHARED],
            .paged = count[DE_P2M_PAGED] + count[DE_P2M_PAGING_IN] - domain->paging_in_frames,
            .nominated = count[DE_P2M_PAGING_OUT],
            .claimed = domain->claimed,
            .cow_breaks = domain->cow_breaks,
            .paging_events = domain->ring.put,
            .slot_waits = domain->slot_waits,
            .answers_dropped = domain->answers_dropped,
        };
    }
    pthread_mutex_unlock(&machine->lock);
    return domain ? 0 : -ESRCH;
}
