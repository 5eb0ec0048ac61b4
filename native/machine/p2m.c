/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The physical-to-machine table: entries, their counts, and dom0's mappings of what they point to. */
#include "internal.h"

#include <errno.h>
#include <string.h>

static void count_entry(struct de_machine *machine, struct domain *domain, uint64_t entry, uint64_t change)
{
    enum de_p2m_type type = entry_type(entry);
    bool has_frame = entry_frame(entry) != FRAME_NONE;
    domain->type_count[type] += change;
    if (type == DE_P2M_SHARED)
        machine->shared_gfns += change;
    if (type == DE_P2M_PAGING_IN && has_frame)
        domain->paging_in_frames += change;
    if (type == DE_P2M_PAGED || (type == DE_P2M_PAGING_IN && !has_frame))
        machine->paged += change;
}

/* domain_adjust_tot_pages(): while a claim is outstanding, a page more comes out of it, and a page less goes
 * back into it. */
static void adjust_claim(struct de_machine *machine, struct domain *domain, uint64_t before)
{
    uint64_t change = before - domain_private(domain);
    if (!domain->claimed || !change)
        return;
    domain->claimed += change;
    machine->claimed += change;
}

static void wait_for_vcpus(const struct domain *domain, uint32_t gfn)
{
    for (size_t i = 0; i < DE_MACHINE_MAX_VCPUS; i++)
        while (domain->vcpus[i] && atomic_load(&domain->vcpus[i]->accessing) == (uint64_t)gfn + 1)
            block_yield();
}

void p2m_set(struct de_machine *machine, struct domain *domain, uint32_t gfn, enum de_p2m_type type,
             uint32_t frame)
{
    uint64_t old = p2m_get(domain, gfn);
    uint64_t entry = (uint64_t)type | (uint64_t)frame << 8;
    uint64_t private_before = domain_private(domain);
    atomic_store(&domain->p2m[gfn], entry);
    count_entry(machine, domain, old, (uint64_t)-1);
    count_entry(machine, domain, entry, 1);
    adjust_claim(machine, domain, private_before);
    if (is_ram(entry_type(old)) || entry_type(old) == DE_P2M_SHARED)
        wait_for_vcpus(domain, gfn);
}

static int populate_gfn(struct de_machine *machine, struct domain *domain, uint32_t gfn, const uint8_t *page)
{
    if (gfn >= domain->gfns)
        return -EINVAL;
    if (entry_type(p2m_get(domain, gfn)) != DE_P2M_INVALID)
        return -EEXIST;
    uint32_t frame = frame_allocate(machine, domain);
    if (frame == FRAME_NONE)
        return -ENOMEM;
    /* A zero page is written, too: a frame in use takes its memory, as on a real machine. */
    if (page)
        memcpy(frame_address(machine, frame), page, DE_PAGE_SIZE);
    else
        memset(frame_address(machine, frame), 0, DE_PAGE_SIZE);
    p2m_set(machine, domain, gfn, DE_P2M_RAM_RW, frame);
    return 0;
}

int64_t de_machine_populate(struct de_machine *machine, uint16_t id, const uint32_t *gfns,
                            const uint8_t *const *pages, size_t count, int32_t *errors)
{
    int64_t populated = 0;
    for (size_t i = 0; i < count; i++) {
        /* The lock per page: faults of other domains get in between. */
        pthread_mutex_lock(&machine->lock);
        struct domain *domain = domain_find(machine, id);
        int error = domain
                        ? populate_gfn(machine, domain, gfns ? gfns[i] : (uint32_t)i, pages ? pages[i] : NULL)
                        : -ESRCH;
        pthread_mutex_unlock(&machine->lock);
        if (error == -ESRCH)
            return -ESRCH;
        if (errors)
            errors[i] = error;
        populated += !error;
    }
    return populated;
}

int de_machine_guest_obtain(struct de_vcpu *vcpu, uint32_t gfn)
{
    struct de_machine *machine = vcpu->machine;
    pthread_mutex_lock(&machine->lock);
    int error = vcpu_wait(vcpu);
    if (!error)
        error = gfn < vcpu->domain->gfns ? populate_gfn(machine, vcpu->domain, gfn, NULL) : -EFAULT;
    pthread_mutex_unlock(&machine->lock);
    return error;
}

int de_machine_p2m_type(struct de_machine *machine, uint16_t id, uint32_t gfn)
{
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    int type = -ESRCH;
    if (domain)
        type = gfn < domain->gfns ? (int)entry_type(p2m_get(domain, gfn)) : -EINVAL;
    pthread_mutex_unlock(&machine->lock);
    return type;
}

/* As mod_l1_entry() for a foreign frame: only an evicted page is asked for; a nominated one maps without an
 * event. */
static int map_gfn(struct de_machine *machine, struct domain *domain, bool writable, uint32_t gfn,
                   uint8_t **page)
{
    if (gfn >= domain->gfns)
        return -EINVAL;
    uint64_t entry = p2m_get(domain, gfn);
    if (entry_type(entry) == DE_P2M_PAGED) {
        paging_populate(machine, domain, gfn, NULL);
        return -ENOENT;
    }
    if (entry_type(entry) == DE_P2M_INVALID)
        return -EINVAL;
    if (entry_frame(entry) == FRAME_NONE)
        return -ENOENT;
    if (writable && entry_type(entry) == DE_P2M_SHARED && share_break(machine, domain, gfn))
        return -ENOMEM;
    uint32_t frame = entry_frame(p2m_get(domain, gfn));
    machine->frames[frame].references++;
    machine->mapped++;
    *page = frame_address(machine, frame);
    return 0;
}

int de_machine_map(struct de_machine *machine, uint16_t id, bool writable, const uint32_t *gfns, size_t count,
                   uint8_t **pages, int32_t *errors)
{
    int mapped = 0;
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    for (size_t i = 0; domain && i < count; i++) {
        pages[i] = NULL;
        errors[i] = map_gfn(machine, domain, writable, gfns[i], &pages[i]);
        mapped += !errors[i];
    }
    pthread_mutex_unlock(&machine->lock);
    return domain ? mapped : -ESRCH;
}

void de_machine_unmap(struct de_machine *machine, const uint8_t *const *pages, size_t count)
{
    pthread_mutex_lock(&machine->lock);
    for (size_t i = 0; i < count; i++) {
        if (!pages[i])
            continue;
        frame_put(machine, (uint32_t)((size_t)(pages[i] - machine->memory) / DE_PAGE_SIZE));
        machine->mapped--;
    }
    pthread_mutex_unlock(&machine->lock);
}
