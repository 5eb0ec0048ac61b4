/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "store_domain.h"

#include <diffengine/status.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define RECORD_MAGIC 0x0a6d6f6472744500u /* "\0Etrdom\n" */
#define CHUNK_GFNS (DE_STORE_CHUNK / DE_PAGE_SIZE)
#define PREFIX_BYTES (sizeof DE_STORE_DOMAIN_PREFIX - 1)

/** The file `store-domain`. */
struct record {
    _Atomic uint64_t magic; /**< comes last: without it, there is no record yet */
    struct de_uuid uuid;
    uint64_t max_bytes;
    _Atomic uint64_t bytes; /**< how far frames may be made */
    /** gfn + 1 that is being given a frame, whose content is anybody's until this is 0 again. */
    _Atomic uint64_t making;
};

/** A chunk's window. */
struct window {
    bool open;
    bool present[CHUNK_GFNS];
};

struct store_domain {
    struct de_hypervisor hypervisor;
    struct record *record;
    uint16_t domain; /**< 0: not made yet */
    uint8_t *base;
    uint64_t reserved_bytes;
    struct window *windows; /**< by chunk, within reserved_bytes */
};

#define STORE_CALL(store, operation, ...)                                                                    \
    (store)->hypervisor.operations->store_domain->operation((store)->hypervisor.context, ##__VA_ARGS__)

static int status_of(int error)
{
    errno = -error;
    return !error ? DE_OK : error == -ENOMEM ? DE_FULL : DE_SYSTEM;
}

static uint64_t length(void *context)
{
    const struct store_domain *store = context;
    return atomic_load(&store->record->bytes);
}

static int peek(void *context, void *bytes, size_t count)
{
    const struct store_domain *store = context;
    const struct de_hypervisor *hypervisor = &store->hypervisor;
    const uint8_t *page = NULL;
    uint32_t gfn = 0;
    int32_t error = 0;
    if (count > DE_PAGE_SIZE)
        return DE_CORRUPT;
    int mapped = hypervisor->operations->map(hypervisor->context, store->domain, &gfn, 1, &page, &error);
    if (mapped < 0)
        return status_of(mapped);
    if (!mapped)
        return DE_CORRUPT;
    memcpy(bytes, page, count);
    hypervisor->operations->unmap(hypervisor->context, &page, 1);
    return DE_OK;
}

static uint8_t *address_of(const struct store_domain *store, uint64_t chunk)
{
    return store->base + chunk * DE_STORE_CHUNK;
}

static int open_window(struct store_domain *store, uint64_t chunk)
{
    struct window *window = &store->windows[chunk];
    if (window->open)
        return 0;
    int error = STORE_CALL(store, map, store->domain, (uint32_t)(chunk * CHUNK_GFNS), CHUNK_GFNS,
                           address_of(store, chunk), window->present);
    window->open = !error;
    return error;
}

static int close_window(struct store_domain *store, uint64_t chunk)
{
    int error = STORE_CALL(store, unmap, address_of(store, chunk), CHUNK_GFNS);
    if (!error)
        store->windows[chunk].open = false;
    return error;
}

static bool has_frames(const struct window *window)
{
    return memchr(window->present, true, sizeof window->present) != NULL;
}

/* What the predecessor had. The frame that it was making, if it got so far, may hold what looks like objects.
 */
static int open_windows(struct store_domain *store)
{
    uint64_t chunks = atomic_load(&store->record->bytes) / DE_STORE_CHUNK, making = store->record->making;
    int error = 0;
    for (uint64_t chunk = 0; chunk < chunks && !error; chunk++) {
        error = open_window(store, chunk);
        if (!error && making && (making - 1) / CHUNK_GFNS == chunk &&
            store->windows[chunk].present[(making - 1) % CHUNK_GFNS])
            memset(store->base + (making - 1) * DE_PAGE_SIZE, 0, DE_PAGE_SIZE);
        if (!error && !has_frames(&store->windows[chunk]))
            error = close_window(store, chunk);
    }
    if (!error)
        atomic_store(&store->record->making, 0);
    return error;
}

static int make_domain(struct store_domain *store, uint64_t bytes)
{
    if (store->domain)
        return 0;
    return STORE_CALL(store, create, &store->record->uuid, bytes / DE_PAGE_SIZE,
                      store->record->max_bytes / DE_PAGE_SIZE, &store->domain);
}

static int settle(struct store_domain *store, uint64_t bytes)
{
    if (atomic_load(&store->record->bytes) > bytes)
        return -EINVAL;
    store->windows = calloc(bytes / DE_STORE_CHUNK, sizeof *store->windows);
    if (!store->windows)
        return -ENOMEM;
    int error = make_domain(store, bytes);
    return error ? error : open_windows(store);
}

static uint8_t *map(void *context, uint64_t bytes)
{
    struct store_domain *store = context;
    void *base = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    store->base = base;
    store->reserved_bytes = bytes;
    int error = settle(store, bytes);
    errno = error == -ENOMEM ? EAGAIN : -error; /* less address space would not help */
    return error ? NULL : store->base;
}

static int grow(void *context, uint64_t bytes)
{
    struct store_domain *store = context;
    if (bytes > store->reserved_bytes) {
        errno = EFBIG;
        return DE_SYSTEM;
    }
    atomic_store(&store->record->bytes, bytes);
    return DE_OK;
}

static int make_frame(struct store_domain *store, uint32_t gfn, uint8_t *address)
{
    atomic_store(&store->record->making, (uint64_t)gfn + 1);
    int error = STORE_CALL(store, populate, store->domain, gfn);
    if (!error) {
        error = STORE_CALL(store, map_added, store->domain, gfn, address);
        if (error)
            STORE_CALL(store, depopulate, store->domain, &gfn, 1);
        else
            memset(address, 0, DE_PAGE_SIZE);
    }
    atomic_store(&store->record->making, 0);
    return error;
}

static int populate(void *context, uint64_t offset)
{
    struct store_domain *store = context;
    uint64_t gfn = offset / DE_PAGE_SIZE;
    struct window *window = &store->windows[gfn / CHUNK_GFNS];
    bool *present = &window->present[gfn % CHUNK_GFNS];
    int error = open_window(store, gfn / CHUNK_GFNS);
    if (!error && !*present) {
        error = make_frame(store, (uint32_t)gfn, store->base + offset);
        *present = !error;
    }
    return status_of(error);
}

/* Evicted content is as secret as its guest: the hypervisor does not wipe what a domain gives back. */
static bool give_back(struct store_domain *store, uint64_t chunk)
{
    struct window *window = &store->windows[chunk];
    uint32_t gfns[CHUNK_GFNS];
    size_t count = 0;
    if (!window->open)
        return true;
    for (uint32_t i = 0; i < CHUNK_GFNS; i++) {
        if (!window->present[i])
            continue;
        memset(address_of(store, chunk) + (size_t)i * DE_PAGE_SIZE, 0, DE_PAGE_SIZE);
        gfns[count++] = (uint32_t)(chunk * CHUNK_GFNS) + i;
    }
    if (close_window(store, chunk))
        return false;
    /* Frames that it refuses to take are found when the window is opened again: zeros. */
    if (count)
        STORE_CALL(store, depopulate, store->domain, gfns, count);
    memset(window->present, 0, sizeof window->present);
    return true;
}

static bool punch(void *context, uint64_t offset, uint64_t bytes)
{
    struct store_domain *store = context;
    if (offset % DE_STORE_CHUNK || bytes % DE_STORE_CHUNK)
        return false;
    bool all = true;
    for (uint64_t chunk = offset / DE_STORE_CHUNK; chunk < (offset + bytes) / DE_STORE_CHUNK; chunk++)
        all = give_back(store, chunk) && all;
    return all;
}

static bool present_at(const struct store_domain *store, uint64_t gfn)
{
    return store->windows[gfn / CHUNK_GFNS].present[gfn % CHUNK_GFNS];
}

static int find(void *context, uint64_t *begin, uint64_t *end)
{
    const struct store_domain *store = context;
    uint64_t gfn = *begin / DE_PAGE_SIZE, last = atomic_load(&store->record->bytes) / DE_PAGE_SIZE;
    while (gfn < last && !present_at(store, gfn))
        gfn++;
    if (gfn >= last)
        return DE_NOT_FOUND;
    *begin = gfn * DE_PAGE_SIZE;
    while (gfn < last && present_at(store, gfn))
        gfn++;
    *end = gfn * DE_PAGE_SIZE;
    return DE_OK;
}

static void leave(void *context)
{
    struct store_domain *store = context;
    for (uint64_t chunk = 0; store->windows && chunk < store->reserved_bytes / DE_STORE_CHUNK; chunk++)
        if (store->windows[chunk].open)
            close_window(store, chunk);
    if (store->base)
        munmap(store->base, store->reserved_bytes);
    munmap(store->record, sizeof *store->record);
    free(store->windows);
    free(store);
}

static const struct de_store_memory_operations store_domain_operations = {
    .piece_bytes = DE_STORE_CHUNK,
    .length = length,
    .peek = peek,
    .map = map,
    .grow = grow,
    .populate = populate,
    .punch = punch,
    .find = find,
    .leave = leave,
};

/* @return DE_OK, DE_NOT_FOUND or DE_SYSTEM. */
static int map_record(int directory, int flags, struct record **record)
{
    int fd = openat(directory, STORE_DOMAIN_NAME, O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0600);
    if (fd < 0)
        return errno == ENOENT ? DE_NOT_FOUND : DE_SYSTEM;
    int error = posix_fallocate(fd, 0, sizeof **record);
    void *memory =
        error ? MAP_FAILED : mmap(NULL, sizeof **record, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (!error && memory == MAP_FAILED)
        error = errno;
    close(fd);
    errno = error;
    *record = memory;
    return error ? DE_SYSTEM : DE_OK;
}

static int make(const struct de_hypervisor *hypervisor, struct record *record, struct de_store_memory *memory,
                struct store_domain **result)
{
    struct store_domain *store = calloc(1, sizeof *store);
    if (!store) {
        munmap(record, sizeof *record);
        return DE_NO_MEMORY;
    }
    store->hypervisor = *hypervisor;
    store->record = record;
    *memory = (struct de_store_memory){.operations = &store_domain_operations, .context = store};
    *result = store;
    return DE_OK;
}

int store_domain_create(const struct de_hypervisor *hypervisor, int directory, uint64_t max_bytes,
                        struct de_store_memory *memory)
{
    struct store_domain *store;
    struct record *record;
    if (!hypervisor->operations->store_domain)
        return DE_INVALID;
    store_domain_remove(hypervisor, directory);
    int status = map_record(directory, O_CREAT | O_EXCL, &record);
    if (status != DE_OK)
        return DE_SYSTEM;
    memcpy(record->uuid.bytes, DE_STORE_DOMAIN_PREFIX, PREFIX_BYTES);
    if (getrandom(record->uuid.bytes + PREFIX_BYTES, DE_UUID_BYTES - PREFIX_BYTES, 0) < 0) {
        munmap(record, sizeof *record);
        return DE_SYSTEM;
    }
    record->max_bytes = max_bytes;
    atomic_store(&record->magic, RECORD_MAGIC);
    return make(hypervisor, record, memory, &store);
}

static bool sensible(const struct record *record)
{
    return atomic_load(&record->magic) == RECORD_MAGIC &&
           !memcmp(record->uuid.bytes, DE_STORE_DOMAIN_PREFIX, PREFIX_BYTES) &&
           atomic_load(&record->bytes) % DE_STORE_CHUNK == 0;
}

int store_domain_open(const struct de_hypervisor *hypervisor, int directory, struct de_store_memory *memory)
{
    struct store_domain *store;
    struct record *record;
    uint16_t domain;
    if (!hypervisor->operations->store_domain)
        return DE_INVALID;
    int status = map_record(directory, 0, &record);
    if (status != DE_OK)
        return status;
    int error = 0;
    if (!sensible(record))
        status = DE_CORRUPT;
    else
        error = hypervisor->operations->store_domain->find(hypervisor->context, &record->uuid, &domain);
    if (error)
        status = error == -ESRCH ? DE_NOT_FOUND : status_of(error);
    if (status == DE_OK && !atomic_load(&record->bytes))
        status = DE_CORRUPT; /* of a pager that died when it made it */
    if (status != DE_OK) {
        munmap(record, sizeof *record);
        return status;
    }
    status = make(hypervisor, record, memory, &store);
    if (status == DE_OK)
        store->domain = domain;
    return status;
}

void store_domain_remove(const struct de_hypervisor *hypervisor, int directory)
{
    struct record *record;
    uint16_t domain;
    if (map_record(directory, 0, &record) == DE_OK) {
        const struct de_store_domain_operations *operations = hypervisor->operations->store_domain;
        if (operations && sensible(record) &&
            operations->find(hypervisor->context, &record->uuid, &domain) == 0)
            operations->destroy(hypervisor->context, domain);
        munmap(record, sizeof *record);
    }
    unlinkat(directory, STORE_DOMAIN_NAME, 0);
}

bool store_domain_recorded(int directory)
{
    return faccessat(directory, STORE_DOMAIN_NAME, F_OK, 0) == 0;
}
