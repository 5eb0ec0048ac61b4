/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guest programs: what each touches, when, what it leaves in memory, and that it notices every wrong byte. */
#include "check.h"

#include <diffengine/program.h>
#include <errno.h>
#include <math.h>
#include <string.h>
#include <time.h>

#define GFNS 64u
#define MS 1000000u

static struct de_machine *machine;
static struct de_hypervisor hypervisor;
static uint16_t domain;

#define HV(operation, ...) hypervisor.operations->operation(hypervisor.context, ##__VA_ARGS__)

static void start(bool populated)
{
    CHECK_EQ(de_machine_create(2 * GFNS, &machine), 0);
    hypervisor = de_machine_hypervisor(machine);
    CHECK_EQ(de_machine_domain_create(machine, GFNS, &domain), 0);
    if (populated)
        CHECK_EQ(de_machine_populate(machine, domain, NULL, NULL, GFNS, NULL), GFNS);
}

static void finish(void)
{
    CHECK_EQ(de_machine_domain_destroy(machine, domain), 0);
    de_machine_free(machine);
}

static void sleep_ms(unsigned ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * MS}, NULL);
}

static struct de_program *run(const struct de_program_options *options)
{
    struct de_program *program;
    CHECK_EQ(de_program_start(machine, domain, options, &program), 0);
    return program;
}

static struct de_program_result read_counters(const struct de_program *program)
{
    struct de_program_result result;
    de_program_read(program, &result);
    return result;
}

static struct de_program_result stop(struct de_program *program)
{
    struct de_program_result result;
    de_program_stop(program);
    de_program_join(program, &result, NULL);
    return result;
}

static void wait_for_phase(const struct de_program *program, uint32_t phase)
{
    while (read_counters(program).phase < phase)
        sleep_ms(1);
}

static void copy_page(uint32_t gfn, uint8_t *copy)
{
    const uint8_t *page;
    int32_t error;
    CHECK_EQ(HV(map, domain, &gfn, 1, &page, &error), 1);
    memcpy(copy, page, DE_PAGE_SIZE);
    HV(unmap, &page, 1);
}

static void flip_byte(uint32_t gfn, uint32_t offset)
{
    uint8_t *page;
    int32_t error;
    CHECK_EQ(de_machine_map(machine, domain, true, &gfn, 1, &page, &error), 1);
    page[offset] ^= 1;
    de_machine_unmap(machine, (const uint8_t *const *)&page, 1);
}

static const uint32_t hot[] = {3, 5, 7, 40};

static struct de_program_options working_set(void)
{
    return (struct de_program_options){
        .kind = DE_PROGRAM_WORKING_SET, .seed = 1, .gfns = GFNS, .hot = hot, .hot_count = 4, .zipf = 1};
}

static void test_arguments(void)
{
    start(true);
    static const uint32_t outside[] = {GFNS};
    static const uint8_t bits[8];
    const struct de_program_options good = working_set();
    struct de_program_options bad[12];
    for (size_t i = 0; i < 12; i++)
        bad[i] = good;
    bad[0].gfns = 0;
    bad[1].hot_count = 0;
    bad[2].hot = outside;
    bad[2].hot_count = 1;
    bad[3].zipf = 5;
    bad[4].excursion_fraction = 1.01;
    bad[5].write_fraction = (double)NAN;
    bad[6].operations_per_s = -1;
    bad[7].first_gfn = 1;
    bad[8].kind = DE_PROGRAM_TRACE;
    bad[9] = (struct de_program_options){.kind = DE_PROGRAM_PHASES, .gfns = 1, .similar_percent = 101};
    bad[10].kind = (enum de_program_kind)9;
    bad[11] = good;
    bad[11].kind = DE_PROGRAM_TRACE;
    bad[11].bits = bits;
    bad[11].maps = 1;
    bad[11].bits_per_map = 12;
    bad[11].interval_ns = 1;
    struct de_program *program;
    for (size_t i = 0; i < 12; i++)
        CHECK_EQ(de_program_start(machine, domain, &bad[i], &program), -EINVAL);
    CHECK_EQ(de_program_start(machine, 99, &good, &program), -ESRCH);
    finish();
}

