/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The swap file itself: opening, slots, encryption, reading and writing. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "swap_key.h"
#include <diffengine/status.h>
#include <diffengine/store.h>
#include <diffengine/swap.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define IV_BYTES 12

enum swap_counter { READS, WRITES, READ_ERRORS, WRITE_ERRORS, CORRUPT, BAD, COUNTERS };

struct de_swap {
    int fd;
    bool direct;
    struct de_swap_disk disk;
    struct swap_key *key;
    pthread_mutex_t lock; /**< the slots; never held during I/O */
    uint64_t *taken;      /**< bitmap of slots */
    uint32_t slots, used, next;
    _Atomic uint64_t counters[COUNTERS];
};

struct de_swap_channel {
    struct de_swap *swap;
    EVP_CIPHER_CTX *cipher;
    uint8_t *pages;
    uint32_t *slots;
    size_t capacity, added;
};

static ssize_t disk_read(void *context, int fd, void *buffer, size_t bytes, int64_t offset)
{
    (void)context;
    return pread(fd, buffer, bytes, offset);
}

static ssize_t disk_write(void *context, int fd, const void *buffer, size_t bytes, int64_t offset)
{
    (void)context;
    return pwrite(fd, buffer, bytes, offset);
}

static const struct de_swap_disk real_disk = {.read = disk_read, .write = disk_write};

static void count(struct de_swap *swap, enum swap_counter counter, uint64_t by)
{
    atomic_fetch_add_explicit(&swap->counters[counter], by, memory_order_relaxed);
}

/* A file system that knows no O_DIRECT (tmpfs) says EINVAL. */
static int open_file(const char *path, bool *direct, bool *made)
{
    int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW;
    *made = false;
    for (*direct = true;; *direct = false) {
        int extra = *direct ? O_DIRECT : 0;
        int fd = open(path, flags | extra);
        if (fd < 0 && errno == ENOENT) {
            fd = open(path, flags | extra | O_CREAT | O_EXCL, 0600);
            /* With O_DIRECT refused the file may be there all the same. */
            *made = *made || fd >= 0 || errno == EINVAL;
        }
        if (fd >= 0 || errno != EINVAL || !*direct)
            return fd;
    }
}

/* Of the process, so that it goes however the process ends. */
static int lock_file(int fd)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_SETLK, &lock) == 0)
        return DE_OK;
    return errno == EACCES || errno == EAGAIN ? DE_BUSY : DE_SYSTEM;
}

static int size_file(int fd, uint64_t bytes)
{
    struct stat status;
    if (fstat(fd, &status))
        return DE_SYSTEM;
    if (S_ISBLK(status.st_mode)) {
        if (lseek(fd, 0, SEEK_END) >= (off_t)bytes)
            return DE_OK;
        errno = ENOSPC;
        return DE_SYSTEM;
    }
    if (!S_ISREG(status.st_mode)) {
        errno = EINVAL;
        return DE_SYSTEM;
    }
    if (fchmod(fd, 0600) || ((uint64_t)status.st_size > bytes && ftruncate(fd, (off_t)bytes)))
        return DE_SYSTEM;
    errno = posix_fallocate(fd, 0, (off_t)bytes);
    return errno ? DE_SYSTEM : DE_OK;
}

static int make_tables(struct de_swap *swap, uint32_t slots)
{
    swap->slots = slots;
    swap->taken = calloc(slots / 64 + 1, sizeof(uint64_t));
    return swap->taken ? DE_OK : DE_NO_MEMORY;
}

static int open_locked(struct de_swap *swap, const struct de_swap_options *options)
{
    int status = swap_key_open(options->key_path, options->bytes / DE_PAGE_SIZE, &swap->key);
    if (status == DE_OK)
        status = size_file(swap->fd, swap_key_slots(swap->key) * DE_PAGE_SIZE);
    if (status == DE_OK)
        status = make_tables(swap, (uint32_t)swap_key_slots(swap->key));
    return status;
}

int de_swap_open(const struct de_swap_options *options, struct de_swap **result)
{
    if (options->bytes < DE_PAGE_SIZE || options->bytes / DE_PAGE_SIZE > UINT32_MAX)
        return DE_INVALID;
    struct de_swap *swap = calloc(1, sizeof(*swap));
    if (!swap)
        return DE_NO_MEMORY;
    bool made = false;
    pthread_mutex_init(&swap->lock, NULL);
    swap->disk = options->disk ? *options->disk : real_disk;
    swap->fd = open_file(options->path, &swap->direct, &made);
    int status = swap->fd < 0 ? DE_SYSTEM : lock_file(swap->fd);
    if (status == DE_OK)
        status = open_locked(swap, options);
    if (status != DE_OK) {
        int error = errno;
        if (made)
            unlink(options->path);
        de_swap_close(swap);
        errno = error;
        return status;
    }
    *result = swap;
    return DE_OK;
}

