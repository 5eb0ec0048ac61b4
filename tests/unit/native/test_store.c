/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The content store: counting, limits, losses, what is given back, taking over after a crash, damage,
 * threads. `test-store NAME` runs one test only.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "check.h"
#include <diffengine/digest.h>
#include <diffengine/patch.h>
#include <diffengine/rebuild.h>
#include <diffengine/status.h>
#include <errno.h>
#include <fcntl.h>
#include <lz4.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

#define MIB ((uint64_t)1 << 20)
#define LENGTH(array) (sizeof(array) / sizeof(*(array)))

/* Objects whose content follows from a seed, which is their checksum: so any object that is read can be
 * checked. */

static uint64_t next_random(uint64_t *state)
{
    uint64_t mixed = *state += 0x9e3779b97f4a7c15u;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
    return mixed ^ mixed >> 31;
}

static uint32_t random_below(uint64_t *state, uint32_t limit)
{
    return (uint32_t)(next_random(state) % limit);
}

static void fill_bytes(uint32_t seed, uint8_t *bytes, uint32_t count)
{
    uint64_t state = seed;
    for (uint32_t i = 0; i < count; i += 8) {
        uint64_t word = next_random(&state);
        memcpy(bytes + i, &word, count - i < 8 ? count - i : 8);
    }
}

/* 32 quantiles of 57,996 real pages' sizes (two idle Debian 12 guests, zstd -1, less a quarter for patches).
 */
static uint32_t real_size(uint64_t *state)
{
    static const uint16_t quantiles[33] = {20,   60,   159,  166,  192,  273,  348,  379,  415,  433,  447,
                                           467,  503,  538,  577,  612,  654,  693,  741,  835,  951,  1087,
                                           1242, 1439, 1709, 1877, 1975, 2057, 2123, 2191, 2293, 2913, 3112};
    uint32_t at = random_below(state, 32);
    return quantiles[at] + random_below(state, quantiles[at + 1] - quantiles[at] + 1u);
}

