/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a simulated process holds of the real one: memory, mappings, file descriptors. All of it goes when the
 * process is killed, as the kernel would see to; and an allocation can be made to fail.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "replacements.h"

#include <diffengine/status.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_MAPPINGS 64u
#define MAX_DESCRIPTORS 64u
#define MAX_CONTEXTS 64u

/** In front of each allocation; as long as a cache line, so that what asks for that alignment gets it. */
struct allocation {
    _Alignas(64) struct allocation *previous;
    struct allocation *next;
    void *base;
    size_t bytes;
};

struct held_resources {
    struct allocation list; /**< a circle */
    struct {
        void *address;
        size_t bytes;
    } mappings[MAX_MAPPINGS];
    int descriptors[MAX_DESCRIPTORS]; /**< + 1; 0: none */
    struct {
        void *context;
        void (*release)(void *context);
    } contexts[MAX_CONTEXTS];
};

static struct held_resources *held(void)
{
    struct scheduler *scheduler = scheduler_of_thread();
    if (!scheduler || !scheduler->current)
        return NULL;
    if (scheduler->current->owner == PROCESS_CALLER)
        return NULL;
    struct held_resources **held = &scheduler->resources[scheduler->current->owner];
    if (!*held) {
        *held = calloc(1, sizeof **held);
        if (!*held)
            abort();
        (*held)->list.previous = (*held)->list.next = &(*held)->list;
    }
    return *held;
}

static bool made_to_fail(void)
{
    struct scheduler *scheduler = scheduler_of_thread();
    return scheduler && scheduler->current && scheduler->allocation_failures_per_million &&
           random_below(&scheduler->random, 1000000) < scheduler->allocation_failures_per_million;
}

static void link_allocation(struct allocation *allocation)
{
    struct held_resources *owner = held();
    allocation->previous = allocation->next = NULL;
    if (!owner)
        return;
    allocation->next = owner->list.next;
    allocation->previous = &owner->list;
    allocation->next->previous = allocation;
    owner->list.next = allocation;
}

static void unlink_allocation(struct allocation *allocation)
{
    if (!allocation->next)
        return;
    allocation->next->previous = allocation->previous;
    allocation->previous->next = allocation->next;
}

void *simulation_aligned_alloc(size_t alignment, size_t bytes)
{
    if (made_to_fail())
        return NULL;
    size_t lead = alignment > sizeof(struct allocation) ? alignment : sizeof(struct allocation);
    uint8_t *base = aligned_alloc(lead, (lead + bytes + lead - 1) / lead * lead);
    if (!base)
        return NULL;
    struct allocation *allocation = (struct allocation *)(base + lead) - 1;
    allocation->base = base;
    allocation->bytes = bytes;
    link_allocation(allocation);
    return allocation + 1;
}

void *simulation_malloc(size_t bytes)
{
    return simulation_aligned_alloc(_Alignof(max_align_t), bytes);
}

void *simulation_calloc(size_t count, size_t bytes)
{
    size_t total;
    if (__builtin_mul_overflow(count, bytes, &total))
        return NULL;
    void *memory = simulation_malloc(total);
    return memory ? memset(memory, 0, total) : NULL;
}

void simulation_free(void *memory)
{
    if (!memory)
        return;
    struct allocation *allocation = (struct allocation *)memory - 1;
    unlink_allocation(allocation);
    free(allocation->base);
}

void *simulation_realloc(void *memory, size_t bytes)
{
    void *larger = simulation_malloc(bytes);
    if (!larger || !memory)
        return larger;
    size_t before = ((struct allocation *)memory - 1)->bytes;
    memcpy(larger, memory, before < bytes ? before : bytes);
    simulation_free(memory);
    return larger;
}

void *simulation_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    void *mapped = mmap(address, bytes, protection, flags, fd, offset);
    struct held_resources *owner = held();
    if (mapped == MAP_FAILED || !owner || (flags & MAP_FIXED))
        return mapped;
    for (size_t i = 0; i < MAX_MAPPINGS; i++) {
        if (owner->mappings[i].address)
            continue;
        owner->mappings[i].address = mapped;
        owner->mappings[i].bytes = bytes;
        return mapped;
    }
    abort(); /* as many mappings as no simulated process has */
}

