/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file swap_key.h
 * The swap file's key and nonce counter, in locked memory; in a file on a tmpfs if a successor is to have
 * them.
 */
#ifndef DIFFENGINE_STORE_SWAP_KEY_H
#define DIFFENGINE_STORE_SWAP_KEY_H

#include <stdint.h>

#define SWAP_KEY_BYTES 32

struct swap_key;

/**
 * Take over the key at @p path, or make one (also if @p path is NULL). @return DE_OK, DE_CORRUPT (not a key),
 * DE_NO_MEMORY or DE_SYSTEM.
 */
int swap_key_open(const char *path, uint64_t slots, struct swap_key **key);
/** A key without file is erased. */
void swap_key_close(struct swap_key *key);
uint64_t swap_key_slots(const struct swap_key *key);
const uint8_t *swap_key_bytes(const struct swap_key *key);
/** A number that this key never had, not even in a process that died before it used it. Any thread. */
uint64_t swap_key_next_nonce(struct swap_key *key);

#endif
