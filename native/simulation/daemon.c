/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The pager's process: it starts the pager, and proposes what the daemon would. What it proposes may be
 * nonsense; the pager has to see to that.
 */
#include "world.h"

#include <diffengine/digest.h>
#include <diffengine/status.h>
#include <string.h>

#define BATCH 4u
/** It rests after about so many steps, up to so long. */
#define BUSY_STEPS 4u
#define REST_NS 20000u
/** A released domain is taken back after about so many. */
#define RELEASED_STEPS 64u

struct batch {
    size_t count;
    uint16_t domains[BATCH];
    uint32_t gfns[BATCH];
    uint32_t objects[BATCH];
    int32_t results[BATCH];
};

static bool copy_page(struct world *world, uint16_t domain, uint32_t gfn, uint8_t *bytes)
{
    const uint8_t *page = NULL;
    int32_t error = 0;
    if (world->pager_operations.map(world, domain, &gfn, 1, &page, &error) != 1)
        return false;
    memcpy(bytes, page, DE_PAGE_SIZE);
    world->pager_operations.unmap(world, &page, 1);
    return true;
}

static const struct cached_object *choose_reference(struct world *world, uint32_t group, uint32_t choice)
{
    for (uint32_t i = 0; i < CACHED_OBJECTS; i++) {
        const struct cached_object *cached = &world->cache[(choice + i) % CACHED_OBJECTS];
        if (cached->id != DE_NONE && cached->group == group)
            return cached;
    }
    return NULL;
}

static bool uniform(const uint8_t *bytes)
{
    return memcmp(bytes, bytes + 8, DE_PAGE_SIZE - 8) == 0;
}

/* Fill in encoding and payload; raw if nothing shorter is to be had. */
static void encode(struct world *world, const uint8_t *bytes, uint32_t group, uint32_t how,
                   struct de_object *object, uint8_t *payload)
{
    *object = (struct de_object){.encoding = DE_ENCODING_RAW,
                                 .checksum = de_page_checksum(bytes),
                                 .payload = bytes,
                                 .payload_bytes = DE_PAGE_SIZE};
    const struct cached_object *reference = how % 8 < 4 ? choose_reference(world, group, how / 8) : NULL;
    size_t length = 0;
    if (uniform(bytes)) {
        object->encoding = DE_ENCODING_FILL;
        length = 8;
        memcpy(payload, bytes, length);
    } else if (reference) {
        de_patch_load_reference(world->patch, reference->bytes);
        length = de_patch_encode(world->patch, bytes, payload, DE_PAGE_SIZE);
        object->encoding = DE_ENCODING_PATCH;
        object->reference_count = 1;
        object->references[0] = reference->id;
    } else if (how % 8 < 7) {
        bool zstd = how % 64 == 4;
        length = de_compress_page(zstd ? world->zstd : world->lz4, bytes, payload, DE_PAGE_SIZE);
        object->encoding = zstd ? DE_ENCODING_ZSTD : DE_ENCODING_LZ4;
    }
    if (!length) {
        object->encoding = DE_ENCODING_RAW;
        object->reference_count = 0;
        return;
    }
    object->payload = payload;
    object->payload_bytes = (uint32_t)length;
}

static void cache_put(struct world *world, uint32_t slot, uint32_t id, uint32_t group, const uint8_t *bytes)
{
    struct cached_object *cached = &world->cache[slot % CACHED_OBJECTS];
    if (de_store_retain(world->store, id) != DE_OK)
        return;
    uint32_t old = cached->id;
    cached->id = id;
    cached->group = group;
    memcpy(cached->bytes, bytes, DE_PAGE_SIZE);
    if (old != DE_NONE)
        de_store_release(world->store, old);
}

void cache_forget(struct world *world)
{
    for (uint32_t i = 0; i < CACHED_OBJECTS; i++)
        world->cache[i].id = DE_NONE;
}

