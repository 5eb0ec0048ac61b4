/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The fast patch form. Pages, references and patches lie in allocations of their exact size, so that the
 * sanitizers see every access outside.
 */
#include "check.h"

#include <diffengine/patch.h>
#include <diffengine/status.h>

#include <stdbool.h>
#include <string.h>

#include "../../../native/core/patch_format.h"

struct fixture {
    struct de_patch_encoder *encoder;
    uint8_t *reference;
    uint8_t *page;
    uint8_t *rebuilt;
    uint64_t random_state;
};

static uint64_t next_random(struct fixture *fixture)
{
    /* splitmix64 */
    uint64_t word = fixture->random_state += 0x9e3779b97f4a7c15u;
    word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9u;
    word = (word ^ word >> 27) * 0x94d049bb133111ebu;
    return word ^ word >> 31;
}

static size_t random_below(struct fixture *fixture, size_t limit)
{
    return next_random(fixture) % limit;
}

static uint8_t *allocate(size_t count)
{
    uint8_t *bytes = malloc(count ? count : 1);
    CHECK(bytes != NULL);
    return bytes;
}

static struct fixture set_up(uint64_t seed)
{
    struct fixture fixture = {.random_state = seed};
    CHECK_EQ(de_patch_encoder_create(&fixture.encoder), DE_OK);
    fixture.reference = allocate(DE_PAGE_SIZE);
    fixture.page = allocate(DE_PAGE_SIZE);
    fixture.rebuilt = allocate(DE_PAGE_SIZE);
    return fixture;
}

static void tear_down(struct fixture *fixture)
{
    de_patch_encoder_free(fixture->encoder);
    free(fixture->reference);
    free(fixture->page);
    free(fixture->rebuilt);
}

static void fill_random(struct fixture *fixture, uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        bytes[i] = (uint8_t)next_random(fixture);
}

/* Structures with pointers, counters, text and holes: what the kernel's and processes' pages are made of. */
static void fill_like_guest(struct fixture *fixture, uint8_t *bytes, uint64_t heap)
{
    for (size_t i = 0; i < DE_PAGE_SIZE; i += 8) {
        uint64_t word = 0;
        switch (random_below(fixture, 5)) {
        case 0:
            word = heap + random_below(fixture, 4096) * 16;
            break;
        case 1:
            word = random_below(fixture, 300);
            break;
        case 2:
            word = 0x0065646f6d5f7367u + random_below(fixture, 7);
            break;
        default:
            break;
        }
        memcpy(bytes + i, &word, sizeof word);
    }
}

static int decode_exactly(struct fixture *fixture, const uint8_t *patch, size_t count)
{
    uint8_t *exact = allocate(count);
    memcpy(exact, patch, count);
    memset(fixture->rebuilt, 0xa5, DE_PAGE_SIZE);
    int status = de_patch_decode(exact, count, fixture->reference, fixture->rebuilt);
    free(exact);
    return status;
}

/* Encode, decode and compare; @return the patch's size, 0 if there is none. */
static size_t round_trip(struct fixture *fixture)
{
    uint8_t *patch = allocate(DE_PATCH_MAX_BYTES);
    de_patch_load_reference(fixture->encoder, fixture->reference);
    size_t count = de_patch_encode(fixture->encoder, fixture->page, patch, DE_PATCH_MAX_BYTES);
    CHECK(count <= DE_PATCH_MAX_BYTES);
    if (count) {
        CHECK_EQ(decode_exactly(fixture, patch, count), DE_OK);
        CHECK(memcmp(fixture->rebuilt, fixture->page, DE_PAGE_SIZE) == 0);
    }
    free(patch);
    return count;
}

static void test_equal_pages_cost_two_bytes(void)
{
    struct fixture fixture = set_up(1);
    fill_random(&fixture, fixture.reference, DE_PAGE_SIZE);
    memcpy(fixture.page, fixture.reference, DE_PAGE_SIZE);
    CHECK_EQ(round_trip(&fixture), 2);
    tear_down(&fixture);
}

static void test_random_page_does_not_fit(void)
{
    struct fixture fixture = set_up(2);
    fill_random(&fixture, fixture.reference, DE_PAGE_SIZE);
    fill_random(&fixture, fixture.page, DE_PAGE_SIZE);
    CHECK_EQ(round_trip(&fixture), 0);
    tear_down(&fixture);
}

