/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A pager dies at every single step of what it does, and the next one goes on: nothing is lost. */
#define _GNU_SOURCE
#include "../../../native/simulation/scratch.h"
#include "paging.h"

#include <diffengine/holds.h>
#include <diffengine/patch.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* The dead are left lying about. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}

enum { GFNS = 8, VCPUS = 4, KEY = 1000 };

static char directory[64], swap_path[96];
static struct de_hypervisor real;
static struct de_hypervisor_operations mortal;

/* Death: at the n-th step from now. A step is the moment before or after any call to the hypervisor or disk.
 */
static jmp_buf death;
static long steps_left; /**< 0: immortal */
static long steps_done;

static void step(void)
{
    steps_done++;
    if (steps_left && --steps_left == 0)
        longjmp(death, 1);
}

#define MORTAL(name, parameters, arguments)                                                                  \
    static int mortal_##name parameters                                                                      \
    {                                                                                                        \
        step();                                                                                              \
        int result = real.operations->name arguments;                                                        \
        step();                                                                                              \
        return result;                                                                                       \
    }

MORTAL(map,
       (void *c, uint16_t domain, const uint32_t *gfns, size_t count, const uint8_t **pages, int32_t *errors),
       (c, domain, gfns, count, pages, errors))
MORTAL(domain_uuid, (void *c, uint16_t domain, struct de_uuid *uuid), (c, domain, uuid))
MORTAL(paging_enable, (void *c, uint16_t domain), (c, domain))
MORTAL(paging_disable, (void *c, uint16_t domain), (c, domain))
MORTAL(paging_nominate, (void *c, uint16_t domain, uint32_t gfn), (c, domain, gfn))
MORTAL(paging_touch, (void *c, uint16_t domain, uint32_t gfn), (c, domain, gfn))
MORTAL(paging_evict, (void *c, uint16_t domain, uint32_t gfn), (c, domain, gfn))
MORTAL(paging_load, (void *c, uint16_t domain, uint32_t gfn, const uint8_t *page), (c, domain, gfn, page))
MORTAL(share_nominate, (void *c, uint16_t domain, uint32_t gfn, uint64_t *handle), (c, domain, gfn, handle))
MORTAL(share,
       (void *c, uint16_t source, uint32_t source_gfn, uint64_t source_handle, uint16_t client,
        uint32_t client_gfn, uint64_t client_handle),
       (c, source, source_gfn, source_handle, client, client_gfn, client_handle))
MORTAL(unshare, (void *c, uint16_t domain, uint32_t gfn), (c, domain, gfn))
MORTAL(paging_load_answer,
       (void *c, uint16_t domain, uint32_t gfn, const uint8_t *page, const struct de_vm_event *answer),
       (c, domain, gfn, page, answer))
MORTAL(ring_take, (void *c, uint16_t domain, struct de_vm_event *event), (c, domain, event))
MORTAL(ring_answer, (void *c, uint16_t domain, const struct de_vm_event *answer), (c, domain, answer))

/* A machine may be slow to notice that a pager is dead. */
static unsigned busy_takeovers;
static int takeover_error;

static int mortal_paging_take_over(void *c, uint16_t domain, uint32_t *answered)
{
    if (busy_takeovers) {
        busy_takeovers--;
        return -EBUSY;
    }
    if (takeover_error)
        return takeover_error;
    step();
    int result = real.operations->paging_take_over(c, domain, answered);
    step();
    return result;
}

#define MORTAL_STORE(name, parameters, arguments)                                                            \
    static int store_##name parameters                                                                       \
    {                                                                                                        \
        step();                                                                                              \
        int result = real.operations->store_domain->name arguments;                                          \
        step();                                                                                              \
        return result;                                                                                       \
    }

MORTAL_STORE(create, (void *c, const struct de_uuid *uuid, uint64_t gfns, uint64_t frames, uint16_t *id),
             (c, uuid, gfns, frames, id))
MORTAL_STORE(find, (void *c, const struct de_uuid *uuid, uint16_t *id), (c, uuid, id))
MORTAL_STORE(populate, (void *c, uint16_t id, uint32_t gfn), (c, id, gfn))
MORTAL_STORE(depopulate, (void *c, uint16_t id, const uint32_t *gfns, size_t count), (c, id, gfns, count))

enum { FORMER = 0xee };
static bool dirty_frames; /**< what the hypervisor gives was somebody else's, and looks like it */

static int store_map_added(void *c, uint16_t id, uint32_t gfn, uint8_t *address)
{
    step();
    int result = real.operations->store_domain->map_added(c, id, gfn, address);
    if (!result && dirty_frames)
        memset(address, FORMER, DE_PAGE_SIZE);
    step();
    return result;
}

/* Windows that the pager has open: its end closes them. */
static unsigned windows;

static int store_map(void *c, uint16_t id, uint32_t first, size_t count, uint8_t *address, bool *present)
{
    step();
    int result = real.operations->store_domain->map(c, id, first, count, address, present);
    windows += !result;
    step();
    return result;
}

static int store_unmap(void *c, uint8_t *address, size_t count)
{
    step();
    int result = real.operations->store_domain->unmap(c, address, count);
    windows -= !result;
    step();
    return result;
}

static int store_destroy(void *c, uint16_t id)
{
    step();
    CHECK_EQ(windows, 0);
    int result = real.operations->store_domain->destroy(c, id);
    step();
    return result;
}

static const struct de_store_domain_operations mortal_store = {
    .create = store_create,
    .find = store_find,
    .destroy = store_destroy,
    .populate = store_populate,
    .depopulate = store_depopulate,
    .map = store_map,
    .map_added = store_map_added,
    .unmap = store_unmap,
};
static bool in_store_domain; /**< a new store */

/* Pages that a dead pager had mapped: its process's end unmaps them. */
static const uint8_t *mapped[2];

