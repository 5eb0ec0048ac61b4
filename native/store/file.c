/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "file.h"

#include <diffengine/status.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct file {
    int fd;
    uint8_t *base;
    uint64_t mapped_bytes;
};

static uint64_t length(void *context)
{
    const struct file *file = context;
    struct stat status;
    return fstat(file->fd, &status) ? 0 : (uint64_t)status.st_size;
}

static int peek(void *context, void *bytes, size_t count)
{
    const struct file *file = context;
    ssize_t got = pread(file->fd, bytes, count, 0);
    return got < 0 ? DE_SYSTEM : got == (ssize_t)count ? DE_OK : DE_CORRUPT;
}

static uint8_t *map(void *context, uint64_t bytes)
{
    struct file *file = context;
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file->fd, 0);
    if (base == MAP_FAILED)
        return NULL;
    /* Huge pages would populate what no slot uses; evicted content is as secret as its guest. */
    madvise(base, bytes, MADV_NOHUGEPAGE);
    madvise(base, bytes, MADV_DONTDUMP);
    file->base = base;
    file->mapped_bytes = bytes;
    return base;
}

static int grow(void *context, uint64_t bytes)
{
    const struct file *file = context;
    return ftruncate(file->fd, (off_t)bytes) ? DE_SYSTEM : DE_OK;
}

/* Written, not touched through the mapping, where a full file system would be a SIGBUS instead of an error.
 */
static int populate(void *context, uint64_t offset)
{
    const struct file *file = context;
    ssize_t written;
    do
        written = pwrite(file->fd, "", 1, (off_t)offset);
    while (written < 0 && errno == EINTR);
    return written == 1 ? DE_OK : DE_SYSTEM;
}

static bool punch(void *context, uint64_t offset, uint64_t bytes)
{
    const struct file *file = context;
    return fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes) == 0;
}

/* As the file system tells it: reading a hole through the mapping would fill it. */
static int find(void *context, uint64_t *begin, uint64_t *end)
{
    const struct file *file = context;
    off_t data = lseek(file->fd, (off_t)*begin, SEEK_DATA);
    if (data < 0)
        return errno == ENXIO ? DE_NOT_FOUND : DE_SYSTEM;
    off_t hole = lseek(file->fd, data, SEEK_HOLE);
    if (hole < 0)
        return DE_SYSTEM;
    *begin = (uint64_t)data;
    *end = (uint64_t)hole;
    return DE_OK;
}

static void leave(void *context)
{
    struct file *file = context;
    if (file->base)
        munmap(file->base, file->mapped_bytes);
    if (file->fd >= 0)
        close(file->fd);
    free(file);
}

static const struct de_store_memory_operations file_operations = {
    .piece_bytes = DE_PAGE_SIZE,
    .length = length,
    .peek = peek,
    .map = map,
    .grow = grow,
    .populate = populate,
    .punch = punch,
    .find = find,
    .leave = leave,
};

int de_store_file_create(int fd, struct de_store_memory *memory)
{
    struct file *file = malloc(sizeof *file);
    if (!file)
        return DE_NO_MEMORY;
    *file = (struct file){.fd = fd};
    *memory = (struct de_store_memory){.operations = &file_operations, .context = file};
    return DE_OK;
}

void de_store_file_release(struct de_store_memory *memory)
{
    struct file *file = memory->context;
    file->fd = -1;
    leave(file);
}

int de_store_file_fd(const struct de_store_memory *memory)
{
    const struct file *file = memory->context;
    return memory->operations == &file_operations ? file->fd : -1;
}
