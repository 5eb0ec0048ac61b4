/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <diffengine/holds.h>
#include <diffengine/status.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define HOLDS_MAGIC 0x0a73646c6f684544u /* "DEholds\n" */
#define HOLDS_VERSION 2u
#define NAME_BYTES 16u
#define LOCKED 0x80u
#define SPINS 100u
#define WAIT_NS 50000
#define ATTACH_TRIES 100u

/** The file's first page; one byte per gfn follows. */
struct holds_header {
    _Atomic uint64_t magic; /**< comes last */
    uint32_t version;
    uint32_t gfns;
    struct de_uuid uuid;
    uint16_t domain;
};

struct de_holds {
    int fd;
    uint32_t gfns;
    size_t bytes;
    struct holds_header *header;
    _Atomic uint8_t *pages;
};

static size_t file_bytes(uint32_t gfns)
{
    return DE_PAGE_SIZE + ((size_t)gfns + DE_PAGE_SIZE - 1) / DE_PAGE_SIZE * DE_PAGE_SIZE;
}

static void name_of(uint16_t domain, char *name)
{
    snprintf(name, NAME_BYTES, "holds-%u", domain);
}

/* Takes @p fd over, with success or without. */
static int map(int fd, struct de_holds **result)
{
    struct stat status;
    struct de_holds *holds = calloc(1, sizeof *holds);
    if (!holds || fstat(fd, &status)) {
        free(holds);
        close(fd);
        return holds ? DE_SYSTEM : DE_NO_MEMORY;
    }
    holds->fd = fd;
    holds->bytes = (size_t)status.st_size;
    void *memory = holds->bytes <= DE_PAGE_SIZE
                       ? MAP_FAILED
                       : mmap(NULL, holds->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (memory == MAP_FAILED) {
        bool short_file = holds->bytes <= DE_PAGE_SIZE;
        free(holds);
        close(fd);
        return short_file ? DE_CORRUPT : DE_NO_MEMORY;
    }
    holds->header = memory;
    holds->pages = (_Atomic uint8_t *)memory + DE_PAGE_SIZE;
    *result = holds;
    return DE_OK;
}

static int check(struct de_holds *holds)
{
    const struct holds_header *header = holds->header;
    holds->gfns = header->gfns;
    bool valid = header->magic == HOLDS_MAGIC && header->version == HOLDS_VERSION && header->gfns &&
                 file_bytes(header->gfns) == holds->bytes;
    return valid ? DE_OK : DE_CORRUPT;
}

static int make_file(int directory, uint16_t domain, uint32_t gfns)
{
    char name[NAME_BYTES];
    name_of(domain, name);
    de_holds_remove(directory, domain);
    int fd = directory < 0
                 ? memfd_create("diffengine-holds", MFD_CLOEXEC)
                 : openat(directory, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -1;
    errno = posix_fallocate(fd, 0, (off_t)file_bytes(gfns));
    if (!errno)
        return fd;
    int error = errno;
    close(fd);
    de_holds_remove(directory, domain);
    errno = error;
    return -1;
}

int de_holds_create(int directory, uint16_t domain, const struct de_uuid *uuid, uint32_t gfns,
                    struct de_holds **result)
{
    struct de_holds *holds;
    int fd = make_file(directory, domain, gfns);
    if (fd < 0)
        return DE_SYSTEM;
    int status = map(fd, &holds);
    if (status != DE_OK) {
        de_holds_remove(directory, domain);
        return status;
    }
    holds->gfns = holds->header->gfns = gfns;
    holds->header->version = HOLDS_VERSION;
    holds->header->domain = domain;
    holds->header->uuid = *uuid;
    atomic_store(&holds->header->magic, HOLDS_MAGIC);
    *result = holds;
    return DE_OK;
}

int de_holds_reopen(int directory, uint16_t domain, const struct de_uuid *uuid, uint32_t gfns,
                    struct de_holds **result)
{
    char name[NAME_BYTES];
    struct de_holds *holds;
    name_of(domain, name);
    int fd = openat(directory, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return errno == ENOENT ? DE_NOT_FOUND : DE_SYSTEM;
    int status = map(fd, &holds);
    if (status != DE_OK)
        return status;
    bool same =
        check(holds) == DE_OK && holds->gfns == gfns && memcmp(&holds->header->uuid, uuid, sizeof *uuid) == 0;
    if (!same) {
        de_holds_close(holds);
        return DE_CORRUPT;
    }
    for (uint32_t gfn = 0; gfn < gfns; gfn++)
        de_holds_unlock(holds, gfn);
    *result = holds;
    return DE_OK;
}

void de_holds_close(struct de_holds *holds)
{
    if (!holds)
        return;
    munmap(holds->header, holds->bytes);
    close(holds->fd);
    free(holds);
}

void de_holds_remove(int directory, uint16_t domain)
{
    char name[NAME_BYTES];
    name_of(domain, name);
    if (directory >= 0)
        unlinkat(directory, name, 0);
}

int de_holds_fd(const struct de_holds *holds)
{
    return holds->fd;
}

size_t de_holds_bytes(const struct de_holds *holds)
{
    return sizeof *holds + holds->bytes;
}

bool de_holds_attached(const struct de_holds *holds)
{
    if (flock(holds->fd, LOCK_SH | LOCK_NB))
        return errno == EWOULDBLOCK;
    flock(holds->fd, LOCK_UN);
    return false;
}

bool de_holds_lock(struct de_holds *holds, uint32_t gfn)
{
    uint8_t expected = 0;
    return gfn < holds->gfns && atomic_compare_exchange_strong(&holds->pages[gfn], &expected, LOCKED);
}

void de_holds_unlock(struct de_holds *holds, uint32_t gfn)
{
    if (gfn < holds->gfns)
        atomic_fetch_and(&holds->pages[gfn], (uint8_t)~LOCKED);
}

/* The pager looks whether somebody has the lock by having it itself for a moment: one refusal says little. */
static int lock_table(int fd)
{
    for (unsigned tries = 0; tries < ATTACH_TRIES; tries++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return DE_OK;
        if (errno != EWOULDBLOCK)
            return DE_SYSTEM;
        nanosleep(&(struct timespec){.tv_nsec = WAIT_NS}, NULL);
    }
    return DE_BUSY;
}

int de_holds_attach(const char *path, struct de_holds **result)
{
    struct de_holds *holds;
    /* A description of its own: a lock belongs to that, not to the file. */
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return DE_SYSTEM;
    int status = map(fd, &holds);
    if (status != DE_OK)
        return status;
    status = check(holds);
    if (status == DE_OK)
        status = lock_table(holds->fd);
    if (status != DE_OK) {
        de_holds_close(holds);
        return status;
    }
    for (uint32_t gfn = 0; gfn < holds->gfns; gfn++)
        atomic_fetch_and(&holds->pages[gfn], LOCKED);
    *result = holds;
    return DE_OK;
}

int de_holds_take(struct de_holds *holds, uint32_t gfn)
{
    if (gfn >= holds->gfns)
        return DE_INVALID;
    for (unsigned turn = 0;;) {
        uint8_t now = atomic_load(&holds->pages[gfn]);
        if ((now & ~LOCKED) == DE_HOLDS_MAX)
            return DE_FULL;
        if (!(now & LOCKED)) {
            if (atomic_compare_exchange_weak(&holds->pages[gfn], &now, (uint8_t)(now + 1)))
                return DE_OK;
        } else if (turn++ < SPINS) {
            sched_yield();
        } else {
            nanosleep(&(struct timespec){.tv_nsec = WAIT_NS}, NULL);
        }
    }
}

void de_holds_drop(struct de_holds *holds, uint32_t gfn)
{
    uint8_t now = atomic_load(&holds->pages[gfn]);
    while (now & ~LOCKED && !atomic_compare_exchange_weak(&holds->pages[gfn], &now, (uint8_t)(now - 1)))
        ;
}
