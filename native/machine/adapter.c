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

static int paging_enable(void *context, uint16_t domain)
{
    struct de_machine *machine = context;
    return ring_enable(machine, &machine->channel, domain);
}

static int paging_disable(void *context, uint16_t domain)
{
    struct de_machine *machine = context;
    return ring_disable(machine, &machine->channel, domain);
}

static int paging_take_over(void *context, uint16_t domain, uint32_t *answered)
{
    struct de_machine *machine = context;
    return ring_take_over(machine, &machine->channel, domain, answered);
}

static int take(void *context, uint16_t domain, struct de_vm_event *event)
{
    struct de_machine *machine = context;
    return ring_take(machine, &machine->channel, domain, event);
}

static int answer(void *context, uint16_t domain, const struct de_vm_event *event)
{
    struct de_machine *machine = context;
    return ring_answer(machine, &machine->channel, domain, event);
}

static int load_answer(void *context, uint16_t domain, uint32_t gfn, const uint8_t *page,
                       const struct de_vm_event *event)
{
    int error = machine_paging_load(context, domain, gfn, page);
    if (!error)
        answer(context, domain, event);
    return error;
}

static int wait(void *context, uint64_t timeout_ns, uint16_t *domains, size_t capacity)
{
    struct de_machine *machine = context;
    return ring_wait(machine, &machine->channel, timeout_ns, domains, capacity);
}

static void interrupt(void *context)
{
    struct de_machine *machine = context;
    ring_interrupt(machine, &machine->channel);
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
    .domain_uuid = machine_domain_uuid,
    .map = map_read_only,
    .unmap = unmap,
    .paging_enable = paging_enable,
    .paging_disable = paging_disable,
    .paging_take_over = paging_take_over,
    .paging_nominate = machine_paging_nominate,
    .paging_touch = machine_paging_touch,
    .paging_evict = machine_paging_evict,
    .paging_load = machine_paging_load,
    .share_nominate = machine_share_nominate,
    .share = machine_share,
    .unshare = machine_unshare,
    .ring_take = take,
    .ring_answer = answer,
    .paging_load_answer = load_answer,
    .wait = wait,
    .interrupt = interrupt,
    .pause = pause_domain,
    .unpause = unpause_domain,
    .yield = yield,
    .now_ns = now_ns,
    .store_domain = &machine_store_domain_operations,
};

struct de_hypervisor de_machine_hypervisor(struct de_machine *machine)
{
    return (struct de_hypervisor){.operations = &machine_operations, .context = machine};
}
