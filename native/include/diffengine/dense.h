/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file dense.h
 * The dense form: a page, alone or against one reference page, as LZ77 sequences in static Huffman codes.
 *
 * Meant for C4 pages, where bytes count more than the time to encode. A 4-KiB page is too short to carry code
 * tables of its own (zstd spends some 100 bytes of 1,000 on them), so codes come from a *model*: code lengths
 * trained on a sample of a trust group's pages, kept once in the store. A model holds statistics, never
 * content. docs/formats.md describes the payload and the model bit by bit.
 */
#ifndef DIFFENGINE_DENSE_H
#define DIFFENGINE_DENSE_H

#include <diffengine/page.h>
#include <stdbool.h>

/** No dense payload is longer. */
#define DE_DENSE_MAX_BYTES DE_PAGE_SIZE

/** A saved model is at most this long. */
#define DE_DENSE_MODEL_MAX_BYTES 8192u

/** Code tables for encoding and decoding. Immutable: any number of threads may use one. */
struct de_dense_model;

/** A model for pages nothing is known about: the start of training. DE_OK or DE_NO_MEMORY. */
int de_dense_model_default(struct de_dense_model **model);

/** Scratch memory for encoding; belongs to one thread. */
struct de_dense_encoder;

int de_dense_encoder_create(struct de_dense_encoder **encoder);
void de_dense_encoder_free(struct de_dense_encoder *encoder);

/** How often each symbol is used on some pages: what a model is made from. About 4 MiB; belongs to one
 * thread. */
struct de_dense_counts;

int de_dense_counts_create(struct de_dense_counts **counts);
void de_dense_counts_free(struct de_dense_counts *counts);

/**
 * Count the symbols that @p model's codes would choose for @p count pages, on top of what is in @p counts.
 * @param references One per page; NULL for a page that will be encoded alone.
 */
void de_dense_count(struct de_dense_encoder *encoder, const struct de_dense_model *model,
                    const uint8_t *const *pages, const uint8_t *const *references, size_t count,
                    struct de_dense_counts *counts);

/** Add @p more to @p counts: threads count parts of a sample, in any order, all with the same model. */
void de_dense_counts_add(struct de_dense_counts *counts, const struct de_dense_counts *more);

/** A model whose codes fit @p counts. DE_OK or DE_NO_MEMORY. */
int de_dense_model_make(const struct de_dense_counts *counts, struct de_dense_model **model);

/** How often counting and making again still gains: codes change what is chosen, which changes the codes. */
#define DE_DENSE_TRAINING_ROUNDS 5u

/**
 * Train a model on sample pages in one go, on this thread: DE_DENSE_TRAINING_ROUNDS rounds from the default
 * model.
 * @param references One per page; NULL for a page that will be encoded alone.
 * @param count      Some 2,000 pages are enough; 0 gives a copy of the default model.
 * @return DE_OK or DE_NO_MEMORY. The result depends on nothing but the arguments.
 */
int de_dense_model_train(const uint8_t *const *pages, const uint8_t *const *references, size_t count,
                         struct de_dense_model **model);

/** Serialise into @p out (DE_DENSE_MODEL_MAX_BYTES). @return bytes written. */
size_t de_dense_model_save(const struct de_dense_model *model, uint8_t *out);

/** Load a saved model. @return DE_OK, DE_CORRUPT or DE_NO_MEMORY. Safe on any input. */
int de_dense_model_load(const uint8_t *untrusted_bytes, size_t count, struct de_dense_model **model);

void de_dense_model_free(struct de_dense_model *model);

/** Memory of the tables decoding needs. */
size_t de_dense_model_bytes(const struct de_dense_model *model);

/**
 * Encode one page.
 * @param reference The reference page, or NULL.
 * @return bytes written, or 0 if the result does not fit @p capacity.
 */
size_t de_dense_encode(struct de_dense_encoder *encoder, const struct de_dense_model *model,
                       const uint8_t *page, const uint8_t *reference, uint8_t *out, size_t capacity);

/**
 * Where a page is decoded: a copy may reach back from the page into the reference right before it. Some 45
 * KiB; belongs to one thread. The caller puts the reference's bytes into `reference`, and finds the page in
 * `page`.
 */
struct de_dense_window {
    uint8_t reference[DE_PAGE_SIZE];
    uint8_t page[DE_PAGE_SIZE];
    uint8_t slack[64]; /* copies are done in whole vectors and may run over the page's end */
    uint8_t literals[DE_PAGE_SIZE + 64];
    /* A damaged payload may send a bit reader past its end by what 4,096 symbols can take: zeroes all around
     * it. */
    uint8_t payload[20480 + DE_DENSE_MAX_BYTES + 20480];
};

/** Begin to bring the tables that decoding reads near, which other work has driven out of the caches. Does
 * not wait. */
void de_dense_prefetch(const struct de_dense_model *model);
/** Clear a window before its first use. */
void de_dense_window_init(struct de_dense_window *window);

/**
 * Decode a payload into @p window->page. No allocation, no lock.
 * @param has_reference Whether window->reference is the page's reference; must be as it was when encoding.
 * @return DE_OK or DE_CORRUPT. Safe on any input.
 */
int de_dense_decode(const struct de_dense_model *model, const uint8_t *untrusted_payload, size_t count,
                    bool has_reference, struct de_dense_window *window);

#endif
