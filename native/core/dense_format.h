/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file dense_format.h
 * What the dense form's model, encoder and decoder agree on. The bit-by-bit description is docs/formats.md.
 *
 * A page is a list of sequences (run of literals, then a copy). A sequence takes
 *   - one code for (run class, copy kind), in one of two contexts: was the previous copy's distance a
 * repeated one;
 *   - one code for the copy's length, in a context of (what sort of kind, position modulo 8): structures in
 * memory are made of words, so where a copy starts in its word says a lot about where it ends;
 *   - extra bits of run, distance and length.
 * Literals have 16 codes, chosen by a state machine: a context and a literal in it give the next one's
 * context. It is trained to tell apart what differs most in what follows, so a context may stand for the last
 * two or three literals; to a decoder it costs no more than one made of the last literal alone.
 */
#ifndef DIFFENGINE_DENSE_FORMAT_H
#define DIFFENGINE_DENSE_FORMAT_H

#include <diffengine/dense.h>

#include <string.h>

enum {
    DENSE_VERSION = 1,

    LITERAL_CONTEXTS = 16,
    LITERAL_SYMBOLS = 256,
    LITERAL_BITS =
        10, /* longest code; 11 would gain 0.04 % and double the table, which then fits no L1 cache */

    RUN_CLASSES = 12,
    REPEATS = 3,     /* kinds 0..2: the distance of one of the last three copies */
    WORD_KINDS = 19, /* kinds 3..21: a new distance that is a multiple of 8 */
    BYTE_KINDS = 13, /* kinds 22..34: any other new distance */
    FIRST_WORD_KIND = REPEATS,
    FIRST_BYTE_KIND = REPEATS + WORD_KINDS,
    KINDS = REPEATS + WORD_KINDS + BYTE_KINDS,
    SEQUENCE_CONTEXTS = 2,
    SEQUENCE_SYMBOLS = RUN_CLASSES * KINDS,
    SEQUENCE_BITS = 12,

    LENGTH_SORTS = 4, /* repeat 0, other repeat, word distance, byte distance */
    LENGTH_CONTEXTS = LENGTH_SORTS * 8,
    LENGTH_SYMBOLS = 46,
    LENGTH_BITS = 9,    /* 10 would gain 0.07 % and double the table */
    LENGTH_DIRECT = 32, /* lengths up to here have a symbol each */

    /* Payload header: version 4 bits, literal count 13 bits, bytes of the literal region 13 bits. */
    HEADER_BYTES = 4,
    COUNT_BITS = 13,
};

/** A range of values behind one symbol: base + extra bits, the extra ones shifted left (word distances: by
 * 3). */
struct dense_range {
    uint16_t base;
    uint8_t extra_bits;
    uint8_t shift;
};

extern const struct dense_range dense_run_ranges[RUN_CLASSES];
extern const struct dense_range dense_distance_ranges[KINDS]; /* kinds below REPEATS: all 0 */
extern const struct dense_range dense_length_ranges[LENGTH_SYMBOLS];

struct code_tables {
    uint16_t literal[LITERAL_CONTEXTS][LITERAL_SYMBOLS];
    uint16_t sequence[SEQUENCE_CONTEXTS][SEQUENCE_SYMBOLS];
    uint16_t length[LENGTH_CONTEXTS][LENGTH_SYMBOLS];
};

struct length_tables {
    uint8_t literal[LITERAL_CONTEXTS][LITERAL_SYMBOLS];
    uint8_t sequence[SEQUENCE_CONTEXTS][SEQUENCE_SYMBOLS];
    uint8_t length[LENGTH_CONTEXTS][LENGTH_SYMBOLS];
};

/*
 * Decoding entries, looked up by the next *_BITS bits of a stream:
 *   literal   symbol 0-7, code bits 8-11, next literal's context 12-15
 *   sequence  code bits 0-3, all bits including extras 4-9, run class 10-13, kind 14-19
 *   length    code bits 0-3, all bits including extras 4-8, symbol 9-14
 */
struct de_dense_model {
    uint8_t literal_next[LITERAL_CONTEXTS][LITERAL_SYMBOLS]; /* context, literal in it -> the next one's */
    struct length_tables bits;                               /* every code's length: what is saved */
    struct code_tables codes; /* bit-reversed, to be written least significant bit first */
    /* For the parser: expected bits of a run, kind unknown; bits of the lengths that have a symbol each. */
    uint32_t run_price[DE_PAGE_SIZE + 1];
    uint16_t length_price[LENGTH_CONTEXTS][LENGTH_DIRECT];
    uint16_t literal_decode[LITERAL_CONTEXTS][1 << LITERAL_BITS];
    uint32_t sequence_decode[SEQUENCE_CONTEXTS][1 << SEQUENCE_BITS];
    uint16_t length_decode[LENGTH_CONTEXTS][1 << LENGTH_BITS];
};

/** The context of a stream's first literal: as if a 0 in context 0 came before. */
static inline uint32_t dense_first_context(const struct de_dense_model *model)
{
    return model->literal_next[0][0];
}

/** The repeated distances at a page's start: the same offset in the reference, the next word, two words. */
static inline void dense_first_repeats(bool has_reference, uint32_t repeats[REPEATS])
{
    repeats[0] = has_reference ? DE_PAGE_SIZE : 8;
    repeats[1] = has_reference ? 8 : 16;
    repeats[2] = has_reference ? 16 : 1;
}

/** Move the distance of the copy just made to the front. @p slot: which repeat it was, REPEATS - 1 for a new
 * one. */
static inline void dense_repeat_used(uint32_t repeats[REPEATS], uint32_t slot, uint32_t distance)
{
    for (uint32_t i = slot; i > 0; i--)
        repeats[i] = repeats[i - 1];
    repeats[0] = distance;
}

static inline uint32_t dense_length_context(uint32_t kind, uint32_t position)
{
    uint32_t sort = kind == 0 ? 0 : kind < FIRST_WORD_KIND ? 1 : kind < FIRST_BYTE_KIND ? 2 : 3;
    return sort * 8 + (position & 7);
}

static inline uint32_t dense_log2(uint32_t value)
{
    return 31 - (uint32_t)__builtin_clz(value);
}

static inline uint32_t dense_run_class(uint32_t run)
{
    if (run < 7)
        return run;
    if (run < 37)
        return run < 9 ? 7 : run < 13 ? 8 : run < 21 ? 9 : 10;
    return 11;
}

/** The kind of a new distance (not a repeated one), 1 .. 2 * DE_PAGE_SIZE - 1. */
static inline uint32_t dense_distance_kind(uint32_t distance)
{
    if (distance & 7)
        return FIRST_BYTE_KIND + dense_log2(distance);
    uint32_t words = distance >> 3;
    uint32_t log = dense_log2(words);
    return log == 0 ? FIRST_WORD_KIND : FIRST_WORD_KIND + 1 + (log - 1) * 2 + ((words >> (log - 1)) & 1);
}

static inline uint32_t dense_length_symbol(uint32_t length)
{
    if (length <= LENGTH_DIRECT)
        return length - 1;
    uint32_t log = dense_log2(length - 1);
    return LENGTH_DIRECT + (log - 5) * 2 + (((length - 1) >> (log - 1)) & 1);
}

#endif
