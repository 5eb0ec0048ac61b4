/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file dense_model.h
 * Building a dense model's tables, from code lengths or from counted symbols.
 */
#ifndef DIFFENGINE_DENSE_MODEL_H
#define DIFFENGINE_DENSE_MODEL_H

#include "dense_format.h"

/** How often each symbol was used; literals by the previous literal itself, not yet by context. */
struct de_dense_counts {
    uint32_t literal[256][LITERAL_SYMBOLS];
    uint32_t sequence[SEQUENCE_CONTEXTS][SEQUENCE_SYMBOLS];
    uint32_t length[LENGTH_CONTEXTS][LENGTH_SYMBOLS];
};

/** Group the 256 previous literals into LITERAL_CONTEXTS whose next literals are alike. */
void dense_cluster_literals(const uint32_t counts[256][LITERAL_SYMBOLS], uint8_t contexts[256]);

/** A model from counts. DE_OK or DE_NO_MEMORY. */
int dense_model_build(const struct de_dense_counts *counts, const uint8_t contexts[256],
                      struct de_dense_model **model);

/** Derive codes, prices and decoding tables from model->bits and model->literal_context. False: not complete
 * codes. */
bool dense_model_derive(struct de_dense_model *model);

#endif
