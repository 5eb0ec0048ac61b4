/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The machine as hypervisor.h's operations table. */
#include "internal.h"

static int map_read_only(void *context, uint16_t domain, const uint32_t *gfns, size_t count,
                         const uint8_t **pages, int32_t *errors)
{
    return de_machine_map(context, domain, false, gfns, count, (uint8_t **)pages, errors);
}

static void unmap(void *context, const uint8_t *const *pages, size_t count)
{
    de_machine_unmap(context, pages, count);
}

static int pause_domain(void *context, uint16_t domain)
{
    return de_machine_domain_pause(context, domain);
}

static int unpause_domain(void *context, uint16_t domain)
{
    return de_machine_domain_unpause(context, domain);
}

static void yield(void *context)
{
    (void)context;
    block_yield();
}

static uint64_t now_ns(void *context)
{
    (void)context;
    return block_now_ns();
}

static const struct de_hypervisor_operations machine_operations = {
    .map = map_read_only,
    .unmap = unmap,
    .paging_enable = machine_paging_enable,
    .paging_disable = machine_paging_disable,
    .paging_nominate = machine_paging_nominate,
    .paging_evict = machine_paging_evict,
    .paging_load = machine_paging_load,
    .share_nominate = machine_share_nominate,
    .share = machine_share,
    .unshare = machine_unshare,
    .ring_take = machine_ring_take,
    .ring_answer = machine_ring_answer,
    .wait = machine_ring_wait,
    .interrupt = machine_ring_interrupt,
    .pause = pause_domain,
    .unpause = unpause_domain,
    .yield = yield,
    .now_ns = now_ns,
};

struct de_hypervisor de_machine_hypervisor(struct de_machine *machine)
{
    return (struct de_hypervisor){.operations = &machine_operations, .context = machine};
}
