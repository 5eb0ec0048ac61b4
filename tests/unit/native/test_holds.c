/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A device model that maps, writes and unmaps pages while they are proposed for eviction: no write is lost.
 */
#define _GNU_SOURCE
#include "../../../native/simulation/scratch.h"
#include "paging.h"

#include <diffengine/device_models.h>
#include <diffengine/holds.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

enum { GFNS = 32, WRITES = 3000, EVICTIONS = 100 };

static struct de_store *store;
static struct de_hypervisor real;
static struct de_hypervisor_operations hooked;
static void (*before_evict)(uint16_t domain, uint32_t gfn);

static int hooked_evict(void *context, uint16_t domain, uint32_t gfn)
{
    if (before_evict)
        before_evict(domain, gfn);
    return real.operations->paging_evict(context, domain, gfn);
}

static void start(void)
{
    CHECK_EQ(de_machine_create(2 * GFNS, &machine), 0);
    CHECK_EQ(de_store_create(NULL, 16 << 20, &store), DE_OK);
    real = de_machine_hypervisor(machine);
    hooked = *real.operations;
    hooked.paging_evict = hooked_evict;
    before_evict = NULL;
    struct de_hypervisor hypervisor = {.operations = &hooked, .context = real.context};
    CHECK_EQ(de_pager_create(store, &hypervisor, &pager), DE_OK);
}

static uint16_t make_domain(uint32_t gfns, uint32_t first)
{
    uint16_t domain = make_guest(gfns, first);
    CHECK_EQ(de_pager_add_domain(pager, domain, gfns), DE_OK);
    return domain;
}

static void finish(uint16_t domain)
{
    CHECK_EQ(de_machine_domain_destroy(machine, domain), 0);
    CHECK_EQ(de_pager_remove_domain(pager, domain), DE_OK);
    CHECK_EQ(statistics().table_bytes, 0);
    de_pager_free(pager);
    de_store_close(store);
    de_machine_free(machine);
}

static struct de_holds *attach(uint16_t domain)
{
    char path[64];
    struct de_holds *holds;
    CHECK_EQ(de_pager_holds_path(pager, domain, path, sizeof path), DE_OK);
    CHECK_EQ(de_holds_attach(path, &holds), DE_OK);
    return holds;
}

/* What a device model does; an evicted page is asked for by the first try. */
static uint8_t *map_writable(uint16_t domain, uint32_t gfn)
{
    uint8_t *page;
    int32_t error;
    while (de_machine_map(machine, domain, true, &gfn, 1, &page, &error) != 1) {
        CHECK_EQ(error, -ENOENT);
        pause_briefly();
    }
    return page;
}

static void unmap(uint8_t *page)
{
    de_machine_unmap(machine, (const uint8_t *const *)&page, 1);
}

static void check_all_ram(uint16_t domain)
{
    uint8_t states[GFNS];
    CHECK_EQ(de_pager_states(pager, domain, 0, GFNS, states, NULL, NULL), DE_OK);
    for (uint32_t gfn = 0; gfn < GFNS; gfn++) {
        CHECK_EQ(states[gfn], DE_PAGE_RESIDENT);
        CHECK_EQ(de_machine_p2m_type(machine, domain, gfn), DE_P2M_RAM_RW);
    }
}

