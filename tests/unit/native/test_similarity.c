/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Both detectors against the plainest oracle: lists that are searched from the front. */
#define RANDOM_SEED 0x853c49e6748fea9b
#include "check.h"
#include "random.h"

#include <diffengine/similarity.h>
#include <diffengine/status.h>
#include <stdbool.h>
#include <string.h>

enum {
    MAX_K = 4,
    MAX_C = 16,
    MANY = 4000,
    SHIFT_PAGES = 600,
};

static void *allocate(size_t bytes)
{
    void *memory = malloc(bytes ? bytes : 1);
    CHECK(memory != NULL);
    return memory;
}

/* What the key index is: for each key, the first c pages that had it. */
struct key_oracle {
    uint64_t keys[MANY * MAX_K];
    uint32_t pages[MANY * MAX_K][MAX_C];
    unsigned page_counts[MANY * MAX_K];
    size_t count;
};

static bool listed(const uint32_t *pages, size_t count, uint32_t page)
{
    for (size_t i = 0; i < count; i++)
        if (pages[i] == page)
            return true;
    return false;
}

static size_t oracle_key(struct key_oracle *oracle, uint64_t key, uint32_t page, unsigned candidates,
                         uint32_t *found, size_t found_count)
{
    size_t at = 0;
    while (at < oracle->count && oracle->keys[at] != key)
        at++;
    if (at == oracle->count) {
        oracle->keys[oracle->count] = key;
        oracle->page_counts[oracle->count++] = 0;
    }
    for (unsigned i = 0; i < oracle->page_counts[at]; i++) {
        uint32_t other = oracle->pages[at][i];
        if (other == page)
            return found_count;
        if (!listed(found, found_count, other))
            found[found_count++] = other;
    }
    if (oracle->page_counts[at] < candidates)
        oracle->pages[at][oracle->page_counts[at]++] = page;
    return found_count;
}

static void check_against_oracle(unsigned k, unsigned candidates, unsigned key_values, size_t count)
{
    struct de_key_index *index = NULL;
    CHECK_EQ(de_key_index_create(count * k, candidates, &index), DE_OK);
    CHECK(de_key_index_bytes(index) >= count * k * candidates * 8);
    struct key_oracle *oracle = allocate(sizeof(*oracle));
    oracle->count = 0;
    uint64_t keys[64 * MAX_K];
    uint32_t pages[64], next_page = random_below(1000);
    size_t width = (size_t)k * candidates;
    uint32_t *found = allocate(64 * width * sizeof(*found)), *expected = allocate(width * sizeof(*found));
    for (size_t done = 0; done < count;) {
        size_t batch = 1 + random_below(64);
        batch = batch < count - done ? batch : count - done;
        for (size_t i = 0; i < batch * k; i++) /* few values: many equal keys, within pages too; some 0 */
            keys[i] = random_below(key_values) * 0x9e3779b97f4a7c15u;
        for (size_t i = 0; i < batch; i++)
            pages[i] = next_page += 1 + random_below(3);
        de_key_index_pass(index, keys, k, pages, batch, found);
        for (size_t i = 0; i < batch; i++) {
            size_t expected_count = 0;
            for (unsigned j = 0; j < k; j++)
                if (keys[i * k + j] != 0)
                    expected_count =
                        oracle_key(oracle, keys[i * k + j], pages[i], candidates, expected, expected_count);
            memset(expected + expected_count, 0xff, (width - expected_count) * sizeof(*expected));
            CHECK(memcmp(found + i * width, expected, width * sizeof(*expected)) == 0);
        }
        done += batch;
    }
    free(expected);
    free(found);
    free(oracle);
    de_key_index_free(index);
}

static void test_key_index_is_its_oracle(void)
{
    for (unsigned k = 1; k <= MAX_K; k++)
        for (unsigned candidates = 1; candidates <= MAX_C; candidates *= 2) {
            check_against_oracle(k, candidates, 20, 300);
            check_against_oracle(k, candidates, 500, 1000);
            check_against_oracle(k, candidates, 1u << 30, 1000);
        }
    check_against_oracle(2, 1, 3000, MANY);
}

static void test_key_index_limits_are_checked(void)
{
    struct de_key_index *index = NULL;
    CHECK_EQ(de_key_index_create(10, 0, &index), DE_INVALID);
    CHECK_EQ(de_key_index_create(10, 17, &index), DE_INVALID);
    CHECK(index == NULL);
    CHECK_EQ(de_key_index_create(0, 1, &index), DE_OK);
    de_key_index_free(index);
    de_key_index_free(NULL);
}

