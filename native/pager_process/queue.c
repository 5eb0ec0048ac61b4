/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The pager's side of the command queue, and its statistics page. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "../core/futex.h"

#include <diffengine/pager_queue.h>
#include <diffengine/rebuild.h>
#include <diffengine/status.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000u
#define NS_PER_MS 1000000u

/** Private copies of what a command has: the client may go on writing to its own. */
struct arrays {
    uint16_t domains[DE_QUEUE_BATCH], client_domains[DE_QUEUE_BATCH];
    uint32_t gfns[DE_QUEUE_BATCH], client_gfns[DE_QUEUE_BATCH], objects[DE_QUEUE_BATCH];
    int32_t results[DE_QUEUE_BATCH];
    uint8_t payload[DE_STORE_MODEL_MAX_BYTES];
    uint8_t page[DE_PAGE_SIZE];
};

struct de_queue_server {
    struct de_pager *pager;
    struct de_rebuilder *rebuilder;
    struct de_queue *queue, *control;
    struct de_pager_page *page;
    pthread_mutex_t publishing;
    uint8_t *owned; /**< bitmap by object id: on these the client counts */
    size_t owned_bytes;
    struct arrays own;
};

/* A file of the state directory, mapped; a hole in it would be a SIGBUS on a full tmpfs. */
static int map_file(const char *directory, const char *name, size_t bytes, void **memory)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return DE_SYSTEM;
    struct stat status;
    int error = fstat(fd, &status) ? errno : 0;
    if (!error && status.st_size > (off_t)bytes)
        error = EINVAL;
    if (!error)
        error = posix_fallocate(fd, 0, (off_t)bytes);
    *memory = error ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    errno = error ? error : errno;
    return *memory == MAP_FAILED ? DE_SYSTEM : DE_OK;
}

/* From now on commands are carried out; clients of an earlier pager find that it is gone. */
static void open_queue(struct de_queue *queue)
{
    queue->version = DE_QUEUE_VERSION;
    queue->pid = (uint32_t)getpid();
    queue->session++;
    queue->magic = DE_QUEUE_MAGIC_LOW;
    __atomic_store_n(&queue->state, DE_QUEUE_IDLE, __ATOMIC_SEQ_CST);
    futex_wake(&queue->state);
}

int de_queue_serve_create(const char *directory, struct de_pager *pager, struct de_queue_server **result)
{
    struct de_queue_server *server = calloc(1, sizeof *server);
    void *queue = MAP_FAILED, *control = MAP_FAILED, *page = MAP_FAILED;
    if (!server)
        return DE_NO_MEMORY;
    int status = map_file(directory, "commands", sizeof *server->queue, &queue);
    if (status == DE_OK)
        status = map_file(directory, "control", sizeof *server->control, &control);
    if (status == DE_OK)
        status = map_file(directory, "statistics", sizeof *server->page, &page);
    if (status == DE_OK)
        status = de_rebuilder_create(de_pager_store(pager), &server->rebuilder);
    server->queue = queue == MAP_FAILED ? NULL : queue;
    server->control = control == MAP_FAILED ? NULL : control;
    server->page = page == MAP_FAILED ? NULL : page;
    server->pager = pager;
    pthread_mutex_init(&server->publishing, NULL);
    if (status != DE_OK) {
        de_queue_serve_free(server);
        return status;
    }
    server->page->sequence &= ~1u;
    open_queue(server->control);
    open_queue(server->queue);
    de_queue_publish(server);
    *result = server;
    return DE_OK;
}

void de_queue_serve_free(struct de_queue_server *server)
{
    if (!server)
        return;
    if (server->queue)
        munmap(server->queue, sizeof *server->queue);
    if (server->control)
        munmap(server->control, sizeof *server->control);
    if (server->page)
        munmap(server->page, sizeof *server->page);
    de_rebuilder_free(server->rebuilder);
    pthread_mutex_destroy(&server->publishing);
    free(server->owned);
    free(server);
}

static bool owns(const struct de_queue_server *server, uint32_t object)
{
    return object / 8 < server->owned_bytes && server->owned[object / 8] >> object % 8 & 1;
}

/* @return false: no memory to remember it. */
static bool own(struct de_queue_server *server, uint32_t object)
{
    if (object / 8 >= server->owned_bytes) {
        size_t bytes = (object / 8 + 1) * (size_t)2;
        uint8_t *grown = realloc(server->owned, bytes);
        if (!grown)
            return false;
        memset(grown + server->owned_bytes, 0, bytes - server->owned_bytes);
        server->owned = grown;
        server->owned_bytes = bytes;
    }
    server->owned[object / 8] |= (uint8_t)(1u << object % 8);
    return true;
}

static int release(struct de_queue_server *server, uint32_t object)
{
    if (!owns(server, object))
        return DE_NOT_FOUND;
    server->owned[object / 8] &= (uint8_t) ~(1u << object % 8);
    return de_store_release(de_pager_store(server->pager), object);
}