static void test_rules(void)
{
    start();
    uint16_t domain = make_domain(2, 10);
    char path[64];
    uint32_t object = put_filled(store, 10);
    CHECK_EQ(de_pager_holds_path(pager, domain, path, sizeof path), DE_NOT_FOUND);
    CHECK_EQ(de_pager_set_device_model(pager, 99), DE_NOT_FOUND);
    CHECK_EQ(de_pager_set_device_model(pager, domain), DE_OK);
    CHECK_EQ(de_pager_set_device_model(pager, domain), DE_OK);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_NO_HOLDS);
    CHECK_EQ(watch(domain, 0), DE_PROPOSAL_NO_HOLDS);
    struct de_holds *holds = attach(domain), *second;
    CHECK_EQ(de_pager_holds_path(pager, domain, path, sizeof path), DE_OK);
    CHECK_EQ(de_holds_attach(path, &second), DE_BUSY);
    CHECK_EQ(de_holds_take(holds, 2), DE_INVALID);
    for (unsigned i = 0; i < DE_HOLDS_MAX; i++)
        CHECK_EQ(de_holds_take(holds, 0), DE_OK);
    /* More than can be counted: nobody waits for anybody, and it is held until the device model's end. */
    CHECK_EQ(de_holds_take(holds, 0), DE_OK);
    CHECK_EQ(de_holds_take_plain(holds, 0), DE_OK);
    for (unsigned i = 0; i < 2 * DE_HOLDS_MAX; i++)
        de_holds_drop(holds, 0);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_HELD);
    de_holds_close(holds);
    holds = attach(domain);
    for (unsigned i = 1; i < DE_HOLDS_MAX; i++)
        CHECK_EQ(de_holds_take(holds, 0), DE_OK);
    for (unsigned i = 2; i < DE_HOLDS_MAX; i++)
        de_holds_drop(holds, 0);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_HELD);
    de_holds_drop(holds, 0);
    de_holds_drop(holds, 0); /* one too many does no harm */
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    check_page(domain, 0, 10);
    /* Its end: what it held is void, and so is the permission to evict. */
    CHECK_EQ(de_holds_take(holds, 0), DE_OK);
    de_holds_close(holds);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_NO_HOLDS);
    holds = attach(domain);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    check_page(domain, 0, 10);
    de_holds_close(holds);
    CHECK_EQ(de_holds_attach("/dev/null", &holds), DE_CORRUPT);
    CHECK_EQ(de_holds_attach("/nowhere", &holds), DE_SYSTEM);
    finish(domain);
}

/* The danger itself, shown without holds: the write between the last look and the eviction is lost. */
static void write_in_between(uint16_t domain, uint32_t gfn)
{
    before_evict = NULL;
    uint8_t *page = map_writable(domain, gfn);
    page[0] ^= 0xff;
    unmap(page);
}

static struct de_holds *device_holds;
static atomic_bool device_done;
static pthread_t device_thread;

static void *write_with_hold(void *argument)
{
    uint16_t domain = *(uint16_t *)argument;
    CHECK_EQ(de_holds_take(device_holds, 0), DE_OK);
    uint8_t *page = map_writable(domain, 0);
    page[0] ^= 0xff;
    unmap(page);
    de_holds_drop(device_holds, 0);
    atomic_store(&device_done, true);
    return NULL;
}

static uint16_t device_domain;

static void begin_write_with_hold(uint16_t domain, uint32_t gfn)
{
    (void)domain;
    (void)gfn;
    before_evict = NULL;
    CHECK_EQ(pthread_create(&device_thread, NULL, write_with_hold, &device_domain), 0);
    for (int i = 0; i < 20; i++)
        pause_briefly();
    CHECK(!atomic_load(&device_done));
}

static void test_write_in_between(bool with_holds)
{
    start();
    device_domain = make_domain(1, 20);
    uint32_t object = put_filled(store, 20);
    uint8_t page[DE_PAGE_SIZE];
    if (with_holds) {
        CHECK_EQ(de_pager_set_device_model(pager, device_domain), DE_OK);
        device_holds = attach(device_domain);
    }
    atomic_store(&device_done, false);
    before_evict = with_holds ? begin_write_with_hold : write_in_between;
    CHECK_EQ(evict(device_domain, 0, object), DE_PROPOSAL_DONE);
    while (with_holds && !atomic_load(&device_done))
        de_pager_serve(pager);
    if (with_holds)
        pthread_join(device_thread, NULL);
    struct access access = {.write = false};
    access_begin(&access, device_domain, 0);
    while (!atomic_load(&access.done))
        de_pager_serve(pager);
    CHECK_EQ(access_end(&access), 0);
    fill(page, 20);
    CHECK_EQ(access.page[0], with_holds ? page[0] ^ 0xff : page[0]);
    if (with_holds)
        de_holds_close(device_holds);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    finish(device_domain);
}

