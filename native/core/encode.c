/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <diffengine/compress.h>
#include <diffengine/digest.h>
#include <diffengine/encode.h>
#include <diffengine/patch.h>
#include <diffengine/status.h>

#include <stdlib.h>
#include <string.h>

struct de_page_encoder {
    struct de_compress_context *lz4, *zstd;
    struct de_patch_encoder *patch;
    struct de_dense_encoder *dense;
    uint8_t scratch[DE_PAGE_SIZE];
};

/** One page's payload so far. */
struct payload {
    uint8_t *at;
    size_t bytes;
    uint8_t encoding;
    uint8_t patched;
};

int de_page_encoder_create(int lz4_level, int zstd_level, struct de_page_encoder **encoder)
{
    struct de_page_encoder *made = calloc(1, sizeof(*made));
    if (!made)
        return DE_NO_MEMORY;
    int status = de_compress_create(DE_COMPRESS_LZ4, lz4_level, &made->lz4);
    if (status == DE_OK)
        status = de_compress_create(DE_COMPRESS_ZSTD, zstd_level, &made->zstd);
    if (status == DE_OK)
        status = de_patch_encoder_create(&made->patch);
    if (status == DE_OK)
        status = de_dense_encoder_create(&made->dense);
    if (status == DE_OK)
        *encoder = made;
    else
        de_page_encoder_free(made);
    return status;
}

void de_page_encoder_free(struct de_page_encoder *encoder)
{
    if (!encoder)
        return;
    de_compress_free(encoder->lz4);
    de_compress_free(encoder->zstd);
    de_patch_encoder_free(encoder->patch);
    de_dense_encoder_free(encoder->dense);
    free(encoder);
}

/** Compress without a reference; RAW when that does not make the page smaller. */
static void encode_alone(struct de_page_encoder *encoder, const struct de_encode_options *options,
                         const uint8_t *page, struct payload *payload)
{
    size_t bytes = 0, capacity = DE_PAGE_SIZE - 1;
    if (options->codec == DE_ENCODING_LZ4)
        bytes = de_compress_page(encoder->lz4, page, payload->at, capacity);
    else if (options->codec == DE_ENCODING_ZSTD)
        bytes = de_compress_page(encoder->zstd, page, payload->at, capacity);
    else if (options->codec == DE_ENCODING_DENSE)
        bytes = de_dense_encode(encoder->dense, options->model, page, NULL, payload->at, capacity);
    payload->encoding = bytes ? options->codec : DE_ENCODING_RAW;
    payload->bytes = bytes ? bytes : DE_PAGE_SIZE;
    payload->patched = 0;
    if (!bytes)
        memcpy(payload->at, page, DE_PAGE_SIZE);
}

/** Encode against a reference into the scratch page. @return bytes, 0 if that gives nothing. */
static size_t encode_patch(struct de_page_encoder *encoder, const struct de_encode_options *options,
                           const uint8_t *page, const uint8_t *reference)
{
    if (options->codec == DE_ENCODING_DENSE)
        return de_dense_encode(encoder->dense, options->model, page, reference, encoder->scratch,
                               DE_PAGE_SIZE - 1);
    de_patch_load_reference(encoder->patch, reference);
    return de_patch_encode(encoder->patch, page, encoder->scratch, options->patch_limit);
}

static void encode_page(struct de_page_encoder *encoder, const struct de_encode_options *options,
                        const uint8_t *page, const uint8_t *reference, struct payload *payload)
{
    size_t patch_bytes = reference ? encode_patch(encoder, options, page, reference) : 0;
    bool patch_wins = patch_bytes && options->patch_first;
    if (!patch_wins) {
        encode_alone(encoder, options, page, payload);
        patch_wins = patch_bytes && patch_bytes + options->reference_bytes < payload->bytes;
    }
    if (patch_wins) {
        memcpy(payload->at, encoder->scratch, patch_bytes);
        payload->bytes = patch_bytes;
        payload->encoding = options->codec == DE_ENCODING_DENSE ? DE_ENCODING_DENSE : DE_ENCODING_PATCH;
        payload->patched = 1;
    }
}

static bool valid(const struct de_encode_options *options)
{
    if (options->patch_limit > DE_PATCH_MAX_BYTES)
        return false;
    switch (options->codec) {
    case DE_ENCODING_RAW:
    case DE_ENCODING_LZ4:
    case DE_ENCODING_ZSTD:
        return true;
    case DE_ENCODING_DENSE:
        return options->model != NULL;
    default:
        return false;
    }
}

int de_encode_batch(struct de_page_encoder *encoder, const struct de_encode_options *options,
                    const uint8_t *const *pages, const uint8_t *const *references, size_t count,
                    uint8_t *payloads, uint16_t *bytes, uint8_t *encodings, uint8_t *patched)
{
    if (!valid(options))
        return DE_INVALID;
    for (size_t i = 0; i < count; i++) {
        struct payload payload = {.at = payloads + i * DE_PAGE_SIZE};
        encode_page(encoder, options, pages[i], references ? references[i] : NULL, &payload);
        bytes[i] = (uint16_t)payload.bytes;
        encodings[i] = payload.encoding;
        patched[i] = payload.patched;
    }
    return DE_OK;
}

void de_patch_sizes(struct de_page_encoder *encoder, const uint8_t *const *pages,
                    const uint8_t *const *candidates, size_t count, unsigned width, uint16_t limit,
                    uint16_t *bytes)
{
    for (size_t i = 0; i < count * width; i++) {
        bytes[i] = 0;
        if (!candidates[i])
            continue;
        de_patch_load_reference(encoder->patch, candidates[i]);
        bytes[i] = (uint16_t)de_patch_encode(encoder->patch, pages[i / width], encoder->scratch, limit);
    }
}

void de_choose_references(const uint32_t *pages, const uint32_t *candidates, const uint16_t *bytes,
                          size_t count, unsigned width, uint8_t *patched, uint32_t *references)
{
    for (size_t i = 0; i < count; i++) {
        uint16_t best = UINT16_MAX;
        references[i] = DE_NONE;
        for (size_t j = i * width; j < (i + 1) * width; j++) {
            if (bytes[j] == 0 || bytes[j] >= best || patched[candidates[j]])
                continue;
            best = bytes[j];
            references[i] = candidates[j];
        }
        patched[pages[i]] = references[i] != DE_NONE;
    }
}

void de_copy_batch(const uint8_t *const *pages, size_t count, uint8_t *copies)
{
    for (size_t i = 0; i < count; i++)
        memcpy(copies + i * DE_PAGE_SIZE, pages[i], DE_PAGE_SIZE);
}

void de_checksum_batch(const uint8_t *const *pages, size_t count, uint32_t *checksums)
{
    for (size_t i = 0; i < count; i++)
        checksums[i] = de_page_checksum(pages[i]);
}
