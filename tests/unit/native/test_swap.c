/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The swap file, objects in it, and faults on pages that are there. */
#define _GNU_SOURCE
#include "../../../native/simulation/scratch.h"
#include "paging.h"

#include <diffengine/holds.h>
#include <diffengine/patch.h>
#include <diffengine/rebuild.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define STORE_BYTES (64u << 20)
#define SLOTS 256u

static char directory[64], swap_path[96], key_path[96];
static struct de_store *store;
static struct de_swap *swap;

/* The disk, with what a test wants to go wrong. */
static atomic_bool fail_reads, fail_writes, slow;
static atomic_int slow_slot = -1, waiting;

static ssize_t test_read(void *context, int fd, void *buffer, size_t bytes, int64_t offset)
{
    (void)context;
    if (atomic_load(&slow) && offset / DE_PAGE_SIZE == atomic_load(&slow_slot)) {
        atomic_fetch_add(&waiting, 1);
        while (atomic_load(&slow))
            pause_briefly();
    }
    if (atomic_load(&fail_reads)) {
        errno = EIO;
        return -1;
    }
    return pread(fd, buffer, bytes, offset);
}

static ssize_t test_write(void *context, int fd, const void *buffer, size_t bytes, int64_t offset)
{
    (void)context;
    if (atomic_load(&fail_writes)) {
        errno = EIO;
        return -1;
    }
    /* Short, as it may be. */
    return pwrite(fd, buffer, bytes > DE_PAGE_SIZE ? bytes - DE_PAGE_SIZE : bytes, offset);
}

static const struct de_swap_disk test_disk = {.read = test_read, .write = test_write};

static struct de_swap_options options(void)
{
    return (struct de_swap_options){
        .path = swap_path, .key_path = key_path, .bytes = SLOTS * DE_PAGE_SIZE, .disk = &test_disk};
}

static void open_swap(void)
{
    struct de_swap_options given = options();
    CHECK_EQ(de_swap_open(&given, &swap), DE_OK);
}

static void make_directory(const char *base)
{
    CHECK(scratch_make(base, directory, sizeof directory) >= 0);
    snprintf(swap_path, sizeof swap_path, "%s/swap", directory);
    snprintf(key_path, sizeof key_path, "%s/key", directory);
}

static void remove_directory(void)
{
    unlink(swap_path);
    unlink(key_path);
    CHECK_EQ(rmdir(directory), 0);
}

static struct de_swap_statistics disk(void)
{
    struct de_swap_statistics now;
    de_swap_statistics(swap, &now);
    return now;
}

static void flip(uint32_t slot, uint32_t byte)
{
    uint8_t value;
    int fd = open(swap_path, O_RDWR);
    off_t offset = (off_t)slot * DE_PAGE_SIZE + byte;
    CHECK_EQ(pread(fd, &value, 1, offset), 1);
    value ^= 1;
    CHECK_EQ(pwrite(fd, &value, 1, offset), 1);
    CHECK_EQ(fsync(fd), 0);
    CHECK_EQ(close(fd), 0);
}

static void write_one(struct de_swap_channel *channel, const uint8_t *page, uint32_t bytes,
                      struct de_swap_place *place)
{
    int status = 1;
    CHECK_EQ(de_swap_add(channel, page, bytes, DE_ENCODING_RAW, place), DE_OK);
    CHECK_EQ(de_swap_flush(channel, &status), 1);
    CHECK_EQ(status, DE_OK);
}

