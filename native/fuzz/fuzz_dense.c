/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * libFuzzer target of the dense form. The input's first byte chooses:
 *   - a payload, a reference and a model that are all arbitrary bytes; the model as it is, or code lengths
 *     made from the input by exchanging those of a valid one, which leaves its codes complete;
 *   - a page and a reference drawn from the input, which must come out as they went in.
 *
 * A window is one allocation, so edges inside it are poisoned: the wide copies' and the bit readers' bounds.
 */
#include "input.h"

#include <diffengine/dense.h>
#include <diffengine/status.h>
#include <sanitizer/asan_interface.h>
#include <stdlib.h>
#include <string.h>

enum {
    WIDEST_OVERRUN = 40,
    SAVED_CONTEXTS = 1,    /* offset in a saved model */
    SAVED_LITERALS = 2049, /* 16 codes of 128 bytes */
    SAVED_SEQUENCES = SAVED_LITERALS + 2048,
    SAVED_LENGTHS = SAVED_SEQUENCES + 420, /* 32 codes of 23 bytes */
};

static struct de_dense_window *window;
static struct de_dense_encoder *encoder;
static struct de_dense_model *valid_model;
static uint8_t valid_bytes[DE_DENSE_MODEL_MAX_BYTES];
static size_t valid_count;

static void prepare(void)
{
    window = malloc(sizeof(*window));
    require(window != NULL);
    de_dense_window_init(window);
    ASAN_POISON_MEMORY_REGION(window->slack + WIDEST_OVERRUN, sizeof(window->slack) - WIDEST_OVERRUN);
    ASAN_POISON_MEMORY_REGION(window->literals + DE_PAGE_SIZE + WIDEST_OVERRUN,
                              sizeof(window->literals) - DE_PAGE_SIZE - WIDEST_OVERRUN);
    require(de_dense_encoder_create(&encoder) == DE_OK);
    require(de_dense_model_default(&valid_model) == DE_OK);
    valid_count = de_dense_model_save(valid_model, valid_bytes);
}

/** Bytes that repeat the input's, so that a short input fills a page. */
static void fill(struct input *input, uint8_t *out, size_t count)
{
    size_t taken = input->count < count ? input->count : count;
    memset(out, 0, count);
    if (taken > 0)
        memcpy(out, input->bytes, taken);
    input->bytes += taken;
    input->count -= taken;
}

static void exchange(uint8_t *table, size_t count, struct input *input)
{
    size_t left = take(input, 1) % count, right = take(input, 1) % count;
    uint8_t kept = table[left];
    table[left] = table[right];
    table[right] = kept;
}

/** A model of valid codes that the input reorders; NULL only when memory is short. */
static struct de_dense_model *reordered_model(struct input *input)
{
    uint8_t bytes[DE_DENSE_MODEL_MAX_BYTES];
    memcpy(bytes, valid_bytes, valid_count);
    for (uint32_t changes = take(input, 1); changes > 0 && input->count > 0; changes--) {
        uint32_t what = take(input, 1);
        if (what < 64)
            bytes[SAVED_CONTEXTS + what * 32 + take(input, 1) % 32] = (uint8_t)take(input, 1);
        else if (what < 128)
            exchange(bytes + SAVED_LITERALS + what % 16 * 128, 128, input);
        else if (what < 192)
            exchange(bytes + SAVED_SEQUENCES + what % 2 * 210, 210, input);
        else
            exchange(bytes + SAVED_LENGTHS + what % 32 * 23, 23, input);
    }
    struct de_dense_model *model = NULL;
    require(de_dense_model_load(bytes, valid_count, &model) != DE_CORRUPT);
    return model;
}

static void decode_anything(const struct de_dense_model *model, struct input input, int has_reference)
{
    size_t count = input.count < 8192 ? input.count : 8192;
    uint8_t *exact = malloc(count ? count : 1);
    require(exact != NULL);
    if (count > 0)
        memcpy(exact, input.bytes, count);
    if (count >= 4)
        exact[0] = (uint8_t)((exact[0] & 0xf0) | 1); /* the version: no use in trying others often */
    int status = de_dense_decode(model, exact, count, has_reference, window);
    require(status == DE_OK || status == DE_CORRUPT);
    free(exact);
}

static void round_trip(const struct de_dense_model *model, struct input input)
{
    uint8_t page[DE_PAGE_SIZE], reference[DE_PAGE_SIZE], *out = malloc(DE_DENSE_MAX_BYTES);
    require(out != NULL);
    int has_reference = (int)take(&input, 1) & 1;
    fill(&input, reference, sizeof(reference));
    fill(&input, page, sizeof(page));
    for (uint32_t copies = 8; input.count >= 6 && copies > 0; copies--) { /* pieces at any distance */
        uint32_t from = take(&input, 2) % DE_PAGE_SIZE, to = take(&input, 2) % DE_PAGE_SIZE;
        uint32_t length = take(&input, 2) % (DE_PAGE_SIZE - (from > to ? from : to) + 1);
        memmove(page + to, (has_reference && length & 1 ? reference : page) + from, length);
    }
    memcpy(window->reference, reference, DE_PAGE_SIZE);
    const uint8_t *used = has_reference ? reference : NULL;
    size_t count = de_dense_encode(encoder, model, page, used, out, DE_DENSE_MAX_BYTES);
    if (count > 0) {
        require(de_dense_decode(model, out, count, has_reference, window) == DE_OK);
        require(memcmp(window->page, page, DE_PAGE_SIZE) == 0);
        require(de_dense_encode(encoder, model, page, used, out, count - 1) == 0);
    }
    require(!has_reference || memcmp(window->reference, reference, DE_PAGE_SIZE) == 0);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    if (window == NULL)
        prepare();
    struct input input = {bytes, count};
    uint32_t choice = take(&input, 1);
    struct de_dense_model *model = NULL;
    if (choice & 1) { /* any bytes at all as a model */
        size_t model_count = input.count < valid_count ? input.count : valid_count;
        if (de_dense_model_load(input.bytes, model_count, &model) == DE_OK) {
            input.bytes += model_count;
            input.count -= model_count;
        }
    } else if (choice & 2) {
        model = reordered_model(&input);
    }
    if (choice & 4)
        fill(&input, window->reference, choice & 8 ? DE_PAGE_SIZE : 0);
    const struct de_dense_model *used = model ? model : valid_model;
    if (choice & 16)
        round_trip(used, input);
    else
        decode_anything(used, input, choice & 4 ? 1 : 0);
    de_dense_model_free(model);
    return 0;
}