/* Far more keys than room: no endless search, what was entered is still found, and nothing wrong is. */
static void test_a_full_key_index_still_answers(void)
{
    struct de_key_index *index = NULL;
    CHECK_EQ(de_key_index_create(1000, 1, &index), DE_OK);
    size_t bytes = de_key_index_bytes(index);
    uint32_t found;
    unsigned entered = 0;
    for (uint32_t page = 0; page < 200000; page++) {
        uint64_t key = (page + 1) * 0x9e3779b97f4a7c15u;
        de_key_index_pass(index, &key, 1, &page, 1, &found);
        CHECK_EQ(found, DE_NONE);
    }
    for (uint32_t page = 0; page < 200000; page++) {
        uint64_t key = (page + 1) * 0x9e3779b97f4a7c15u;
        uint32_t later = 1000000 + page;
        de_key_index_pass(index, &key, 1, &later, 1, &found);
        CHECK(found == page || found == DE_NONE);
        CHECK(page >= 1000 || found == page); /* room was asked for this many */
        entered += found == page;
    }
    CHECK((size_t)entered * 8 * 5 <= bytes * 4); /* a fifth stays empty: searches end soon */
    CHECK_EQ(de_key_index_bytes(index), bytes);
    de_key_index_free(index);
}

/* Keys that agree in the half that is kept, and lie side by side, look like one: a page still gets no more
 * than its k * c, as `found` has no room for others. */
static void test_keys_that_look_alike_stay_within_the_limit(void)
{
    struct de_key_index *index = NULL;
    CHECK_EQ(de_key_index_create(100, 1, &index), DE_OK);
    uint32_t found[3];
    for (uint32_t page = 0; page < 50; page++) {
        uint64_t key = (uint64_t)7 << 32 | (page + 1);
        found[1] = found[2] = 12345;
        de_key_index_pass(index, &key, 1, &page, 1, found);
        CHECK(found[0] == DE_NONE || found[0] < page);
        CHECK(found[1] == 12345 && found[2] == 12345);
    }
    de_key_index_free(index);
}

/* The features' definition once more, written differently. */
static unsigned oracle_features(uint64_t seed, const uint8_t *page, uint32_t *features)
{
    static const uint64_t primes[4] = {0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9,
                                       0x9E3779B185EBCA87};
    static const unsigned shifts[4] = {64, 29, 31, 30};
    unsigned count = 0;
    for (unsigned at = 0; at <= DE_PAGE_SIZE - 32 && count < DE_SHIFT_MAX_FEATURES; at += 8) {
        uint64_t hash = seed, word;
        if (memcmp(page + at, page + at + 8, 24) == 0)
            continue;
        for (unsigned i = 0; i < 4; i++) {
            memcpy(&word, page + at + i * 8, 8);
            hash = ((shifts[i] < 64 ? hash ^ hash >> shifts[i] : hash) ^ word) * primes[i];
        }
        hash ^= hash >> 32;
        if (hash % DE_SHIFT_SAMPLING == 0 && !listed(features, count, (uint32_t)(hash >> 24)))
            features[count++] = (uint32_t)(hash >> 24);
    }
    return count;
}

static unsigned features_of(uint64_t seed, const uint8_t *page, uint32_t *features)
{
    uint8_t count = 0xff;
    uint8_t *exact = allocate(DE_PAGE_SIZE);
    memcpy(exact, page, DE_PAGE_SIZE);
    const uint8_t *pages[1] = {exact};
    de_shift_features(seed, pages, 1, features, &count);
    free(exact);
    CHECK(count <= DE_SHIFT_MAX_FEATURES);
    return count;
}

static void test_features_are_as_defined(void)
{
    uint8_t page[DE_PAGE_SIZE];
    uint32_t features[DE_SHIFT_MAX_FEATURES], expected[DE_SHIFT_MAX_FEATURES];
    unsigned total = 0;
    for (unsigned round = 0; round < 400; round++) {
        uint64_t seed = random_word();
        fill_at_random(page, sizeof(page));
        for (unsigned piece = 0; piece < round % 8; piece++) { /* repeats: equal features, repeated words */
            unsigned at = random_below(2000) & ~7u;
            memcpy(page + at + 8 * (1 + random_below(4)), page + at, 8);
            memmove(page + 2048 + at, page + random_below(256) * 8, random_below(2048 - at));
            memset(page + at, round, random_below(200));
        }
        unsigned count = features_of(seed, page, features);
        CHECK_EQ(count, oracle_features(seed, page, expected));
        CHECK(memcmp(features, expected, count * sizeof(*features)) == 0);
        total += count;
    }
    CHECK(total / 400 >= 8 && total / 400 <= 24); /* 509 windows, one in 32 */
}

