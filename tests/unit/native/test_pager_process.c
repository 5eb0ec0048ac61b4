/* SPDX-License-Identifier: GPL-2.0-or-later */
/* diffengine-machine and diffengine-pager as processes: commands, and a pager that is killed again and again
 * under load. Usage: test-pager-process MACHINE PAGER [KILLS] */
#define _GNU_SOURCE
#include "../../../native/simulation/scratch.h"
#include "processes.h"

#include <diffengine/digest.h>
#include <diffengine/machine_client.h>
#include <diffengine/pager_queue.h>
#include <diffengine/status.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { GUESTS = 2, GFNS = 64, FRAMES = GUESTS * GFNS + 32 };

static const char *machine_program, *pager_program;
static char directory[64], state_directory[96], socket_path[96], swap_path[96];
static pid_t machine_process, pager_process;
static struct de_machine_client *machine;
static struct de_queue_client *queue;
static uint16_t domains[GUESTS];

static void sleep_us(unsigned us)
{
    nanosleep(&(struct timespec){.tv_sec = us / 1000000, .tv_nsec = (long)(us % 1000000) * 1000}, NULL);
}

static void launch_pager(void)
{
    char parent[16];
    snprintf(parent, sizeof parent, "%d", (int)getpid());
    const char *arguments[] = {pager_program, "--state",  state_directory, "--machine", socket_path,
                               "--store-mib", "16",       "--swap",        swap_path,   "--swap-mib",
                               "1",           "--parent", parent,          NULL};
    pager_process = launch(arguments);
    CHECK(pager_process);
    CHECK_EQ(de_queue_connect(state_directory, &queue), DE_OK);
}

static void fill(uint8_t *page, uint32_t key)
{
    uint64_t word = key * UINT64_C(0x9e3779b97f4a7c15) + 1;
    for (size_t i = 0; i < DE_PAGE_SIZE; i += sizeof word) {
        memcpy(page + i, &word, sizeof word);
        word = word * 6364136223846793005u + 1442695040888963407u;
    }
}

static void start(void)
{
    char frames[16], parent[16];
    CHECK(scratch_make("/dev/shm", directory, sizeof directory) >= 0);
    snprintf(state_directory, sizeof state_directory, "%s/state", directory);
    snprintf(socket_path, sizeof socket_path, "%s/machine", directory);
    snprintf(swap_path, sizeof swap_path, "%s/swap", directory);
    CHECK_EQ(mkdir(state_directory, 0700), 0);
    snprintf(frames, sizeof frames, "%d", FRAMES);
    snprintf(parent, sizeof parent, "%d", (int)getpid());
    const char *arguments[] = {machine_program, "--socket", socket_path, "--frames",
                               frames,          "--parent", parent,      NULL};
    machine_process = launch(arguments);
    CHECK(machine_process);
    CHECK_EQ(de_client_connect(socket_path, DE_CLIENT_DEVICE_MODEL, &machine), 0);
    for (uint32_t i = 0; i < GUESTS; i++) {
        CHECK_EQ(de_client_domain_create(machine, GFNS, &domains[i]), 0);
        for (uint32_t gfn = 0; gfn < GFNS; gfn++) {
            uint8_t page[DE_PAGE_SIZE];
            const uint8_t *pages[] = {page};
            fill(page, gfn);
            CHECK_EQ(de_client_populate(machine, domains[i], &gfn, pages, 1, NULL), 1);
        }
    }
    launch_pager();
}

static void remove_files(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", directory);
    CHECK_EQ(system(command), 0);
}

static void finish(void)
{
    de_queue_client_free(queue);
    end(&pager_process, SIGTERM);
    de_client_free(machine);
    end(&machine_process, SIGTERM);
    remove_files();
}

/* Commands of one item. The results are the command's status if that is not DE_OK. */

static int call(uint32_t command, uint32_t count)
{
    return de_queue_call(queue, command, count);
}

static int add_domain(uint16_t domain)
{
    de_queue_area(queue)->domains[0] = domain;
    de_queue_area(queue)->gfns[0] = GFNS;
    return call(DE_COMMAND_ADD_DOMAIN, 1);
}

static int page_command(uint32_t command, uint16_t domain, uint32_t gfn, uint32_t object)
{
    struct de_queue *area = de_queue_area(queue);
    area->domains[0] = domain;
    area->gfns[0] = gfn;
    area->objects[0] = object;
    int status = call(command, 1);
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
    int status = call(DE_COMMAND_PUT, 1);
    *object = area->objects[0];
    return status == DE_OK ? area->results[0] : status;
}

static uint8_t state(uint16_t domain, uint32_t gfn)
{
    uint8_t value;
    CHECK_EQ(de_queue_states(queue, domain, gfn, 1, &value, NULL, NULL), DE_OK);
    return value;
}