/* What is written comes back; what lies on the disk is neither it nor twice the same; every bit counts. */
static void test_slots(const char *base)
{
    make_directory(base);
    open_swap();
    struct stat file;
    CHECK_EQ(stat(swap_path, &file), 0);
    CHECK_EQ(file.st_mode & 0777, 0600);
    CHECK(file.st_blocks * 512 >= SLOTS * DE_PAGE_SIZE);
    CHECK_EQ(stat(key_path, &file), 0);
    CHECK_EQ(file.st_mode & 0777, 0600);
    struct de_swap_channel *channel;
    CHECK_EQ(de_swap_channel_create(swap, 4, &channel), DE_OK);
    uint8_t page[DE_PAGE_SIZE], raw[2][DE_PAGE_SIZE];
    struct de_swap_place places[3];
    fill(page, 7);
    write_one(channel, page, DE_PAGE_SIZE, &places[0]);
    write_one(channel, page, DE_PAGE_SIZE, &places[1]);
    write_one(channel, page, 1, &places[2]);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(de_swap_read(channel, &places[i], 3), DE_OK);
        CHECK(memcmp(de_swap_channel_page(channel, 3), page, places[i].payload_bytes) == 0);
    }
    int fd = open(swap_path, O_RDONLY);
    for (int i = 0; i < 2; i++)
        CHECK_EQ(pread(fd, raw[i], DE_PAGE_SIZE, (off_t)places[i].slot * DE_PAGE_SIZE), DE_PAGE_SIZE);
    CHECK_EQ(close(fd), 0);
    CHECK(!memmem(raw[0], DE_PAGE_SIZE, page + 8, 8) && memcmp(raw[0], raw[1], 16) != 0);
    struct de_swap_place exchanged = places[0];
    exchanged.slot = places[1].slot;
    CHECK_EQ(de_swap_read(channel, &exchanged, 0), DE_CORRUPT);
    exchanged.slot = SLOTS;
    CHECK_EQ(de_swap_read(channel, &exchanged, 0), DE_CORRUPT);
    for (uint32_t byte = 0; byte < DE_PAGE_SIZE; byte += 511) {
        flip(places[0].slot, byte);
        CHECK_EQ(de_swap_read(channel, &places[0], 0), DE_CORRUPT);
        flip(places[0].slot, byte);
        CHECK_EQ(de_swap_read(channel, &places[0], 0), DE_OK);
    }
    CHECK_EQ(disk().corrupt, DE_PAGE_SIZE / 511 + 2);
    de_swap_channel_free(channel);
    de_swap_close(swap);
    remove_directory();
}

static void test_full(void)
{
    make_directory("/tmp");
    open_swap();
    struct de_swap_channel *channel;
    struct de_swap_place place;
    uint8_t page[DE_PAGE_SIZE] = {0};
    int statuses[SLOTS];
    CHECK_EQ(de_swap_channel_create(swap, SLOTS, &channel), DE_OK);
    for (uint32_t i = 0; i < SLOTS; i++)
        CHECK_EQ(de_swap_add(channel, page, DE_PAGE_SIZE, DE_ENCODING_RAW, &place), DE_OK);
    CHECK_EQ(de_swap_add(channel, page, DE_PAGE_SIZE, DE_ENCODING_RAW, &place), DE_INVALID);
    CHECK_EQ(de_swap_flush(channel, statuses), SLOTS);
    for (uint32_t i = 0; i < SLOTS; i++)
        CHECK_EQ(statuses[i], DE_OK);
    CHECK_EQ(de_swap_add(channel, page, DE_PAGE_SIZE, DE_ENCODING_RAW, &place), DE_FULL);
    CHECK_EQ(disk().used, SLOTS);
    for (uint32_t slot = 0; slot < SLOTS; slot += 3)
        de_swap_give(swap, slot);
    de_swap_give(swap, SLOTS);
    CHECK_EQ(de_swap_mark(swap, 1), DE_INVALID);
    CHECK_EQ(de_swap_mark(swap, SLOTS), DE_INVALID);
    for (uint32_t i = 0; i < (SLOTS + 2) / 3; i++) {
        CHECK_EQ(de_swap_add(channel, page, DE_PAGE_SIZE, DE_ENCODING_RAW, &place), DE_OK);
        CHECK_EQ(place.slot % 3, 0);
    }
    CHECK_EQ(de_swap_flush(channel, statuses), (SLOTS + 2) / 3);
    /* What can't be written is not tried again. */
    for (uint32_t slot = 0; slot < 4; slot++)
        de_swap_give(swap, slot);
    atomic_store(&fail_writes, true);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(de_swap_add(channel, page, 100, DE_ENCODING_RAW, &place), DE_OK);
    CHECK_EQ(de_swap_flush(channel, statuses), 4);
    CHECK_EQ(statuses[3], DE_SYSTEM);
    atomic_store(&fail_writes, false);
    CHECK_EQ(disk().bad, 4);
    CHECK_EQ(de_swap_add(channel, page, 100, DE_ENCODING_RAW, &place), DE_FULL);
    CHECK_EQ(de_swap_add(channel, page, 0, DE_ENCODING_RAW, &place), DE_INVALID);
    de_swap_channel_free(channel);
    de_swap_close(swap);
    remove_directory();
}

