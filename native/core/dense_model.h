/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file dense_model.h
 * Building a dense model's tables, from code lengths or from counted symbols.
 */
#ifndef DIFFENGINE_DENSE_MODEL_H
#define DIFFENGINE_DENSE_MODEL_H

#include "dense_format.h"

enum {
    LITERAL_PAIRS = LITERAL_CONTEXTS * LITERAL_SYMBOLS, /* context * LITERAL_SYMBOLS + literal */
};

/** How often each symbol was used; literals by the previous one's context and value. */
struct de_dense_counts {
    uint32_t literal[LITERAL_PAIRS][LITERAL_SYMBOLS];
    uint32_t sequence[SEQUENCE_CONTEXTS][SEQUENCE_SYMBOLS];
    uint32_t length[LENGTH_CONTEXTS][LENGTH_SYMBOLS];
    uint32_t pages;
    uint8_t literal_next[LITERAL_PAIRS]; /* the contexts' meaning: of the model that was counted with */
};

/**
 * Group the pairs of a context and a literal in it into LITERAL_CONTEXTS whose next literals are alike.
 * @param[in,out] next Each pair's context: the grouping to start from, then the better one.
 */
void dense_cluster_literals(const uint32_t counts[LITERAL_PAIRS][LITERAL_SYMBOLS],
                            uint8_t next[LITERAL_PAIRS]);

/** A model from counts. DE_OK or DE_NO_MEMORY. */
int dense_model_build(const struct de_dense_counts *counts, const uint8_t next[LITERAL_PAIRS],
                      struct de_dense_model **model);

/** Derive codes, prices and decoding tables from model->bits and model->literal_next. False: not complete
 * codes. */
bool dense_model_derive(struct de_dense_model *model);

#endif