static unsigned common(const uint32_t *left, unsigned left_count, const uint32_t *right, unsigned right_count)
{
    unsigned count = 0;
    for (unsigned i = 0; i < left_count; i++)
        count += listed(right, right_count, left[i]);
    return count;
}

static void test_moved_content_shares_features(void)
{
    uint8_t page[DE_PAGE_SIZE], moved[DE_PAGE_SIZE];
    uint32_t left[DE_SHIFT_MAX_FEATURES], right[DE_SHIFT_MAX_FEATURES];
    for (unsigned words = 1; words <= 128; words++) {
        unsigned shift = words * 8;
        fill_at_random(page, sizeof(page));
        fill_at_random(moved, sizeof(moved));
        memcpy(moved + shift, page, DE_PAGE_SIZE - shift);
        unsigned left_count = features_of(5, page, left), right_count = features_of(5, moved, right);
        /* Every feature of the part that both hold is common; so is none of the rest. */
        memset(page + DE_PAGE_SIZE - shift, 0, shift);
        uint32_t inner[DE_SHIFT_MAX_FEATURES];
        unsigned inner_count = features_of(5, page, inner);
        unsigned both = common(left, left_count, right, right_count);
        CHECK(both >= common(inner, inner_count, left, left_count));
        CHECK(both <= left_count && both <= right_count);
        unsigned other_seed = features_of(6, moved, right);
        CHECK_EQ(common(left, left_count, right, other_seed), 0);
    }
}

static void test_repeated_words_have_no_features(void)
{
    uint8_t page[DE_PAGE_SIZE];
    uint32_t features[DE_SHIFT_MAX_FEATURES];
    for (unsigned round = 0; round < 100; round++) {
        uint64_t word = round == 0 ? 0 : random_word();
        for (unsigned at = 0; at < DE_PAGE_SIZE; at += 8)
            memcpy(page + at, &word, 8);
        CHECK_EQ(features_of(random_word(), page, features), 0);
    }
}

struct shift_input {
    uint32_t features[SHIFT_PAGES * DE_SHIFT_MAX_FEATURES];
    uint8_t counts[SHIFT_PAGES];
    uint32_t pages[SHIFT_PAGES];
};

/* Pages in families: each takes about half of its features from a small set. */
static void make_input(struct shift_input *input)
{
    for (unsigned i = 0; i < SHIFT_PAGES; i++) {
        input->pages[i] = i * 2 + 1;
        input->counts[i] = (uint8_t)random_below(24);
        unsigned family = random_below(40);
        for (unsigned j = 0; j < input->counts[i]; j++)
            input->features[i * DE_SHIFT_MAX_FEATURES + j] =
                random_below(2) ? (family * 16 + j % 16) * 2654435761u : (uint32_t)random_word();
    }
}

static void pass_in_batches(const struct shift_input *input, size_t memory_bytes, unsigned max_depth,
                            unsigned batch, uint8_t *depths, uint32_t *references)
{
    struct de_shift_index *index = NULL;
    CHECK_EQ(de_shift_index_create(memory_bytes, max_depth, &index), DE_OK);
    CHECK(de_shift_index_bytes(index) <= memory_bytes + 64);
    for (unsigned done = 0; done < SHIFT_PAGES;) {
        unsigned count = batch ? batch : random_below(70);
        count = count < SHIFT_PAGES - done ? count : SHIFT_PAGES - done;
        de_shift_index_pass(index, input->features + (size_t)done * DE_SHIFT_MAX_FEATURES,
                            input->counts + done, input->pages + done, count, depths, references + done);
        done += count;
    }
    de_shift_index_free(index);
}

/* With an index so large that features hardly meet: the last page that had each and was not too deep. */
static uint32_t oracle_reference(const struct shift_input *input, unsigned i, unsigned max_depth,
                                 const uint8_t *depths)
{
    unsigned votes[SHIFT_PAGES] = {0};
    for (unsigned j = 0; j < input->counts[i]; j++)
        for (unsigned other = i; other-- > 0;) {
            if (depths[input->pages[other]] >= max_depth ||
                !listed(input->features + (size_t)other * DE_SHIFT_MAX_FEATURES, input->counts[other],
                        input->features[i * DE_SHIFT_MAX_FEATURES + j]))
                continue;
            votes[other]++;
            break;
        }
    unsigned best = SHIFT_PAGES;
    for (unsigned other = 0; other < i; other++)
        if (votes[other] >= DE_SHIFT_MIN_COMMON && (best == SHIFT_PAGES || votes[other] >= votes[best]))
            best = other;
    return best == SHIFT_PAGES ? DE_NONE : input->pages[best];
}

