/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The digest against XXH3 as libxxhash itself computes it, on both code paths. */
#define RANDOM_SEED 0x2545f4914f6cdd1d
#include "check.h"
#include "random.h"

#include <diffengine/digest.h>
#include <diffengine/status.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#define XXH_STATIC_LINKING_ONLY /* XXH3_generateSecret */
#include <xxhash.h>

#define SECRET_BYTES 192u
#define BATCH 48u

static void fill_with_word(uint8_t *page, uint64_t word)
{
    for (unsigned offset = 0; offset < DE_PAGE_SIZE; offset += 8)
        memcpy(page + offset, &word, 8);
}

/* Pages around every decision of the digest: filled ones, filled but for one byte, runs of one byte, plain.
 */
static void make_page(uint8_t *page)
{
    switch (random_below(7)) {
    case 0:
        fill_with_word(page, 0);
        break;
    case 1:
        fill_with_word(page, random_word());
        break;
    case 2: /* one byte repeated: a same-filled page, too */
        fill_with_word(page, 0x0101010101010101u * random_below(256));
        break;
    case 3:
        fill_with_word(page, random_below(2) ? 0 : random_word());
        page[random_below(DE_PAGE_SIZE)] ^= (uint8_t)(1 + random_below(255));
        break;
    case 4: /* periods that are not a word's */
        for (unsigned offset = 0, period = 1 + random_below(40); offset < DE_PAGE_SIZE; offset++)
            page[offset] = (uint8_t)(offset % period);
        break;
    case 5:
        fill_at_random(page, DE_PAGE_SIZE);
        for (unsigned i = random_below(64); i > 0; i--)
            memset(page + DE_BLOCK_SIZE * random_below(64), (int)random_below(256), DE_BLOCK_SIZE);
        break;
    default:
        fill_at_random(page, DE_PAGE_SIZE);
    }
}

struct result {
    uint64_t digests[BATCH];
    uint64_t keys[BATCH * DE_DIGEST_MAX_KEYS];
    uint8_t kinds[BATCH];
};

static struct result digest(const struct de_digester *digester, const uint8_t *const *pages, unsigned count,
                            bool portable)
{
    struct result result;
    memset(&result, 0xa5, sizeof result);
    de_digest_force_portable(portable);
    de_digest_batch(digester, pages, count, result.digests, result.kinds, result.keys);
    de_digest_force_portable(false);
    return result;
}

static enum de_page_kind expected_kind(const uint8_t *page)
{
    static const uint8_t zero[DE_PAGE_SIZE];
    if (memcmp(page, zero, DE_PAGE_SIZE) == 0)
        return DE_PAGE_ZERO;
    return memcmp(page, page + 8, DE_PAGE_SIZE - 8) == 0 ? DE_PAGE_SAME_FILLED : DE_PAGE_PLAIN;
}

static uint64_t expected_digest(const uint8_t *page, uint64_t seed)
{
    uint8_t secret[SECRET_BYTES];
    switch (expected_kind(page)) {
    case DE_PAGE_ZERO:
        return 0;
    case DE_PAGE_SAME_FILLED:
        return XXH3_64bits_withSeed(page, 8, seed);
    default:
        CHECK(XXH3_generateSecret(secret, sizeof secret, &seed, sizeof seed) == XXH_OK);
        return XXH3_64bits_withSecret(page, DE_PAGE_SIZE, secret, sizeof secret);
    }
}

static bool is_one_byte(const uint8_t *block)
{
    return memcmp(block, block + 1, DE_BLOCK_SIZE - 1) == 0;
}

static uint64_t expected_key(const uint8_t *page, const uint16_t *offsets, unsigned group, unsigned s,
                             uint64_t seed)
{
    uint64_t hashes[1 + DE_DIGEST_MAX_BLOCKS] = {group};
    if (expected_kind(page) != DE_PAGE_PLAIN)
        return 0;
    for (unsigned i = 0; i < s; i++) {
        const uint8_t *block = page + offsets[group * s + i];
        if (is_one_byte(block))
            return 0;
        hashes[1 + i] = XXH3_64bits_withSeed(block, DE_BLOCK_SIZE, seed);
    }
    return XXH3_64bits_withSeed(hashes, (1 + s) * sizeof hashes[0], seed);
}

