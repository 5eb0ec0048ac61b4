/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file dense_parse.h
 * How a page is cut into sequences: the cheapest way under a model's code lengths.
 */
#ifndef DIFFENGINE_DENSE_PARSE_H
#define DIFFENGINE_DENSE_PARSE_H

#include "dense_format.h"

/** One run of literals followed by one copy. The page's trailing literals belong to no sequence. */
struct dense_sequence {
    uint16_t run;
    uint16_t length;
    uint16_t distance;
    uint8_t kind;
};

enum {
    HASH_BITS = 12,
    WINDOW_BYTES = 2 * DE_PAGE_SIZE,
};

/** The cheapest known way to reach a position. */
struct parse_node {
    uint32_t cost;   /* bits * PRICE_SCALE, the open run's expected price included */
    uint16_t length; /* of the copy that ends here; 0: a literal */
    uint16_t distance;
    uint16_t run; /* literals since the last copy */
    uint16_t repeats[REPEATS];
    uint8_t kind;         /* of the last copy */
    uint8_t last_literal; /* context of the next one */
};

/** Scratch memory; belongs to one thread. */
struct dense_parser {
    uint8_t window[WINDOW_BYTES + 64];
    int16_t long_heads[1 << HASH_BITS]; /* by 8 bytes; chained */
    int16_t long_chain[WINDOW_BYTES];
    int16_t short_heads[1 << HASH_BITS]; /* by 4 bytes; chained */
    int16_t short_chain[WINDOW_BYTES];
    struct parse_node nodes[DE_PAGE_SIZE + 1];
    struct dense_sequence sequences[DE_PAGE_SIZE];
    size_t sequence_count;
};

/** Parse @p page (against @p reference, or NULL) into parser->sequences; the page is left in parser->window.
 */
void dense_parse(struct dense_parser *parser, const struct de_dense_model *model, const uint8_t *page,
                 const uint8_t *reference);

#endif
