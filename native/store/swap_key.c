/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "swap_key.h"
#include <diffengine/page.h>
#include <diffengine/status.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

/** A page of its own. The magic comes last: a file without it was never used. */
struct swap_key {
    _Atomic uint64_t magic;
    uint64_t slots;
    uint64_t has_file;
    uint8_t key[SWAP_KEY_BYTES];
    _Atomic uint64_t nonce;
};
#define SWAP_KEY_MAGIC 0x0a79656b70617773u /* "swapkey\n" */

static int fill(struct swap_key *key, uint64_t slots, bool has_file)
{
    key->slots = slots;
    key->has_file = has_file;
    if (getrandom(key->key, sizeof(key->key), 0) != (ssize_t)sizeof(key->key))
        return DE_SYSTEM;
    atomic_store(&key->nonce, 1);
    atomic_store(&key->magic, SWAP_KEY_MAGIC);
    return DE_OK;
}

/* Locked, so that it does not end up in the system's own swap; in no core dump either. */
static int map(int fd, struct swap_key **key)
{
    int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    struct swap_key *mapped = mmap(NULL, DE_PAGE_SIZE, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (mapped == MAP_FAILED)
        return DE_NO_MEMORY;
    if (mlock(mapped, DE_PAGE_SIZE) || madvise(mapped, DE_PAGE_SIZE, MADV_DONTDUMP)) {
        int error = errno;
        munmap(mapped, DE_PAGE_SIZE);
        errno = error;
        return DE_SYSTEM;
    }
    *key = mapped;
    return DE_OK;
}

static int open_file(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    struct stat status;
    if (fd < 0 || (fstat(fd, &status) == 0 && status.st_size == DE_PAGE_SIZE))
        return fd;
    errno = posix_fallocate(fd, 0, DE_PAGE_SIZE);
    if (!errno)
        return fd;
    int error = errno;
    close(fd);
    unlink(path);
    errno = error;
    return -1;
}

int swap_key_open(const char *path, uint64_t slots, struct swap_key **result)
{
    struct swap_key *key;
    int fd = path ? open_file(path) : -1;
    if (path && fd < 0)
        return DE_SYSTEM;
    int status = map(fd, &key);
    if (fd >= 0)
        close(fd);
    if (status != DE_OK)
        return status;
    if (!key->magic)
        status = fill(key, slots, path != NULL);
    else if (key->magic != SWAP_KEY_MAGIC || !key->slots || key->slots > UINT32_MAX)
        status = DE_CORRUPT;
    if (status != DE_OK) {
        munmap(key, DE_PAGE_SIZE);
        return status;
    }
    *result = key;
    return DE_OK;
}

void swap_key_close(struct swap_key *key)
{
    if (!key)
        return;
    if (!key->has_file)
        OPENSSL_cleanse(key, sizeof(*key));
    munmap(key, DE_PAGE_SIZE);
}

uint64_t swap_key_slots(const struct swap_key *key)
{
    return key->slots;
}

const uint8_t *swap_key_bytes(const struct swap_key *key)
{
    return key->key;
}

uint64_t swap_key_next_nonce(struct swap_key *key)
{
    return atomic_fetch_add(&key->nonce, 1);
}