static void test_one_changed_byte_anywhere(void)
{
    struct fixture fixture = set_up(3);
    fill_random(&fixture, fixture.reference, DE_PAGE_SIZE);
    for (size_t i = 0; i < DE_PAGE_SIZE; i++) {
        memcpy(fixture.page, fixture.reference, DE_PAGE_SIZE);
        fixture.page[i] ^= 0x40;
        size_t count = round_trip(&fixture);
        CHECK(count >= 4 && count <= 6);
    }
    tear_down(&fixture);
}

static void test_one_changed_run_of_any_length(void)
{
    struct fixture fixture = set_up(4);
    fill_random(&fixture, fixture.reference, DE_PAGE_SIZE);
    for (size_t length = 1; length <= 4000; length += 1 + length / 16) {
        size_t start = random_below(&fixture, DE_PAGE_SIZE - length + 1);
        memcpy(fixture.page, fixture.reference, DE_PAGE_SIZE);
        fill_random(&fixture, fixture.page + start, length);
        size_t count = round_trip(&fixture);
        CHECK(count > 0 && count <= length + 12 + length / 32);
    }
    tear_down(&fixture);
}

static void test_edited_pages(void)
{
    struct fixture fixture = set_up(5);
    for (unsigned round = 0; round < 2000; round++) {
        if (round % 2)
            fill_random(&fixture, fixture.reference, DE_PAGE_SIZE);
        else
            fill_like_guest(&fixture, fixture.reference, 0x55d0c0de0000u);
        memcpy(fixture.page, fixture.reference, DE_PAGE_SIZE);
        size_t edits = random_below(&fixture, 60), changed = 0;
        for (size_t i = 0; i < edits; i++) {
            size_t length = 1 + random_below(&fixture, 24);
            size_t start = random_below(&fixture, DE_PAGE_SIZE - length + 1);
            fill_random(&fixture, fixture.page + start, length);
            changed += length;
        }
        size_t count = round_trip(&fixture);
        CHECK(count > 0 && count <= 40 + changed + 4 * edits);
    }
    tear_down(&fixture);
}

static void test_moved_content_is_found(void)
{
    struct fixture fixture = set_up(6);
    fill_random(&fixture, fixture.reference, DE_PAGE_SIZE);
    for (size_t shift = 1; shift < DE_PAGE_SIZE; shift += 1 + shift / 8) {
        memcpy(fixture.page + shift, fixture.reference, DE_PAGE_SIZE - shift);
        memcpy(fixture.page, fixture.reference + DE_PAGE_SIZE - shift, shift);
        size_t count = round_trip(&fixture);
        CHECK(count > 0 && count < 200);
        memcpy(fixture.page, fixture.reference + shift, DE_PAGE_SIZE - shift);
        count = round_trip(&fixture);
        CHECK(count > 0 && count < 200);
    }
    tear_down(&fixture);
}

static void test_content_repeated_in_the_page_is_found(void)
{
    struct fixture fixture = set_up(7);
    memset(fixture.reference, 0, DE_PAGE_SIZE);
    fill_random(&fixture, fixture.page, 128);
    for (size_t i = 128; i < DE_PAGE_SIZE; i += 128)
        memcpy(fixture.page + i, fixture.page, 128);
    size_t count = round_trip(&fixture);
    CHECK(count > 0 && count < 512);
    tear_down(&fixture);
}

static void test_fills(void)
{
    struct fixture fixture = set_up(8);
    fill_random(&fixture, fixture.reference, DE_PAGE_SIZE);
    for (size_t period = 1; period <= 8; period *= 2)
        for (size_t length = 1; length <= DE_PAGE_SIZE; length += 1 + length / 4) {
            size_t start = random_below(&fixture, DE_PAGE_SIZE - length + 1);
            memcpy(fixture.page, fixture.reference, DE_PAGE_SIZE);
            fill_random(&fixture, fixture.page + start, period < length ? period : length);
            for (size_t i = start + period; i < start + length; i++)
                fixture.page[i] = fixture.page[i - period];
            size_t count = round_trip(&fixture);
            CHECK(count > 0 && count < 48);
        }
    tear_down(&fixture);
}

