/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * libFuzzer target of the fast patch form. The input's first byte chooses:
 *   - an arbitrary patch for a reference drawn from the input: it must decode, or be refused, without a step
 * aside;
 *   - a page and a reference drawn from the input (both arbitrary, or the page an edited copy of the
 * reference): it must come out as it went in, at the exact capacity too, and must not be written at a smaller
 * one.
 *
 * Buffers are allocations of their exact size, so that the sanitizer sees each access outside.
 */
#include <diffengine/patch.h>
#include <diffengine/status.h>

#include <stdlib.h>
#include <string.h>

struct input {
    const uint8_t *bytes;
    size_t count;
};

static struct de_patch_encoder *encoder;

static void require(int condition)
{
    if (!condition)
        abort();
}

static uint8_t *allocate(size_t count)
{
    uint8_t *bytes = malloc(count ? count : 1);
    require(bytes != NULL);
    return bytes;
}

static uint64_t take(struct input *input, size_t count)
{
    uint64_t number = 0;
    size_t taken = count < input->count ? count : input->count;
    memcpy(&number, input->bytes, taken);
    input->bytes += taken;
    input->count -= taken;
    return number;
}

/* A page that repeats some of the input, with a counter mixed in so that it is not all alike. */
static void make_page(struct input *input, uint8_t *page)
{
    size_t period = take(input, 1) + 1;
    uint64_t mixed = take(input, 1);
    if (period > input->count)
        period = input->count;
    for (size_t i = 0; i < DE_PAGE_SIZE; i++)
        page[i] = (uint8_t)((period ? input->bytes[i % period] : 0) + mixed * (i / 64));
    input->bytes += period;
    input->count -= period;
}

static void edit(struct input *input, uint8_t *page)
{
    while (input->count >= 6) {
        unsigned kind = (unsigned)take(input, 1);
        size_t to = take(input, 2) % DE_PAGE_SIZE, count = take(input, 2) % (DE_PAGE_SIZE - to) + 1;
        if (kind % 4 == 0) { /* move */
            memmove(page + to, page + take(input, 2) % (DE_PAGE_SIZE - count + 1), count);
        } else if (kind % 4 == 1) { /* overwrite */
            count = count % 32 < DE_PAGE_SIZE - to ? count % 32 : DE_PAGE_SIZE - to;
            for (size_t i = 0; i < count; i++)
                page[to + i] = (uint8_t)take(input, 1);
        } else if (kind % 4 == 2) { /* fill */
            memset(page + to, (int)take(input, 1), count);
        } else { /* relocate */
            uint64_t delta = take(input, 1 + kind / 4 % 8), word;
            for (size_t i = to; i + 8 <= DE_PAGE_SIZE; i += 8 + count % 512) {
                memcpy(&word, page + i, sizeof word);
                word += delta;
                memcpy(page + i, &word, sizeof word);
            }
        }
    }
}

static void decode_arbitrary(struct input *input)
{
    uint8_t *reference = allocate(DE_PAGE_SIZE), *page = allocate(DE_PAGE_SIZE);
    for (size_t i = 0; i < DE_PAGE_SIZE; i++)
        reference[i] = (uint8_t)(i / 16 + i);
    uint8_t *patch = allocate(input->count);
    memcpy(patch, input->bytes, input->count);
    int status = de_patch_decode(patch, input->count, reference, page);
    require(status == DE_OK || status == DE_CORRUPT);
    free(patch);
    free(page);
    free(reference);
}

static void round_trip(const uint8_t *reference, const uint8_t *page, size_t smaller)
{
    uint8_t whole[DE_PATCH_MAX_BYTES], *rebuilt = allocate(DE_PAGE_SIZE);
    de_patch_load_reference(encoder, reference);
    size_t count = de_patch_encode(encoder, page, whole, sizeof whole);
    require(count <= sizeof whole);
    if (count) {
        uint8_t *exact = allocate(count), *small = allocate(smaller % count);
        require(de_patch_encode(encoder, page, exact, count) == count);
        require(memcmp(exact, whole, count) == 0);
        require(de_patch_encode(encoder, page, small, smaller % count) == 0);
        require(de_patch_decode(exact, count, reference, rebuilt) == DE_OK);
        require(memcmp(rebuilt, page, DE_PAGE_SIZE) == 0);
        free(small);
        free(exact);
    }
    free(rebuilt);
}

static void encode_arbitrary(struct input *input, int is_edited)
{
    uint8_t *reference = allocate(DE_PAGE_SIZE), *page = allocate(DE_PAGE_SIZE);
    size_t smaller = take(input, 2);
    make_page(input, reference);
    if (is_edited)
        memcpy(page, reference, DE_PAGE_SIZE);
    else
        make_page(input, page);
    edit(input, page);
    round_trip(reference, page, smaller);
    free(page);
    free(reference);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    if (!encoder)
        require(de_patch_encoder_create(&encoder) == DE_OK);
    struct input input = {bytes, count};
    switch (take(&input, 1) % 3) {
    case 0:
        decode_arbitrary(&input);
        break;
    case 1:
        encode_arbitrary(&input, 1);
        break;
    default:
        encode_arbitrary(&input, 0);
        break;
    }
    return 0;
}
