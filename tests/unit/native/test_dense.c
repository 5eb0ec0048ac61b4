/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The dense form: what goes in comes out, and no payload or model, however damaged, does harm. */
#include "../../../native/core/huffman.h"
#define RANDOM_SEED 0x9e3779b97f4a7c15
#include "check.h"
#include "random.h"

#include <diffengine/dense.h>
#include <diffengine/status.h>
#include <stdbool.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

enum {
    SAMPLE_PAGES = 256,
    WIDEST_OVERRUN = 40, /* what a copy may write past the page's end, and read past the last literal */
    FRONT_PADDING = 20480,
    /* A saved model: where the contexts of literals, and the codes' lengths, start and end. */
    SAVED_NEXT = 1,
    SAVED_LITERALS = SAVED_NEXT + 2048,
    SAVED_SEQUENCES = SAVED_LITERALS + 2048,
    SAVED_LENGTHS = SAVED_SEQUENCES + 420,
    SAVED_END = SAVED_LENGTHS + 736,
};

static void *allocate(size_t bytes)
{
    void *memory = malloc(bytes ? bytes : 1);
    CHECK(memory != NULL);
    return memory;
}

static void fill_with_period(uint8_t *bytes, size_t count, size_t period)
{
    for (size_t i = 0; i < count; i++)
        bytes[i] = i < period ? (uint8_t)random_below(256) : bytes[i - period];
}

static void fill_with_text(uint8_t *page)
{
    static const char *const words[] = {"page ", "frame", " of ", "the\n", "guest", "0x", ", ", "memory"};
    for (unsigned at = 0; at < DE_PAGE_SIZE; at++) {
        const char *word = words[random_below(8)];
        for (; *word && at < DE_PAGE_SIZE - 1; word++, at++)
            page[at] = (uint8_t)*word;
        page[at] = (uint8_t)('a' + random_below(26));
    }
}

/* Kernel structures: pointers into one region, small numbers, flags, zeroes. */
static void fill_with_structures(uint8_t *page)
{
    uint64_t region = 0xffff888000000000u | random_below(1u << 20) << 8;
    for (unsigned at = 0; at < DE_PAGE_SIZE; at += 8) {
        uint64_t words[4] = {0, random_below(300), region + random_below(512) * 8, 1ull << random_below(64)};
        memcpy(page + at, &words[random_below(4)], 8);
    }
}

enum sort { ZEROES, NOISE, TEXT, STRUCTURES, PERIODS, PIECES, SORTS };

static void fill_page(uint8_t *page, enum sort sort)
{
    memset(page, 0, DE_PAGE_SIZE);
    if (sort == NOISE)
        fill_at_random(page, DE_PAGE_SIZE);
    if (sort == TEXT)
        fill_with_text(page);
    if (sort == STRUCTURES || sort == PIECES)
        fill_with_structures(page);
    if (sort != PERIODS && sort != PIECES)
        return;
    for (unsigned piece = 0; piece < 12; piece++) {
        unsigned at = random_below(DE_PAGE_SIZE), count = random_below(DE_PAGE_SIZE - at) / 2;
        if (sort == PERIODS)
            fill_with_period(page + at, count, 1 + random_below(40));
        else if (random_below(2))
            memmove(page + at, page + random_below(DE_PAGE_SIZE - count), count);
        else
            fill_at_random(page + at, count / 8);
    }
}

/* A page derived from @p page: equal, one byte different, moved by some bytes, edited, or unrelated. */
static void derive_page(const uint8_t *page, uint8_t *derived, unsigned change)
{
    memcpy(derived, page, DE_PAGE_SIZE);
    unsigned shift = random_below(300);
    if (change == 1)
        derived[random_below(DE_PAGE_SIZE)] ^= (uint8_t)(1 + random_below(255));
    if (change == 2)
        memmove(derived + shift, page, DE_PAGE_SIZE - shift);
    if (change == 3)
        memmove(derived, page + shift, DE_PAGE_SIZE - shift);
    if (change == 4)
        for (unsigned edit = 0; edit < 30; edit++)
            fill_at_random(derived + random_below(DE_PAGE_SIZE - 8), random_below(8));
    if (change == 5)
        fill_page(derived, (enum sort)random_below(SORTS));
}

struct codec {
    struct de_dense_model *model;
    struct de_dense_encoder *encoder;
    struct de_dense_window *window;
};

