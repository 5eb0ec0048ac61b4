/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file corpus.h
 * Real pages to encode: the images' different ones, and which of them are similar.
 */
#ifndef DIFFENGINE_BENCH_CORPUS_H
#define DIFFENGINE_BENCH_CORPUS_H

#include "guest_pages.h"

#include <diffengine/digest.h>
#include <diffengine/sharing.h>
#include <diffengine/similarity.h>

/* Pages of different content, none filled with one word, in random order. references: of depth 1. */
struct corpus {
    const uint8_t **pages;
    uint32_t *references; /* DE_NONE: alone. Always an earlier page that is alone. */
    size_t count;
};

enum { CORPUS_SEED = 0x5eed, INDEX_BYTES_PER_PAGE = 32 };

static inline void shuffle_pages(const uint8_t **pages, size_t count)
{
    uint64_t state = CORPUS_SEED;
    for (size_t i = count; i > 1; i--) {
        size_t other = (size_t)(next_random(&state) % i);
        const uint8_t *page = pages[i - 1];
        pages[i - 1] = pages[other];
        pages[other] = page;
    }
}

static inline size_t keep_distinct(const uint8_t **pages, size_t count)
{
    uint64_t *digests = allocate(count, sizeof *digests);
    uint8_t *kinds = allocate(count, 1);
    uint32_t *leaders = allocate(count, sizeof *leaders);
    struct de_digester *digester;
    struct de_sharing_table *table;
    require(de_digester_create(CORPUS_SEED, 0, 1, &digester), "cannot make a digester:");
    require(de_sharing_create(count * 10 + DE_SHARING_MIN_BYTES, &table), "cannot make a table:");
    de_digest_batch(digester, pages, count, digests, kinds, NULL);
    for (size_t i = 0; i < count; i++)
        kinds[i] = kinds[i] == DE_PAGE_PLAIN;
    require(de_sharing_pass(table, digests, kinds, 0, (uint32_t)count, 0, 1, leaders), "cannot find copies:");
    size_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if (kinds[i] && leaders[i] == i)
            pages[kept++] = pages[i];
    de_sharing_free(table);
    de_digester_free(digester);
    free(digests);
    free(kinds);
    free(leaders);
    return kept;
}

static inline void find_references(struct corpus *corpus)
{
    size_t count = corpus->count;
    uint32_t *features = allocate(count * DE_SHIFT_MAX_FEATURES, sizeof *features);
    uint32_t *numbers = allocate(count, sizeof *numbers);
    uint8_t *feature_counts = allocate(count, 1), *depths = allocate(count, 1);
    struct de_shift_index *index;
    corpus->references = allocate(count, sizeof *corpus->references);
    for (size_t i = 0; i < count; i++)
        numbers[i] = (uint32_t)i;
    require(de_shift_index_create(count * INDEX_BYTES_PER_PAGE + 4096, 1, &index), "cannot make the index:");
    de_shift_features(CORPUS_SEED, corpus->pages, count, features, feature_counts);
    de_shift_index_pass(index, features, feature_counts, numbers, count, depths, corpus->references);
    de_shift_index_free(index);
    free(features);
    free(numbers);
    free(feature_counts);
    free(depths);
}

/** At most @p most pages of the images. */
static inline struct corpus collect(char *const *paths, int images, size_t most)
{
    struct guest_pages guest = load_images(paths, images);
    struct corpus corpus = {.pages = guest.pages, .count = keep_distinct(guest.pages, guest.count)};
    shuffle_pages(corpus.pages, corpus.count);
    corpus.count = corpus.count < most ? corpus.count : most;
    find_references(&corpus);
    return corpus;
}

#endif
