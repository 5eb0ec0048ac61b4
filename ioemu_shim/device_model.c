/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A device model for tests: what QEMU does to a guest's memory, without the devices. Threads do the DMA of a
 * disk (a file: pread, pwrite, preadv, pwritev) and of a network card (a pipe: read, write, copying), over a
 * cache of mapped buckets as QEMU has it. It knows what every sector of guest and disk must hold, and
 * compares each that it moves.
 *
 * device-model DOMAIN GFNS OPERATIONS THREADS SEED DISK EXPECTED [MODE]
 *
 * The guest's memory is all zero at first. It writes what the guest's memory must hold at the end to the file
 * EXPECTED, and prints what it did. MODE: `mixed` (the default), which goes on after OPERATIONS until its
 * standard input ends; `sequential` and `random`, disk I/O alone, for benchmarks; `lost-write`, which maps,
 * writes, unmaps, and looks again, until it finds a write lost; `two-writes`, which stores to one page, has
 * another read from the disk; `unmapping`, which unmaps in ways that fail, or leave a part; `touching`, which
 * stores to a bucket's pages; `waiting`, in which threads store to a page each, and then one to others;
 * `blocking`, in which one that blocks all signals stores to a page while that is being mapped for another.
 * The four before that tell how far they are by the length of the file EXPECTED.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include <xenforeignmemory.h>

#define PAGE_BYTES 4096u
#define SECTOR_BYTES 512u
#define SECTORS_PER_PAGE (PAGE_BYTES / SECTOR_BYTES)
#define BUCKET_GFNS 256u
#define BUCKET_BYTES (BUCKET_GFNS * PAGE_BYTES)
#define CACHE_BUCKETS 3u
#define MAX_SECTORS 64u /**< of one operation */
#define MAX_THREADS 16u
/* Mixed operations stay near one place for a while, so that other places get cold. */
#define NEAR_SECTORS 512u
#define NEAR_OPERATIONS 100u
#define NS_PER_S 1000000000u
/* `two-writes` */
#define STORE_GFN 3u
#define READ_GFN 100u
#define STORED 0x53
#define READ 0x52
/* `unmapping` */
#define STAYS_GFN 5u
#define REST_GFN 70u
#define OFTEN_GFN 600u
#define OFTEN 40u
/* `waiting` */
#define WAITERS 8u
#define WAITER_GFNS 16u /**< from one's page to the next one's */
#define APART_GFN 200u
#define WAITERS_BEGIN_US 100000u
#ifdef __SANITIZE_THREAD__
#define BEYOND 0 /* it would look at each of them */
#else
#define BEYOND ((size_t)1 << 62) /**< bytes: more than there are addresses */
#endif

enum mode { MIXED, SEQUENTIAL, RANDOM, LOST_WRITE, TWO_WRITES, UNMAPPING, TOUCHING, WAITING, BLOCKING };

struct bucket {
    uint8_t *memory; /**< NULL: none */
    uint32_t number;
    unsigned users;
    uint64_t used_at;
};

static struct {
    xenforeignmemory_handle *xen;
    uint32_t domain, gfns;
    uint64_t operations, seed;
    unsigned threads;
    enum mode mode;
    int disk;
    uint64_t *guest_keys, *disk_keys; /**< what each sector holds; 0: zeros */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct bucket cache[CACHE_BUCKETS];
    uint64_t clock, maps;
    _Atomic(uint64_t) done, verified_bytes, next_key;
} model = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .next_key = 1};

struct thread {
    pthread_t id;
    uint64_t random;
    uint32_t first, count; /**< its sectors, of guest and disk alike */
    uint32_t place;        /**< sequential: where it is; mixed: where it works for a while */
    int pipe[2];
};

static void fail(const char *what, uint64_t where)
{
    fprintf(stderr, "device-model: %s at %" PRIu64 ": %s\n", what, where, strerror(errno));
    exit(1);
}

static uint32_t draw(struct thread *thread, uint32_t below)
{
    thread->random = thread->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((thread->random >> 33) % below);
}