static int put_bytes(struct de_store *store, enum de_encoding encoding, uint32_t seed, uint32_t payload_bytes,
                     uint32_t *id, uint32_t count, const uint32_t *references)
{
    uint8_t payload[DE_STORE_MODEL_MAX_BYTES];
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

static uint32_t put_plain(struct de_store *store, uint32_t seed, uint32_t payload_bytes)
{
    uint32_t id = DE_NONE;
    CHECK_EQ(put_bytes(store, DE_ENCODING_LZ4, seed, payload_bytes, &id, 0, NULL), DE_OK);
    return id;
}

static uint32_t put_patch(struct de_store *store, uint32_t seed, uint32_t payload_bytes, uint32_t reference)
{
    uint32_t id = DE_NONE;
    CHECK_EQ(put_bytes(store, DE_ENCODING_PATCH, seed, payload_bytes, &id, 1, &reference), DE_OK);
    return id;
}

static bool content_right(const struct de_object *object)
{
    uint8_t expected[DE_STORE_MODEL_MAX_BYTES];
    fill_bytes(object->checksum, expected, object->payload_bytes);
    return !memcmp(expected, object->payload, object->payload_bytes);
}

static void check_object(struct de_store_reader *reader, uint32_t id, uint32_t seed, uint32_t payload_bytes)
{
    struct de_object object;
    de_store_enter(reader);
    CHECK_EQ(de_store_get(reader, id, &object), DE_OK);
    CHECK_EQ(object.checksum, seed);
    CHECK_EQ(object.payload_bytes, payload_bytes);
    CHECK(content_right(&object));
    de_store_leave(reader);
}

static struct de_store *make_store(uint64_t max_bytes)
{
    struct de_store *store;
    CHECK_EQ(de_store_create(NULL, max_bytes, &store), DE_OK);
    return store;
}

static struct de_store_reader *make_reader(struct de_store *store)
{
    struct de_store_reader *reader;
    CHECK_EQ(de_store_reader_create(store, &reader), DE_OK);
    return reader;
}

static struct de_store_statistics statistics_of(const struct de_store *store)
{
    struct de_store_statistics statistics;
    de_store_statistics(store, &statistics);
    return statistics;
}

static void check_accounting(const struct de_store *store)
{
    struct stat status;
    CHECK_EQ(fstat(de_store_fd(store), &status), 0);
    CHECK_EQ(statistics_of(store).populated_bytes, status.st_blocks * 512);
}

/* A page that text or a heap might be: repeats itself, with changes. */
static void make_page(uint64_t *state, uint8_t *page)
{
    uint32_t period = 16 + random_below(state, 200);
    fill_bytes((uint32_t)next_random(state), page, DE_PAGE_SIZE);
    for (uint32_t i = period; i < DE_PAGE_SIZE; i++)
        if (random_below(state, 12))
            page[i] = page[i - period];
}

static void test_arguments(void)
{
    struct de_store *store;
    CHECK_EQ(de_store_create(NULL, DE_STORE_CHUNK - 1, &store), DE_INVALID);
    CHECK_EQ(de_store_create(NULL, ((uint64_t)1 << 44) + 1, &store), DE_INVALID);
    CHECK_EQ(de_store_create("/nonexistent/directory/store", MIB, &store), DE_SYSTEM);
    CHECK_EQ(errno, ENOENT);
    store = make_store((uint64_t)1 << 36);
    de_store_close(store);
    store = make_store(4 * MIB);
    uint32_t id = 7, page = put_plain(store, 1, 100), nobody = page + 1;
    const uint32_t twice[2] = {page, page};
    CHECK_EQ(put_bytes(store, DE_ENCODING_RAW, 1, 4095, &id, 0, NULL), DE_INVALID);
    CHECK_EQ(put_bytes(store, DE_ENCODING_FILL, 1, 9, &id, 0, NULL), DE_INVALID);
    CHECK_EQ(put_bytes(store, DE_ENCODING_LZ4, 1, 0, &id, 0, NULL), DE_INVALID);
    CHECK_EQ(put_bytes(store, DE_ENCODING_ZSTD, 1, 4097, &id, 0, NULL), DE_INVALID);
    CHECK_EQ(put_bytes(store, DE_ENCODING_ZSTD, 1, 100, &id, 1, &page), DE_INVALID);
    CHECK_EQ(put_bytes(store, DE_ENCODING_PATCH, 1, 100, &id, 0, NULL), DE_INVALID);
    CHECK_EQ(put_bytes(store, DE_ENCODING_PATCH, 1, 100, &id, 2, twice), DE_INVALID);
    CHECK_EQ(put_bytes(store, DE_ENCODING_PATCH, 1, 100, &id, 1, &nobody), DE_NOT_FOUND);
    CHECK_EQ(put_bytes(store, DE_ENCODING_DENSE, 1, 100, &id, 1, &page), DE_INVALID);
    CHECK_EQ(put_bytes(store, (enum de_encoding)7, 1, 100, &id, 0, NULL), DE_INVALID);
    CHECK_EQ(id, 7);
    CHECK_EQ(de_store_count(store, page), 1);
    CHECK_EQ(de_store_retain(store, nobody), DE_NOT_FOUND);
    CHECK_EQ(de_store_release(store, DE_NONE), DE_NOT_FOUND);
    CHECK_EQ(statistics_of(store).objects, 1);
    de_store_close(store);
}

static void test_references(void)
{
    struct de_store *store = make_store(4 * MIB);
    struct de_store_reader *reader = make_reader(store);
    struct de_object object;
    uint32_t model, dense, id, chain[DE_STORE_MAX_DEPTH + 1];
    chain[0] = put_plain(store, 1, 700);
    for (uint32_t i = 1; i <= DE_STORE_MAX_DEPTH; i++)
        chain[i] = put_patch(store, i, 100 * i, chain[i - 1]);
    CHECK_EQ(put_bytes(store, DE_ENCODING_PATCH, 9, 50, &id, 1, &chain[DE_STORE_MAX_DEPTH]), DE_INVALID);
    CHECK_EQ(put_bytes(store, DE_ENCODING_MODEL, 5, DE_STORE_MODEL_MAX_BYTES, &model, 0, NULL), DE_OK);
    const uint32_t references[5] = {model, chain[0], chain[1], chain[2], chain[0]};
    const uint32_t alone[2] = {model, model};
    CHECK_EQ(put_bytes(store, DE_ENCODING_DENSE, 6, 4096, &dense, 5, references), DE_OK);
    CHECK_EQ(put_bytes(store, DE_ENCODING_DENSE, 6, 10, &id, 2, alone), DE_INVALID);
    CHECK_EQ(put_bytes(store, DE_ENCODING_PATCH, 6, 10, &id, 1, &model), DE_INVALID);
    check_object(reader, model, 5, DE_STORE_MODEL_MAX_BYTES);
    check_object(reader, dense, 6, 4096);
    de_store_enter(reader);
    CHECK_EQ(de_store_get(reader, dense, &object), DE_OK);
    CHECK_EQ(object.depth, 3);
    CHECK(!memcmp(object.references, references, sizeof(references)));
    de_store_leave(reader);
    CHECK_EQ(de_store_count(store, chain[0]), 4);
    CHECK_EQ(de_store_release(store, model), DE_OK);
    CHECK_EQ(de_store_release(store, dense), DE_OK);
    CHECK_EQ(de_store_count(store, model), 0);
    CHECK_EQ(de_store_count(store, chain[0]), 2);
    /* Only the last link of the chain is held now. */
    for (uint32_t i = 0; i < DE_STORE_MAX_DEPTH; i++)
        CHECK_EQ(de_store_release(store, chain[i]), DE_OK);
    CHECK_EQ(statistics_of(store).objects, DE_STORE_MAX_DEPTH + 1);
    CHECK_EQ(de_store_retain(store, chain[DE_STORE_MAX_DEPTH]), DE_OK);
    CHECK_EQ(de_store_release(store, chain[DE_STORE_MAX_DEPTH]), DE_OK);
    check_object(reader, chain[0], 1, 700);
    CHECK_EQ(de_store_release(store, chain[DE_STORE_MAX_DEPTH]), DE_OK);
    CHECK_EQ(statistics_of(store).objects, 0);
    CHECK_EQ(de_store_get(reader, chain[0], &object), DE_NOT_FOUND);
    check_accounting(store);
    de_store_reader_free(reader);
    de_store_close(store);
}

/* What a reader has got stays as it is, though everybody else let go of it. */
static void test_reader_keeps(void)
{
    struct de_store *store = make_store(4 * MIB);
    struct de_store_reader *reader = make_reader(store), *others[63], *one_more;
    for (uint32_t i = 0; i < LENGTH(others); i++)
        others[i] = make_reader(store);
    CHECK_EQ(de_store_reader_create(store, &one_more), DE_FULL);
    uint32_t id = put_plain(store, 1, 3000);
    struct de_object object, gone;
    de_store_enter(reader);
    CHECK_EQ(de_store_get(reader, id, &object), DE_OK);
    CHECK_EQ(de_store_release(store, id), DE_OK);
    CHECK_EQ(de_store_get(reader, id, &gone), DE_NOT_FOUND);
    CHECK(statistics_of(store).limbo_bytes >= 3000);
    for (uint32_t i = 0; i < 100; i++)
        CHECK(put_plain(store, 100 + i, 3000) != id);
    CHECK(content_right(&object));
    de_store_leave(reader);
    CHECK_EQ(statistics_of(store).limbo_bytes, 0);
    CHECK_EQ(put_plain(store, 2, 3000), id);
    de_store_reader_free(reader);
    for (uint32_t i = 0; i < LENGTH(others); i++)
        de_store_reader_free(others[i]);
    de_store_close(store);
}

static void test_full(void)
{
    struct de_store *store = make_store(2 * MIB);
    uint32_t ids[4096], count = 0, id;
    uint64_t state = 3;
    int status;
    while ((status = put_bytes(store, DE_ENCODING_LZ4, count, real_size(&state), &id, 0, NULL)) == DE_OK)
        ids[count++] = id;
    CHECK_EQ(status, DE_FULL);
    struct de_store_statistics before = statistics_of(store);
    CHECK(before.populated_bytes <= 2 * MIB);
    CHECK_EQ(put_bytes(store, DE_ENCODING_MODEL, 1, 30000, &id, 0, NULL), DE_FULL);
    struct de_store_statistics after = statistics_of(store);
    CHECK(!memcmp(&before, &after, sizeof(before)));
    check_accounting(store);
    for (uint32_t i = 0; i < count; i++)
        CHECK_EQ(de_store_release(store, ids[i]), DE_OK);
    CHECK_EQ(statistics_of(store).populated_bytes, DE_PAGE_SIZE);
    check_accounting(store);
    for (uint32_t i = 0; i < 400; i++)
        CHECK_EQ(put_bytes(store, DE_ENCODING_RAW, i, 4096, &id, 0, NULL), DE_OK);
    de_store_close(store);
}

static void test_count_limit(void)
{
    struct de_store *store = make_store(4 * MIB);
    uint32_t base = put_plain(store, 1, 100), id = DE_NONE;
    for (uint32_t count = 1; count < DE_STORE_MAX_COUNT; count++)
        CHECK_EQ(de_store_retain(store, base), DE_OK);
    CHECK_EQ(de_store_count(store, base), DE_STORE_MAX_COUNT);
    CHECK_EQ(de_store_retain(store, base), DE_FULL);
    CHECK_EQ(put_bytes(store, DE_ENCODING_PATCH, 2, 10, &id, 1, &base), DE_FULL);
    CHECK_EQ(de_store_count(store, base), DE_STORE_MAX_COUNT);
    for (uint32_t count = DE_STORE_MAX_COUNT; count > 1; count--)
        CHECK_EQ(de_store_release(store, base), DE_OK);
    CHECK_EQ(statistics_of(store).objects, 1);
    CHECK_EQ(de_store_release(store, base), DE_OK);
    CHECK_EQ(statistics_of(store).objects, 0);
    de_store_close(store);
}

/* A file that can't grow, in the middle of a chunk or at a new one, is an error like any other. */
static void test_no_room_for_file(void)
{
    struct de_store *store = make_store(16 * MIB);
    struct stat status;
    struct rlimit before, low;
    uint32_t id, objects = 0;
    signal(SIGXFSZ, SIG_IGN);
    CHECK_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
    put_plain(store, 0, 4000);
    CHECK_EQ(fstat(de_store_fd(store), &status), 0);
    low = before;
    low.rlim_cur = (rlim_t)status.st_size - DE_STORE_CHUNK / 2;
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
    while ((id = DE_NONE, put_bytes(store, DE_ENCODING_LZ4, ++objects, 4000, &id, 0, NULL)) == DE_OK)
        ;
    CHECK_EQ(errno, EFBIG);
    CHECK(objects > 50 && objects < 70);
    struct de_store_statistics full = statistics_of(store), after;
    CHECK_EQ(put_bytes(store, DE_ENCODING_LZ4, 1, 4000, &id, 0, NULL), DE_SYSTEM);
    CHECK_EQ(put_bytes(store, DE_ENCODING_LZ4, 1, 100, &id, 0, NULL), DE_SYSTEM); /* its class has no chunk */
    CHECK_EQ(id, DE_NONE);
    after = statistics_of(store);
    CHECK_EQ(after.objects, objects);
    CHECK_EQ(after.populated_bytes, full.populated_bytes);
    check_accounting(store);
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    put_plain(store, 1, 4000);
    put_plain(store, 1, 100);
    check_accounting(store);
    de_store_close(store);
}

/* Memory that is neither payload nor wanted, as a fraction of the payload. */
static double loss_of(const struct de_store *store)
{
    struct de_store_statistics statistics = statistics_of(store);
    check_accounting(store);
    return (double)statistics.populated_bytes / (double)statistics.payload_bytes - 1;
}

static uint32_t *fill_store(struct de_store *store, uint32_t count, uint64_t *state)
{
    uint32_t *ids = malloc(count * sizeof(*ids));
    CHECK(ids);
    for (uint32_t i = 0; i < count; i++)
        ids[i] = put_plain(store, i, real_size(state));
    return ids;
}

static void test_losses(void)
{
    static const struct {
        uint32_t objects;
        double limit;
    } fills[] = {{58000, 0.04}, {20000, 0.05}, {10000, 0.06}};
    uint64_t state = 5;
    for (uint32_t i = 0; i < LENGTH(fills); i++) {
        struct de_store *store = make_store(128 * MIB);
        free(fill_store(store, fills[i].objects, &state));
        printf("  %u objects: loss %.2f %%, tables %.2f %% of the payload\n", fills[i].objects,
               100 * loss_of(store),
               100.0 * (double)statistics_of(store).table_bytes / (double)statistics_of(store).payload_bytes);
        CHECK(loss_of(store) <= fills[i].limit);
        de_store_close(store);
    }
    struct de_store *store = make_store(128 * MIB);
    uint32_t id;
    for (uint32_t i = 0; i < 5000; i++)
        CHECK_EQ(put_bytes(store, DE_ENCODING_RAW, i, 4096, &id, 0, NULL), DE_OK);
    printf("  raw pages: loss %.2f %%\n", 100 * loss_of(store));
    CHECK(loss_of(store) <= 0.015);
    de_store_close(store);
}

/* Every frame without an object goes back at once, whatever the order of releases. */
static void test_punching(void)
{
    struct de_store *store = make_store(32 * MIB);
    uint64_t state = 7;
    enum { COUNT = 6000 };
    uint32_t *ids = fill_store(store, COUNT, &state);
    uint64_t full_bytes = statistics_of(store).populated_bytes;
    for (uint32_t left = COUNT; left > 0; left--) {
        uint32_t at = random_below(&state, left), id = ids[at];
        ids[at] = ids[left - 1];
        CHECK_EQ(de_store_release(store, id), DE_OK);
        if (left % 64 == 0)
            check_accounting(store);
        if (left == COUNT / 10)
            CHECK(statistics_of(store).populated_bytes < full_bytes / 2);
    }
    CHECK_EQ(statistics_of(store).populated_bytes, DE_PAGE_SIZE);
    check_accounting(store);
    free(ids);
    de_store_close(store);
}

static void test_churn(void)
{
    struct de_store *store = make_store(64 * MIB);
    struct de_store_reader *reader = make_reader(store);
    uint64_t state = 11;
    enum { COUNT = 24000 };
    uint32_t *ids = malloc(COUNT * sizeof(*ids)), *sizes = malloc(COUNT * sizeof(*sizes));
    CHECK(ids && sizes);
    for (uint32_t i = 0; i < COUNT; i++)
        ids[i] = put_plain(store, i, sizes[i] = real_size(&state));
    for (uint32_t round = 0; round < 4; round++) {
        uint32_t kept = 0;
        for (uint32_t i = 0; i < COUNT; i++) {
            if (random_below(&state, 2) && ids[i] != DE_NONE) {
                CHECK_EQ(de_store_release(store, ids[i]), DE_OK);
                ids[i] = DE_NONE;
            }
            kept += ids[i] != DE_NONE;
        }
        double sparse = loss_of(store);
        uint64_t populated = statistics_of(store).populated_bytes;
        uint64_t back = de_store_compact(store);
        CHECK_EQ(statistics_of(store).populated_bytes, populated - back);
        printf("  %u of %u objects left: loss %.1f %%, compacted %.2f %%", kept, COUNT, 100 * sparse,
               100 * loss_of(store));
        CHECK(loss_of(store) <= (kept < 8000 ? 0.08 : 0.06));
        CHECK_EQ(de_store_compact(store), 0);
        for (uint32_t i = 0; i < COUNT; i++)
            if (ids[i] != DE_NONE)
                check_object(reader, ids[i], i, sizes[i]);
        for (uint32_t i = 0; i < COUNT; i++)
            if (ids[i] == DE_NONE && round % 2)
                ids[i] = put_plain(store, i, sizes[i] = real_size(&state));
        printf(", refilled %.2f %%\n", 100 * loss_of(store));
        CHECK(round % 2 == 0 || loss_of(store) <= 0.06);
    }
    free(ids);
    free(sizes);
    de_store_reader_free(reader);
    de_store_close(store);
}

/* What a reader holds survives being moved; the old place goes back once it left. */
static void test_compact_under_reader(void)
{
    struct de_store *store = make_store(64 * MIB);
    struct de_store_reader *reader = make_reader(store);
    uint64_t state = 37;
    enum { COUNT = 12000 };
    uint32_t *ids = fill_store(store, COUNT, &state), held = 0;
    struct de_object *objects = malloc(COUNT * sizeof(*objects)), object;
    CHECK(objects);
    for (uint32_t i = 0; i < COUNT; i++)
        if (random_below(&state, 3))
            CHECK_EQ(de_store_release(store, ids[i]), DE_OK);
    de_store_enter(reader);
    for (uint32_t i = 0; i < COUNT; i++)
        held += de_store_get(reader, ids[i], &objects[held]) == DE_OK;
    CHECK_EQ(held, statistics_of(store).objects);
    de_store_compact(store);
    CHECK(statistics_of(store).limbo_bytes > 100000);
    for (uint32_t i = 0; i < held; i++)
        CHECK(content_right(&objects[i]));
    for (uint32_t i = 0; i < COUNT; i++)
        if (de_store_get(reader, ids[i], &object) == DE_OK)
            CHECK(content_right(&object));
    de_store_leave(reader);
    CHECK_EQ(statistics_of(store).limbo_bytes, 0);
    CHECK(loss_of(store) <= 0.12);
    free(objects);
    free(ids);
    de_store_reader_free(reader);
    de_store_close(store);
}

/* Without compaction: holes are filled before new frames are made. */
static void test_reuse(void)
{
    struct de_store *store = make_store(64 * MIB);
    uint64_t state = 13;
    enum { COUNT = 20000 };
    uint32_t *ids = fill_store(store, COUNT, &state);
    for (uint32_t i = 0; i < 4 * COUNT; i++) {
        uint32_t at = random_below(&state, COUNT);
        CHECK_EQ(de_store_release(store, ids[at]), DE_OK);
        ids[at] = put_plain(store, i, real_size(&state));
    }
    printf("  after replacing objects at random, never compacted: loss %.2f %%\n", 100 * loss_of(store));
    CHECK(loss_of(store) <= 0.12);
    free(ids);
    de_store_close(store);
}

/* A successor's store from a file descriptor whose owner did not close it. The old one is left as the dead
 * left it. */
static struct de_store *take_over(const struct de_store *dead)
{
    struct de_store *store;
    int fd = dup(de_store_fd(dead));
    CHECK(fd >= 0);
    CHECK_EQ(de_store_open(fd, &store), DE_OK);
    return store;
}

static uint8_t *slot_of(struct de_store_reader *reader, uint32_t id)
{
    struct de_object object;
    de_store_enter(reader);
    CHECK_EQ(de_store_get(reader, id, &object), DE_OK);
    de_store_leave(reader);
    return (uint8_t *)(uintptr_t)object.payload - 12 - 4 * object.reference_count;
}

static void test_open(void)
{
    struct de_store *dead = make_store(16 * MIB), *store;
    struct de_store_reader *reader = make_reader(dead);
    struct de_object object;
    uint32_t ids[60], torn, copy, base = put_plain(dead, 1000, 900), model, dense;
    for (uint32_t i = 0; i < LENGTH(ids); i++)
        ids[i] = i % 3 ? put_plain(dead, i, 1000) : put_patch(dead, i, 996, i ? ids[0] : base);
    CHECK_EQ(put_bytes(dead, DE_ENCODING_MODEL, 5, 7000, &model, 0, NULL), DE_OK);
    CHECK_EQ(put_bytes(dead, DE_ENCODING_DENSE, 6, 800, &dense, 2, (uint32_t[]){model, base}), DE_OK);
    /* Two slots in the middle of others' frames: one that a put died in, one that a move died in. */
    uint8_t *torn_slot = slot_of(reader, ids[31]), *copy_slot = slot_of(reader, ids[34]);
    CHECK_EQ(de_store_release(dead, torn = ids[31]), DE_OK);
    CHECK_EQ(de_store_release(dead, copy = ids[34]), DE_OK);
    fill_bytes(77, torn_slot, 1012);
    memcpy(torn_slot, &torn, sizeof(torn));
    memcpy(copy_slot, slot_of(reader, ids[35]), 1012);
    /* A patch whose reference is damaged goes with it. */
    slot_of(reader, ids[0])[4] ^= 1;
    store = take_over(dead);
    de_store_reader_free(reader);
    reader = make_reader(store);
    check_accounting(store);
    CHECK_EQ(statistics_of(store).objects, 3 + 40 - 2);
    CHECK_EQ(de_store_count(store, base), 1);
    CHECK_EQ(de_store_count(store, model), 1);
    CHECK_EQ(de_store_count(store, dense), 0);
    CHECK_EQ(de_store_get(reader, torn, &object), DE_NOT_FOUND);
    CHECK_EQ(de_store_get(reader, copy, &object), DE_NOT_FOUND);
    CHECK_EQ(de_store_get(reader, ids[0], &object), DE_NOT_FOUND);
    CHECK_EQ(de_store_get(reader, ids[3], &object), DE_NOT_FOUND);
    check_object(reader, ids[35], 35, 1000);
    check_object(reader, dense, 6, 800);
    /* What nobody claims goes, with what only it refers to. */
    CHECK_EQ(de_store_retain(store, ids[1]), DE_OK);
    CHECK_EQ(de_store_retain(store, base), DE_OK);
    CHECK_EQ(de_store_sweep(store), 3 + 38 - 2);
    CHECK_EQ(statistics_of(store).objects, 2);
    CHECK_EQ(de_store_count(store, base), 1);
    CHECK_EQ(de_store_sweep(store), 0);
    check_object(reader, ids[1], 1, 1000);
    check_accounting(store);
    for (uint32_t i = 0; i < 1000; i++)
        CHECK(put_plain(store, i, 1000) != ids[1]);
    de_store_reader_free(reader);
    de_store_close(store);
    de_store_close(dead);
}

static void test_open_foreign(void)
{
    struct de_store *store = make_store(MIB), *other = NULL;
    uint8_t first[64];
    int fd = memfd_create("foreign", MFD_CLOEXEC);
    CHECK_EQ(de_store_open(fd, &other), DE_CORRUPT);
    CHECK_EQ(pread(de_store_fd(store), first, sizeof(first), 0), sizeof(first));
    CHECK_EQ(pwrite(fd, first, sizeof(first), 0), sizeof(first));
    CHECK_EQ(de_store_open(fd, &other), DE_CORRUPT); /* too short for what it says */
    CHECK_EQ(ftruncate(fd, 64 * (off_t)MIB), 0);
    CHECK_EQ(pwrite(fd, "\xff", 1, 22), 1); /* larger than any store */
    CHECK_EQ(de_store_open(fd, &other), DE_CORRUPT);
    CHECK_EQ(pwrite(fd, "x", 1, 0), 1);
    CHECK_EQ(de_store_open(fd, &other), DE_CORRUPT);
    CHECK_EQ(close(fd), 0);
    CHECK_EQ(de_store_open(fd, &other), DE_SYSTEM);
    CHECK(other == NULL);
    de_store_close(store);
}

struct packed_pages {
    uint32_t ids[64];
    uint8_t bytes[64][DE_PAGE_SIZE];
};

static uint32_t put_page(struct de_store *store, enum de_encoding encoding, const uint8_t *page,
                         const uint8_t *payload, uint32_t payload_bytes, uint32_t reference)
{
    struct de_object object = {.encoding = encoding,
                               .checksum = de_page_checksum(page),
                               .payload = payload,
                               .payload_bytes = payload_bytes,
                               .reference_count = encoding == DE_ENCODING_PATCH,
                               .references = {reference}};
    uint32_t id;
    CHECK(payload_bytes > 0);
    CHECK_EQ(de_store_put(store, &object, &id), DE_OK);
    return id;
}

static uint32_t zstd_pack(const uint8_t *page, uint8_t *out)
{
    ZSTD_CCtx *context = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(context, ZSTD_c_format, ZSTD_f_zstd1_magicless);
    ZSTD_CCtx_setParameter(context, ZSTD_c_contentSizeFlag, 0);
    size_t count = ZSTD_compress2(context, out, 2 * DE_PAGE_SIZE, page, DE_PAGE_SIZE);
    CHECK(!ZSTD_isError(count));
    ZSTD_freeCCtx(context);
    return (uint32_t)count;
}

/* One of each encoding in turn; patches on whatever came before, up to the greatest depth. */
static void pack_pages(struct de_store *store, struct packed_pages *pages)
{
    struct de_patch_encoder *encoder;
    uint64_t state = 17;
    CHECK_EQ(de_patch_encoder_create(&encoder), DE_OK);
    for (uint32_t i = 0; i < LENGTH(pages->ids); i++) {
        uint8_t payload[2 * DE_PAGE_SIZE], *page = pages->bytes[i];
        uint32_t kind = i % 8, reference = i ? pages->ids[i - 1] : DE_NONE;
        make_page(&state, page);
        if (kind == 0) {
            pages->ids[i] = put_page(store, DE_ENCODING_RAW, page, page, DE_PAGE_SIZE, 0);
        } else if (kind == 1) {
            for (uint32_t at = 8; at < DE_PAGE_SIZE; at += 8)
                memcpy(page + at, page, 8);
            pages->ids[i] = put_page(store, DE_ENCODING_FILL, page, page, 8, 0);
        } else if (kind == 2) {
            int count = LZ4_compress_default((char *)page, (char *)payload, DE_PAGE_SIZE, sizeof(payload));
            pages->ids[i] = put_page(store, DE_ENCODING_LZ4, page, payload, (uint32_t)count, 0);
        } else if (kind == 3) {
            pages->ids[i] = put_page(store, DE_ENCODING_ZSTD, page, payload, zstd_pack(page, payload), 0);
        } else {
            /* Depth 1 on a zstd page, 2, 3; the last one of depth 1 on the raw page. */
            uint32_t on = kind == 7 ? i - 7 : i - 1;
            reference = pages->ids[on];
            memcpy(page, pages->bytes[on], DE_PAGE_SIZE);
            fill_bytes(i, page + 256 * kind, 300);
            de_patch_load_reference(encoder, pages->bytes[on]);
            size_t count = de_patch_encode(encoder, page, payload, DE_PAGE_SIZE);
            pages->ids[i] = put_page(store, DE_ENCODING_PATCH, page, payload, (uint32_t)count, reference);
        }
    }
    de_patch_encoder_free(encoder);
}

static void test_rebuild(void)
{
    struct de_store *store = make_store(16 * MIB);
    struct packed_pages *pages = malloc(sizeof(*pages));
    struct de_rebuilder *rebuilder;
    const uint8_t *addresses[64];
    uint8_t right[64], page[DE_PAGE_SIZE];
    CHECK(pages);
    pack_pages(store, pages);
    CHECK_EQ(de_rebuilder_create(store, &rebuilder), DE_OK);
    for (uint32_t i = 0; i < 64; i++) {
        CHECK_EQ(de_rebuild_page(rebuilder, pages->ids[i], page), DE_OK);
        CHECK(!memcmp(page, pages->bytes[i], DE_PAGE_SIZE));
        addresses[i] = pages->bytes[i];
    }
    pages->bytes[13][4095] ^= 1;
    uint32_t known = pages->ids[20];
    pages->ids[20] = DE_NONE;
    de_rebuild_verify_batch(rebuilder, pages->ids, addresses, 64, right);
    for (uint32_t i = 0; i < 64; i++)
        CHECK_EQ(right[i], i != 13);
    uint32_t id, model = DE_NONE;
    CHECK_EQ(put_bytes(store, DE_ENCODING_MODEL, 1, 500, &model, 0, NULL), DE_OK);
    CHECK_EQ(de_rebuild_page(rebuilder, model, page), DE_CORRUPT);
    CHECK_EQ(de_rebuild_page(rebuilder, 5000, page), DE_NOT_FOUND);
    CHECK_EQ(de_rebuild_page(rebuilder, DE_NONE, page), DE_NOT_FOUND);
    /* Bytes of some other page: decode, but are found out by the checksum. */
    struct de_object wrong = {.encoding = DE_ENCODING_RAW,
                              .checksum = de_page_checksum(pages->bytes[0]),
                              .payload = pages->bytes[1],
                              .payload_bytes = DE_PAGE_SIZE};
    CHECK_EQ(de_store_put(store, &wrong, &id), DE_OK);
    CHECK_EQ(de_rebuild_page(rebuilder, id, page), DE_CORRUPT);
    CHECK_EQ(de_rebuild_page(rebuilder, known, page), DE_OK);
    de_rebuilder_free(rebuilder);
    de_store_close(store);
    free(pages);
}

/* A flipped bit in one of four objects, nonsense for a header in one of fifty. */
static void damage_object(struct de_store_reader *reader, uint32_t id, uint32_t reach_bytes, uint64_t *state)
{
    struct de_object object;
    de_store_enter(reader);
    int status = de_store_get(reader, id, &object);
    de_store_leave(reader);
    if (status != DE_OK)
        return;
    uint32_t header_bytes = 12 + 4 * object.reference_count, bytes = header_bytes + object.payload_bytes;
    uint8_t *slot = (uint8_t *)(uintptr_t)object.payload - header_bytes;
    if (random_below(state, 4) == 0)
        slot[random_below(state, reach_bytes < bytes ? reach_bytes : bytes)] ^=
            (uint8_t)(1 << random_below(state, 8));
    else if (random_below(state, 40) == 0)
        fill_bytes((uint32_t)next_random(state), slot, 16);
}

/* Bits flip anywhere in objects: pages come back right or not at all, and nothing else happens. */
static void test_damage(void)
{
    uint64_t state = 19;
    struct packed_pages *pages = malloc(sizeof(*pages));
    uint32_t corrupt = 0;
    CHECK(pages);
    for (uint32_t round = 0; round < 200; round++) {
        struct de_store *store = make_store(4 * MIB), *successor;
        struct de_store_reader *reader = make_reader(store);
        struct de_rebuilder *rebuilder;
        uint8_t page[DE_PAGE_SIZE];
        pack_pages(store, pages);
        CHECK_EQ(de_rebuilder_create(store, &rebuilder), DE_OK);
        for (uint32_t i = 0; i < 64; i++)
            damage_object(reader, pages->ids[i], round % 2 ? 20 : 500, &state);
        for (uint32_t i = 0; i < 64; i++) {
            int status = de_rebuild_page(rebuilder, pages->ids[i], page);
            CHECK(status == DE_CORRUPT || status == DE_OK);
            CHECK(status == DE_CORRUPT || !memcmp(page, pages->bytes[i], DE_PAGE_SIZE));
            corrupt += status == DE_CORRUPT;
        }
        for (uint32_t i = 0; i < 64; i += 2)
            CHECK(de_store_release(store, pages->ids[i]) != DE_INVALID);
        de_store_compact(store);
        check_accounting(store);
        successor = take_over(store);
        check_accounting(successor);
        de_store_sweep(successor);
        CHECK_EQ(statistics_of(successor).objects, 0);
        CHECK_EQ(statistics_of(successor).populated_bytes, DE_PAGE_SIZE);
        de_store_close(successor);
        de_rebuilder_free(rebuilder);
        de_store_reader_free(reader);
        de_store_close(store);
    }
    CHECK(corrupt > 1000);
    free(pages);
}

/* Arbitrary frames of the file overwritten, its head too. */
static void test_wild_damage(void)
{
    uint64_t state = 23;
    for (uint32_t round = 0; round < 100; round++) {
        struct de_store *store = make_store(8 * MIB), *successor;
        uint8_t noise[DE_PAGE_SIZE];
        free(fill_store(store, 1000, &state));
        off_t at = 0;
        while ((at = lseek(de_store_fd(store), at, SEEK_DATA)) >= 0) {
            fill_bytes((uint32_t)next_random(&state), noise, sizeof(noise));
            if (at ? random_below(&state, 8) == 0 : round % 2)
                CHECK_EQ(pwrite(de_store_fd(store), noise, sizeof(noise) - 64, at + 64), sizeof(noise) - 64);
            at += DE_PAGE_SIZE;
        }
        successor = take_over(store);
        check_accounting(successor);
        struct de_store_reader *reader = make_reader(successor);
        for (uint32_t id = 0; id < 2000; id++) {
            struct de_object object;
            de_store_enter(reader);
            CHECK(de_store_get(reader, id, &object) != DE_CORRUPT);
            de_store_leave(reader);
        }
        free(fill_store(successor, 1000, &state));
        check_accounting(successor);
        de_store_reader_free(reader);
        de_store_close(successor);
        de_store_close(store);
    }
}

/* The store against the simplest thing that does the same: an array. */
#define MODEL_OBJECTS 400

struct model_object {
    bool pinned; /**< by us, count 1; otherwise it lives only through its users */
    uint32_t id, seed, payload_bytes, users, reference;
    uint8_t depth;
};

struct model {
    struct model_object objects[MODEL_OBJECTS];
    uint64_t state;
    uint32_t next_seed;
};

static bool model_live(const struct model_object *object)
{
    return object->pinned || object->users;
}

static void model_put(struct model *model, struct de_store *store)
{
    uint32_t at = random_below(&model->state, MODEL_OBJECTS), on = random_below(&model->state, MODEL_OBJECTS);
    struct model_object *object = &model->objects[at], *reference = &model->objects[on];
    if (model_live(object))
        return;
    bool patch = on != at && model_live(reference) && reference->depth < DE_STORE_MAX_DEPTH;
    *object = (struct model_object){.pinned = true,
                                    .seed = model->next_seed++,
                                    .payload_bytes = real_size(&model->state),
                                    .reference = patch ? on : DE_NONE,
                                    .depth = patch ? reference->depth + 1 : 0};
    if (patch) {
        reference->users++;
        object->id = put_patch(store, object->seed, object->payload_bytes, reference->id);
    } else {
        object->id = put_plain(store, object->seed, object->payload_bytes);
    }
}

static void model_release(struct model *model, struct de_store *store)
{
    struct model_object *object = &model->objects[random_below(&model->state, MODEL_OBJECTS)];
    if (!object->pinned)
        return;
    CHECK_EQ(de_store_release(store, object->id), DE_OK);
    object->pinned = false;
    while (!model_live(object) && object->reference != DE_NONE) {
        object = &model->objects[object->reference];
        object->users--;
    }
}

static void model_check(const struct model *model, struct de_store *store)
{
    struct de_store_reader *reader = make_reader(store);
    uint64_t objects = 0, payload_bytes = 0;
    for (uint32_t i = 0; i < MODEL_OBJECTS; i++) {
        const struct model_object *object = &model->objects[i];
        if (!model_live(object))
            continue;
        objects++;
        payload_bytes += object->payload_bytes;
        CHECK_EQ(de_store_count(store, object->id), object->pinned + object->users);
        check_object(reader, object->id, object->seed, object->payload_bytes);
    }
    CHECK_EQ(statistics_of(store).objects, objects);
    CHECK_EQ(statistics_of(store).payload_bytes, payload_bytes);
    CHECK_EQ(statistics_of(store).limbo_bytes, 0);
    check_accounting(store);
    de_store_reader_free(reader);
}

static struct de_store *model_take_over(const struct model *model, struct de_store *dead)
{
    struct de_store *store = take_over(dead);
    de_store_close(dead);
    for (uint32_t i = 0; i < MODEL_OBJECTS; i++)
        if (model->objects[i].pinned)
            CHECK_EQ(de_store_retain(store, model->objects[i].id), DE_OK);
    CHECK_EQ(de_store_sweep(store), 0);
    return store;
}

static void test_random_operations(void)
{
    for (uint32_t seed = 1; seed <= 8; seed++) {
        struct model model = {.state = seed};
        struct de_store *store = make_store(4 * MIB);
        for (uint32_t step = 0; step < 6000; step++) {
            uint32_t what = random_below(&model.state, 1000);
            uint32_t puts = step / 1000 % 2 ? 400 : 600; /* grows, shrinks */
            if (what < puts)
                model_put(&model, store);
            else if (what < 990)
                model_release(&model, store);
            else if (what < 993)
                store = model_take_over(&model, store);
            else if (what < 996)
                de_store_compact(store);
            else
                model_check(&model, store);
        }
        model_check(&model, store);
        de_store_close(store);
    }
}

static const char *test_directory(void)
{
    const char *chosen = getenv("TMPDIR");
    return chosen ? chosen : "/tmp";
}

static void work_until_killed(const char *path, uint64_t state)
{
    struct de_store *store;
    uint32_t ids[300];
    memset(ids, 0xff, sizeof(ids));
    CHECK_EQ(de_store_create(path, 4 * MIB, &store), DE_OK);
    for (uint32_t seed = 0;; seed++) {
        uint32_t at = random_below(&state, LENGTH(ids)), on = random_below(&state, LENGTH(ids) / 3);
        if (ids[at] != DE_NONE)
            CHECK_EQ(de_store_release(store, ids[at]), DE_OK);
        ids[at] = DE_NONE;
        /* The first third is what the others are patches of. */
        ids[at] = at >= LENGTH(ids) / 3 && ids[on] != DE_NONE
                      ? put_patch(store, seed, real_size(&state), ids[on])
                      : put_plain(store, seed, real_size(&state));
        if (seed % 500 == 0)
            de_store_compact(store);
    }
}

/* Killed at any moment, the store is whole: what is in it is right, and nothing is lost for good. */
static void test_killed(void)
{
    uint64_t state = 29, objects = 0;
    char path[4096];
    snprintf(path, sizeof(path), "%s/diffengine-test-store-%d", test_directory(), (int)getpid());
    for (uint32_t round = 0; round < 40; round++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0)
            work_until_killed(path, round);
        struct timespec pause = {.tv_nsec = 2000000 + random_below(&state, 30000000)};
        nanosleep(&pause, NULL);
        CHECK_EQ(kill(child, SIGKILL), 0);
        int status, fd = -1;
        CHECK_EQ(waitpid(child, &status, 0), child);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd < 0)
            continue; /* killed too early */
        unlink(path);
        struct de_store *store;
        status = de_store_open(fd, &store);
        if (status == DE_CORRUPT) { /* killed while it made the superblock */
            close(fd);
            continue;
        }
        CHECK_EQ(status, DE_OK);
        struct de_store_reader *reader = make_reader(store);
        for (uint32_t id = 0; id < 2000; id++) {
            struct de_object object;
            de_store_enter(reader);
            status = de_store_get(reader, id, &object);
            CHECK(status == DE_OK || status == DE_NOT_FOUND);
            CHECK(status == DE_NOT_FOUND || content_right(&object));
            objects += status == DE_OK;
            de_store_leave(reader);
        }
        /* What it named, old references of those, and one object that was just being released, with its
         * reference. */
        CHECK(statistics_of(store).objects <= 300 + 200 + 2);
        de_store_sweep(store);
        CHECK_EQ(statistics_of(store).objects, 0);
        CHECK_EQ(statistics_of(store).populated_bytes, DE_PAGE_SIZE);
        de_store_reader_free(reader);
        de_store_close(store);
    }
    CHECK(objects > 1000);
}

