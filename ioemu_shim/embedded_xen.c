/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Xen's libxenforeignmemory on the embedded machine, for device models that run there: the same functions
 * with the same errors, over a connection to diffengine-machine (DIFFENGINE_MACHINE). As with privcmd, a page
 * that was just mapped gives SIGBUS, and EFAULT in the kernel, until its frame is in place; and the machine
 * hears of every way in which a mapping ends (munmap, mmap or mremap over it).
 *
 * DIFFENGINE_MACHINE_REFUSALS: so many mappings over other memory fail at first, as a whole (tests).
 */
#define _GNU_SOURCE
#undef _FILE_OFFSET_BITS /* it renames functions that are defined here */
#include "../native/machine/client_internal.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xenforeignmemory.h>

#define SLOTS (1u << 18)
#define FACTOR UINT64_C(0x9e3779b97f4a7c15)
#define RETRY_US 100u
#define TAKEN_BATCH 256u

struct xenforeignmemory_handle {
    struct de_machine_client *client;
    int nothing; /**< a file without pages */
};

/** Which page of this process is which frame's. */
struct mapping {
    uintptr_t page; /**< 0: free */
    const uint8_t *frame;
};

static struct xenforeignmemory_handle handle = {.nothing = -1};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct mapping mappings[SLOTS];
static size_t mapping_count;
static _Atomic(long) refusals;
static long gap_us; /**< between a mapping over another one and its frames, at least */

/* Straight to the kernel: for a sanitizer, what comes and goes here is not memory that threads share. */

static void *real_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    return (void *)syscall(SYS_mmap, address, bytes, protection, flags, fd, offset);
}

static int real_munmap(void *address, size_t bytes)
{
    return (int)syscall(SYS_munmap, address, bytes);
}

static size_t home_of(uintptr_t page)
{
    return (size_t)(page * FACTOR >> 40) % SLOTS;
}

/* Where the page is, or would be. */
static size_t slot_of(uintptr_t page)
{
    size_t slot = home_of(page);
    while (mappings[slot].page && mappings[slot].page != page)
        slot = (slot + 1) % SLOTS;
    return slot;
}

/* The slots behind move up, so that none is behind a free one that begins its search. */
static void clear(size_t slot)
{
    size_t next = slot;
    for (;;) {
        next = (next + 1) % SLOTS;
        if (!mappings[next].page)
            break;
        size_t home = home_of(mappings[next].page);
        if ((next - home) % SLOTS < (next - slot) % SLOTS)
            continue;
        mappings[slot] = mappings[next];
        slot = next;
    }
    mappings[slot].page = 0;
    mapping_count--;
}

static bool add(uintptr_t page, const uint8_t *frame)
{
    pthread_mutex_lock(&lock);
    bool room = mapping_count < SLOTS / 2;
    if (room) {
        mappings[slot_of(page)] = (struct mapping){page, frame};
        mapping_count++;
    }
    pthread_mutex_unlock(&lock);
    return room;
}

/* The range is mapped otherwise now. */
static void forget(uintptr_t from, size_t bytes)
{
    const uint8_t *frames[TAKEN_BATCH];
    size_t pages = (bytes + DE_PAGE_SIZE - 1) / DE_PAGE_SIZE;
    for (size_t done = 0; done < pages;) {
        size_t taken = 0;
        pthread_mutex_lock(&lock);
        if (!mapping_count)
            done = pages;
        for (; done < pages && taken < TAKEN_BATCH; done++) {
            size_t slot = slot_of(from + done * DE_PAGE_SIZE);
            if (!mappings[slot].page)
                continue;
            frames[taken++] = mappings[slot].frame;
            clear(slot);
        }
        pthread_mutex_unlock(&lock);
        de_client_unmap(handle.client, frames, taken);
    }
}

static bool is_ours(const void *address, size_t bytes)
{
    /* Larger ranges than all guests together are nobody's window. */
    return handle.client && address && bytes && bytes <= (size_t)SLOTS * DE_PAGE_SIZE;
}

static int end_mapping(void *address, size_t bytes)
{
    int result = real_munmap(address, bytes);
    if (!result && is_ours(address, bytes))
        forget((uintptr_t)address, bytes);
    return result;
}

static void *begin_mapping(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    void *mapped = real_mmap(address, bytes, protection, flags, fd, offset);
    if (mapped != MAP_FAILED && flags & MAP_FIXED && is_ours(address, bytes))
        forget((uintptr_t)address, bytes);
    return mapped;
}

/* A sanitizer's own start maps memory, too, when nothing of it works yet. */
#define EARLY __attribute__((no_sanitize("thread")))

EARLY int munmap(void *address, size_t bytes)
{
    return handle.client ? end_mapping(address, bytes) : (int)syscall(SYS_munmap, address, bytes);
}

EARLY void *mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    return handle.client ? begin_mapping(address, bytes, protection, flags, fd, offset)
                         : (void *)syscall(SYS_mmap, address, bytes, protection, flags, fd, offset);
}

EARLY void *mmap64(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    return mmap(address, bytes, protection, flags, fd, offset);
}

void *mremap(void *from, size_t from_bytes, size_t bytes, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    void *to = flags & MREMAP_FIXED ? va_arg(arguments, void *) : NULL;
    va_end(arguments);
    void *moved = (void *)syscall(SYS_mremap, from, from_bytes, bytes, flags, to);
    if (moved != MAP_FAILED && flags & MREMAP_FIXED && is_ours(to, bytes))
        forget((uintptr_t)to, bytes);
    return moved;
}