static int mapping(void *c, uint16_t domain, const uint32_t *gfns, size_t count, const uint8_t **pages,
                   int32_t *errors)
{
    step();
    int result = real.operations->map(c, domain, gfns, count, pages, errors);
    mapped[mapped[0] != NULL] = result == 1 ? pages[0] : NULL;
    step();
    return result;
}

static void unmapping(void *c, const uint8_t *const *pages, size_t count)
{
    step();
    real.operations->unmap(c, pages, count);
    memset(mapped, 0, sizeof mapped);
    step();
}

static uint64_t clock_ns(void *c)
{
    step();
    return real.operations->now_ns(c);
}

static ssize_t disk_read(void *context, int fd, void *buffer, size_t bytes, int64_t offset)
{
    (void)context;
    step();
    return pread(fd, buffer, bytes, offset);
}

static ssize_t disk_write(void *context, int fd, const void *buffer, size_t bytes, int64_t offset)
{
    (void)context;
    step();
    ssize_t written = pwrite(fd, buffer, bytes, offset);
    step();
    return written;
}

/* Files of the state directory change, too: store, page tables, hold tables. */

static bool is_state(int fd)
{
    char link[32], path[128];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path);
    return length > (ssize_t)strlen(directory) && !memcmp(path, directory, strlen(directory));
}

static int change_file(int fd, int mode, off_t offset, off_t bytes)
{
    bool counts = is_state(fd);
    if (counts)
        step();
    int result = (int)syscall(SYS_fallocate, fd, mode, offset, bytes);
    if (counts)
        step();
    return result;
}

int posix_fallocate(int fd, off_t offset, off_t bytes)
{
    return change_file(fd, 0, offset, bytes) ? errno : 0;
}

int fallocate(int fd, int mode, off_t offset, off_t bytes)
{
    return change_file(fd, mode, offset, bytes);
}

static const struct de_swap_disk disk = {.read = disk_read, .write = disk_write};

static struct de_pager_state given_state(void)
{
    return (struct de_pager_state){.directory = directory,
                                   .store_bytes = 16 << 20,
                                   .store_domain = in_store_domain,
                                   .swap_path = swap_path,
                                   .swap_bytes = 64 * DE_PAGE_SIZE,
                                   .swap_disk = &disk};
}

static void open_pager(void)
{
    char error[200] = "";
    struct de_hypervisor hypervisor = {.operations = &mortal, .context = real.context};
    struct de_pager_state state = given_state();
    windows = 0;
    int status = de_pager_open(&state, &hypervisor, &pager, error, sizeof error);
    if (status != DE_OK)
        fprintf(stderr, "%s\n", error);
    CHECK_EQ(status, DE_OK);
}

static void make_directory(void)
{
    CHECK(scratch_make("/dev/shm", directory, sizeof directory) >= 0);
    snprintf(swap_path, sizeof swap_path, "%s/swap", directory);
}

static void start(void)
{
    (void)mortal_map;
    CHECK_EQ(de_machine_create(in_store_domain ? GFNS * 8 : GFNS * 2, &machine), 0);
    real = de_machine_hypervisor(machine);
    mortal = *real.operations;
    mortal.map = mapping;
    mortal.unmap = unmapping;
    mortal.now_ns = clock_ns;
    mortal.domain_uuid = mortal_domain_uuid;
    mortal.paging_enable = mortal_paging_enable;
    mortal.paging_disable = mortal_paging_disable;
    mortal.paging_take_over = mortal_paging_take_over;
    mortal.paging_nominate = mortal_paging_nominate;
    mortal.paging_touch = mortal_paging_touch;
    mortal.paging_evict = mortal_paging_evict;
    mortal.paging_load = mortal_paging_load;
    mortal.paging_load_answer = in_store_domain ? mortal_paging_load_answer : NULL;
    mortal.share_nominate = mortal_share_nominate;
    mortal.share = mortal_share;
    mortal.unshare = mortal_unshare;
    mortal.ring_take = mortal_ring_take;
    mortal.ring_answer = mortal_ring_answer;
    mortal.store_domain = &mortal_store;
    steps_left = steps_done = 0;
    memset(mapped, 0, sizeof mapped);
    pager = NULL;
}

/* Its end as a process. */
static void bury(void)
{
    steps_left = 0;
    pager = NULL;
    real.operations->unmap(real.context, mapped, 2);
    memset(mapped, 0, sizeof mapped);
}

/* The scenario: gfn 1 is a patch against gfn 0, gfns 6 and 7 are equal, the others are what they are. */

static uint16_t domain;
static struct access accesses[VCPUS];
static bool begun[VCPUS];
static struct de_vcpu *balloon;
static bool dropped;

static void expected_page(uint32_t gfn, uint8_t *page)
{
    fill(page, KEY + (gfn == 1 ? 0 : gfn == 7 ? 6 : gfn));
    if (gfn == 1)
        memset(page + 100, 0x5a, 300);
}

static void make_scenario(void)
{
    domain = make_guest(GFNS, KEY);
    uint8_t page[DE_PAGE_SIZE];
    CHECK_EQ(de_vcpu_create(machine, domain, &balloon), 0);
    for (uint32_t gfn = 1; gfn < GFNS; gfn += 6) {
        expected_page(gfn, page);
        CHECK_EQ(de_machine_guest_write(balloon, gfn, 0, page, DE_PAGE_SIZE), 0);
    }
    memset(begun, 0, sizeof begun);
    dropped = false;
}

