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

/** What followed one pair: few values, mostly. */
struct followers {
    uint32_t count;
    uint8_t values[LITERAL_SYMBOLS];
    uint32_t times[LITERAL_SYMBOLS];
};

static void list_followers(const uint32_t counts[LITERAL_SYMBOLS], struct followers *followers)
{
    followers->count = 0;
    for (int value = 0; value < LITERAL_SYMBOLS; value++) {
        if (counts[value] == 0)
            continue;
        followers->values[followers->count] = (uint8_t)value;
        followers->times[followers->count++] = counts[value];
    }
}

/** The context in whose code @p followers take fewest bits: what clustering minimises. */
static uint8_t cheapest_context(const struct followers *followers, double bits[][LITERAL_SYMBOLS])
{
    uint8_t best = 0;
    double best_cost = INFINITY;
    for (uint8_t context = 0; context < LITERAL_CONTEXTS; context++) {
        double cost = 0;
        for (uint32_t i = 0; i < followers->count; i++)
            cost += followers->times[i] * bits[context][followers->values[i]];
        if (cost < best_cost) {
            best_cost = cost;
            best = context;
        }
    }
    return best;
}

static void measure_contexts(const uint32_t counts[LITERAL_PAIRS][LITERAL_SYMBOLS],
                             const uint8_t next[LITERAL_PAIRS], double bits[][LITERAL_SYMBOLS])
{
    for (int context = 0; context < LITERAL_CONTEXTS; context++)
        for (int symbol = 0; symbol < LITERAL_SYMBOLS; symbol++)
            bits[context][symbol] = 0.1;
    for (int pair = 0; pair < LITERAL_PAIRS; pair++)
        for (int symbol = 0; symbol < LITERAL_SYMBOLS; symbol++)
            bits[next[pair]][symbol] += counts[pair][symbol];
    for (int context = 0; context < LITERAL_CONTEXTS; context++) {
        double total = 0;
        for (int symbol = 0; symbol < LITERAL_SYMBOLS; symbol++)
            total += bits[context][symbol];
        for (int symbol = 0; symbol < LITERAL_SYMBOLS; symbol++)
            bits[context][symbol] = log2(total / bits[context][symbol]);
    }
}

void dense_cluster_literals(const uint32_t counts[LITERAL_PAIRS][LITERAL_SYMBOLS],
                            uint8_t next[LITERAL_PAIRS])
{
    double bits[LITERAL_CONTEXTS][LITERAL_SYMBOLS];
    struct followers followers;
    /* k-means under coding cost. A pair that was never seen stays where it is. */
    for (int round = 0; round < CLUSTER_ROUNDS; round++) {
        measure_contexts(counts, next, bits);
        for (int pair = 0; pair < LITERAL_PAIRS; pair++) {
            list_followers(counts[pair], &followers);
            if (followers.count > 0)
                next[pair] = cheapest_context(&followers, bits);
        }
    }
}

static void count_symbols(const struct dense_parser *parser, const uint8_t *page,
                          struct de_dense_counts *counts)
{
    uint32_t position = 0, context = 0, pair = 0;
    for (size_t i = 0; i <= parser->sequence_count; i++) {
        bool trailing = i == parser->sequence_count;
        const struct dense_sequence *sequence = &parser->sequences[i];
        uint32_t run = trailing ? DE_PAGE_SIZE - position : sequence->run;
        for (; run > 0; run--, position++) {
            uint32_t literal = page[position];
            counts->literal[pair][literal]++;
            pair = counts->literal_next[pair] * LITERAL_SYMBOLS + literal;
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
    for (int i = 0; i < LITERAL_PAIRS * LITERAL_SYMBOLS; i++)
        (&counts->literal[0][0])[i] = 1;
    /* Where training starts from: contexts of the last literal alone, neighbouring values together. */
    for (int pair = 0; pair < LITERAL_PAIRS; pair++)
        counts->literal_next[pair] = (uint8_t)(pair % LITERAL_SYMBOLS * LITERAL_CONTEXTS / LITERAL_SYMBOLS);
    for (int i = 0; i < SEQUENCE_CONTEXTS * SEQUENCE_SYMBOLS; i++) {
        uint32_t symbol = (uint32_t)i % SEQUENCE_SYMBOLS;
        (&counts->sequence[0][0])[i] = 64 / (1 + symbol / KINDS) * (symbol % KINDS < REPEATS ? 8 : 1);
    }
    for (int i = 0; i < LENGTH_CONTEXTS * LENGTH_SYMBOLS; i++)
        (&counts->length[0][0])[i] = 1000 / (1 + (uint32_t)i % LENGTH_SYMBOLS);
    int status = dense_model_build(counts, counts->literal_next, model);
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
    for (size_t i = 0; i < offsetof(struct de_dense_counts, literal_next) / sizeof(*sums); i++)
        sums[i] += terms[i];
    if (more->pages > 0)
        memcpy(counts->literal_next, more->literal_next, sizeof(counts->literal_next));
}

void de_dense_count(struct de_dense_encoder *encoder, const struct de_dense_model *model,
                    const uint8_t *const *pages, const uint8_t *const *references, size_t count,
                    struct de_dense_counts *counts)
{
    struct dense_parser *parser = dense_encoder_parser(encoder);
    memcpy(counts->literal_next, model->literal_next, sizeof(counts->literal_next));
    counts->pages += (uint32_t)count;
    for (size_t i = 0; i < count; i++) {
        dense_parse(parser, model, pages[i], references[i]);
        count_symbols(parser, pages[i], counts);
    }
}

int de_dense_model_make(const struct de_dense_counts *counts, struct de_dense_model **model)
{
    uint8_t next[LITERAL_PAIRS];
    memcpy(next, counts->literal_next, sizeof(next));
    dense_cluster_literals(counts->literal, next);
    return dense_model_build(counts, next, model);
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
