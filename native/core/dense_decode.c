/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "cpu.h"
#include "dense_format.h"

#include <diffengine/status.h>

/*
 * The fault path. What costs time in an entropy decoder is the chain from one symbol to the next, so there
 * are four independent chains: two halves of the literals, then kinds and lengths of the sequences; the
 * processor overlaps them.
 *
 * No reader checks its bounds. A literal takes at most LITERAL_BITS; a sequence takes at most 36 bits of one
 * stream and 19 of the other and makes at least one byte, so 4,096 of them end within the window's padding;
 * what was consumed is compared with the payload's length at the end.
 */
enum {
    PADDING_BYTES = 20480,
    LITERALS_PER_REFILL = 56 / LITERAL_BITS,
};
_Static_assert(PADDING_BYTES >= DE_PAGE_SIZE * 36 / 8 + 16, "a reader's worst run ends inside the padding");
_Static_assert(sizeof(((struct de_dense_window *)0)->payload) == 2 * PADDING_BYTES + DE_DENSE_MAX_BYTES,
               "the window has the padding this decoder needs");

struct bit_reader {
    uint64_t bits;
    uint32_t count;
    const uint8_t *next; /* forward: the first byte not loaded; backward: one past it */
};

static inline uint64_t load64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof(value));
    return value;
}

/** At least 56 bits, without a branch. */
static inline void refill_forward(struct bit_reader *reader)
{
    reader->bits |= load64(reader->next) << reader->count;
    reader->next += (63 - reader->count) >> 3;
    reader->count |= 56;
}

static inline void refill_backward(struct bit_reader *reader)
{
    reader->bits |= __builtin_bswap64(load64(reader->next - 8)) << reader->count;
    reader->next -= (63 - reader->count) >> 3;
    reader->count |= 56;
}

static inline void drop(struct bit_reader *reader, uint32_t count)
{
    reader->bits >>= count;
    reader->count -= count;
}

static inline uint32_t low_bits(uint64_t value, uint32_t count)
{
    return (uint32_t)(value & ((1ull << count) - 1));
}

/** Whether both readers together ended exactly where the region does. */
static bool region_consumed(const struct bit_reader *front, const struct bit_reader *back,
                            const uint8_t *start, const uint8_t *end)
{
    return (front->next - front->count / 8) - start + (end - (back->next + back->count / 8)) == end - start;
}

/** One literal of a chain. The context is kept as an offset into the tables. */
static inline uint8_t next_literal(const uint16_t *tables, struct bit_reader *reader, uint32_t *context)
{
    uint32_t entry = tables[*context + low_bits(reader->bits, LITERAL_BITS)];
    drop(reader, entry >> 8 & 15);
    *context = entry >> 12 << LITERAL_BITS;
    return (uint8_t)entry;
}

static bool decode_literals(const struct de_dense_model *model, const uint8_t *start, const uint8_t *end,
                            uint32_t count, uint8_t *literals)
{
    const uint16_t *tables = &model->literal_decode[0][0];
    struct bit_reader front = {.next = start}, back = {.next = end};
    uint32_t half = (count + 1) / 2, pairs = count / 2;
    uint32_t front_context = dense_first_context(model) << LITERAL_BITS, back_context = front_context;
    uint8_t *second = literals + half;
    uint32_t i = 0;
    for (; i + LITERALS_PER_REFILL <= pairs; i += LITERALS_PER_REFILL) {
        refill_forward(&front);
        refill_backward(&back);
        for (uint32_t j = i; j < i + LITERALS_PER_REFILL; j++) {
            literals[j] = next_literal(tables, &front, &front_context);
            second[j] = next_literal(tables, &back, &back_context);
        }
    }
    refill_forward(&front);
    refill_backward(&back);
    for (uint32_t j = i; j < pairs; j++)
        second[j] = next_literal(tables, &back, &back_context);
    /* The first half is the longer one, but it too has at most LITERALS_PER_REFILL left. */
    for (uint32_t j = i; j < half; j++)
        literals[j] = next_literal(tables, &front, &front_context);
    return region_consumed(&front, &back, start, end);
}