void de_swap_close(struct de_swap *swap)
{
    if (!swap)
        return;
    if (swap->fd >= 0)
        close(swap->fd);
    swap_key_close(swap->key);
    pthread_mutex_destroy(&swap->lock);
    free(swap->taken);
    free(swap);
}

void de_swap_statistics(struct de_swap *swap, struct de_swap_statistics *statistics)
{
    pthread_mutex_lock(&swap->lock);
    *statistics = (struct de_swap_statistics){.slots = swap->slots, .used = swap->used};
    pthread_mutex_unlock(&swap->lock);
    statistics->bad = swap->counters[BAD];
    statistics->used -= statistics->bad < statistics->used ? statistics->bad : statistics->used;
    statistics->reads = swap->counters[READS];
    statistics->writes = swap->counters[WRITES];
    statistics->read_errors = swap->counters[READ_ERRORS];
    statistics->write_errors = swap->counters[WRITE_ERRORS];
    statistics->corrupt = swap->counters[CORRUPT];
    statistics->table_bytes = sizeof(*swap) + (swap->slots / 64 + 1) * sizeof(uint64_t) + DE_PAGE_SIZE;
}

int de_swap_mark(struct de_swap *swap, uint32_t slot)
{
    int status = DE_INVALID;
    pthread_mutex_lock(&swap->lock);
    if (slot < swap->slots && !(swap->taken[slot / 64] >> (slot % 64) & 1)) {
        swap->taken[slot / 64] |= (uint64_t)1 << (slot % 64);
        swap->used++;
        status = DE_OK;
    }
    pthread_mutex_unlock(&swap->lock);
    return status;
}

void de_swap_give(struct de_swap *swap, uint32_t slot)
{
    pthread_mutex_lock(&swap->lock);
    if (slot < swap->slots && swap->taken[slot / 64] >> (slot % 64) & 1) {
        swap->taken[slot / 64] &= ~((uint64_t)1 << (slot % 64));
        swap->used--;
    }
    pthread_mutex_unlock(&swap->lock);
}

/* The next free slot behind the last one taken: what is written together lies together. */
static bool take_slot(struct de_swap *swap, uint32_t *slot)
{
    bool found = false;
    pthread_mutex_lock(&swap->lock);
    uint32_t words = swap->slots / 64 + 1;
    for (uint32_t i = 0; i <= words && swap->used < swap->slots && !found; i++) {
        uint32_t word = (swap->next / 64 + i) % words;
        uint64_t unusable = swap->taken[word];
        if (i == 0)
            unusable |= ((uint64_t)1 << (swap->next % 64)) - 1;
        if (!~unusable)
            continue;
        *slot = word * 64 + (uint32_t)__builtin_ctzll(~unusable);
        found = *slot < swap->slots;
    }
    if (found) {
        swap->taken[*slot / 64] |= (uint64_t)1 << (*slot % 64);
        swap->used++;
        swap->next = (*slot + 1) % swap->slots;
    }
    pthread_mutex_unlock(&swap->lock);
    return found;
}

int de_swap_channel_create(struct de_swap *swap, size_t pages, struct de_swap_channel **result)
{
    struct de_swap_channel *channel = calloc(1, sizeof(*channel));
    if (!channel)
        return DE_NO_MEMORY;
    *channel = (struct de_swap_channel){.swap = swap, .capacity = pages};
    channel->cipher = EVP_CIPHER_CTX_new();
    channel->pages = aligned_alloc(DE_PAGE_SIZE, pages * DE_PAGE_SIZE);
    channel->slots = malloc(pages * sizeof(*channel->slots));
    /* Fetches the cipher now, which allocates; later calls only change key and nonce. */
    if (!channel->cipher || !channel->pages || !channel->slots ||
        EVP_CipherInit_ex(channel->cipher, EVP_aes_256_gcm(), NULL, swap_key_bytes(swap->key), NULL, 1) !=
            1) {
        de_swap_channel_free(channel);
        return DE_NO_MEMORY;
    }
    *result = channel;
    return DE_OK;
}

void de_swap_channel_free(struct de_swap_channel *channel)
{
    if (!channel)
        return;
    EVP_CIPHER_CTX_free(channel->cipher);
    free(channel->pages);
    free(channel->slots);
    free(channel);
}

uint8_t *de_swap_channel_page(struct de_swap_channel *channel, size_t index)
{
    return channel->pages + index * DE_PAGE_SIZE;
}

static bool start_cipher(struct de_swap_channel *channel, const struct de_swap_place *place, bool encrypt)
{
    uint8_t iv[IV_BYTES] = {0};
    memcpy(iv, &place->nonce, sizeof(place->nonce));
    return EVP_CipherInit_ex(channel->cipher, NULL, NULL, NULL, iv, encrypt) == 1;
}