static void test_refused(void)
{
    make_directory("/tmp");
    struct de_swap_options given = options();
    given.bytes = 100;
    CHECK_EQ(de_swap_open(&given, &swap), DE_INVALID);
    given = options();
    given.path = "/nowhere/at/all";
    CHECK_EQ(de_swap_open(&given, &swap), DE_SYSTEM);
    CHECK_EQ(errno, ENOENT);
    given.path = "/dev/null";
    CHECK_EQ(de_swap_open(&given, &swap), DE_SYSTEM);
    CHECK_EQ(unlink(key_path), 0);
    /* No room: said at once, and no file is left behind. */
    given = options();
    given.bytes = (uint64_t)1 << 43;
    CHECK_EQ(de_swap_open(&given, &swap), DE_SYSTEM);
    CHECK(errno == ENOSPC || errno == EFBIG);
    CHECK_EQ(access(swap_path, F_OK), -1);
    CHECK_EQ(unlink(key_path), 0);
    /* In use by another process. */
    open_swap();
    pid_t child = fork();
    if (child == 0) {
        given = options();
        _exit(de_swap_open(&given, &swap) == DE_BUSY ? 0 : 1);
    }
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    de_swap_close(swap);
    /* A key that is none. */
    int fd = open(key_path, O_RDWR);
    CHECK_EQ(pwrite(fd, "garbage", 7, 0), 7);
    CHECK_EQ(close(fd), 0);
    given = options();
    CHECK_EQ(de_swap_open(&given, &swap), DE_CORRUPT);
    remove_directory();
}

/* Objects */

static void start(uint32_t frames)
{
    make_directory("/dev/shm");
    open_swap();
    atomic_store(&fail_reads, false);
    CHECK_EQ(de_machine_create(frames, &machine), 0);
    CHECK_EQ(de_store_create(NULL, STORE_BYTES, &store), DE_OK);
    struct de_hypervisor hypervisor = de_machine_hypervisor(machine);
    CHECK_EQ(de_pager_create(store, &hypervisor, &pager), DE_OK);
    CHECK_EQ(de_pager_attach_swap(pager, swap), DE_OK);
    CHECK_EQ(de_pager_attach_swap(pager, swap), DE_BUSY);
}

static uint16_t make_domain(uint32_t gfns, uint32_t first)
{
    uint16_t domain = make_guest(gfns, first);
    CHECK_EQ(de_pager_add_domain(pager, domain, gfns), DE_OK);
    return domain;
}

static struct de_store_statistics stored(void)
{
    struct de_store_statistics now;
    de_store_statistics(store, &now);
    return now;
}

static void finish(void)
{
    for (uint16_t id = 1; id < 32; id++)
        de_machine_domain_destroy(machine, id);
    for (uint16_t id = 1; id < 32; id++)
        de_pager_remove_domain(pager, id);
    CHECK_EQ(statistics().table_bytes, 0);
    de_pager_free(pager);
    CHECK_EQ(stored().objects, 0);
    CHECK_EQ(stored().swapped, 0);
    CHECK_EQ(stored().payload_bytes, 0);
    CHECK_EQ(disk().used, 0);
    de_store_close(store);
    de_swap_close(swap);
    de_machine_free(machine);
    remove_directory();
}

