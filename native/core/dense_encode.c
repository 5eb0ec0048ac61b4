/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "dense_model.h"
#include "dense_parse.h"

#include <diffengine/status.h>

#include <stdlib.h>

/** Bits, least significant first, into bytes that go forward. */
struct bit_writer {
    uint64_t bits;
    uint32_t count;
    uint8_t *start;
    uint8_t *next;
};

struct de_dense_encoder {
    struct dense_parser parser;
    uint8_t literals[DE_PAGE_SIZE];
    /* Four streams, each long enough for the worst page. */
    uint8_t literal_front[DE_PAGE_SIZE], literal_back[DE_PAGE_SIZE];
    uint8_t sequence_front[5 * DE_PAGE_SIZE], sequence_back[5 * DE_PAGE_SIZE];
};

static inline void put_bits(struct bit_writer *writer, uint32_t value, uint32_t count)
{
    writer->bits |= (uint64_t)value << writer->count;
    writer->count += count;
    while (writer->count >= 8) {
        *writer->next++ = (uint8_t)writer->bits;
        writer->bits >>= 8;
        writer->count -= 8;
    }
}

static size_t finish(struct bit_writer *writer)
{
    if (writer->count > 0)
        *writer->next++ = (uint8_t)writer->bits;
    return (size_t)(writer->next - writer->start);
}

static struct bit_writer writer_at(uint8_t *start)
{
    return (struct bit_writer){.start = start, .next = start};
}

/** The page's literals, in order. @return how many. */
static size_t gather_literals(struct de_dense_encoder *encoder, const uint8_t *page)
{
    const struct dense_parser *parser = &encoder->parser;
    size_t count = 0, position = 0;
    for (size_t i = 0; i < parser->sequence_count; i++) {
        const struct dense_sequence *sequence = &parser->sequences[i];
        memcpy(encoder->literals + count, page + position, sequence->run);
        count += sequence->run;
        position += (size_t)sequence->run + sequence->length;
    }
    memcpy(encoder->literals + count, page + position, DE_PAGE_SIZE - position);
    return count + DE_PAGE_SIZE - position;
}

static size_t write_literals(const struct de_dense_model *model, const uint8_t *literals, size_t count,
                             uint8_t *out)
{
    struct bit_writer writer = writer_at(out);
    uint32_t context = dense_first_context(model);
    for (size_t i = 0; i < count; i++) {
        put_bits(&writer, model->codes.literal[context][literals[i]],
                 model->bits.literal[context][literals[i]]);
        context = model->literal_next[context][literals[i]];
    }
    return finish(&writer);
}

static void write_sequence(const struct de_dense_model *model, const struct dense_sequence *sequence,
                           uint32_t context, uint32_t position, struct bit_writer *front,
                           struct bit_writer *back)
{
    uint32_t class = dense_run_class(sequence->run);
    const struct dense_range *run = &dense_run_ranges[class],
                             *distance = &dense_distance_ranges[sequence->kind];
    uint32_t symbol = class * KINDS + sequence->kind;
    put_bits(front, model->codes.sequence[context][symbol], model->bits.sequence[context][symbol]);
    put_bits(front, (uint32_t)sequence->run - run->base, run->extra_bits);
    if (sequence->kind >= REPEATS)
        put_bits(front, (uint32_t)(sequence->distance - distance->base) >> distance->shift,
                 distance->extra_bits);
    uint32_t length_context = dense_length_context(sequence->kind, position);
    symbol = dense_length_symbol(sequence->length);
    put_bits(back, model->codes.length[length_context][symbol], model->bits.length[length_context][symbol]);
    const struct dense_range *length = &dense_length_ranges[symbol];
    put_bits(back, (uint32_t)sequence->length - length->base, length->extra_bits);
}

static void write_sequences(struct de_dense_encoder *encoder, const struct de_dense_model *model,
                            size_t *front_bytes, size_t *back_bytes)
{
    struct bit_writer front = writer_at(encoder->sequence_front), back = writer_at(encoder->sequence_back);
    uint32_t position = 0, context = 0;
    for (size_t i = 0; i < encoder->parser.sequence_count; i++) {
        const struct dense_sequence *sequence = &encoder->parser.sequences[i];
        position += sequence->run;
        write_sequence(model, sequence, context, position, &front, &back);
        position += sequence->length;
        context = sequence->kind < REPEATS;
    }
    *front_bytes = finish(&front);
    *back_bytes = finish(&back);
}

/** A region is a stream that runs forward from its start and one that runs backward from its end. */
static void write_region(uint8_t *out, const uint8_t *front, size_t front_bytes, const uint8_t *back,
                         size_t back_bytes)
{
    memcpy(out, front, front_bytes);
    for (size_t i = 0; i < back_bytes; i++)
        out[front_bytes + back_bytes - 1 - i] = back[i];
}

size_t de_dense_encode(struct de_dense_encoder *encoder, const struct de_dense_model *model,
                       const uint8_t *page, const uint8_t *reference, uint8_t *out, size_t capacity)
{
    dense_parse(&encoder->parser, model, page, reference);
    size_t literals = gather_literals(encoder, page);
    size_t half = (literals + 1) / 2;
    size_t literal_front = write_literals(model, encoder->literals, half, encoder->literal_front);
    size_t literal_back =
        write_literals(model, encoder->literals + half, literals - half, encoder->literal_back);
    size_t sequence_front, sequence_back;
    write_sequences(encoder, model, &sequence_front, &sequence_back);
    size_t literal_bytes = literal_front + literal_back;
    size_t bytes = HEADER_BYTES + literal_bytes + sequence_front + sequence_back;
    if (bytes > capacity || bytes > DE_DENSE_MAX_BYTES)
        return 0;
    uint32_t header = DENSE_VERSION | (uint32_t)literals << 4 | (uint32_t)literal_bytes << (4 + COUNT_BITS);
    memcpy(out, &header, HEADER_BYTES);
    write_region(out + HEADER_BYTES, encoder->literal_front, literal_front, encoder->literal_back,
                 literal_back);
    write_region(out + HEADER_BYTES + literal_bytes, encoder->sequence_front, sequence_front,
                 encoder->sequence_back, sequence_back);
    return bytes;
}

struct dense_parser *dense_encoder_parser(struct de_dense_encoder *encoder)
{
    return &encoder->parser;
}

int de_dense_encoder_create(struct de_dense_encoder **encoder)
{
    *encoder = malloc(sizeof(**encoder));
    return *encoder ? DE_OK : DE_NO_MEMORY;
}

void de_dense_encoder_free(struct de_dense_encoder *encoder)
{
    free(encoder);
}