static void fill(uint8_t *sector, uint64_t key)
{
    uint64_t word = key * UINT64_C(0x9e3779b97f4a7c15);
    for (size_t i = 0; i < SECTOR_BYTES; i += sizeof word) {
        memcpy(sector + i, &word, sizeof word);
        word = key ? word * 6364136223846793005u + 1442695040888963407u : 0;
    }
}

static void check(const uint8_t *bytes, const uint64_t *keys, uint32_t sectors, const char *what,
                  uint64_t where)
{
    uint8_t expected[SECTOR_BYTES];
    for (uint32_t i = 0; i < sectors; i++) {
        fill(expected, keys[i]);
        errno = 0;
        if (memcmp(bytes + i * SECTOR_BYTES, expected, SECTOR_BYTES) != 0)
            fail(what, where + i);
    }
    atomic_fetch_add(&model.verified_bytes, (uint64_t)sectors * SECTOR_BYTES);
}

/* The map cache: the lock is held. */

static uint32_t bucket_gfns(uint32_t number)
{
    uint32_t rest = model.gfns - number * BUCKET_GFNS;
    return rest < BUCKET_GFNS ? rest : BUCKET_GFNS;
}

static void bucket_map(struct bucket *bucket, uint32_t number)
{
    xen_pfn_t gfns[BUCKET_GFNS] = {0};
    int errors[BUCKET_GFNS];
    uint32_t count = bucket_gfns(number);
    for (uint32_t i = 0; i < count; i++)
        gfns[i] = number * BUCKET_GFNS + i;
    bucket->memory =
        xenforeignmemory_map2(model.xen, model.domain, NULL, PROT_READ | PROT_WRITE, 0, count, gfns, errors);
    if (!bucket->memory)
        fail("mapping", number);
    for (uint32_t i = 0; i < count; i++)
        if (errors[i]) {
            errno = -errors[i];
            fail("mapping of gfn", gfns[i]);
        }
    bucket->number = number;
    model.maps++;
}

static void bucket_unmap(struct bucket *bucket)
{
    if (bucket->memory && munmap(bucket->memory, (size_t)bucket_gfns(bucket->number) * PAGE_BYTES))
        fail("unmapping", bucket->number);
    bucket->memory = NULL;
}

static struct bucket *bucket_find(uint32_t number)
{
    struct bucket *oldest = NULL;
    for (unsigned i = 0; i < CACHE_BUCKETS; i++) {
        struct bucket *bucket = &model.cache[i];
        if (bucket->memory && bucket->number == number)
            return bucket;
        if (!bucket->users && (!oldest || bucket->used_at < oldest->used_at))
            oldest = bucket;
    }
    return oldest;
}

static struct bucket *bucket_get(uint32_t number)
{
    struct bucket *bucket;
    pthread_mutex_lock(&model.lock);
    while (!(bucket = bucket_find(number)))
        pthread_cond_wait(&model.changed, &model.lock);
    if (!bucket->memory || bucket->number != number) {
        bucket_unmap(bucket);
        bucket_map(bucket, number);
    }
    bucket->users++;
    bucket->used_at = ++model.clock;
    pthread_mutex_unlock(&model.lock);
    return bucket;
}

static void bucket_put(struct bucket *bucket)
{
    pthread_mutex_lock(&model.lock);
    bucket->users--;
    pthread_cond_broadcast(&model.changed);
    pthread_mutex_unlock(&model.lock);
}

/** Guest memory of one operation: sectors that follow one another, in one bucket. */
struct area {
    struct bucket *bucket;
    uint8_t *memory;
    uint32_t sector, sectors;
};

static struct area area_get(uint32_t sector, uint32_t sectors)
{
    uint64_t byte = (uint64_t)sector * SECTOR_BYTES;
    uint32_t number = (uint32_t)(byte / BUCKET_BYTES), offset = (uint32_t)(byte % BUCKET_BYTES);
    uint32_t rest = (BUCKET_BYTES - offset) / SECTOR_BYTES;
    struct area area = {
        .bucket = bucket_get(number), .sector = sector, .sectors = sectors < rest ? sectors : rest};
    area.memory = area.bucket->memory + offset;
    return area;
}