/* Under a sanitizer, what lies just behind the most a decoder may touch must not be touched: not by wide
 * copies, not by a bit reader that leaves the payload downward (it goes in steps of at most 7 bytes). */
static struct de_dense_window *make_window(void)
{
    struct de_dense_window *window = allocate(sizeof(*window));
    de_dense_window_init(window);
    ASAN_POISON_MEMORY_REGION(window->slack + WIDEST_OVERRUN, sizeof(window->slack) - WIDEST_OVERRUN);
    ASAN_POISON_MEMORY_REGION(window->literals + DE_PAGE_SIZE + WIDEST_OVERRUN,
                              sizeof(window->literals) - DE_PAGE_SIZE - WIDEST_OVERRUN);
    return window;
}

static struct de_dense_model *default_model(void)
{
    struct de_dense_model *model = NULL;
    CHECK_EQ(de_dense_model_default(&model), DE_OK);
    return model;
}

static struct de_dense_model *train_model(uint64_t seed)
{
    uint64_t saved_state = random_state;
    random_state = seed;
    uint8_t *bytes = allocate((size_t)2 * SAMPLE_PAGES * DE_PAGE_SIZE);
    const uint8_t *pages[SAMPLE_PAGES], *references[SAMPLE_PAGES];
    for (unsigned i = 0; i < SAMPLE_PAGES; i++) {
        uint8_t *page = bytes + (size_t)2 * i * DE_PAGE_SIZE, *reference = page + DE_PAGE_SIZE;
        fill_page(page, (enum sort)(i % SORTS));
        derive_page(page, reference, i % 6);
        pages[i] = page;
        references[i] = i % 3 == 0 ? reference : NULL;
    }
    struct de_dense_model *model = NULL;
    CHECK_EQ(de_dense_model_train(pages, references, SAMPLE_PAGES, &model), DE_OK);
    free(bytes);
    random_state = saved_state;
    return model;
}

static struct codec make_codec(struct de_dense_model *model)
{
    struct codec codec = {.model = model, .window = make_window()};
    CHECK_EQ(de_dense_encoder_create(&codec.encoder), DE_OK);
    return codec;
}

static void free_codec(struct codec *codec)
{
    de_dense_model_free(codec->model);
    de_dense_encoder_free(codec->encoder);
    free(codec->window);
}

/* From an allocation of the payload's exact size, so that a sanitizer sees a byte read too many. */
static int decode(const struct codec *codec, const uint8_t *payload, size_t count, const uint8_t *reference)
{
    uint8_t *exact = allocate(count);
    memcpy(exact, payload, count);
    if (reference)
        memcpy(codec->window->reference, reference, DE_PAGE_SIZE);
    int status = de_dense_decode(codec->model, exact, count, reference != NULL, codec->window);
    free(exact);
    return status;
}

static size_t encode(const struct codec *codec, const uint8_t *page, const uint8_t *reference, uint8_t *out)
{
    return de_dense_encode(codec->encoder, codec->model, page, reference, out, DE_DENSE_MAX_BYTES);
}

/* @return the payload's size; 0: it would be longer than a page. */
static size_t check_round_trip(const struct codec *codec, const uint8_t *page, const uint8_t *reference)
{
    uint8_t payload[DE_DENSE_MAX_BYTES];
    size_t count = encode(codec, page, reference, payload);
    CHECK(count <= sizeof(payload));
    if (count == 0)
        return 0;
    memset(codec->window->page, 0xa5, DE_PAGE_SIZE);
    CHECK_EQ(decode(codec, payload, count, reference), DE_OK);
    CHECK(memcmp(codec->window->page, page, DE_PAGE_SIZE) == 0);
    if (reference)
        CHECK(memcmp(codec->window->reference, reference, DE_PAGE_SIZE) == 0);
    return count;
}

static void test_every_sort_of_page_round_trips(const struct codec *codec)
{
    uint8_t page[DE_PAGE_SIZE], reference[DE_PAGE_SIZE];
    for (unsigned round = 0; round < 600; round++) {
        fill_page(page, (enum sort)(round % SORTS));
        derive_page(page, reference, round / SORTS % 6);
        size_t alone = check_round_trip(codec, page, NULL);
        size_t patched = check_round_trip(codec, page, reference);
        CHECK(alone > 0 || round % SORTS == NOISE);
        if (round / SORTS % 6 == 0)
            CHECK(patched > 0 && patched <= 16);
        if (round / SORTS % 6 == 1)
            CHECK(patched > 0 && patched <= 24);
    }
}

