/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "record.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define NAME_BYTES 24u

static void name_of(uint16_t domain, const char *suffix, char *name)
{
    snprintf(name, NAME_BYTES, "ring-%u%s", domain, suffix);
}

int xen_record_write(int directory, uint16_t domain, const struct xen_record *record)
{
    char name[NAME_BYTES], fresh[NAME_BYTES];
    name_of(domain, "", name);
    name_of(domain, ".new", fresh);
    int fd = openat(directory, fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    ssize_t written = write(fd, record, sizeof *record);
    int error = written == (ssize_t)sizeof *record ? 0 : written < 0 ? -errno : -ENOSPC;
    close(fd);
    if (!error && renameat(directory, fresh, directory, name))
        error = -errno;
    if (error)
        unlinkat(directory, fresh, 0);
    return error;
}

int xen_record_read(int directory, uint16_t domain, struct xen_record *record)
{
    char name[NAME_BYTES];
    name_of(domain, "", name);
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return -errno;
    ssize_t got = read(fd, record, sizeof *record);
    int error = got < 0 ? -errno : 0;
    close(fd);
    if (error)
        return error;
    return got == (ssize_t)sizeof *record && record->magic == XEN_RECORD_MAGIC ? 0 : -EINVAL;
}

void xen_record_remove(int directory, uint16_t domain)
{
    char name[NAME_BYTES];
    name_of(domain, "", name);
    unlinkat(directory, name, 0);
    xen_record_end_pause(directory, domain);
}

int xen_record_pause(int directory, uint16_t domain)
{
    char name[NAME_BYTES];
    name_of(domain, ".paused", name);
    int fd = openat(directory, name, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    close(fd);
    return 0;
}

bool xen_record_end_pause(int directory, uint16_t domain)
{
    char name[NAME_BYTES];
    name_of(domain, ".paused", name);
    return !unlinkat(directory, name, 0);
}
