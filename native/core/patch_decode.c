/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The fast patch form's decoder: the fault path's hot loop.
 *
 * It starts from a copy of the reference and applies operations in order of position. To keep the processor
 * from guessing, literals and copies run the same instructions: 16 bytes from a selected source are stored,
 * then the reference's own bytes are stored again behind the operation. So everything behind the current
 * position always equals the reference, and a wide store needs no exact length. What could reach over an edge
 * (of page, reference or patch) goes through a careful twin.
 */
#include <diffengine/patch.h>
#include <diffengine/status.h>

#include <stdbool.h>

#include "patch_format.h"

enum {
    WIDE = 16,
    DATA_REACH = 4 + WIDE, /* the most bytes of the data stream that one short operation looks at */
};

/* What the low nibble of a token means, as numbers and masks: the hot loop computes with them instead of
 * branching. */
struct operation {
    uint16_t width;     /* bytes it makes, less what a copy's word adds; for a long one, more than any page */
    uint8_t data_bytes; /* bytes of the data stream it takes after the gap's */
    int8_t is_copy;     /* -1: has a word that names its source; 0: its source is the data stream */
};

/* The same for the high nibble. */
struct gap {
    uint8_t base;
    uint8_t data_bytes;
    uint16_t mask;
};

#define LITERAL(count)                                                                                       \
    {                                                                                                        \
        .width = (count), .data_bytes = (count)                                                              \
    }
#define COPY(count)                                                                                          \
    {                                                                                                        \
        .width = (count), .data_bytes = 2, .is_copy = -1                                                     \
    }
#define LONG                                                                                                 \
    {                                                                                                        \
        .width = DE_PAGE_SIZE + 1, .data_bytes = 2                                                           \
    }

static const struct operation operations[16] = {
    LITERAL(1), LITERAL(2),  LITERAL(3),  LITERAL(4),  LITERAL(5),  LITERAL(6), LITERAL(7), LITERAL(8),
    LITERAL(9), LITERAL(10), LITERAL(11), LITERAL(12), LITERAL(13), COPY(1),    COPY(9),    LONG,
};

#define GAP(bytes)                                                                                           \
    {                                                                                                        \
        .base = (bytes)                                                                                      \
    }

static const struct gap gaps[16] = {
    GAP(0),
    GAP(1),
    GAP(2),
    GAP(3),
    GAP(4),
    GAP(5),
    GAP(6),
    GAP(7),
    GAP(8),
    GAP(9),
    GAP(10),
    GAP(11),
    GAP(12),
    GAP(13),
    {.base = PATCH_GAP_BYTE, .data_bytes = 1, .mask = 0xff},
    {.base = PATCH_GAP_BYTE, .data_bytes = 2, .mask = 0xffff},
};

struct relocation {
    uint64_t delta;
    uint64_t mask;
    size_t steps;
};

struct decoder {
    const uint8_t *begin; /* of the patch */
    const uint8_t *token;
    const uint8_t *token_end;
    const uint8_t *steps;
    const uint8_t *data;
    const uint8_t *data_end;
    const uint8_t *reference;
    uint8_t *page;
    size_t position;
    unsigned relocation_count;
    struct relocation relocations[PATCH_MAX_RELOCATIONS];
};

static inline void copy_wide(uint8_t *to, const uint8_t *from)
{
    uint8_t bytes[WIDE]; /* all loads before all stores: a copy may overlap what it reads */
    memcpy(bytes, from, WIDE);
    memcpy(to, bytes, WIDE);
}

/* Read @count (at most eight) bytes of the data stream as a little-endian number. */
static bool take(struct decoder *decoder, size_t count, uint64_t *number)
{
    size_t left = (size_t)(decoder->data_end - decoder->data);
    if (left < count)
        return false;
    *number = 0;
    if (left >= sizeof *number && count > 0)
        *number = load64(decoder->data) & low_bytes(count);
    else
        memcpy(number, decoder->data, count);
    decoder->data += count;
    return true;
}

static bool put_literals(struct decoder *decoder, size_t count)
{
    if ((size_t)(decoder->data_end - decoder->data) < count)
        return false;
    memcpy(decoder->page + decoder->position, decoder->data, count);
    decoder->data += count;
    return true;
}

