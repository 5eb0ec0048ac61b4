/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Machine and pager in virtual time: runs repeat exactly, invariants hold over many seeds, bad options are
 * refused. */
#include "check.h"

#include <diffengine/simulation.h>
#include <diffengine/status.h>
#include <string.h>

#define SEEDS 100u
#define OPERATIONS 3000u

static void run(const struct de_simulation_options *options, struct de_simulation_result *result)
{
    CHECK_EQ(de_simulation_run(options, result), DE_OK);
    if (!result->failure[0])
        return;
    fprintf(stderr, "seed %" PRIu64 ": %s\n", options->seed, result->failure);
    exit(1);
}

static void invariants_hold_over_many_seeds(void)
{
    struct de_simulation_result sum = {.operations = 0};
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct de_simulation_options options;
        struct de_simulation_result result;
        de_simulation_draw(seed, OPERATIONS, &options);
        run(&options, &result);
        CHECK(result.operations >= OPERATIONS);
        CHECK(result.audits > 0);
        sum.evictions += result.evictions;
        sum.shares += result.shares;
        sum.loads += result.loads;
        sum.touches += result.touches;
        sum.drops += result.drops;
        sum.duplicates += result.duplicates;
        sum.device_writes += result.device_writes;
        sum.brought_in += result.brought_in;
        sum.grant_writes += result.grant_writes;
        sum.hypercalls += result.hypercalls;
        sum.hypercalls_again += result.hypercalls_again;
        sum.domains_released += result.domains_released;
        sum.claims += result.claims;
        sum.store_frames += result.store_frames;
        sum.load_no_memory += result.load_no_memory;
        sum.slot_waits += result.slot_waits;
        sum.bad_events += result.bad_events;
        sum.pager_crashes += result.pager_crashes;
        sum.pages_settled += result.pages_settled;
        sum.swap_outs += result.swap_outs;
        sum.swap_ins += result.swap_ins;
        sum.disk_errors += result.disk_errors;
        sum.domains_halted += result.domains_halted;
        sum.domains_destroyed += result.domains_destroyed;
    }
    /* Nothing of what is to be tried was left out. */
    CHECK(sum.evictions && sum.shares && sum.loads && sum.touches && sum.drops && sum.duplicates);
    CHECK(sum.device_writes && sum.load_no_memory && sum.bad_events && sum.domains_halted);
    CHECK(sum.pager_crashes && sum.pages_settled && sum.swap_outs && sum.swap_ins && sum.disk_errors);
    CHECK(sum.brought_in && sum.grant_writes && sum.hypercalls && sum.hypercalls_again &&
          sum.domains_released);
    CHECK(sum.claims && sum.store_frames);
    CHECK(sum.domains_destroyed > SEEDS);
}

static void a_run_repeats_exactly(void)
{
    for (uint64_t seed = 100; seed < 104; seed++) {
        struct de_simulation_options options;
        struct de_simulation_result first, second;
        de_simulation_draw(seed, OPERATIONS, &options);
        run(&options, &first);
        run(&options, &second);
        CHECK(memcmp(&first, &second, sizeof first) == 0);
    }
}

static void seeds_differ(void)
{
    struct de_simulation_options options;
    struct de_simulation_result first, second;
    de_simulation_draw(7, OPERATIONS, &options);
    run(&options, &first);
    options.seed++;
    run(&options, &second);
    CHECK(first.trace_hash != second.trace_hash);
}

static void a_full_ring_makes_vcpus_wait(void)
{
    /* Three vCPUs and a host that asks for evicted pages: more than eight requests at a time. */
    struct de_simulation_step steps[400];
    struct de_simulation_options options;
    struct de_simulation_result result;
    de_simulation_draw(3, 0, &options);
    options.domains = 1;
    options.vcpus = 4;
    options.gfns = 64;
    options.frames = 256;
    options.hostile_domains = options.device_domains = options.refusals = options.allocation_failures = 0;
    options.store_domain = 0;
    options.load_no_memory = 900000;
    for (size_t i = 0; i < 400; i++)
        steps[i] = (struct de_simulation_step){
            .action = i < 64    ? DE_SIMULATE_EVICT
                      : i % 3   ? DE_SIMULATE_HOLD
                      : i < 300 ? DE_SIMULATE_READ
                                : DE_SIMULATE_RELEASE,
            .gfn = (uint16_t)(i % 64),
            .vcpu = (uint8_t)(i % 4),
            .argument = 7,
        };
    options.steps = steps;
    options.step_count = 400;
    uint64_t waits = 0;
    for (options.seed = 0; options.seed < 10; options.seed++) {
        run(&options, &result);
        CHECK(result.load_no_memory > 0);
        waits += result.slot_waits;
    }
    CHECK(waits > 0);
}

/* A hostile domain is not restored before it goes: the pager has a page of it until it hears of that. */
static void the_pager_hears_of_the_last_domains_end(void)
{
    const struct de_simulation_step step = {.action = DE_SIMULATE_EVICT};
    struct de_simulation_options options = {
        .domains = 1,
        .vcpus = 1,
        .gfns = 2,
        .frames = 18,
        .store_mib = 4,
        .switch_gap = 1,
        .audit_interval = 5,
        .hostile_domains = 1,
        .steps = &step,
        .step_count = 1,
    };
    struct de_simulation_result result;
    for (options.seed = 0; options.seed < 20; options.seed++)
        run(&options, &result);
}

static void bad_options_are_refused(void)
{
    struct de_simulation_options good, bad;
    struct de_simulation_result result;
    de_simulation_draw(1, 10, &good);
#define REFUSED(field, value)                                                                                \
    bad = good;                                                                                              \
    bad.field = value;                                                                                       \
    CHECK_EQ(de_simulation_run(&bad, &result), DE_INVALID)
    REFUSED(domains, 0);
    REFUSED(domains, DE_SIMULATION_MAX_DOMAINS + 1);
    REFUSED(vcpus, 0);
    REFUSED(vcpus, DE_SIMULATION_MAX_VCPUS + 1);
    REFUSED(gfns, 1);
    REFUSED(gfns, DE_SIMULATION_MAX_GFNS + 1);
    REFUSED(frames, 15);
    REFUSED(store_mib, 0);
    REFUSED(switch_gap, 0);
    REFUSED(audit_interval, 0);
    REFUSED(step_count, 1);
#undef REFUSED
    bad = good;
    bad.store_domain = 1;
    bad.frames = bad.domains * bad.gfns + 16;
    CHECK_EQ(de_simulation_run(&bad, &result), DE_INVALID);
}

int main(void)
{
    bad_options_are_refused();
    a_run_repeats_exactly();
    seeds_differ();
    invariants_hold_over_many_seeds();
    a_full_ring_makes_vcpus_wait();
    the_pager_hears_of_the_last_domains_end();
    return 0;
}