/* What the pager says of pages, and what it brings in when it is asked. */
static void test_hints_and_requests(void)
{
    start();
    uint16_t domain = make_domain(4, 40);
    uint32_t first = put_filled(store, 40), second = put_filled(store, 41);
    CHECK_EQ(evict(domain, 0, first), DE_PROPOSAL_DONE);
    CHECK_EQ(de_pager_set_device_model(pager, domain), DE_OK);
    struct de_holds *holds = attach(domain);
    CHECK_EQ(de_holds_hints(holds, 0), DE_HOLDS_OUT);
    CHECK_EQ(de_holds_hints(holds, 1), 0);
    CHECK_EQ(evict(domain, 1, second), DE_PROPOSAL_DONE);
    CHECK_EQ(de_holds_hints(holds, 1), DE_HOLDS_OUT);
    CHECK_EQ(de_holds_take_plain(holds, 1), DE_BUSY);
    CHECK_EQ(de_holds_take_plain(holds, 2), DE_OK);
    de_holds_drop(holds, 2);
    check_page(domain, 1, 41);
    CHECK_EQ(de_holds_hints(holds, 1), 0);
    /* Nobody serves yet: no answer, and the places are free again. */
    CHECK_EQ(de_holds_take(holds, 0), DE_OK);
    for (unsigned i = 0; i <= DE_HOLDS_REQUESTS; i++)
        CHECK_EQ(de_holds_bring_in(holds, (uint32_t[]){0}, 1, 0), DE_BUSY);
    CHECK_EQ(de_pager_start(pager), DE_OK);
    CHECK_EQ(de_pager_serve_requests(pager), DE_OK);
    CHECK_EQ(de_holds_bring_in(holds, (uint32_t[]){0, 1, 2, 3, 4000}, 5, 60000), DE_OK);
    CHECK_EQ(state(domain, 0), DE_PAGE_RESIDENT);
    CHECK_EQ(de_holds_hints(holds, 0), 0);
    de_holds_drop(holds, 0);
    de_pager_stop(pager);
    check_page(domain, 0, 40);
    de_holds_close(holds);
    CHECK_EQ(de_store_release(store, first), DE_OK);
    CHECK_EQ(de_store_release(store, second), DE_OK);
    finish(domain);
}

/* A device model that takes the table's memory away harms nobody but its own domain. */
static void test_truncated(void)
{
    start();
    uint16_t domain = make_domain(2, 50);
    uint32_t object = put_filled(store, 50);
    char path[64];
    CHECK_EQ(de_pager_set_device_model(pager, domain), DE_OK);
    struct de_holds *holds = attach(domain);
    CHECK_EQ(de_pager_holds_path(pager, domain, path, sizeof path), DE_OK);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    CHECK_EQ(de_pager_start(pager), DE_OK);
    CHECK_EQ(de_pager_serve_requests(pager), DE_OK);
    CHECK_EQ(ftruncate(fd, 0), 0);
    int result = evict(domain, 0, object);
    CHECK(result == DE_PROPOSAL_NO_HOLDS || result == DE_PROPOSAL_DONE);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_NO_HOLDS);
    de_pager_stop(pager);
    check_page(domain, 0, 50);
    CHECK_EQ(close(fd), 0);
    de_holds_close(holds);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    finish(domain);
}

static int visit(const char *directory, const void *hello, size_t bytes)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/" DE_DEVICE_MODELS_SOCKET, directory);
    int visitor = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    CHECK_EQ(connect(visitor, (const struct sockaddr *)&address, sizeof address), 0);
    CHECK_EQ(send(visitor, hello, bytes, MSG_NOSIGNAL), (ssize_t)bytes);
    return visitor;
}

