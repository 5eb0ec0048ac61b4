/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The content store in use: counting, limits, losses, what is given back, threads.
 * `test-store NAME` runs one test only.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "store_objects.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <time.h>

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
    /* A slot of the largest size is taken and given back before the bytes turn out to be no model. */
    CHECK_EQ(put_bytes(store, DE_ENCODING_MODEL, 1, DE_STORE_MODEL_MAX_BYTES, &id, 0, NULL), DE_CORRUPT);
    CHECK_EQ(put_bytes(store, DE_ENCODING_MODEL, 1, DE_STORE_MODEL_MAX_BYTES + 1, &id, 0, NULL), DE_INVALID);
    CHECK_EQ(statistics_of(store).objects, 1);
    CHECK_EQ(statistics_of(store).populated_bytes, 2 * DE_PAGE_SIZE);
    check_accounting(store);
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
    model = put_model(store);
    const uint32_t references[5] = {model, chain[0], chain[1], chain[2], chain[0]};
    const uint32_t alone[2] = {model, model};
    CHECK_EQ(put_bytes(store, DE_ENCODING_DENSE, 6, 4096, &dense, 5, references), DE_OK);
    CHECK_EQ(put_bytes(store, DE_ENCODING_DENSE, 6, 10, &id, 2, alone), DE_INVALID);
    CHECK_EQ(put_bytes(store, DE_ENCODING_PATCH, 6, 10, &id, 1, &model), DE_INVALID);
    check_object(reader, dense, 6, 4096);
    de_store_enter(reader);
    CHECK_EQ(de_store_get(reader, dense, &object), DE_OK);
    CHECK_EQ(object.depth, 3);
    CHECK(de_store_model(reader, model) != NULL);
    CHECK(de_store_model(reader, dense) == NULL);
    CHECK(!memcmp(object.references, references, sizeof(references)));
    de_store_leave(reader);
    CHECK_EQ(de_store_count(store, chain[0]), 4);
    CHECK_EQ(de_store_release(store, model), DE_OK);
    CHECK_EQ(de_store_release(store, dense), DE_OK);
    CHECK_EQ(de_store_count(store, model), 0);
    de_store_enter(reader);
    CHECK(de_store_model(reader, model) == NULL);
    de_store_leave(reader);
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
    while ((status = put_bytes(store, DE_ENCODING_LZ4, count, real_size(&state), &id, 0, NULL)) == DE_OK) {
        CHECK(count < LENGTH(ids));
        ids[count++] = id;
    }
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
    CHECK_EQ(statistics_of(store).objects, 1);
    for (uint32_t i = 0; i < DE_STORE_MAX_REFERENCES; i++)
        CHECK_EQ(de_store_release(store, base), DE_OK);
    CHECK_EQ(put_bytes(store, DE_ENCODING_PATCH, 2, 10, &id, 1, &base), DE_OK);
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

static const struct test tests[] = {
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
    {"threads", test_threads},
};

int main(int argc, char **argv)
{
    return run_tests(tests, LENGTH(tests), argc > 1 ? argv[1] : NULL);
}