/* Two writers, a compactor and two readers. A writer publishes ids in its half of the table. */
#define THREAD_OBJECTS 256
#define WRITER_STEPS 12000

struct thread_world {
    struct de_store *store;
    _Atomic uint32_t ids[THREAD_OBJECTS];
    _Atomic uint32_t writers_left;
    _Atomic uint32_t next_writer, next_reader;
    _Atomic uint64_t read;
};

static void *write_objects(void *argument)
{
    struct thread_world *world = argument;
    uint32_t number = atomic_fetch_add(&world->next_writer, 1), half = THREAD_OBJECTS / 2;
    uint64_t state = 31 + number;
    for (uint32_t step = 0; step < WRITER_STEPS; step++) {
        uint32_t at = number * half + random_below(&state, half);
        uint32_t on = number * half + random_below(&state, half / 4);
        uint32_t old = atomic_exchange(&world->ids[at], DE_NONE), reference = atomic_load(&world->ids[on]);
        if (old != DE_NONE)
            CHECK_EQ(de_store_release(world->store, old), DE_OK);
        /* The first quarter is what the others are patches of. */
        bool patch = at % half >= half / 4 && reference != DE_NONE;
        uint32_t seed = number << 24 | step;
        atomic_store(&world->ids[at], patch ? put_patch(world->store, seed, real_size(&state), reference)
                                            : put_plain(world->store, seed, real_size(&state)));
    }
    atomic_fetch_sub(&world->writers_left, 1);
    return NULL;
}

