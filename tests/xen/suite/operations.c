/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What hypervisor.h says of each operation, on a real Xen: run in dom0 as root with the number of a running
 * PVH guest with one vCPU that has memory of its own in use. Each test says its name and "ok"; the first that
 * fails ends the program. Some tests cost the guest its life, and are asked for by name: "destroyed",
 * "hidden"; "several" and "switched" want a guest with several vCPUs, the second a Xen with
 * docs/several-vcpus.patch: without, it stops the host. "standing" goes on until its input ends; so does
 * "running", which shows what becomes of a guest without pause_outside_kernel().
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <diffengine/xen.h>

#include "../../unit/native/check.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define BATCH 1024u
#define FIRST 0x3000u /**< from here on the tests choose gfns */
#define SECOND_NS 1000000000u
#define AT_ONCE 64u
#define NOMINATING_NS (60 * (uint64_t)SECOND_NS)

static char directory[] = "/run/test-xen-XXXXXX";
static uint16_t guest;
static uint32_t gfns;
static struct de_xen *xen;
static struct de_xen_options options;
static struct de_hypervisor hypervisor;
static uint8_t (*copies)[DE_PAGE_SIZE]; /**< room for every page of the guest */

#define CALL(operation, ...) hypervisor.operations->operation(hypervisor.context, ##__VA_ARGS__)

static void begin(void)
{
    char error[500];
    options.state_directory = directory;
    if (de_xen_open(&options, &xen, error, sizeof error)) {
        fprintf(stderr, "%s\n", error);
        exit(1);
    }
    hypervisor = de_xen_hypervisor(xen);
}

/* Serve until the guest has been quiet for a while. @return events. */
static unsigned serve(uint64_t quiet_ns, unsigned *touched)
{
    uint16_t ready[4];
    unsigned events = 0;
    while (CALL(wait, quiet_ns, ready, 4) > 0) {
        struct de_vm_event event;
        while (CALL(ring_take, guest, &event) == 1) {
            CHECK_EQ(event.version, DE_VM_EVENT_VERSION);
            CHECK_EQ(event.reason, DE_VM_EVENT_REASON_PAGING);
            *touched += event.paging_flags & DE_PAGING_EVICT_FAIL ? 1 : 0;
            events++;
            CHECK_EQ(CALL(ring_answer, guest, &event), 0);
        }
    }
    return events;
}

static int map_one(uint32_t gfn, const uint8_t **page)
{
    int32_t error = 0;
    int mapped = CALL(map, guest, &gfn, 1, page, &error);
    return mapped < 0 ? mapped : error;
}

/* Some pages that can be nominated and evicted, their contents copied. @return how many. */
static unsigned evict_some(uint32_t first, unsigned wanted, uint32_t *chosen)
{
    unsigned count = 0;
    for (uint32_t gfn = first; gfn < gfns && count < wanted; gfn++) {
        const uint8_t *page;
        if (CALL(paging_nominate, guest, gfn))
            continue;
        CHECK_EQ(map_one(gfn, &page), 0);
        CHECK_EQ(CALL(paging_evict, guest, gfn), -EBUSY); /* mapped */
        memcpy(copies[count], page, DE_PAGE_SIZE);
        CALL(unmap, &page, 1);
        int error = CALL(paging_evict, guest, gfn);
        CHECK(error == 0 || error == -EBUSY);
        if (!error)
            chosen[count++] = gfn;
    }
    return count;
}

static void load_all(const uint32_t *chosen, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        int error = CALL(paging_load, guest, chosen[i], copies[i]);
        CHECK(error == 0 || error == -ENOENT);
    }
}

static void test_refusals(void)
{
    struct de_uuid uuid;
    CHECK_EQ(CALL(domain_uuid, guest, &uuid), 0);
    CHECK_EQ(CALL(domain_uuid, 32000, &uuid), -ESRCH);
    CHECK_EQ(CALL(paging_enable, 0), -ENODEV);
    CHECK_EQ(CALL(paging_enable, 32000), -ESRCH);
    CHECK_EQ(CALL(paging_disable, guest), -EINVAL);
    uint32_t answered;
    CHECK_EQ(CALL(paging_take_over, guest, &answered), -EINVAL);
    CHECK_EQ(CALL(paging_nominate, guest, 300), -ENODEV);
    struct de_vm_event event;
    CHECK_EQ(CALL(ring_take, guest, &event), -EINVAL);
}