/* Two processes' heaps, or kernels, that differ by where they were loaded. */
static void test_relocated_pages_are_small(void)
{
    struct fixture fixture = set_up(9);
    for (unsigned round = 0; round < 200; round++) {
        uint64_t moved = (next_random(&fixture) & 0xfffffff000u) | 0x1000;
        uint64_t state = fixture.random_state;
        fill_like_guest(&fixture, fixture.reference, 0x55d0c0de0000u);
        fixture.random_state = state;
        fill_like_guest(&fixture, fixture.page, 0x55d0c0de0000u + moved);
        size_t count = round_trip(&fixture);
        CHECK(count > 0 && count < 200); /* some hundred pointers of which four to six bytes differ */
    }
    tear_down(&fixture);
}

static void test_relocations_at_every_alignment(void)
{
    struct fixture fixture = set_up(10);
    for (size_t width = 2; width <= 8; width++)
        for (size_t step = width; step < 600; step += 1 + step / 3) {
            uint64_t moved = next_random(&fixture) | 1;
            fill_random(&fixture, fixture.reference, DE_PAGE_SIZE);
            memcpy(fixture.page, fixture.reference, DE_PAGE_SIZE);
            for (size_t i = random_below(&fixture, step + 1); i + width <= DE_PAGE_SIZE; i += step) {
                uint64_t word = 0;
                memcpy(&word, fixture.page + i, width);
                word += moved;
                memcpy(fixture.page + i, &word, width);
            }
            CHECK(round_trip(&fixture) > 0 || step < 32);
        }
    tear_down(&fixture);
}

static void test_guest_like_pages(void)
{
    struct fixture fixture = set_up(11);
    for (unsigned round = 0; round < 1000; round++) {
        fill_like_guest(&fixture, fixture.reference, 0xffff888003a10000u);
        fill_like_guest(&fixture, fixture.page, 0xffff888003a10000u + (round % 3) * 0x7bc000);
        size_t same = random_below(&fixture, DE_PAGE_SIZE);
        memcpy(fixture.page, fixture.reference, same);
        CHECK(round_trip(&fixture) > 0);
    }
    tear_down(&fixture);
}

static void test_reference_may_change_between_loads(void)
{
    struct fixture fixture = set_up(12);
    uint8_t first[DE_PATCH_MAX_BYTES], again[DE_PATCH_MAX_BYTES];
    fill_like_guest(&fixture, fixture.reference, 1 << 20);
    fill_like_guest(&fixture, fixture.page, 1 << 21);
    de_patch_load_reference(fixture.encoder, fixture.reference);
    size_t count = de_patch_encode(fixture.encoder, fixture.page, first, sizeof first);
    fill_random(&fixture, fixture.rebuilt, DE_PAGE_SIZE);
    de_patch_load_reference(fixture.encoder, fixture.rebuilt);
    de_patch_encode(fixture.encoder, fixture.reference, again, sizeof again);
    de_patch_load_reference(fixture.encoder, fixture.reference);
    /* Neither other references nor other pages leave a trace. */
    for (unsigned i = 0; i < 3; i++) {
        CHECK_EQ(de_patch_encode(fixture.encoder, fixture.page, again, sizeof again), count);
        CHECK(memcmp(first, again, count) == 0);
        de_patch_encode(fixture.encoder, fixture.rebuilt, again, sizeof again);
    }
    tear_down(&fixture);
}

static size_t encode_sample(struct fixture *fixture, uint8_t *patch)
{
    uint64_t state = fixture->random_state;
    fill_like_guest(fixture, fixture->reference, 0x7f0123450000u);
    fixture->random_state = state;
    fill_like_guest(fixture, fixture->page, 0x7f6543210000u);
    for (unsigned i = 0; i < 12; i++)
        fill_random(fixture, fixture->page + random_below(fixture, DE_PAGE_SIZE - 40),
                    random_below(fixture, 40));
    memmove(fixture->page + 3000, fixture->page + 1000, 600);
    memset(fixture->page + 2000, 0x77, 100);
    de_patch_load_reference(fixture->encoder, fixture->reference);
    size_t count = de_patch_encode(fixture->encoder, fixture->page, patch, DE_PATCH_MAX_BYTES);
    CHECK(count > 0);
    return count;
}

