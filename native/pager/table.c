/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "table.h"

#include <diffengine/status.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define TABLE_MAGIC 0x0a656c6261744544u /* "DEtable\n" */
#define TABLE_VERSION 2u
#define NAME_BYTES 16u

_Static_assert(sizeof(struct table_header) <= DE_PAGE_SIZE, "the header has one page");

size_t table_size(uint32_t gfns)
{
    size_t bytes = DE_PAGE_SIZE + (size_t)gfns * sizeof(uint64_t);
    return (bytes + DE_PAGE_SIZE - 1) / DE_PAGE_SIZE * DE_PAGE_SIZE;
}

static void name_of(uint16_t domain, char *name)
{
    snprintf(name, NAME_BYTES, "table-%u", domain);
}

bool table_name_domain(const char *name, uint16_t *domain)
{
    char again[NAME_BYTES];
    char *end;
    if (strncmp(name, "table-", 6))
        return false;
    unsigned long number = strtoul(name + 6, &end, 10);
    if (*end || number > UINT16_MAX)
        return false;
    *domain = (uint16_t)number;
    name_of(*domain, again);
    return strcmp(name, again) == 0;
}

/* All of it exists from now on: a hole that the tmpfs can't fill later would be a SIGBUS in the fault path.
 */
static int map(int fd, size_t bytes, struct table *table)
{
    int flags = (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED) | MAP_POPULATE;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (memory == MAP_FAILED)
        return DE_NO_MEMORY;
    *table = (struct table){
        .header = memory,
        .entries = (_Atomic uint64_t *)(void *)((uint8_t *)memory + DE_PAGE_SIZE),
        .bytes = bytes,
    };
    return DE_OK;
}

static int make_file(int directory, uint16_t domain, size_t bytes)
{
    char name[NAME_BYTES];
    name_of(domain, name);
    unlinkat(directory, name, 0);
    int fd = openat(directory, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -1;
    errno = posix_fallocate(fd, 0, (off_t)bytes);
    if (!errno)
        return fd;
    int error = errno;
    close(fd);
    unlinkat(directory, name, 0);
    errno = error;
    return -1;
}

int table_create(int directory, uint16_t domain, const struct de_uuid *uuid, uint32_t gfns,
                 struct table *table)
{
    size_t bytes = table_size(gfns);
    int fd = directory < 0 ? -1 : make_file(directory, domain, bytes);
    if (directory >= 0 && fd < 0)
        return DE_SYSTEM;
    int status = map(fd, bytes, table);
    if (fd >= 0)
        close(fd);
    if (status != DE_OK) {
        table_remove(directory, domain);
        return status;
    }
    table->header->version = TABLE_VERSION;
    table->header->gfns = gfns;
    table->header->domain = domain;
    table->header->uuid = *uuid;
    atomic_store(&table->header->magic, TABLE_MAGIC);
    return DE_OK;
}

static bool header_valid(const struct table *table, uint16_t domain)
{
    const struct table_header *header = table->header;
    return header->magic == TABLE_MAGIC && header->version == TABLE_VERSION && header->domain == domain &&
           header->gfns && table_size(header->gfns) == table->bytes &&
           memchr(header->failure, 0, sizeof header->failure);
}

int table_open(int directory, uint16_t domain, struct table *table)
{
    char name[NAME_BYTES];
    struct stat status;
    name_of(domain, name);
    int fd = openat(directory, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return errno == ENOENT ? DE_NOT_FOUND : DE_SYSTEM;
    int result = DE_CORRUPT;
    if (fstat(fd, &status) == 0 && status.st_size > (off_t)DE_PAGE_SIZE)
        result = map(fd, (size_t)status.st_size, table);
    close(fd);
    if (result == DE_OK && !header_valid(table, domain)) {
        table_close(table);
        result = DE_CORRUPT;
    }
    return result;
}

void table_close(struct table *table)
{
    if (table->header)
        munmap(table->header, table->bytes);
    table->header = NULL;
}

void table_remove(int directory, uint16_t domain)
{
    char name[NAME_BYTES];
    name_of(domain, name);
    if (directory >= 0)
        unlinkat(directory, name, 0);
}
