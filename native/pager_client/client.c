/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The daemon's side of the command queue. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "../core/futex.h"
#include "../pager/internal.h"

#include <diffengine/pager_queue.h>
#include <diffengine/status.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define WAIT_NS 100000000 /* how often to look whether the pager is still the same */
#define COPY_TRIES 1000u

struct de_queue_client {
    int directory, fd, lock;
    struct de_queue *queue;
    const struct de_pager_page *page;
    uint32_t session;
};

/* @param[out] fd May be NULL: then the file is closed. */
static int map_file(int directory, const char *name, size_t bytes, int protection, int *fd, void **memory)
{
    struct stat status;
    int file = openat(directory, name, (protection & PROT_WRITE ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    *memory = NULL;
    if (file < 0)
        return errno == ENOENT ? DE_NOT_FOUND : DE_SYSTEM;
    int result = fstat(file, &status) ? DE_SYSTEM : status.st_size < (off_t)bytes ? DE_CORRUPT : DE_OK;
    void *mapped = result == DE_OK ? mmap(NULL, bytes, protection, MAP_SHARED, file, 0) : MAP_FAILED;
    if (result == DE_OK && mapped == MAP_FAILED)
        result = DE_NO_MEMORY;
    if (fd && result == DE_OK)
        *fd = file;
    else
        close(file);
    *memory = result == DE_OK ? mapped : NULL;
    return result;
}

/* A pager has the state directory's lock as long as it lives (its process id may live on as a zombie's). */
bool de_queue_alive(const struct de_queue_client *client)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    return __atomic_load_n(&client->queue->session, __ATOMIC_SEQ_CST) == client->session &&
           fcntl(client->lock, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static int attach(struct de_queue_client *client)
{
    if (flock(client->fd, LOCK_EX | LOCK_NB))
        return errno == EWOULDBLOCK ? DE_BUSY : DE_SYSTEM;
    if (client->queue->magic != DE_QUEUE_MAGIC_LOW || client->queue->version != DE_QUEUE_VERSION)
        return DE_CORRUPT;
    client->session = __atomic_load_n(&client->queue->session, __ATOMIC_SEQ_CST);
    return de_queue_call(client, DE_COMMAND_HELLO, 0);
}

static int connect_to(const char *directory, const char *queue_name, struct de_queue_client **result)
{
    struct de_queue_client *client = calloc(1, sizeof *client);
    void *queue = NULL, *page = NULL;
    if (!client)
        return DE_NO_MEMORY;
    client->fd = client->lock = -1;
    client->directory = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int status = client->directory < 0 ? DE_NOT_FOUND : DE_OK;
    if (status == DE_OK) {
        client->lock = openat(client->directory, "lock", O_RDWR | O_CLOEXEC);
        status = client->lock < 0 ? DE_NOT_FOUND : DE_OK;
    }
    if (status == DE_OK)
        status = map_file(client->directory, queue_name, sizeof *client->queue, PROT_READ | PROT_WRITE,
                          &client->fd, &queue);
    if (status == DE_OK)
        status = map_file(client->directory, "statistics", sizeof *client->page, PROT_READ, NULL, &page);
    client->queue = queue;
    client->page = page;
    if (status == DE_OK)
        status = attach(client);
    if (status != DE_OK) {
        de_queue_client_free(client);
        return status;
    }
    *result = client;
    return DE_OK;
}

int de_queue_connect(const char *directory, struct de_queue_client **client)
{
    return connect_to(directory, "commands", client);
}

int de_queue_connect_operator(const char *directory, struct de_queue_client **client)
{
    return connect_to(directory, "control", client);
}

void de_queue_client_free(struct de_queue_client *client)
{
    if (!client)
        return;
    if (client->queue)
        munmap(client->queue, sizeof *client->queue);
    if (client->page)
        munmap((void *)client->page, sizeof *client->page);
    if (client->fd >= 0)
        close(client->fd);
    if (client->lock >= 0)
        close(client->lock);
    if (client->directory >= 0)
        close(client->directory);
    free(client);
}

struct de_queue *de_queue_area(struct de_queue_client *client)
{
    return client->queue;
}

/* Until the state is one of two. @return false: the pager is not the same any more. */
static bool wait_for(const struct de_queue_client *client, uint32_t one, uint32_t other)
{
    struct timespec timeout = {.tv_nsec = WAIT_NS};
    for (;;) {
        uint32_t state = __atomic_load_n(&client->queue->state, __ATOMIC_SEQ_CST);
        if (state == one || state == other)
            return de_queue_alive(client);
        if (!de_queue_alive(client))
            return false;
        futex_wait(&client->queue->state, state, &timeout);
    }
}

int de_queue_call(struct de_queue_client *client, uint32_t command, uint32_t count)
{
    struct de_queue *queue = client->queue;
    /* An earlier client may have died while its command was under way. */
    if (!wait_for(client, DE_QUEUE_IDLE, DE_QUEUE_DONE))
        return DE_NOT_FOUND;
    queue->command = command;
    queue->count = count;
    __atomic_store_n(&queue->state, DE_QUEUE_SUBMITTED, __ATOMIC_SEQ_CST);
    futex_wake(&queue->state);
    /* IDLE: a new pager, that never saw the command. */
    if (!wait_for(client, DE_QUEUE_DONE, DE_QUEUE_IDLE))
        return DE_NOT_FOUND;
    return queue->status;
}

size_t de_queue_gather(struct de_queue_client *client, const uint8_t *const *payloads, const uint16_t *sizes,
                       size_t count)
{
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
        if (i == DE_QUEUE_BATCH || sizes[i] > DE_QUEUE_PAYLOAD_BYTES - bytes)
            return i;
        memcpy(client->queue->payloads + bytes, payloads[i], sizes[i]);
        bytes += sizes[i];
    }
    return count;
}

void de_queue_pages(struct de_queue_client *client, uint8_t *pages, size_t count)
{
    memcpy(pages, client->queue->payloads, (count < DE_QUEUE_PAGES ? count : DE_QUEUE_PAGES) * DE_PAGE_SIZE);
}

int de_queue_statistics(struct de_queue_client *client, struct de_pager_page *page)
{
    for (unsigned tries = 0; tries < COPY_TRIES; tries++) {
        uint32_t before = __atomic_load_n(&client->page->sequence, __ATOMIC_SEQ_CST);
        memcpy(page, client->page, sizeof *page);
        /* x86 keeps loads in order; the compiler must, too. */
        __asm__ volatile("" ::: "memory");
        if (before % 2 == 0 && __atomic_load_n(&client->page->sequence, __ATOMIC_SEQ_CST) == before)
            return DE_OK;
        nanosleep(&(struct timespec){.tv_nsec = 10000}, NULL);
    }
    return DE_BUSY;
}

/* The file may be another domain's by the time, or gone: what is mapped stays as it is. */
static int map_table(const struct de_queue_client *client, uint16_t domain, size_t *bytes,
                     const struct table_header **header)
{
    char name[16];
    struct stat status;
    void *memory;
    snprintf(name, sizeof name, "table-%u", domain);
    if (fstatat(client->directory, name, &status, 0))
        return DE_NOT_FOUND;
    *bytes = (size_t)status.st_size;
    int result = map_file(client->directory, name, *bytes, PROT_READ, NULL, &memory);
    *header = memory;
    if (result == DE_OK && (*bytes < DE_PAGE_SIZE || table_size((*header)->gfns) != *bytes)) {
        munmap(memory, *bytes);
        return DE_CORRUPT;
    }
    return result;
}

int de_queue_states(struct de_queue_client *client, uint16_t domain, uint32_t first, size_t count,
                    uint8_t *states, uint32_t *objects, uint32_t *generations)
{
    size_t bytes;
    const struct table_header *header;
    int status = map_table(client, domain, &bytes, &header);
    if (status != DE_OK)
        return status;
    bool inside = first <= header->gfns && count <= header->gfns - first;
    const _Atomic uint64_t *entries =
        (const _Atomic uint64_t *)(const void *)((const uint8_t *)header + DE_PAGE_SIZE);
    for (size_t i = 0; inside && i < count; i++) {
        struct entry entry = entry_unpack(atomic_load(&entries[first + i]));
        if (states)
            states[i] = (uint8_t)entry.state;
        if (objects)
            objects[i] = entry.object;
        if (generations)
            generations[i] = entry.generation;
    }
    munmap((void *)header, bytes);
    return inside ? DE_OK : DE_INVALID;
}

int de_queue_count_out(struct de_queue_client *client, uint16_t domain, uint32_t *pages)
{
    size_t bytes;
    const struct table_header *header;
    *pages = 0;
    int status = map_table(client, domain, &bytes, &header);
    if (status != DE_OK)
        return status;
    const _Atomic uint64_t *entries =
        (const _Atomic uint64_t *)(const void *)((const uint8_t *)header + DE_PAGE_SIZE);
    for (uint32_t gfn = 0; gfn < header->gfns; gfn++) {
        struct entry entry = entry_unpack(atomic_load(&entries[gfn]));
        *pages += entry.state == DE_PAGE_EVICTED || entry.state == DE_PAGE_LOADING;
    }
    munmap((void *)header, bytes);
    return DE_OK;
}

int de_queue_failure(struct de_queue_client *client, uint16_t domain, char *text, size_t capacity)
{
    size_t bytes;
    const struct table_header *header;
    int status = map_table(client, domain, &bytes, &header);
    if (status != DE_OK)
        return status;
    if (capacity)
        snprintf(text, capacity, "%.*s", (int)sizeof header->failure - 1, header->failure);
    munmap((void *)header, bytes);
    return DE_OK;
}