static bool encrypt(struct de_swap_channel *channel, const uint8_t *payload, struct de_swap_place *place,
                    uint8_t *page)
{
    int length = 0;
    return start_cipher(channel, place, true) &&
           EVP_CipherUpdate(channel->cipher, page, &length, payload, place->payload_bytes) == 1 &&
           EVP_CipherFinal_ex(channel->cipher, page + length, &length) == 1 &&
           EVP_CIPHER_CTX_ctrl(channel->cipher, EVP_CTRL_AEAD_GET_TAG, sizeof(place->tag), place->tag) == 1;
}

/* In place. */
static bool decrypt(struct de_swap_channel *channel, const struct de_swap_place *place, uint8_t *page)
{
    int length = 0;
    uint8_t tag[sizeof(place->tag)];
    memcpy(tag, place->tag, sizeof(tag));
    return start_cipher(channel, place, false) &&
           EVP_CipherUpdate(channel->cipher, page, &length, page, place->payload_bytes) == 1 &&
           EVP_CIPHER_CTX_ctrl(channel->cipher, EVP_CTRL_AEAD_SET_TAG, sizeof(tag), tag) == 1 &&
           EVP_CipherFinal_ex(channel->cipher, page + length, &length) == 1;
}

int de_swap_add(struct de_swap_channel *channel, const uint8_t *payload, uint32_t payload_bytes,
                uint8_t encoding, struct de_swap_place *place)
{
    if (channel->added == channel->capacity || !payload_bytes || payload_bytes > DE_PAGE_SIZE)
        return DE_INVALID;
    uint32_t slot;
    if (!take_slot(channel->swap, &slot))
        return DE_FULL;
    *place = (struct de_swap_place){
        .slot = slot,
        .payload_bytes = (uint16_t)payload_bytes,
        .encoding = encoding,
        .nonce = swap_key_next_nonce(channel->swap->key),
    };
    uint8_t *page = de_swap_channel_page(channel, channel->added);
    memset(page + payload_bytes, 0, DE_PAGE_SIZE - payload_bytes);
    if (!encrypt(channel, payload, place, page)) {
        de_swap_give(channel->swap, slot);
        return DE_INVALID;
    }
    channel->slots[channel->added++] = slot;
    return DE_OK;
}

static bool transfer(struct de_swap *swap, bool write, uint8_t *pages, size_t bytes, uint32_t slot)
{
    int64_t offset = (int64_t)slot * DE_PAGE_SIZE;
    for (size_t done = 0; done < bytes;) {
        ssize_t moved =
            write ? swap->disk.write(swap->disk.context, swap->fd, pages + done, bytes - done, offset)
                  : swap->disk.read(swap->disk.context, swap->fd, pages + done, bytes - done, offset);
        if (moved < 0 && errno == EINTR)
            continue;
        if (moved <= 0) {
            errno = moved ? errno : EIO;
            return false;
        }
        done += (size_t)moved;
        offset += moved;
    }
    return true;
}

size_t de_swap_flush(struct de_swap_channel *channel, int *statuses)
{
    struct de_swap *swap = channel->swap;
    for (size_t first = 0, end; first < channel->added; first = end) {
        for (end = first + 1;
             end < channel->added && channel->slots[end] == channel->slots[first] + (end - first);)
            end++;
        bool written = transfer(swap, true, de_swap_channel_page(channel, first),
                                (end - first) * DE_PAGE_SIZE, channel->slots[first]);
        for (size_t i = first; i < end; i++)
            statuses[i] = written ? DE_OK : DE_SYSTEM;
        count(swap, written ? WRITES : WRITE_ERRORS, end - first);
        count(swap, BAD, written ? 0 : end - first);
    }
    size_t added = channel->added;
    channel->added = 0;
    if (!swap->direct && added) {
        bool synced = fdatasync(swap->fd) == 0;
        for (size_t i = 0; i < added && !synced; i++)
            statuses[i] = DE_SYSTEM;
        posix_fadvise(swap->fd, 0, 0, POSIX_FADV_DONTNEED);
    }
    return added;
}

int de_swap_read(struct de_swap_channel *channel, const struct de_swap_place *place, size_t index)
{
    struct de_swap *swap = channel->swap;
    uint8_t *page = de_swap_channel_page(channel, index);
    if (place->slot >= swap->slots || !place->payload_bytes || place->payload_bytes > DE_PAGE_SIZE)
        return DE_CORRUPT;
    count(swap, READS, 1);
    if (!transfer(swap, false, page, DE_PAGE_SIZE, place->slot)) {
        count(swap, READ_ERRORS, 1);
        return DE_SYSTEM;
    }
    if (!swap->direct)
        posix_fadvise(swap->fd, (off_t)place->slot * DE_PAGE_SIZE, DE_PAGE_SIZE, POSIX_FADV_DONTNEED);
    if (decrypt(channel, place, page))
        return DE_OK;
    count(swap, CORRUPT, 1);
    return DE_CORRUPT;
}