/* Split a buffer at sectors. @return how many vectors. */
static int split(struct thread *thread, uint8_t *memory, uint32_t sectors, struct iovec *vectors)
{
    int count = 0;
    for (uint32_t done = 0; done < sectors;) {
        uint32_t now = 1 + draw(thread, sectors - done);
        vectors[count++] = (struct iovec){memory + done * SECTOR_BYTES, now * SECTOR_BYTES};
        done += now;
    }
    return count;
}

/* Operations. */

static void disk_write(struct thread *thread, struct area area, uint32_t to)
{
    struct iovec vectors[MAX_SECTORS];
    uint8_t found[MAX_SECTORS * SECTOR_BYTES];
    off_t offset = (off_t)to * SECTOR_BYTES;
    size_t bytes = area.sectors * SECTOR_BYTES;
    int count = draw(thread, 2) ? split(thread, area.memory, area.sectors, vectors) : 0;
    ssize_t written =
        count ? pwritev(model.disk, vectors, count, offset) : pwrite(model.disk, area.memory, bytes, offset);
    if (written != (ssize_t)bytes)
        fail("disk write", area.sector);
    memcpy(model.disk_keys + to, model.guest_keys + area.sector, area.sectors * sizeof *model.disk_keys);
    if (model.mode != MIXED)
        return;
    if (pread(model.disk, found, bytes, offset) != (ssize_t)bytes)
        fail("reading back", to);
    check(found, model.disk_keys + to, area.sectors, "disk differs", to);
}

static void disk_read(struct thread *thread, struct area area, uint32_t from)
{
    struct iovec vectors[MAX_SECTORS];
    uint8_t content[MAX_SECTORS * SECTOR_BYTES];
    off_t offset = (off_t)from * SECTOR_BYTES;
    size_t bytes = area.sectors * SECTOR_BYTES;
    if (model.mode == MIXED) {
        for (uint32_t i = 0; i < area.sectors; i++) {
            model.disk_keys[from + i] = atomic_fetch_add(&model.next_key, 1);
            fill(content + i * SECTOR_BYTES, model.disk_keys[from + i]);
        }
        if (pwrite(model.disk, content, bytes, offset) != (ssize_t)bytes)
            fail("writing a disk's sector", from);
    }
    int count = draw(thread, 2) ? split(thread, area.memory, area.sectors, vectors) : 0;
    ssize_t got =
        count ? preadv(model.disk, vectors, count, offset) : pread(model.disk, area.memory, bytes, offset);
    if (got != (ssize_t)bytes)
        fail("disk read", area.sector);
    memcpy(model.guest_keys + area.sector, model.disk_keys + from, area.sectors * sizeof *model.disk_keys);
}

static void touch_write(struct area area)
{
    uint8_t sector[SECTOR_BYTES];
    for (uint32_t i = 0; i < area.sectors; i++) {
        uint64_t key = atomic_fetch_add(&model.next_key, 1);
        fill(sector, key);
        memcpy(area.memory + i * SECTOR_BYTES, sector, SECTOR_BYTES);
        model.guest_keys[area.sector + i] = key;
    }
}

static void touch_read(struct area area)
{
    check(area.memory, model.guest_keys + area.sector, area.sectors, "guest memory differs", area.sector);
}

static void move(int fd, bool in, uint8_t *memory, size_t bytes, const char *what)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t now = in ? read(fd, memory + done, bytes - done) : write(fd, memory + done, bytes - done);
        if (now <= 0)
            fail(what, done);
        done += (size_t)now;
    }
}

static void network_send(struct thread *thread, struct area area)
{
    uint8_t packet[MAX_SECTORS * SECTOR_BYTES];
    size_t bytes = area.sectors * SECTOR_BYTES;
    move(thread->pipe[1], false, area.memory, bytes, "sending");
    move(thread->pipe[0], true, packet, bytes, "hearing");
    check(packet, model.guest_keys + area.sector, area.sectors, "a packet differs", area.sector);
}

