/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file digest.h
 * One pass over a batch of pages: is it filled with one word, what is its digest, what are its block keys.
 *
 * A digester is immutable once made, so any number of threads may use one at the same time.
 */
#ifndef DIFFENGINE_DIGEST_H
#define DIFFENGINE_DIGEST_H

#include <diffengine/page.h>
#include <stdbool.h>

/** What a page's content is, in one byte per page. */
enum de_page_kind {
    DE_PAGE_PLAIN = 0,
    DE_PAGE_ZERO = 1,
    DE_PAGE_SAME_FILLED = 2, /**< one non-zero 8-byte word repeated 512 times */
};

#define DE_DIGEST_MAX_KEYS 32u
#define DE_DIGEST_MAX_BLOCKS 64u /**< limit on k * s */
#define DE_BLOCK_SIZE 64u

struct de_digester;

/**
 * HashSimilarityDetector(k, s)'s sampling (section 4.2 of the paper) and the digest's seed.
 * @param seed Keys every hash and chooses the k*s block offsets (64-byte aligned, all different). Random per
 * run, so that a guest can't aim at collisions; equal seeds give equal results on every CPU.
 * @param k    Keys per page, 0 (no fingerprints at all) to DE_DIGEST_MAX_KEYS.
 * @param s    Block hashes per key; k * s <= DE_DIGEST_MAX_BLOCKS, s >= 1.
 * @param[out] digester Owned by the caller, freed with de_digester_free().
 * @return DE_OK, DE_INVALID (k or s out of range; nothing is written) or DE_NO_MEMORY.
 */
int de_digester_create(uint64_t seed, unsigned k, unsigned s, struct de_digester **digester);
void de_digester_free(struct de_digester *digester);

/**
 * Give keys with a block of a single repeated byte, too: such a block matches everything, so this is for
 * measuring what leaving them out brings. Before the digester's first use.
 */
void de_digester_index_uniform_blocks(struct de_digester *digester);

/** The k * s sampled offsets in bytes, in key order. Valid as long as the digester. */
const uint16_t *de_digester_offsets(const struct de_digester *digester);

/**
 * Digest @p count pages. The hash of a page is XXH3_64bits_withSecret() with a 192-byte secret that
 * XXH3_generateSecret() made of the seed's 8 bytes; that of a word or a block is XXH3_64bits_withSeed(); a
 * group's key is the same over the group's index and its s block hashes, as 64-bit words.
 *
 * @param[out] digests count seeded XXH3-64 hashes of whole pages. A zero page's digest is 0, a same-filled
 * page's is a hash of its word; a plain page's is never 0.
 * @param[out] kinds   count values of enum de_page_kind.
 * @param[out] keys    count * k 64-bit keys, page by page; 0 = "not to be indexed" (zero and same-filled
 * pages, and keys with a block of a single repeated byte, which match everything, unless
 * de_digester_index_uniform_blocks() was called). NULL to skip them.
 */
void de_digest_batch(const struct de_digester *digester, const uint8_t *const *pages, size_t count,
                     uint64_t *digests, uint8_t *kinds, uint64_t *keys);

/** Byte-for-byte equality of @p count pairs: equal[i] = (left[i] has right[i]'s 4096 bytes). */
void de_compare_batch(const uint8_t *const *left, const uint8_t *const *right, size_t count, bool *equal);

/** A 32-bit checksum of one page, as the store keeps it for every object. Unseeded: it guards against damage.
 */
uint32_t de_page_checksum(const uint8_t *page);

/** The name of the code path chosen on this CPU: "avx2" or "portable". */
const char *de_digest_path(void);

/** Use the portable path from now on (tests and benchmarks compare both). Not thread-safe. */
void de_digest_force_portable(bool force);

#endif
