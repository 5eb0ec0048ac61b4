/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The shim under a device model, beside an evictor, daemons that come and go, and a pager that is killed:
 * what the device model moved, and what the guest reads at the end, is right byte by byte.
 *
 * Usage: test-ioemu MACHINE PAGER DEVICE-MODEL SHIM [OPERATIONS [KILLS [MODE [GFNS [EVICT-US]]]]]
 * SHIM is preloaded; `linked`: the device model has it in it; `none`: it does without, and the pager is not
 * told of it (which loses writes).
 */
#define _GNU_SOURCE
#include "../../../native/simulation/scratch.h"
#include "processes.h"

#include <diffengine/digest.h>
#include <diffengine/machine_client.h>
#include <diffengine/pager_queue.h>
#include <diffengine/status.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#define DEFAULT_GFNS 1000u /**< more buckets than the device model keeps mapped */
#define STORE_MIB "64"
#define IDLE_MS "20"
#define BEFORE_IT_STARTS 40u /**< pages that are out then */
#define NS_PER_S 1000000000u
#define STARVED_MS 200u /**< how long a device model is seen to wait for a frame */
/* What device_model.c writes as `two-writes`. */
#define STORE_GFN 3u
#define READ_GFN 100u
#define STORED 0x53
#define READ 0x52
/* And as `unmapping`. */
#define STAYS_GFN 5u
#define REST_GFN 70u
#define OFTEN_GFN 600u
#define ELSEWHERE_GFN 700u
#define ATTACHED_NS (60 * (uint64_t)NS_PER_S)
#define FOR_EVER_MS "3600000"
#define GAP_US "500000"
/* And as `touching`: 16 clusters of 16 pages. */
#define MOST_MAPPINGS "4"
#define MOST_MAPPED 64u
/* And as `waiting`. */
#define WAITERS 8u
#define WAITER_GFNS 16u
#define APART_GFN 200u
/** Evictions while the device model works: so many, or the test says nothing. */
#define LEAST_EVICTED 100u
/* A lost write: few pages, and an eviction that takes long. */
#define LOST_WRITE_GFNS 16u
#define SLOW_EVICT_US "1000"
#define LOST_WRITE_TRIES "100"
#define UNTIL_LOST "1000000000"

static const char *machine_program, *pager_program, *device_program, *shim;
static char directory[64], state_directory[96], socket_path[96], disk_path[96], expected_path[96];
static pid_t machine_process, pager_process;
static struct de_machine_client *machine;
static struct de_queue_client *queue;
static uint16_t domain;
static uint32_t gfns = DEFAULT_GFNS;
static const char *evict_us;  /**< NULL: as long as an eviction takes */
static int device_input = -1; /**< its standard input's other end */

static void launch_pager(void)
{
    char parent[16];
    snprintf(parent, sizeof parent, "%d", (int)getpid());
    const char *arguments[] = {pager_program, "--state", state_directory, "--machine", socket_path,
                               "--store-mib", STORE_MIB, "--parent",      parent,      NULL};
    pager_process = launch(arguments);
    CHECK(pager_process);
    CHECK_EQ(de_queue_connect(state_directory, &queue), DE_OK);
}

static void start(void)
{
    char frames[16], parent[16];
    CHECK(scratch_make("/dev/shm", directory, sizeof directory) >= 0);
    snprintf(state_directory, sizeof state_directory, "%s/state", directory);
    snprintf(socket_path, sizeof socket_path, "%s/machine", directory);
    snprintf(disk_path, sizeof disk_path, "%s/disk", directory);
    snprintf(expected_path, sizeof expected_path, "%s/expected", directory);
    CHECK_EQ(mkdir(state_directory, 0700), 0);
    snprintf(frames, sizeof frames, "%u", gfns + 64);
    snprintf(parent, sizeof parent, "%d", (int)getpid());
    const char *arguments[] = {machine_program, "--socket", socket_path, "--frames",
                               frames,          "--parent", parent,      evict_us ? "--evict-us" : NULL,
                               evict_us,        NULL};
    machine_process = launch(arguments);
    CHECK(machine_process);
    CHECK_EQ(de_client_connect(socket_path, DE_CLIENT_READER, &machine), 0);
    CHECK_EQ(de_client_domain_create(machine, gfns, &domain), 0);
    CHECK_EQ(de_client_populate(machine, domain, NULL, NULL, gfns, NULL), gfns);
    launch_pager();
    de_queue_area(queue)->domains[0] = domain;
    de_queue_area(queue)->gfns[0] = gfns;
    CHECK_EQ(de_queue_call(queue, DE_COMMAND_ADD_DOMAIN, 1), DE_OK);
}

