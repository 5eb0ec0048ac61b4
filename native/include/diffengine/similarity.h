/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file similarity.h
 * Finding pages that are similar: which earlier page should this one be patched against.
 *
 * Both detectors only propose; whether a patch pays is decided by encoding it. Both see pages in one fixed
 * order and never look at later ones, so results depend neither on batch sizes nor on threads. One thread at
 * a time per index.
 */
#ifndef DIFFENGINE_SIMILARITY_H
#define DIFFENGINE_SIMILARITY_H

#include <diffengine/page.h>

/**
 * The paper's page-similarity table (section 4.2): key -> the first `c` pages that had it.
 *
 * Keys come from de_digest_batch(). Entries are 8 bytes: 32 bits of the key and a page number.
 */
struct de_key_index;

/**
 * @param keys_expected Distinct keys to make room for; when more come, they are not indexed.
 * @param candidates    The paper's c, 1 .. 16.
 * @return DE_OK, DE_INVALID or DE_NO_MEMORY.
 */
int de_key_index_create(size_t keys_expected, unsigned candidates, struct de_key_index **index);
void de_key_index_free(struct de_key_index *index);
size_t de_key_index_bytes(const struct de_key_index *index);

/**
 * Look pages up, then enter them, one after the other. A page number is passed once.
 * @param keys  count * k keys of these pages; 0 is not indexed.
 * @param pages count page numbers.
 * @param[out] found count * k * c page numbers that share a key, each at most once per page; the rest is
 * DE_NONE.
 */
void de_key_index_pass(struct de_key_index *index, const uint64_t *keys, unsigned k, const uint32_t *pages,
                       size_t count, uint32_t *found);

/**
 * The shift-tolerant detector: content that moved inside its page still matches.
 *
 * Every 32-byte window at an 8-byte step is hashed; of these hashes one in DE_SHIFT_SAMPLING, chosen by value
 * so that equal content is chosen in every page, is a feature. Windows of one repeated word are passed over:
 * they match everything. The index remembers for each feature the last page that had it and was not itself
 * given a reference too deep; the page with most features in common is proposed, if there are at least
 * DE_SHIFT_MIN_COMMON.
 *
 * Measured on real guests: one hash in 64 finds 1 % fewer bytes than one in 32; proposals on a single common
 * feature make the result worse (a page that is given a poor reference can't be a good one for others), as do
 * smaller indexes.
 */
#define DE_SHIFT_SAMPLING 32u
#define DE_SHIFT_MAX_FEATURES 48u
#define DE_SHIFT_MIN_COMMON 2u

/** Features of a batch of pages; no state, any thread.
 * @param seed     Keys the hash, so that a guest can't aim at collisions.
 * @param[out] features count * DE_SHIFT_MAX_FEATURES; the first counts[i] of each page's are set.
 */
void de_shift_features(uint64_t seed, const uint8_t *const *pages, size_t count, uint32_t *features,
                       uint8_t *counts);

struct de_shift_index;

/**
 * @param memory_bytes Memory for the index, 4 bytes a slot; at least 4096. Some 32 bytes a page are well
 * spent.
 * @param max_depth    How long a chain of references may get, 0 (none) .. 3.
 * @return DE_OK, DE_INVALID or DE_NO_MEMORY.
 */
int de_shift_index_create(size_t memory_bytes, unsigned max_depth, struct de_shift_index **index);
void de_shift_index_free(struct de_shift_index *index);
size_t de_shift_index_bytes(const struct de_shift_index *index);

/**
 * Propose a reference for each page, in order, and enter it. A page number is passed once.
 * @param pages     count page numbers.
 * @param[in,out] depths Indexed by page number: written for these pages, read for earlier ones. 0 = no
 * reference.
 * @param[out] references count page numbers or DE_NONE.
 */
void de_shift_index_pass(struct de_shift_index *index, const uint32_t *features, const uint8_t *counts,
                         const uint32_t *pages, size_t count, uint8_t *depths, uint32_t *references);

#endif
