/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which pages were written, after Xen's paging.c (paging_log_dirty_enable(), _op(), _disable()) and hap.c. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* p2m_change_entry_type_global() for a range. No vCPU is in the middle of an access: the domain is halted. */
static void change_types(struct de_machine *machine, struct domain *domain, uint32_t first, uint32_t count,
                         enum de_p2m_type from, enum de_p2m_type to)
{
    for (uint32_t gfn = first; gfn < first + count; gfn++) {
        uint64_t entry = p2m_get(domain, gfn);
        if (entry_type(entry) == from)
            p2m_set(machine, domain, gfn, to, entry_frame(entry));
    }
}

static int enable(struct de_machine *machine, struct domain *domain)
{
    if (domain->dirty)
        return -EINVAL;
    domain->dirty = calloc((domain->gfns + 7u) / 8u, 1);
    if (!domain->dirty)
        return -ENOMEM;
    domain_halt(domain);
    change_types(machine, domain, 0, domain->gfns, DE_P2M_RAM_RW, DE_P2M_LOGDIRTY);
    domain_go_on(domain);
    return 0;
}

int de_machine_log_dirty_enable(struct de_machine *machine, uint16_t id)
{
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    int error = domain ? enable(machine, domain) : -ESRCH;
    pthread_mutex_unlock(&machine->lock);
    return error;
}

int de_machine_log_dirty_disable(struct de_machine *machine, uint16_t id)
{
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    if (domain) {
        domain_halt(domain);
        free(domain->dirty);
        domain->dirty = NULL;
        change_types(machine, domain, 0, domain->gfns, DE_P2M_LOGDIRTY, DE_P2M_RAM_RW);
        domain_go_on(domain);
    }
    pthread_mutex_unlock(&machine->lock);
    return domain ? 0 : -ESRCH;
}

static int read_dirty(struct de_machine *machine, struct domain *domain, bool clean, uint32_t first,
                      uint32_t count, uint8_t *bits)
{
    size_t bytes = ((size_t)count + 7) / 8;
    if (first % 8 || first > domain->gfns || count > domain->gfns - first ||
        (count % 8 && first + count != domain->gfns))
        return -EINVAL;
    /* The operation does not look whether the mode is on: off, nothing is ever dirty. */
    if (!domain->dirty) {
        memset(bits, 0, bytes);
        return 0;
    }
    memcpy(bits, domain->dirty + first / 8, bytes);
    if (!clean)
        return 0;
    domain_halt(domain);
    memset(domain->dirty + first / 8, 0, bytes);
    change_types(machine, domain, first, count, DE_P2M_RAM_RW, DE_P2M_LOGDIRTY);
    domain_go_on(domain);
    return 0;
}

int de_machine_log_dirty_read(struct de_machine *machine, uint16_t id, bool clean, uint32_t first,
                              uint32_t count, uint8_t *bits)
{
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    int error = domain ? read_dirty(machine, domain, clean, first, count, bits) : -ESRCH;
    pthread_mutex_unlock(&machine->lock);
    return error;
}