int simulation_munmap(void *address, size_t bytes)
{
    struct held_resources *owner = held();
    for (size_t i = 0; owner && i < MAX_MAPPINGS; i++)
        if (owner->mappings[i].address == address)
            owner->mappings[i].address = NULL;
    return munmap(address, bytes);
}

int simulation_track(int fd)
{
    struct held_resources *owner = held();
    for (size_t i = 0; fd >= 0 && owner && i < MAX_DESCRIPTORS; i++) {
        if (owner->descriptors[i])
            continue;
        owner->descriptors[i] = fd + 1;
        break;
    }
    return fd;
}

/* Somebody else sees to its closing. */
int simulation_untrack(int fd)
{
    struct held_resources *owner = held();
    for (size_t i = 0; owner && i < MAX_DESCRIPTORS; i++)
        if (owner->descriptors[i] == fd + 1)
            owner->descriptors[i] = 0;
    return fd;
}

int simulation_close(int fd)
{
    return close(simulation_untrack(fd));
}

static bool hold_context(void *context, void (*release)(void *))
{
    struct held_resources *owner = held();
    for (size_t i = 0; owner && i < MAX_CONTEXTS; i++) {
        if (owner->contexts[i].context)
            continue;
        owner->contexts[i].context = context;
        owner->contexts[i].release = release;
        return true;
    }
    return !owner;
}

static void drop_context(const void *context)
{
    struct held_resources *owner = held();
    for (size_t i = 0; owner && i < MAX_CONTEXTS; i++)
        if (owner->contexts[i].context == context)
            owner->contexts[i].context = NULL;
}

static void release_directory(void *directory)
{
    closedir(directory);
}

DIR *simulation_fdopendir(int fd)
{
    DIR *directory = fdopendir(simulation_untrack(fd));
    if (directory && !hold_context(directory, release_directory))
        abort();
    return directory;
}

int simulation_closedir(DIR *directory)
{
    drop_context(directory);
    return closedir(directory);
}

static void release_compress(void *context)
{
    de_compress_free(context);
}

int simulation_compress_create(enum de_compressor compressor, int level, struct de_compress_context **context)
{
    int status = de_compress_create(compressor, level, context);
    if (status == DE_OK && !hold_context(*context, release_compress))
        abort(); /* as many as no simulated process has */
    return status;
}

void simulation_compress_free(struct de_compress_context *context)
{
    if (context)
        drop_context(context);
    de_compress_free(context);
}

static void release_cipher(void *context)
{
    EVP_CIPHER_CTX_free(context);
}

EVP_CIPHER_CTX *simulation_cipher_new(void)
{
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    if (context && !hold_context(context, release_cipher))
        abort();
    return context;
}

void simulation_cipher_free(EVP_CIPHER_CTX *context)
{
    if (context)
        drop_context(context);
    EVP_CIPHER_CTX_free(context);
}

void resources_free(struct scheduler *scheduler, enum process process)
{
    struct held_resources *owner = scheduler->resources[process];
    if (!owner)
        return;
    while (owner->list.next != &owner->list) {
        struct allocation *allocation = owner->list.next;
        unlink_allocation(allocation);
        free(allocation->base);
    }
    for (size_t i = 0; i < MAX_MAPPINGS; i++)
        if (owner->mappings[i].address)
            munmap(owner->mappings[i].address, owner->mappings[i].bytes);
    for (size_t i = 0; i < MAX_DESCRIPTORS; i++)
        if (owner->descriptors[i])
            close(owner->descriptors[i] - 1);
    for (size_t i = 0; i < MAX_CONTEXTS; i++)
        if (owner->contexts[i].context)
            owner->contexts[i].release(owner->contexts[i].context);
    free(owner);
    scheduler->resources[process] = NULL;
}