static uint32_t put_patch_of_gfn1(uint32_t reference)
{
    uint8_t page[DE_PAGE_SIZE], old[DE_PAGE_SIZE], bytes[DE_PAGE_SIZE];
    struct de_patch_encoder *encoder;
    expected_page(1, page);
    for (size_t i = 100; i < 400; i++) /* so that it is worth swapping */
        old[i] = 0;
    fill(old, KEY);
    CHECK_EQ(de_patch_encoder_create(&encoder), DE_OK);
    de_patch_load_reference(encoder, old);
    struct de_object object = {.encoding = DE_ENCODING_PATCH,
                               .checksum = de_page_checksum(page),
                               .reference_count = 1,
                               .references = {reference},
                               .payload = bytes,
                               .payload_bytes =
                                   (uint32_t)de_patch_encode(encoder, page, bytes, DE_PAGE_SIZE)};
    de_patch_encoder_free(encoder);
    uint32_t id;
    CHECK_EQ(de_store_put(de_pager_store(pager), &object, &id), DE_OK);
    return id;
}

static void begin(unsigned vcpu, uint32_t gfn, bool write, uint64_t events)
{
    accesses[vcpu] = (struct access){.write = write};
    expected_page(gfn, accesses[vcpu].page);
    access_begin(&accesses[vcpu], domain, gfn);
    begun[vcpu] = true;
    wait_for_events(domain, events);
}

/* Shared, private again by the pager, and shared until somebody writes; then one that was shared goes out. */
static void share_and_unshare(void)
{
    uint32_t gfns[2] = {6, 7};
    uint8_t page[DE_PAGE_SIZE];
    int32_t result = 1;
    for (int round = 0; round < 2; round++) {
        de_pager_share(pager, &domain, &gfns[0], &domain, &gfns[1], 1, &result);
        CHECK_EQ(result, DE_PROPOSAL_DONE);
        if (round == 0)
            de_pager_unshare(pager, &domain, &gfns[0], 1, &result);
        CHECK_EQ(result, DE_PROPOSAL_DONE);
    }
    expected_page(6, page);
    CHECK_EQ(de_machine_guest_write(balloon, 6, 0, page, 64), 0);
    uint32_t object = put_page(de_pager_store(pager), page);
    CHECK_EQ(evict(domain, 6, object), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(de_pager_store(pager), object), DE_OK);
}

static void scenario(void)
{
    struct de_store *store = de_pager_store(pager);
    uint32_t objects[6];
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
    share_and_unshare();
    for (uint32_t gfn = 0; gfn < 6; gfn++) {
        objects[gfn] = gfn == 1 ? put_patch_of_gfn1(objects[0]) : put_filled(store, KEY + gfn);
        if (gfn != 3)
            CHECK_EQ(evict(domain, gfn, objects[gfn]), DE_PROPOSAL_DONE);
    }
    CHECK_EQ(watch(domain, 3), DE_PROPOSAL_DONE);
    CHECK_EQ(swap_out(objects[2]), DE_PROPOSAL_DONE);
    for (uint32_t gfn = 0; gfn < 6; gfn++)
        CHECK_EQ(de_store_release(store, objects[gfn]), DE_OK);
    /* From swap, then from memory, then a touch: the first one is answered last. */
    begin(0, 2, false, 1);
    begin(1, 1, false, 2);
    begin(2, 3, true, 3);
    de_pager_serve(pager);
    de_pager_swap_read(pager);
    CHECK_EQ(de_machine_guest_release(balloon, 5), 0);
    dropped = true;
    CHECK_EQ(watch(domain, 5), DE_PROPOSAL_NO_PAGE);
    begin(3, 4, true, 5);
    de_pager_serve(pager);
    CHECK_EQ(watch(domain, 5), DE_PROPOSAL_BUSY);
    de_pager_retire(pager, 10);
    CHECK_EQ(de_pager_restore(pager, domain), DE_OK);
}

static void nothing_is_out(void)
{
    struct de_domain_accounting accounting;
    CHECK_EQ(de_machine_domain_account(machine, domain, &accounting), 0);
    CHECK_EQ(accounting.paged + accounting.nominated, 0);
}

/* Released with pages out and watched, taken back, and paged again. */
static void release_scenario(void)
{
    struct de_store *store = de_pager_store(pager);
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
    uint32_t reference = put_filled(store, KEY), patch = put_patch_of_gfn1(reference);
    uint32_t swapped = put_filled(store, KEY + 2);
    CHECK_EQ(evict(domain, 0, reference), DE_PROPOSAL_DONE);
    CHECK_EQ(evict(domain, 1, patch), DE_PROPOSAL_DONE);
    CHECK_EQ(evict(domain, 2, swapped), DE_PROPOSAL_DONE);
    CHECK_EQ(watch(domain, 3), DE_PROPOSAL_DONE);
    CHECK_EQ(swap_out(swapped), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(store, reference), DE_OK);
    CHECK_EQ(de_store_release(store, patch), DE_OK);
    CHECK_EQ(de_store_release(store, swapped), DE_OK);
    CHECK_EQ(de_pager_release(pager, domain), DE_OK);
    nothing_is_out();
    CHECK_EQ(de_pager_take_back(pager, domain), DE_OK);
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
    reference = put_filled(store, KEY);
    CHECK_EQ(evict(domain, 0, reference), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(store, reference), DE_OK);
}

/* However far the dead one got: who asks again gets the domain released, and it stays so. */
static void release_again(void)
{
    CHECK_EQ(de_pager_release(pager, domain), DE_OK);
    nothing_is_out();
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_BUSY);
    de_pager_leave(pager);
    open_pager();
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_BUSY);
    CHECK_EQ(de_pager_take_back(pager, domain), DE_OK);
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
}

static void add_and_evict(void)
{
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
    uint32_t object = put_filled(de_pager_store(pager), KEY);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(de_pager_store(pager), object), DE_OK);
}