static bool put_copy(struct decoder *decoder, size_t source, size_t count)
{
    size_t offset = source % PATCH_SOURCE_PAGE;
    if (offset + count > DE_PAGE_SIZE)
        return false;
    const uint8_t *base = source & PATCH_SOURCE_PAGE ? decoder->page : decoder->reference;
    memmove(decoder->page + decoder->position, base + offset, count);
    return true;
}

static bool put_fill(struct decoder *decoder, size_t count)
{
    uint64_t word;
    if (!take(decoder, sizeof word, &word))
        return false;
    uint8_t *to = decoder->page + decoder->position;
    for (; count > sizeof word; count -= sizeof word, to += sizeof word)
        store64(to, word);
    memcpy(to, &word, count);
    return true;
}

/* The operation after a gap; moves the position behind it. */
static bool put_operation(struct decoder *decoder, unsigned code)
{
    size_t count = operations[code].width, kind = PATCH_LONG_LITERAL;
    uint64_t word = 0;
    if (code >= PATCH_COPY && !take(decoder, 2, &word))
        return false;
    if (code == PATCH_LONG) {
        count = word % (1u << PATCH_LONG_BITS) + 1;
        kind = word >> PATCH_LONG_BITS;
        if (kind == PATCH_LONG_COPY && (!take(decoder, 2, &word) || word >> PATCH_SOURCE_BITS))
            return false;
    } else if (code >= PATCH_COPY) {
        count += word >> PATCH_SOURCE_BITS;
        kind = PATCH_LONG_COPY;
    }
    if (decoder->position + count > DE_PAGE_SIZE || kind > PATCH_LONG_FILL)
        return false;
    bool done = kind == PATCH_LONG_LITERAL ? put_literals(decoder, count)
                : kind == PATCH_LONG_COPY  ? put_copy(decoder, word, count)
                                           : put_fill(decoder, count);
    decoder->position += count;
    return done;
}

/* One token of any kind, every access checked. */
static __attribute__((noinline)) bool step_carefully(struct decoder *decoder)
{
    unsigned token = *decoder->token++;
    const struct gap *gap = &gaps[token >> 4];
    uint64_t more;
    if (!take(decoder, gap->data_bytes, &more))
        return false;
    decoder->position += gap->base + more;
    return put_operation(decoder, token & 15);
}

/* Run operations until none is left or the data stream has passed @fast_end, behind which DATA_REACH bytes
 * can be read. */
static bool run(struct decoder *decoder, const uint8_t *fast_end)
{
    const uint8_t *token_at = decoder->token, *const token_end = decoder->token_end;
    const uint8_t *data = decoder->data;
    const uint8_t *const reference = decoder->reference;
    uint8_t *const page = decoder->page;
    const uint8_t *const pages[2] = {reference, page};
    size_t position = decoder->position;
    while (token_at < token_end && data <= fast_end) {
        unsigned token = *token_at;
        const struct gap *gap = &gaps[token >> 4];
        const struct operation *operation = &operations[token & 15];
        size_t start = position + gap->base + (load16(data) & gap->mask);
        const uint8_t *body = data + gap->data_bytes;
        /* Selected by arithmetic: the compiler would make branches of it, which the data makes unpredictable.
         */
        intptr_t is_copy = operation->is_copy;
        size_t word = load16(body) & (size_t)is_copy;
        size_t offset = word % PATCH_SOURCE_PAGE;
        size_t next = start + operation->width + (word >> PATCH_SOURCE_BITS);
        intptr_t copied = (intptr_t)(pages[word / PATCH_SOURCE_PAGE % 2] + offset);
        const uint8_t *source = body + ((copied - (intptr_t)body) & is_copy);
        /* Either within WIDE bytes of the end: together a single comparison. */
        if (__builtin_expect(((next + WIDE - 1) | (offset + WIDE - 1)) >= DE_PAGE_SIZE, 0)) {
            decoder->token = token_at;
            decoder->data = data;
            decoder->position = position;
            if (!step_carefully(decoder))
                return false;
            token_at = decoder->token;
            data = decoder->data;
            position = decoder->position;
            continue;
        }
        copy_wide(page + start, source);
        copy_wide(page + next, reference + next);
        data = body + operation->data_bytes;
        position = next;
        token_at++;
    }
    decoder->token = token_at;
    decoder->data = data;
    decoder->position = position;
    return true;
}

