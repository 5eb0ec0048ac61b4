/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who makes domains and destroys them, breaks things, and in the end asks for everything back. */
#include "world.h"

#include <errno.h>
#include <string.h>

#define TICK_NS 500000u
#define HOG_NS 4000000u
#define POLL_NS 20000u
#define MOST_CLAIMED 8u
/** How long a death waits for a moment when a page is in the middle of something. */
#define MOMENT_CHANGES 500u
/** How long there may be no pager. */
#define GAP_NS 1000000u
/** A hostile guest whose vCPUs all wait for so long has hurt itself, and is destroyed. */
#define HOSTILE_IDLE_TICKS 40u

#define WAIT_UNTIL(world, condition)                                                                         \
    while (!(condition))                                                                                     \
    scheduler_sleep((world)->scheduler, POLL_NS)

static bool guests_go_on(const struct world *world)
{
    return world->options.steps || world->result.operations < world->options.operations;
}

static void settle_in(struct place *place)
{
    struct world *world = place->world;
    memset(place->pages, 0, world->options.gfns * sizeof *place->pages);
    uint16_t id = place->unheard || random_below(&world->operator.random, 2) ? place->last_id : 0;
    uint64_t words[] = {random_next(&world->disturbance), random_next(&world->disturbance)};
    struct de_uuid uuid;
    memcpy(&uuid, words, sizeof uuid);
    int error = de_machine_domain_create_as(world->machine, world->options.gfns, &uuid, &id);
    if (error == -ENOMEM)
        return; /* an allocation was made to fail */
    if (error)
        WORLD_FAIL(world, "making domain %u gave %d", id, error);
    for (uint32_t gfn = 0; gfn < world->options.gfns; gfn++) {
        struct page_model *page = &place->pages[gfn];
        page_fill(world, place, page, random_below(&world->disturbance, CONTENTS));
        const uint8_t *bytes = page->bytes;
        int32_t error = 0;
        page->present = de_machine_populate(world->machine, id, &gfn, &bytes, 1, &error) == 1;
    }
    place->tenancy++;
    place->halted = place->leaving = place->standing = false;
    place->paging = PAGED;
    place->tables++;
    place->idle_ticks = 0;
    place->id = place->last_id = id;
    world->result.domains_created++;
    guests_start(place);
}

static void note_departure(struct place *place)
{
    struct de_domain_accounting accounting;
    if (!de_machine_domain_account(place->world->machine, place->id, &accounting))
        place->world->result.slot_waits += accounting.slot_waits;
}

/* Let the pager know that the domain is gone. */
static void tell(struct place *place)
{
    if (!place->last_id)
        return;
    place->request = REQUEST_REMOVE;
    WAIT_UNTIL(place->world, place->request == REQUEST_NONE);
    place->unheard = false;
}

static void destroy(struct place *place)
{
    place->leaving = true;
    note_departure(place);
    de_machine_domain_destroy(place->world->machine, place->id);
}

/* It is destroyed: wait for those who were at it. */
static void clear_away(struct place *place)
{
    struct world *world = place->world;
    WAIT_UNTIL(world, place->guests == 0 && place->users == 0);
    host_detach(place);
    /* Or it has to find out when the id is another domain's; in the end there will be none. */
    bool told = world->calm || random_below(&world->operator.random, 2);
    if (told)
        tell(place);
    else
        place->unheard = true;
    place->known = false;
    place->id = 0;
    world->result.domains_destroyed++;
}

static void clear_out(struct place *place)
{
    destroy(place);
    clear_away(place);
}

static void kick(struct place *place)
{
    for (uint32_t vcpu = 0; vcpu < DE_SIMULATION_MAX_VCPUS; vcpu++)
        if (place->vcpus[vcpu])
            de_vcpu_kick(place->vcpus[vcpu]);
}

static bool crashed(struct place *place)
{
    char reason[DE_SIMULATION_TEXT_BYTES] = "";
    de_machine_domain_crash_reason(place->world->machine, place->id, reason, sizeof reason);
    if (!reason[0])
        return false;
    if (!strstr(reason, "no free frame") || !place->world->tight)
        WORLD_FAIL(place->world, "%.200s", reason);
    place->world->result.domains_crashed++;
    return true;
}

