/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "dense_model.h"

#include "huffman.h"

#include <diffengine/status.h>

#include <math.h>
#include <stdlib.h>

/** Enter every symbol of a code at all table places its bits begin. */
#define FILL_TABLE(table, table_bits, code, code_bits, value)                                                \
    for (uint32_t place = (code); place < 1u << (table_bits); place += 1u << (code_bits))                    \
    (table)[place] = (value)

static bool derive_literals(struct de_dense_model *model)
{
    for (int context = 0; context < LITERAL_CONTEXTS; context++) {
        const uint8_t *bits = model->bits.literal[context];
        uint16_t *codes = model->codes.literal[context];
        if (!huffman_codes(bits, LITERAL_SYMBOLS, LITERAL_BITS, codes))
            return false;
        for (uint32_t symbol = 0; symbol < LITERAL_SYMBOLS; symbol++) {
            uint32_t entry =
                symbol | (uint32_t)bits[symbol] << 8 | (uint32_t)model->literal_next[context][symbol] << 12;
            FILL_TABLE(model->literal_decode[context], LITERAL_BITS, codes[symbol], bits[symbol],
                       (uint16_t)entry);
        }
    }
    return true;
}

static bool derive_sequences(struct de_dense_model *model)
{
    for (int context = 0; context < SEQUENCE_CONTEXTS; context++) {
        const uint8_t *bits = model->bits.sequence[context];
        uint16_t *codes = model->codes.sequence[context];
        if (!huffman_codes(bits, SEQUENCE_SYMBOLS, SEQUENCE_BITS, codes))
            return false;
        for (uint32_t symbol = 0; symbol < SEQUENCE_SYMBOLS; symbol++) {
            uint32_t class = symbol / KINDS, kind = symbol % KINDS;
            uint32_t all =
                bits[symbol] + dense_run_ranges[class].extra_bits + dense_distance_ranges[kind].extra_bits;
            uint32_t entry = bits[symbol] | all << 4 | class << 10 | kind << 14;
            FILL_TABLE(model->sequence_decode[context], SEQUENCE_BITS, codes[symbol], bits[symbol], entry);
        }
    }
    return true;
}

static bool derive_copy_lengths(struct de_dense_model *model)
{
    for (int context = 0; context < LENGTH_CONTEXTS; context++) {
        const uint8_t *bits = model->bits.length[context];
        uint16_t *codes = model->codes.length[context];
        if (!huffman_codes(bits, LENGTH_SYMBOLS, LENGTH_BITS, codes))
            return false;
        for (uint32_t symbol = 0; symbol < LENGTH_SYMBOLS; symbol++) {
            uint32_t all = bits[symbol] + dense_length_ranges[symbol].extra_bits;
            uint32_t entry = bits[symbol] | all << 4 | symbol << 9;
            FILL_TABLE(model->length_decode[context], LENGTH_BITS, codes[symbol], bits[symbol],
                       (uint16_t)entry);
        }
    }
    return true;
}

/** What a run of each length costs when the copy after it is not known: -log2 of all its codes' space
 * together. */
static void derive_run_prices(struct de_dense_model *model)
{
    uint32_t class_price[RUN_CLASSES];
    for (int class = 0; class < RUN_CLASSES; class ++) {
        double space = 0;
        for (int context = 0; context < SEQUENCE_CONTEXTS; context++)
            for (int kind = 0; kind < KINDS; kind++)
                space += ldexp(0.5, -(int)model->bits.sequence[context][class * KINDS + kind]);
        class_price[class] = (uint32_t)lround(-log2(space)) + dense_run_ranges[class].extra_bits;
    }
    for (uint32_t run = 0; run <= DE_PAGE_SIZE; run++)
        model->run_price[run] = class_price[dense_run_class(run)];
}

static void derive_length_prices(struct de_dense_model *model)
{
    for (int context = 0; context < LENGTH_CONTEXTS; context++)
        for (int symbol = 0; symbol < LENGTH_DIRECT; symbol++)
            model->length_price[context][symbol] = model->bits.length[context][symbol];
}