static void test_idle_touches_nothing(void)
{
    start(true);
    CHECK_EQ(HV(paging_enable, domain), 0);
    for (uint32_t gfn = 0; gfn < GFNS; gfn++)
        CHECK_EQ(HV(paging_nominate, domain, gfn), 0);
    struct de_program *program = run(&(struct de_program_options){.kind = DE_PROGRAM_IDLE, .gfns = GFNS});
    sleep_ms(20);
    struct de_program_result result = stop(program);
    CHECK_EQ(result.status, 0);
    CHECK_EQ(result.reads + result.writes + result.faults, 0);
    CHECK(result.run_ns >= 20 * MS);
    for (uint32_t gfn = 0; gfn < GFNS; gfn++)
        CHECK_EQ(de_machine_p2m_type(machine, domain, gfn), DE_P2M_PAGING_OUT);
    finish();
}

/* Without excursions only the hot pages change; with them, all do. Popularity falls with the rank. */
static void test_working_set_pages(void)
{
    start(true);
    struct de_program_options options = working_set();
    options.write_fraction = 0.5;
    struct de_program *program = run(&options);
    while (read_counters(program).reads < 3000)
        sleep_ms(1);
    struct de_program_result result = stop(program);
    CHECK_EQ(result.status, 0);
    CHECK_EQ(result.wrong_bytes, 0);
    CHECK(result.writes > result.reads / 2 && result.reads > result.writes / 2);
    static const uint8_t zero[DE_PAGE_SIZE];
    for (uint32_t gfn = 0; gfn < GFNS; gfn++) {
        uint8_t page[DE_PAGE_SIZE];
        copy_page(gfn, page);
        bool is_hot = gfn == 3 || gfn == 5 || gfn == 7 || gfn == 40;
        CHECK_EQ(memcmp(page, zero, DE_PAGE_SIZE) != 0, is_hot);
    }
    finish();

    start(true);
    options.excursion_fraction = 0.5;
    program = run(&options);
    while (read_counters(program).writes < 3000)
        sleep_ms(1);
    stop(program);
    for (uint32_t gfn = 0; gfn < GFNS; gfn++) {
        uint8_t page[DE_PAGE_SIZE];
        copy_page(gfn, page);
        CHECK(memcmp(page, zero, DE_PAGE_SIZE) != 0);
    }
    finish();
}

static void test_rate(void)
{
    start(true);
    struct de_program_options options = working_set();
    options.operations_per_s = 5000;
    struct de_program *program = run(&options);
    sleep_ms(200);
    struct de_program_result result = stop(program);
    double expected = 5000 * (double)result.run_ns / 1e9;
    CHECK((double)result.reads <= expected + 10);
    CHECK((double)result.reads >= expected / 2);
    /* Slow, and yet it ends at once. */
    options.operations_per_s = 1e-3;
    program = run(&options);
    while (read_counters(program).reads < 1)
        sleep_ms(1);
    result = stop(program);
    CHECK_EQ(result.reads, 1);
    finish();
}

static void test_wrong_bytes_are_counted(void)
{
    start(true);
    uint8_t expected[DE_PAGE_SIZE] = {[9] = 1, [4000] = 2};
    const uint8_t *content[GFNS] = {[3] = expected};
    struct de_program_options options = working_set();
    options.hot_count = 1;
    options.content = content;
    options.operations_per_s = 1000;
    struct de_program *program = run(&options);
    while (read_counters(program).reads < 2)
        sleep_ms(1);
    struct de_program_result result = stop(program);
    CHECK_EQ(result.status, 0);
    CHECK_EQ(result.wrong_bytes, 2 * result.reads);
    finish();
}

