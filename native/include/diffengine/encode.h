/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file encode.h
 * Turning a batch of pages into store payloads: which encoding each page gets, by net bytes.
 */
#ifndef DIFFENGINE_ENCODE_H
#define DIFFENGINE_ENCODE_H

#include <diffengine/dense.h>
#include <diffengine/page.h>
#include <diffengine/store.h>

/** How a batch is to be encoded. */
struct de_encode_options {
    /** DE_ENCODING_RAW, _LZ4, _ZSTD or _DENSE: what pages without a reference, and patches that lose, become.
     */
    uint8_t codec;
    /** A reference costs its id in the object's header: a patch must be smaller by more than this. */
    uint8_t reference_bytes;
    /** Longest patch taken (the paper: 2048); at most DE_PATCH_MAX_BYTES. DENSE patches have no limit of
     * their own. */
    uint16_t patch_limit;
    /** The paper's order: a patch within the limit wins unseen, without a look at what the codec makes of the
     * page. */
    bool patch_first;
    /** For DENSE; else NULL. */
    const struct de_dense_model *model;
};

/** All contexts that encoding needs; belongs to one thread. */
struct de_page_encoder;

/** @return DE_OK, DE_INVALID (a level out of its range, see compress.h) or DE_NO_MEMORY. */
int de_page_encoder_create(int lz4_level, int zstd_level, struct de_page_encoder **encoder);
void de_page_encoder_free(struct de_page_encoder *encoder);

/**
 * Copy @p count pages, one after the other: a page that a guest may be writing must not change while it is
 * encoded.
 * @param[out] copies count * DE_PAGE_SIZE bytes.
 */
void de_copy_batch(const uint8_t *const *pages, size_t count, uint8_t *copies);

/**
 * Encode @p count pages, which must not change meanwhile.
 * @param references One address per page or NULL for none; an entry is NULL for a page without a reference.
 * @param[out] payloads  count * DE_PAGE_SIZE bytes; page i's payload starts at i * DE_PAGE_SIZE.
 * @param[out] bytes     count payload lengths.
 * @param[out] encodings count values of enum de_encoding; an incompressible page is RAW.
 * @param[out] patched   count: 1 if the payload needs the reference.
 * @return DE_OK or DE_INVALID (codec; DENSE without model).
 */
int de_encode_batch(struct de_page_encoder *encoder, const struct de_encode_options *options,
                    const uint8_t *const *pages, const uint8_t *const *references, size_t count,
                    uint8_t *payloads, uint16_t *bytes, uint8_t *encodings, uint8_t *patched);

/**
 * How long a fast patch against each candidate would be.
 * @param candidates count * width addresses; NULL for none.
 * @param[out] bytes count * width lengths, 0 where there is no candidate or the patch is over @p limit.
 */
void de_patch_sizes(struct de_page_encoder *encoder, const uint8_t *const *pages,
                    const uint8_t *const *candidates, size_t count, unsigned width, uint16_t limit,
                    uint16_t *bytes);

/**
 * Choose among candidates, pages in order: the smallest patch against a page that is no patch itself.
 * @param pages      count page numbers.
 * @param candidates count * width page numbers or DE_NONE, with @p bytes from de_patch_sizes().
 * @param[in,out] patched Indexed by page number; read for candidates, written for these pages.
 * @param[out] references count page numbers or DE_NONE.
 */
void de_choose_references(const uint32_t *pages, const uint32_t *candidates, const uint16_t *bytes,
                          size_t count, unsigned width, uint8_t *patched, uint32_t *references);

/** de_page_checksum() of a batch. */
void de_checksum_batch(const uint8_t *const *pages, size_t count, uint32_t *checksums);

/**
 * Put a batch of objects into the store, in order; see de_store_put().
 * @param payloads   count addresses.
 * @param model      Id of the MODEL that DENSE objects are coded with, or DE_NONE.
 * @param pages      count page numbers: whose content the objects are.
 * @param references count page numbers or DE_NONE: the page a patch needs, put earlier (in this batch or
 * before).
 * @param[in,out] ids Indexed by page number: read for references, written for these pages.
 * @return DE_OK, or the first failure; the objects before it stay.
 */
int de_store_put_batch(struct de_store *store, const uint8_t *const *payloads, const uint16_t *bytes,
                       const uint8_t *encodings, const uint32_t *checksums, uint32_t model,
                       const uint32_t *pages, const uint32_t *references, size_t count, uint32_t *ids);

/** de_store_release() of a batch; DE_NONE entries are passed over. @return DE_OK or the first failure. */
int de_store_release_batch(struct de_store *store, const uint32_t *ids, size_t count);

#endif
