/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Every compressor and level: what goes in comes out, and no bytes, however damaged, do harm. */
#define RANDOM_SEED 0xda942042e4dd58b5
#include "check.h"
#include "random.h"

#include <diffengine/compress.h>
#include <diffengine/status.h>
#include <lz4.h>
#include <string.h>

#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

#define BOUND (2 * DE_PAGE_SIZE) /* more than any page compresses to */

static void *allocate(size_t bytes)
{
    void *memory = malloc(bytes);
    CHECK(memory != NULL);
    return memory;
}

static struct de_compress_context *make_context(enum de_compressor compressor, int level)
{
    struct de_compress_context *context = NULL;
    CHECK_EQ(de_compress_create(compressor, level, &context), DE_OK);
    CHECK(context != NULL);
    return context;
}

/* From all zero to noise; in between, records that repeat with small changes, as a kernel's tables do. */
static void make_page(uint8_t *page)
{
    unsigned record = 1 + random_below(200), shape = random_below(5);
    memset(page, 0, DE_PAGE_SIZE);
    if (shape == 0)
        return;
    fill_at_random(page, shape == 1 ? DE_PAGE_SIZE : record);
    for (unsigned i = record; shape > 1 && i < DE_PAGE_SIZE; i++)
        page[i] = random_below(10 * shape) ? page[i - record] : (uint8_t)random_word();
    if (shape == 4)
        memset(page + random_below(2048), 0, 2048);
}

static void check_round_trip(struct de_compress_context *context, const uint8_t *page)
{
    uint8_t *out = allocate(BOUND), *decoded = allocate(DE_PAGE_SIZE);
    size_t count = de_compress_page(context, page, out, BOUND);
    CHECK(count > 0 && count <= BOUND);
    uint8_t *exact = allocate(count); /* a sanitizer sees a read past the last byte */
    memcpy(exact, out, count);
    CHECK_EQ(de_decompress_page(context, exact, count, decoded), DE_OK);
    CHECK(memcmp(decoded, page, DE_PAGE_SIZE) == 0);
    CHECK_EQ(de_compress_page(context, page, out, BOUND),
             count); /* nothing is left over from the last page */
    CHECK(memcmp(out, exact, count) == 0);
    free(exact);
    free(decoded);
    free(out);
}

static void check_small_capacity(struct de_compress_context *context, const uint8_t *page)
{
    uint8_t decoded[DE_PAGE_SIZE];
    size_t capacity = random_below(DE_PAGE_SIZE + 1);
    uint8_t *out = allocate(capacity);
    size_t count = de_compress_page(context, page, out, capacity);
    CHECK(count <= capacity);
    if (count > 0) {
        CHECK_EQ(de_decompress_page(context, out, count, decoded), DE_OK);
        CHECK(memcmp(decoded, page, DE_PAGE_SIZE) == 0);
    }
    free(out);
}

static void test_every_level_round_trips(enum de_compressor compressor, int lowest, int highest)
{
    uint8_t page[DE_PAGE_SIZE];
    for (int level = lowest; level <= highest; level++) {
        struct de_compress_context *context = make_context(compressor, level);
        for (unsigned round = 0; round < (level < 10 ? 150 : 25); round++) {
            make_page(page);
            check_round_trip(context, page);
            check_small_capacity(context, page);
        }
        de_compress_free(context);
    }
}

static void test_levels_are_checked(void)
{
    struct de_compress_context *context = NULL;
    CHECK_EQ(de_compress_create(DE_COMPRESS_LZ4, 0, &context), DE_INVALID);
    CHECK_EQ(de_compress_create(DE_COMPRESS_LZ4, 13, &context), DE_INVALID);
    CHECK_EQ(de_compress_create(DE_COMPRESS_LZ4, -1, &context), DE_INVALID);
    CHECK_EQ(de_compress_create(DE_COMPRESS_ZSTD, -8, &context), DE_INVALID);
    CHECK_EQ(de_compress_create(DE_COMPRESS_ZSTD, 23, &context), DE_INVALID);
    CHECK_EQ(de_compress_create((enum de_compressor)2, 1, &context), DE_INVALID);
    CHECK(context == NULL);
    de_compress_free(NULL);
}

static void test_noise_stays_raw_and_zeros_shrink(enum de_compressor compressor, int level)
{
    uint8_t page[DE_PAGE_SIZE], out[DE_PAGE_SIZE];
    struct de_compress_context *context = make_context(compressor, level);
    fill_at_random(page, sizeof page);
    CHECK_EQ(de_compress_page(context, page, out, DE_PAGE_SIZE - 1), 0);
    memset(page, 0, sizeof page);
    size_t count = de_compress_page(context, page, out, DE_PAGE_SIZE);
    CHECK(count > 0 && count < 40);
    de_compress_free(context);
}

static size_t mutate(uint8_t *bytes, size_t count)
{
    switch (random_below(5)) {
    case 0:
        return random_below((unsigned)count); /* cut off, perhaps to nothing */
    case 1:
        fill_at_random(bytes + count, 8);
        return count + 1 + random_below(8);
    case 2:
        fill_at_random(bytes, count);
        return count;
    default:
        for (unsigned changes = 1 + random_below(4); changes > 0; changes--)
            bytes[random_below((unsigned)count)] ^= (uint8_t)(1 + random_below(255));
        return count;
    }
}