/* Content moved by any number of bytes is found in the reference. */
static void test_moved_noise_is_a_short_patch(const struct codec *codec)
{
    uint8_t page[DE_PAGE_SIZE], reference[DE_PAGE_SIZE];
    fill_at_random(reference, sizeof(reference));
    for (unsigned shift = 1; shift <= 64; shift++) {
        memcpy(page, reference + shift, DE_PAGE_SIZE - shift);
        memset(page + DE_PAGE_SIZE - shift, 0, shift);
        size_t count = check_round_trip(codec, page, reference);
        CHECK(count > 0 && count <= 32);
        memmove(page + shift, reference, DE_PAGE_SIZE - shift);
        memset(page, 0, shift);
        count = check_round_trip(codec, page, reference);
        CHECK(count > 0 && count <= 32);
    }
}

/* Runs of every period up to 40, at every alignment, of short and long length: all the ways to copy. */
static void test_runs_at_every_alignment(const struct codec *codec)
{
    uint8_t page[DE_PAGE_SIZE];
    for (unsigned period = 1; period <= 40; period++)
        for (unsigned at = 0; at < 16; at++) {
            fill_at_random(page, sizeof(page));
            memset(page, 0, DE_PAGE_SIZE / 2);
            fill_with_period(page + at, 500 + at + period, period);
            fill_with_period(page + DE_PAGE_SIZE / 2 + at, period + 1 + at * 3, period);
            fill_with_period(page + DE_PAGE_SIZE - 100 - at, 100 + at, period);
            CHECK(check_round_trip(codec, page, NULL) > 0);
        }
}

static void test_noise_stays_raw(const struct codec *codec)
{
    uint8_t page[DE_PAGE_SIZE], reference[DE_PAGE_SIZE], out[DE_DENSE_MAX_BYTES];
    fill_at_random(page, sizeof(page));
    fill_at_random(reference, sizeof(reference));
    CHECK_EQ(encode(codec, page, NULL, out), 0);
    CHECK_EQ(encode(codec, page, reference, out), 0);
    CHECK(check_round_trip(codec, page, page) > 0);
    /* More room than any payload may take changes nothing. */
    uint8_t *large = allocate(4 * DE_PAGE_SIZE);
    CHECK_EQ(de_dense_encode(codec->encoder, codec->model, page, NULL, large, (size_t)4 * DE_PAGE_SIZE), 0);
    free(large);
}

/* Every capacity: the same payload if it fits, else 0 and not a byte written. */
static void test_capacity_is_kept(const struct codec *codec)
{
    uint8_t page[DE_PAGE_SIZE], payload[DE_DENSE_MAX_BYTES];
    for (enum sort sort = ZEROES; sort < SORTS; sort++) {
        fill_page(page, sort);
        size_t count = encode(codec, page, NULL, payload);
        size_t most = count ? count + 8 : DE_DENSE_MAX_BYTES, step = most / 40 + 1;
        for (size_t capacity = 0; capacity <= most; capacity += capacity + 8 < count ? step : 1) {
            uint8_t *out = allocate(capacity);
            memset(out, 0xa5, capacity);
            size_t written = de_dense_encode(codec->encoder, codec->model, page, NULL, out, capacity);
            CHECK_EQ(written, capacity >= count ? count : 0);
            CHECK(memcmp(out, payload, written) == 0);
            for (size_t i = written; i < capacity; i++)
                CHECK_EQ(out[i], 0xa5);
            free(out);
            if (count == 0)
                capacity += 200;
        }
    }
}

/* What was decoded says nothing of stale bytes: a damaged payload gives the same status and, if it decodes,
 * the same page, whatever was decoded in the window before. */
static void check_damaged(const struct codec *codec, const struct codec *other, const uint8_t *payload,
                          size_t count, const uint8_t *reference)
{
    int status = decode(codec, payload, count, reference);
    CHECK(status == DE_OK || status == DE_CORRUPT);
    CHECK_EQ(decode(other, payload, count, reference), status);
    if (status == DE_OK)
        CHECK(memcmp(codec->window->page, other->window->page, DE_PAGE_SIZE) == 0);
    if (reference)
        CHECK(memcmp(codec->window->reference, reference, DE_PAGE_SIZE) == 0);
}