static void check_guest(uint16_t domain)
{
    struct de_client_vcpu *vcpu;
    CHECK_EQ(de_client_vcpu_create(machine, domain, &vcpu), 0);
    for (uint32_t gfn = 0; gfn < GFNS; gfn++) {
        uint8_t found[DE_PAGE_SIZE], page[DE_PAGE_SIZE];
        CHECK_EQ(de_client_guest_read(vcpu, gfn, 0, found, DE_PAGE_SIZE), 0);
        fill(page, gfn);
        CHECK(memcmp(found, page, DE_PAGE_SIZE) == 0);
    }
    de_client_vcpu_free(vcpu);
}

static void test_commands(void)
{
    start();
    struct de_queue *area = de_queue_area(queue);
    struct de_queue_client *second;
    struct de_pager_page page;
    uint8_t content[DE_PAGE_SIZE];
    uint32_t object;
    CHECK_EQ(de_queue_connect(state_directory, &second), DE_BUSY);
    CHECK_EQ(de_queue_connect("/nowhere", &second), DE_NOT_FOUND);
    CHECK_EQ(add_domain(domains[0]), DE_OK);
    CHECK_EQ(add_domain(domains[0]), DE_BUSY);
    CHECK_EQ(call(99, 1), DE_INVALID);
    CHECK_EQ(call(DE_COMMAND_WATCH, DE_QUEUE_BATCH + 1), DE_INVALID);
    /* Lies: sizes beyond the area, references to what is not there. */
    area->encodings[0] = DE_ENCODING_RAW;
    area->sizes[0] = 65535;
    area->reference_counts[0] = 255;
    CHECK_EQ(call(DE_COMMAND_PUT, 1), DE_OK);
    CHECK_EQ(area->results[0], DE_INVALID);
    area->encodings[0] = 200;
    area->reference_counts[0] = 1;
    area->references[0][0] = DE_QUEUE_IN_BATCH | 5;
    area->sizes[0] = 10;
    CHECK_EQ(call(DE_COMMAND_PUT, 1), DE_OK);
    CHECK_EQ(area->results[0], DE_INVALID);
    for (uint32_t i = 0; i < DE_QUEUE_BATCH; i++) {
        area->encodings[i] = DE_ENCODING_RAW;
        area->sizes[i] = DE_PAGE_SIZE;
        area->reference_counts[i] = 0;
    }
    CHECK_EQ(call(DE_COMMAND_PUT, DE_QUEUE_BATCH), DE_OK);
    CHECK_EQ(area->results[DE_QUEUE_PAGES - 1], DE_OK);
    CHECK_EQ(area->results[DE_QUEUE_PAGES], DE_INVALID); /* beyond the payloads */
    /* Put, evict, read back; a page proposed as another one's content stays. */
    fill(content, 3);
    CHECK_EQ(put_raw(content, &object), DE_OK);
    CHECK_EQ(page_command(DE_COMMAND_EVICT, domains[0], 4, object), DE_PROPOSAL_DIFFERS);
    CHECK_EQ(page_command(DE_COMMAND_EVICT, domains[0], 3, object), DE_PROPOSAL_DONE);
    CHECK_EQ(state(domains[0], 3), DE_PAGE_EVICTED);
    CHECK_EQ(de_queue_states(queue, domains[1], 0, 1, NULL, NULL, NULL), DE_NOT_FOUND);
    CHECK_EQ(de_queue_states(queue, domains[0], 0, GFNS + 1, NULL, NULL, NULL), DE_INVALID);
    CHECK_EQ(page_command(DE_COMMAND_REBUILD, 0, 0, object), DE_OK);
    CHECK(memcmp(area->payloads, content, DE_PAGE_SIZE) == 0);
    CHECK_EQ(page_command(DE_COMMAND_SWAP_OUT, 0, 0, object), DE_PROPOSAL_DONE);
    CHECK_EQ(page_command(DE_COMMAND_REBUILD, 0, 0, object), DE_BUSY);
    CHECK_EQ(page_command(DE_COMMAND_WATCH, domains[0], 7, 0), DE_PROPOSAL_DONE);
    /* What a client counted on goes with the session; what pages need stays. */
    de_queue_client_free(queue);
    CHECK_EQ(de_queue_connect(state_directory, &queue), DE_OK);
    area = de_queue_area(queue);
    CHECK_EQ(page_command(DE_COMMAND_RELEASE, 0, 0, object), DE_NOT_FOUND);
    do {
        sleep_us(10000);
        CHECK_EQ(de_queue_statistics(queue, &page), DE_OK);
    } while (page.store.objects != 1);
    CHECK_EQ(page.pager.evicted, 1);
    CHECK_EQ(page.pager.watched, 2); /* also the one that was refused */
    CHECK_EQ(page.swap.used, 1);
    CHECK(page.cpu_ns > 0);
    check_guest(domains[0]);
    char text[200];
    CHECK_EQ(de_queue_failure(queue, domains[0], text, sizeof text), DE_OK);
    CHECK_EQ(text[0], 0);
    CHECK_EQ(call(DE_COMMAND_COMPACT, 1), DE_OK);
    CHECK_EQ(call(DE_COMMAND_RESTORE, 1), DE_NOT_FOUND); /* domains[0] of the last command: 0 */
    area->domains[0] = domains[0];
    CHECK_EQ(call(DE_COMMAND_RESTORE, 1), DE_OK);
    CHECK_EQ(call(DE_COMMAND_REMOVE_DOMAIN, 1), DE_OK);
    finish();
}

