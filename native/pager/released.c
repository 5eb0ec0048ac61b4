/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "released.h"

#include <diffengine/status.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NAME_BYTES 16u

static void name_of(uint16_t domain, char name[NAME_BYTES])
{
    snprintf(name, NAME_BYTES, "released-%u", domain);
}

bool released_has(int directory, uint16_t domain, const struct de_uuid *uuid)
{
    char name[NAME_BYTES];
    struct de_uuid marked;
    name_of(domain, name);
    int fd = directory < 0 ? -1 : openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return false;
    ssize_t bytes = read(fd, &marked, sizeof marked);
    close(fd);
    return bytes == (ssize_t)sizeof marked && memcmp(&marked, uuid, sizeof marked) == 0;
}

int released_add(int directory, uint16_t domain, const struct de_uuid *uuid)
{
    char name[NAME_BYTES];
    name_of(domain, name);
    int fd = openat(directory, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return DE_SYSTEM;
    ssize_t bytes = write(fd, uuid, sizeof *uuid);
    close(fd);
    if (bytes == (ssize_t)sizeof *uuid)
        return DE_OK;
    released_remove(directory, domain);
    return DE_SYSTEM;
}

void released_remove(int directory, uint16_t domain)
{
    char name[NAME_BYTES];
    name_of(domain, name);
    if (directory >= 0)
        unlinkat(directory, name, 0);
}