/* Removed as if it went, which is refused as long as something of it is out or watched; and added again. */
static void remove_scenario(void)
{
    add_and_evict();
    CHECK_EQ(watch(domain, 3), DE_PROPOSAL_DONE);
    CHECK_EQ(de_pager_remove_domain(pager, domain), DE_BUSY);
    CHECK_EQ(de_pager_restore(pager, domain), DE_OK);
    CHECK_EQ(de_pager_remove_domain(pager, domain), DE_OK);
    nothing_is_out();
    add_and_evict();
}

static void remove_again(void)
{
    CHECK_EQ(de_pager_restore(pager, domain), DE_OK);
    CHECK_EQ(de_pager_remove_domain(pager, domain), DE_OK);
    nothing_is_out();
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
}

/* Objects of pages that are out move, because others beside them go. */
static void compact_scenario(void)
{
    enum { OUT = 6, OTHERS = 4 };
    struct de_store *store = de_pager_store(pager);
    uint32_t others[OUT * OTHERS];
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
    for (uint32_t i = 0; i < OUT * OTHERS; i++) {
        others[i] = put_filled(store, 2 * KEY + i);
        uint32_t gfn = i / OTHERS;
        if (i % OTHERS || gfn == 1)
            continue;
        uint32_t object = put_filled(store, KEY + gfn);
        CHECK_EQ(evict(domain, gfn, object), DE_PROPOSAL_DONE);
        CHECK_EQ(de_store_release(store, object), DE_OK);
    }
    for (uint32_t i = 0; i < OUT * OTHERS; i++)
        CHECK_EQ(de_store_release(store, others[i]), DE_OK);
    CHECK(de_store_compact(store) > 0 || in_store_domain);
    begin(0, 5, false, 1);
    de_pager_serve(pager);
    CHECK_EQ(de_pager_restore(pager, domain), DE_OK);
}

static void compact_again(void)
{
    de_store_compact(de_pager_store(pager));
}

static void holds_path(uint16_t id, char *path, size_t capacity)
{
    snprintf(path, capacity, "%s/holds-%u", directory, id);
}

/* The device model of a domain: it lives on. */
static struct de_holds *device;
static bool device_holds; /**< gfn 6 */

static void attach_device(void)
{
    char path[128];
    CHECK_EQ(de_pager_set_device_model(pager, domain), DE_OK);
    holds_path(domain, path, sizeof path);
    de_holds_close(device);
    CHECK_EQ(de_holds_attach(path, &device), DE_OK);
}

static int evict_filled(uint32_t gfn)
{
    uint32_t object = put_filled(de_pager_store(pager), KEY + gfn);
    int result = evict(domain, gfn, object);
    CHECK_EQ(de_store_release(de_pager_store(pager), object), DE_OK);
    return result;
}

static void device_scenario(void)
{
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
    attach_device();
    CHECK_EQ(de_holds_take(device, 6), DE_OK);
    device_holds = true;
    CHECK_EQ(evict_filled(0), DE_PROPOSAL_DONE);
    CHECK_EQ(evict_filled(6), DE_PROPOSAL_HELD);
    device_holds = false;
    de_holds_drop(device, 6);
    CHECK_EQ(evict_filled(6), DE_PROPOSAL_DONE);
}

/* What it holds is held still; and one that is started anew gets the table. */
static void device_again(void)
{
    if (device_holds)
        CHECK_EQ(evict_filled(6), DE_PROPOSAL_HELD);
    attach_device();
    CHECK_EQ(de_holds_take(device, 3), DE_OK);
    CHECK_EQ(evict_filled(3), DE_PROPOSAL_HELD);
    de_holds_drop(device, 3);
    CHECK_EQ(evict_filled(3), DE_PROPOSAL_DONE);
}

/* What the guest sees in the end, whoever served it; nothing is left over anywhere. */
static void check_all(void)
{
    bool waiting = true;
    while (waiting) {
        waiting = false;
        de_pager_serve(pager);
        de_pager_swap_read(pager);
        for (unsigned i = 0; i < VCPUS; i++)
            waiting = waiting || (begun[i] && !atomic_load(&accesses[i].done));
    }
    for (unsigned i = 0; i < VCPUS; i++) {
        uint8_t page[DE_PAGE_SIZE];
        if (!begun[i])
            continue;
        CHECK_EQ(access_end(&accesses[i]), 0);
        expected_page(accesses[i].gfn, page);
        CHECK(memcmp(accesses[i].page, page, DE_PAGE_SIZE) == 0);
    }
    struct de_machine_accounting accounting;
    de_machine_account(machine, &accounting);
    CHECK_EQ(statistics().evicted, accounting.paged);
    CHECK_EQ(de_pager_restore(pager, domain), DE_OK);
    struct de_domain_accounting restored;
    CHECK_EQ(de_machine_domain_account(machine, domain, &restored), 0);
    CHECK_EQ(restored.paged + restored.nominated, 0);
    for (uint32_t gfn = 0; gfn < GFNS; gfn++) {
        uint8_t found[DE_PAGE_SIZE], page[DE_PAGE_SIZE];
        int error = de_machine_guest_read(balloon, gfn, 0, found, DE_PAGE_SIZE);
        expected_page(gfn, page);
        CHECK_EQ(error, dropped && gfn == 5 ? -EFAULT : 0);
        CHECK(error || memcmp(found, page, DE_PAGE_SIZE) == 0);
    }
    CHECK_EQ(statistics().corrupt + statistics().bad_events, 0);
    de_pager_retire(pager, 100);
    struct de_store_statistics stored;
    struct de_swap_statistics swapped;
    de_store_statistics(de_pager_store(pager), &stored);
    de_swap_statistics(de_pager_swap(pager), &swapped);
    CHECK_EQ(stored.objects, 0);
    CHECK_EQ(swapped.used, 0);
}

