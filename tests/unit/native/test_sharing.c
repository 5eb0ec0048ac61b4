/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The sharing table against a search through all earlier pages, for any number of passes and any digests. */
#define RANDOM_SEED 0x9e3779b97f4a7c15
#include "check.h"
#include "random.h"

#include <diffengine/sharing.h>
#include <diffengine/status.h>
#include <string.h>

#define MAX_PAGES 1500u
#define UNTOUCHED 0xdeadbeefu

struct workload {
    uint64_t digests[MAX_PAGES];
    uint8_t eligible[MAX_PAGES];
    uint32_t count;
};

/* Besides evenly spread digests, those that a table could trip over: equal tags, equal home slots, the ends
 * of the range and of every interval. */
static uint64_t make_digest(unsigned shape)
{
    switch (shape) {
    case 0:
        return random_word();
    case 1: /* the same low half for all */
        return random_word() << 32 | 0x12345678u;
    case 2: /* all at one end: one home slot, and a search that wraps around */
        return UINT64_MAX - random_below(2000);
    case 3:
        return random_below(2000);
    case 4: { /* next to a bound between two of 20 intervals */
        uint64_t bound = UINT64_MAX / 20 * random_below(21);
        return bound + random_below(5) - 2;
    }
    default:
        return random_below(60) * 0x9e3779b97f4a7c15u; /* many copies */
    }
}

static void make_workload(struct workload *workload)
{
    unsigned shape = random_below(7);
    workload->count = 1 + random_below(MAX_PAGES);
    for (uint32_t i = 0; i < workload->count; i++) {
        workload->digests[i] = make_digest(shape == 6 ? random_below(6) : shape);
        if (i > 0 && random_below(4) == 0)
            workload->digests[i] = workload->digests[random_below(i)];
        workload->eligible[i] = random_below(8) != 0;
    }
}

static void expect_leaders(const struct workload *workload, uint32_t *leaders)
{
    for (uint32_t i = 0; i < workload->count; i++) {
        leaders[i] = UNTOUCHED;
        if (!workload->eligible[i])
            continue;
        uint32_t leader = 0;
        while (!workload->eligible[leader] || workload->digests[leader] != workload->digests[i])
            leader++;
        leaders[i] = leader;
    }
}

/* All passes, each in ranges of random length. */
static int run_passes(struct de_sharing_table *table, const struct workload *workload, uint32_t passes,
                      uint32_t *leaders)
{
    for (uint32_t i = 0; i < workload->count; i++)
        leaders[i] = UNTOUCHED;
    for (uint32_t pass = 0; pass < passes; pass++) {
        de_sharing_clear(table);
        for (uint32_t first = 0, count; first < workload->count; first += count) {
            count = 1 + random_below(workload->count - first);
            int status = de_sharing_pass(table, workload->digests, workload->eligible, first, count, pass,
                                         passes, leaders);
            if (status != DE_OK)
                return status;
        }
    }
    return DE_OK;
}

static struct de_sharing_table *make_table(size_t bytes)
{
    struct de_sharing_table *table = NULL;
    CHECK_EQ(de_sharing_create(bytes, &table), DE_OK);
    CHECK(table != NULL);
    return table;
}

static void test_any_number_of_passes_gives_the_same(void)
{
    static struct workload workload;
    static uint32_t expected[MAX_PAGES], leaders[MAX_PAGES];
    const uint32_t passes[] = {1, 2, 5, 20, 64, 1000};
    for (unsigned round = 0; round < 250; round++) {
        struct de_sharing_table *table = make_table(MAX_PAGES * 8 * 8 / 7 + 64 + random_below(20000));
        make_workload(&workload);
        expect_leaders(&workload, expected);
        for (unsigned i = 0; i < sizeof passes / sizeof passes[0]; i++) {
            CHECK_EQ(run_passes(table, &workload, passes[i], leaders), DE_OK);
            CHECK(memcmp(leaders, expected, workload.count * sizeof leaders[0]) == 0);
        }
        de_sharing_free(table);
    }
}

/* The caller's way out of DE_FULL: more passes. Evenly spread digests come to fit. */
static void test_more_passes_make_a_small_table_do(void)
{
    static struct workload workload;
    static uint32_t expected[MAX_PAGES], leaders[MAX_PAGES];
    struct de_sharing_table *table = make_table(DE_SHARING_MIN_BYTES);
    for (unsigned round = 0; round < 100; round++) {
        workload.count = MAX_PAGES;
        for (uint32_t i = 0; i < MAX_PAGES; i++) {
            workload.digests[i] = random_below(10) ? random_word() : workload.digests[random_below(i + 1)];
            workload.eligible[i] = 1;
        }
        expect_leaders(&workload, expected);
        uint32_t passes = 1;
        while (run_passes(table, &workload, passes, leaders) == DE_FULL)
            passes++;
        CHECK(passes >= 3 && passes <= 6); /* some 1350 digests, 445 at a time */
        CHECK(memcmp(leaders, expected, sizeof leaders) == 0);
    }
    de_sharing_free(table);
}

