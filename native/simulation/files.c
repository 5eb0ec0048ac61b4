/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What outlives a pager: its state directory and the swap file, on a disk that is slow and fails now and
 * then. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "scratch.h"
#include "world.h"

#include <diffengine/status.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_BYTES 64u
#define SLOWEST_DISK_NS 200000u
#define MIB ((uint64_t)1 << 20)

struct state_files {
    char root[PATH_BYTES];
    int lock; /**< of the root */
    char directory[PATH_BYTES + 8];
    char swap[PATH_BYTES + 8];
    struct de_swap_disk disk;
    struct de_pager_state state;
};

static bool disk_fails(struct world *world)
{
    scheduler_sleep(world->scheduler, random_below(&world->disturbance, SLOWEST_DISK_NS));
    if (!chance(world, world->options.disk_errors))
        return false;
    world->result.disk_errors++;
    return true;
}

static ssize_t disk_read(void *context, int fd, void *buffer, size_t bytes, int64_t offset)
{
    if (!disk_fails(context))
        return pread(fd, buffer, bytes, offset);
    errno = EIO;
    return -1;
}

static ssize_t disk_write(void *context, int fd, const void *buffer, size_t bytes, int64_t offset)
{
    struct world *world = context;
    if (!disk_fails(world))
        return pwrite(fd, buffer, bytes, offset);
    errno = random_below(&world->disturbance, 2) ? EIO : ENOSPC;
    return -1;
}

int files_create(struct world *world)
{
    struct state_files *files = calloc(1, sizeof *files);
    if (!files)
        return DE_NO_MEMORY;
    files->lock = scratch_make("/dev/shm", files->root, sizeof files->root);
    if (files->lock < 0) {
        free(files);
        return DE_SYSTEM;
    }
    snprintf(files->directory, sizeof files->directory, "%s/state", files->root);
    snprintf(files->swap, sizeof files->swap, "%s/swap", files->root);
    files->disk = (struct de_swap_disk){.context = world, .read = disk_read, .write = disk_write};
    files->state = (struct de_pager_state){
        .directory = files->directory,
        .store_bytes = world->options.store_mib * MIB,
        .store_domain = world->options.store_domain,
        .swap_path = world->options.swap_slots ? files->swap : NULL,
        .swap_bytes = (uint64_t)world->options.swap_slots * DE_PAGE_SIZE,
        .swap_disk = &files->disk,
    };
    world->files = files;
    return mkdir(files->directory, 0700) ? DE_SYSTEM : DE_OK;
}

const struct de_pager_state *files_state(const struct world *world)
{
    return &world->files->state;
}

void files_holds_path(const struct world *world, uint16_t domain, char *path, size_t capacity)
{
    snprintf(path, capacity, "%s/holds-%u", world->files->directory, domain);
}

static bool empty_directory(const char *path)
{
    bool empty = true;
    DIR *directory = opendir(path);
    for (struct dirent *found; directory && (found = readdir(directory));) {
        if (found->d_name[0] == '.')
            continue;
        empty = false;
        unlinkat(dirfd(directory), found->d_name, 0);
    }
    if (directory)
        closedir(directory);
    return empty;
}

bool files_remove(struct world *world)
{
    if (!world->files)
        return true;
    bool empty = empty_directory(world->files->directory);
    rmdir(world->files->directory);
    unlink(world->files->swap);
    rmdir(world->files->root);
    close(world->files->lock);
    free(world->files);
    world->files = NULL;
    return empty;
}