/* Run what is left from a copy with room behind it. */
static bool run_tail(struct decoder *decoder)
{
    uint8_t tail[2 * DATA_REACH] = {0};
    size_t left = (size_t)(decoder->data_end - decoder->data);
    if (left > DATA_REACH)
        return false; /* tokens ran out before the data did */
    if (decoder->data_end - decoder->begin >= DATA_REACH)
        memcpy(tail, decoder->data_end - DATA_REACH, DATA_REACH); /* a fixed size is fast */
    else
        memcpy(tail + DATA_REACH - left, decoder->data, left);
    decoder->data = tail + DATA_REACH - left;
    decoder->data_end = tail + DATA_REACH;
    return run(decoder, decoder->data_end) && decoder->token == decoder->token_end &&
           decoder->data == decoder->data_end;
}

static bool relocate(const struct relocation *relocation, const uint8_t *steps, uint8_t *page)
{
    size_t position = 0;
    for (size_t i = 0; i < relocation->steps; i++) {
        position += steps[i];
        if (position > DE_PAGE_SIZE - PATCH_RELOCATION_REACH)
            return false;
        uint64_t word = load64(page + position);
        uint64_t sum = word + (steps[i] == PATCH_SKIP ? 0 : relocation->delta);
        store64(page + position, (word & ~relocation->mask) | (sum & relocation->mask));
    }
    return true;
}

static bool read_relocation(struct decoder *decoder, struct relocation *relocation)
{
    uint64_t width, steps;
    if (!take(decoder, 1, &width) || width < 1 || width > sizeof(uint64_t) ||
        !take(decoder, width, &relocation->delta) || !take(decoder, 1, &steps))
        return false;
    relocation->mask = low_bytes(width);
    relocation->steps = steps;
    return true;
}

static bool read_header(struct decoder *decoder)
{
    uint64_t flags, tokens;
    if (!take(decoder, 1, &flags) || (flags & (PATCH_VERSION_MASK | PATCH_RESERVED)) != PATCH_VERSION ||
        !take(decoder, flags & PATCH_WIDE_COUNT ? 2 : 1, &tokens))
        return false;
    size_t steps = 0;
    decoder->relocation_count = flags >> PATCH_RELOCATIONS_SHIFT & 3;
    for (unsigned i = 0; i < decoder->relocation_count; i++) {
        if (!read_relocation(decoder, &decoder->relocations[i]))
            return false;
        steps += decoder->relocations[i].steps;
    }
    if ((size_t)(decoder->data_end - decoder->data) < tokens + steps)
        return false;
    decoder->token = decoder->data;
    decoder->token_end = decoder->steps = decoder->token + tokens;
    decoder->data = decoder->steps + steps;
    return true;
}

static void copy_page(uint8_t *page, const uint8_t *reference)
{
    /* A length that the compiler can't see makes it call the C library: at a known 4096 bytes, gcc emits a
     * slower "rep movs". */
    size_t count = DE_PAGE_SIZE;
    __asm__("" : "+r"(count));
    memcpy(page, reference, count);
}

int de_patch_decode(const uint8_t *untrusted_patch, size_t count, const uint8_t *reference, uint8_t *page)
{
    struct decoder decoder = {.begin = untrusted_patch,
                              .data = untrusted_patch,
                              .data_end = untrusted_patch + count,
                              .reference = reference,
                              .page = page};
    if (!read_header(&decoder))
        return DE_CORRUPT;
    copy_page(page, reference);
    if (decoder.data_end - decoder.data > DATA_REACH && !run(&decoder, decoder.data_end - DATA_REACH))
        return DE_CORRUPT;
    if (!run_tail(&decoder))
        return DE_CORRUPT;
    for (unsigned i = 0; i < decoder.relocation_count; i++) {
        if (!relocate(&decoder.relocations[i], decoder.steps, page))
            return DE_CORRUPT;
        decoder.steps += decoder.relocations[i].steps;
    }
    return DE_OK;
}
