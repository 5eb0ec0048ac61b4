/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "place.h"

#include "store_domain.h"

#include <diffengine/status.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define STORE_NAME "store"
#define PATH_BYTES 4096

void store_place_remove(int directory, const struct de_hypervisor *hypervisor)
{
    unlinkat(directory, STORE_NAME, 0);
    store_domain_remove(hypervisor, directory);
}

static int open_file(const struct store_place *place, struct de_store **store)
{
    int fd = openat(place->directory, STORE_NAME, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return errno == ENOENT ? DE_NOT_FOUND : DE_SYSTEM;
    int status = de_store_open(fd, store);
    if (status != DE_OK)
        close(fd);
    return status;
}

/* @return @p status; what was made of the memory failed unless that is DE_OK. */
static int keep(const struct de_store_memory *memory, int status)
{
    int error = errno;
    if (status != DE_OK)
        memory->operations->leave(memory->context);
    errno = error;
    return status;
}

static int open_domain(const struct store_place *place, struct de_store **store)
{
    struct de_store_memory memory;
    int status = store_domain_open(place->hypervisor, place->directory, &memory);
    return status == DE_OK ? keep(&memory, de_store_open_in(&memory, store)) : status;
}

static int create_in_domain(const struct store_place *place, struct de_store **store)
{
    struct de_store_memory memory;
    int status = store_domain_create(place->hypervisor, place->directory, place->max_bytes, &memory);
    if (status != DE_OK)
        return status;
    status = keep(&memory, de_store_create_in(&memory, place->max_bytes, store));
    int error = errno;
    if (status != DE_OK)
        store_place_remove(place->directory, place->hypervisor);
    errno = error;
    return status;
}

static int create_file(const struct store_place *place, struct de_store **store)
{
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/" STORE_NAME, place->path);
    return de_store_create(path, place->max_bytes, store);
}

static const char *name_of(bool in_domain)
{
    return in_domain ? STORE_DOMAIN_NAME : STORE_NAME;
}

/* Pages that are out need the store that is there, whatever the settings say; else one that is of the other
 * kind, or none yet, of a pager that died when it made it, counts as absent. */
int store_place_open(const struct store_place *place, bool needed, struct de_store **store, const char **name)
{
    bool in_domain = store_domain_recorded(place->directory);
    int status = in_domain ? open_domain(place, store) : open_file(place, store);
    *name = name_of(in_domain);
    if (status == DE_OK && !needed && in_domain != place->in_domain) {
        de_store_close(*store);
        status = DE_CORRUPT;
    }
    if (status == DE_NOT_FOUND || (status == DE_CORRUPT && !needed)) {
        store_place_remove(place->directory, place->hypervisor);
        *name = name_of(place->in_domain);
        status = place->in_domain ? create_in_domain(place, store) : create_file(place, store);
    }
    return status;
}