static int hello(struct de_queue_server *server)
{
    for (size_t byte = 0; byte < server->owned_bytes; byte++)
        for (uint32_t bit = 0; server->owned[byte]; bit++)
            release(server, (uint32_t)byte * 8 + bit);
    return DE_OK;
}

/* An item's references as ids. */
static bool resolve(const struct de_queue_server *server, const uint32_t *untrusted_references, uint32_t item,
                    struct de_object *object)
{
    for (unsigned i = 0; i < object->reference_count; i++) {
        uint32_t reference = untrusted_references[i];
        if (reference & DE_QUEUE_IN_BATCH) {
            uint32_t row = reference & ~DE_QUEUE_IN_BATCH;
            if (row >= item)
                return false;
            reference = server->own.objects[row];
        }
        object->references[i] = reference;
    }
    return true;
}

static int put_item(struct de_queue_server *server, uint32_t item, uint32_t *offset, uint32_t *id)
{
    struct de_queue *queue = server->queue;
    uint32_t references[DE_STORE_MAX_REFERENCES];
    struct de_object object = {
        .encoding = (enum de_encoding)queue->encodings[item],
        .checksum = queue->checksums[item],
        .reference_count = queue->reference_counts[item],
        .payload = server->own.payload,
        .payload_bytes = queue->sizes[item],
    };
    if (object.reference_count > DE_STORE_MAX_REFERENCES ||
        object.payload_bytes > sizeof server->own.payload ||
        object.payload_bytes > DE_QUEUE_PAYLOAD_BYTES - *offset)
        return DE_INVALID;
    memcpy(server->own.payload, queue->payloads + *offset, object.payload_bytes);
    memcpy(references, queue->references[item], sizeof references);
    *offset += object.payload_bytes;
    if (!resolve(server, references, item, &object))
        return DE_INVALID;
    int status = de_store_put(de_pager_store(server->pager), &object, id);
    if (status == DE_OK && !own(server, *id)) {
        de_store_release(de_pager_store(server->pager), *id);
        *id = DE_NONE;
        return DE_NO_MEMORY;
    }
    return status;
}

static void put(struct de_queue_server *server, uint32_t count)
{
    uint32_t offset = 0;
    for (uint32_t i = 0; i < count; i++) {
        server->own.objects[i] = DE_NONE;
        server->own.results[i] = put_item(server, i, &offset, &server->own.objects[i]);
    }
    memcpy(server->queue->objects, server->own.objects, count * sizeof(uint32_t));
}

static void rebuild(struct de_queue_server *server, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        server->own.results[i] = DE_INVALID;
        if (i >= DE_QUEUE_PAGES)
            continue;
        server->own.results[i] = de_rebuild_page(server->rebuilder, server->own.objects[i], server->own.page);
        if (server->own.results[i] == DE_OK)
            memcpy(server->queue->payloads + (size_t)i * DE_PAGE_SIZE, server->own.page, DE_PAGE_SIZE);
    }
}

static void describe(struct de_queue_server *server, uint32_t count)
{
    struct de_queue *queue = server->queue;
    for (uint32_t i = 0; i < count; i++) {
        uint8_t encoding, patched;
        uint16_t bytes;
        de_rebuild_describe_batch(server->rebuilder, &server->own.objects[i], 1, &encoding, &bytes, &patched);
        queue->encodings[i] = encoding;
        queue->sizes[i] = bytes;
        queue->reference_counts[i] = patched;
    }
}

static int carry_out(struct de_queue_server *server, uint32_t command, uint32_t count)
{
    struct de_pager *pager = server->pager;
    struct arrays *own = &server->own;
    switch (command) {
    case DE_COMMAND_HELLO:
        return hello(server);
    case DE_COMMAND_ADD_DOMAIN:
        return de_pager_add_domain(pager, own->domains[0], own->gfns[0]);
    case DE_COMMAND_REMOVE_DOMAIN:
        return de_pager_remove_domain(pager, own->domains[0]);
    case DE_COMMAND_DEVICE_MODEL:
        return de_pager_set_device_model(pager, own->domains[0]);
    case DE_COMMAND_RESTORE:
        return de_pager_restore(pager, own->domains[0]);
    case DE_COMMAND_WATCH:
        de_pager_watch(pager, own->domains, own->gfns, count, own->results);
        return DE_OK;
    case DE_COMMAND_EVICT:
        de_pager_evict(pager, own->domains, own->gfns, own->objects, count, own->results);
        return DE_OK;
    case DE_COMMAND_SHARE:
        de_pager_share(pager, own->domains, own->gfns, own->client_domains, own->client_gfns, count,
                       own->results);
        return DE_OK;
    case DE_COMMAND_UNSHARE:
        de_pager_unshare(pager, own->domains, own->gfns, count, own->results);
        return DE_OK;
    case DE_COMMAND_SWAP_OUT:
        de_pager_swap_out(pager, own->objects, count, own->results);
        return DE_OK;
    case DE_COMMAND_PUT:
        put(server, count);
        return DE_OK;
    case DE_COMMAND_RELEASE:
        for (uint32_t i = 0; i < count; i++)
            own->results[i] = release(server, own->objects[i]);
        return DE_OK;
    case DE_COMMAND_REBUILD:
        rebuild(server, count);
        return DE_OK;
    case DE_COMMAND_DESCRIBE:
        describe(server, count);
        return DE_OK;
    case DE_COMMAND_COMPACT:
        server->queue->objects[0] = (uint32_t)(de_store_compact(de_pager_store(pager)) / DE_PAGE_SIZE);
        return DE_OK;
    case DE_COMMAND_RESTORE_PART:
        return de_pager_restore_part(pager, own->domains[0], own->gfns[0], own->gfns[1]);
    default:
        return DE_INVALID;
    }
}