/* Each page in an allocation of its own, so that a sanitizer sees a read past its end; at any alignment. */
struct pages {
    uint8_t *allocated[BATCH];
    uint8_t *pages[BATCH];
};

static void make_pages(struct pages *pages)
{
    for (unsigned i = 0; i < BATCH; i++) {
        unsigned shift = random_below(65);
        pages->allocated[i] = malloc(shift + DE_PAGE_SIZE);
        CHECK(pages->allocated[i] != NULL);
        pages->pages[i] = pages->allocated[i] + shift;
        make_page(pages->pages[i]);
    }
}

static void free_pages(struct pages *pages)
{
    for (unsigned i = 0; i < BATCH; i++)
        free(pages->allocated[i]);
}

static const uint8_t *const *addresses(const struct pages *pages)
{
    return (const uint8_t *const *)pages->pages;
}

static struct de_digester *make_digester(uint64_t seed, unsigned k, unsigned s)
{
    struct de_digester *digester = NULL;
    CHECK_EQ(de_digester_create(seed, k, s, &digester), DE_OK);
    CHECK(digester != NULL);
    return digester;
}

static void check_result(const struct result *result, const struct pages *pages, uint64_t seed, unsigned k,
                         unsigned s, const uint16_t *offsets)
{
    for (unsigned i = 0; i < BATCH; i++) {
        CHECK_EQ(result->kinds[i], expected_kind(pages->pages[i]));
        CHECK_EQ(result->digests[i], expected_digest(pages->pages[i], seed));
        CHECK(result->kinds[i] != DE_PAGE_PLAIN || result->digests[i] != 0);
        for (unsigned group = 0; group < k; group++)
            CHECK_EQ(result->keys[i * k + group], expected_key(pages->pages[i], offsets, group, s, seed));
    }
    for (unsigned i = BATCH * k; i < BATCH * DE_DIGEST_MAX_KEYS; i++)
        CHECK_EQ(result->keys[i], 0xa5a5a5a5a5a5a5a5u);
}

static void test_matches_libxxhash_on_both_paths(void)
{
    bool seen[3] = {false};
    for (unsigned round = 0; round < 60; round++) {
        unsigned s = 1 + random_below(6);
        unsigned limit =
            DE_DIGEST_MAX_BLOCKS / s < DE_DIGEST_MAX_KEYS ? DE_DIGEST_MAX_BLOCKS / s : DE_DIGEST_MAX_KEYS;
        unsigned k = random_below(limit + 1);
        uint64_t seed = round == 0 ? 0 : random_word();
        struct de_digester *digester = make_digester(seed, k, s);
        struct pages pages;
        make_pages(&pages);
        struct result fast = digest(digester, addresses(&pages), BATCH, false);
        struct result portable = digest(digester, addresses(&pages), BATCH, true);
        check_result(&fast, &pages, seed, k, s, de_digester_offsets(digester));
        CHECK(memcmp(&fast, &portable, sizeof fast) == 0);
        for (unsigned i = 0; i < BATCH; i++)
            seen[fast.kinds[i]] = true;
        free_pages(&pages);
        de_digester_free(digester);
    }
    CHECK(seen[DE_PAGE_PLAIN] && seen[DE_PAGE_ZERO] && seen[DE_PAGE_SAME_FILLED]);
}

/* Whatever single byte differs, the page is not taken for a filled one. */
static void test_one_byte_anywhere_makes_a_plain_page(void)
{
    uint8_t page[DE_PAGE_SIZE];
    const uint8_t *address = page;
    struct de_digester *digester = make_digester(7, 2, 1);
    for (unsigned i = 0; i < DE_PAGE_SIZE; i++) {
        fill_with_word(page, i % 2 ? 0 : 0x1122334455667788u);
        page[i] ^= 0x80;
        for (unsigned portable = 0; portable < 2; portable++)
            CHECK_EQ(digest(digester, &address, 1, portable).kinds[0], DE_PAGE_PLAIN);
    }
    de_digester_free(digester);
}

