/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The hypervisor as the pager meets it: each call takes its time, and some are refused or scribbled on. */
#include "world.h"

#include <errno.h>

#define MACHINE(world, operation, ...)                                                                       \
    (world)->hypervisor.operations->operation((world)->hypervisor.context, ##__VA_ARGS__)

/* The call is carried out by the machine: if the pager dies in there, it is finished all the same. */
#define HYPERCALL(world, result, operation, ...)                                                             \
    do {                                                                                                     \
        scheduler_enter_hypercall((world)->scheduler);                                                       \
        result = MACHINE(world, operation, __VA_ARGS__);                                                     \
        scheduler_leave_hypercall((world)->scheduler);                                                       \
    } while (0)

static struct place *place_of(struct world *world, uint16_t id)
{
    for (uint32_t i = 0; i < world->options.domains; i++)
        if (world->places[i].id == id)
            return &world->places[i];
    return NULL;
}

static void note_mapping(struct world *world, const uint8_t *page, const uint8_t *replacement)
{
    for (size_t i = 0; i < sizeof world->pager_maps / sizeof world->pager_maps[0]; i++) {
        if (world->pager_maps[i] != page)
            continue;
        world->pager_maps[i] = replacement;
        return;
    }
}

static int map(void *context, uint16_t domain, const uint32_t *gfns, size_t count, const uint8_t **pages,
               int32_t *errors)
{
    struct world *world = context;
    int mapped;
    if (chance(world, world->options.refusals))
        return -ENOMEM;
    scheduler_enter_hypercall(world->scheduler);
    mapped = MACHINE(world, map, domain, gfns, count, pages, errors);
    for (size_t i = 0; mapped >= 0 && i < count; i++)
        if (pages[i])
            note_mapping(world, NULL, pages[i]);
    scheduler_leave_hypercall(world->scheduler);
    return mapped;
}

static void unmap(void *context, const uint8_t *const *pages, size_t count)
{
    struct world *world = context;
    scheduler_enter_hypercall(world->scheduler);
    for (size_t i = 0; i < count; i++)
        if (pages[i])
            note_mapping(world, pages[i], NULL);
    MACHINE(world, unmap, pages, count);
    scheduler_leave_hypercall(world->scheduler);
}

static int paging_nominate(void *context, uint16_t domain, uint32_t gfn)
{
    struct world *world = context;
    int error;
    struct place *place = place_of(world, domain);
    if (chance(world, world->options.refusals))
        return -EBUSY;
    HYPERCALL(world, error, paging_nominate, domain, gfn);
    /* What is refused may be another one, which has a dead one's number. */
    if (!error && place && !place->standing)
        WORLD_FAIL(world, "gfn %#x of domain %u is nominated while the domain runs", gfn, domain);
    return error;
}

static int paging_touch(void *context, uint16_t domain, uint32_t gfn)
{
    struct world *world = context;
    int error;
    HYPERCALL(world, error, paging_touch, domain, gfn);
    return error;
}

static int paging_evict(void *context, uint16_t domain, uint32_t gfn)
{
    struct world *world = context;
    int error;
    if (chance(world, world->options.refusals))
        return -EBUSY;
    HYPERCALL(world, error, paging_evict, domain, gfn);
    scheduler_note(world->scheduler, (uint64_t)gfn << 32 ^ (uint64_t)(int64_t)error);
    return error;
}

static int paging_load(void *context, uint16_t domain, uint32_t gfn, const uint8_t *page)
{
    struct world *world = context;
    struct place *place = place_of(world, domain);
    int error;
    if (page && place && audit_page_is_out(world, place, gfn) && chance(world, world->options.load_no_memory))
        return -ENOMEM;
    HYPERCALL(world, error, paging_load, domain, gfn, page);
    scheduler_note(world->scheduler, (uint64_t)gfn << 33 ^ (uint64_t)(int64_t)error);
    return error;
}

static int paging_load_answer(void *context, uint16_t domain, uint32_t gfn, const uint8_t *page,
                              const struct de_vm_event *answer)
{
    struct world *world = context;
    struct place *place = place_of(world, domain);
    int error;
    if (page && place && audit_page_is_out(world, place, gfn) && chance(world, world->options.load_no_memory))
        return -ENOMEM;
    HYPERCALL(world, error, paging_load_answer, domain, gfn, page, answer);
    scheduler_note(world->scheduler, (uint64_t)gfn << 34 ^ (uint64_t)(int64_t)error);
    return error;
}

static int share_nominate(void *context, uint16_t domain, uint32_t gfn, uint64_t *handle)
{
    struct world *world = context;
    int error;
    if (chance(world, world->options.refusals))
        return -ENOMEM;
    HYPERCALL(world, error, share_nominate, domain, gfn, handle);
    return error;
}

static int share(void *context, uint16_t source, uint32_t source_gfn, uint64_t source_handle, uint16_t client,
                 uint32_t client_gfn, uint64_t client_handle)
{
    struct world *world = context;
    int error;
    if (chance(world, world->options.refusals))
        return -ENOMEM;
    HYPERCALL(world, error, share, source, source_gfn, source_handle, client, client_gfn, client_handle);
    return error;
}

static int unshare(void *context, uint16_t domain, uint32_t gfn)
{
    struct world *world = context;
    int error;
    HYPERCALL(world, error, unshare, domain, gfn);
    return error;
}

/* The ring page is the guest's own. */
static void scribble(struct world *world, struct de_vm_event *event)
{
    uint32_t value = (uint32_t)random_next(&world->disturbance);
    switch (random_below(&world->disturbance, 8)) {
    case 0:
        event->version = value;
        break;
    case 1:
        event->flags = value;
        break;
    case 2:
        event->reason = value;
        break;
    case 3:
        event->vcpu_id = value % 8 ? value % 4 : value;
        break;
    case 4:
        event->gfn = value;
        break;
    case 5:
        event->gfn = value % world->options.gfns;
        break;
    case 6:
        event->paging_flags = value % 4;
        break;
    default:
        event->p2m_type = value;
        break;
    }
}

static void count_drop(struct place *place, const struct de_vm_event *event, int change)
{
    if (!(event->paging_flags & DE_PAGING_DROP_PAGE) || event->gfn >= place->world->options.gfns)
        return;
    /* 0 already: taken by a pager that died. */
    uint8_t *drops = &place->pages[event->gfn].drops;
    if (change > 0 || *drops)
        *drops = (uint8_t)(*drops + change);
}

static int ring_take(void *context, uint16_t domain, struct de_vm_event *event)
{
    struct world *world = context;
    struct place *place = place_of(world, domain);
    int taken;
    scheduler_enter_hypercall(world->scheduler);
    taken = MACHINE(world, ring_take, domain, event);
    if (taken == 1 && place && !place->hostile)
        count_drop(place, event, 1);
    if (taken == 1 && place && place->hostile && random_below(&world->disturbance, 4) == 0)
        scribble(world, event);
    scheduler_leave_hypercall(world->scheduler);
    return taken;
}

static int ring_answer(void *context, uint16_t domain, const struct de_vm_event *answer)
{
    struct world *world = context;
    struct place *place = place_of(world, domain);
    int error;
    scheduler_enter_hypercall(world->scheduler);
    error = MACHINE(world, ring_answer, domain, answer);
    if (!error && place && !place->hostile)
        count_drop(place, answer, -1);
    scheduler_leave_hypercall(world->scheduler);
    return error;
}

static int wait(void *context, uint64_t timeout_ns, uint16_t *domains, size_t capacity)
{
    struct world *world = context;
    int count;
    HYPERCALL(world, count, wait, timeout_ns, domains, capacity);
    return count;
}

/* Only a page that can't be brought back makes the pager pause a domain. */
static int pause_domain(void *context, uint16_t domain)
{
    struct world *world = context;
    struct place *place = place_of(world, domain);
    int error;
    if (place && !place->leaving) {
        if (!world->result.corruptions && !world->result.disk_errors)
            WORLD_FAIL(world, "the pager halted domain %u, and no object was corrupted", domain);
        place->halted = true;
    }
    HYPERCALL(world, error, pause, domain);
    return error;
}

static int pause_outside_kernel(void *context, uint16_t domain)
{
    struct world *world = context;
    struct place *place = place_of(world, domain);
    int error;
    if (chance(world, world->options.refusals))
        return -EAGAIN;
    scheduler_enter_hypercall(world->scheduler);
    error = MACHINE(world, pause, domain);
    if (place && !error)
        place->standing = true;
    scheduler_leave_hypercall(world->scheduler);
    return error;
}

static int go_on(void *context, uint16_t domain)
{
    struct world *world = context;
    struct place *place = place_of(world, domain);
    int error;
    scheduler_enter_hypercall(world->scheduler);
    error = MACHINE(world, unpause, domain);
    if (place)
        place->standing = false;
    scheduler_leave_hypercall(world->scheduler);
    return error;
}

static void yield(void *context)
{
    struct world *world = context;
    scheduler_yield(world->scheduler);
}

#define PASS_ON(name)                                                                                        \
    static int name(void *context, uint16_t domain)                                                          \
    {                                                                                                        \
        struct world *world = context;                                                                       \
        int error;                                                                                           \
        HYPERCALL(world, error, name, domain);                                                               \
        return error;                                                                                        \
    }
static int domain_uuid(void *context, uint16_t domain, struct de_uuid *uuid)
{
    struct world *world = context;
    int error;
    HYPERCALL(world, error, domain_uuid, domain, uuid);
    return error;
}

PASS_ON(paging_enable)
PASS_ON(paging_disable)
PASS_ON(unpause)

static int paging_take_over(void *context, uint16_t domain, uint32_t *answered)
{
    struct world *world = context;
    struct place *place = place_of(world, domain);
    int error;
    scheduler_enter_hypercall(world->scheduler);
    error = MACHINE(world, paging_take_over, domain, answered);
    if (place && place->standing) {
        MACHINE(world, unpause, domain);
        place->standing = false;
    }
    scheduler_leave_hypercall(world->scheduler);
    return error;
}

static void interrupt(void *context)
{
    struct world *world = context;
    MACHINE(world, interrupt);
}

static uint64_t now_ns(void *context)
{
    const struct world *world = context;
    return scheduler_now(world->scheduler);
}

#define STORE(world, result, operation, ...)                                                                 \
    do {                                                                                                     \
        scheduler_enter_hypercall((world)->scheduler);                                                       \
        result = (world)->hypervisor.operations->store_domain->operation((world)->hypervisor.context,        \
                                                                         ##__VA_ARGS__);                     \
        scheduler_leave_hypercall((world)->scheduler);                                                       \
    } while (0)

static int store_create(void *context, const struct de_uuid *uuid, uint64_t gfns, uint64_t frames,
                        uint16_t *domain)
{
    struct world *world = context;
    int error;
    STORE(world, error, create, uuid, gfns, frames, domain);
    return error;
}

static int store_find(void *context, const struct de_uuid *uuid, uint16_t *domain)
{
    struct world *world = context;
    int error;
    STORE(world, error, find, uuid, domain);
    return error;
}

static int store_destroy(void *context, uint16_t domain)
{
    struct world *world = context;
    int error;
    STORE(world, error, destroy, domain);
    return error;
}

static int store_populate(void *context, uint16_t domain, uint32_t gfn)
{
    struct world *world = context;
    int error;
    if (chance(world, world->options.refusals))
        return -ENOMEM;
    STORE(world, error, populate, domain, gfn);
    return error;
}

static int store_depopulate(void *context, uint16_t domain, const uint32_t *gfns, size_t count)
{
    struct world *world = context;
    int error;
    STORE(world, error, depopulate, domain, gfns, count);
    return error;
}

static int store_map(void *context, uint16_t domain, uint32_t first, size_t count, uint8_t *address,
                     bool *present)
{
    struct world *world = context;
    int error;
    STORE(world, error, map, domain, first, count, address, present);
    return error;
}

static int store_map_added(void *context, uint16_t domain, uint32_t gfn, uint8_t *address)
{
    struct world *world = context;
    int error;
    if (chance(world, world->options.refusals))
        return -ENOMEM;
    STORE(world, error, map_added, domain, gfn, address);
    return error;
}

static int store_unmap(void *context, uint8_t *address, size_t count)
{
    struct world *world = context;
    int error;
    STORE(world, error, unmap, address, count);
    return error;
}

void disturbed_create(struct world *world)
{
    world->store_operations = (struct de_store_domain_operations){
        .create = store_create,
        .find = store_find,
        .destroy = store_destroy,
        .populate = store_populate,
        .depopulate = store_depopulate,
        .map = store_map,
        .map_added = store_map_added,
        .unmap = store_unmap,
    };
    world->hypervisor = de_machine_hypervisor(world->machine);
    world->pager_operations = (struct de_hypervisor_operations){
        .domain_uuid = domain_uuid,
        .map = map,
        .unmap = unmap,
        .paging_enable = paging_enable,
        .paging_disable = paging_disable,
        .paging_take_over = paging_take_over,
        .paging_nominate = paging_nominate,
        .paging_touch = paging_touch,
        .paging_evict = paging_evict,
        .paging_load = paging_load,
        /* Xen has none. */
        .paging_load_answer = world->options.seed % 2 ? paging_load_answer : NULL,
        .share_nominate = share_nominate,
        .share = share,
        .unshare = unshare,
        .ring_take = ring_take,
        .ring_answer = ring_answer,
        .wait = wait,
        .interrupt = interrupt,
        .pause = pause_domain,
        .unpause = unpause,
        .pause_outside_kernel = pause_outside_kernel,
        .go_on = go_on,
        .yield = yield,
        .now_ns = now_ns,
        .store_domain = &world->store_operations,
    };
}
