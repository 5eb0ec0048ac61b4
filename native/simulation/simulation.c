/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "world.h"

#include <diffengine/status.h>
#include <stdlib.h>
#include <string.h>

/** Over ten million operations, no run that went on took half as many changes for one. */
#define SPINS 1000000u
/** And none took a tenth of this in all. */
#define LIMIT_NS 5000000000u
#define OPERATION_LIMIT_NS 100000u
#define FRAMES_PER_MIB ((1u << 20) / DE_PAGE_SIZE)

/* A full machine could not even start a pager whose store lies in a domain. */
static bool has_store_frames(const struct de_simulation_options *options)
{
    return !options->store_domain ||
           options->frames >= options->domains * options->gfns + 16 + options->store_mib * FRAMES_PER_MIB;
}

static bool options_valid(const struct de_simulation_options *options)
{
    return options->domains >= 1 && options->domains <= DE_SIMULATION_MAX_DOMAINS && options->vcpus >= 1 &&
           options->vcpus <= DE_SIMULATION_MAX_VCPUS && options->gfns >= 2 &&
           options->gfns <= DE_SIMULATION_MAX_GFNS && options->frames >= 16 && options->frames <= 1u << 20 &&
           options->store_mib >= 1 && options->store_mib <= 1024 && options->switch_gap >= 1 &&
           options->switch_gap <= 1u << 20 && options->audit_interval >= 1 &&
           (options->steps || !options->step_count) && has_store_frames(options);
}

static uint32_t between(struct random_stream *random, uint32_t least, uint32_t most)
{
    return least + random_below(random, most - least + 1);
}

/* One of three runs has none of it, the others from few to many. */
static uint32_t rate(struct random_stream *random, uint32_t most)
{
    return random_below(random, 3) ? most >> random_below(random, 6) : 0;
}

static void draw_weights(struct random_stream *random, uint32_t *weights)
{
    weights[DE_SIMULATE_READ] = between(random, 10, 100);
    weights[DE_SIMULATE_WRITE] = between(random, 5, 50);
    weights[DE_SIMULATE_FILL] = between(random, 5, 50);
    weights[DE_SIMULATE_RELEASE] = rate(random, 16);
    weights[DE_SIMULATE_OBTAIN] = weights[DE_SIMULATE_RELEASE] * 8;
    weights[DE_SIMULATE_HYPERCALL] = between(random, 0, 10);
    weights[DE_SIMULATE_WATCH] = between(random, 0, 20);
    weights[DE_SIMULATE_EVICT] = between(random, 20, 100);
    weights[DE_SIMULATE_EVICT_WRONG] = between(random, 0, 5);
    weights[DE_SIMULATE_SHARE] = between(random, 0, 60);
    weights[DE_SIMULATE_UNSHARE] = between(random, 0, 20);
    weights[DE_SIMULATE_COMPACT] = between(random, 0, 3);
    weights[DE_SIMULATE_RESTORE] = rate(random, 4);
    weights[DE_SIMULATE_SWAP_OUT] = between(random, 0, 30);
    weights[DE_SIMULATE_RELEASE_DOMAIN] = rate(random, 2);
    weights[DE_SIMULATE_HOLD] = 1;
    weights[DE_SIMULATE_DEVICE_WRITE] = between(random, 0, 4);
    weights[DE_SIMULATE_GRANT] = between(random, 0, 2);
    weights[DE_SIMULATE_NOMINATE] = rate(random, 2);
    weights[DE_SIMULATE_HOG] = rate(random, 40);
    weights[DE_SIMULATE_CORRUPT] = rate(random, 30);
    weights[DE_SIMULATE_DESTROY] = rate(random, 60);
    weights[DE_SIMULATE_CRASH] = rate(random, 80);
    weights[DE_SIMULATE_CLAIM] = rate(random, 40);
}