bool dense_model_derive(struct de_dense_model *model)
{
    if (!derive_literals(model) || !derive_sequences(model) || !derive_copy_lengths(model))
        return false;
    derive_run_prices(model);
    derive_length_prices(model);
    return true;
}

int dense_model_build(const struct de_dense_counts *counts, const uint8_t next[LITERAL_PAIRS],
                      struct de_dense_model **model)
{
    struct de_dense_model *made = calloc(1, sizeof(*made));
    uint32_t(*literals)[LITERAL_SYMBOLS] = calloc(LITERAL_CONTEXTS, sizeof(*literals));
    if (!made || !literals) {
        free(made);
        free(literals);
        return DE_NO_MEMORY;
    }
    memcpy(made->literal_next, next, LITERAL_PAIRS);
    for (int pair = 0; pair < LITERAL_PAIRS; pair++)
        for (int symbol = 0; symbol < LITERAL_SYMBOLS; symbol++)
            literals[next[pair]][symbol] += counts->literal[pair][symbol];
    for (int i = 0; i < LITERAL_CONTEXTS; i++)
        huffman_lengths(literals[i], LITERAL_SYMBOLS, LITERAL_BITS, made->bits.literal[i]);
    for (int i = 0; i < SEQUENCE_CONTEXTS; i++)
        huffman_lengths(counts->sequence[i], SEQUENCE_SYMBOLS, SEQUENCE_BITS, made->bits.sequence[i]);
    for (int i = 0; i < LENGTH_CONTEXTS; i++)
        huffman_lengths(counts->length[i], LENGTH_SYMBOLS, LENGTH_BITS, made->bits.length[i]);
    free(literals);
    dense_model_derive(made); /* huffman_lengths() gives complete codes */
    *model = made;
    return DE_OK;
}

/* A saved model: version byte, the literals' next contexts, then all code lengths; two values to a byte, low
 * half first. */

static size_t save_nibbles(const uint8_t *values, size_t count, uint8_t *out)
{
    for (size_t i = 0; i < count; i += 2)
        out[i / 2] = (uint8_t)(values[i] | values[i + 1] << 4);
    return count / 2;
}

static void load_nibbles(const uint8_t *in, size_t count, uint8_t *values)
{
    for (size_t i = 0; i < count; i += 2) {
        values[i] = in[i / 2] & 15;
        values[i + 1] = in[i / 2] >> 4;
    }
}

enum {
    SAVED_NEXT_BYTES = LITERAL_PAIRS / 2,
    SAVED_BYTES = 1 + SAVED_NEXT_BYTES + sizeof(struct length_tables) / 2,
};
_Static_assert(SAVED_BYTES <= DE_DENSE_MODEL_MAX_BYTES, "a saved model fits its documented limit");

size_t de_dense_model_save(const struct de_dense_model *model, uint8_t *out)
{
    *out = DENSE_VERSION;
    size_t used = 1;
    used += save_nibbles(&model->literal_next[0][0], LITERAL_PAIRS, out + used);
    used += save_nibbles((const uint8_t *)&model->bits, sizeof(model->bits), out + used);
    return used;
}

int de_dense_model_load(const uint8_t *untrusted_bytes, size_t count, struct de_dense_model **model)
{
    if (count != SAVED_BYTES || untrusted_bytes[0] != DENSE_VERSION)
        return DE_CORRUPT;
    struct de_dense_model *made = calloc(1, sizeof(*made));
    if (!made)
        return DE_NO_MEMORY;
    load_nibbles(untrusted_bytes + 1, LITERAL_PAIRS, &made->literal_next[0][0]);
    load_nibbles(untrusted_bytes + 1 + SAVED_NEXT_BYTES, sizeof(made->bits), (uint8_t *)&made->bits);
    if (!dense_model_derive(made)) {
        free(made);
        return DE_CORRUPT;
    }
    *model = made;
    return DE_OK;
}

void de_dense_model_free(struct de_dense_model *model)
{
    free(model);
}

size_t de_dense_model_bytes(const struct de_dense_model *model)
{
    return sizeof(model->literal_decode) + sizeof(model->sequence_decode) + sizeof(model->length_decode);
}
