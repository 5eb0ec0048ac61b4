/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file digest_loop.h
 * The digest's hot loop, written once and compiled twice: digest_portable.c and digest_avx2.c define
 * DE_DIGEST_LOOP_SUFFIX and include DE_DIGEST_LOOP_BODY. XXH3 and the compiler's vectoriser take the widest
 * instructions that each file is compiled for; XXH3 gives the same hash with all of them.
 */
#ifndef DIFFENGINE_CORE_DIGEST_LOOP_H
#define DIFFENGINE_CORE_DIGEST_LOOP_H

#include <diffengine/digest.h>

/** XXH3's own minimum is 136; with 192 it scrambles once per 1024 bytes, the layout it was tuned for. */
#define DE_DIGEST_SECRET_BYTES 192u

/** Everything the loop needs, made once: no hash derives a secret for itself. */
struct de_digester {
    _Alignas(64) uint8_t secret[DE_DIGEST_SECRET_BYTES];
    uint64_t seed;
    unsigned k;
    unsigned s;
    uint16_t offsets[DE_DIGEST_MAX_BLOCKS];
    bool uniform_blocks; /* keys with a block of one repeated byte are keys like others */
};

void digest_batch_portable(const struct de_digester *digester, const uint8_t *const *pages, size_t count,
                           uint64_t *digests, uint8_t *kinds, uint64_t *keys);
uint32_t page_checksum_portable(const uint8_t *page);

void digest_batch_avx2(const struct de_digester *digester, const uint8_t *const *pages, size_t count,
                       uint64_t *digests, uint8_t *kinds, uint64_t *keys);
uint32_t page_checksum_avx2(const uint8_t *page);

#endif

#ifdef DE_DIGEST_LOOP_SUFFIX

#include <stdbool.h>
#include <string.h>

/* Its own prefetches look ahead within the page, which is in the cache already: see digest_batch. */
#define XXH_NO_PREFETCH
#define XXH_INLINE_ALL
#include <xxhash.h>

#define DE_LOOP_JOIN_(name, suffix) name##_##suffix
#define DE_LOOP_JOIN(name, suffix) DE_LOOP_JOIN_(name, suffix)
#define DE_LOOP(name) DE_LOOP_JOIN(name, DE_DIGEST_LOOP_SUFFIX)

static inline uint64_t load_word(const uint8_t *bytes)
{
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

static inline bool chunk_is_filled(const uint8_t *chunk, uint64_t word)
{
    uint64_t difference = 0;
    for (unsigned offset = 0; offset < 256; offset += 8)
        difference |= load_word(chunk + offset) ^ word;
    return difference == 0;
}

/* Most plain pages leave at the first test; a zero page is read once and never hashed. */
static inline bool page_is_filled(const uint8_t *page, uint64_t word)
{
    if (load_word(page + 8) != word || load_word(page + DE_PAGE_SIZE - 8) != word)
        return false;
    for (unsigned offset = 0; offset < DE_PAGE_SIZE; offset += 256)
        if (!chunk_is_filled(page + offset, word))
            return false;
    return true;
}

static inline bool block_is_one_byte(const uint8_t *block)
{
    uint64_t word = load_word(block);
    if (word != (word >> 8 | word << 56))
        return false;
    uint64_t difference = 0;
    for (unsigned offset = 8; offset < DE_BLOCK_SIZE; offset += 8)
        difference |= load_word(block + offset) ^ word;
    return difference == 0;
}

/* 0 has a meaning of its own in digests and keys. */
static inline uint64_t never_zero(uint64_t hash)
{
    return hash + (hash == 0);
}

/* A group's key folds its index in, so that equal blocks at different groups' offsets do not meet. */
static inline uint64_t group_key(const struct de_digester *digester, const uint8_t *page, unsigned group)
{
    uint64_t hashes[1 + DE_DIGEST_MAX_BLOCKS];
    hashes[0] = group;
    for (unsigned i = 0; i < digester->s; i++) {
        const uint8_t *block = page + digester->offsets[group * digester->s + i];
        if (!digester->uniform_blocks && block_is_one_byte(block))
            return 0;
        hashes[1 + i] = XXH3_64bits_withSeed(block, DE_BLOCK_SIZE, digester->seed);
    }
    return never_zero(XXH3_64bits_withSeed(hashes, (1 + digester->s) * sizeof hashes[0], digester->seed));
}

static inline void prefetch_range(const uint8_t *page, unsigned first, unsigned end)
{
    for (unsigned offset = first; offset < end; offset += 64)
        __builtin_prefetch(page + offset);
}

/* To the second-level cache: the first level has no room for a third page. */
static inline void announce(const uint8_t *page)
{
    __builtin_prefetch(page, 0, 2);
    __builtin_prefetch(page + 64, 0, 2);
}

static inline enum de_page_kind digest_page(const struct de_digester *digester, const uint8_t *page,
                                            uint64_t *digest)
{
    uint64_t word = load_word(page);
    if (page_is_filled(page, word)) {
        *digest = word == 0 ? 0 : never_zero(XXH3_64bits_withSeed(&word, sizeof word, digester->seed));
        return word == 0 ? DE_PAGE_ZERO : DE_PAGE_SAME_FILLED;
    }
    *digest =
        never_zero(XXH3_64bits_withSecret(page, DE_PAGE_SIZE, digester->secret, sizeof digester->secret));
    return DE_PAGE_PLAIN;
}

/*
 * The next page is fetched while this one is worked on; the CPU's own prefetcher stops at page boundaries. In
 * two halves, as a whole page's 64 lines are more than a core's outstanding misses. Measured on cold memory
 * against a loop that only reads: 0.80 of its speed instead of 0.72 without on plain pages, 1.00 instead of
 * 0.87 where two thirds are zero; one prefetch before each stripe of the hash gave 0.76. Two lines of the
 * page after the next take 3 to 6 % off: its address is translated, and the CPU's own prefetcher is at work
 * on it, by the time that it is needed. What is left is a core's speed at reading 4-KiB frames: the same loop
 * on huge pages takes 13 % less.
 */
void DE_LOOP(digest_batch)(const struct de_digester *digester, const uint8_t *const *pages, size_t count,
                           uint64_t *digests, uint8_t *kinds, uint64_t *keys)
{
    unsigned k = digester->k;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *next = pages[i + 1 < count ? i + 1 : i];
        announce(pages[i + 2 < count ? i + 2 : i]);
        prefetch_range(next, 0, DE_PAGE_SIZE / 2);
        kinds[i] = (uint8_t)digest_page(digester, pages[i], &digests[i]);
        prefetch_range(next, DE_PAGE_SIZE / 2, DE_PAGE_SIZE);
        if (keys == NULL)
            continue;
        for (unsigned group = 0; group < k; group++)
            keys[i * k + group] = kinds[i] == DE_PAGE_PLAIN ? group_key(digester, pages[i], group) : 0;
    }
}

uint32_t DE_LOOP(page_checksum)(const uint8_t *page)
{
    return (uint32_t)XXH3_64bits(page, DE_PAGE_SIZE);
}

#endif
