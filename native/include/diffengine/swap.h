/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file swap.h
 * The swap file: slots of one page each, into which the store moves payloads that are not to take memory.
 *
 * What guests have in memory is secret, so every slot is encrypted (AES-256-GCM) under a key that is made at
 * random with the file and lives in locked memory only: after a reboot the file is noise. GCM's tag is the
 * slot's checksum, too: it is kept with the object (struct de_swap_place), so a slot that was damaged,
 * exchanged or left over from an earlier use is found out. A nonce is never used twice under one key.
 *
 * The file is written past the page cache where the file system can (O_DIRECT): cached, a swapped page would
 * go on taking memory. Elsewhere each batch is synced before it counts, and the cache told to drop it.
 */
#ifndef DIFFENGINE_SWAP_H
#define DIFFENGINE_SWAP_H

#include <diffengine/page.h>
#include <sys/types.h>

struct de_swap;
struct de_swap_channel;

/** The disk as tests replace it. Results and errno as pread() and pwrite(). */
struct de_swap_disk {
    void *context;
    ssize_t (*read)(void *context, int fd, void *buffer, size_t bytes, int64_t offset);
    ssize_t (*write)(void *context, int fd, const void *buffer, size_t bytes, int64_t offset);
};

struct de_swap_options {
    const char *path; /**< a file of ours, or one to make (0600); its content is lost */
    uint64_t bytes;   /**< rounded down to pages; all of it is allocated at once, so it can't run out later */
    /**
     * Where the key is kept for a successor: a file on a tmpfs that only root can read. If it is there, the
     * slots in use at that time can be read again, and its size counts, not @p bytes. NULL: the key goes with
     * the process.
     */
    const char *key_path;
    const struct de_swap_disk *disk; /**< NULL: the real one. Outlives the swap. */
};

/** Where a payload is, and all that is needed to know that it is still the same. Stored in the store's file.
 */
struct de_swap_place {
    uint32_t slot;
    uint16_t payload_bytes;
    uint8_t encoding; /**< enum de_encoding of the payload */
    uint8_t reserved; /**< 0 */
    uint64_t nonce;
    uint8_t tag[16];
};

struct de_swap_statistics {
    uint64_t slots;
    uint64_t used;
    uint64_t bad;           /**< slots that could not be written and are not used again */
    uint64_t reads, writes; /**< of slots */
    uint64_t read_errors, write_errors;
    uint64_t corrupt; /**< slots that did not hold what they should */
    uint64_t table_bytes;
};

/**
 * @return DE_OK, DE_INVALID (less than a page, more than 2^32 - 1), DE_BUSY (another process uses the file),
 * DE_NO_MEMORY, DE_CORRUPT (the key file is none, or not of this swap file) or DE_SYSTEM (errno; ENOSPC: no
 * room for the file, which then is not left behind).
 */
int de_swap_open(const struct de_swap_options *options, struct de_swap **swap);
/** No channel may be left. The file and the key file stay. */
void de_swap_close(struct de_swap *swap);
/** Any thread. */
void de_swap_statistics(struct de_swap *swap, struct de_swap_statistics *statistics);

/** A slot is in use already (after a takeover). @return DE_OK or DE_INVALID (no such slot, or it was). */
int de_swap_mark(struct de_swap *swap, uint32_t slot);
/** Give a slot back. Any thread. */
void de_swap_give(struct de_swap *swap, uint32_t slot);

/** What one thread needs to read and write: buffers of @p pages pages and a cipher. DE_OK or DE_NO_MEMORY. */
int de_swap_channel_create(struct de_swap *swap, size_t pages, struct de_swap_channel **channel);
void de_swap_channel_free(struct de_swap_channel *channel);
/** The pages of its buffer, each aligned as the disk wants it. */
uint8_t *de_swap_channel_page(struct de_swap_channel *channel, size_t index);

/**
 * Encrypt a payload into the channel's next page and choose its slot. @return DE_OK, DE_FULL (no free slot)
 * or DE_INVALID (the channel is full: flush it; or the payload's size).
 */
int de_swap_add(struct de_swap_channel *channel, const uint8_t *payload, uint32_t payload_bytes,
                uint8_t encoding, struct de_swap_place *place);
/**
 * Write what was added. @param[out] statuses Per payload added: DE_OK: it is on the disk; DE_SYSTEM: it is
 * not, and its slot is never used again. @return how many there were.
 */
size_t de_swap_flush(struct de_swap_channel *channel, int *statuses);

/**
 * Read a payload into the channel's page @p index. @return DE_OK, DE_SYSTEM (the disk; errno) or DE_CORRUPT.
 */
int de_swap_read(struct de_swap_channel *channel, const struct de_swap_place *place, size_t index);

#endif
