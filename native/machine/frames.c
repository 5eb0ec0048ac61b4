/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Frames, the memfd they live in, claims on them, and the machine as a whole. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_FRAMES 0x80000000u

void machine_panic(const char *format, ...)
{
    char text[200];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "machine: Panic on CPU 0: %s\n", text);
    abort();
}

uint32_t frame_allocate(struct de_machine *machine, struct domain *domain)
{
    /* As Xen's alloc_heap_pages(): what is claimed is out of reach, but for a domain with a claim of its own.
     */
    if (!machine->free_count || (machine->free_count <= machine->claimed && !domain->claimed))
        return FRAME_NONE;
    uint32_t frame = machine->free_frames[--machine->free_count];
    machine->frames[frame].references = 1;
    return frame;
}

void frame_put(struct de_machine *machine, uint32_t frame)
{
    if (--machine->frames[frame].references)
        return;
    /* The hole is the point: what the engine frees leaves this process's memory. If the kernel refuses, the
     * frame is free all the same, and whoever gets it overwrites it whole. */
    (void)fallocate(machine->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)frame * DE_PAGE_SIZE,
                    DE_PAGE_SIZE);
    machine->free_frames[machine->free_count++] = frame;
}

static int memory_create(struct de_machine *machine)
{
    size_t bytes = (size_t)machine->frame_count * DE_PAGE_SIZE;
    machine->fd = memfd_create("diffengine-machine", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (machine->fd < 0)
        return -errno;
    if (ftruncate(machine->fd, (off_t)bytes) < 0)
        return -errno;
    /* Other processes get this file: none of them may shrink it under our mapping. */
    if (fcntl(machine->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return -errno;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, machine->fd, 0);
    if (memory == MAP_FAILED)
        return -errno;
    machine->memory = memory;
    /* Guests' pages are secrets, and a huge page would hide what one freed frame saves. */
    (void)madvise(memory, bytes, MADV_DONTDUMP);
    (void)madvise(memory, bytes, MADV_NOHUGEPAGE);
    return 0;
}

static int tables_create(struct de_machine *machine)
{
    machine->frames = calloc(machine->frame_count, sizeof *machine->frames);
    machine->free_frames = malloc(machine->frame_count * sizeof *machine->free_frames);
    machine->domains = calloc(DE_MACHINE_MAX_DOMAIN_ID + 1u, sizeof(struct domain *));
    if (!machine->frames || !machine->free_frames || !machine->domains)
        return -ENOMEM;
    for (uint32_t i = 0; i < machine->frame_count; i++)
        machine->free_frames[i] = machine->frame_count - 1 - i;
    machine->free_count = machine->frame_count;
    machine->next_domain = 1;
    return 0;
}

static void memory_free(struct de_machine *machine)
{
    if (machine->memory)
        munmap(machine->memory, (size_t)machine->frame_count * DE_PAGE_SIZE);
    if (machine->fd >= 0)
        close(machine->fd);
    free(machine->frames);
    free(machine->free_frames);
    free(machine->domains);
    channel_destroy(&machine->channel);
    pthread_mutex_destroy(&machine->lock);
    free(machine);
}

int de_machine_create(uint32_t frames, struct de_machine **result)
{
    if (!frames || frames > MAX_FRAMES)
        return -EINVAL;
    struct de_machine *machine = calloc(1, sizeof *machine);
    if (!machine)
        return -ENOMEM;
    machine->fd = -1;
    machine->frame_count = frames;
    int error = channel_init(&machine->channel);
    if (error) {
        free(machine);
        return error;
    }
    pthread_mutex_init(&machine->lock, NULL);
    error = tables_create(machine);
    if (!error)
        error = memory_create(machine);
    if (error) {
        memory_free(machine);
        return error;
    }
    *result = machine;
    return 0;
}

void de_machine_free(struct de_machine *machine)
{
    if (!machine)
        return;
    for (uint16_t id = 1; id < machine->next_domain; id++)
        de_machine_domain_destroy(machine, id);
    memory_free(machine);
}

int de_machine_fd(const struct de_machine *machine)
{
    return machine->fd;
}

void de_machine_account(struct de_machine *machine, struct de_machine_accounting *accounting)
{
    pthread_mutex_lock(&machine->lock);
    *accounting = (struct de_machine_accounting){
        .frames = machine->frame_count,
        .free = machine->free_count,
        .used = machine->frame_count - machine->free_count,
        .claimed = machine->claimed,
        .shared_frames = machine->shared_frames,
        .sharing_saved = machine->shared_gfns - machine->shared_frames,
        .paged = machine->paged,
        .mapped = machine->mapped,
        .metadata_bytes = machine->share_bytes,
    };
    pthread_mutex_unlock(&machine->lock);
}

static int claim(struct de_machine *machine, struct domain *domain, uint64_t pages)
{
    /* The order of checks is domain_set_outstanding_pages()'s. */
    if (!pages) {
        machine->claimed -= domain->claimed;
        domain->claimed = 0;
        return 0;
    }
    uint64_t held = domain_private(domain);
    if (domain->claimed || pages <= held)
        return -EINVAL;
    if (pages - held + machine->claimed > machine->free_count)
        return -ENOMEM;
    domain->claimed = pages - held;
    machine->claimed += domain->claimed;
    return 0;
}

int de_machine_claim(struct de_machine *machine, uint16_t id, uint64_t pages)
{
    pthread_mutex_lock(&machine->lock);
    struct domain *domain = domain_find(machine, id);
    int error = domain ? claim(machine, domain, pages) : -ESRCH;
    pthread_mutex_unlock(&machine->lock);
    return error;
}