/* Only a block of nothing but one byte has no key: one other byte, wherever, gives it one. */
static void test_one_byte_anywhere_makes_a_block_indexed(void)
{
    uint8_t page[DE_PAGE_SIZE];
    const uint8_t *address = page;
    struct de_digester *digester = make_digester(9, 1, 1);
    uint8_t *block = page + de_digester_offsets(digester)[0];
    for (unsigned i = 0; i < DE_BLOCK_SIZE; i++) {
        fill_at_random(page, DE_PAGE_SIZE);
        memset(block, (int)i, DE_BLOCK_SIZE);
        for (unsigned portable = 0; portable < 2; portable++)
            CHECK_EQ(digest(digester, &address, 1, portable).keys[0], 0);
        block[i] ^= 1;
        for (unsigned portable = 0; portable < 2; portable++)
            CHECK(digest(digester, &address, 1, portable).keys[0] != 0);
    }
    de_digester_free(digester);
}

static void test_any_batching_gives_the_same(void)
{
    struct de_digester *digester = make_digester(random_word(), 3, 2);
    struct pages pages;
    make_pages(&pages);
    struct result whole = digest(digester, addresses(&pages), BATCH, false);
    for (unsigned round = 0; round < 50; round++) {
        struct result parts;
        memset(&parts, 0xa5, sizeof parts);
        for (unsigned first = 0, count; first < BATCH; first += count) {
            count = random_below(BATCH - first + 1);
            de_digest_batch(digester, addresses(&pages) + first, count, parts.digests + first,
                            parts.kinds + first, parts.keys + first * 3);
        }
        CHECK(memcmp(&whole, &parts, sizeof whole) == 0);
    }
    free_pages(&pages);
    de_digester_free(digester);
}

static void test_keys_may_be_left_out(void)
{
    struct de_digester *digester = make_digester(11, 4, 2);
    struct pages pages;
    make_pages(&pages);
    struct result with_keys = digest(digester, addresses(&pages), BATCH, false);
    uint64_t digests[BATCH];
    uint8_t kinds[BATCH];
    de_digest_batch(digester, addresses(&pages), BATCH, digests, kinds, NULL);
    CHECK(memcmp(digests, with_keys.digests, sizeof digests) == 0);
    CHECK(memcmp(kinds, with_keys.kinds, sizeof kinds) == 0);
    free_pages(&pages);
    de_digester_free(digester);
}

/* Two pages meet on a key if and only if they agree on the blocks of that key's group. */
static void test_a_key_depends_on_its_blocks_only(void)
{
    uint8_t left[DE_PAGE_SIZE], right[DE_PAGE_SIZE];
    const uint8_t *both[] = {left, right};
    for (unsigned round = 0; round < 200; round++) {
        struct de_digester *digester = make_digester(random_word(), 4, 2);
        const uint16_t *offsets = de_digester_offsets(digester);
        fill_at_random(left, DE_PAGE_SIZE);
        memcpy(right, left, sizeof right);
        unsigned changed = random_below(DE_PAGE_SIZE);
        right[changed] ^= 1;
        struct result result = digest(digester, both, 2, false);
        CHECK(result.digests[0] != result.digests[1]);
        for (unsigned group = 0; group < 4; group++) {
            bool touched = offsets[group * 2] / DE_BLOCK_SIZE == changed / DE_BLOCK_SIZE ||
                           offsets[group * 2 + 1] / DE_BLOCK_SIZE == changed / DE_BLOCK_SIZE;
            CHECK_EQ(result.keys[group] != result.keys[4 + group], touched);
        }
        de_digester_free(digester);
    }
}

static void test_offsets_are_aligned_different_and_seeded(void)
{
    unsigned chosen[DE_DIGEST_MAX_BLOCKS] = {0};
    for (unsigned seed = 0; seed < 3000; seed++) {
        struct de_digester *digester = make_digester(seed, 2, 4);
        struct de_digester *twin = make_digester(seed, 2, 4);
        const uint16_t *offsets = de_digester_offsets(digester);
        bool used[DE_DIGEST_MAX_BLOCKS] = {false};
        for (unsigned i = 0; i < 8; i++) {
            CHECK(offsets[i] % DE_BLOCK_SIZE == 0 && offsets[i] < DE_PAGE_SIZE);
            CHECK(!used[offsets[i] / DE_BLOCK_SIZE]);
            used[offsets[i] / DE_BLOCK_SIZE] = true;
            chosen[offsets[i] / DE_BLOCK_SIZE]++;
            CHECK_EQ(offsets[i], de_digester_offsets(twin)[i]);
        }
        de_digester_free(digester);
        de_digester_free(twin);
    }
    for (unsigned block = 0; block < DE_DIGEST_MAX_BLOCKS; block++) /* 375 expected, 18 is one sigma */
        CHECK(chosen[block] > 275 && chosen[block] < 475);
    struct de_digester *all = make_digester(1, 32, 2);
    unsigned sum = 0;
    for (unsigned i = 0; i < 64; i++)
        sum += de_digester_offsets(all)[i];
    CHECK_EQ(sum, 64 * 63 / 2 * DE_BLOCK_SIZE);
    de_digester_free(all);
}

