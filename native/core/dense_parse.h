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
    /* Offers are numbered by 16 bits, so there can be 15 a position; 16 + 8 links would gain 0.03 %. */
    LONG_CHAIN_LINKS = 8,
    SHORT_CHAIN_LINKS = 4,
    OFFERS_PER_POSITION = REPEATS + LONG_CHAIN_LINKS + SHORT_CHAIN_LINKS,
};

/** What the cheapest way to a position leaves behind. Known once the position is reached. */
struct parse_node {
    uint16_t run; /* literals since the last copy */
    uint16_t repeats[REPEATS];
    uint8_t context;         /* the next sequence's: was the last copy's distance a repeated one */
    uint8_t literal_context; /* the next literal's */
};

/** A copy that was considered: it may end at many positions. */
struct parse_offer {
    uint16_t start;
    uint16_t distance;
    uint8_t kind;
};

/** Scratch memory; belongs to one thread. */
struct dense_parser {
    uint8_t window[WINDOW_BYTES + 64];
    int16_t long_heads[1 << HASH_BITS]; /* by 8 bytes; chained */
    int16_t long_chain[WINDOW_BYTES];
    int16_t short_heads[1 << HASH_BITS]; /* by 4 bytes; chained */
    int16_t short_chain[WINDOW_BYTES];
    /* The cheapest known way to each position: its bits, the open run's expected price included, and the copy
     * it ends with (0: a literal). Vectors may run over the page's end. */
    uint16_t costs[DE_PAGE_SIZE + 1 + LENGTH_DIRECT];
    uint16_t arrivals[DE_PAGE_SIZE + 1 + LENGTH_DIRECT];
    struct parse_node nodes[DE_PAGE_SIZE + 1];
    struct parse_offer offers[1 + DE_PAGE_SIZE * OFFERS_PER_POSITION];
    uint32_t offer_count;
    struct dense_sequence sequences[DE_PAGE_SIZE];
    size_t sequence_count;
};
_Static_assert(1 + DE_PAGE_SIZE * OFFERS_PER_POSITION <= UINT16_MAX, "an offer's number fits an arrival");

/** Parse @p page (against @p reference, or NULL) into parser->sequences; the page is left in parser->window.
 */
void dense_parse(struct dense_parser *parser, const struct de_dense_model *model, const uint8_t *page,
                 const uint8_t *reference);

/** The parser inside an encoder's scratch memory. */
struct dense_parser *dense_encoder_parser(struct de_dense_encoder *encoder);

#endif