static void test_every_capacity(void)
{
    struct fixture fixture = set_up(13);
    uint8_t whole[DE_PATCH_MAX_BYTES];
    size_t count = encode_sample(&fixture, whole);
    for (size_t capacity = 0; capacity <= count + 20; capacity++) {
        uint8_t *out = allocate(capacity); /* writing past it is the sanitizer's to see */
        size_t written = de_patch_encode(fixture.encoder, fixture.page, out, capacity);
        CHECK_EQ(written, capacity < count ? 0 : count);
        CHECK(memcmp(out, whole, written) == 0);
        free(out);
    }
    tear_down(&fixture);
}

static void test_every_truncation_is_corrupt(void)
{
    struct fixture fixture = set_up(14);
    uint8_t patch[DE_PATCH_MAX_BYTES + 1] = {0};
    for (unsigned round = 0; round < 20; round++) {
        size_t count = encode_sample(&fixture, patch);
        for (size_t length = 0; length < count; length++)
            CHECK_EQ(decode_exactly(&fixture, patch, length), DE_CORRUPT);
        patch[count] = 0;
        CHECK_EQ(decode_exactly(&fixture, patch, count + 1), DE_CORRUPT);
    }
    tear_down(&fixture);
}

/* Whatever a damaged patch decodes to, it decodes to it every time, and touches nothing else. */
static void test_mutations_are_safe(void)
{
    struct fixture fixture = set_up(15);
    uint8_t patch[DE_PATCH_MAX_BYTES], first[DE_PAGE_SIZE];
    unsigned corrupt = 0;
    for (unsigned round = 0; round < 20000; round++) {
        size_t count = encode_sample(&fixture, patch);
        for (size_t i = random_below(&fixture, 4) + 1; i > 0; i--)
            patch[random_below(&fixture, round % 2 ? count : 80)] = (uint8_t)next_random(&fixture);
        int status = decode_exactly(&fixture, patch, count);
        memcpy(first, fixture.rebuilt, DE_PAGE_SIZE);
        CHECK(status == DE_OK || status == DE_CORRUPT);
        CHECK_EQ(decode_exactly(&fixture, patch, count), status);
        CHECK(status == DE_CORRUPT || memcmp(first, fixture.rebuilt, DE_PAGE_SIZE) == 0);
        corrupt += status == DE_CORRUPT;
    }
    CHECK(corrupt > 1000);
    tear_down(&fixture);
}

static void test_random_bytes_are_safe(void)
{
    struct fixture fixture = set_up(16);
    uint8_t patch[512];
    fill_random(&fixture, fixture.reference, DE_PAGE_SIZE);
    for (unsigned round = 0; round < 50000; round++) {
        size_t count = random_below(&fixture, sizeof patch + 1);
        fill_random(&fixture, patch, count);
        if (count && round % 8)
            patch[0] = PATCH_VERSION | (patch[0] & 0x0d);
        int status = decode_exactly(&fixture, patch, count);
        CHECK(status == DE_OK || status == DE_CORRUPT);
    }
    tear_down(&fixture);
}

/* The examples of docs/formats.md. */
static void test_documented_patches(void)
{
    struct fixture fixture = set_up(17);
    for (size_t i = 0; i < DE_PAGE_SIZE; i++)
        fixture.reference[i] = (uint8_t)(i / 16);
    static const uint8_t patch[] = {
        0x14, 4,                /* version 1, one relocation; four tokens */
        2,    0x00, 0x10, 2,    /* two bytes wide, plus 0x1000, two steps */
        0x51, 0xe0, 0xdd, 0x0f, /* tokens: 5 on, two literals; 14 + x on, one literal; copies */
        255,  45,               /* steps: 255 on; 45 on, add */
        'a',  'b',  6,    'c',  /* data: literals, a gap byte, a literal, */
        0x07, 0xf0,             /* short copy: eight bytes from page place 7 */
        0x09, 0x20, 'o',  'o',  'o', 'o', 'o', 'o', 'o', 'o', /* long: ten bytes of fill */
    };
    memcpy(fixture.page, fixture.reference, DE_PAGE_SIZE);
    memcpy(fixture.page + 5, "ab", 2);
    fixture.page[27] = 'c';
    memcpy(fixture.page + 41, fixture.page + 7, 8);
    memcpy(fixture.page + 49, "oooooooooo", 10);
    fixture.page[301] += 0x10;
    CHECK_EQ(decode_exactly(&fixture, patch, sizeof patch), DE_OK);
    CHECK(memcmp(fixture.rebuilt, fixture.page, DE_PAGE_SIZE) == 0);
    tear_down(&fixture);
}

