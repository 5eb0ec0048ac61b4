/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file compress.h
 * One page through LZ4 or zstd. A context belongs to one thread.
 */
#ifndef DIFFENGINE_COMPRESS_H
#define DIFFENGINE_COMPRESS_H

#include <diffengine/page.h>

enum de_compressor {
    DE_COMPRESS_LZ4 = 0,  /**< level: 1 (fastest) .. 12 (LZ4HC from 3 on) */
    DE_COMPRESS_ZSTD = 1, /**< level: zstd's own, -7 .. 22 */
};

struct de_compress_context;

/** @return DE_OK, DE_INVALID (level) or DE_NO_MEMORY. */
int de_compress_create(enum de_compressor compressor, int level, struct de_compress_context **context);
void de_compress_free(struct de_compress_context *context);

/**
 * Compress one page.
 * @return bytes written, or 0 if the result does not fit @p capacity (an incompressible page: keep it raw).
 */
size_t de_compress_page(struct de_compress_context *context, const uint8_t *page, uint8_t *out,
                        size_t capacity);

/**
 * Decompress what de_compress_page() wrote with any level of the same compressor: one LZ4 block, or one zstd
 * frame without magic, content size or checksum, and nothing behind it. No allocation.
 * @return DE_OK and a full page, or DE_CORRUPT. Safe on any input.
 */
int de_decompress_page(struct de_compress_context *context, const uint8_t *untrusted_bytes, size_t count,
                       uint8_t *page);

#endif