static void test_map_batch(void)
{
    static uint32_t numbers[3 * BATCH];
    static const uint8_t *pages[3 * BATCH];
    static int32_t errors[3 * BATCH];
    for (uint32_t i = 0; i < 3 * BATCH; i++)
        numbers[i] = i % 7 ? 256 + i : gfns + i;
    int mapped = CALL(map, guest, numbers, 3 * BATCH, pages, errors);
    int good = 0;
    volatile uint8_t sum = 0;
    for (uint32_t i = 0; i < 3 * BATCH; i++) {
        CHECK(!pages[i] == (errors[i] != 0));
        CHECK(i % 7 || errors[i] == -EINVAL);
        good += pages[i] != NULL;
        sum = (uint8_t)(sum + (pages[i] ? pages[i][i % DE_PAGE_SIZE] : 0));
    }
    CHECK_EQ(mapped, good);
    CHECK(good > 2 * (int)BATCH);
    CALL(unmap, pages, 3 * BATCH);
    CHECK_EQ(CALL(map, 32000, numbers, 4, pages, errors), -ESRCH);
}

/* Another pager, in another process, is refused, and does not harm the ring. */
static void test_two_pagers(void)
{
    CHECK_EQ(CALL(paging_enable, guest), 0);
    CHECK_EQ(CALL(paging_enable, guest), -EBUSY);
    pid_t child = fork();
    if (!child) {
        char other[] = "/run/test-xen-other-XXXXXX", error[500];
        struct de_xen *another;
        struct de_xen_options others = {.state_directory = mkdtemp(other)};
        if (!others.state_directory || de_xen_open(&others, &another, error, sizeof error))
            _exit(1);
        struct de_hypervisor second = de_xen_hypervisor(another);
        int status = second.operations->paging_enable(second.context, guest);
        rmdir(other);
        _exit(status == -EBUSY ? 0 : 2);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
}

/* A page that is out, its content in copies[0]. The guest may always be faster. */
static uint32_t evict_one(void)
{
    for (uint32_t gfn = FIRST;; gfn++) {
        const uint8_t *page;
        CHECK(gfn < gfns);
        if (CALL(paging_nominate, guest, gfn))
            continue;
        int again = CALL(paging_nominate, guest, gfn), load = CALL(paging_load, guest, gfn, copies[0]);
        CHECK_EQ(map_one(gfn, &page), 0);
        memcpy(copies[0], page, DE_PAGE_SIZE);
        CALL(unmap, &page, 1);
        if (CALL(paging_evict, guest, gfn))
            continue;
        CHECK_EQ(again, -EBUSY);
        CHECK_EQ(load, -ENOENT);
        return gfn;
    }
}

/* The guest is paused, so that nobody else asks. */
static void test_states(void)
{
    const uint8_t *page;
    struct de_vm_event event;
    uint16_t ready[1];
    unsigned touched = 0;
    CHECK_EQ(CALL(pause, guest), 0);
    serve(SECOND_NS / 10, &touched);
    uint32_t gfn = evict_one();
    CHECK_EQ(CALL(paging_evict, guest, gfn), -EBUSY);
    CHECK_EQ(CALL(paging_nominate, guest, gfn), -EBUSY);
    CHECK_EQ(CALL(paging_load, guest, gfn, NULL), -EINVAL);
    CHECK_EQ(map_one(gfn, &page), -ENOENT);
    CHECK_EQ(CALL(wait, SECOND_NS, ready, 1), 1);
    CHECK_EQ(CALL(ring_take, guest, &event), 1);
    CHECK_EQ(event.gfn, gfn);
    CHECK_EQ(event.flags & DE_VM_EVENT_VCPU_PAUSED, 0);
    CHECK_EQ(CALL(paging_nominate, guest, gfn), -EBUSY);
    CHECK_EQ(CALL(paging_load, guest, gfn, NULL), -EINVAL);
    CHECK_EQ(CALL(paging_load, guest, gfn, copies[0]), 0);
    CHECK_EQ(CALL(ring_answer, guest, &event), 0);
    CHECK_EQ(CALL(ring_answer, guest, &event), -EINVAL);
    CHECK_EQ(map_one(gfn, &page), 0);
    CHECK_EQ(CALL(paging_nominate, guest, gfn), -EBUSY); /* mapped */
    CALL(unmap, &page, 1);
    CHECK_EQ(CALL(paging_nominate, guest, gfns + 5), -EBUSY);
    CHECK_EQ(CALL(paging_load, guest, gfns + 5, copies[0]), -ENOENT);
    CHECK_EQ(CALL(paging_touch, guest, gfns + 5), -EINVAL);
    CHECK_EQ(CALL(paging_touch, guest, gfn), 0);
    /* By a touch of dom0's what is nominated is ram again, though it is mapped. */
    CHECK_EQ(CALL(paging_nominate, guest, gfn), 0);
    CHECK_EQ(map_one(gfn, &page), 0);
    CHECK_EQ(CALL(paging_touch, guest, gfn), -EAGAIN);
    CHECK_EQ(CALL(paging_evict, guest, gfn), -EBUSY);
    CHECK_EQ(CALL(paging_load, guest, gfn, NULL), 0);
    CHECK_EQ(CALL(paging_load, guest, gfn, NULL), -ENOENT);
    CHECK(memcmp(page, copies[0], DE_PAGE_SIZE) == 0);
    CALL(unmap, &page, 1);
    CHECK_EQ(CALL(wait, SECOND_NS, ready, 1), 1);
    CHECK_EQ(CALL(ring_take, guest, &event), 1);
    CHECK_EQ(event.gfn, gfn);
    CHECK_EQ(event.flags & DE_VM_EVENT_VCPU_PAUSED, 0);
    CHECK_EQ(event.paging_flags & DE_PAGING_EVICT_FAIL, DE_PAGING_EVICT_FAIL);
    CHECK_EQ(CALL(ring_answer, guest, &event), 0);
    CHECK_EQ(CALL(paging_touch, guest, gfn), 0);
    CHECK_EQ(CALL(paging_nominate, guest, gfn), 0);
    CHECK_EQ(CALL(paging_evict, guest, gfn), 0);
    CHECK_EQ(CALL(paging_touch, guest, gfn), -EAGAIN);
    CHECK_EQ(CALL(wait, SECOND_NS, ready, 1), 1);
    CHECK_EQ(CALL(ring_take, guest, &event), 1);
    CHECK_EQ(CALL(paging_load, guest, gfn, copies[0]), 0);
    CHECK_EQ(CALL(ring_answer, guest, &event), 0);
    serve(0, &touched);
    CHECK_EQ(CALL(unpause, guest), 0);
}

/* A guest that runs touches what was nominated, and goes on. */
static void test_watch(void)
{
    unsigned touched = 0, nominated = 0;
    for (uint32_t gfn = FIRST; gfn < gfns && nominated < BATCH; gfn++)
        nominated += !CALL(paging_nominate, guest, gfn);
    CHECK(nominated > BATCH / 2);
    CHECK(serve(SECOND_NS, &touched) > 0);
    CHECK(touched > 0);
    printf("  %u nominated, %u touched\n", nominated, touched);
}

/* The place of an event's page among those that are out. @return count: it is none of them. */
static int by_number(const void *gfn, const void *chosen)
{
    uint64_t wanted = *(const uint64_t *)gfn, there = *(const uint32_t *)chosen;
    return wanted < there ? -1 : wanted > there;
}

/* chosen: in ascending order. */
static unsigned place_of(const uint32_t *chosen, unsigned count, uint64_t gfn)
{
    const uint32_t *found = bsearch(&gfn, chosen, count, sizeof *chosen, by_number);
    return found ? (unsigned)(found - chosen) : count;
}

/* @return whether it was one of these pages, and out. */
static bool serve_one(const struct de_vm_event *event, const uint32_t *chosen, unsigned count)
{
    unsigned place = place_of(chosen, count, event->gfn);
    bool loaded = place < count && !CALL(paging_load, guest, event->gfn, copies[place]);
    CHECK_EQ(CALL(ring_answer, guest, event), 0);
    return loaded;
}

/* Load what is asked for, for so long. @return how many pages were out. */
static unsigned serve_chosen(const uint32_t *chosen, unsigned count, uint64_t for_ns)
{
    unsigned loaded = 0;
    uint64_t end_ns = CALL(now_ns) + for_ns;
    while (CALL(now_ns) < end_ns) {
        uint16_t ready[4];
        struct de_vm_event event;
        if (CALL(wait, SECOND_NS / 4, ready, 4) <= 0)
            continue;
        while (CALL(ring_take, guest, &event) == 1)
            loaded += serve_one(&event, chosen, count);
    }
    return loaded;
}

/* Evicted, asked for by the guest, loaded, answered. */
static void test_faults(void)
{
    static uint32_t chosen[BATCH];
    unsigned count = evict_some(FIRST, BATCH, chosen);
    CHECK(count > BATCH / 2);
    unsigned faults = serve_chosen(chosen, count, 3 * (uint64_t)SECOND_NS);
    load_all(chosen, count);
    printf("  %u evicted, %u faults\n", count, faults);
    CHECK(faults > 0);
}

/* The pager is gone while requests come in; its successor finds them all. */
static void test_take_over(void)
{
    static uint32_t chosen[BATCH];
    unsigned count = evict_some(FIRST, BATCH, chosen), found = 0;
    uint32_t answered;
    CHECK(count > BATCH / 2);
    de_xen_close(xen);
    sleep(2);
    begin();
    CHECK_EQ(CALL(paging_take_over, guest, &answered), 0);
    for (unsigned round = 0; round < 8; round++) {
        uint16_t ready[4];
        struct de_vm_event event;
        int some = CALL(wait, SECOND_NS / 2, ready, 4);
        CHECK(some >= 0 && (round || some == 1));
        while (CALL(ring_take, guest, &event) == 1)
            found += serve_one(&event, chosen, count);
    }
    load_all(chosen, count);
    CHECK(found > 0);
    printf("  %u answered before, %u evicted, %u faults served after\n", answered, count, found);
}

/* Takes whatever is there. @return how many. */
static unsigned take_all(struct de_vm_event *events, unsigned most)
{
    unsigned count = 0;
    while (count < most && CALL(ring_take, guest, &events[count]) == 1)
        count++;
    return count;
}

/* What has waited in a full ring, then what the guest asks for, then the rest. @return how much it asked for.
 */
static unsigned serve_at_last(const struct de_vm_event *events, unsigned taken, const uint32_t *chosen,
                              unsigned count)
{
    unsigned touched = 0;
    for (unsigned i = 0; i < taken; i++)
        serve_one(&events[i], chosen, count);
    unsigned asked = serve_chosen(chosen, count, 3 * (uint64_t)SECOND_NS);
    load_all(chosen, count);
    serve(SECOND_NS / 4, &touched);
    return asked;
}

/*
 * Dom0 fills the ring while the guest is paused; what dom0 asks for beyond is dropped, and the guest then
 * waits in Xen for a slot. Once there are slots, it finds its pages.
 */
static void test_full_ring(void)
{
    static uint32_t chosen[BATCH];
    struct de_vm_event events[DE_RING_SLOTS + 1];
    const uint8_t *pages[3 * DE_RING_SLOTS];
    int32_t errors[3 * DE_RING_SLOTS];
    unsigned count = evict_some(FIRST, BATCH, chosen);
    CHECK(count > BATCH / 2);
    CHECK_EQ(CALL(pause, guest), 0);
    unsigned taken = take_all(events, DE_RING_SLOTS);
    CHECK_EQ(CALL(map, guest, chosen, 3 * DE_RING_SLOTS, pages, errors), 0);
    taken += take_all(events + taken, DE_RING_SLOTS + 1 - taken);
    CHECK_EQ(taken, DE_RING_SLOTS);
    CHECK_EQ(CALL(unpause, guest), 0);
    sleep(2);
    CHECK_EQ(take_all(events + taken, 1), 0);
    unsigned waited = serve_at_last(events, taken, chosen, count);
    printf("  %u slots taken, %u pages asked for after that\n", taken, waited);
    CHECK(waited > 0);
}

static void test_pause(void)
{
    CHECK_EQ(CALL(pause, guest), 0);
    CHECK_EQ(CALL(unpause, guest), 0);
    CHECK_EQ(CALL(unpause, guest), -EINVAL);
}

static void test_disable(void)
{
    unsigned touched = 0;
    /* What is still nominated becomes ram when it is evicted and loaded. */
    for (uint32_t gfn = FIRST; gfn < FIRST + 2 * BATCH; gfn++) {
        const uint8_t *page;
        CALL(paging_nominate, guest, gfn);
        if (map_one(gfn, &page))
            continue;
        memcpy(copies[0], page, DE_PAGE_SIZE);
        CALL(unmap, &page, 1);
        if (!CALL(paging_evict, guest, gfn))
            CHECK_EQ(CALL(paging_load, guest, gfn, copies[0]), 0);
        serve(0, &touched);
    }
    serve(SECOND_NS / 4, &touched);
    CHECK_EQ(CALL(paging_disable, guest), 0);
    CHECK_EQ(CALL(paging_enable, guest), 0);
    CHECK_EQ(CALL(paging_disable, guest), 0);
}

/* Destroyed while events are in flight: nothing of ours keeps it. */
static void test_destroyed(void)
{
    static uint32_t chosen[BATCH];
    char command[80];
    struct de_uuid uuid;
    uint16_t ready[4];
    CHECK_EQ(CALL(paging_enable, guest), 0);
    CHECK(evict_some(FIRST, BATCH, chosen) > BATCH / 2);
    sleep(1);
    snprintf(command, sizeof command, "xl destroy %u & sleep 1", guest);
    CHECK(system(command) == 0);
    for (unsigned i = 0; i < 5; i++)
        CALL(wait, SECOND_NS, ready, 4);
    CHECK_EQ(CALL(domain_uuid, guest, &uuid), -ESRCH);
    CHECK_EQ(CALL(paging_nominate, guest, FIRST), -ESRCH);
    CHECK_EQ(CALL(paging_disable, guest), -EINVAL);
    snprintf(command, sizeof command, "! xl domname %u", guest);
    CHECK(system(command) == 0);
}

/* Guests with several vCPUs are left alone, unless that is wanted. */
static void test_several_vcpus(void)
{
    CHECK_EQ(CALL(paging_enable, guest), 0);
    CHECK_EQ(CALL(paging_nominate, guest, FIRST), -EOPNOTSUPP);
    CHECK_EQ(CALL(paging_disable, guest), 0);
}

/* Whoever started this has seen enough. */
static bool is_watched(void)
{
    struct pollfd input = {.fd = STDIN_FILENO};
    return poll(&input, 1, 0) == 0;
}

/*
 * Every page again and again, those first that are in use all the time: the arguments of its kernel's
 * hypercalls, and page tables. Says "nominated" after some time, and serves the guest until its standard
 * input ends. still: while the guest stands outside its kernel. Otherwise such a call may fail, and the
 * kernel ends with it.
 */
static void nominate_all(bool still)
{
    unsigned nominated = 0, touched = 0, refused = 0;
    uint64_t end_ns = CALL(now_ns) + NOMINATING_NS;
    CHECK_EQ(CALL(paging_enable, guest), 0);
    struct de_uuid uuid;
    for (uint32_t gfn = 0; CALL(now_ns) < end_ns; gfn = gfn + 2 * AT_ONCE <= gfns ? gfn + AT_ONCE : 0) {
        if (CALL(domain_uuid, guest, &uuid))
            break;
        int error = still ? CALL(pause_outside_kernel, guest) : 0;
        CHECK(!error || error == -EAGAIN || error == -ESRCH);
        refused += error != 0;
        for (uint32_t i = 0; i < AT_ONCE && !error; i++)
            nominated += CALL(paging_nominate, guest, gfn + i) == 0;
        if (still && !error)
            CHECK_EQ(CALL(go_on, guest), 0);
        serve(0, &touched);
    }
    printf("nominated %u, %u touched, %u times not found outside its kernel\n", nominated, touched, refused);
    fflush(stdout);
    while (is_watched())
        serve(SECOND_NS / 10, &touched);
}

static void test_nominated_while_it_runs(void)
{
    nominate_all(false);
}

static void test_nominated_while_it_stands(void)
{
    nominate_all(true);
}

static void switch_at_full_ring(uint32_t *chosen)
{
    struct de_vm_event events[DE_RING_SLOTS];
    const uint8_t *pages[DE_RING_SLOTS];
    int32_t errors[DE_RING_SLOTS];
    CHECK_EQ(CALL(paging_enable, guest), 0);
    CHECK_EQ(CALL(pause, guest), 0);
    unsigned count = evict_some(0, gfns, chosen);
    CHECK(count > gfns / 2);
    CHECK_EQ(CALL(map, guest, chosen, DE_RING_SLOTS, pages, errors), 0);
    CHECK_EQ(CALL(unpause, guest), 0);
    sleep(1);
    unsigned taken = take_all(events, DE_RING_SLOTS);
    CHECK_EQ(taken, DE_RING_SLOTS);
    for (unsigned i = 0; i < taken; i++)
        CHECK_EQ(events[i].gfn, chosen[i]);
    unsigned faults = serve_at_last(events, taken, chosen, count);
    printf("  %u evicted while it slept, %u faults once there were slots\n", count, faults);
    CHECK(faults > 0);
    CHECK_EQ(CALL(paging_disable, guest), 0);
}

/*
 * The guest sleeps while its pages are taken, those among them that Xen writes to whenever it switches a
 * vCPU; dom0 takes every slot of the ring; the guest is woken. Then Xen asks for what it can't write to, and
 * there is no slot. More than once, as Xen's own pages of the guest are the first to be back.
 */
static void test_switched(void)
{
    uint32_t *chosen = malloc(gfns * sizeof *chosen);
    CHECK(chosen != NULL);
    options.several_vcpus = true;
    for (unsigned round = 0; round < 3; round++) {
        de_xen_close(xen);
        begin();
        switch_at_full_ring(chosen);
    }
    free(chosen);
}

/* No ring page in the physmap: the pager works, a successor is refused. */
static void test_hidden_ring(void)
{
    uint32_t answered;
    const uint8_t *page;
    CHECK_EQ(CALL(domain_uuid, guest, &options.hidden[0]), 0);
    options.hidden_count = 1;
    de_xen_close(xen);
    begin();
    CHECK_EQ(CALL(paging_enable, guest), 0);
    uint32_t gfn = evict_one();
    CHECK_EQ(map_one(gfn, &page), -ENOENT);
    CHECK_EQ(CALL(paging_load, guest, gfn, copies[0]), 0);
    de_xen_close(xen);
    begin();
    CHECK_EQ(CALL(paging_take_over, guest, &answered), -EOPNOTSUPP);
}

static void run(const char *name, void (*test)(void))
{
    printf("%s ...\n", name);
    fflush(stdout);
    test();
    printf("%s: ok\n", name);
}

static void run_all(void)
{
    run("refusals", test_refusals);
    run("map in batches", test_map_batch);
    run("two pagers on one domain", test_two_pagers);
    run("states of a page", test_states);
    run("watch", test_watch);
    run("faults", test_faults);
    run("full ring", test_full_ring);
    run("take over", test_take_over);
    run("pause", test_pause);
    run("disable and enable again", test_disable);
}

int main(int count, char **arguments)
{
    if (count < 3 || !mkdtemp(directory)) {
        fputs("Usage: operations DOMAIN MIB [destroyed | several | switched | hidden | standing | running]\n",
              stderr);
        return 2;
    }
    const char *only = count > 3 ? arguments[3] : "";
    guest = (uint16_t)atoi(arguments[1]);
    gfns = (uint32_t)atoi(arguments[2]) * 256;
    copies = malloc((size_t)gfns * sizeof *copies);
    CHECK(copies != NULL);
    begin();
    if (!strcmp(only, "destroyed"))
        run("destroyed with events in flight", test_destroyed);
    else if (!strcmp(only, "several"))
        run("several vCPUs", test_several_vcpus);
    else if (!strcmp(only, "running"))
        run("pages nominated while it runs", test_nominated_while_it_runs);
    else if (!strcmp(only, "standing"))
        run("pages nominated while it stands still", test_nominated_while_it_stands);
    else if (!strcmp(only, "switched"))
        run("vCPUs switched at a full ring", test_switched);
    else if (!strcmp(only, "hidden"))
        run("hidden ring", test_hidden_ring);
    else
        run_all();
    de_xen_close(xen);
    free(copies);
    rmdir(directory);
    puts("operations: all ok");
    return 0;
}
