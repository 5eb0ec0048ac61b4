/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A caller's own thread in virtual time: who runs follows from the seed alone, time passes only where it is
 * said to, and every byte is right. */
#include "paging.h"

#include <diffengine/program.h>
#include <diffengine/virtual_time.h>
#include <stdlib.h>
#include <sys/stat.h>

#define GFNS 48u
#define GUESTS 3u
#define MS UINT64_C(1000000)
#define ROUNDS 200u
#define DISK_READ_NS 70000u

/** What a run did, as its caller sees it. */
struct outcome {
    struct de_virtual_trace trace;
    uint64_t end_ns;
    uint64_t cpu_ns;
    struct de_program_result guests[GUESTS];
};

static uint8_t contents[GUESTS][GFNS][DE_PAGE_SIZE];
static const uint8_t *content_of[GUESTS][GFNS];
static uint32_t hot[GFNS];

static struct de_program *start_guest(uint16_t domain, uint32_t guest)
{
    struct de_program_options options = {
        .kind = DE_PROGRAM_WORKING_SET,
        .seed = guest,
        .operations_per_s = 20000,
        .gfns = GFNS,
        .content = content_of[guest],
        .sample_capacity = 4096,
        .hot = hot,
        .hot_count = GFNS,
        .write_fraction = 0.3,
    };
    struct de_program *program;
    CHECK_EQ(de_program_start(machine, domain, &options, &program), 0);
    return program;
}

static void copy_page(uint16_t domain, uint32_t gfn, uint8_t *copy)
{
    uint8_t *page = NULL;
    int32_t error;
    if (de_machine_map(machine, domain, false, &gfn, 1, &page, &error) != 1)
        return;
    memcpy(copy, page, DE_PAGE_SIZE);
    de_machine_unmap(machine, (const uint8_t *const *)&page, 1);
}

/* Evict what is there, and let guests write while it is encoded. */
static void work(struct de_store *store, const uint16_t *domains, uint32_t round)
{
    uint16_t domain = domains[round % GUESTS];
    uint32_t gfn = round * 7 % GFNS;
    uint8_t page[DE_PAGE_SIZE] = {0};
    copy_page(domain, gfn, page);
    de_virtual_work(40000);
    uint32_t object = put_page(store, page);
    evict(domain, gfn, object);
    if (round % 2)
        swap_out(object);
    CHECK_EQ(de_store_release(store, object), DE_OK);
}

static uint64_t cpu_of_all(void)
{
    uint64_t numbers[DE_VIRTUAL_MAX_THREADS], cpu_ns[DE_VIRTUAL_MAX_THREADS], sum = 0;
    size_t count = de_virtual_threads(numbers, cpu_ns, DE_VIRTUAL_MAX_THREADS);
    /* The caller, the pager's two and one for each domain's disk, the guests. */
    CHECK_EQ(count, 1 + 2 + GUESTS + GUESTS);
    CHECK_EQ(numbers[0], 1);
    CHECK(cpu_ns[0] >= ROUNDS * UINT64_C(40000));
    for (size_t i = 0; i < count; i++)
        sum += cpu_ns[i];
    return sum;
}