/* Allocations of the exact size on both sides, so that a sanitizer sees one byte too far. */
static void test_damaged_streams_do_no_harm(enum de_compressor compressor, int level)
{
    struct de_compress_context *context = make_context(compressor, level);
    unsigned corrupt = 0;
    for (unsigned round = 0; round < 20000; round++) {
        uint8_t page[DE_PAGE_SIZE], stream[BOUND + 8];
        make_page(page);
        size_t count = mutate(stream, de_compress_page(context, page, stream, BOUND));
        uint8_t *exact = allocate(count), *decoded = allocate(DE_PAGE_SIZE);
        memcpy(exact, stream, count);
        int status = de_decompress_page(context, exact, count, decoded);
        CHECK(status == DE_OK || status == DE_CORRUPT);
        corrupt += status == DE_CORRUPT;
        free(decoded);
        free(exact);
        if (round % 64 == 0) /* a damaged stream leaves nothing behind in the context */
            check_round_trip(context, page);
    }
    CHECK(corrupt > 20000 / 4);
    de_compress_free(context);
}

static size_t compress_bytes(enum de_compressor compressor, const uint8_t *bytes, size_t count, uint8_t *out)
{
    if (compressor == DE_COMPRESS_LZ4)
        return (size_t)LZ4_compress_default((const char *)bytes, (char *)out, (int)count, BOUND);
    ZSTD_CCtx *cctx = ZSTD_createCCtx();
    CHECK(cctx != NULL);
    ZSTD_CCtx_setParameter(cctx, ZSTD_c_format, ZSTD_f_zstd1_magicless);
    ZSTD_CCtx_setParameter(cctx, ZSTD_c_contentSizeFlag, 0);
    size_t written = ZSTD_compress2(cctx, out, BOUND, bytes, count);
    ZSTD_freeCCtx(cctx);
    CHECK(!ZSTD_isError(written));
    return written;
}

/* A valid stream of anything but one page is not a page. */
static void test_only_whole_pages_are_taken(enum de_compressor compressor)
{
    uint8_t bytes[DE_PAGE_SIZE + 64], out[BOUND], page[DE_PAGE_SIZE];
    const size_t sizes[] = {0, 1, DE_PAGE_SIZE - 1, DE_PAGE_SIZE, DE_PAGE_SIZE + 1, DE_PAGE_SIZE + 64};
    struct de_compress_context *context = make_context(compressor, 1);
    make_page(bytes);
    memset(bytes + DE_PAGE_SIZE, 1, 64);
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        size_t count = compress_bytes(compressor, bytes, sizes[i], out);
        CHECK_EQ(de_decompress_page(context, out, count, page),
                 sizes[i] == DE_PAGE_SIZE ? DE_OK : DE_CORRUPT);
    }
    CHECK_EQ(de_decompress_page(context, out, 0, page), DE_CORRUPT);
    de_compress_free(context);
}

/* zstd 1.5.4 reads 4 bytes of what may be a next frame's magic: what follows a frame must never get there. */
static void test_nothing_may_follow_a_zstd_frame(void)
{
    uint8_t page[DE_PAGE_SIZE], stream[2 * BOUND];
    struct de_compress_context *context = make_context(DE_COMPRESS_ZSTD, 1);
    make_page(page);
    size_t count = de_compress_page(context, page, stream, BOUND);
    CHECK_EQ(de_decompress_page(context, stream, count, page), DE_OK);
    for (unsigned extra = 1; extra <= 3; extra++) {
        memset(stream + count, 0, extra);
        CHECK_EQ(de_decompress_page(context, stream, count + extra, page), DE_CORRUPT);
    }
    const uint8_t skippable[] = {0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0};
    memcpy(stream + count, skippable, sizeof skippable);
    CHECK_EQ(de_decompress_page(context, stream, count + sizeof skippable, page), DE_CORRUPT);
    memmove(stream + sizeof skippable, stream, count);
    memcpy(stream, skippable, sizeof skippable);
    CHECK_EQ(de_decompress_page(context, stream, count + sizeof skippable, page), DE_CORRUPT);
    de_compress_free(context);
}

int main(void)
{
    test_levels_are_checked();
    test_every_level_round_trips(DE_COMPRESS_LZ4, 1, 12);
    test_every_level_round_trips(DE_COMPRESS_ZSTD, -7, 22);
    test_noise_stays_raw_and_zeros_shrink(DE_COMPRESS_LZ4, 1);
    test_noise_stays_raw_and_zeros_shrink(DE_COMPRESS_LZ4, 9);
    test_noise_stays_raw_and_zeros_shrink(DE_COMPRESS_ZSTD, 1);
    test_damaged_streams_do_no_harm(DE_COMPRESS_LZ4, 1);
    test_damaged_streams_do_no_harm(DE_COMPRESS_ZSTD, 1);
    test_only_whole_pages_are_taken(DE_COMPRESS_LZ4);
    test_only_whole_pages_are_taken(DE_COMPRESS_ZSTD);
    test_nothing_may_follow_a_zstd_frame();
    return 0;
}