/* @return the answer's kind, -1: the pager hung up. @param[out] fd -1: none came. */
static int hear(int visitor, int *fd)
{
    struct de_device_model_answer answer;
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec vector = {.iov_base = &answer, .iov_len = sizeof answer};
    struct msghdr message = {
        .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    *fd = -1;
    if (recvmsg(visitor, &message, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof answer)
        return -1;
    const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header)
        memcpy(fd, CMSG_DATA(header), sizeof *fd);
    return answer.kind;
}

static void test_socket(void)
{
    char directory[64];
    int lock = scratch_make("/dev/shm", directory, sizeof directory), fd;
    CHECK(lock >= 0);
    start();
    uint16_t domain = make_guest(2, 60);
    uint32_t object = put_filled(store, 60);
    struct de_device_models *models;
    CHECK_EQ(de_device_models_create(directory, pager, &models), DE_OK);
    struct de_device_model_hello hello = {DE_DEVICE_MODELS_MAGIC, DE_DEVICE_MODELS_VERSION + 1, domain};
    int other = visit(directory, &hello, sizeof hello);
    CHECK_EQ(hear(other, &fd), DE_DEVICE_MODEL_VERSION);
    CHECK_EQ(hear(other, &fd), -1);
    int nonsense = visit(directory, "nonsense, and long enough", 25);
    CHECK_EQ(hear(nonsense, &fd), -1);
    hello.version = DE_DEVICE_MODELS_VERSION;
    int early = visit(directory, &hello, sizeof hello);
    CHECK_EQ(hear(early, &fd), DE_DEVICE_MODEL_WAIT);
    CHECK_EQ(de_pager_add_domain(pager, domain, 2), DE_OK);
    CHECK_EQ(hear(early, &fd), DE_DEVICE_MODEL_TABLE);
    /* Having the table is not keeping it. */
    CHECK(fd >= 0);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_NO_HOLDS);
    struct de_holds *holds;
    CHECK_EQ(de_holds_attach_fd(fd, &holds), DE_OK);
    CHECK_EQ(de_holds_fd(holds), -1);
    /* It may have mapped what it does not hold yet. */
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_NO_HOLDS);
    CHECK_EQ(de_holds_take(holds, 0), DE_OK);
    de_holds_complete(holds);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_HELD);
    de_holds_drop(holds, 0);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    check_page(domain, 0, 60);
    de_holds_close(holds);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_NO_HOLDS);
    /* The pager gives the domain up, and has it anew: another table comes over the same connection. */
    CHECK_EQ(de_pager_remove_domain(pager, domain), DE_OK);
    hello.domain = domain;
    CHECK_EQ(send(early, &hello, sizeof hello, 0), (ssize_t)sizeof hello);
    CHECK_EQ(hear(early, &fd), DE_DEVICE_MODEL_WAIT);
    CHECK_EQ(de_pager_add_domain(pager, domain, 2), DE_OK);
    CHECK_EQ(hear(early, &fd), DE_DEVICE_MODEL_TABLE);
    CHECK_EQ(de_holds_attach_fd(fd, &holds), DE_OK);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_NO_HOLDS);
    de_holds_complete(holds);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    check_page(domain, 0, 60);
    de_holds_close(holds);
    /* One that waits when the pager ends. */
    hello.domain = 999;
    int late = visit(directory, &hello, sizeof hello);
    /* It came for one domain, and is heard of no other. */
    CHECK_EQ(send(early, &hello, sizeof hello, 0), (ssize_t)sizeof hello);
    CHECK_EQ(hear(early, &fd), -1);
    CHECK_EQ(hear(late, &fd), DE_DEVICE_MODEL_WAIT);
    de_device_models_free(models);
    CHECK_EQ(hear(late, &fd), -1);
    CHECK_EQ(close(other) + close(nonsense) + close(early) + close(late), 0);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    finish(domain);
    char path[128];
    snprintf(path, sizeof path, "%s/" DE_DEVICE_MODELS_SOCKET, directory);
    CHECK_EQ(unlink(path) + rmdir(directory) + close(lock), 0);
}

/* A device model at full speed, and an evictor likewise, until both have done enough. */
struct device {
    uint16_t domain;
    struct de_holds *holds;
    uint32_t expected[GFNS]; /**< what it wrote last into each page */
    atomic_uint evictions;   /**< so far, of its domain */
    atomic_bool done;
};

static void *device_main(void *argument)
{
    struct device *device = argument;
    uint64_t random = 17;
    for (uint32_t i = 1; i <= WRITES || atomic_load(&device->evictions) < EVICTIONS; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        uint32_t gfn = (uint32_t)(random >> 33) % GFNS, found;
        CHECK_EQ(de_holds_take(device->holds, gfn), DE_OK);
        uint8_t *page = map_writable(device->domain, gfn);
        memcpy(&found, page, 4);
        CHECK_EQ(found, device->expected[gfn]);
        memcpy(page, &i, 4);
        device->expected[gfn] = i;
        unmap(page);
        de_holds_drop(device->holds, gfn);
    }
    atomic_store(&device->done, true);
    return NULL;
}