void de_simulation_draw(uint64_t seed, uint64_t operations, struct de_simulation_options *options)
{
    struct random_stream random = {.state = simulation_mix(seed ^ 0x5eed)};
    *options = (struct de_simulation_options){
        .seed = seed,
        .operations = operations,
        .domains = between(&random, 1, 5),
        .vcpus = between(&random, 1, 3),
        .gfns = between(&random, 4, 4u << random_below(&random, 6)),
        .switch_gap = 1u << between(&random, 1, 6),
        .audit_interval = 500,
        .hostile_domains = random_below(&random, 4) ? 0 : 2,
        .device_domains = random_below(&random, 3) ? 0 : 1,
        .swap_slots = random_below(&random, 2) ? between(&random, 1, 64) : 0,
        .disk_errors = rate(&random, 50000),
        .load_no_memory = rate(&random, 100000),
        .refusals = rate(&random, 50000),
        .allocation_failures = rate(&random, 2000),
    };
    uint32_t pages = options->domains * options->gfns;
    bool tight = random_below(&random, 3) == 0;
    options->frames = tight ? pages * between(&random, 60, 95) / 100 + 16 : pages * 2 + 64;
    options->store_mib = 2 + pages * DE_PAGE_SIZE / (1u << 19);
    options->store_domain = !tight && random_below(&random, 3) == 0;
    if (options->store_domain)
        options->frames += options->store_mib * FRAMES_PER_MIB;
    draw_weights(&random, options->weights);
}

static void world_free(struct world *world)
{
    if (world->scheduler)
        scheduler_free(world->scheduler);
    for (uint32_t i = 0; i < DE_SIMULATION_MAX_DOMAINS; i++)
        free(world->places[i].pages);
    de_compress_free(world->lz4);
    de_compress_free(world->zstd);
    de_patch_encoder_free(world->patch);
    files_remove(world);
    free(world);
}

static int world_create(const struct de_simulation_options *options, struct world **result)
{
    struct world *world = calloc(1, sizeof *world);
    if (!world)
        return DE_NO_MEMORY;
    world->options = *options;
    world->tight = options->frames < options->domains * options->gfns + 16;
    contents_create(world);
    actors_create(world);
    cache_forget(world);
    bool made = de_compress_create(DE_COMPRESS_LZ4, 1, &world->lz4) == DE_OK &&
                de_compress_create(DE_COMPRESS_ZSTD, 1, &world->zstd) == DE_OK &&
                de_patch_encoder_create(&world->patch) == DE_OK;
    for (uint32_t i = 0; i < options->domains; i++) {
        struct place *place = &world->places[i];
        *place = (struct place){
            .world = world,
            .number = i,
            .hostile = options->hostile_domains >> i & 1,
            .device = options->device_domains >> i & 1,
            .pages = calloc(options->gfns, sizeof *place->pages),
        };
        made = made && place->pages;
    }
    int status = made ? files_create(world) : DE_NO_MEMORY;
    if (status == DE_OK) {
        world->scheduler = scheduler_create(options->seed, options->switch_gap);
        status = world->scheduler ? DE_OK : DE_NO_MEMORY;
    }
    if (status == DE_OK)
        *result = world;
    else
        world_free(world);
    return status;
}

int de_simulation_run(const struct de_simulation_options *options, struct de_simulation_result *result)
{
    if (scheduler_of_thread())
        return DE_BUSY;
    if (!options_valid(options))
        return DE_INVALID;
    struct world *world;
    int status = world_create(options, &world);
    if (status != DE_OK)
        return status;
    struct scheduler *scheduler = world->scheduler;
    scheduler->spins = SPINS;
    scheduler->limit_ns = LIMIT_NS + options->operations * OPERATION_LIMIT_NS;
    if (scheduler_spawn(scheduler, PROCESS_MACHINE, "operator", operator_run, world))
        scheduler_run(scheduler);
    else
        status = DE_NO_MEMORY;
    *result = world->result;
    result->trace_hash = scheduler->trace_hash;
    result->switches = scheduler->switches;
    result->virtual_ns = scheduler->now_ns;
    memcpy(result->failure, scheduler->failure, sizeof result->failure);
    world_free(world);
    return status;
}