/* Its options, and what it refuses. */
static void test_refused(void)
{
    start();
    char none[128];
    snprintf(none, sizeof none, "%s/none", directory);
    const char *second[] = {pager_program, "--state", state_directory, "--machine", socket_path, NULL};
    const char *no_machine[] = {pager_program, "--state", state_directory, "--machine", none, NULL};
    const char *no_state[] = {pager_program, "--state", none, "--machine", socket_path, NULL};
    const char *half_swap[] = {pager_program, "--state", state_directory, "--machine", socket_path, "--swap",
                               none,          NULL};
    const char *zero[] = {pager_program, "--state", state_directory, "--machine", socket_path, "--store-mib",
                          "0",           NULL};
    const char *nothing[] = {pager_program, NULL};
    CHECK_EQ(launch(second), 0);
    CHECK_EQ(launch(no_machine), 0);
    CHECK_EQ(launch(no_state), 0);
    CHECK_EQ(launch(half_swap), 0);
    CHECK_EQ(launch(zero), 0);
    CHECK_EQ(launch(nothing), 0);
    finish();
}

/* One proposal, if there is something to propose. */
static void propose(uint64_t *random)
{
    *random = *random * 6364136223846793005u + 1442695040888963407u;
    uint16_t domain = domains[*random >> 33 & 1];
    uint32_t gfn = (uint32_t)(*random >> 40) % GFNS, object;
    uint8_t *mapped, copy[DE_PAGE_SIZE];
    int32_t error;
    if (state(domain, gfn) == DE_PAGE_EVICTED ||
        de_client_map(machine, domain, false, &gfn, 1, &mapped, &error) != 1)
        return;
    memcpy(copy, mapped, DE_PAGE_SIZE);
    de_client_unmap(machine, (const uint8_t *const *)&mapped, 1);
    int status = put_raw(copy, &object);
    if (status == DE_OK)
        status = page_command(DE_COMMAND_EVICT, domain, gfn, object);
    if (status == DE_PROPOSAL_DONE && *random >> 50 & 1)
        page_command(DE_COMMAND_SWAP_OUT, 0, 0, object);
    page_command(DE_COMMAND_RELEASE, 0, 0, object);
}

/** Who kills the pager, and when: so many proposals after it was launched, and a moment later. */
struct killer {
    unsigned proposals, pause_us;
    _Atomic(unsigned) made;
    pthread_t thread;
};

static void *killer_thread(void *argument)
{
    struct killer *killer = argument;
    while (atomic_load(&killer->made) < killer->proposals)
        sleep_us(100);
    sleep_us(killer->pause_us);
    CHECK_EQ(kill(pager_process, SIGKILL), 0);
    return NULL;
}

/* Until it is dead, in the middle of whatever. */
static void propose_until_killed(uint64_t *random)
{
    static struct killer killer;
    *random = *random * 6364136223846793005u + 1442695040888963407u;
    killer = (struct killer){.proposals = (unsigned)(*random >> 33) % 20,
                             .pause_us = (unsigned)(*random >> 40) % 2000};
    CHECK_EQ(pthread_create(&killer.thread, NULL, killer_thread, &killer), 0);
    while (waitpid(pager_process, NULL, WNOHANG) == 0) {
        propose(random);
        atomic_fetch_add(&killer.made, 1);
    }
    pthread_join(killer.thread, NULL);
}

/* A slow host's guests may not have come to much yet. */
static void await_faults(uint32_t program, uint64_t faults, uint64_t *random)
{
    struct de_program_result result;
    do {
        propose(random);
        CHECK_EQ(de_client_program_read(machine, program, &result), 0);
        CHECK_EQ(result.status, 0);
    } while (result.reads <= 100 || result.faults <= faults);
}