/* An object with these bytes, of which the caller has one reference; DE_NONE: none to be had. */
static uint32_t make_object(struct world *world, uint32_t group, const uint8_t *bytes, uint32_t how)
{
    for (uint32_t i = 0; how % 16 > 5 && i < CACHED_OBJECTS; i++) {
        const struct cached_object *cached = &world->cache[i];
        if (cached->id != DE_NONE && cached->group == group && !memcmp(cached->bytes, bytes, DE_PAGE_SIZE) &&
            de_store_retain(world->store, cached->id) == DE_OK)
            return cached->id;
    }
    struct de_object object;
    uint8_t payload[DE_PAGE_SIZE];
    uint32_t id;
    encode(world, bytes, group, how, &object, payload);
    if (de_store_put(world->store, &object, &id) != DE_OK)
        return DE_NONE;
    if (how >> 8 & 1)
        cache_put(world, how >> 9, id, group, bytes);
    return id;
}

static void count_results(struct world *world, const struct batch *batch)
{
    for (size_t i = 0; i < batch->count; i++) {
        world->result.refused += batch->results[i] != DE_PROPOSAL_DONE;
        scheduler_note(world->scheduler, (uint64_t)(int64_t)batch->results[i]);
    }
}

static void evict(struct world *world, struct place *place, const struct de_simulation_step *step)
{
    struct batch batch = {.count = 0};
    uint8_t bytes[DE_PAGE_SIZE];
    uint32_t wanted = 1 + (step->argument >> 24) % BATCH;
    for (uint32_t i = 0; i < wanted; i++) {
        uint32_t gfn = (step->gfn + i) % world->options.gfns;
        uint16_t id = place->id;
        if (!id || !copy_page(world, id, gfn, bytes))
            continue;
        uint32_t object = make_object(world, place_group(place), bytes, step->argument + i);
        if (object == DE_NONE)
            continue;
        batch.domains[batch.count] = id;
        batch.gfns[batch.count] = gfn;
        batch.objects[batch.count++] = object;
    }
    de_pager_evict(world->pager, batch.domains, batch.gfns, batch.objects, batch.count, batch.results);
    count_results(world, &batch);
    for (size_t i = 0; i < batch.count; i++)
        de_store_release(world->store, batch.objects[i]);
}

/* No page ever has these bytes. */
static void evict_wrong(struct world *world, struct place *place, const struct de_simulation_step *step)
{
    uint8_t bytes[DE_PAGE_SIZE];
    memset(bytes, 0xee, sizeof bytes);
    memcpy(bytes, &step->argument, sizeof step->argument);
    struct de_object object = {.encoding = DE_ENCODING_RAW,
                               .checksum = de_page_checksum(bytes),
                               .payload = bytes,
                               .payload_bytes = DE_PAGE_SIZE};
    struct batch batch = {.count = 1, .domains = {place->id}, .gfns = {step->gfn % world->options.gfns}};
    batch.objects[0] = step->argument;
    bool made = step->argument % 4 && de_store_put(world->store, &object, &batch.objects[0]) == DE_OK;
    if (!made)
        batch.objects[0] = 0x40000000u | step->argument;
    de_pager_evict(world->pager, batch.domains, batch.gfns, batch.objects, 1, batch.results);
    if (batch.results[0] == DE_PROPOSAL_DONE)
        WORLD_FAIL(world, "gfn %#x of domain %u was evicted as an object that does not have its content",
                   batch.gfns[0], batch.domains[0]);
    count_results(world, &batch);
    if (made)
        de_store_release(world->store, batch.objects[0]);
}

static void watch(struct world *world, struct place *place, const struct de_simulation_step *step)
{
    struct batch batch = {.count = 1 + step->argument % BATCH};
    for (uint32_t i = 0; i < batch.count; i++) {
        batch.domains[i] = place->id;
        batch.gfns[i] = step->gfn + i; /* perhaps beyond its end */
    }
    de_pager_watch(world->pager, batch.domains, batch.gfns, batch.count, batch.results);
    count_results(world, &batch);
}