static void test_full_is_told_exactly_at_capacity(void)
{
    static uint64_t digests[MAX_PAGES];
    static uint8_t eligible[MAX_PAGES];
    static uint32_t leaders[MAX_PAGES];
    struct de_sharing_table *table = make_table(DE_SHARING_MIN_BYTES);
    uint32_t capacity = (uint32_t)de_sharing_capacity(table);
    CHECK(capacity > 400 && capacity < MAX_PAGES / 2);
    for (uint32_t i = 0; i < MAX_PAGES; i++)
        digests[i] = random_word();
    memset(eligible, 1, sizeof eligible);
    CHECK_EQ(de_sharing_pass(table, digests, eligible, 0, capacity, 0, 1, leaders), DE_OK);
    CHECK_EQ(de_sharing_pass(table, digests, eligible, 0, capacity, 0, 1, leaders),
             DE_OK); /* known ones still go */
    for (uint32_t i = 0; i < capacity; i++)
        CHECK_EQ(leaders[i], i);
    CHECK_EQ(de_sharing_pass(table, digests, eligible, capacity, 1, 0, 1, leaders), DE_FULL);
    CHECK_EQ(de_sharing_pass(table, digests, eligible, 0, capacity + 1, 0, 1, leaders), DE_FULL);
    digests[capacity] = digests[3];
    CHECK_EQ(de_sharing_pass(table, digests, eligible, capacity, 1, 0, 1, leaders), DE_OK);
    CHECK_EQ(leaders[capacity], 3);
    de_sharing_clear(table);
    CHECK_EQ(de_sharing_pass(table, digests, eligible, capacity, 1, 0, 1, leaders), DE_OK);
    CHECK_EQ(leaders[capacity], capacity);
    de_sharing_free(table);
}

static void test_memory_stays_within_its_limit(void)
{
    for (unsigned round = 0; round < 200; round++) {
        size_t limit = DE_SHARING_MIN_BYTES + random_below(100000);
        struct de_sharing_table *table = make_table(limit);
        CHECK(de_sharing_bytes(table) <= limit && de_sharing_bytes(table) > limit - 16);
        /* 8 bytes per entry at 7/8 load: what a byte limit buys */
        CHECK(de_sharing_capacity(table) >= (limit - 64) / 8 * 7 / 8);
        CHECK(de_sharing_capacity(table) < limit / 8);
        de_sharing_free(table);
    }
}

static void test_arguments_are_checked(void)
{
    uint64_t digest = 1;
    uint8_t eligible = 1;
    uint32_t leader = UNTOUCHED;
    struct de_sharing_table *table = NULL;
    CHECK_EQ(de_sharing_create(DE_SHARING_MIN_BYTES - 1, &table), DE_INVALID);
    CHECK_EQ(de_sharing_create(0, &table), DE_INVALID);
    CHECK(table == NULL);
    de_sharing_free(NULL);
    table = make_table(DE_SHARING_MIN_BYTES);
    CHECK_EQ(de_sharing_pass(table, &digest, &eligible, 0, 1, 0, 0, &leader), DE_INVALID);
    CHECK_EQ(de_sharing_pass(table, &digest, &eligible, 0, 1, 5, 5, &leader), DE_INVALID);
    CHECK_EQ(de_sharing_pass(table, &digest, &eligible, 2, DE_NONE - 1, 0, 1, &leader), DE_INVALID);
    CHECK_EQ(de_sharing_pass(table, &digest, &eligible, 0, 0, 0, 1, &leader), DE_OK);
    CHECK_EQ(leader, UNTOUCHED);
    CHECK_EQ(de_sharing_pass(table, &digest, &eligible, 0, 1, 0, 1, &leader), DE_OK);
    CHECK_EQ(leader, 0);
    de_sharing_free(table);
}

int main(void)
{
    test_any_number_of_passes_gives_the_same();
    test_more_passes_make_a_small_table_do();
    test_full_is_told_exactly_at_capacity();
    test_memory_stays_within_its_limit();
    test_arguments_are_checked();
    return 0;
}