/* The device model may be writing: the pager finds out. Out of ThreadSanitizer's sight. */
__attribute__((no_sanitize("thread"))) static void copy_page(volatile uint8_t *to,
                                                             const volatile uint8_t *from)
{
    for (size_t i = 0; i < DE_PAGE_SIZE; i++)
        to[i] = from[i];
}

static unsigned propose(uint16_t domain, uint32_t gfn)
{
    uint8_t *page, copy[DE_PAGE_SIZE];
    int32_t error;
    if (state(domain, gfn) == DE_PAGE_EVICTED ||
        de_machine_map(machine, domain, false, &gfn, 1, &page, &error) != 1)
        return 0;
    copy_page(copy, page);
    unmap(page);
    uint32_t object = put_page(store, copy);
    int result = evict(domain, gfn, object);
    CHECK(result == DE_PROPOSAL_DONE || result == DE_PROPOSAL_HELD || result == DE_PROPOSAL_BUSY ||
          result == DE_PROPOSAL_TOUCHED || result == DE_PROPOSAL_DIFFERS || result == DE_PROPOSAL_NO_PAGE);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    return result == DE_PROPOSAL_DONE;
}

static void test_device_model_and_evictor(void)
{
    static struct device device;
    start();
    device = (struct device){.domain = make_domain(GFNS, 0)};
    for (uint32_t gfn = 0; gfn < GFNS; gfn++) {
        uint8_t page[DE_PAGE_SIZE];
        fill(page, gfn);
        memcpy(&device.expected[gfn], page, 4);
    }
    CHECK_EQ(de_pager_set_device_model(pager, device.domain), DE_OK);
    device.holds = attach(device.domain);
    CHECK_EQ(de_pager_start(pager), DE_OK);
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, device_main, &device), 0);
    for (uint32_t i = 0; !atomic_load(&device.done); i++)
        atomic_fetch_add(&device.evictions, propose(device.domain, i % GFNS));
    pthread_join(thread, NULL);
    struct de_vcpu *vcpu;
    CHECK_EQ(de_vcpu_create(machine, device.domain, &vcpu), 0);
    for (uint32_t gfn = 0; gfn < GFNS; gfn++) {
        uint32_t found;
        CHECK_EQ(de_machine_guest_read(vcpu, gfn, 0, &found, 4), 0);
        CHECK_EQ(found, device.expected[gfn]);
    }
    de_vcpu_free(vcpu);
    de_pager_stop(pager);
    de_holds_close(device.holds);
    finish(device.domain);
}

/* A device model in a process of its own is killed: its holds are void at once. */
static void test_killed(void)
{
    start();
    uint16_t domain = make_domain(1, 30);
    CHECK_EQ(de_pager_set_device_model(pager, domain), DE_OK);
    uint32_t object = put_filled(store, 30);
    char path[64];
    CHECK_EQ(de_pager_holds_path(pager, domain, path, sizeof path), DE_OK);
    int ready[2];
    CHECK_EQ(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        struct de_holds *holds;
        if (de_holds_attach(path, &holds) || de_holds_take(holds, 0) || write(ready[1], "x", 1) != 1)
            _exit(1);
        pause();
    }
    char byte;
    CHECK_EQ(read(ready[0], &byte, 1), 1);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_HELD);
    CHECK_EQ(kill(child, SIGKILL), 0);
    CHECK_EQ(waitpid(child, NULL, 0), child);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_NO_HOLDS);
    struct de_holds *holds = attach(domain);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    de_holds_close(holds);
    CHECK_EQ(close(ready[0]) + close(ready[1]), 0);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    finish(domain);
}

/* What was watched can be given back whatever the device model does: when it is gone, and when it has the
 * page mapped and writes to it. More pages than the ring has room for. */