/* A page of the other place with the same content, if there is one nearby. */
static uint32_t find_partner(const struct place *place, uint32_t gfn, const struct place *other,
                             uint32_t first)
{
    uint32_t gfns = place->world->options.gfns;
    uint8_t content = place->pages[gfn].content;
    for (uint32_t i = 0; i < gfns; i++) {
        uint32_t candidate = (first + i) % gfns;
        if (other->pages[candidate].content == content && !(other == place && candidate == gfn))
            return candidate;
    }
    return first % gfns;
}

static void share(struct world *world, struct place *place, const struct de_simulation_step *step)
{
    struct place *other = &world->places[step->other_domain % world->options.domains];
    if (place_group(other) != place_group(place))
        other = place;
    uint32_t gfn = step->gfn % world->options.gfns;
    uint32_t partner = find_partner(place, gfn, other, step->other_gfn);
    int32_t result = 0;
    de_pager_share(world->pager, &place->id, &gfn, &other->id, &partner, 1, &result);
    world->result.refused += result != DE_PROPOSAL_DONE;
    scheduler_note(world->scheduler, (uint64_t)(int64_t)result);
}

static void unshare(struct world *world, struct place *place, const struct de_simulation_step *step)
{
    struct batch batch = {.count = 1, .domains = {place->id}, .gfns = {step->gfn}};
    de_pager_unshare(world->pager, batch.domains, batch.gfns, 1, batch.results);
    count_results(world, &batch);
}

static void swap_out(struct world *world, struct place *place, const struct de_simulation_step *step)
{
    struct batch batch = {.count = 1};
    uint32_t gfn = step->gfn % world->options.gfns;
    if (de_pager_states(world->pager, place->id, gfn, 1, NULL, batch.objects, NULL) != DE_OK)
        return;
    de_pager_swap_out(world->pager, batch.objects, 1, batch.results);
    count_results(world, &batch);
}

/* Nothing of a domain that the pager has nothing to do with any more is out. */
static void check_nothing_out(struct world *world, struct place *place, uint32_t tenancy)
{
    struct de_domain_accounting accounting;
    int error = de_machine_domain_account(world->machine, place->id, &accounting);
    if (!error && place->tenancy == tenancy && (accounting.paged || accounting.nominated))
        WORLD_FAIL(world, "domain %u was given up, but %llu pages are out and %llu nominated", place->id,
                   (unsigned long long)accounting.paged, (unsigned long long)accounting.nominated);
}

/* `diffengine release`. Whoever else does what. */
static void release(struct world *world, struct place *place)
{
    uint32_t tenancy = place->tenancy;
    place->paging = RELEASING;
    int status = de_pager_release(world->pager, place->id);
    if (place->tenancy != tenancy || place->leaving)
        return;
    place->paging = status == DE_OK ? RELEASED : PAGED;
    if (status != DE_OK)
        return;
    place->known = false;
    place->tables++;
    world->result.domains_released++;
    check_nothing_out(world, place, tenancy);
}

/* A live domain is removed as one that went: refused, if something of it is out or watched. */
static void give_up(struct world *world, struct place *place, const struct de_simulation_step *step)
{
    uint32_t tenancy = place->tenancy;
    if (step->argument & 2)
        de_pager_restore(world->pager, place->id);
    if (step->argument & 4)
        watch(world, place, step);
    if (place->tenancy != tenancy || place->leaving ||
        de_pager_remove_domain(world->pager, place->id) != DE_OK || place->tenancy != tenancy ||
        place->leaving)
        return;
    place->known = false;
    place->tables++;
    check_nothing_out(world, place, tenancy);
}

