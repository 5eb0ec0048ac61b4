/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The content store and rebuilding after something went wrong: a successor takes over, memory is damaged.
 * `test-store_recovery NAME` runs one test only.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "store_objects.h"
#include <diffengine/digest.h>
#include <diffengine/patch.h>
#include <diffengine/rebuild.h>
#include <fcntl.h>
#include <lz4.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

/* A page that text or a heap might be: repeats itself, with changes. */
static void make_page(uint64_t *state, uint8_t *page)
{
    uint32_t period = 16 + random_below(state, 200);
    fill_bytes((uint32_t)next_random(state), page, DE_PAGE_SIZE);
    for (uint32_t i = period; i < DE_PAGE_SIZE; i++)
        if (random_below(state, 12))
            page[i] = page[i - period];
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
    model = put_model(dead);
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

/* A header that is whole but claims a wrong depth is not believed: one of all tags makes it whole. */
static void test_wrong_depth(void)
{
    struct de_store *dead = make_store(MIB);
    struct de_store_reader *reader = make_reader(dead);
    uint32_t base = put_plain(dead, 1, 500), patch = put_patch(dead, 2, 400, base), state;
    put_plain(dead, 3, 404); /* keeps the patch's frame */
    uint8_t *slot = slot_of(reader, patch);
    memcpy(&state, slot + 8, sizeof(state));
    CHECK_EQ(state >> 22 & 3, 1);
    uint32_t deeper = (state & ~((uint32_t)3 << 22 | (uint32_t)255 << 24)) | (uint32_t)2 << 22;
    for (uint32_t tag = 0; tag < 256; tag++) {
        uint32_t claimed = deeper | tag << 24;
        memcpy(slot + 8, &claimed, sizeof(claimed));
        struct de_store *store = take_over(dead);
        CHECK_EQ(statistics_of(store).objects, 2);
        CHECK_EQ(de_store_count(store, base), 0);
        de_store_close(store);
    }
    de_store_reader_free(reader);
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
    uint32_t id, model = put_model(store);
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

static const struct test tests[] = {
    {"open", test_open},
    {"wrong_depth", test_wrong_depth},
    {"open_foreign", test_open_foreign},
    {"rebuild", test_rebuild},
    {"damage", test_damage},
    {"wild_damage", test_wild_damage},
    {"random_operations", test_random_operations},
    {"killed", test_killed},
};

int main(int argc, char **argv)
{
    return run_tests(tests, LENGTH(tests), argc > 1 ? argv[1] : NULL);
}