static void *read_objects(void *argument)
{
    struct thread_world *world = argument;
    struct de_store_reader *reader = make_reader(world->store);
    uint64_t state = 41 + atomic_fetch_add(&world->next_reader, 1), found = 0;
    while (atomic_load(&world->writers_left)) {
        struct de_object objects[4], reference;
        uint32_t count = 0;
        de_store_enter(reader);
        for (uint32_t i = 0; i < LENGTH(objects); i++) {
            int status = de_store_get(reader, atomic_load(&world->ids[random_below(&state, THREAD_OBJECTS)]),
                                      &objects[count]);
            CHECK(status == DE_OK || status == DE_NOT_FOUND);
            count += status == DE_OK;
        }
        for (uint32_t i = 0; i < count; i++) {
            CHECK(content_right(&objects[i]));
            if (objects[i].reference_count &&
                de_store_get(reader, objects[i].references[0], &reference) == DE_OK)
                CHECK(content_right(&reference));
        }
        de_store_leave(reader);
        found += count;
    }
    atomic_fetch_add(&world->read, found);
    de_store_reader_free(reader);
    return NULL;
}

static void *compact_store(void *argument)
{
    struct thread_world *world = argument;
    while (atomic_load(&world->writers_left)) {
        struct timespec pause = {.tv_nsec = 1000000};
        de_store_compact(world->store);
        nanosleep(&pause, NULL);
    }
    return NULL;
}

