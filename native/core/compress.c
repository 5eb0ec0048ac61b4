/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <diffengine/compress.h>
#include <diffengine/status.h>
#include <limits.h>
#include <lz4.h>
#include <lz4hc.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define ZSTD_STATIC_LINKING_ONLY /* for frames without the 4 magic bytes, which every page would carry */
#include <zstd.h>

#define LZ4_MIN_LEVEL 1
#define LZ4_HC_FIRST_LEVEL 3 /* as the lz4 tool has it: 1 and 2 are the fast form */
#define LZ4_MAX_LEVEL LZ4HC_CLEVEL_MAX
#define ZSTD_MIN_LEVEL (-7)
#define ZSTD_MAX_LEVEL 22
#define ZSTD_BLOCK_RLE 1 /* a block's type: one byte, repeated */

struct de_compress_context {
    enum de_compressor compressor;
    int level;
    void *lz4_state;
    ZSTD_CCtx *zstd_compressor;
    ZSTD_DCtx *zstd_decompressor;
};

static bool level_is_valid(enum de_compressor compressor, int level)
{
    switch (compressor) {
    case DE_COMPRESS_LZ4:
        return level >= LZ4_MIN_LEVEL && level <= LZ4_MAX_LEVEL;
    case DE_COMPRESS_ZSTD:
        return level >= ZSTD_MIN_LEVEL && level <= ZSTD_MAX_LEVEL;
    }
    return false;
}

static int create_lz4(struct de_compress_context *context)
{
    size_t bytes = (size_t)(context->level < LZ4_HC_FIRST_LEVEL ? LZ4_sizeofState() : LZ4_sizeofStateHC());
    context->lz4_state = malloc(bytes);
    return context->lz4_state == NULL ? DE_NO_MEMORY : DE_OK;
}

/* The decoder knows size and checksum from the object; a frame carries neither. */
static bool set_zstd_parameters(struct de_compress_context *context)
{
    ZSTD_CCtx *cctx = context->zstd_compressor;
    return !ZSTD_isError(ZSTD_CCtx_setParameter(cctx, ZSTD_c_compressionLevel, context->level)) &&
           !ZSTD_isError(ZSTD_CCtx_setParameter(cctx, ZSTD_c_format, ZSTD_f_zstd1_magicless)) &&
           !ZSTD_isError(ZSTD_CCtx_setParameter(cctx, ZSTD_c_contentSizeFlag, 0)) &&
           !ZSTD_isError(ZSTD_CCtx_setParameter(cctx, ZSTD_c_checksumFlag, 0)) &&
           !ZSTD_isError(ZSTD_CCtx_setParameter(cctx, ZSTD_c_dictIDFlag, 0)) &&
           !ZSTD_isError(
               ZSTD_DCtx_setParameter(context->zstd_decompressor, ZSTD_d_format, ZSTD_f_zstd1_magicless));
}

/* zstd allocates its work space with the first page: have it now, where failing is allowed. */
static bool warm_up_zstd(struct de_compress_context *context)
{
    static const uint8_t page[DE_PAGE_SIZE];
    uint8_t out[ZSTD_COMPRESSBOUND(DE_PAGE_SIZE)];
    return de_compress_page(context, page, out, sizeof out) != 0;
}

static int create_zstd(struct de_compress_context *context)
{
    context->zstd_compressor = ZSTD_createCCtx();
    context->zstd_decompressor = ZSTD_createDCtx();
    if (context->zstd_compressor == NULL || context->zstd_decompressor == NULL)
        return DE_NO_MEMORY;
    if (!set_zstd_parameters(context))
        return DE_INVALID;
    return warm_up_zstd(context) ? DE_OK : DE_NO_MEMORY;
}

int de_compress_create(enum de_compressor compressor, int level, struct de_compress_context **context)
{
    if (!level_is_valid(compressor, level))
        return DE_INVALID;
    struct de_compress_context *made = calloc(1, sizeof *made);
    if (made == NULL)
        return DE_NO_MEMORY;
    made->compressor = compressor;
    made->level = level;
    int status = compressor == DE_COMPRESS_LZ4 ? create_lz4(made) : create_zstd(made);
    if (status != DE_OK) {
        de_compress_free(made);
        return status;
    }
    *context = made;
    return DE_OK;
}

void de_compress_free(struct de_compress_context *context)
{
    if (context == NULL)
        return;
    free(context->lz4_state);
    ZSTD_freeCCtx(context->zstd_compressor);
    ZSTD_freeDCtx(context->zstd_decompressor);
    free(context);
}

static size_t compress_lz4(struct de_compress_context *context, const uint8_t *page, uint8_t *out,
                           int capacity)
{
    const char *source = (const char *)page;
    int written =
        context->level < LZ4_HC_FIRST_LEVEL
            ? LZ4_compress_fast_extState(context->lz4_state, source, (char *)out, DE_PAGE_SIZE, capacity, 1)
            : LZ4_compress_HC_extStateHC(context->lz4_state, source, (char *)out, DE_PAGE_SIZE, capacity,
                                         context->level);
    return written > 0 ? (size_t)written : 0;
}

size_t de_compress_page(struct de_compress_context *context, const uint8_t *page, uint8_t *out,
                        size_t capacity)
{
    if (context->compressor == DE_COMPRESS_LZ4)
        return compress_lz4(context, page, out, capacity > INT_MAX ? INT_MAX : (int)capacity);
    size_t written = ZSTD_compress2(context->zstd_compressor, out, capacity, page, DE_PAGE_SIZE);
    return ZSTD_isError(written) ? 0 : written;
}

/*
 * Exactly one frame as our encoder writes it (RFC 8878, 3.1.1): descriptor 0, window, blocks up to the last
 * one, nothing behind it. ZSTD_decompressDCtx() would take several frames in a row, skippable and pre-1.0
 * ones included, and zstd 1.5.4 looks for their 4-byte magics even where fewer bytes are left: an over-read
 * with magicless frames.
 */
static bool is_one_frame(const uint8_t *untrusted_bytes, size_t count)
{
    size_t offset = 2;
    uint32_t header;
    if (count < offset || untrusted_bytes[0] != 0)
        return false;
    do {
        if (count - offset < 3)
            return false;
        const uint8_t *block = untrusted_bytes + offset;
        header = block[0] | (uint32_t)block[1] << 8 | (uint32_t)block[2] << 16;
        uint32_t body = (header >> 1 & 3) == ZSTD_BLOCK_RLE ? 1 : header >> 3;
        offset += 3;
        if (count - offset < body)
            return false;
        offset += body;
    } while ((header & 1) == 0);
    return offset == count;
}

/* Both decoders are told the room they have and fail rather than leave it; what is left to check is a short
 * page. */
int de_decompress_page(struct de_compress_context *context, const uint8_t *untrusted_bytes, size_t count,
                       uint8_t *page)
{
    if (context->compressor == DE_COMPRESS_LZ4) {
        if (count > INT_MAX)
            return DE_CORRUPT;
        int decoded =
            LZ4_decompress_safe((const char *)untrusted_bytes, (char *)page, (int)count, DE_PAGE_SIZE);
        return decoded == (int)DE_PAGE_SIZE ? DE_OK : DE_CORRUPT;
    }
    if (!is_one_frame(untrusted_bytes, count))
        return DE_CORRUPT;
    size_t decoded =
        ZSTD_decompressDCtx(context->zstd_decompressor, page, DE_PAGE_SIZE, untrusted_bytes, count);
    return decoded == DE_PAGE_SIZE ? DE_OK : DE_CORRUPT;
}