/* @return whether the domain can't go on. */
static bool lost(struct place *place)
{
    if (crashed(place))
        return true;
    if (place->halted) {
        place->world->result.domains_halted++;
        return true;
    }
    bool idle = place->operations == place->operations_before;
    place->operations_before = place->operations;
    place->idle_ticks = idle ? place->idle_ticks + 1 : 0;
    return place->hostile && place->guests && place->idle_ticks > HOSTILE_IDLE_TICKS;
}

static void hog(struct world *world, uint32_t argument)
{
    uint16_t id;
    struct de_machine_accounting accounting;
    de_machine_account(world->machine, &accounting);
    if (!world->tight || !accounting.free ||
        de_machine_domain_create(world->machine, (uint32_t)accounting.free, &id))
        return;
    de_machine_populate(world->machine, id, NULL, NULL, accounting.free, NULL);
    scheduler_sleep(world->scheduler, argument % HOG_NS);
    de_machine_domain_destroy(world->machine, id);
}

/* What somebody claimed is there when he takes it, whoever else wants frames meanwhile. */
static void claim(struct world *world, uint32_t argument)
{
    uint16_t id;
    struct de_machine_accounting accounting;
    de_machine_account(world->machine, &accounting);
    uint32_t frames = 1 + argument % MOST_CLAIMED;
    if (!world->tight || accounting.free < frames || de_machine_domain_create(world->machine, frames, &id))
        return;
    if (!de_machine_claim(world->machine, id, frames)) {
        scheduler_sleep(world->scheduler, argument % HOG_NS);
        int64_t got = de_machine_populate(world->machine, id, NULL, NULL, frames, NULL);
        if (got != (int64_t)frames)
            WORLD_FAIL(world, "of %u frames that were claimed, %lld were there", frames, (long long)got);
        world->result.claims++;
    }
    de_machine_domain_destroy(world->machine, id);
}

static void await_moment(struct world *world)
{
    if (random_below(&world->operator.random, 2) == 0)
        return;
    for (unsigned i = 0; i < MOMENT_CHANGES && world->pager_ready && !audit_between(world); i++)
        scheduler_yield(world->scheduler);
}

/*
 * kill -9, wherever its threads are; what they asked of the hypervisor is still carried out, and what they
 * had mapped is unmapped.
 */
static void kill_pager(struct world *world)
{
    world->pager_ready = false;
    if (world->pager) {
        daemon_add_statistics(world);
        world->result.pages_settled += audit_between(world);
    }
    scheduler_kill(world->scheduler, PROCESS_PAGER);
    /* As the hypervisor does for a client that hangs up. */
    world->hypervisor.operations->interrupt(world->hypervisor.context);
    scheduler_bury(world->scheduler, PROCESS_PAGER);
    size_t mappings = sizeof world->pager_maps / sizeof world->pager_maps[0];
    de_machine_unmap(world->machine, world->pager_maps, mappings);
    memset(world->pager_maps, 0, sizeof world->pager_maps);
    world->pager = NULL;
    world->store = NULL;
    cache_forget(world);
    world->result.pager_crashes++;
}

/* And the next one; now and then a domain goes before that. */
static void crash(struct world *world, struct place *place)
{
    if (!world->pager_running)
        return;
    await_moment(world);
    kill_pager(world);
    /* Who has a device model, if anybody has one, is the first. */
    if (random_below(&world->operator.random, 2))
        place = &world->places[0];
    bool goes = place->id && random_below(&world->operator.random, 3) == 0;
    if (goes) {
        scheduler_sleep(world->scheduler, random_below(&world->operator.random, GAP_NS));
        destroy(place);
    }
    if (!scheduler_spawn(world->scheduler, PROCESS_PAGER, "daemon", daemon_run, world))
        WORLD_FAIL(world, "no fiber for another pager");
    if (goes)
        clear_away(place);
}

static void act(struct world *world, const struct de_simulation_step *step)
{
    struct place *place = &world->places[step->domain % world->options.domains];
    switch (step->action) {
    case DE_SIMULATE_HOG:
        hog(world, step->argument);
        break;
    case DE_SIMULATE_CORRUPT:
        if (world->pager_ready)
            corrupt_object(world, step->argument);
        break;
    case DE_SIMULATE_DESTROY:
        if (!place->id)
            break;
        clear_out(place);
        if (guests_go_on(world))
            settle_in(place);
        break;
    case DE_SIMULATE_CRASH:
        crash(world, place);
        break;
    case DE_SIMULATE_CLAIM:
        claim(world, step->argument);
        break;
    default:
        break;
    }
}

