/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file store_objects.h
 * Objects for the store's tests.
 */
#ifndef DIFFENGINE_TEST_STORE_OBJECTS_H
#define DIFFENGINE_TEST_STORE_OBJECTS_H

#include "check.h"
#include <diffengine/dense.h>
#include <diffengine/status.h>
#include <diffengine/store.h>
#include <string.h>
#include <sys/stat.h>

#define MIB ((uint64_t)1 << 20)
#define LENGTH(array) (sizeof(array) / sizeof(*(array)))

/** One test of a program that runs all, or the one it is given the name of. */
struct test {
    const char *name;
    void (*run)(void);
};

static inline int run_tests(const struct test *tests, size_t count, const char *only)
{
    size_t run = 0;
    for (size_t i = 0; i < count; i++) {
        if (only && strcmp(only, tests[i].name))
            continue;
        printf("%s\n", tests[i].name);
        fflush(stdout);
        tests[i].run();
        run++;
    }
    CHECK(run > 0);
    return 0;
}

/* Objects whose content follows from a seed, which is their checksum: so any object that is read can be
 * checked. */

static inline uint64_t next_random(uint64_t *state)
{
    uint64_t mixed = *state += 0x9e3779b97f4a7c15u;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
    return mixed ^ mixed >> 31;
}

static inline uint32_t random_below(uint64_t *state, uint32_t limit)
{
    return (uint32_t)(next_random(state) % limit);
}

static inline void fill_bytes(uint32_t seed, uint8_t *bytes, uint32_t count)
{
    uint64_t state = seed;
    for (uint32_t i = 0; i < count; i += 8) {
        uint64_t word = next_random(&state);
        memcpy(bytes + i, &word, count - i < 8 ? count - i : 8);
    }
}

/* 32 quantiles of 57,996 real pages' sizes (two idle Debian 12 guests, zstd -1, less a quarter for patches).
 */
static inline uint32_t real_size(uint64_t *state)
{
    static const uint16_t quantiles[33] = {20,   60,   159,  166,  192,  273,  348,  379,  415,  433,  447,
                                           467,  503,  538,  577,  612,  654,  693,  741,  835,  951,  1087,
                                           1242, 1439, 1709, 1877, 1975, 2057, 2123, 2191, 2293, 2913, 3112};
    uint32_t at = random_below(state, 32);
    return quantiles[at] + random_below(state, quantiles[at + 1] - quantiles[at] + 1u);
}

static inline int put_bytes(struct de_store *store, enum de_encoding encoding, uint32_t seed,
                            uint32_t payload_bytes, uint32_t *id, uint32_t count, const uint32_t *references)
{
    uint8_t payload[DE_STORE_MODEL_MAX_BYTES + 1]; /* a test tries one too many */
    struct de_object object = {.encoding = encoding,
                               .checksum = seed,
                               .payload = payload,
                               .payload_bytes = payload_bytes,
                               .reference_count = (uint8_t)count};
    fill_bytes(seed, payload, payload_bytes);
    for (uint32_t i = 0; i < count; i++)
        object.references[i] = references[i];
    return de_store_put(store, &object, id);
}

static inline uint32_t put_plain(struct de_store *store, uint32_t seed, uint32_t payload_bytes)
{
    uint32_t id = DE_NONE;
    CHECK_EQ(put_bytes(store, DE_ENCODING_LZ4, seed, payload_bytes, &id, 0, NULL), DE_OK);
    return id;
}

static inline uint32_t put_patch(struct de_store *store, uint32_t seed, uint32_t payload_bytes,
                                 uint32_t reference)
{
    uint32_t id = DE_NONE;
    CHECK_EQ(put_bytes(store, DE_ENCODING_PATCH, seed, payload_bytes, &id, 1, &reference), DE_OK);
    return id;
}

/** The untrained model: the store takes only what loads. */
static inline uint32_t put_model(struct de_store *store)
{
    uint8_t bytes[DE_DENSE_MODEL_MAX_BYTES];
    struct de_dense_model *model;
    uint32_t id = DE_NONE;
    CHECK_EQ(de_dense_model_default(&model), DE_OK);
    struct de_object object = {.encoding = DE_ENCODING_MODEL,
                               .checksum = 1,
                               .payload = bytes,
                               .payload_bytes = (uint32_t)de_dense_model_save(model, bytes)};
    de_dense_model_free(model);
    CHECK_EQ(de_store_put(store, &object, &id), DE_OK);
    return id;
}

static inline bool content_right(const struct de_object *object)
{
    uint8_t expected[DE_STORE_MODEL_MAX_BYTES];
    fill_bytes(object->checksum, expected, object->payload_bytes);
    return !memcmp(expected, object->payload, object->payload_bytes);
}

static inline void check_object(struct de_store_reader *reader, uint32_t id, uint32_t seed,
                                uint32_t payload_bytes)
{
    struct de_object object;
    de_store_enter(reader);
    CHECK_EQ(de_store_get(reader, id, &object), DE_OK);
    CHECK_EQ(object.checksum, seed);
    CHECK_EQ(object.payload_bytes, payload_bytes);
    CHECK(content_right(&object));
    de_store_leave(reader);
}

static inline struct de_store *make_store(uint64_t max_bytes)
{
    struct de_store *store;
    CHECK_EQ(de_store_create(NULL, max_bytes, &store), DE_OK);
    return store;
}

static inline struct de_store_reader *make_reader(struct de_store *store)
{
    struct de_store_reader *reader;
    CHECK_EQ(de_store_reader_create(store, &reader), DE_OK);
    return reader;
}

static inline struct de_store_statistics statistics_of(const struct de_store *store)
{
    struct de_store_statistics statistics;
    de_store_statistics(store, &statistics);
    return statistics;
}

static inline void check_accounting(const struct de_store *store)
{
    struct stat status;
    CHECK_EQ(fstat(de_store_fd(store), &status), 0);
    CHECK_EQ(statistics_of(store).populated_bytes, status.st_blocks * 512);
}

static inline uint32_t *fill_store(struct de_store *store, uint32_t count, uint64_t *state)
{
    uint32_t *ids = malloc(count * sizeof(*ids));
    CHECK(ids);
    for (uint32_t i = 0; i < count; i++)
        ids[i] = put_plain(store, i, real_size(state));
    return ids;
}

#endif