static void network_receive(struct thread *thread, struct area area)
{
    uint8_t packet[MAX_SECTORS * SECTOR_BYTES];
    size_t bytes = area.sectors * SECTOR_BYTES;
    for (uint32_t i = 0; i < area.sectors; i++) {
        model.guest_keys[area.sector + i] = atomic_fetch_add(&model.next_key, 1);
        fill(packet + i * SECTOR_BYTES, model.guest_keys[area.sector + i]);
    }
    move(thread->pipe[1], false, packet, bytes, "saying");
    move(thread->pipe[0], true, area.memory, bytes, "receiving");
}

static void operate(struct thread *thread)
{
    uint32_t most = thread->count < MAX_SECTORS ? thread->count : MAX_SECTORS;
    uint32_t sectors = model.mode == MIXED ? 1 + draw(thread, most) : most;
    if (model.mode == SEQUENTIAL && thread->place + sectors > thread->count)
        thread->place = 0;
    uint32_t at = draw(thread, thread->count - sectors + 1);
    if (model.mode == SEQUENTIAL)
        at = thread->place;
    else if (model.mode == MIXED && draw(thread, NEAR_OPERATIONS))
        at = (thread->place + draw(thread, NEAR_SECTORS)) % (thread->count - sectors + 1);
    struct area area = area_get(thread->first + at, sectors);
    uint32_t disk = thread->first + draw(thread, thread->count - area.sectors + 1);
    if (model.mode == SEQUENTIAL)
        thread->place += area.sectors;
    else if (at < thread->place || at - thread->place >= NEAR_SECTORS)
        thread->place = at;
    switch (draw(thread, model.mode == MIXED ? 6 : 2)) {
    case 0:
        disk_write(thread, area, disk);
        break;
    case 1:
        disk_read(thread, area, disk);
        break;
    case 2:
        touch_write(area);
        break;
    case 3:
        touch_read(area);
        break;
    case 4:
        network_send(thread, area);
        break;
    default:
        network_receive(thread, area);
    }
    bucket_put(area.bucket);
}

static bool exchange_word(uint32_t gfn, uint64_t expected, uint64_t word)
{
    uint64_t found;
    struct bucket bucket = {.memory = NULL};
    bucket_map(&bucket, gfn / BUCKET_GFNS);
    uint8_t *place = bucket.memory + (size_t)(gfn % BUCKET_GFNS) * PAGE_BYTES;
    memcpy(&found, place, sizeof found);
    memcpy(place, &word, sizeof word);
    bucket_unmap(&bucket);
    return found == expected;
}

/* Map, write, unmap; and the next time, and at the end, look whether it is still there. @return how often it
 * was not: one is enough. */
static uint64_t lose_writes(void)
{
    struct thread random = {.random = model.seed};
    uint64_t *last = calloc(model.gfns, sizeof *last), lost = 0;
    for (uint64_t i = 1; last && !lost && i <= model.operations; i++) {
        uint32_t gfn = draw(&random, model.gfns);
        lost += !exchange_word(gfn, last[gfn], i);
        last[gfn] = i;
        atomic_fetch_add(&model.done, 1);
    }
    for (uint32_t gfn = 0; last && !lost && gfn < model.gfns; gfn++)
        lost += !exchange_word(gfn, last[gfn], 0);
    free(last);
    return lost;
}

static void tell(int progress)
{
    if (write(progress, ".", 1) != 1)
        fail("telling", 0);
}

static void write_two(const char *path)
{
    uint8_t content[PAGE_BYTES];
    struct bucket bucket = {.memory = NULL};
    int progress = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    memset(content, READ, sizeof content);
    if (progress < 0 || pwrite(model.disk, content, sizeof content, 0) != (ssize_t)sizeof content)
        fail(path, 0);
    bucket_map(&bucket, 0);
    tell(progress);
    memset(bucket.memory + STORE_GFN * PAGE_BYTES, STORED, PAGE_BYTES);
    tell(progress);
    if (pread(model.disk, bucket.memory + READ_GFN * PAGE_BYTES, PAGE_BYTES, 0) != (ssize_t)PAGE_BYTES)
        fail("disk read", READ_GFN);
    tell(progress);
    bucket_unmap(&bucket);
    close(progress);
}

