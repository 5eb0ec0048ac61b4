/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Training: parse the sample with the model so far, count, build the next model; a few rounds settle. */
#include "dense_model.h"
#include "dense_parse.h"

#include <diffengine/status.h>

#include <math.h>
#include <stdlib.h>

enum {
    CLUSTER_ROUNDS = 6,
};

/** Bits of coding @p counts with each context's code: what clustering minimises. */
static int cheapest_context(const uint32_t counts[LITERAL_SYMBOLS], double bits[][LITERAL_SYMBOLS])
{
    int best = 0;
    double best_cost = INFINITY;
    for (int context = 0; context < LITERAL_CONTEXTS; context++) {
        double cost = 0;
        for (int symbol = 0; symbol < LITERAL_SYMBOLS; symbol++)
            cost += counts[symbol] * bits[context][symbol];
        if (cost < best_cost) {
            best_cost = cost;
            best = context;
        }
    }
    return best;
}

static void measure_contexts(const uint32_t counts[256][LITERAL_SYMBOLS], const uint8_t contexts[256],
                             double bits[][LITERAL_SYMBOLS])
{
    for (int context = 0; context < LITERAL_CONTEXTS; context++) {
        double sums[LITERAL_SYMBOLS], total = 0;
        for (int symbol = 0; symbol < LITERAL_SYMBOLS; symbol++) {
            sums[symbol] = 0.1;
            for (int previous = 0; previous < 256; previous++)
                if (contexts[previous] == context)
                    sums[symbol] += counts[previous][symbol];
            total += sums[symbol];
        }
        for (int symbol = 0; symbol < LITERAL_SYMBOLS; symbol++)
            bits[context][symbol] = log2(total / sums[symbol]);
    }
}

void dense_cluster_literals(const uint32_t counts[256][LITERAL_SYMBOLS], uint8_t contexts[256])
{
    double bits[LITERAL_CONTEXTS][LITERAL_SYMBOLS];
    /* k-means under coding cost, started from runs of 16 neighbouring values (ASCII letters, small numbers,
     * ...). */
    for (int previous = 0; previous < 256; previous++)
        contexts[previous] = (uint8_t)(previous * LITERAL_CONTEXTS / 256);
    for (int round = 0; round < CLUSTER_ROUNDS; round++) {
        measure_contexts(counts, contexts, bits);
        for (int previous = 0; previous < 256; previous++)
            contexts[previous] = (uint8_t)cheapest_context(counts[previous], bits);
    }
}

static void count_symbols(const struct dense_parser *parser, const uint8_t *page,
                          struct de_dense_counts *counts)
{
    uint32_t position = 0, context = 0;
    uint8_t last = 0;
    for (size_t i = 0; i <= parser->sequence_count; i++) {
        bool trailing = i == parser->sequence_count;
        const struct dense_sequence *sequence = &parser->sequences[i];
        uint32_t run = trailing ? DE_PAGE_SIZE - position : sequence->run;
        for (; run > 0; run--, position++) {
            counts->literal[last][page[position]]++;
            last = page[position];
        }
        if (trailing)
            break;
        counts->sequence[context][dense_run_class(sequence->run) * KINDS + sequence->kind]++;
        counts
            ->length[dense_length_context(sequence->kind, position)][dense_length_symbol(sequence->length)]++;
        context = sequence->kind < REPEATS;
        position += sequence->length;
    }
}

int de_dense_model_default(struct de_dense_model **model)
{
    struct de_dense_counts *counts = calloc(1, sizeof(*counts));
    if (!counts)
        return DE_NO_MEMORY;
    /* Short runs, short lengths and repeated distances are likelier than others; any literal after any. */
    for (int i = 0; i < 256 * LITERAL_SYMBOLS; i++)
        (&counts->literal[0][0])[i] = 1;
    for (int i = 0; i < SEQUENCE_CONTEXTS * SEQUENCE_SYMBOLS; i++) {
        uint32_t symbol = (uint32_t)i % SEQUENCE_SYMBOLS;
        (&counts->sequence[0][0])[i] = 64 / (1 + symbol / KINDS) * (symbol % KINDS < REPEATS ? 8 : 1);
    }
    for (int i = 0; i < LENGTH_CONTEXTS * LENGTH_SYMBOLS; i++)
        (&counts->length[0][0])[i] = 1000 / (1 + (uint32_t)i % LENGTH_SYMBOLS);
    uint8_t contexts[256] = {0};
    int status = dense_model_build(counts, contexts, model);
    free(counts);
    return status;
}

int de_dense_counts_create(struct de_dense_counts **counts)
{
    *counts = calloc(1, sizeof(**counts));
    return *counts ? DE_OK : DE_NO_MEMORY;
}

void de_dense_counts_free(struct de_dense_counts *counts)
{
    free(counts);
}

void de_dense_counts_add(struct de_dense_counts *counts, const struct de_dense_counts *more)
{
    uint32_t *sums = (uint32_t *)counts;
    const uint32_t *terms = (const uint32_t *)more;
    for (size_t i = 0; i < sizeof(*counts) / sizeof(*sums); i++)
        sums[i] += terms[i];
}

void de_dense_count(struct de_dense_encoder *encoder, const struct de_dense_model *model,
                    const uint8_t *const *pages, const uint8_t *const *references, size_t count,
                    struct de_dense_counts *counts)
{
    struct dense_parser *parser = dense_encoder_parser(encoder);
    for (size_t i = 0; i < count; i++) {
        dense_parse(parser, model, pages[i], references[i]);
        count_symbols(parser, pages[i], counts);
    }
}

int de_dense_model_make(const struct de_dense_counts *counts, struct de_dense_model **model)
{
    uint8_t contexts[256];
    dense_cluster_literals(counts->literal, contexts);
    return dense_model_build(counts, contexts, model);
}

static int train_round(struct de_dense_encoder *encoder, struct de_dense_counts *counts,
                       const uint8_t *const *pages, const uint8_t *const *references, size_t count,
                       struct de_dense_model **model)
{
    memset(counts, 0, sizeof(*counts));
    de_dense_count(encoder, *model, pages, references, count, counts);
    struct de_dense_model *next;
    int status = de_dense_model_make(counts, &next);
    if (status != DE_OK)
        return status;
    de_dense_model_free(*model);
    *model = next;
    return DE_OK;
}

int de_dense_model_train(const uint8_t *const *pages, const uint8_t *const *references, size_t count,
                         struct de_dense_model **model)
{
    struct de_dense_model *current = NULL;
    struct de_dense_encoder *encoder = NULL;
    struct de_dense_counts *counts = NULL;
    int status = de_dense_model_default(&current);
    if (status == DE_OK)
        status = de_dense_encoder_create(&encoder);
    if (status == DE_OK)
        status = de_dense_counts_create(&counts);
    for (unsigned round = 0; status == DE_OK && count > 0 && round < DE_DENSE_TRAINING_ROUNDS; round++)
        status = train_round(encoder, counts, pages, references, count, &current);
    de_dense_encoder_free(encoder);
    de_dense_counts_free(counts);
    if (status == DE_OK)
        *model = current;
    else
        de_dense_model_free(current);
    return status;
}