/* A page that is out: the stall is visible while it lasts, and a sample when it is over. */
static void test_stall(void)
{
    start(true);
    CHECK_EQ(HV(paging_enable, domain), 0);
    CHECK_EQ(HV(paging_nominate, domain, 3), 0);
    CHECK_EQ(HV(paging_evict, domain, 3), 0);
    struct de_program_options options = working_set();
    options.hot_count = 1;
    options.sample_capacity = 8;
    struct de_program *program = run(&options);
    struct de_vm_event event;
    while (HV(ring_take, domain, &event) != 1)
        sleep_ms(1);
    CHECK_EQ(event.gfn, 3);
    sleep_ms(10);
    struct de_program_result result = read_counters(program);
    CHECK_EQ(result.faults, 0);
    CHECK(result.stall_ns >= 10 * MS);
    static const uint8_t zero[DE_PAGE_SIZE];
    CHECK_EQ(HV(paging_load, domain, 3, zero), 0);
    CHECK_EQ(HV(ring_answer, domain, &event), 0);
    while (read_counters(program).reads < 1)
        sleep_ms(1);
    uint64_t samples[8] = {0};
    de_program_stop(program);
    de_program_join(program, &result, samples);
    CHECK_EQ(result.faults, 1);
    CHECK_EQ(result.samples, 1);
    CHECK_EQ(samples[0], result.stall_ns);
    CHECK(samples[0] >= 10 * MS);
    CHECK_EQ(result.wrong_bytes, 0);
    /* Stopped out of a wait that would never end. */
    CHECK_EQ(HV(paging_nominate, domain, 3), 0);
    CHECK_EQ(HV(paging_evict, domain, 3), 0);
    program = run(&options);
    while (HV(ring_take, domain, &event) != 1)
        sleep_ms(1);
    result = stop(program);
    CHECK_EQ(result.status, 0);
    CHECK_EQ(result.reads, 0);
    /* A domain that goes is no success. */
    program = run(&options);
    CHECK_EQ(de_machine_domain_destroy(machine, domain), 0);
    de_program_join(program, &result, NULL);
    CHECK_EQ(result.status, -ESHUTDOWN);
    CHECK_EQ(de_machine_domain_create(machine, 1, &domain), 0);
    finish();
}

static struct de_program_options generator(enum de_generated_kind kind, enum de_generated_free free_as)
{
    return (struct de_program_options){.kind = DE_PROGRAM_PHASES,
                                       .seed = 7,
                                       .gfns = GFNS,
                                       .generated = kind,
                                       .similar_percent = 95,
                                       .free_as = free_as,
                                       .phase_ns = 20 * MS};
}

static uint32_t equal_runs(const uint8_t *a, const uint8_t *b)
{
    uint32_t equal = 0;
    for (uint32_t i = 0; i < DE_PAGE_SIZE; i += 16)
        equal += memcmp(a + i, b + i, 16) == 0;
    return equal;
}

/* Two neighbouring pages tell the kinds apart. */
static void check_generated(enum de_generated_kind kind)
{
    static const uint8_t zero[DE_PAGE_SIZE];
    uint8_t a[DE_PAGE_SIZE], b[DE_PAGE_SIZE];
    copy_page(10, a);
    copy_page(11, b);
    uint32_t runs = DE_PAGE_SIZE / 16;
    CHECK_EQ(equal_runs(a, zero) == runs, kind == DE_GENERATED_ZERO);
    CHECK_EQ(equal_runs(a, b) == runs, kind == DE_GENERATED_ZERO || kind == DE_GENERATED_IDENTICAL);
    if (kind == DE_GENERATED_RANDOM)
        CHECK_EQ(equal_runs(a, b), 0);
    /* 13 of 256 runs are random in each page, and two pages' 13 seldom coincide. */
    if (kind == DE_GENERATED_SIMILAR)
        CHECK(equal_runs(a, b) >= runs - 26 && equal_runs(a, b) <= runs - 13);
}

static void test_generator(void)
{
    for (int kind = DE_GENERATED_ZERO; kind <= DE_GENERATED_WORDS; kind++) {
        start(false);
        struct de_program_options options = generator(kind, DE_FREE_RELEASE);
        options.phase_ns = 200 * MS;
        struct de_program *program = run(&options);
        while (read_counters(program).writes < GFNS)
            sleep_ms(1);
        check_generated(kind);
        wait_for_phase(program, 1);
        while (read_counters(program).reads < GFNS)
            sleep_ms(1);
        CHECK_EQ(read_counters(program).writes, GFNS);
        while (read_counters(program).writes < 2 * GFNS)
            sleep_ms(1);
        uint8_t page[DE_PAGE_SIZE];
        copy_page(10, page);
        if (kind == DE_GENERATED_ZERO)
            for (uint32_t i = 0; i < DE_PAGE_SIZE; i++)
                CHECK_EQ(page[i], i % 256 ? 0 : 0xff);
        wait_for_phase(program, 4);
        struct de_domain_accounting accounting;
        CHECK_EQ(de_machine_domain_account(machine, domain, &accounting), 0);
        CHECK_EQ(accounting.holes, GFNS);
        struct de_program_result result = stop(program);
        CHECK_EQ(result.status, 0);
        CHECK_EQ(result.reads, GFNS);
        CHECK_EQ(result.writes, 2 * GFNS);
        CHECK_EQ(result.releases, GFNS);
        CHECK_EQ(result.wrong_bytes, 0);
        CHECK(result.run_ns >= 600 * MS);
        finish();
    }
}