/* Who started it says so by a byte, or by the end, of standard input. */
static void await_word(void)
{
    char byte;
    if (read(STDIN_FILENO, &byte, 1) < 0)
        fail("awaiting", 0);
}

static void *unmap_quarter(void *argument)
{
    if (munmap(argument, BUCKET_BYTES / 4))
        fail("unmapping a part", 0);
    return NULL;
}

/* Two parts of a window at a time: the rest stays as it is. */
static void unmap_parts(struct bucket *bucket)
{
    pthread_t other;
    errno = pthread_create(&other, NULL, unmap_quarter, bucket->memory + BUCKET_BYTES / 2);
    if (errno)
        fail("starting thread", 0);
    unmap_quarter(bucket->memory);
    pthread_join(other, NULL);
    for (uint32_t gfn = 0; gfn < BUCKET_GFNS; gfn++)
        if (gfn / (BUCKET_GFNS / 4) % 2)
            memset(bucket->memory + (size_t)gfn * PAGE_BYTES, STORED, PAGE_BYTES);
}

/* A page mapped more often than holds can be counted: nothing waits for its own end. */
static void map_often(void)
{
    xen_pfn_t gfn = OFTEN_GFN;
    void *mapped[OFTEN];
    for (unsigned i = 0; i < OFTEN; i++) {
        int error = 0;
        mapped[i] =
            xenforeignmemory_map2(model.xen, model.domain, NULL, PROT_READ | PROT_WRITE, 0, 1, &gfn, &error);
        if (!mapped[i] || error)
            fail("mapping often", i);
    }
    for (unsigned i = 0; i < OFTEN; i++)
        if (xenforeignmemory_unmap(model.xen, mapped[i], 1))
            fail("unmapping", i);
}

static void unmap_oddly(const char *path)
{
    struct bucket bucket = {.memory = NULL};
    int progress = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (progress < 0)
        fail(path, 0);
    bucket_map(&bucket, 0);
    uint8_t *stays = bucket.memory + STAYS_GFN * PAGE_BYTES;
    *stays = READ;
    if (munmap(bucket.memory + 1, BUCKET_BYTES) == 0 || munmap(bucket.memory, BEYOND) == 0)
        fail("unmapping what can't be", 0);
    tell(progress);
    await_word();
    if (*stays != READ)
        fail("guest memory differs", STAYS_GFN);
    memset(stays, STORED, PAGE_BYTES);
    unmap_parts(&bucket);
    tell(progress);
    await_word();
    map_often();
    tell(progress);
    await_word();
    if (munmap(bucket.memory, BUCKET_BYTES))
        fail("unmapping the rest", 0);
    close(progress);
}

static void touch_bucket(const char *path)
{
    struct bucket bucket = {.memory = NULL};
    int progress = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (progress < 0)
        fail(path, 0);
    bucket_map(&bucket, 0);
    memset(bucket.memory, STORED, BUCKET_BYTES);
    tell(progress);
    await_word();
    for (size_t byte = 0; byte < BUCKET_BYTES; byte++)
        if (bucket.memory[byte] != STORED)
            fail("guest memory differs", byte / PAGE_BYTES);
    bucket_unmap(&bucket);
    close(progress);
}

static void *store_page(void *argument)
{
    memset(argument, STORED, PAGE_BYTES);
    return NULL;
}

/* Each thread may wait for its page; what others need is not to wait for that: neither of another cluster,
 * nor the neighbour of a page that is waited for. */
static void wait_for_pages(const char *path)
{
    struct bucket bucket = {.memory = NULL};
    pthread_t threads[WAITERS];
    int progress = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (progress < 0)
        fail(path, 0);
    bucket_map(&bucket, 0);
    for (unsigned i = 0; i < WAITERS; i++) {
        uint8_t *page = bucket.memory + (size_t)(i + 1) * WAITER_GFNS * PAGE_BYTES;
        errno = pthread_create(&threads[i], NULL, store_page, page);
        if (errno)
            fail("starting thread", i);
    }
    usleep(WAITERS_BEGIN_US);
    store_page(bucket.memory + (size_t)APART_GFN * PAGE_BYTES);
    tell(progress);
    store_page(bucket.memory + (size_t)(WAITER_GFNS + 1) * PAGE_BYTES);
    tell(progress);
    for (unsigned i = 0; i < WAITERS; i++)
        pthread_join(threads[i], NULL);
    bucket_unmap(&bucket);
    close(progress);
}

