/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Contents that clients gave: what programs compare the guests' memory with. */
#define _GNU_SOURCE
#include "server_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Without these seals a client could shrink the file under our mapping, and the machine would die of SIGBUS.
 */
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

static void contents_free(struct contents *contents)
{
    if (contents->bytes)
        munmap((void *)contents->bytes, contents->size);
    close(contents->fd);
    free(contents);
}

static int contents_map(struct contents *contents)
{
    struct stat file;
    int seals = fcntl(contents->fd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS || fstat(contents->fd, &file) < 0 || file.st_size <= 0)
        return -EINVAL;
    contents->size = (size_t)file.st_size;
    void *bytes = mmap(NULL, contents->size, PROT_READ, MAP_SHARED, contents->fd, 0);
    if (bytes == MAP_FAILED)
        return -errno;
    contents->bytes = bytes;
    (void)madvise(bytes, contents->size, MADV_DONTDUMP);
    return 0;
}

static int contents_insert(struct session *session, struct contents *contents, uint32_t *id)
{
    struct server *server = session->server;
    for (size_t i = 0; i < MAX_CONTENTS; i++) {
        if (server->contents[i])
            continue;
        size_t own = 0;
        while (session->contents[own])
            own++;
        *id = contents->id = ++server->next_id;
        server->contents[i] = contents;
        session->contents[own] = contents->id;
        return 0;
    }
    return -ENOSPC;
}

int contents_add(struct session *session, int fd, uint32_t *id)
{
    struct contents *contents = calloc(1, sizeof *contents);
    if (!contents) {
        close(fd);
        return -ENOMEM;
    }
    *contents = (struct contents){.fd = fd, .references = 1};
    int error = contents_map(contents);
    if (!error) {
        pthread_mutex_lock(&session->server->lock);
        error = contents_insert(session, contents, id);
        pthread_mutex_unlock(&session->server->lock);
    }
    if (error)
        contents_free(contents);
    return error;
}

void contents_put(struct server *server, struct contents *contents)
{
    if (!contents || --contents->references)
        return;
    for (size_t i = 0; i < MAX_CONTENTS; i++)
        if (server->contents[i] == contents)
            server->contents[i] = NULL;
    contents_free(contents);
}

static struct contents *contents_find(struct server *server, uint32_t id)
{
    for (size_t i = 0; i < MAX_CONTENTS; i++)
        if (server->contents[i] && server->contents[i]->id == id)
            return server->contents[i];
    return NULL;
}

struct contents *contents_get(struct server *server, uint32_t id, uint64_t bytes)
{
    struct contents *contents = contents_find(server, id);
    if (!contents || contents->size < bytes)
        return NULL;
    contents->references++;
    return contents;
}

/* Only what the session added: an id is no secret. */
static int remove_own(struct session *session, uint32_t id)
{
    for (size_t i = 0; i < MAX_CONTENTS; i++) {
        if (!id || session->contents[i] != id)
            continue;
        session->contents[i] = 0;
        contents_put(session->server, contents_find(session->server, id));
        return 0;
    }
    return -ENOENT;
}

int contents_remove(struct session *session, uint32_t id)
{
    pthread_mutex_lock(&session->server->lock);
    int error = remove_own(session, id);
    pthread_mutex_unlock(&session->server->lock);
    return error;
}

void contents_drop(struct session *session)
{
    pthread_mutex_lock(&session->server->lock);
    for (size_t i = 0; i < MAX_CONTENTS; i++)
        if (session->contents[i])
            remove_own(session, session->contents[i]);
    pthread_mutex_unlock(&session->server->lock);
}

void contents_pages(const struct contents *contents, const uint8_t **pages, size_t count)
{
    size_t end = count * DE_PAGE_SIZE;
    /* Reading a hole of a memory file would fill it. */
    for (off_t at = 0; (size_t)at < end;) {
        off_t data = lseek(contents->fd, at, SEEK_DATA);
        if (data < 0 || (size_t)data >= end)
            return;
        off_t hole = lseek(contents->fd, data, SEEK_HOLE);
        at = hole < 0 ? (off_t)end : hole;
        for (size_t page = (size_t)data / DE_PAGE_SIZE; page < count && page * DE_PAGE_SIZE < (size_t)at;
             page++)
            pages[page] = contents->bytes + page * DE_PAGE_SIZE;
    }
}