static inline void copy16(uint8_t *to, const uint8_t *from)
{
    memcpy(to, from, 16);
}

/** Copy @p length bytes, writing up to 31 more. Regions do not overlap within 16 bytes. */
static inline void copy_run(uint8_t *to, const uint8_t *from, uint32_t length)
{
    copy16(to, from);
    for (uint32_t done = 16; __builtin_expect(done < length, 0); done += 16)
        copy16(to + done, from + done);
}

/** Eight bytes that repeat the @p distance (1 to 7) bytes at @p from. */
static inline uint64_t repeated_bytes(const uint8_t *from, uint32_t distance)
{
    uint64_t pattern = load64(from) & ((1ull << 8 * distance) - 1);
    for (uint32_t shift = 8 * distance; shift < 64; shift *= 2)
        pattern |= pattern << shift;
    return pattern;
}

/** Copy from less than 16 bytes back: the pattern repeats. Writes up to 23 bytes more. */
static inline void copy_near(uint8_t *to, uint32_t distance, uint32_t length)
{
    const uint8_t *from = to - distance;
    if (distance < 8) {
        uint64_t pattern = repeated_bytes(from, distance);
        memcpy(to, &pattern, 8);
        /* From here on, the pattern can be taken from a multiple of its length back, which is 8 or more. */
        static const uint8_t multiple[8] = {0, 8, 8, 9, 8, 10, 12, 14};
        from = to + 8 - multiple[distance];
        to += 8;
        length = length > 8 ? length - 8 : 0;
    }
    memcpy(to, from, 8);
    memcpy(to + 8, from + 8, 8);
    for (uint32_t done = 16; __builtin_expect(done < length, 0); done += 8)
        memcpy(to + done, from + done, 8);
}

struct sequence_state {
    struct bit_reader front, back;
    uint32_t repeats[REPEATS];
    uint32_t context;
};

/** The next sequence's kind, run and distance. */
static inline void next_kind(const struct de_dense_model *model, struct sequence_state *state, uint32_t *run,
                             uint32_t *kind, uint32_t *distance)
{
    refill_forward(&state->front);
    uint64_t bits = state->front.bits;
    uint32_t entry = model->sequence_decode[state->context][low_bits(bits, SEQUENCE_BITS)];
    drop(&state->front, entry >> 4 & 63);
    bits >>= entry & 15;
    *kind = entry >> 14;
    const struct dense_range *run_range = &dense_run_ranges[entry >> 10 & 15];
    *run = run_range->base + low_bits(bits, run_range->extra_bits);
    bits >>= run_range->extra_bits;
    const struct dense_range *range = &dense_distance_ranges[*kind];
    uint32_t new_distance = range->base + (low_bits(bits, range->extra_bits) << range->shift);
    uint32_t first = state->repeats[0], second = state->repeats[1], third = state->repeats[2];
    *distance = *kind == 0 ? first : *kind == 1 ? second : *kind == 2 ? third : new_distance;
    state->repeats[0] = *distance;
    state->repeats[1] = *kind == 0 ? second : first;
    state->repeats[2] = *kind <= 1 ? third : second;
    state->context = *kind < REPEATS;
}

static inline uint32_t next_length(const struct de_dense_model *model, struct sequence_state *state,
                                   uint32_t kind, uint32_t position)
{
    refill_backward(&state->back);
    uint64_t bits = state->back.bits;
    const uint16_t *table = model->length_decode[dense_length_context(kind, position)];
    uint32_t entry = table[low_bits(bits, LENGTH_BITS)];
    drop(&state->back, entry >> 4 & 31);
    uint32_t symbol = entry >> 9;
    /* Nine of ten: guessing so takes a table out of the longest chain there is, from one length to the next.
     */
    if (__builtin_expect(symbol < LENGTH_DIRECT, 1))
        return symbol + 1;
    const struct dense_range *range = &dense_length_ranges[symbol];
    return range->base + low_bits(bits >> (entry & 15), range->extra_bits);
}