/* Whether somebody is between a mapping and its frames (embedded_xen.c). */
static bool is_mapping(void)
{
    char line[512];
    bool found = false;
    FILE *maps = fopen("/proc/self/maps", "r");
    if (!maps)
        fail("/proc/self/maps", 0);
    while (!found && fgets(line, sizeof line, maps))
        found = strstr(line, "memfd:nothing") != NULL;
    fclose(maps);
    return found;
}

static void *store_half(void *argument)
{
    memset(argument, STORED, PAGE_BYTES / 2);
    return NULL;
}

/* QEMU's threads block SIGBUS, which a page gives that is being mapped. */
static void store_while_mapping(void)
{
    struct bucket bucket = {.memory = NULL};
    pthread_t first, second;
    sigset_t all;
    bucket_map(&bucket, 0);
    uint8_t *page = bucket.memory + (size_t)STORE_GFN * PAGE_BYTES;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    errno = pthread_create(&first, NULL, store_half, page);
    while (!errno && !is_mapping())
        usleep(1000);
    if (!errno)
        errno = pthread_create(&second, NULL, store_half, page + PAGE_BYTES / 2);
    if (errno)
        fail("starting thread", 0);
    pthread_join(first, NULL);
    pthread_join(second, NULL);
    bucket_unmap(&bucket);
}

/* At the latest when all operations are done, and whoever started it has seen what it waits for. */
static bool is_enough(uint64_t done)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    if (done < model.operations)
        return false;
    return model.mode != MIXED || poll(&input, 1, 0) != 0;
}

static void *thread_main(void *argument)
{
    struct thread *thread = argument;
    while (!is_enough(atomic_fetch_add(&model.done, 1)))
        operate(thread);
    atomic_fetch_sub(&model.done, 1);
    return NULL;
}

static void run_threads(void)
{
    static struct thread threads[MAX_THREADS];
    uint32_t sectors = model.gfns * SECTORS_PER_PAGE;
    /* As QEMU's threads do. */
    sigset_t blocked, former;
    sigfillset(&blocked);
    sigdelset(&blocked, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &blocked, &former);
    for (unsigned i = 0; i < model.threads; i++) {
        uint32_t first = (uint32_t)((uint64_t)sectors * i / model.threads);
        uint32_t end = (uint32_t)((uint64_t)sectors * (i + 1) / model.threads);
        threads[i] = (struct thread){.random = model.seed + i, .first = first, .count = end - first};
        errno =
            pipe(threads[i].pipe) ? errno : pthread_create(&threads[i].id, NULL, thread_main, &threads[i]);
        if (errno)
            fail("starting thread", i);
    }
    pthread_sigmask(SIG_SETMASK, &former, NULL);
    for (unsigned i = 0; i < model.threads; i++) {
        pthread_join(threads[i].id, NULL);
        close(threads[i].pipe[0]);
        close(threads[i].pipe[1]);
    }
}

/* All of guest memory once more, and what it must be for who asked for this run. */
static void finish(const char *path)
{
    int expected = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (expected < 0)
        fail(path, 0);
    for (uint32_t sector = 0; sector < model.gfns * SECTORS_PER_PAGE; sector += SECTORS_PER_PAGE) {
        uint8_t page[PAGE_BYTES];
        struct area area = area_get(sector, SECTORS_PER_PAGE);
        touch_read(area);
        bucket_put(area.bucket);
        for (uint32_t i = 0; i < SECTORS_PER_PAGE; i++)
            fill(page + i * SECTOR_BYTES, model.guest_keys[sector + i]);
        if (write(expected, page, sizeof page) != (ssize_t)sizeof page)
            fail(path, sector);
    }
    close(expected);
    for (unsigned i = 0; i < CACHE_BUCKETS; i++)
        bucket_unmap(&model.cache[i]);
}