static void test_shift_index_is_its_oracle(void)
{
    struct shift_input *input = allocate(sizeof(*input));
    uint8_t depths[2 * SHIFT_PAGES + 1];
    uint32_t references[SHIFT_PAGES];
    for (unsigned max_depth = 0; max_depth <= 3; max_depth++)
        for (unsigned round = 0; round < 3; round++) {
            make_input(input);
            memset(depths, 0xee, sizeof(depths));
            pass_in_batches(input, 1u << 26, max_depth, 0, depths, references);
            unsigned proposed = 0, deepest = 0, differ = 0;
            for (unsigned i = 0; i < SHIFT_PAGES; i++) {
                uint8_t depth = depths[input->pages[i]];
                CHECK_EQ(depth, references[i] == DE_NONE ? 0 : depths[references[i]] + 1);
                CHECK(references[i] == DE_NONE || references[i] < input->pages[i]);
                differ += references[i] != oracle_reference(input, i, max_depth, depths);
                proposed += references[i] != DE_NONE;
                deepest = depth > deepest ? depth : deepest;
            }
            CHECK(differ <= 2); /* slots have no tags: two features may meet in one, even in 16 million */
            CHECK_EQ(deepest, max_depth);
            CHECK(max_depth == 0 ? proposed == 0 : proposed > SHIFT_PAGES / 4);
        }
    free(input);
}

static void test_batches_change_nothing(void)
{
    struct shift_input *input = allocate(sizeof(*input));
    uint8_t depths[2][2 * SHIFT_PAGES + 1] = {{0}};
    uint32_t references[2][SHIFT_PAGES];
    const unsigned batches[] = {1, 2, 7, 64, 511, 0};
    make_input(input);
    for (unsigned memory = 4096; memory <= 1u << 20; memory *= 4) {
        pass_in_batches(input, memory, 2, SHIFT_PAGES, depths[0], references[0]);
        for (unsigned i = 0; i < sizeof(batches) / sizeof(batches[0]); i++) {
            pass_in_batches(input, memory, 2, batches[i], depths[1], references[1]);
            CHECK(memcmp(references[0], references[1], sizeof(references[0])) == 0);
            CHECK(memcmp(depths[0], depths[1], sizeof(depths[0])) == 0);
        }
    }
    free(input);
}

static void test_feature_batches_change_nothing(void)
{
    enum { PAGES = 50 };
    uint8_t *bytes = allocate(PAGES * DE_PAGE_SIZE), counts[PAGES];
    uint32_t *features = allocate(sizeof(*features) * PAGES * DE_SHIFT_MAX_FEATURES);
    const uint8_t *pages[PAGES];
    fill_at_random(bytes, PAGES * DE_PAGE_SIZE);
    for (unsigned i = 0; i < PAGES; i++)
        pages[i] = bytes + (size_t)i * DE_PAGE_SIZE;
    de_shift_features(9, pages, PAGES, features, counts);
    for (unsigned i = 0; i < PAGES; i++) {
        uint32_t alone[DE_SHIFT_MAX_FEATURES];
        CHECK_EQ(features_of(9, pages[i], alone), counts[i]);
        CHECK(memcmp(alone, features + (size_t)i * DE_SHIFT_MAX_FEATURES, counts[i] * sizeof(*alone)) == 0);
    }
    free(features);
    free(bytes);
}

static void test_shift_index_limits_are_checked(void)
{
    struct de_shift_index *index = NULL;
    CHECK_EQ(de_shift_index_create(4095, 1, &index), DE_INVALID);
    CHECK_EQ(de_shift_index_create(4096, 4, &index), DE_INVALID);
    CHECK_EQ(de_shift_index_create((size_t)1 << 40, 1, &index), DE_INVALID);
    CHECK(index == NULL);
    CHECK_EQ(de_shift_index_create(4096, 3, &index), DE_OK);
    de_shift_index_free(index);
    de_shift_index_free(NULL);
}

int main(void)
{
    test_key_index_is_its_oracle();
    test_key_index_limits_are_checked();
    test_a_full_key_index_still_answers();
    test_keys_that_look_alike_stay_within_the_limit();
    test_features_are_as_defined();
    test_moved_content_shares_features();
    test_repeated_words_have_no_features();
    test_shift_index_is_its_oracle();
    test_batches_change_nothing();
    test_feature_batches_change_nothing();
    test_shift_index_limits_are_checked();
    return 0;
}