static void test_sampling_is_checked(void)
{
    struct de_digester *digester = NULL;
    CHECK_EQ(de_digester_create(1, 33, 1, &digester), DE_INVALID);
    CHECK_EQ(de_digester_create(1, 2, 0, &digester), DE_INVALID);
    CHECK_EQ(de_digester_create(1, 32, 3, &digester), DE_INVALID);
    CHECK_EQ(de_digester_create(1, 0, 65, &digester), DE_INVALID);
    CHECK_EQ(de_digester_create(1, 2, UINT32_MAX, &digester), DE_INVALID);
    CHECK_EQ(de_digester_create(1, UINT32_MAX, 2, &digester), DE_INVALID);
    CHECK(digester == NULL);
    de_digester_free(NULL);
}

static void test_checksum_is_the_unseeded_hash(void)
{
    struct pages pages;
    make_pages(&pages);
    for (unsigned i = 0; i < BATCH; i++)
        for (unsigned portable = 0; portable < 2; portable++) {
            de_digest_force_portable(portable);
            CHECK_EQ(de_page_checksum(pages.pages[i]), (uint32_t)XXH3_64bits(pages.pages[i], DE_PAGE_SIZE));
        }
    de_digest_force_portable(false);
    free_pages(&pages);
}

static void test_compare(void)
{
    struct pages left, right;
    bool equal[BATCH], expected[BATCH];
    make_pages(&left);
    make_pages(&right);
    for (unsigned i = 0; i < BATCH; i++) {
        memcpy(right.pages[i], left.pages[i], DE_PAGE_SIZE);
        expected[i] = random_below(2);
        if (!expected[i])
            right.pages[i][random_below(DE_PAGE_SIZE)] ^= (uint8_t)(1 + random_below(255));
    }
    de_compare_batch(addresses(&left), addresses(&right), BATCH, equal);
    CHECK(memcmp(equal, expected, sizeof equal) == 0);
    free_pages(&left);
    free_pages(&right);
}

static void test_path_is_named(void)
{
    de_digest_force_portable(true);
    CHECK(strcmp(de_digest_path(), "portable") == 0);
    de_digest_force_portable(false);
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
#else
    bool avx2 = false;
#endif
    CHECK(strcmp(de_digest_path(), avx2 ? "avx2" : "portable") == 0);
}

struct shared_digester {
    const struct de_digester *digester;
    const struct pages *pages;
    const struct result *expected;
};

static void *digest_often(void *argument)
{
    const struct shared_digester *shared = argument;
    for (unsigned round = 0; round < 100; round++) {
        struct result result;
        memset(&result, 0xa5, sizeof result);
        de_digest_batch(shared->digester, addresses(shared->pages), BATCH, result.digests, result.kinds,
                        result.keys);
        CHECK(memcmp(&result, shared->expected, sizeof result) == 0);
    }
    return NULL;
}

static void test_threads_share_a_digester(void)
{
    struct de_digester *digester = make_digester(5, 2, 1);
    struct pages pages;
    make_pages(&pages);
    struct result expected = digest(digester, addresses(&pages), BATCH, false);
    struct shared_digester shared = {digester, &pages, &expected};
    pthread_t threads[4];
    for (unsigned i = 0; i < 4; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, digest_often, &shared), 0);
    for (unsigned i = 0; i < 4; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    free_pages(&pages);
    de_digester_free(digester);
}

int main(void)
{
    test_matches_libxxhash_on_both_paths();
    test_one_byte_anywhere_makes_a_plain_page();
    test_one_byte_anywhere_makes_a_block_indexed();
    test_any_batching_gives_the_same();
    test_keys_may_be_left_out();
    test_a_key_depends_on_its_blocks_only();
    test_offsets_are_aligned_different_and_seeded();
    test_sampling_is_checked();
    test_checksum_is_the_unseeded_hash();
    test_compare();
    test_path_is_named();
    test_threads_share_a_digester();
    return 0;
}