static void propose(struct world *world, const struct de_simulation_step *step)
{
    struct place *place = &world->places[step->domain % world->options.domains];
    switch (step->action) {
    case DE_SIMULATE_WATCH:
        watch(world, place, step);
        break;
    case DE_SIMULATE_EVICT:
        evict(world, place, step);
        break;
    case DE_SIMULATE_EVICT_WRONG:
        evict_wrong(world, place, step);
        break;
    case DE_SIMULATE_SHARE:
        share(world, place, step);
        break;
    case DE_SIMULATE_UNSHARE:
        unshare(world, place, step);
        break;
    case DE_SIMULATE_COMPACT:
        de_store_compact(world->store);
        break;
    case DE_SIMULATE_RESTORE:
        de_pager_restore(world->pager, place->id);
        break;
    case DE_SIMULATE_SWAP_OUT:
        swap_out(world, place, step);
        break;
    case DE_SIMULATE_RELEASE_DOMAIN:
        if (!place->id || !place->known || place->leaving || place->request != REQUEST_NONE)
            break;
        if (step->argument & 1)
            give_up(world, place, step);
        else
            release(world, place);
        break;
    default:
        break;
    }
}

/* What the operator asked for is done only when it worked: it may have to be asked for again. */
static void serve_request(struct world *world, struct place *place)
{
    int status = DE_OK;
    if (place->request == REQUEST_RESTORE)
        status = de_pager_restore(world->pager, place->id);
    if (place->request == REQUEST_REMOVE)
        status = de_pager_remove_domain(world->pager, place->last_id);
    if (status == DE_BUSY || status == DE_NO_MEMORY)
        return;
    if (status == DE_CORRUPT && !world->result.corruptions && !world->result.disk_errors)
        WORLD_FAIL(world, "restoring domain %u found a corrupt object", place->id);
    if (place->request == REQUEST_REMOVE)
        place->known = false;
    place->request = REQUEST_NONE;
}

/* As long as it is released it is not to be paged, also if somebody tries. */
static void leave_alone(struct world *world, struct place *place)
{
    uint32_t tenancy = place->tenancy;
    uint32_t drawn = random_below(&world->daemon.random, RELEASED_STEPS);
    if (drawn == 0 && de_pager_take_back(world->pager, place->id) == DE_OK && place->tenancy == tenancy)
        place->paging = PAGED;
    if (drawn == 1 && de_pager_add_domain(world->pager, place->id, world->options.gfns) == DE_OK &&
        place->tenancy == tenancy && !place->leaving)
        WORLD_FAIL(world, "domain %u was released, and is paged again", place->id);
}

/* A successor knows those already that were added before its predecessor died. */
static void add(struct world *world, struct place *place)
{
    uint32_t tenancy = place->tenancy;
    int status = de_pager_add_domain(world->pager, place->id, world->options.gfns);
    if (status != DE_OK && status != DE_BUSY)
        return;
    if (place->device && de_pager_set_device_model(world->pager, place->id) != DE_OK)
        return;
    /* Another one may have moved in meanwhile. */
    place->known = place->tenancy == tenancy && !place->leaving;
}

static void tend_to(struct world *world, struct place *place)
{
    if (place->paging == RELEASING)
        release(world, place);
    else if (place->paging == RELEASED)
        leave_alone(world, place);
    else if (!place->known)
        add(world, place);
}

static void tend(struct world *world)
{
    for (uint32_t i = 0; i < world->options.domains; i++) {
        struct place *place = &world->places[i];
        if (place->request != REQUEST_NONE)
            serve_request(world, place);
        else if (place->id && !place->leaving)
            tend_to(world, place);
    }
}

/* With no frame free, faults wait until something goes: as the watermarks would see to. */
static bool pressed(struct world *world)
{
    struct de_machine_accounting accounting;
    de_machine_account(world->machine, &accounting);
    return world->tight && accounting.free < 2;
}

static void relieve(struct world *world)
{
    struct de_simulation_step step = {
        .action = DE_SIMULATE_EVICT,
        .domain = (uint8_t)random_below(&world->daemon.random, world->options.domains),
        .gfn = (uint16_t)random_below(&world->daemon.random, world->options.gfns),
        .argument = (uint32_t)random_next(&world->daemon.random),
    };
    /* A page that is shared with nobody, or was once, can't be evicted. */
    struct place *place = &world->places[step.domain];
    unshare(world, place, &step);
    propose(world, &step);
}