static bool decode_sequences(const struct de_dense_model *model, const uint8_t *start, const uint8_t *end,
                             uint32_t literal_count, bool has_reference, struct de_dense_window *window)
{
    struct sequence_state state = {.front.next = start, .back.next = end};
    dense_first_repeats(has_reference, state.repeats);
    const uint8_t *literals = window->literals, *literals_end = literals + literal_count;
    const uint32_t before = has_reference ? DE_PAGE_SIZE : 0;
    uint32_t position = 0;
    /* When just the literals that are left fill the page, they are its end. */
    while (DE_PAGE_SIZE - position != (uint32_t)(literals_end - literals)) {
        uint32_t run, kind, distance;
        next_kind(model, &state, &run, &kind, &distance);
        uint32_t copy_start = position + run;
        uint32_t length = next_length(model, &state, kind, copy_start);
        if (run > (uint32_t)(literals_end - literals) || copy_start + length > DE_PAGE_SIZE ||
            distance > copy_start + before)
            return false;
        copy_run(window->page + position, literals, run);
        literals += run;
        uint8_t *to = window->page + copy_start;
        if (distance >= 16)
            copy_run(to, to - distance, length);
        else
            copy_near(to, distance, length);
        position = copy_start + length;
    }
    memcpy(window->page + position, literals, (size_t)(literals_end - literals));
    return region_consumed(&state.front, &state.back, start, end);
}

static inline int decode(const struct de_dense_model *model, const uint8_t *untrusted_payload, size_t count,
                         bool has_reference, struct de_dense_window *window)
{
    if (count < HEADER_BYTES || count > DE_DENSE_MAX_BYTES)
        return DE_CORRUPT;
    uint8_t *payload = window->payload + PADDING_BYTES;
    memcpy(payload, untrusted_payload, count);
    uint32_t header;
    memcpy(&header, payload, sizeof(header));
    uint32_t literals = header >> 4 & ((1u << COUNT_BITS) - 1);
    uint32_t literal_bytes = header >> (4 + COUNT_BITS) & ((1u << COUNT_BITS) - 1);
    if ((header & 15) != DENSE_VERSION || header >> (4 + 2 * COUNT_BITS) != 0 || literals > DE_PAGE_SIZE ||
        literal_bytes > count - HEADER_BYTES)
        return DE_CORRUPT;
    const uint8_t *start = payload + HEADER_BYTES, *middle = start + literal_bytes, *end = payload + count;
    if (!decode_literals(model, start, middle, literals, window->literals) ||
        !decode_sequences(model, middle, end, literals, has_reference, window))
        return DE_CORRUPT;
    return DE_OK;
}

#if DE_HAVE_AVX2_BUILD
/* Shifts by a variable amount are what bit readers do most, and take one step instead of three with BMI2: 9 %
 * less time for the whole rebuild. */
__attribute__((target("avx2,bmi,bmi2"), flatten)) static int decode_avx2(const struct de_dense_model *model,
                                                                         const uint8_t *untrusted_payload,
                                                                         size_t count, bool has_reference,
                                                                         struct de_dense_window *window)
{
    return decode(model, untrusted_payload, count, has_reference, window);
}
#endif

int de_dense_decode(const struct de_dense_model *model, const uint8_t *untrusted_payload, size_t count,
                    bool has_reference, struct de_dense_window *window)
{
#if DE_HAVE_AVX2_BUILD
    if (cpu_has_avx2())
        return decode_avx2(model, untrusted_payload, count, has_reference, window);
#endif
    return decode(model, untrusted_payload, count, has_reference, window);
}

void de_dense_prefetch(const struct de_dense_model *model)
{
    const uint8_t *tables = (const uint8_t *)model->literal_decode;
    size_t bytes = sizeof model->literal_decode + sizeof model->sequence_decode + sizeof model->length_decode;
    for (size_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(tables + at);
}

void de_dense_window_init(struct de_dense_window *window)
{
    memset(window, 0, sizeof(*window));
}