static void test_restore(void)
{
    start();
    uint16_t domain = make_domain(GFNS, 50);
    CHECK_EQ(de_pager_start(pager), DE_OK);
    CHECK_EQ(de_pager_set_device_model(pager, domain), DE_OK);
    struct de_holds *holds = attach(domain);
    for (uint32_t gfn = 0; gfn < GFNS; gfn++)
        CHECK_EQ(watch(domain, gfn), DE_PROPOSAL_DONE);
    CHECK_EQ(de_holds_take(holds, 3), DE_OK);
    uint8_t *page = map_writable(domain, 3);
    page[0] = 0xaa;
    CHECK_EQ(de_pager_restore(pager, domain), DE_OK);
    check_all_ram(domain);
    for (uint32_t gfn = 0; gfn < GFNS; gfn++)
        CHECK_EQ(watch(domain, gfn), gfn == 3 ? DE_PROPOSAL_BUSY : DE_PROPOSAL_DONE);
    de_holds_close(holds);
    CHECK_EQ(de_pager_restore(pager, domain), DE_OK);
    check_all_ram(domain);
    CHECK_EQ(page[0], 0xaa);
    unmap(page);
    CHECK_EQ(statistics().evictions, 0);
    CHECK_EQ(statistics().corrupt, 0);
    finish(domain);
}

/* The pager dies with a page locked, which a device model waits for; the next pager unlocks it. */
static void test_successor(void)
{
    char directory[64];
    CHECK(scratch_make("/dev/shm", directory, sizeof directory) >= 0);
    int fd = open(directory, O_RDONLY | O_DIRECTORY);
    struct de_holds *mine, *device, *next;
    static const struct de_uuid uuid = {{1}}, other = {{2}};
    CHECK_EQ(de_holds_create(fd, 7, &uuid, 100, &mine), DE_OK);
    char path[96], kept[96];
    snprintf(path, sizeof path, "%s/holds-7", directory);
    snprintf(kept, sizeof kept, "%s/kept", directory);
    CHECK_EQ(de_holds_attach(path, &device), DE_OK);
    CHECK_EQ(de_holds_take(device, 1), DE_OK);
    CHECK(de_holds_lock(mine, 3));
    CHECK(!de_holds_lock(mine, 1));
    de_holds_close(mine);
    CHECK_EQ(de_holds_reopen(fd, 7, &uuid, 99, &next), DE_CORRUPT);
    CHECK_EQ(de_holds_reopen(fd, 7, &other, 100, &next), DE_CORRUPT);
    CHECK_EQ(de_holds_reopen(fd, 8, &uuid, 100, &next), DE_NOT_FOUND);
    CHECK_EQ(de_holds_reopen(fd, 7, &uuid, 100, &next), DE_OK);
    CHECK_EQ(de_holds_take(device, 3), DE_OK);
    CHECK(de_holds_attached(next));
    CHECK(!de_holds_lock(next, 1));
    de_holds_close(device);
    CHECK(!de_holds_attached(next));
    CHECK_EQ(de_holds_attach(path, &device), DE_OK);
    CHECK(!de_holds_ended(device));
    de_holds_close(next);
    /* Given up: it is not taken up again, not even by a successor that finds it still there. */
    CHECK_EQ(link(path, kept), 0);
    de_holds_remove(fd, 7);
    CHECK(de_holds_ended(device));
    CHECK_EQ(rename(kept, path), 0);
    CHECK_EQ(de_holds_reopen(fd, 7, &uuid, 100, &next), DE_CORRUPT);
    CHECK_EQ(de_holds_create(fd, 7, &uuid, 100, &next), DE_OK);
    CHECK(!de_holds_attached(next));
    de_holds_close(device);
    CHECK_EQ(de_holds_attach(path, &device), DE_OK);
    CHECK(!de_holds_ended(device));
    de_holds_close(device);
    de_holds_close(next);
    de_holds_remove(fd, 7);
    CHECK_EQ(close(fd), 0);
    CHECK_EQ(rmdir(directory), 0);
}

int main(void)
{
    test_rules();
    test_write_in_between(false);
    test_write_in_between(true);
    test_killed();
    test_restore();
    test_successor();
    test_hints_and_requests();
    test_truncated();
    test_socket();
    test_device_model_and_evictor();
    return 0;
}