/* A store domain that can't be made or mapped for want of memory is no reason to give up. */
static bool store_domain_lacks(const struct world *world)
{
    return world->options.store_domain && (world->options.allocation_failures || world->options.refusals);
}

/* The first one makes everything, the others take over; what an allocation that failed prevents is tried
 * again. */
static void start(struct world *world)
{
    struct de_hypervisor hypervisor = {.operations = &world->pager_operations, .context = world};
    char error[DE_SIMULATION_TEXT_BYTES] = "";
    int status;
    do
        status = de_pager_open(files_state(world), &hypervisor, &world->pager, error, sizeof error);
    while (status == DE_NO_MEMORY ||
           (store_domain_lacks(world) && (status == DE_FULL || status == DE_SYSTEM)));
    if (status != DE_OK)
        WORLD_FAIL(world, "the pager does not start: %.200s", error);
    world->store = de_pager_store(world->pager);
    if (de_pager_start(world->pager) != DE_OK)
        WORLD_FAIL(world, "the pager's threads do not start");
    while (de_pager_serve_requests(world->pager) != DE_OK)
        ; /* an allocation failed */
    world->pager_ready = true;
}

void daemon_add_statistics(struct world *world)
{
    struct de_pager_statistics statistics;
    de_pager_read_statistics(world->pager, &statistics);
    world->result.evictions += statistics.evictions;
    world->result.shares += statistics.shares;
    world->result.loads += statistics.loads;
    world->result.touches += statistics.touches;
    world->result.drops += statistics.drops;
    world->result.duplicates += statistics.duplicates;
    world->result.load_no_memory += statistics.load_no_memory;
    world->result.bad_events += statistics.bad_events;
    world->result.swap_outs += statistics.swap_outs;
    world->result.swap_ins += statistics.swap_ins;
    if (world->options.store_domain && world->store) {
        struct de_store_statistics store;
        de_store_statistics(world->store, &store);
        uint64_t frames = store.populated_bytes / DE_PAGE_SIZE;
        if (frames > world->result.store_frames)
            world->result.store_frames = frames;
    }
}

static void stop(struct world *world)
{
    for (uint32_t i = 0; i < CACHED_OBJECTS; i++)
        if (world->cache[i].id != DE_NONE)
            de_store_release(world->store, world->cache[i].id);
    cache_forget(world);
    daemon_add_statistics(world);
    de_pager_stop(world->pager);
    world->pager_ready = false;
    while (de_pager_retire(world->pager, 1))
        ;
    /* What a release found no memory to note down waits for a sweep. */
    if (world->options.allocation_failures)
        de_store_sweep(world->store);
    struct de_store_statistics statistics;
    de_store_statistics(world->store, &statistics);
    /* A damaged header does not say what it refers to: that stays, and stays counted. */
    if (!world->result.corruptions &&
        (statistics.objects || statistics.payload_bytes || statistics.limbo_bytes))
        WORLD_FAIL(world, "no domain is left, but %llu objects, %llu bytes of payload and %llu in limbo are",
                   (unsigned long long)statistics.objects, (unsigned long long)statistics.payload_bytes,
                   (unsigned long long)statistics.limbo_bytes);
    de_pager_free(world->pager);
    world->pager = NULL;
    world->store = NULL;
}

void *daemon_run(void *argument)
{
    struct world *world = argument;
    struct de_simulation_step step;
    start(world);
    while (!world->daemon_stop) {
        tend(world);
        if (pressed(world))
            relieve(world);
        if (!world->calm && actor_next(&world->daemon, &step))
            propose(world, &step);
        if (random_below(&world->daemon.random, BUSY_STEPS) == 0)
            scheduler_sleep(world->scheduler, random_below(&world->daemon.random, REST_NS));
    }
    stop(world);
    world->daemon_stop = false;
    return NULL;
}