static void test_threads(void)
{
    static void *(*const jobs[])(void *) = {write_objects, write_objects, read_objects, read_objects,
                                            compact_store};
    struct thread_world world = {.store = make_store(16 * MIB), .writers_left = 2};
    pthread_t threads[LENGTH(jobs)];
    for (uint32_t i = 0; i < THREAD_OBJECTS; i++)
        atomic_store(&world.ids[i], DE_NONE);
    for (uint32_t i = 0; i < LENGTH(jobs); i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, jobs[i], &world), 0);
    for (uint32_t i = 0; i < LENGTH(jobs); i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    CHECK(world.read > 1000);
    for (uint32_t i = 0; i < THREAD_OBJECTS; i++)
        if (world.ids[i] != DE_NONE)
            CHECK_EQ(de_store_release(world.store, world.ids[i]), DE_OK);
    CHECK_EQ(statistics_of(world.store).objects, 0);
    CHECK_EQ(statistics_of(world.store).populated_bytes, DE_PAGE_SIZE);
    check_accounting(world.store);
    de_store_close(world.store);
}

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    {"arguments", test_arguments},
    {"references", test_references},
    {"reader_keeps", test_reader_keeps},
    {"full", test_full},
    {"count_limit", test_count_limit},
    {"no_room_for_file", test_no_room_for_file},
    {"losses", test_losses},
    {"punching", test_punching},
    {"churn", test_churn},
    {"compact_under_reader", test_compact_under_reader},
    {"reuse", test_reuse},
    {"open", test_open},
    {"open_foreign", test_open_foreign},
    {"rebuild", test_rebuild},
    {"damage", test_damage},
    {"wild_damage", test_wild_damage},
    {"random_operations", test_random_operations},
    {"killed", test_killed},
    {"threads", test_threads},
};

int main(int argc, char **argv)
{
    uint32_t run = 0;
    for (uint32_t i = 0; i < LENGTH(tests); i++) {
        if (argc > 1 && strcmp(argv[1], tests[i].name))
            continue;
        printf("%s\n", tests[i].name);
        fflush(stdout);
        tests[i].run();
        run++;
    }
    CHECK(run > 0);
    return 0;
}