static void test_generator_frees(void)
{
    static const uint8_t zero[DE_PAGE_SIZE];
    for (int free_as = DE_FREE_KEEP; free_as <= DE_FREE_ZERO; free_as++) {
        start(true);
        struct de_program_options options = generator(DE_GENERATED_RANDOM, free_as);
        struct de_program *program = run(&options);
        wait_for_phase(program, 4);
        struct de_program_result result = stop(program);
        CHECK_EQ(result.writes, free_as == DE_FREE_ZERO ? 3 * GFNS : 2 * GFNS);
        CHECK_EQ(result.releases, 0);
        uint8_t page[DE_PAGE_SIZE];
        copy_page(GFNS - 1, page);
        CHECK_EQ(memcmp(page, zero, DE_PAGE_SIZE) == 0, free_as == DE_FREE_ZERO);
        finish();
    }
}

/* A byte that changes between the phases is noticed by the read, one between read and write by the write. */
static void test_generator_notices(void)
{
    start(true);
    struct de_program_options options = generator(DE_GENERATED_SIMILAR, DE_FREE_KEEP);
    options.phase_ns = 300 * MS;
    struct de_program *program = run(&options);
    while (read_counters(program).writes < GFNS)
        sleep_ms(1);
    CHECK_EQ(read_counters(program).phase, 0);
    flip_byte(4, 100);
    while (read_counters(program).reads < GFNS)
        sleep_ms(1);
    CHECK_EQ(read_counters(program).phase, 1);
    CHECK_EQ(read_counters(program).wrong_bytes, 1);
    flip_byte(5, 200);
    wait_for_phase(program, 3);
    CHECK_EQ(stop(program).wrong_bytes, 3);
    finish();
}

/* Bitmap 0 names pages 1 and 2 (one of them twice, as the bitmap is longer than the guest), bitmap 1 none. */
static void test_trace(void)
{
    start(true);
    uint8_t bits[32] = {0};
    bits[0] = 1 << 1 | 1 << 2;
    bits[GFNS / 8] = 1 << 2;
    struct de_program_options options = working_set();
    options.kind = DE_PROGRAM_TRACE;
    options.write_fraction = 1;
    options.operations_per_s = 1000;
    options.bits = bits;
    options.bits_per_map = 128;
    options.maps = 2;
    options.interval_ns = 150 * MS;
    struct de_program *program = run(&options);
    wait_for_phase(program, 2);
    CHECK_EQ(read_counters(program).writes, 2);
    wait_for_phase(program, 4);
    struct de_program_result result = stop(program);
    CHECK_EQ(result.status, 0);
    CHECK_EQ(result.wrong_bytes, 0);
    CHECK_EQ(result.writes, 4);
    CHECK(result.reads > 50 && result.reads < 1000);
    CHECK(result.run_ns >= 450 * MS);
    static const uint8_t zero[DE_PAGE_SIZE];
    for (uint32_t gfn = 0; gfn < GFNS; gfn++) {
        uint8_t page[DE_PAGE_SIZE];
        copy_page(gfn, page);
        CHECK_EQ(memcmp(page, zero, DE_PAGE_SIZE) != 0, gfn == 1 || gfn == 2);
    }
    finish();
}

int main(void)
{
    test_arguments();
    test_idle_touches_nothing();
    test_working_set_pages();
    test_rate();
    test_wrong_bytes_are_counted();
    test_stall();
    test_generator();
    test_generator_frees();
    test_generator_notices();
    test_trace();
    return 0;
}