static int decode_bytes(struct fixture *fixture, size_t count, const uint8_t *patch)
{
    return decode_exactly(fixture, patch, count);
}

#define DECODE(...) decode_bytes(&fixture, sizeof((uint8_t[]){__VA_ARGS__}), (const uint8_t[]){__VA_ARGS__})

static void test_what_is_refused(void)
{
    struct fixture fixture = set_up(18);
    memset(fixture.reference, 0x33, DE_PAGE_SIZE);
    CHECK_EQ(DECODE(0x10, 0), DE_OK);
    CHECK_EQ(DECODE(0x11, 0, 0), DE_OK);
    CHECK_EQ(DECODE(0x20, 0), DE_CORRUPT);                                  /* another version */
    CHECK_EQ(DECODE(0x12, 0), DE_CORRUPT);                                  /* a reserved flag */
    CHECK_EQ(DECODE(0x10, 0, 0), DE_CORRUPT);                               /* data that no token takes */
    CHECK_EQ(DECODE(0x10, 1), DE_CORRUPT);                                  /* fewer tokens than counted */
    CHECK_EQ(DECODE(0x10, 1, 0x01, 'a'), DE_CORRUPT);                       /* literals missing */
    CHECK_EQ(DECODE(0x14, 0, 0, 0), DE_CORRUPT);                            /* a relocation of no bytes */
    CHECK_EQ(DECODE(0x14, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0), DE_CORRUPT); /* of nine */
    CHECK_EQ(DECODE(0x14, 0, 1, 7, 2, 5), DE_CORRUPT);                      /* a step missing */
    CHECK_EQ(DECODE(0x10, 1, 0xf0, 0xf1, 0x0f, 'z'), DE_OK); /* the page's last byte: 14 + 4081 */
    CHECK_EQ(fixture.rebuilt[DE_PAGE_SIZE - 1], 'z');
    CHECK_EQ(DECODE(0x10, 1, 0xf0, 0xf2, 0x0f, 'z'), DE_CORRUPT); /* behind it */
    CHECK_EQ(DECODE(0x10, 1, 0xf0, 0xff, 0xff, 'z'), DE_CORRUPT); /* far behind it */
    CHECK_EQ(DECODE(0x10, 1, 0x0d, 0xf8, 0xef), DE_OK);      /* copy of the reference's last eight bytes */
    CHECK_EQ(DECODE(0x10, 1, 0x0d, 0xf9, 0xef), DE_CORRUPT); /* one further */
    CHECK_EQ(DECODE(0x10, 1, 0x0f, 0xff, 0x1f, 0x00, 0x00), DE_OK); /* long copy of all of it */
    CHECK_EQ(DECODE(0x10, 1, 0x0f, 0xff, 0x1f, 0x01, 0x00), DE_CORRUPT);
    CHECK_EQ(DECODE(0x10, 1, 0x0f, 0x00, 0x10, 0x00, 0x20), DE_CORRUPT); /* source of more than 13 bits */
    CHECK_EQ(DECODE(0x10, 1, 0x0f, 0x00, 0x30), DE_CORRUPT);             /* an unknown long kind */
    /* A relocation of the last eight bytes, and one byte further on. */
    CHECK_EQ(DECODE(0x14, 0, 1, 1, 17, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
                    255, 255, 8),
             DE_OK);
    CHECK_EQ(fixture.rebuilt[DE_PAGE_SIZE - 8], 0x34);
    CHECK_EQ(DECODE(0x14, 0, 1, 1, 17, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
                    255, 255, 9),
             DE_CORRUPT);
    tear_down(&fixture);
}

int main(void)
{
    test_equal_pages_cost_two_bytes();
    test_random_page_does_not_fit();
    test_one_changed_byte_anywhere();
    test_one_changed_run_of_any_length();
    test_edited_pages();
    test_moved_content_is_found();
    test_content_repeated_in_the_page_is_found();
    test_fills();
    test_relocated_pages_are_small();
    test_relocations_at_every_alignment();
    test_guest_like_pages();
    test_reference_may_change_between_loads();
    test_every_capacity();
    test_every_truncation_is_corrupt();
    test_mutations_are_safe();
    test_random_bytes_are_safe();
    test_documented_patches();
    test_what_is_refused();
    return 0;
}