static void run(uint64_t seed, struct outcome *outcome)
{
    char path[] = "/tmp/diffengine-virtual-XXXXXX";
    close(mkstemp(path));
    CHECK_EQ(de_virtual_begin(seed), DE_OK);
    CHECK_EQ(de_virtual_begin(seed), DE_BUSY);
    CHECK_EQ(de_machine_create(2 * GUESTS * GFNS, &machine), 0);
    struct de_hypervisor hypervisor = de_machine_hypervisor(machine);
    struct de_swap_options swap_options = {.path = path, .bytes = 1 << 20, .disk = de_virtual_disk(0, 0, 0)};
    struct de_swap *swap;
    struct de_store *store;
    CHECK_EQ(de_swap_open(&swap_options, &swap), DE_OK);
    CHECK_EQ(de_store_create(NULL, 4 << 20, &store), DE_OK);
    CHECK_EQ(de_pager_create(store, &hypervisor, &pager), DE_OK);
    CHECK_EQ(de_pager_attach_swap(pager, swap), DE_OK);
    CHECK_EQ(de_pager_start(pager), DE_OK);
    uint16_t domains[GUESTS];
    struct de_program *programs[GUESTS];
    for (uint32_t i = 0; i < GUESTS; i++) {
        domains[i] = make_guest(GFNS, i * GFNS);
        CHECK_EQ(de_pager_add_domain(pager, domains[i], GFNS), DE_OK);
        programs[i] = start_guest(domains[i], i);
    }
    for (uint32_t round = 0; round < ROUNDS; round++) {
        work(store, domains, round);
        de_virtual_sleep_until(round * MS / 2);
        CHECK(de_virtual_now_ns() >= round * MS / 2);
    }
    outcome->cpu_ns = cpu_of_all();
    struct de_pager_statistics statistics;
    de_pager_read_statistics(pager, &statistics);
    CHECK(statistics.evictions > ROUNDS / 2 && statistics.loads > 10 && statistics.swap_ins > 0);
    CHECK(de_latency_quantile(&statistics.swap_fault, 0.5) >= DISK_READ_NS);
    for (uint32_t i = 0; i < GUESTS; i++) {
        de_program_stop(programs[i]);
        de_program_join(programs[i], &outcome->guests[i], NULL);
        CHECK_EQ(outcome->guests[i].status, 0);
        CHECK_EQ(outcome->guests[i].wrong_bytes, 0);
        CHECK(outcome->guests[i].faults > 0);
    }
    outcome->end_ns = de_virtual_now_ns();
    de_virtual_trace(&outcome->trace);
    de_pager_free(pager);
    de_store_close(store);
    de_swap_close(swap);
    de_machine_free(machine);
    de_virtual_end();
    unlink(path);
}

static void fill_contents(void)
{
    for (uint32_t guest = 0; guest < GUESTS; guest++)
        for (uint32_t gfn = 0; gfn < GFNS; gfn++) {
            fill(contents[guest][gfn], guest * GFNS + gfn);
            content_of[guest][gfn] = contents[guest][gfn];
        }
    for (uint32_t i = 0; i < GFNS; i++)
        hot[i] = i;
}

static void a_seed_is_a_run(void)
{
    static struct outcome first, again, other;
    run(1, &first);
    run(1, &again);
    run(2, &other);
    CHECK(memcmp(&first, &again, sizeof first) == 0);
    CHECK(first.trace.hash != other.trace.hash);
    CHECK(first.trace.switches > 1000);
    /* A tenth of a second at 20,000 operations each, and some that guests catch up with. */
    uint64_t operations = first.guests[0].reads + first.guests[0].writes;
    CHECK(operations > 1500 && operations < 3000);
}

static void time_stands_still_in_between(void)
{
    CHECK_EQ(de_virtual_begin(3), DE_OK);
    CHECK_EQ(de_virtual_now_ns() / MS, 0);
    uint64_t before_ns = de_virtual_now_ns();
    usleep(2000);
    CHECK_EQ(de_virtual_now_ns(), before_ns);
    de_virtual_work(5 * MS);
    CHECK_EQ((de_virtual_now_ns() - before_ns) / MS, 5);
    de_virtual_sleep_until(3600000 * MS);
    CHECK_EQ(de_virtual_now_ns() / MS, 3600000);
    de_virtual_sleep_until(0);
    CHECK_EQ(de_virtual_now_ns() / MS, 3600000);
    uint64_t number, cpu_ns;
    CHECK_EQ(de_virtual_threads(&number, &cpu_ns, 1), 1);
    CHECK(cpu_ns >= 5 * MS && cpu_ns < 6 * MS);
    de_virtual_end();
}

int main(void)
{
    fill_contents();
    time_stands_still_in_between();
    a_seed_is_a_run();
    return 0;
}