static void finish(void)
{
    de_holds_close(device);
    device = NULL;
    device_holds = false;
    de_vcpu_free(balloon);
    CHECK_EQ(de_machine_domain_destroy(machine, domain), 0);
    de_pager_free(pager);
    struct de_machine_accounting left;
    de_machine_account(machine, &left);
    CHECK_EQ(left.used, 0);
    de_machine_free(machine);
    CHECK_EQ(unlink(swap_path), 0);
    CHECK_EQ(rmdir(directory), 0);
}

/** What a pager dies in the middle of, and what is asked of its successor. */
struct life {
    void (*scenario)(void);
    void (*afterwards)(void); /**< NULL: nothing */
    long least_deaths;
    long second_each; /**< the successor of every so manieth dies, too */
};

/* @return false: it lived to the end. */
static bool live_and_die(const struct life *life, long first_death, long second_death)
{
    static bool died;
    start();
    make_directory();
    make_scenario();
    died = false;
    if (setjmp(death) == 0) {
        open_pager();
        steps_done = 0;
        steps_left = first_death;
        life->scenario();
        steps_left = 0;
    } else {
        died = true;
        bury();
    }
    if (died && second_death) {
        if (setjmp(death) == 0) {
            steps_left = second_death;
            open_pager();
            de_pager_serve(pager);
        }
        bury();
    }
    if (died) {
        open_pager();
        /* Unknown to the dead one's page tables yet: the daemon adds it as before. */
        int status = de_pager_add_domain(pager, domain, GFNS);
        CHECK(status == DE_OK || status == DE_BUSY);
        if (life->afterwards)
            life->afterwards();
    }
    check_all();
    finish();
    return died;
}

static void die_at_each_step(const struct life *life)
{
    long lives = 0;
    while (live_and_die(life, lives + 1, 0))
        lives++;
    printf("%ld deaths\n", lives);
    CHECK(lives > life->least_deaths);
    for (long first = 1; first <= lives; first += life->second_each)
        live_and_die(life, first, 1 + first * 7 % 30);
}

static void test_death_at_each_step(void)
{
    static const struct life lives[] = {
        {.scenario = scenario, .least_deaths = 110, .second_each = 1},
        {.scenario = release_scenario, .afterwards = release_again, .least_deaths = 70, .second_each = 2},
        {.scenario = remove_scenario, .afterwards = remove_again, .least_deaths = 50, .second_each = 4},
        {.scenario = compact_scenario, .afterwards = compact_again, .least_deaths = 100, .second_each = 4},
        {.scenario = device_scenario, .afterwards = device_again, .least_deaths = 20, .second_each = 2},
    };
    for (size_t i = 0; i < sizeof lives / sizeof *lives; i++)
        die_at_each_step(&lives[i]);
}

/* Leaving on purpose is a death in good order. */
static void test_leave(void)
{
    start();
    make_directory();
    make_scenario();
    open_pager();
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
    uint32_t object = put_filled(de_pager_store(pager), KEY);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    uint32_t unused = put_filled(de_pager_store(pager), 77);
    CHECK_EQ(swap_out(object), DE_PROPOSAL_DONE);
    struct de_pager_state given = given_state();
    char error[200];
    struct de_hypervisor hypervisor = {.operations = &mortal, .context = real.context};
    pid_t child = fork();
    if (child == 0) {
        struct de_pager *other;
        int status = de_pager_open(&given, &hypervisor, &other, error, sizeof error);
        _exit(status == DE_BUSY && strstr(error, "another pager") ? 0 : 1);
    }
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    de_pager_leave(pager);
    busy_takeovers = 3;
    open_pager();
    CHECK_EQ(busy_takeovers, 0);
    CHECK_EQ(state(domain, 0), DE_PAGE_EVICTED);
    CHECK_EQ(de_store_count(de_pager_store(pager), object), 1);
    CHECK_EQ(de_store_count(de_pager_store(pager), unused), 0);
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_BUSY);
    check_page(domain, 0, KEY);
    check_all();
    finish();
}

/* A table of this name, with nothing in it. */
static void damage_table(uint16_t id)
{
    char path[128];
    snprintf(path, sizeof path, "%s/table-%u", directory, id);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, 2 * DE_PAGE_SIZE), 0);
    CHECK_EQ(close(fd), 0);
}

/* A domain destroyed while nobody is the pager; a table that is none; a page whose object is lost. */
static void test_what_is_left(void)
{
    start();
    make_directory();
    make_scenario();
    uint16_t gone = make_guest(1, 50), lost = make_guest(1, 60);
    open_pager();
    CHECK_EQ(de_pager_add_domain(pager, gone, 1), DE_OK);
    CHECK_EQ(de_pager_add_domain(pager, lost, 1), DE_OK);
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
    CHECK_EQ(de_pager_set_device_model(pager, gone), DE_OK);
    struct de_holds *holds;
    char path[128];
    holds_path(gone, path, sizeof path);
    CHECK_EQ(de_holds_attach(path, &holds), DE_OK);
    uint32_t objects[2] = {put_filled(de_pager_store(pager), 50), put_filled(de_pager_store(pager), 60)};
    CHECK_EQ(evict(gone, 0, objects[0]), DE_PROPOSAL_DONE);
    CHECK_EQ(evict(lost, 0, objects[1]), DE_PROPOSAL_DONE);
    /* One release too many, twice: the object goes although a page needs it. */
    CHECK_EQ(de_store_release(de_pager_store(pager), objects[1]), DE_OK);
    CHECK_EQ(de_store_release(de_pager_store(pager), objects[1]), DE_OK);
    de_holds_close(holds);
    de_pager_leave(pager);
    CHECK_EQ(de_machine_domain_destroy(machine, gone), 0);
    damage_table(999);
    open_pager();
    CHECK_EQ(statistics().domains, 2);
    CHECK_EQ(access(path, F_OK), -1);
    CHECK_EQ(de_store_count(de_pager_store(pager), objects[0]), 0);
    /* Its id may serve another page by now: the lost one must not get that. */
    for (int i = 0; i < 3; i++)
        put_filled(de_pager_store(pager), 99);
    struct access access = {.write = false};
    access_begin(&access, lost, 0);
    wait_for_events(lost, 1);
    de_pager_serve(pager);
    check_failure(lost, "its object is missing");
    /* That it is halted is not forgotten either. */
    de_pager_leave(pager);
    open_pager();
    check_failure(lost, "its object is missing");
    CHECK_EQ(watch(lost, 0), DE_PROPOSAL_NO_DOMAIN);
    CHECK_EQ(de_machine_domain_destroy(machine, lost), 0);
    CHECK_EQ(access_end(&access), -ESHUTDOWN);
    CHECK_EQ(de_pager_remove_domain(pager, lost), DE_OK);
    check_all();
    finish();
}