/* A payload has no checksum (the store's objects do): one cut short may by chance decode to some page. */
static void test_cut_payloads_are_refused(const struct codec *codec)
{
    uint8_t page[DE_PAGE_SIZE], reference[DE_PAGE_SIZE], payload[DE_DENSE_MAX_BYTES + 1] = {0};
    const struct codec other = {.model = codec->model, .window = make_window()};
    unsigned cuts = 0, taken = 0;
    for (unsigned round = 0; round < 24; round++) {
        fill_page(page, (enum sort)(round % SORTS));
        derive_page(page, reference, round % 6);
        const uint8_t *used = round % 2 ? reference : NULL;
        size_t count = encode(codec, page, used, payload);
        for (size_t cut = 0; cut < count; cut++, cuts++) {
            check_damaged(codec, &other, payload, cut, used);
            taken += decode(codec, payload, cut, used) == DE_OK;
        }
        payload[count] = (uint8_t)random_below(256);
        check_damaged(codec, &other, payload, count + 1, used);
    }
    CHECK(taken * 100 < cuts);
    CHECK_EQ(decode(codec, payload, sizeof(payload), NULL), DE_CORRUPT);
    free(other.window);
}

/* The decoder writes in its own parts of the window only. */
static void check_window_edges(const struct de_dense_window *window)
{
    for (size_t i = 0; i < WIDEST_OVERRUN; i++)
        CHECK_EQ(window->literals[DE_PAGE_SIZE + i], 0);
    for (size_t i = 0; i < FRONT_PADDING; i++)
        CHECK_EQ(window->payload[i] | window->payload[sizeof(window->payload) - 1 - i], 0);
}

