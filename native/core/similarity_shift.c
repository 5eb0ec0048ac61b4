/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <diffengine/similarity.h>
#include <diffengine/status.h>

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum {
    WINDOW_BYTES = 32,
    STEP_BYTES = 8,
};

static inline uint64_t load64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof(value));
    return value;
}

/** Four words into one; multiplications mix upward, shifts bring it down again. */
static inline uint64_t hash_window(uint64_t seed, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    uint64_t hash = (a ^ seed) * 0x9E3779B185EBCA87ull;
    hash = (hash ^ (hash >> 29) ^ b) * 0xC2B2AE3D27D4EB4Full;
    hash = (hash ^ (hash >> 31) ^ c) * 0x165667B19E3779F9ull;
    hash = (hash ^ (hash >> 30) ^ d) * 0x9E3779B185EBCA87ull;
    return hash ^ (hash >> 32);
}

static uint8_t page_features(uint64_t seed, const uint8_t *page, uint32_t *features)
{
    uint8_t count = 0;
    uint64_t a = load64(page), b = load64(page + 8), c = load64(page + 16);
    for (uint32_t at = 0; at + WINDOW_BYTES <= DE_PAGE_SIZE; at += STEP_BYTES) {
        uint64_t d = load64(page + at + 24);
        bool repeated = a == b && b == c && c == d;
        uint64_t hash = hash_window(seed, a, b, c, d);
        a = b;
        b = c;
        c = d;
        if (repeated || hash % DE_SHIFT_SAMPLING != 0)
            continue;
        uint32_t feature = (uint32_t)(hash >> 24);
        bool known = false;
        for (uint8_t i = 0; i < count; i++)
            known |= features[i] == feature;
        if (!known)
            features[count++] = feature;
        if (count == DE_SHIFT_MAX_FEATURES)
            break;
    }
    return count;
}

void de_shift_features(uint64_t seed, const uint8_t *const *pages, size_t count, uint32_t *features,
                       uint8_t *counts)
{
    for (size_t i = 0; i < count; i++)
        counts[i] = page_features(seed, pages[i], features + i * DE_SHIFT_MAX_FEATURES);
}

struct de_shift_index {
    size_t slots;
    unsigned max_depth;
    uint32_t pages[]; /* by feature; no tag: a wrong hit is one stray vote, and one vote is not enough */
};

int de_shift_index_create(size_t memory_bytes, unsigned max_depth, struct de_shift_index **index)
{
    size_t slots = memory_bytes / sizeof(uint32_t);
    if (memory_bytes < 4096 || slots > UINT32_MAX || max_depth > 3)
        return DE_INVALID;
    struct de_shift_index *made = malloc(sizeof(*made) + slots * sizeof(uint32_t));
    if (!made)
        return DE_NO_MEMORY;
    *made = (struct de_shift_index){.slots = slots, .max_depth = max_depth};
    memset(made->pages, 0xff, slots * sizeof(uint32_t));
    *index = made;
    return DE_OK;
}

void de_shift_index_free(struct de_shift_index *index)
{
    free(index);
}

size_t de_shift_index_bytes(const struct de_shift_index *index)
{
    return sizeof(*index) + index->slots * sizeof(uint32_t);
}

static inline uint32_t *slot_of(struct de_shift_index *index, uint32_t feature)
{
    return &index->pages[((uint64_t)feature * index->slots) >> 32];
}

/** The page with most features in common; of equals, the latest. DE_NONE if it has too few. */
static uint32_t most_in_common(struct de_shift_index *index, const uint32_t *features, uint8_t count)
{
    uint32_t candidates[DE_SHIFT_MAX_FEATURES], votes[DE_SHIFT_MAX_FEATURES];
    uint32_t candidate_count = 0;
    for (uint8_t i = 0; i < count; i++) {
        uint32_t page = *slot_of(index, features[i]);
        if (page == DE_NONE)
            continue;
        uint32_t j = 0;
        while (j < candidate_count && candidates[j] != page)
            j++;
        if (j == candidate_count) {
            candidates[candidate_count] = page;
            votes[candidate_count++] = 0;
        }
        votes[j]++;
    }
    uint32_t best = DE_NONE, best_votes = DE_SHIFT_MIN_COMMON - 1;
    for (uint32_t j = 0; j < candidate_count; j++) {
        if (votes[j] > best_votes || (votes[j] == best_votes && best != DE_NONE && candidates[j] > best)) {
            best = candidates[j];
            best_votes = votes[j];
        }
    }
    return best;
}

void de_shift_index_pass(struct de_shift_index *index, const uint32_t *features, const uint8_t *counts,
                         const uint32_t *pages, size_t count, uint8_t *depths, uint32_t *references)
{
    for (size_t i = 0; i < count; i++) {
        const uint32_t *here = features + i * DE_SHIFT_MAX_FEATURES;
        uint32_t reference = index->max_depth ? most_in_common(index, here, counts[i]) : DE_NONE;
        references[i] = reference;
        uint8_t depth = reference == DE_NONE ? 0 : (uint8_t)(depths[reference] + 1);
        depths[pages[i]] = depth;
        if (depth >= index->max_depth)
            continue;
        for (uint8_t j = 0; j < counts[i]; j++)
            *slot_of(index, here[j]) = pages[i];
    }
}