static uint32_t start_guest(uint16_t domain, uint64_t seed)
{
    static uint8_t image[GFNS][DE_PAGE_SIZE];
    static const uint32_t hot[] = {0, 1, 2, 3};
    const uint8_t *pages[GFNS];
    uint32_t contents, program;
    for (uint32_t gfn = 0; gfn < GFNS; gfn++) {
        fill(image[gfn], gfn);
        pages[gfn] = image[gfn];
    }
    struct de_program_options options = {.kind = DE_PROGRAM_WORKING_SET,
                                         .seed = seed,
                                         .gfns = GFNS,
                                         .hot = hot,
                                         .hot_count = 4,
                                         .excursion_fraction = 0.7,
                                         .write_fraction = 0.2,
                                         .operations_per_s = 20000};
    CHECK_EQ(de_client_contents_add_pages(machine, pages, GFNS, &contents), 0);
    CHECK_EQ(de_client_program_start(machine, domain, &options, contents, &program), 0);
    CHECK_EQ(de_client_contents_remove(machine, contents), 0);
    return program;
}

/* Some pages are on disk or on their way in when it is asked first: busy means try again (pager.h). */
static void restore(void)
{
    int status = call(DE_COMMAND_RESTORE, 1);
    for (int tries = 0; status == DE_BUSY && tries < 200; tries++) {
        sleep_us(10000);
        status = call(DE_COMMAND_RESTORE, 1);
    }
    CHECK_EQ(status, DE_OK);
}

static void test_killed_under_load(long kills)
{
    start();
    uint32_t programs[GUESTS];
    struct de_program_result result;
    uint64_t random = 11, evictions = 0;
    for (uint32_t i = 0; i < GUESTS; i++) {
        CHECK_EQ(add_domain(domains[i]), DE_OK);
        programs[i] = start_guest(domains[i], i);
    }
    for (long i = 0; i < kills; i++) {
        struct de_pager_page page;
        propose_until_killed(&random);
        if (de_queue_statistics(queue, &page) == DE_OK)
            evictions += page.pager.evictions;
        de_queue_client_free(queue);
        launch_pager();
        CHECK_EQ(add_domain(domains[0]), DE_BUSY);
    }
    for (uint32_t i = 0; i < GUESTS; i++) {
        await_faults(programs[i], (uint64_t)kills / 10, &random);
        CHECK_EQ(de_client_program_stop(machine, programs[i], &result, NULL, 0), 0);
        CHECK_EQ(result.status, 0);
        CHECK_EQ(result.wrong_bytes, 0);
        printf("%ld kills: guest %u read %" PRIu64 ", wrote %" PRIu64 ", %" PRIu64 " faults, 0 wrong bytes\n",
               kills, i, result.reads, result.writes, result.faults);
    }
    CHECK(evictions > 0);
    for (uint32_t i = 0; i < GUESTS; i++) {
        de_queue_area(queue)->domains[0] = domains[i];
        restore();
        CHECK_EQ(call(DE_COMMAND_REMOVE_DOMAIN, 1), DE_OK);
    }
    finish();
}

/* One that ends in good order is succeeded by one that knows nothing of it: of what has nothing out. */
static void test_state_is_lost(void)
{
    uint8_t page[DE_PAGE_SIZE];
    uint32_t object;
    start();
    CHECK_EQ(add_domain(domains[0]), DE_OK);
    CHECK_EQ(add_domain(domains[1]), DE_OK);
    CHECK_EQ(page_command(DE_COMMAND_WATCH, domains[0], 2, 0), DE_PROPOSAL_DONE);
    fill(page, 3);
    CHECK_EQ(put_raw(page, &object), DE_OK);
    CHECK_EQ(page_command(DE_COMMAND_EVICT, domains[1], 3, object), DE_PROPOSAL_DONE);
    de_queue_client_free(queue);
    end(&pager_process, SIGTERM);
    char former[sizeof state_directory];
    memcpy(former, state_directory, sizeof former);
    snprintf(state_directory, sizeof state_directory, "%s/other", directory);
    CHECK_EQ(mkdir(state_directory, 0700), 0);
    launch_pager();
    CHECK_EQ(add_domain(domains[0]), DE_OK);
    CHECK_EQ(add_domain(domains[1]), DE_BUSY);
    check_guest(domains[0]);
    de_queue_client_free(queue);
    end(&pager_process, SIGTERM);
    memcpy(state_directory, former, sizeof former);
    launch_pager();
    check_guest(domains[1]);
    finish();
}

int main(int argc, char **argv)
{
    CHECK(argc >= 3);
    machine_program = argv[1];
    pager_program = argv[2];
    test_commands();
    test_refused();
    test_state_is_lost();
    test_killed_under_load(argc > 3 ? atol(argv[3]) : 100);
    return 0;
}