static int copy_and_carry_out(struct de_queue_server *server)
{
    const struct de_queue *queue = server->queue;
    struct arrays *own = &server->own;
    uint32_t command = __atomic_load_n(&queue->command, __ATOMIC_RELAXED);
    uint32_t count = __atomic_load_n(&queue->count, __ATOMIC_RELAXED);
    if (count > DE_QUEUE_BATCH)
        return DE_INVALID;
    memcpy(own->domains, queue->domains, sizeof own->domains);
    memcpy(own->gfns, queue->gfns, sizeof own->gfns);
    memcpy(own->client_domains, queue->client_domains, sizeof own->client_domains);
    memcpy(own->client_gfns, queue->client_gfns, sizeof own->client_gfns);
    memcpy(own->objects, queue->objects, sizeof own->objects);
    memset(own->results, 0, sizeof own->results);
    int status = carry_out(server, command, count);
    memcpy(server->queue->results, own->results, count * sizeof(int32_t));
    return status;
}

static int carry_out_control(struct de_queue_server *server)
{
    uint32_t command = __atomic_load_n(&server->control->command, __ATOMIC_RELAXED);
    uint16_t domain = __atomic_load_n(&server->control->domains[0], __ATOMIC_RELAXED);
    switch (command) {
    case DE_COMMAND_HELLO:
        return DE_OK;
    case DE_COMMAND_RELEASE_DOMAIN:
        return de_pager_release(server->pager, domain);
    case DE_COMMAND_TAKE_BACK_DOMAIN:
        return de_pager_take_back(server->pager, domain);
    default:
        return DE_INVALID;
    }
}

static void serve_queue(struct de_queue_server *server, struct de_queue *queue,
                        int (*how)(struct de_queue_server *))
{
    uint32_t expected = DE_QUEUE_SUBMITTED;
    if (!__atomic_compare_exchange_n(&queue->state, &expected, DE_QUEUE_RUNNING, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST))
        return;
    char refusal[DE_QUEUE_REFUSAL_BYTES] = "";
    int status = how(server);
    de_pager_refusal(server->pager, refusal, sizeof refusal);
    memset(queue->refusal, 0, sizeof queue->refusal);
    if (status != DE_OK)
        memcpy(queue->refusal, refusal, sizeof refusal);
    queue->status = status;
    de_queue_publish(server); /* who has the answer finds what the command did counted */
    __atomic_store_n(&queue->state, DE_QUEUE_DONE, __ATOMIC_SEQ_CST);
    futex_wake(&queue->state);
}

void de_queue_serve(struct de_queue_server *server, unsigned timeout_ms)
{
    struct de_queue *queue = server->queue;
    uint32_t seen = __atomic_load_n(&queue->state, __ATOMIC_SEQ_CST);
    if (seen != DE_QUEUE_SUBMITTED) {
        struct timespec timeout = {.tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * NS_PER_MS};
        futex_wait(&queue->state, seen, &timeout);
    }
    serve_queue(server, queue, copy_and_carry_out);
    serve_queue(server, server->control, carry_out_control);
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* A seqlock: readers copy, and look whether the number stayed the same, and even. */
void de_queue_publish(struct de_queue_server *server)
{
    struct de_pager_page *page = server->page;
    pthread_mutex_lock(&server->publishing);
    __atomic_fetch_add(&page->sequence, 1, __ATOMIC_SEQ_CST);
    page->session = server->queue->session;
    page->written_ns = clock_ns(CLOCK_MONOTONIC);
    page->cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    de_pager_read_statistics(server->pager, &page->pager);
    de_store_statistics(de_pager_store(server->pager), &page->store);
    if (de_pager_swap(server->pager))
        de_swap_statistics(de_pager_swap(server->pager), &page->swap);
    else
        memset(&page->swap, 0, sizeof page->swap);
    __atomic_fetch_add(&page->sequence, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&server->publishing);
}