xenforeignmemory_handle *xenforeignmemory_open(struct xentoollog_logger *logger, unsigned flags)
{
    const char *machine = getenv("DIFFENGINE_MACHINE"), *refused = getenv("DIFFENGINE_MACHINE_REFUSALS"),
               *gap = getenv("DIFFENGINE_MACHINE_GAP_US");
    (void)logger;
    (void)flags;
    int error = -ENOENT;
    if (machine && !handle.client) {
        handle.nothing = memfd_create("nothing", MFD_CLOEXEC);
        struct de_machine_client *client = NULL;
        error = handle.nothing < 0 ? -errno : de_client_connect(machine, DE_CLIENT_DEVICE_MODEL, &client);
        handle.client = client;
        atomic_store(&refusals, refused ? atol(refused) : 0);
        gap_us = gap ? atol(gap) : 0;
    }
    if (handle.client)
        return &handle;
    errno = -error;
    return NULL;
}

int xenforeignmemory_close(xenforeignmemory_handle *xen)
{
    de_client_free(xen->client);
    close(xen->nothing);
    *xen = (struct xenforeignmemory_handle){.nothing = -1};
    return 0;
}

/* As in Xen's library, which tries until the pager has brought in what is out. */
static bool map_frames(struct de_machine_client *client, uint32_t domain, bool writable, const uint32_t *gfns,
                       size_t count, uint8_t **frames, int32_t *errors)
{
    int mapped = de_client_map(client, (uint16_t)domain, writable, gfns, count, frames, errors);
    errno = mapped == -ECONNRESET ? ESRCH : -mapped; /* without the machine there is no domain */
    for (size_t i = 0; mapped >= 0 && i < count; i++)
        while (errors[i] == -ENOENT &&
               de_client_map(client, (uint16_t)domain, writable, &gfns[i], 1, &frames[i], &errors[i]) >= 0 &&
               errors[i] == -ENOENT)
            usleep(RETRY_US);
    return mapped >= 0;
}

static void place_frames(struct de_machine_client *client, uint8_t *address, int protection,
                         uint8_t *const *frames, int32_t *errors, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint8_t *page = address + i * DE_PAGE_SIZE;
        if (errors[i])
            continue;
        if (!add((uintptr_t)page, frames[i])) {
            de_client_unmap(client, (const uint8_t *const *)&frames[i], 1);
            errors[i] = -ENOMEM;
            continue;
        }
        real_mmap(page, DE_PAGE_SIZE, protection, MAP_SHARED | MAP_FIXED, client->frames_fd,
                  (off_t)(frames[i] - client->memory));
    }
}

/* As privcmd does when dom0's own memory is short. */
static bool refuses(int flags)
{
    if (!(flags & MAP_FIXED) || atomic_fetch_sub(&refusals, 1) <= 0)
        return false;
    errno = ENOMEM;
    return true;
}

static void *map(struct xenforeignmemory_handle *xen, uint32_t domain, void *address, int protection,
                 int flags, size_t pages, const xen_pfn_t *arr, int *errors)
{
    uint32_t *gfns = calloc(pages, sizeof *gfns);
    uint8_t **frames = calloc(pages, sizeof *frames);
    void *mapped = MAP_FAILED;
    if (gfns && frames) {
        for (size_t i = 0; i < pages; i++)
            gfns[i] = arr[i] > UINT32_MAX ? UINT32_MAX : (uint32_t)arr[i];
        mapped =
            begin_mapping(address, pages * DE_PAGE_SIZE, protection, flags | MAP_SHARED, xen->nothing, 0);
        if (mapped != MAP_FAILED && flags & MAP_FIXED && gap_us)
            usleep((useconds_t)gap_us);
        if (mapped != MAP_FAILED &&
            (refuses(flags) ||
             !map_frames(xen->client, domain, protection & PROT_WRITE, gfns, pages, frames, errors))) {
            int error = errno;
            munmap(mapped, pages * DE_PAGE_SIZE); /* as a caller: whoever stands in for it hears of it */
            errno = error;
            mapped = MAP_FAILED;
        }
        if (mapped != MAP_FAILED)
            place_frames(xen->client, mapped, protection, frames, errors, pages);
    }
    free(gfns);
    free(frames);
    return mapped == MAP_FAILED ? NULL : mapped;
}

void *xenforeignmemory_map2(xenforeignmemory_handle *xen, uint32_t domain, void *address, int protection,
                            int flags, size_t pages, const xen_pfn_t *arr, int *errors)
{
    int *own_errors = errors ? NULL : calloc(pages, sizeof *own_errors);
    if (!errors && !own_errors)
        return NULL;
    const int *found = errors ? errors : own_errors;
    void *mapped = map(xen, domain, address, protection, flags, pages, arr, errors ? errors : own_errors);
    for (size_t i = 0; mapped && own_errors && i < pages; i++) {
        if (!found[i])
            continue;
        munmap(mapped, pages * DE_PAGE_SIZE);
        errno = -found[i];
        mapped = NULL;
    }
    free(own_errors);
    return mapped;
}

void *xenforeignmemory_map(xenforeignmemory_handle *xen, uint32_t domain, int protection, size_t pages,
                           const xen_pfn_t *arr, int *errors)
{
    return xenforeignmemory_map2(xen, domain, NULL, protection, 0, pages, arr, errors);
}

int xenforeignmemory_unmap(xenforeignmemory_handle *xen, void *address, size_t pages)
{
    (void)xen;
    return munmap(address, pages * DE_PAGE_SIZE);
}