/* A domain with a page out goes while nobody is the pager, and another one has its id, and even a pager. */
static void test_id_of_another(void)
{
    start();
    make_directory();
    make_scenario();
    static const struct de_uuid uuid = {{7}};
    uint16_t id = make_guest(1, 50);
    open_pager();
    CHECK_EQ(de_pager_add_domain(pager, id, 1), DE_OK);
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
    CHECK_EQ(de_pager_set_device_model(pager, id), DE_OK);
    struct de_holds *holds;
    char path[128];
    holds_path(id, path, sizeof path);
    CHECK_EQ(de_holds_attach(path, &holds), DE_OK);
    uint32_t object = put_filled(de_pager_store(pager), 50);
    CHECK_EQ(evict(id, 0, object), DE_PROPOSAL_DONE);
    de_pager_leave(pager);
    CHECK_EQ(de_machine_domain_destroy(machine, id), 0);
    CHECK_EQ(de_machine_domain_create_as(machine, 1, &uuid, &id), 0);
    CHECK_EQ(real.operations->paging_enable(real.context, id), 0);
    open_pager();
    CHECK_EQ(statistics().domains, 1);
    CHECK_EQ(de_pager_states(pager, id, 0, 1, NULL, NULL, NULL), DE_NOT_FOUND);
    CHECK_EQ(de_store_count(de_pager_store(pager), object), 0);
    CHECK_EQ(access(path, F_OK), -1);
    de_holds_close(holds);
    CHECK_EQ(real.operations->paging_disable(real.context, id), 0);
    CHECK_EQ(de_pager_add_domain(pager, id, 1), DE_OK);
    CHECK_EQ(state(id, 0), DE_PAGE_RESIDENT);
    CHECK_EQ(de_machine_domain_destroy(machine, id), 0);
    CHECK_EQ(de_pager_remove_domain(pager, id), DE_OK);
    check_all();
    finish();
}

/* A table that is none: of a domain that was not paged yet, or of one whose pages nobody knows any more. */
static void test_damaged_table(void)
{
    start();
    make_directory();
    make_scenario();
    uint16_t unpaged = make_guest(1, 50), lost = make_guest(1, 60);
    open_pager();
    CHECK_EQ(de_pager_add_domain(pager, lost, 1), DE_OK);
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
    uint32_t object = put_filled(de_pager_store(pager), 60);
    CHECK_EQ(evict(lost, 0, object), DE_PROPOSAL_DONE);
    de_pager_leave(pager);
    damage_table(unpaged);
    damage_table(lost);
    open_pager();
    CHECK_EQ(statistics().domains, 1);
    CHECK_EQ(de_machine_domain_unpause(machine, unpaged), -EINVAL);
    CHECK_EQ(de_pager_add_domain(pager, unpaged, 1), DE_OK);
    CHECK_EQ(de_machine_domain_unpause(machine, lost), 0);
    for (uint16_t id = unpaged; id <= lost; id++)
        CHECK_EQ(de_machine_domain_destroy(machine, id), 0);
    CHECK_EQ(de_pager_remove_domain(pager, unpaged), DE_OK);
    de_pager_leave(pager);
    open_pager();
    check_all();
    finish();
}

/* That a domain has a device model, and what that holds, outlives the pager, too. */
static void test_device_model(void)
{
    start();
    make_directory();
    make_scenario();
    open_pager();
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
    CHECK_EQ(de_pager_set_device_model(pager, domain), DE_OK);
    char path[128];
    struct de_holds *holds;
    holds_path(domain, path, sizeof path);
    CHECK_EQ(de_holds_attach(path, &holds), DE_OK);
    CHECK_EQ(de_holds_take(holds, 0), DE_OK);
    de_pager_leave(pager);
    open_pager();
    uint32_t object = put_filled(de_pager_store(pager), KEY);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_HELD);
    de_holds_drop(holds, 0);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    check_page(domain, 0, KEY);
    /* Without the table nobody is known to keep it. */
    de_pager_leave(pager);
    CHECK_EQ(unlink(path), 0);
    open_pager();
    object = put_filled(de_pager_store(pager), KEY);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_NO_HOLDS);
    de_holds_close(holds);
    CHECK_EQ(de_holds_attach(path, &holds), DE_OK);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(de_pager_store(pager), object), DE_OK);
    check_all();
    de_holds_close(holds);
    finish();
}

/* A pager dies with a page locked, and its domain goes before there is another: whoever waits for the page
 * goes on, though nobody needs the table any more. */
static void test_locked_page_of_a_domain_that_went(void)
{
    enum { LOCKED = 0x80 };
    start();
    make_directory();
    make_scenario();
    uint16_t gone = make_guest(1, 50);
    open_pager();
    CHECK_EQ(de_pager_add_domain(pager, gone, 1), DE_OK);
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
    CHECK_EQ(de_pager_set_device_model(pager, gone), DE_OK);
    char path[128];
    holds_path(gone, path, sizeof path);
    uint8_t page = LOCKED;
    int fd = open(path, O_RDWR);
    CHECK(fd >= 0);
    CHECK_EQ(pwrite(fd, &page, 1, DE_PAGE_SIZE), 1);
    de_pager_leave(pager);
    CHECK_EQ(de_machine_domain_destroy(machine, gone), 0);
    open_pager();
    CHECK_EQ(access(path, F_OK), -1);
    CHECK_EQ(pread(fd, &page, 1, DE_PAGE_SIZE), 1);
    CHECK_EQ(page, 0);
    CHECK_EQ(close(fd), 0);
    check_all();
    finish();
}