static void tend(struct world *world)
{
    for (uint32_t i = 0; i < world->options.domains; i++) {
        struct place *place = &world->places[i];
        if (!place->id && guests_go_on(world))
            settle_in(place);
        if (!place->id || !lost(place))
            continue;
        kick(place);
        clear_out(place);
    }
}

static bool somebody_runs(const struct world *world)
{
    for (uint32_t i = 0; i < world->options.domains; i++)
        if (world->places[i].guests)
            return true;
    return false;
}

static void run(struct world *world)
{
    bool more = true;
    while (somebody_runs(world) || (world->options.steps ? more : guests_go_on(world))) {
        struct de_simulation_step step;
        more = actor_next(&world->operator, & step);
        if (more)
            act(world, &step);
        tend(world);
        scheduler_sleep(world->scheduler, 1 + random_below(&world->operator.random, TICK_NS));
    }
}

static void *reader(void *argument)
{
    struct place *place = argument;
    guest_read_all(place);
    place->guests--;
    return NULL;
}

/* Everything there is must still be right; then the domain goes, with its pages brought back or without. */
static void finish_place(struct place *place)
{
    struct world *world = place->world;
    if (!place->halted && !place->hostile) {
        place->guests++;
        if (!scheduler_spawn(world->scheduler, PROCESS_MACHINE, "last reader", reader, place))
            WORLD_FAIL(world, "no room for a reader");
        WAIT_UNTIL(world, place->guests == 0 || place->halted || crashed(place));
    }
    if (!place->halted && !place->hostile && !world->tight && !crashed(place)) {
        place->request = REQUEST_RESTORE;
        WAIT_UNTIL(world, place->request == REQUEST_NONE || place->halted);
        place->request = REQUEST_NONE;
        struct de_domain_accounting accounting;
        de_machine_domain_account(world->machine, place->id, &accounting);
        if (!place->halted && (accounting.paged || accounting.nominated))
            WORLD_FAIL(world, "domain %u was restored, but %llu pages are out and %llu nominated", place->id,
                       (unsigned long long)accounting.paged, (unsigned long long)accounting.nominated);
    }
    clear_out(place);
}

static void finish_machine(struct world *world)
{
    struct de_machine_accounting accounting;
    de_machine_account(world->machine, &accounting);
    if (accounting.free != accounting.frames || accounting.mapped || accounting.metadata_bytes)
        WORLD_FAIL(world, "no domain is left, but %llu frames, %llu mappings and %llu bytes are in use",
                   (unsigned long long)accounting.used, (unsigned long long)accounting.mapped,
                   (unsigned long long)accounting.metadata_bytes);
    de_machine_free(world->machine);
    world->machine = NULL;
}

void *operator_run(void *argument)
{
    struct world *world = argument;
    if (de_machine_create(world->options.frames, &world->machine))
        WORLD_FAIL(world, "no machine");
    disturbed_create(world);
    world->scheduler->allocation_failures_per_million = world->options.allocation_failures;
    world->pager_running = true;
    for (uint32_t i = 0; i < world->options.domains; i++)
        settle_in(&world->places[i]);
    if (!scheduler_spawn(world->scheduler, PROCESS_PAGER, "daemon", daemon_run, world) ||
        !scheduler_spawn(world->scheduler, PROCESS_MACHINE, "host", host_run, world) ||
        !scheduler_spawn(world->scheduler, PROCESS_WORLD, "auditor", auditor_run, world))
        WORLD_FAIL(world, "no fibers");
    run(world);
    world->calm = true;
    world->scheduler->allocation_failures_per_million = 0;
    WAIT_UNTIL(world, world->host_done);
    for (uint32_t i = 0; i < world->options.domains; i++)
        if (world->places[i].id)
            finish_place(&world->places[i]);
        else
            tell(&world->places[i]);
    world->daemon_stop = true;
    WAIT_UNTIL(world, !world->daemon_stop);
    finish_machine(world);
    if (!files_remove(world))
        WORLD_FAIL(world, "no domain is left, but files are");
    scheduler_finish(world->scheduler);
    return NULL;
}