/* Evict a page of fill(key) as an object of its own, and move that to swap. */
static uint32_t evict_and_swap(uint16_t domain, uint32_t gfn, uint32_t key)
{
    uint32_t object = put_filled(store, key);
    CHECK_EQ(evict(domain, gfn, object), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    CHECK_EQ(swap_out(object), DE_PROPOSAL_DONE);
    return object;
}

static void test_swap_and_fault(void)
{
    start(16);
    uint16_t domain = make_domain(4, 100);
    uint64_t before = stored().populated_bytes;
    for (uint32_t gfn = 0; gfn < 4; gfn++)
        evict_and_swap(domain, gfn, 100 + gfn);
    CHECK_EQ(stored().swapped, 4);
    CHECK_EQ(stored().payload_bytes, 4 * sizeof(struct de_swap_place));
    CHECK(stored().populated_bytes <= before + 2 * DE_PAGE_SIZE);
    CHECK_EQ(disk().used, 4);
    for (uint32_t gfn = 0; gfn < 4; gfn++)
        check_page(domain, gfn, 100 + gfn);
    CHECK_EQ(statistics().swap_outs, 4);
    CHECK_EQ(statistics().swap_ins, 4);
    CHECK_EQ(statistics().loads, 4);
    struct de_pager_statistics now = statistics();
    CHECK(de_latency_quantile(&now.swap_fault, 0.5) > 0);
    CHECK_EQ(de_latency_quantile(&now.fault, 1.0), 0);
    de_pager_retire(pager, 10);
    CHECK_EQ(disk().used, 0);
    finish();
}

/* fill(key) in its first 512 bytes, else fill(reference_key). */
static void fill_patched(uint8_t *page, uint32_t key, uint32_t reference_key)
{
    uint8_t head[DE_PAGE_SIZE];
    fill(head, key);
    fill(page, reference_key);
    memcpy(page, head, 512);
}

static uint32_t put_patch(const uint8_t *page, uint32_t reference_key, uint32_t reference)
{
    uint8_t old[DE_PAGE_SIZE], bytes[DE_PAGE_SIZE];
    fill(old, reference_key);
    struct de_patch_encoder *encoder;
    CHECK_EQ(de_patch_encoder_create(&encoder), DE_OK);
    de_patch_load_reference(encoder, old);
    size_t length = de_patch_encode(encoder, page, bytes, DE_PAGE_SIZE);
    de_patch_encoder_free(encoder);
    CHECK(length > DE_STORE_SWAP_MIN_BYTES && length < DE_PAGE_SIZE);
    struct de_object object = {.encoding = DE_ENCODING_PATCH,
                               .checksum = de_page_checksum(page),
                               .reference_count = 1,
                               .references = {reference},
                               .payload = bytes,
                               .payload_bytes = (uint32_t)length};
    uint32_t id = DE_NONE;
    int status = de_store_put(store, &object, &id);
    CHECK(status == DE_OK || status == DE_BUSY);
    return id;
}

static uint16_t make_patched_domain(uint32_t reference_key, uint32_t key)
{
    uint16_t domain = make_guest(1, reference_key);
    uint32_t gfn = 1;
    uint8_t page[DE_PAGE_SIZE];
    const uint8_t *pages[] = {page};
    CHECK_EQ(de_machine_domain_destroy(machine, domain), 0);
    CHECK_EQ(de_machine_domain_create(machine, 2, &domain), 0);
    fill(page, reference_key);
    CHECK_EQ(de_machine_populate(machine, domain, NULL, pages, 1, NULL), 1);
    fill_patched(page, key, reference_key);
    CHECK_EQ(de_machine_populate(machine, domain, &gfn, pages, 1, NULL), 1);
    CHECK_EQ(de_pager_add_domain(pager, domain, 2), DE_OK);
    return domain;
}

/* A reference goes only after its patches; then a fault takes both from the disk. */
static void test_patch_and_reference(void)
{
    start(16);
    uint16_t domain = make_patched_domain(10, 20);
    uint8_t page[DE_PAGE_SIZE];
    fill_patched(page, 20, 10);
    uint32_t objects[2] = {put_filled(store, 10), 0};
    objects[1] = put_patch(page, 10, objects[0]);
    for (uint32_t gfn = 0; gfn < 2; gfn++)
        CHECK_EQ(evict(domain, gfn, objects[gfn]), DE_PROPOSAL_DONE);
    CHECK_EQ(swap_out(objects[0]), DE_PROPOSAL_NEEDED);
    CHECK_EQ(swap_out(DE_NONE - 1), DE_PROPOSAL_NO_OBJECT);
    int32_t results[4];
    /* One batch with the patch first; twice the same, too. */
    uint32_t batch[4] = {objects[0], objects[1], objects[1], objects[0]};
    de_pager_swap_out(pager, batch, 4, results);
    CHECK_EQ(results[0], DE_PROPOSAL_NEEDED);
    CHECK_EQ(results[1], DE_PROPOSAL_DONE);
    CHECK_EQ(results[2], DE_PROPOSAL_INVALID);
    CHECK_EQ(results[3], DE_PROPOSAL_DONE);
    CHECK_EQ(disk().used, 2);
    /* Nothing new stands on what is in swap, and nothing is evicted as it. */
    CHECK_EQ(put_patch(page, 10, objects[0]), DE_NONE);
    uint16_t other = make_patched_domain(10, 20);
    CHECK_EQ(evict(other, 0, objects[0]), DE_PROPOSAL_SWAPPED);
    CHECK_EQ(evict(other, 1, objects[1]), DE_PROPOSAL_SWAPPED);
    struct access access = {.write = false};
    access_begin(&access, domain, 1);
    wait_for_events(domain, 1);
    CHECK_EQ(de_pager_serve(pager), 1);
    CHECK_EQ(state(domain, 1), DE_PAGE_LOADING);
    CHECK(!atomic_load(&access.done));
    uint64_t reads = disk().reads;
    CHECK_EQ(de_pager_swap_read(pager), 1);
    CHECK_EQ(disk().reads, reads + 2);
    CHECK_EQ(de_pager_swap_read(pager), 0);
    de_pager_serve(pager);
    CHECK_EQ(access_end(&access), 0);
    CHECK(memcmp(access.page, page, DE_PAGE_SIZE) == 0);
    /* The other way back: the daemon has it restored. */
    CHECK_EQ(de_pager_restore(pager, domain), DE_OK);
    CHECK_EQ(state(domain, 0), DE_PAGE_RESIDENT);
    check_page(domain, 0, 10);
    for (int i = 0; i < 2; i++)
        CHECK_EQ(de_store_release(store, objects[i]), DE_OK);
    de_pager_retire(pager, 10);
    CHECK_EQ(disk().used, 0);
    finish();
}

/* Only the patch is in swap, and then, while it is read, its reference goes there, too. */
static void test_reference_follows(void)
{
    start(16);
    uint16_t domain = make_patched_domain(30, 40);
    uint8_t page[DE_PAGE_SIZE];
    fill_patched(page, 40, 30);
    uint32_t reference = put_filled(store, 30);
    uint32_t patch = put_patch(page, 30, reference);
    CHECK_EQ(evict(domain, 1, patch), DE_PROPOSAL_DONE);
    CHECK_EQ(swap_out(patch), DE_PROPOSAL_DONE);
    struct access access = {.write = false};
    access_begin(&access, domain, 1);
    wait_for_events(domain, 1);
    CHECK_EQ(de_pager_serve(pager), 1);
    CHECK_EQ(swap_out(reference), DE_PROPOSAL_DONE);
    CHECK_EQ(de_pager_swap_read(pager), 1);
    de_pager_serve(pager);
    CHECK(!atomic_load(&access.done));
    CHECK_EQ(de_pager_swap_read(pager), 1);
    de_pager_serve(pager);
    CHECK_EQ(access_end(&access), 0);
    CHECK(memcmp(access.page, page, DE_PAGE_SIZE) == 0);
    CHECK_EQ(de_store_release(store, reference), DE_OK);
    CHECK_EQ(de_store_release(store, patch), DE_OK);
    finish();
}

static void test_what_stays(void)
{
    start(4);
    uint8_t word[8] = {1};
    struct de_object object = {.encoding = DE_ENCODING_FILL, .payload = word, .payload_bytes = 8};
    uint32_t id;
    CHECK_EQ(de_store_put(store, &object, &id), DE_OK);
    CHECK_EQ(swap_out(id), DE_PROPOSAL_INVALID);
    CHECK_EQ(de_store_release(store, id), DE_OK);
    object = (struct de_object){
        .encoding = DE_ENCODING_SWAPPED, .payload = word, .payload_bytes = sizeof(struct de_swap_place)};
    CHECK_EQ(de_store_put(store, &object, &id), DE_INVALID);
    /* A write that fails changes nothing. */
    uint16_t domain = make_domain(1, 5);
    id = put_filled(store, 5);
    CHECK_EQ(evict(domain, 0, id), DE_PROPOSAL_DONE);
    atomic_store(&fail_writes, true);
    CHECK_EQ(swap_out(id), DE_PROPOSAL_DISK);
    atomic_store(&fail_writes, false);
    CHECK_EQ(stored().swapped, 0);
    CHECK_EQ(disk().write_errors, 1);
    check_page(domain, 0, 5);
    CHECK_EQ(statistics().swap_ins, 0);
    CHECK_EQ(de_store_release(store, id), DE_OK);
    finish();
}

static void test_swap_full(void)
{
    start(4);
    uint32_t ids[SLOTS + 1];
    int32_t results[SLOTS + 1];
    for (uint32_t i = 0; i <= SLOTS; i++)
        ids[i] = put_filled(store, i);
    de_pager_swap_out(pager, ids, SLOTS + 1, results);
    for (uint32_t i = 0; i < SLOTS; i++)
        CHECK_EQ(results[i], DE_PROPOSAL_DONE);
    CHECK_EQ(results[SLOTS], DE_PROPOSAL_SWAP_FULL);
    CHECK_EQ(de_store_release(store, ids[0]), DE_OK);
    CHECK_EQ(swap_out(ids[SLOTS]), DE_PROPOSAL_DONE);
    for (uint32_t i = 1; i <= SLOTS; i++)
        CHECK_EQ(de_store_release(store, ids[i]), DE_OK);
    finish();
}

/* A slot that can't be read, or holds something else, halts its domain; others go on. */
static void test_bad_read(bool corrupt)
{
    start(16);
    uint16_t bad = make_domain(2, 200);
    uint16_t good = make_domain(1, 300);
    evict_and_swap(bad, 0, 200);
    evict_and_swap(good, 0, 300);
    if (corrupt)
        flip(0, 77);
    atomic_store(&fail_reads, !corrupt);
    struct access access = {.write = false};
    access_begin(&access, bad, 0);
    wait_for_events(bad, 1);
    de_pager_serve(pager);
    de_pager_swap_read(pager);
    de_pager_serve(pager);
    CHECK(!atomic_load(&access.done));
    check_failure(bad, corrupt ? "its swap slot is corrupt" : "its swap slot can't be read");
    check_failure(bad, "paused");
    CHECK_EQ(statistics().corrupt, 1);
    CHECK_EQ(corrupt ? disk().corrupt : disk().read_errors, 1);
    CHECK_EQ(watch(bad, 1), DE_PROPOSAL_NO_DOMAIN);
    atomic_store(&fail_reads, false);
    check_page(good, 0, 300);
    check_failure(good, "");
    CHECK_EQ(de_machine_domain_destroy(machine, bad), 0);
    CHECK_EQ(access_end(&access), -ESHUTDOWN);
    finish();
}

/* The disk hangs on one page. Other domains' faults, from memory and from disk, and the same domain's from
 * memory do not wait. */
static void test_slow_disk(void)
{
    start(16);
    uint16_t slowed = make_domain(3, 400);
    uint16_t other = make_domain(2, 500);
    evict_and_swap(slowed, 0, 400);
    evict_and_swap(other, 0, 500);
    evict_and_swap(slowed, 2, 402);
    uint32_t object = put_filled(store, 401);
    CHECK_EQ(evict(slowed, 1, object), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    object = put_filled(store, 501);
    CHECK_EQ(evict(other, 1, object), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    atomic_store(&slow_slot, 0);
    atomic_store(&waiting, 0);
    atomic_store(&slow, true);
    CHECK_EQ(de_pager_start(pager), DE_OK);
    struct access stuck[2] = {{.write = false}, {.write = false}}, queued = {.write = false},
                  free[3] = {{.write = false}, {.write = false}, {.write = false}};
    access_begin(&stuck[0], slowed, 0);
    access_begin(&stuck[1], slowed, 0); /* a second vCPU at the same page */
    while (!atomic_load(&waiting))
        pause_briefly();
    access_begin(&queued, slowed, 2);
    access_begin(&free[0], slowed, 1);
    access_begin(&free[1], other, 0);
    access_begin(&free[2], other, 1);
    access_end_right(&free[0], 401);
    access_end_right(&free[1], 500);
    access_end_right(&free[2], 501);
    /* The page is being loaded: a restore must not hang on that. */
    CHECK_EQ(de_pager_restore(pager, slowed), DE_BUSY);
    CHECK(!atomic_load(&stuck[0].done) && !atomic_load(&stuck[1].done));
    atomic_store(&slow, false);
    access_end_right(&stuck[0], 400);
    access_end_right(&stuck[1], 400);
    access_end_right(&queued, 402);
    de_pager_stop(pager);
    finish();
}

#define PATIENCE_MS 60000u

/** A device model's thread. */
struct request {
    struct de_holds *holds;
    uint32_t gfn;
    int status;
    pthread_t thread;
};

static void *ask(void *argument)
{
    struct request *request = argument;
    request->status = de_holds_bring_in(request->holds, &request->gfn, 1, PATIENCE_MS);
    return NULL;
}

/* The disk hangs on a page that a device model asked for: what else it asks for does not wait, if it is in
 * memory. What is being read when requests are served no more can be read again. */
static void test_slow_disk_of_device_model(void)
{
    start(16);
    uint16_t domain = make_domain(3, 400);
    char path[64];
    struct de_holds *holds;
    CHECK_EQ(de_pager_set_device_model(pager, domain), DE_OK);
    CHECK_EQ(de_pager_holds_path(pager, domain, path, sizeof path), DE_OK);
    CHECK_EQ(de_holds_attach(path, &holds), DE_OK);
    evict_and_swap(domain, 0, 400);
    uint32_t object = put_filled(store, 401);
    CHECK_EQ(evict(domain, 1, object), DE_PROPOSAL_DONE);
    CHECK_EQ(de_store_release(store, object), DE_OK);
    atomic_store(&slow_slot, 0);
    atomic_store(&waiting, 0);
    atomic_store(&slow, true);
    CHECK_EQ(de_pager_start(pager), DE_OK);
    CHECK_EQ(de_pager_serve_requests(pager), DE_OK);
    struct request stuck = {.holds = holds, .gfn = 0}, free = {.holds = holds, .gfn = 1};
    CHECK_EQ(pthread_create(&stuck.thread, NULL, ask, &stuck), 0);
    while (!atomic_load(&waiting))
        pause_briefly();
    ask(&free);
    CHECK_EQ(free.status, DE_OK);
    CHECK_EQ(state(domain, 1), DE_PAGE_RESIDENT);
    CHECK_EQ(state(domain, 0), DE_PAGE_LOADING);
    atomic_store(&slow, false);
    pthread_join(stuck.thread, NULL);
    CHECK_EQ(stuck.status, DE_OK);
    CHECK_EQ(state(domain, 0), DE_PAGE_RESIDENT);
    de_pager_stop(pager);
    de_holds_close(holds);
    finish();
}

/* Read, but there is no frame for it: what was read is kept until there is. */
static void test_no_frame_after_read(void)
{
    start(3);
    uint16_t domain = make_domain(1, 600);
    evict_and_swap(domain, 0, 600);
    uint16_t other = make_domain(3, 610);
    struct access access = {.write = false};
    access_begin(&access, domain, 0);
    wait_for_events(domain, 1);
    de_pager_serve(pager);
    de_pager_swap_read(pager);
    de_pager_serve(pager);
    de_pager_serve(pager);
    CHECK(statistics().load_no_memory >= 2);
    CHECK(!atomic_load(&access.done));
    CHECK_EQ(disk().reads, 1);
    evict_and_swap(other, 0, 610);
    de_pager_serve(pager);
    access_end_right(&access, 600);
    CHECK_EQ(disk().reads, 1);
    finish();
}

/* While the disk reads: the domain goes, or the guest gives the page back. */
static void test_gone_while_reading(void)
{
    start(8);
    uint16_t domain = make_domain(2, 700);
    evict_and_swap(domain, 0, 700);
    struct access access = {.write = false};
    access_begin(&access, domain, 0);
    wait_for_events(domain, 1);
    de_pager_serve(pager);
    struct de_vcpu *vcpu;
    CHECK_EQ(de_vcpu_create(machine, domain, &vcpu), 0);
    CHECK_EQ(de_machine_guest_release(vcpu, 0), 0);
    de_pager_serve(pager);
    CHECK_EQ(statistics().drops, 1);
    CHECK_EQ(state(domain, 0), DE_PAGE_LOADING);
    de_pager_swap_read(pager);
    de_pager_serve(pager);
    CHECK_EQ(access_end(&access), -EFAULT);
    CHECK_EQ(state(domain, 0), DE_PAGE_RESIDENT);
    de_vcpu_free(vcpu);
    evict_and_swap(domain, 1, 701);
    access_begin(&access, domain, 1);
    wait_for_events(domain, 3);
    de_pager_serve(pager);
    CHECK_EQ(de_machine_domain_destroy(machine, domain), 0);
    CHECK_EQ(access_end(&access), -ESHUTDOWN);
    CHECK_EQ(de_pager_remove_domain(pager, domain), DE_OK);
    CHECK_EQ(de_pager_swap_read(pager), 0);
    finish();
}

/* A successor of the store finds what is in swap, with the key that was left to it; slots nobody names are
 * free. */
static void test_successor(void)
{
    make_directory("/dev/shm");
    open_swap();
    CHECK_EQ(de_store_create(NULL, STORE_BYTES, &store), DE_OK);
    CHECK_EQ(de_store_attach_swap(store, swap), DE_OK);
    struct de_store_reader *reader;
    struct de_swap_channel *channel;
    CHECK_EQ(de_store_reader_create(store, &reader), DE_OK);
    CHECK_EQ(de_swap_channel_create(swap, DE_STORE_SWAP_BATCH, &channel), DE_OK);
    uint32_t ids[3];
    int statuses[3];
    for (uint32_t i = 0; i < 3; i++)
        ids[i] = put_filled(store, i);
    de_store_swap_out(store, reader, channel, ids, 3, statuses);
    CHECK_EQ(statuses[2], DE_OK);
    de_swap_channel_free(channel);
    de_store_reader_free(reader);
    int fd = dup(de_store_fd(store));
    de_store_close(store);
    de_swap_close(swap);

    struct de_swap_options given = options();
    given.bytes *= 2; /* as large as it was, whatever is asked for now */
    CHECK_EQ(de_swap_open(&given, &swap), DE_OK);
    CHECK_EQ(disk().slots, SLOTS);
    CHECK_EQ(de_store_open(fd, &store), DE_OK);
    CHECK_EQ(de_store_attach_swap(store, swap), DE_OK);
    CHECK_EQ(disk().used, 3);
    CHECK_EQ(de_store_retain(store, ids[1]), DE_OK);
    CHECK_EQ(de_store_sweep(store), 2);
    CHECK_EQ(disk().used, 1);
    struct de_rebuilder *rebuilder;
    struct de_swapped_parts parts;
    uint8_t page[DE_PAGE_SIZE], expected[DE_PAGE_SIZE];
    CHECK_EQ(de_rebuilder_create(store, &rebuilder), DE_OK);
    CHECK_EQ(de_swap_channel_create(swap, 1, &channel), DE_OK);
    CHECK_EQ(de_rebuild_page(rebuilder, ids[1], page), DE_BUSY);
    CHECK_EQ(de_rebuild_find_swapped(rebuilder, ids[0], &parts), DE_NOT_FOUND);
    CHECK_EQ(de_rebuild_find_swapped(rebuilder, ids[1], &parts), DE_OK);
    CHECK_EQ(parts.count, 1);
    CHECK_EQ(de_swap_read(channel, &parts.places[0], 0), DE_OK);
    parts.payloads[0] = de_swap_channel_page(channel, 0);
    CHECK_EQ(de_rebuild_swapped(rebuilder, ids[1], &parts, page), DE_OK);
    fill(expected, 1);
    CHECK(memcmp(page, expected, DE_PAGE_SIZE) == 0);
    de_swap_channel_free(channel);
    de_rebuilder_free(rebuilder);
    CHECK_EQ(de_store_release(store, ids[1]), DE_OK);
    CHECK_EQ(disk().used, 0);
    de_store_close(store);
    de_swap_close(swap);
    remove_directory();
}

/* Guests that check every byte, while what they have is evicted and swapped all the time. */
enum { GUESTS = 3, GFNS = 48, OPERATIONS = 1500 };

static void churn(uint16_t domain, uint32_t gfn)
{
    uint8_t *page, copy[DE_PAGE_SIZE];
    int32_t error;
    if (state(domain, gfn) == DE_PAGE_EVICTED || watch(domain, gfn) ||
        de_machine_map(machine, domain, false, &gfn, 1, &page, &error) != 1)
        return;
    memcpy(copy, page, DE_PAGE_SIZE);
    de_machine_unmap(machine, (const uint8_t *const *)&page, 1);
    uint32_t object = put_page(store, copy);
    bool out = evict(domain, gfn, object) == DE_PROPOSAL_DONE;
    /* On a busy machine slots come back later than they are asked for. */
    int swapped = out ? swap_out(object) : DE_PROPOSAL_DONE;
    CHECK(swapped == DE_PROPOSAL_DONE || swapped == DE_PROPOSAL_SWAP_FULL);
    CHECK_EQ(de_store_release(store, object), DE_OK);
}

static void test_guests(void)
{
    static uint8_t image[GFNS][DE_PAGE_SIZE];
    const uint8_t *content[GFNS];
    struct de_guest *guests[GUESTS];
    uint16_t domains[GUESTS];
    start(GUESTS * GFNS + 8);
    for (uint32_t gfn = 0; gfn < GFNS; gfn++) {
        fill(image[gfn], gfn);
        content[gfn] = image[gfn];
    }
    for (int i = 0; i < GUESTS; i++)
        domains[i] = make_domain(GFNS, 0);
    CHECK_EQ(de_pager_start(pager), DE_OK);
    for (int i = 0; i < GUESTS; i++) {
        struct de_guest_options guest = {.seed = 3 + (uint64_t)i,
                                         .operations = UINT64_MAX,
                                         .write_fraction = 0.2,
                                         .gfns = GFNS,
                                         .content = content};
        CHECK_EQ(de_guest_start(machine, domains[i], &guest, &guests[i]), 0);
    }
    uint64_t random = 5;
    bool enough;
    do {
        random = random * 6364136223846793005u + 1442695040888963407u;
        churn(domains[(random >> 33) % GUESTS], (uint32_t)(random >> 40) % GFNS);
        enough = statistics().swap_ins > 300;
        for (int i = 0; i < GUESTS; i++)
            enough = enough && de_guest_progress(guests[i]) >= OPERATIONS;
    } while (!enough);
    for (int i = 0; i < GUESTS; i++) {
        struct de_guest_result result;
        de_guest_stop(guests[i]);
        de_guest_join(guests[i], &result, NULL);
        CHECK_EQ(result.status, 0);
        CHECK_EQ(result.wrong_bytes, 0);
    }
    de_pager_stop(pager);
    CHECK_EQ(statistics().corrupt + statistics().bad_events, 0);
    finish();
}

int main(void)
{
    test_slots("/tmp");
    test_slots("/dev/shm");
    test_full();
    test_refused();
    test_swap_and_fault();
    test_patch_and_reference();
    test_reference_follows();
    test_what_stays();
    test_swap_full();
    test_bad_read(false);
    test_bad_read(true);
    test_slow_disk();
    test_slow_disk_of_device_model();
    test_no_frame_after_read();
    test_gone_while_reading();
    test_successor();
    test_guests();
    return 0;
}