static void refused(int status, const char *part)
{
    struct de_pager_state given = given_state();
    struct de_hypervisor hypervisor = {.operations = &mortal, .context = real.context};
    char error[200] = "";
    CHECK_EQ(de_pager_open(&given, &hypervisor, &pager, error, sizeof error), status);
    if (!strstr(error, part))
        fprintf(stderr, "%s\n", error);
    CHECK(strstr(error, part));
}

static void test_refused(void)
{
    start();
    make_directory();
    make_scenario();
    CHECK_EQ(chmod(directory, 0755), 0);
    refused(DE_INVALID, "0700");
    CHECK_EQ(chmod(directory, 0700), 0);
    snprintf(swap_path, sizeof swap_path, "/nowhere/swap");
    refused(DE_SYSTEM, "swap file /nowhere/swap");
    snprintf(swap_path, sizeof swap_path, "%s/swap", directory);
    open_pager();
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
    de_pager_leave(pager);
    /* Pages need this store, so it is not replaced by a new one. */
    char path[128];
    snprintf(path, sizeof path, "%s/store", directory);
    int fd = open(path, O_RDWR);
    CHECK_EQ(pwrite(fd, "garbage", 7, 0), 7);
    refused(DE_CORRUPT, "store");
    CHECK_EQ(pwrite(fd, "DEstore\n", 8, 0), 8);
    CHECK_EQ(close(fd), 0);
    open_pager();
    /* What can't be taken over now is not given up: pages are out. */
    uint32_t object = put_filled(de_pager_store(pager), KEY);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    de_pager_leave(pager);
    takeover_error = -EIO;
    refused(DE_SYSTEM, "taking over domain");
    takeover_error = 0;
    open_pager();
    check_page(domain, 0, KEY);
    check_all();
    finish();
}

/* The one that is no guest. */
static uint16_t store_domain_id(void)
{
    struct de_domain_info infos[4];
    size_t count = (size_t)de_machine_domain_list(machine, 1, infos, 4), at = 0;
    CHECK_EQ(count, 2);
    while (infos[at].domain == domain)
        at++;
    return infos[at].domain;
}

static uint64_t store_frames(void)
{
    struct de_domain_accounting accounting;
    CHECK_EQ(de_machine_domain_account(machine, store_domain_id(), &accounting), 0);
    return accounting.private_gfns;
}

static uint64_t store_bytes(void)
{
    struct de_store_statistics statistics;
    de_store_statistics(de_pager_store(pager), &statistics);
    return statistics.populated_bytes;
}

/* Its frames come with use and go when nothing is left; what it counts is what it has. */
static void test_store_domain_grows_and_shrinks(void)
{
    start();
    make_directory();
    make_scenario();
    open_pager();
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
    uint64_t empty = store_frames();
    uint32_t objects[24];
    for (uint32_t i = 0; i < 24; i++)
        objects[i] = put_filled(de_pager_store(pager), 5000 + i);
    CHECK(store_frames() >= empty + 24);
    CHECK_EQ(store_bytes(), store_frames() * DE_PAGE_SIZE);
    /* The hypervisor has none left: the store says that it is full, and is as it was. */
    uint64_t before = store_frames();
    uint16_t greedy;
    CHECK_EQ(de_machine_domain_create(machine, GFNS * 8, &greedy), 0);
    CHECK(de_machine_populate(machine, greedy, NULL, NULL, GFNS * 8, NULL) > 0);
    uint8_t page[DE_PAGE_SIZE];
    fill(page, 1);
    struct de_object object = {.encoding = DE_ENCODING_RAW,
                               .checksum = de_page_checksum(page),
                               .payload = page,
                               .payload_bytes = DE_PAGE_SIZE};
    uint32_t id = DE_NONE;
    int status = DE_OK;
    for (int i = 0; i < 3 && status == DE_OK; i++)
        status = de_store_put(de_pager_store(pager), &object, &id);
    CHECK_EQ(status, DE_FULL);
    CHECK_EQ(de_machine_domain_destroy(machine, greedy), 0);
    de_pager_leave(pager); /* forgets what it was given just now */
    open_pager();
    CHECK_EQ(store_bytes(), store_frames() * DE_PAGE_SIZE);
    CHECK(store_frames() <= before);
    CHECK_EQ(store_frames(), empty);
    (void)objects;
    check_all();
    finish();
}

/* What a frame held before is nobody's object, whenever the pager died; what the store gives back holds
 * nothing of a guest's. */
static void test_store_domain_keeps_secrets(void)
{
    start();
    make_directory();
    make_scenario();
    open_pager();
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
    uint32_t object = put_filled(de_pager_store(pager), KEY);
    uint16_t id = store_domain_id();
    struct de_domain_accounting accounting;
    CHECK_EQ(de_machine_domain_account(machine, id, &accounting), 0);
    /* Mapped by somebody else, its frames outlive their being given back. */
    enum { LOOK = 4096 };
    static uint32_t gfns[LOOK];
    static uint8_t *pages[LOOK];
    static int32_t errors[LOOK];
    for (uint32_t gfn = 0; gfn < LOOK; gfn++)
        gfns[gfn] = gfn;
    CHECK_EQ(de_machine_map(machine, id, false, gfns, LOOK, pages, errors), accounting.private_gfns);
    uint8_t page[DE_PAGE_SIZE];
    fill(page, KEY);
    unsigned found = 0, still = 0;
    for (uint32_t gfn = 0; gfn < LOOK; gfn++)
        found += pages[gfn] && memmem(pages[gfn], DE_PAGE_SIZE, page, 64);
    CHECK_EQ(found, 1);
    CHECK_EQ(de_store_release(de_pager_store(pager), object), DE_OK);
    for (uint32_t gfn = 0; gfn < LOOK; gfn++)
        still += pages[gfn] && memmem(pages[gfn], DE_PAGE_SIZE, page, 64);
    CHECK_EQ(still, 0);
    de_machine_unmap(machine, (const uint8_t *const *)pages, LOOK);
    check_all();
    finish();
}