/* In order, over pages in use: what brings them into use is not part of it. */
static void bring_into_use(void)
{
    uint64_t operations = model.operations;
    model.operations = 2 * (model.gfns / MAX_SECTORS * SECTORS_PER_PAGE + model.threads);
    run_threads();
    model.operations = operations;
    atomic_store(&model.done, 0);
    atomic_store(&model.verified_bytes, 0);
}

static uint64_t now_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static bool take_arguments(int argc, char **argv)
{
    static const char *const modes[] = {"mixed",     "sequential", "random",  "lost-write", "two-writes",
                                        "unmapping", "touching",   "waiting", "blocking"};
    if (argc != 8 && argc != 9)
        return false;
    model.domain = (uint32_t)strtoul(argv[1], NULL, 10);
    model.gfns = (uint32_t)strtoul(argv[2], NULL, 10);
    model.operations = strtoull(argv[3], NULL, 10);
    model.threads = (unsigned)strtoul(argv[4], NULL, 10);
    model.seed = strtoull(argv[5], NULL, 10);
    while (argc == 9 && model.mode < BLOCKING && strcmp(modes[model.mode], argv[8]) != 0)
        model.mode++;
    return model.gfns && model.threads && model.threads <= MAX_THREADS &&
           (argc == 8 || !strcmp(modes[model.mode], argv[8]));
}

int main(int argc, char **argv)
{
    if (!take_arguments(argc, argv)) {
        fputs("Usage: device-model DOMAIN GFNS OPERATIONS THREADS SEED DISK EXPECTED "
              "[mixed|sequential|random|lost-write|two-writes|unmapping|touching|waiting|blocking]\n",
              stderr);
        return 2;
    }
    size_t sectors = (size_t)model.gfns * SECTORS_PER_PAGE;
    model.guest_keys = calloc(sectors, sizeof *model.guest_keys);
    model.disk_keys = calloc(sectors, sizeof *model.disk_keys);
    model.disk = open(argv[6], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (!model.guest_keys || !model.disk_keys || model.disk < 0 ||
        ftruncate(model.disk, (off_t)(sectors * SECTOR_BYTES)))
        fail(argv[6], 0);
    model.xen = xenforeignmemory_open(NULL, 0);
    if (!model.xen)
        fail("xenforeignmemory_open", 0);
    if (model.mode == SEQUENTIAL)
        bring_into_use();
    uint64_t start_ns = now_ns(CLOCK_MONOTONIC), start_cpu_ns = now_ns(CLOCK_PROCESS_CPUTIME_ID), lost = 0;
    if (model.mode == LOST_WRITE)
        lost = lose_writes();
    else if (model.mode == TWO_WRITES)
        write_two(argv[7]);
    else if (model.mode == UNMAPPING)
        unmap_oddly(argv[7]);
    else if (model.mode == TOUCHING)
        touch_bucket(argv[7]);
    else if (model.mode == WAITING)
        wait_for_pages(argv[7]);
    else if (model.mode == BLOCKING)
        store_while_mapping();
    else
        run_threads();
    uint64_t run_ns = now_ns(CLOCK_MONOTONIC) - start_ns;
    uint64_t cpu_ns = now_ns(CLOCK_PROCESS_CPUTIME_ID) - start_cpu_ns;
    if (model.mode < LOST_WRITE)
        finish(argv[7]);
    printf("{\"operations\": %" PRIu64 ", \"verified_bytes\": %" PRIu64 ", \"maps\": %" PRIu64
           ", \"lost\": %" PRIu64 ", \"seconds\": %.6f, \"cpu_seconds\": %.6f}\n",
           atomic_load(&model.done), atomic_load(&model.verified_bytes), model.maps, lost,
           (double)run_ns / NS_PER_S, (double)cpu_ns / NS_PER_S);
    xenforeignmemory_close(model.xen);
    free(model.guest_keys);
    free(model.disk_keys);
    return lost ? 3 : 0;
}