static void finish(void)
{
    char command[128];
    de_queue_client_free(queue);
    end(&pager_process, SIGTERM);
    de_client_free(machine);
    end(&machine_process, SIGTERM);
    snprintf(command, sizeof command, "rm -r %s", directory);
    CHECK_EQ(system(command), 0);
}

static bool has_userfaultfd(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (fd < 0)
        fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

static void add_option(const char *name, const char *option)
{
    char options[1024];
    const char *given = getenv(name);
    CHECK(snprintf(options, sizeof options, "%s %s", given ? given : "", option) < (int)sizeof options);
    setenv(name, options, 1);
}

static pid_t launch_device_model(const char *operations, const char *mode, bool by_signal)
{
    char domain_text[16], gfns_text[16];
    snprintf(domain_text, sizeof domain_text, "%u", domain);
    snprintf(gfns_text, sizeof gfns_text, "%u", gfns);
    int input[2], executed[2];
    char byte;
    CHECK_EQ(pipe2(input, O_CLOEXEC), 0);
    CHECK_EQ(pipe2(executed, O_CLOEXEC), 0);
    pid_t child = fork();
    if (child == 0)
        dup2(input[0], STDIN_FILENO);
    CHECK(child >= 0);
    close(input[0]);
    device_input = input[1];
    if (child) {
        /* Until then it has all that is open here, locks too. */
        close(executed[1]);
        CHECK_EQ(read(executed[0], &byte, 1), 0);
        close(executed[0]);
        return child;
    }
    setenv("DIFFENGINE_MACHINE", socket_path, 1);
    setenv("DIFFENGINE_STATE", strcmp(shim, "none") ? state_directory : "/nowhere", 1);
    setenv("DIFFENGINE_IOEMU_IDLE_MS",
           strcmp(mode, "unmapping") && strcmp(mode, "touching") ? IDLE_MS : FOR_EVER_MS, 0);
    if (!strcmp(mode, "touching"))
        setenv("DIFFENGINE_IOEMU_MAPPINGS", MOST_MAPPINGS, 1);
    if (!strcmp(mode, "lost-write")) /* what is mapped beside a page is held, too */
        setenv("DIFFENGINE_IOEMU_CLUSTER_PAGES", "1", 1);
    if (!strcmp(mode, "two-writes"))
        setenv("DIFFENGINE_MACHINE_REFUSALS", "3", 1);
    if (!strcmp(mode, "blocking"))
        setenv("DIFFENGINE_MACHINE_GAP_US", GAP_US, 1);
    if (by_signal)
        setenv("DIFFENGINE_IOEMU_FAULTS", "signal", 1);
    /* It takes a fault's handler, which maps and locks, for one that may have interrupted anything. */
    add_option("TSAN_OPTIONS", "report_signal_unsafe=0");
    if (strcmp(shim, "linked") && strcmp(shim, "none"))
        setenv("LD_PRELOAD", shim, 1);
    execl(device_program, device_program, domain_text, gfns_text, operations, "3", "7", disk_path,
          expected_path, mode, NULL);
    _exit(127);
}

/* The command's result, or its status. */
static int page_command(uint32_t command, uint32_t gfn, uint32_t object)
{
    struct de_queue *area = de_queue_area(queue);
    area->domains[0] = domain;
    area->gfns[0] = gfn;
    area->objects[0] = object;
    int status = de_queue_call(queue, command, 1);
    return status == DE_OK ? area->results[0] : status;
}

static int put_raw(const uint8_t *page, uint32_t *object)
{
    struct de_queue *area = de_queue_area(queue);
    area->encodings[0] = DE_ENCODING_RAW;
    area->sizes[0] = DE_PAGE_SIZE;
    area->checksums[0] = de_page_checksum(page);
    area->reference_counts[0] = 0;
    memcpy(area->payloads, page, DE_PAGE_SIZE);
    int status = de_queue_call(queue, DE_COMMAND_PUT, 1);
    *object = area->objects[0];
    return status == DE_OK ? area->results[0] : status;
}

/* A page may be written to while it is copied: the pager finds out. Out of ThreadSanitizer's sight. */
__attribute__((no_sanitize("thread"))) static void copy_page(uint8_t *to, const volatile uint8_t *from)
{
    for (size_t i = 0; i < DE_PAGE_SIZE; i++)
        to[i] = from[i];
}

/** What became of the proposals. */
struct tally {
    uint64_t evicted, held, not_held, other;
};

/* @return what became of it, an enum de_proposal_result, or 1: it was not proposed. */
static int propose_page(uint32_t gfn)
{
    uint8_t *mapped, copy[DE_PAGE_SIZE], state;
    uint32_t object;
    int32_t error;
    if (de_queue_states(queue, domain, gfn, 1, &state, NULL, NULL) != DE_OK || state == DE_PAGE_EVICTED ||
        de_client_map(machine, domain, false, &gfn, 1, &mapped, &error) != 1)
        return 1;
    copy_page(copy, mapped);
    de_client_unmap(machine, (const uint8_t *const *)&mapped, 1);
    if (put_raw(copy, &object) != DE_OK)
        return 1;
    int result = page_command(DE_COMMAND_EVICT, gfn, object);
    page_command(DE_COMMAND_RELEASE, 0, object);
    return result;
}

static void propose(uint64_t *random, struct tally *tally)
{
    *random = *random * 6364136223846793005u + 1442695040888963407u;
    int result = propose_page((uint32_t)(*random >> 33) % gfns);
    if (result > 0)
        return;
    tally->evicted += result == DE_PROPOSAL_DONE;
    tally->held += result == DE_PROPOSAL_HELD;
    tally->not_held += result == DE_PROPOSAL_NO_HOLDS;
    tally->other +=
        result != DE_PROPOSAL_DONE && result != DE_PROPOSAL_HELD && result != DE_PROPOSAL_NO_HOLDS;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static void kill_pager(void)
{
    CHECK_EQ(kill(pager_process, SIGKILL), 0);
    CHECK_EQ(waitpid(pager_process, NULL, 0), pager_process);
    de_queue_client_free(queue);
    launch_pager();
}

static int domain_command(uint32_t command)
{
    de_queue_area(queue)->domains[0] = domain;
    de_queue_area(queue)->gfns[0] = gfns;
    return de_queue_call(queue, command, 1);
}

static void add_domain(void)
{
    CHECK_EQ(domain_command(DE_COMMAND_ADD_DOMAIN), DE_OK);
    CHECK_EQ(domain_command(DE_COMMAND_DEVICE_MODEL), DE_OK);
}

/* Everything is brought back, and the pager ends in good order: the next one has nothing, not even the hold
 * table that the device model keeps. */
static void drain_and_end_pager(void)
{
    /* A page may be on its way in for the device model. */
    while (domain_command(DE_COMMAND_RESTORE) != DE_OK)
        usleep(1000);
    end(&pager_process, SIGTERM);
    de_queue_client_free(queue);
    launch_pager();
    add_domain();
}

static int control_command(uint32_t command)
{
    struct de_queue_client *operator;
    CHECK_EQ(de_queue_connect_operator(state_directory, &operator), DE_OK);
    de_queue_area(operator)->domains[0] = domain;
    int status = de_queue_call(operator, command, 1);
    de_queue_client_free(operator);
    return status;
}

static void release_and_take_back(void)
{
    while (control_command(DE_COMMAND_RELEASE_DOMAIN) != DE_OK)
        usleep(1000);
    CHECK_EQ(domain_command(DE_COMMAND_ADD_DOMAIN), DE_BUSY);
    CHECK_EQ(control_command(DE_COMMAND_TAKE_BACK_DOMAIN), DE_OK);
    add_domain();
}

/* As a daemon does that is started anew. */
static void restart_daemon(void)
{
    de_queue_client_free(queue);
    CHECK_EQ(de_queue_connect(state_directory, &queue), DE_OK);
    de_queue_area(queue)->domains[0] = domain;
    if (strcmp(shim, "none"))
        CHECK_EQ(de_queue_call(queue, DE_COMMAND_DEVICE_MODEL, 1), DE_OK);
}

/* The guest reads what the device model says it must. @return the bytes compared. */
static uint64_t check_guest(void)
{
    struct de_client_vcpu *vcpu;
    uint64_t compared = 0;
    FILE *expected = fopen(expected_path, "rb");
    CHECK(expected);
    CHECK_EQ(de_client_vcpu_create(machine, domain, &vcpu), 0);
    for (uint32_t gfn = 0; gfn < gfns; gfn++) {
        uint8_t found[DE_PAGE_SIZE], page[DE_PAGE_SIZE];
        CHECK_EQ(fread(page, 1, sizeof page, expected), sizeof page);
        CHECK_EQ(de_client_guest_read(vcpu, gfn, 0, found, DE_PAGE_SIZE), 0);
        CHECK(memcmp(found, page, DE_PAGE_SIZE) == 0);
        compared += DE_PAGE_SIZE;
    }
    de_client_vcpu_free(vcpu);
    fclose(expected);
    return compared;
}

static void close_input(void)
{
    if (device_input >= 0)
        close(device_input);
    device_input = -1;
}

/* @return the device model's exit status. */
static int run(const char *operations, long kills, const char *mode, bool by_signal)
{
    struct tally tally = {.evicted = 0};
    struct de_machine_accounting accounting;
    int status;
    uint64_t random = 5, mapped = 0, samples = 0, began_ns, next_end_ns, daemons = 0;
    /* Benchmarks: one for pages in use, one for pages that are all out at first. */
    void (*const ends[])(void) = {release_and_take_back, kill_pager, drain_and_end_pager};
    bool random_io = !strcmp(mode, "random"), evicting = !random_io && strcmp(mode, "sequential") != 0;
    start();
    for (uint32_t gfn = 0; random_io && gfn < gfns; gfn++)
        tally.evicted += propose_page(gfn) == DE_PROPOSAL_DONE;
    uint64_t before = evicting ? BEFORE_IT_STARTS < gfns / 2 ? BEFORE_IT_STARTS : gfns / 2 : 0;
    while (evicting && tally.evicted < before)
        propose(&random, &tally);
    /* As the daemon does before a device model gets to work: the shim may take its time to say hello. */
    de_queue_area(queue)->domains[0] = domain;
    if (strcmp(shim, "none"))
        CHECK_EQ(de_queue_call(queue, DE_COMMAND_DEVICE_MODEL, 1), DE_OK);
    pid_t device = launch_device_model(operations, mode, by_signal);
    began_ns = now_ns();
    next_end_ns = began_ns + NS_PER_S / 20;
    while (waitpid(device, &status, WNOHANG) == 0) {
        for (int i = 0; i < 16 && evicting; i++)
            propose(&random, &tally);
        if (!evicting)
            usleep(10000);
        CHECK_EQ(de_client_account(machine, &accounting), 0);
        mapped += accounting.mapped;
        samples++;
        if (!evicting || tally.evicted >= before + LEAST_EVICTED)
            close_input();
        if (now_ns() > next_end_ns) {
            if (kills && daemons % 2) {
                (*ends[kills % 3])();
                kills--;
            }
            restart_daemon();
            daemons++;
            next_end_ns = now_ns() + NS_PER_S / 20;
        }
    }
    close_input();
    CHECK(WIFEXITED(status));
    status = WEXITSTATUS(status);
    printf("%s, %s: %" PRIu64 " pages evicted, %" PRIu64 " proposals refused as held, %" PRIu64
           " without holds, %" PRIu64 " otherwise; mapped at a time: %.0f of %u; %" PRIu64
           " daemons, %ld pager kills left; status %d\n",
           mode, by_signal ? "SIGSEGV" : "userfaultfd", tally.evicted, tally.held, tally.not_held,
           tally.other, (double)mapped / (double)(samples ? samples : 1), gfns, daemons, kills, status);
    if (status == 0 && strcmp(mode, "lost-write"))
        printf("the guest reads %" PRIu64 " bytes, all right\n", check_guest());
    /* Its end gave back what it had; the machine may take a moment to notice. */
    do
        CHECK_EQ(de_client_account(machine, &accounting), 0);
    while (accounting.mapped && !usleep(1000));
    finish();
    return status;
}

/* Without holds a write is lost between the pager's last look and the eviction; with them none is. */
static void test_lost_write(void)
{
    const char *with = shim;
    gfns = LOST_WRITE_GFNS;
    evict_us = SLOW_EVICT_US;
    CHECK_EQ(run(LOST_WRITE_TRIES, 0, "lost-write", false), 0);
    shim = "none";
    CHECK_EQ(run(UNTIL_LOST, 0, "lost-write", false), 3);
    shim = with;
    gfns = DEFAULT_GFNS;
    evict_us = NULL;
}

/* A domain that takes so many frames. */
static uint16_t take_frames(uint64_t frames)
{
    uint16_t taker;
    CHECK_EQ(de_client_domain_create(machine, (uint32_t)frames, &taker), 0);
    CHECK_EQ(de_client_populate(machine, taker, NULL, NULL, frames, NULL), frames);
    return taker;
}

static void share(uint32_t source, uint32_t client)
{
    struct de_queue *area = de_queue_area(queue);
    area->domains[0] = area->client_domains[0] = domain;
    area->gfns[0] = source;
    area->client_gfns[0] = client;
    CHECK_EQ(de_queue_call(queue, DE_COMMAND_SHARE, 1), DE_OK);
    CHECK_EQ(area->results[0], DE_PROPOSAL_DONE);
}

/* The device model is there, and stays there. */
static void check_waits_at(pid_t device, off_t step)
{
    struct stat progress;
    while (stat(expected_path, &progress) || progress.st_size < step) {
        CHECK_EQ(waitpid(device, NULL, WNOHANG), 0);
        usleep(1000);
    }
    for (unsigned i = 0; i < STARVED_MS; i++) {
        CHECK_EQ(stat(expected_path, &progress), 0);
        CHECK_EQ(progress.st_size, step);
        usleep(1000);
    }
}

static void check_guest_page(struct de_client_vcpu *vcpu, uint32_t gfn, int content)
{
    uint8_t expected[DE_PAGE_SIZE], found[DE_PAGE_SIZE];
    memset(expected, content, sizeof expected);
    CHECK_EQ(de_client_guest_read(vcpu, gfn, 0, found, DE_PAGE_SIZE), 0);
    CHECK(memcmp(found, expected, DE_PAGE_SIZE) == 0);
}

/* A device writes to shared pages when no frame is free for their copies: it waits for one, and nothing is
 * lost; nor when the first mappings fail as a whole. */
static void test_no_frame(bool by_signal)
{
    struct de_machine_accounting accounting;
    struct de_client_vcpu *vcpu;
    int status;
    start();
    de_queue_area(queue)->domains[0] = domain;
    CHECK_EQ(de_queue_call(queue, DE_COMMAND_DEVICE_MODEL, 1), DE_OK);
    share(0, STORE_GFN);
    share(0, READ_GFN);
    CHECK_EQ(de_client_account(machine, &accounting), 0);
    uint16_t many = take_frames(accounting.free - 1), one = take_frames(1);
    pid_t device = launch_device_model("0", "two-writes", by_signal);
    check_waits_at(device, 1);
    CHECK_EQ(de_client_domain_destroy(machine, one), 0);
    check_waits_at(device, 2);
    CHECK_EQ(de_client_domain_destroy(machine, many), 0);
    CHECK_EQ(waitpid(device, &status, 0), device);
    CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
    CHECK_EQ(de_client_vcpu_create(machine, domain, &vcpu), 0);
    check_guest_page(vcpu, 0, 0);
    check_guest_page(vcpu, STORE_GFN, STORED);
    check_guest_page(vcpu, READ_GFN, READ);
    de_client_vcpu_free(vcpu);
    finish();
    printf("no frame free, %s: the device model waited for one\n", by_signal ? "SIGSEGV" : "userfaultfd");
}

static void await_step(off_t step)
{
    struct stat progress;
    while (stat(expected_path, &progress) || progress.st_size < step)
        usleep(1000);
}

/* Many threads wait for frames: another's pages, which need none, are mapped all the same. */
static void test_waiting(bool by_signal)
{
    struct de_machine_accounting accounting;
    struct de_client_vcpu *vcpu;
    int status;
    start();
    de_queue_area(queue)->domains[0] = domain;
    CHECK_EQ(de_queue_call(queue, DE_COMMAND_DEVICE_MODEL, 1), DE_OK);
    for (uint32_t i = 1; i <= WAITERS; i++)
        share(0, i * WAITER_GFNS);
    CHECK_EQ(de_client_account(machine, &accounting), 0);
    uint16_t taker = take_frames(accounting.free);
    pid_t device = launch_device_model("0", "waiting", by_signal);
    await_step(2);
    CHECK_EQ(waitpid(device, NULL, WNOHANG), 0);
    CHECK_EQ(de_client_domain_destroy(machine, taker), 0);
    CHECK_EQ(waitpid(device, &status, 0), device);
    CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
    CHECK_EQ(de_client_vcpu_create(machine, domain, &vcpu), 0);
    check_guest_page(vcpu, 0, 0);
    check_guest_page(vcpu, APART_GFN, STORED);
    check_guest_page(vcpu, WAITER_GFNS + 1, STORED);
    for (uint32_t i = 1; i <= WAITERS; i++)
        check_guest_page(vcpu, i * WAITER_GFNS, STORED);
    de_client_vcpu_free(vcpu);
    finish();
    printf("no frame free, %s: who needs none waits for none\n", by_signal ? "SIGSEGV" : "userfaultfd");
}

static void go_on(void)
{
    CHECK_EQ(write(device_input, "x", 1), 1);
}

/* It is not attached yet. */
static void await_held(uint32_t gfn)
{
    int result;
    uint64_t deadline_ns = now_ns() + ATTACHED_NS;
    while ((result = propose_page(gfn)) == DE_PROPOSAL_NO_HOLDS) {
        CHECK(now_ns() < deadline_ns);
        usleep(1000);
    }
    CHECK_EQ(result, DE_PROPOSAL_HELD);
}

/* What could not be unmapped is held still, and can be written to; so is what is left of a window of which
 * parts went; and what was mapped more often than can be counted, to the device model's end. All that also in
 * another table, when the pager has the domain anew. */
static void test_unmapping(bool by_signal)
{
    struct de_client_vcpu *vcpu;
    int status;
    start();
    de_queue_area(queue)->domains[0] = domain;
    CHECK_EQ(de_queue_call(queue, DE_COMMAND_DEVICE_MODEL, 1), DE_OK);
    pid_t device = launch_device_model("0", "unmapping", by_signal);
    await_step(1);
    await_held(STAYS_GFN);
    CHECK_EQ(propose_page(ELSEWHERE_GFN), DE_PROPOSAL_DONE);
    release_and_take_back();
    await_held(STAYS_GFN);
    go_on();
    await_step(2);
    CHECK_EQ(propose_page(REST_GFN), DE_PROPOSAL_HELD);
    go_on();
    await_step(3);
    CHECK_EQ(propose_page(OFTEN_GFN), DE_PROPOSAL_HELD);
    CHECK_EQ(propose_page(ELSEWHERE_GFN), DE_PROPOSAL_DONE);
    void (*const ends[])(void) = {release_and_take_back, drain_and_end_pager};
    for (unsigned i = 0; i < 2; i++) {
        (*ends[i])();
        await_held(STAYS_GFN);
        CHECK_EQ(propose_page(REST_GFN), DE_PROPOSAL_HELD);
        CHECK_EQ(propose_page(OFTEN_GFN), DE_PROPOSAL_DONE);
        CHECK_EQ(propose_page(ELSEWHERE_GFN), DE_PROPOSAL_DONE);
    }
    close_input();
    CHECK_EQ(waitpid(device, &status, 0), device);
    CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
    CHECK_EQ(de_client_vcpu_create(machine, domain, &vcpu), 0);
    check_guest_page(vcpu, STAYS_GFN, STORED);
    check_guest_page(vcpu, REST_GFN, STORED);
    de_client_vcpu_free(vcpu);
    finish();
    printf("unmapping, %s: what is mapped is held\n", by_signal ? "SIGSEGV" : "userfaultfd");
}

/* More mappings than are allowed: some go, long before their time. */
static void test_most_mappings(bool by_signal)
{
    struct de_machine_accounting accounting;
    struct de_client_vcpu *vcpu;
    int status;
    start();
    pid_t device = launch_device_model("0", "touching", by_signal);
    await_step(1);
    do
        CHECK_EQ(de_client_account(machine, &accounting), 0);
    while (accounting.mapped > MOST_MAPPED && !usleep(1000));
    close_input();
    CHECK_EQ(waitpid(device, &status, 0), device);
    CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
    CHECK_EQ(de_client_vcpu_create(machine, domain, &vcpu), 0);
    check_guest_page(vcpu, STAYS_GFN, STORED);
    de_client_vcpu_free(vcpu);
    finish();
    printf("many mappings, %s: the rest goes\n", by_signal ? "SIGSEGV" : "userfaultfd");
}

/* Another thread touches a page that is being mapped. */
static void test_blocked_signals(bool by_signal)
{
    struct de_client_vcpu *vcpu;
    int status;
    start();
    pid_t device = launch_device_model("0", "blocking", by_signal);
    CHECK_EQ(waitpid(device, &status, 0), device);
    close_input();
    CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
    CHECK_EQ(de_client_vcpu_create(machine, domain, &vcpu), 0);
    check_guest_page(vcpu, STORE_GFN, STORED);
    de_client_vcpu_free(vcpu);
    finish();
    printf("signals blocked, %s: a page that is being mapped is waited for\n",
           by_signal ? "SIGSEGV" : "userfaultfd");
}

int main(int argc, char **argv)
{
    CHECK(argc >= 5);
    setvbuf(stdout, NULL, _IOLBF, 0);
    machine_program = argv[1];
    pager_program = argv[2];
    device_program = argv[3];
    shim = argv[4];
    if (argc > 8)
        gfns = (uint32_t)atol(argv[8]);
    if (argc > 5) {
        const char *mode = argc > 7 ? argv[7] : "mixed";
        evict_us = argc > 9 ? argv[9] : NULL;
        return run(argv[5], argc > 6 ? atol(argv[6]) : 0, mode, !has_userfaultfd());
    }
    if (has_userfaultfd()) {
        CHECK_EQ(run("3000", 3, "mixed", false), 0);
        test_lost_write();
        test_no_frame(false);
        test_waiting(false);
        test_unmapping(false);
        test_most_mappings(false);
        test_blocked_signals(false);
    } else {
        puts("no userfaultfd here: faults come as SIGSEGV alone");
    }
    test_no_frame(true);
    test_waiting(true);
    test_unmapping(true);
    test_most_mappings(true);
    test_blocked_signals(true);
    CHECK_EQ(run("1000", 3, "mixed", true), 0);
    return 0;
}