static void test_every_flipped_bit_of_a_payload(const struct codec *codec)
{
    uint8_t page[DE_PAGE_SIZE], reference[DE_PAGE_SIZE], payload[DE_DENSE_MAX_BYTES];
    const struct codec other = {.model = codec->model, .window = make_window()};
    unsigned taken = 0, refused = 0;
    for (unsigned round = 0; round < 12; round++) {
        fill_page(page, (enum sort)(round % SORTS));
        derive_page(page, reference, round % 5);
        const uint8_t *used = round < SORTS ? reference : NULL;
        size_t count = encode(codec, page, used, payload);
        for (size_t bit = 0; bit < count * 8; bit++) {
            payload[bit / 8] ^= (uint8_t)(1u << bit % 8);
            check_damaged(codec, &other, payload, count, used);
            if (decode(codec, payload, count, used) == DE_OK)
                taken++;
            else
                refused++;
            payload[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        CHECK(count == 0 || decode(codec, payload, count, used) == DE_OK);
    }
    CHECK(refused > 0 && taken > 0); /* a flipped bit may just mean another literal */
    check_window_edges(codec->window);
    free(other.window);
}

static void test_random_payloads_do_no_harm(const struct codec *codec)
{
    uint8_t payload[DE_DENSE_MAX_BYTES], reference[DE_PAGE_SIZE];
    const struct codec other = {.model = codec->model, .window = make_window()};
    fill_at_random(reference, sizeof(reference));
    for (unsigned round = 0; round < 4000; round++) {
        size_t count = 4 + random_below(round % 2 ? 40 : DE_DENSE_MAX_BYTES - 4);
        fill_at_random(payload, count);
        uint32_t header = 1 | random_below(DE_PAGE_SIZE + 1) << 4 | random_below((unsigned)count - 3) << 17;
        memcpy(payload, &header, 4);
        check_damaged(codec, &other, payload, count, round % 3 ? reference : NULL);
    }
    check_window_edges(codec->window);
    free(other.window);
}

static void test_wrong_has_reference_does_no_harm(const struct codec *codec)
{
    uint8_t page[DE_PAGE_SIZE], reference[DE_PAGE_SIZE], payload[DE_DENSE_MAX_BYTES];
    unsigned wrong = 0;
    for (unsigned round = 0; round < 200; round++) {
        fill_page(page, (enum sort)(round % SORTS));
        derive_page(page, reference, round % 6);
        const uint8_t *used = round % 2 ? reference : NULL;
        size_t count = encode(codec, page, used, payload);
        int status = decode(codec, payload, count, used ? NULL : reference);
        CHECK(status == DE_OK || status == DE_CORRUPT);
        wrong += status == DE_CORRUPT || memcmp(codec->window->page, page, DE_PAGE_SIZE) != 0;
    }
    CHECK(wrong > 100);
}

static void test_headers_are_checked(const struct codec *codec)
{
    uint8_t payload[DE_DENSE_MAX_BYTES] = {0};
    for (unsigned version = 0; version < 16; version++) {
        uint32_t header = version | DE_PAGE_SIZE << 4 | 2u << 17;
        memcpy(payload, &header, 4);
        int status = decode(codec, payload, 6, NULL);
        CHECK(version == 1 ? status == DE_OK || status == DE_CORRUPT : status == DE_CORRUPT);
    }
    const uint32_t refused[] = {1 | (DE_PAGE_SIZE + 1) << 4,
                                1 | 8191u << 4,
                                1 | 3u << 17,
                                1 | 8191u << 17,
                                1 | 1u << 30,
                                UINT32_MAX,
                                0};
    for (unsigned i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        memcpy(payload, &refused[i], 4);
        CHECK_EQ(decode(codec, payload, 6, NULL), DE_CORRUPT);
    }
}

static size_t save(const struct de_dense_model *model, uint8_t out[DE_DENSE_MODEL_MAX_BYTES])
{
    size_t count = de_dense_model_save(model, out);
    CHECK(count > 0 && count <= DE_DENSE_MODEL_MAX_BYTES);
    return count;
}

static int load(const uint8_t *bytes, size_t count, struct de_dense_model **model)
{
    uint8_t *exact = allocate(count);
    memcpy(exact, bytes, count);
    int status = de_dense_model_load(exact, count, model);
    free(exact);
    return status;
}

static void test_a_saved_model_is_the_model(const struct codec *codec)
{
    uint8_t bytes[DE_DENSE_MODEL_MAX_BYTES], again[DE_DENSE_MODEL_MAX_BYTES];
    uint8_t page[DE_PAGE_SIZE], left[DE_DENSE_MAX_BYTES], right[DE_DENSE_MAX_BYTES];
    size_t saved = save(codec->model, bytes);
    struct codec loaded = *codec;
    CHECK_EQ(load(bytes, saved, &loaded.model), DE_OK);
    CHECK_EQ(save(loaded.model, again), saved);
    CHECK(memcmp(bytes, again, saved) == 0);
    CHECK_EQ(de_dense_model_bytes(loaded.model), de_dense_model_bytes(codec->model));
    for (unsigned round = 0; round < 60; round++) {
        fill_page(page, (enum sort)(round % SORTS));
        size_t count = encode(codec, page, NULL, left);
        CHECK_EQ(encode(&loaded, page, NULL, right), count);
        CHECK(memcmp(left, right, count) == 0);
        CHECK(count == 0 || decode(&loaded, left, count, NULL) == DE_OK);
    }
    de_dense_model_free(loaded.model);
}

static void test_training_depends_on_its_arguments_only(void)
{
    uint8_t bytes[3][DE_DENSE_MODEL_MAX_BYTES];
    size_t saved = 0;
    for (unsigned i = 0; i < 3; i++) {
        struct de_dense_model *model = train_model(i < 2 ? 42 : 43);
        saved = save(model, bytes[i]);
        de_dense_model_free(model);
    }
    CHECK(memcmp(bytes[0], bytes[1], saved) == 0);
    CHECK(memcmp(bytes[0], bytes[2], saved) != 0);
    struct de_dense_model *untrained = NULL, *fresh = default_model();
    CHECK_EQ(de_dense_model_train(NULL, NULL, 0, &untrained), DE_OK);
    CHECK_EQ(save(untrained, bytes[0]), save(fresh, bytes[1]));
    CHECK(memcmp(bytes[0], bytes[1], saved) == 0);
    de_dense_model_free(untrained);
    de_dense_model_free(fresh);
}

/* Counting a sample in parts and adding them up is counting it whole. */
static void test_counts_of_parts_add_up(const struct codec *codec)
{
    enum { PAGES = 60, FIRST = 20 };
    uint8_t *bytes = allocate(PAGES * DE_PAGE_SIZE), saved[2][DE_DENSE_MODEL_MAX_BYTES];
    const uint8_t *pages[PAGES], *references[PAGES] = {NULL};
    struct de_dense_counts *whole = NULL, *sum = NULL, *part = NULL;
    CHECK_EQ(de_dense_counts_create(&whole), DE_OK);
    CHECK_EQ(de_dense_counts_create(&sum), DE_OK);
    CHECK_EQ(de_dense_counts_create(&part), DE_OK);
    for (unsigned i = 0; i < PAGES; i++) {
        pages[i] = bytes + (size_t)i * DE_PAGE_SIZE;
        fill_page(bytes + (size_t)i * DE_PAGE_SIZE, (enum sort)(i % SORTS));
    }
    de_dense_count(codec->encoder, codec->model, pages, references, PAGES, whole);
    de_dense_count(codec->encoder, codec->model, pages, references, FIRST, sum);
    de_dense_counts_add(sum, part); /* nothing counted: changes nothing */
    de_dense_count(codec->encoder, codec->model, pages + FIRST, references, PAGES - FIRST, part);
    de_dense_counts_add(sum, part);
    for (unsigned i = 0; i < 2; i++) {
        struct de_dense_model *model = NULL;
        CHECK_EQ(de_dense_model_make(i ? sum : whole, &model), DE_OK);
        CHECK_EQ(save(model, saved[i]), SAVED_END);
        de_dense_model_free(model);
    }
    CHECK(memcmp(saved[0], saved[1], SAVED_END) == 0);
    de_dense_counts_free(whole);
    de_dense_counts_free(sum);
    de_dense_counts_free(part);
    free(bytes);
}

/* Training pays on what it was trained for. */
static void test_training_makes_payloads_shorter(struct codec *trained, struct codec *untrained)
{
    uint8_t page[DE_PAGE_SIZE], payload[DE_DENSE_MAX_BYTES];
    size_t with = 0, without = 0;
    for (unsigned round = 0; round < 60; round++) {
        fill_page(page, round % 2 ? TEXT : STRUCTURES);
        with += encode(trained, page, NULL, payload);
        without += encode(untrained, page, NULL, payload);
    }
    CHECK(with * 10 < without * 9);
}

/* A damaged model is refused, or is another valid model, with which any payload is safe to decode. */
static bool check_hostile_model(const uint8_t *bytes, size_t count, const uint8_t *payload, size_t length,
                                struct codec *codec)
{
    codec->model = NULL;
    int status = load(bytes, count, &codec->model);
    CHECK(status == DE_OK || status == DE_CORRUPT);
    if (status != DE_OK)
        return false;
    status = decode(codec, payload, length, NULL);
    CHECK(status == DE_OK || status == DE_CORRUPT);
    return true;
}

static void test_every_flipped_bit_of_a_model(const struct codec *codec)
{
    uint8_t bytes[DE_DENSE_MODEL_MAX_BYTES], page[DE_PAGE_SIZE], payload[DE_DENSE_MAX_BYTES];
    size_t saved = save(codec->model, bytes);
    CHECK_EQ(saved, SAVED_END);
    fill_page(page, STRUCTURES);
    size_t length = encode(codec, page, NULL, payload);
    struct codec damaged = *codec;
    for (size_t bit = 0; bit < saved * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        /* The contexts may be anything; a changed code length leaves no complete code. */
        bool valid = check_hostile_model(bytes, saved, payload, length, &damaged);
        CHECK_EQ(valid, bit / 8 >= SAVED_NEXT && bit / 8 < SAVED_LITERALS);
        if (valid && bit % 64 == 0)
            CHECK(check_round_trip(&damaged, page, NULL) > 0);
        de_dense_model_free(damaged.model);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    for (size_t cut = 0; cut < saved; cut += 1 + cut / 8)
        CHECK_EQ(load(bytes, cut, &damaged.model), DE_CORRUPT);
    CHECK_EQ(load(bytes, saved + 1, &damaged.model), DE_CORRUPT);
}

/* Exchanging two code lengths of one alphabet keeps its code complete. */
static void test_exchanged_code_lengths(const struct codec *codec)
{
    uint8_t bytes[DE_DENSE_MODEL_MAX_BYTES], page[DE_PAGE_SIZE], payload[DE_DENSE_MAX_BYTES];
    size_t saved = save(codec->model, bytes);
    fill_page(page, PIECES);
    size_t length = encode(codec, page, NULL, payload);
    struct codec damaged = *codec;
    for (unsigned round = 0; round < 300; round++) {
        unsigned exchanges = 1 + random_below(200);
        for (; exchanges > 0; exchanges--) {
            uint8_t *table = bytes + SAVED_LITERALS + random_below(16) * 128;
            unsigned left = random_below(128), right = random_below(128);
            uint8_t kept = table[left];
            table[left] = table[right];
            table[right] = kept;
        }
        CHECK(check_hostile_model(bytes, saved, payload, length, &damaged));
        check_round_trip(&damaged, page, NULL);
        de_dense_model_free(damaged.model);
    }
}

/* A model whose codes are almost equally long: docs/formats.md's example. */
static struct de_dense_model *flat_model(void)
{
    uint8_t bytes[SAVED_END] = {1};
    struct de_dense_model *model = NULL;
    memset(bytes + SAVED_LITERALS, 0x88, 2048);
    for (unsigned i = 0; i < 420; i++)
        bytes[SAVED_SEQUENCES + i] = i % 210 < 46 ? 0x88 : 0x99;
    for (unsigned i = 0; i < 736; i++)
        bytes[SAVED_LENGTHS + i] = i % 23 < 9 ? 0x55 : 0x66;
    CHECK_EQ(load(bytes, sizeof(bytes), &model), DE_OK);
    return model;
}

static void test_the_documented_example(void)
{
    static const uint8_t payload[] = {0x11, 0x00, 0x02, 0x00, 0x82, 0xa4, 0xff, 0xbf};
    uint8_t page[DE_PAGE_SIZE], out[DE_DENSE_MAX_BYTES];
    struct codec codec = make_codec(flat_model());
    memset(page, 'A', sizeof(page));
    CHECK_EQ(decode(&codec, payload, sizeof(payload), NULL), DE_OK);
    CHECK(memcmp(codec.window->page, page, sizeof(page)) == 0);
    CHECK_EQ(encode(&codec, page, NULL, out), sizeof(payload));
    CHECK(memcmp(out, payload, sizeof(payload)) == 0);
    for (unsigned bit = 30; bit < 32; bit++) {
        memcpy(out, payload, sizeof(payload));
        out[bit / 8] |= (uint8_t)(1u << bit % 8);
        CHECK_EQ(decode(&codec, out, sizeof(payload), NULL), DE_CORRUPT);
    }
    free_codec(&codec);
}

/*
 * The payload that reads furthest past its end: it has no bytes, and what lies behind it, zeroes, means "no
 * literals, the distance of before, one byte" in codes as long as an all-zero code can be. Decoding makes the
 * whole page of nothing before it finds out.
 */
static void test_readers_stay_in_the_window(void)
{
    const uint8_t header[4] = {1};
    uint8_t reference[DE_PAGE_SIZE];
    struct codec codec = make_codec(flat_model());
    fill_at_random(reference, sizeof(reference));
    CHECK_EQ(decode(&codec, header, sizeof(header), reference), DE_CORRUPT);
    CHECK(memcmp(codec.window->page, reference, DE_PAGE_SIZE) == 0);
    CHECK_EQ(decode(&codec, header, sizeof(header), NULL), DE_CORRUPT);
    check_window_edges(codec.window);
    free_codec(&codec);
}

static uint64_t kraft(const uint8_t *lengths, size_t symbols, unsigned limit)
{
    uint64_t used = 0;
    for (size_t i = 0; i < symbols; i++) {
        CHECK(lengths[i] >= 1 && lengths[i] <= limit);
        used += 1ull << (limit - lengths[i]);
    }
    return used;
}

static void test_codes_are_complete_and_decodable(void)
{
    for (unsigned round = 0; round < 2000; round++) {
        size_t symbols = 2 + random_below(round % 10 ? 60 : HUFFMAN_MAX_SYMBOLS - 2);
        unsigned least = 1;
        while (1u << least < symbols)
            least++;
        unsigned limit = least + random_below(HUFFMAN_MAX_BITS - least + 1);
        uint32_t counts[HUFFMAN_MAX_SYMBOLS];
        uint8_t lengths[HUFFMAN_MAX_SYMBOLS];
        uint16_t codes[HUFFMAN_MAX_SYMBOLS];
        for (size_t i = 0; i < symbols; i++)
            counts[i] = random_below(3) ? random_below(1u << random_below(31)) : 0;
        if (round % 7 == 0)
            memset(counts, round % 2 ? 0xff : 0, sizeof(counts));
        huffman_lengths(counts, symbols, limit, lengths);
        CHECK_EQ(kraft(lengths, symbols, limit), 1ull << limit);
        CHECK(huffman_codes(lengths, symbols, limit, codes));
        for (size_t i = 0; i < symbols; i++)
            for (size_t j = 0; j < i; j++) {
                unsigned shorter = lengths[i] < lengths[j] ? lengths[i] : lengths[j];
                CHECK(((codes[i] ^ codes[j]) & ((1u << shorter) - 1)) != 0);
            }
    }
}

/* What the counts weigh in huffman_lengths(): nothing counts as far less than one. */
static uint64_t weigh(const uint32_t *counts, const uint8_t *lengths, size_t symbols)
{
    uint64_t bits = 0;
    for (size_t i = 0; i < symbols; i++)
        bits += (counts[i] ? (uint64_t)counts[i] * 32 : 1) * lengths[i];
    return bits;
}

/* The cheapest complete code of @p symbols symbols from @p at on, trying every length for each. */
static uint64_t cheapest(const uint32_t *counts, size_t symbols, size_t at, unsigned limit, uint32_t space)
{
    if (at == symbols)
        return space == 0 ? 0 : UINT64_MAX / 2;
    uint64_t best = UINT64_MAX / 2;
    for (unsigned length = 1; length <= limit; length++) {
        uint32_t taken = 1u << (limit - length);
        if (taken > space)
            continue;
        uint64_t bits = cheapest(counts, symbols, at + 1, limit, space - taken) +
                        (counts[at] ? (uint64_t)counts[at] * 32 : 1) * length;
        best = bits < best ? bits : best;
    }
    return best;
}

static void test_codes_are_nearly_optimal(void)
{
    for (unsigned round = 0; round < 400; round++) {
        size_t symbols = 2 + random_below(5);
        uint32_t counts[8];
        uint8_t lengths[8];
        for (size_t i = 0; i < symbols; i++)
            counts[i] = random_below(4) ? random_below(1u << random_below(12)) : 0;
        /* No limit that matters: optimal. */
        huffman_lengths(counts, symbols, 6, lengths);
        CHECK_EQ(weigh(counts, lengths, symbols), cheapest(counts, symbols, 0, 6, 64));
        /* A tight limit: a heuristic, never far off. */
        huffman_lengths(counts, symbols, 3, lengths);
        CHECK(weigh(counts, lengths, symbols) * 100 <= cheapest(counts, symbols, 0, 3, 8) * 115);
    }
}

static void test_incomplete_codes_are_refused(void)
{
    uint16_t codes[HUFFMAN_MAX_SYMBOLS];
    const struct {
        uint8_t lengths[4];
        bool complete;
    } cases[] = {
        {{1, 2, 3, 3}, true},  {{2, 2, 2, 2}, true},  {{3, 3, 2, 1}, true},  {{2, 2, 2, 3}, false},
        {{1, 2, 3, 2}, false}, {{1, 1, 1, 1}, false}, {{1, 2, 3, 0}, false}, {{1, 2, 3, 4}, false},
        {{3, 3, 3, 3}, false}, {{1, 1, 3, 3}, false}, {{0, 0, 0, 0}, false}, {{255, 1, 2, 3}, false},
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        CHECK_EQ(huffman_codes(cases[i].lengths, 4, 3, codes), cases[i].complete);
}

int main(void)
{
    test_codes_are_complete_and_decodable();
    test_codes_are_nearly_optimal();
    test_incomplete_codes_are_refused();
    test_training_depends_on_its_arguments_only();
    struct codec codecs[] = {make_codec(default_model()), make_codec(train_model(7))};
    test_counts_of_parts_add_up(&codecs[1]);
    test_training_makes_payloads_shorter(&codecs[1], &codecs[0]);
    for (unsigned i = 0; i < 2; i++) {
        test_every_sort_of_page_round_trips(&codecs[i]);
        test_moved_noise_is_a_short_patch(&codecs[i]);
        test_runs_at_every_alignment(&codecs[i]);
        test_noise_stays_raw(&codecs[i]);
        test_capacity_is_kept(&codecs[i]);
        test_cut_payloads_are_refused(&codecs[i]);
        test_every_flipped_bit_of_a_payload(&codecs[i]);
        test_random_payloads_do_no_harm(&codecs[i]);
        test_wrong_has_reference_does_no_harm(&codecs[i]);
        test_headers_are_checked(&codecs[i]);
        test_a_saved_model_is_the_model(&codecs[i]);
        test_every_flipped_bit_of_a_model(&codecs[i]);
    }
    test_exchanged_code_lengths(&codecs[1]);
    test_the_documented_example();
    test_readers_stay_in_the_window();
    free_codec(&codecs[0]);
    free_codec(&codecs[1]);
    return 0;
}
