/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "cpu.h"
#include "digest_loop.h"

#include <diffengine/status.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

/* The one switch of the library, for tests and benchmarks that compare the two paths. */
static atomic_bool portable_forced;

static bool use_avx2(void)
{
    return cpu_has_avx2() && !atomic_load_explicit(&portable_forced, memory_order_relaxed);
}

/* splitmix64 (Steele, Lea and Flood 2014): equal seeds choose equal offsets on every machine. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* The first k*s of a random permutation of the page's 64 blocks (Fisher-Yates): all different. */
static void choose_offsets(struct de_digester *digester)
{
    uint16_t blocks[DE_DIGEST_MAX_BLOCKS];
    for (unsigned i = 0; i < DE_DIGEST_MAX_BLOCKS; i++)
        blocks[i] = (uint16_t)(i * DE_BLOCK_SIZE);
    uint64_t state = digester->seed;
    for (unsigned i = 0; i < digester->k * digester->s; i++) {
        unsigned left = DE_DIGEST_MAX_BLOCKS - i;
        unsigned chosen = i + (unsigned)(((next_random(&state) >> 32) * left) >> 32);
        digester->offsets[i] = blocks[chosen];
        blocks[chosen] = blocks[i];
    }
}

static bool sampling_is_valid(unsigned k, unsigned s)
{
    return k <= DE_DIGEST_MAX_KEYS && s >= 1 && s <= DE_DIGEST_MAX_BLOCKS && k * s <= DE_DIGEST_MAX_BLOCKS;
}

int de_digester_create(uint64_t seed, unsigned k, unsigned s, struct de_digester **digester)
{
    if (!sampling_is_valid(k, s))
        return DE_INVALID;
    struct de_digester *made = aligned_alloc(_Alignof(struct de_digester), sizeof *made);
    if (made == NULL)
        return DE_NO_MEMORY;
    *made = (struct de_digester){.seed = seed, .k = k, .s = s};
    /* A secret of its own, not the public one shifted by the seed: all its words are unknown to a guest. */
    if (XXH3_generateSecret(made->secret, sizeof made->secret, &seed, sizeof seed) != XXH_OK) {
        free(made);
        return DE_INVALID;
    }
    choose_offsets(made);
    *digester = made;
    return DE_OK;
}

void de_digester_free(struct de_digester *digester)
{
    free(digester);
}

void de_digester_index_uniform_blocks(struct de_digester *digester)
{
    digester->uniform_blocks = true;
}

const uint16_t *de_digester_offsets(const struct de_digester *digester)
{
    return digester->offsets;
}

void de_digest_batch(const struct de_digester *digester, const uint8_t *const *pages, size_t count,
                     uint64_t *digests, uint8_t *kinds, uint64_t *keys)
{
#if DE_HAVE_AVX2_BUILD
    if (use_avx2()) {
        digest_batch_avx2(digester, pages, count, digests, kinds, keys);
        return;
    }
#endif
    digest_batch_portable(digester, pages, count, digests, kinds, keys);
}

void de_compare_batch(const uint8_t *const *left, const uint8_t *const *right, size_t count, bool *equal)
{
    for (size_t i = 0; i < count; i++)
        equal[i] =
            memcmp(left[i], right[i], DE_PAGE_SIZE) == 0; /* the C library's is vectorised for this CPU */
}

uint32_t de_page_checksum(const uint8_t *page)
{
#if DE_HAVE_AVX2_BUILD
    if (use_avx2())
        return page_checksum_avx2(page);
#endif
    return page_checksum_portable(page);
}

const char *de_digest_path(void)
{
    return use_avx2() ? "avx2" : "portable";
}

void de_digest_force_portable(bool force)
{
    atomic_store_explicit(&portable_forced, force, memory_order_relaxed);
}