static unsigned frames_as_before(void)
{
    enum { LOOK = 4096 };
    static uint32_t gfns[LOOK];
    static uint8_t *pages[LOOK];
    static int32_t errors[LOOK];
    uint8_t former[64];
    unsigned found = 0;
    memset(former, FORMER, sizeof former);
    for (uint32_t gfn = 0; gfn < LOOK; gfn++)
        gfns[gfn] = gfn;
    CHECK(de_machine_map(machine, store_domain_id(), false, gfns, LOOK, pages, errors) > 0);
    for (uint32_t gfn = 0; gfn < LOOK; gfn++)
        found += pages[gfn] && memmem(pages[gfn], DE_PAGE_SIZE, former, sizeof former);
    de_machine_unmap(machine, (const uint8_t *const *)pages, LOOK);
    return found;
}

/* What a frame held before it is the store's could look like objects; whenever the pager dies, its successor
 * finds none of it. */
static void test_store_domain_wipes_frames(void)
{
    static uint32_t objects[3];
    static bool lived;
    start();
    make_directory();
    make_scenario();
    dirty_frames = true;
    open_pager();
    add_and_evict(); /* which keeps the chunk */
    CHECK_EQ(frames_as_before(), 0);
    lived = false;
    for (steps_done = 0; !lived;) {
        long next = steps_done + 1;
        if (setjmp(death) == 0) {
            steps_done = 0;
            steps_left = next;
            for (uint32_t i = 0; i < 3; i++)
                objects[i] = put_filled(de_pager_store(pager), 6000 + i);
            steps_left = 0;
            lived = true;
        } else {
            long died_at = steps_done;
            bury();
            open_pager();
            steps_done = died_at;
        }
        CHECK_EQ(frames_as_before(), 0);
    }
    dirty_frames = false;
    for (uint32_t i = 0; i < 3; i++)
        CHECK_EQ(de_store_release(de_pager_store(pager), objects[i]), DE_OK);
    check_all();
    finish();
}

/* The settings are for a new store: one that pages need stays where it is; one that none needs goes. */
static void test_store_moves_when_nothing_is_out(void)
{
    char path[128];
    start();
    make_directory();
    make_scenario();
    open_pager();
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
    uint32_t object = put_filled(de_pager_store(pager), KEY);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    de_pager_leave(pager);
    in_store_domain = false;
    open_pager();
    CHECK(store_frames() > 1);
    check_page(domain, 0, KEY);
    CHECK_EQ(de_pager_restore(pager, domain), DE_OK);
    CHECK_EQ(de_pager_remove_domain(pager, domain), DE_OK);
    de_pager_leave(pager);
    struct de_domain_info infos[4];
    CHECK_EQ(de_machine_domain_list(machine, 1, infos, 4), 1);
    open_pager();
    CHECK_EQ(de_machine_domain_list(machine, 1, infos, 4), 1);
    snprintf(path, sizeof path, "%s/store-domain", directory);
    CHECK(access(path, F_OK));
    de_pager_leave(pager);
    in_store_domain = true;
    open_pager();
    CHECK(store_frames() >= 1);
    snprintf(path, sizeof path, "%s/store", directory);
    CHECK(access(path, F_OK));
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
    check_all();
    finish();
}

/* Somebody destroyed it: what was in it is lost, and those who need it are paused with a text; others go on.
 */
static void test_store_domain_destroyed(void)
{
    start();
    make_directory();
    make_scenario();
    open_pager();
    CHECK_EQ(de_pager_add_domain(pager, domain, GFNS), DE_OK);
    uint32_t object = put_filled(de_pager_store(pager), KEY);
    CHECK_EQ(evict(domain, 0, object), DE_PROPOSAL_DONE);
    uint16_t id = store_domain_id();
    de_pager_leave(pager);
    CHECK_EQ(de_machine_domain_destroy(machine, id), 0);
    open_pager();
    begin(0, 0, false, 1);
    de_pager_serve(pager);
    check_failure(domain, "its object is missing");
    de_vcpu_kick(accesses[0].vcpu);
    CHECK_EQ(access_end(&accesses[0]), -EINTR);
    finish();
}

static void test_no_store_domain_to_be_had(void)
{
    start();
    make_directory();
    make_scenario();
    mortal.store_domain = NULL;
    refused(DE_INVALID, "no store domain");
    in_store_domain = false;
    open_pager();
    finish();
    in_store_domain = true;
}

static void test_store_domain(void)
{
    in_store_domain = true;
    test_leave();
    test_store_domain_grows_and_shrinks();
    test_store_domain_keeps_secrets();
    test_store_domain_wipes_frames();
    test_store_moves_when_nothing_is_out();
    test_store_domain_destroyed();
    test_no_store_domain_to_be_had();
    test_death_at_each_step();
    in_store_domain = false;
}

int main(void)
{
    test_leave();
    test_what_is_left();
    test_id_of_another();
    test_damaged_table();
    test_refused();
    test_device_model();
    test_locked_page_of_a_domain_that_went();
    test_death_at_each_step();
    test_store_domain();
    return 0;
}
