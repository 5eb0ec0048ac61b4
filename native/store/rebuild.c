/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "layout.h"
#include <diffengine/compress.h>
#include <diffengine/dense.h>
#include <diffengine/digest.h>
#include <diffengine/patch.h>
#include <diffengine/rebuild.h>
#include <diffengine/status.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(DE_REBUILD_MAX_SWAPPED == DE_STORE_MAX_DEPTH + 1, "a page and what it stands on");

struct de_rebuilder {
    struct de_store_reader *reader;
    struct de_compress_context *lz4, *zstd;
    /** What an object of depth d refers to is rebuilt into scratch[d - 1]. */
    uint8_t scratch[DE_STORE_MAX_DEPTH][DE_PAGE_SIZE];
    struct de_dense_window window;
    const struct de_swapped_parts *parts; /**< read from swap for the page under way */
    bool cold;                            /**< model tables are far away */
};

int de_rebuilder_create(struct de_store *store, struct de_rebuilder **rebuilder)
{
    struct de_rebuilder *made = calloc(1, sizeof(*made));
    if (!made)
        return DE_NO_MEMORY;
    int status = de_store_reader_create(store, &made->reader);
    /* Levels matter for compressing only. */
    if (status == DE_OK)
        status = de_compress_create(DE_COMPRESS_LZ4, 1, &made->lz4);
    if (status == DE_OK)
        status = de_compress_create(DE_COMPRESS_ZSTD, 1, &made->zstd);
    if (status != DE_OK) {
        de_rebuilder_free(made);
        return status;
    }
    *rebuilder = made;
    return DE_OK;
}

void de_rebuilder_free(struct de_rebuilder *rebuilder)
{
    if (!rebuilder)
        return;
    de_compress_free(rebuilder->lz4);
    de_compress_free(rebuilder->zstd);
    if (rebuilder->reader)
        de_store_reader_free(rebuilder->reader);
    free(rebuilder);
}

static int fill(const struct de_object *object, uint8_t *page)
{
    for (size_t at = 0; at < DE_PAGE_SIZE; at += sizeof(uint64_t))
        memcpy(page + at, object->payload, sizeof(uint64_t));
    return DE_OK;
}

static int decode(struct de_rebuilder *rebuilder, const struct de_object *object, uint8_t *page);

/* Look an object up; if its payload is in swap, it must be among the parts that were read. */
static int find(struct de_rebuilder *rebuilder, uint32_t id, struct de_object *object)
{
    int status = de_store_get(rebuilder->reader, id, object);
    if (status != DE_OK || object->encoding != DE_ENCODING_SWAPPED)
        return status;
    struct de_swap_place place = de_object_swap_place(object);
    for (size_t i = 0; rebuilder->parts && i < rebuilder->parts->count; i++) {
        if (rebuilder->parts->ids[i] != id || rebuilder->parts->places[i].nonce != place.nonce)
            continue;
        object->encoding = (enum de_encoding)place.encoding;
        object->payload = rebuilder->parts->payloads[i];
        object->payload_bytes = place.payload_bytes;
        return DE_OK;
    }
    return DE_BUSY;
}

/*
 * A reference's page: where it lies in the store if it is raw, else rebuilt into @p scratch. It must be less
 * deep than what refers to it, which also ends any circle that damaged headers make.
 */
static int open_reference(struct de_rebuilder *rebuilder, uint32_t id, uint8_t above, uint8_t *scratch,
                          const uint8_t **page)
{
    struct de_object reference;
    int status = find(rebuilder, id, &reference);
    if (status != DE_OK || reference.depth >= above)
        return status == DE_BUSY ? DE_BUSY : DE_CORRUPT;
    *page = reference.encoding == DE_ENCODING_RAW ? reference.payload : scratch;
    return *page == scratch ? decode(rebuilder, &reference, scratch) : DE_OK;
}

/** The page that reference number @p which of @p object names. */
static int page_reference(struct de_rebuilder *rebuilder, const struct de_object *object, unsigned which,
                          const uint8_t **reference)
{
    if (object->depth < 1 || object->depth > DE_STORE_MAX_DEPTH)
        return DE_CORRUPT;
    return open_reference(rebuilder, object->references[which], object->depth,
                          rebuilder->scratch[object->depth - 1], reference);
}

static int apply_patch(struct de_rebuilder *rebuilder, const struct de_object *object, uint8_t *page)
{
    const uint8_t *reference;
    int status = page_reference(rebuilder, object, 0, &reference);
    if (status != DE_OK)
        return status;
    return de_patch_decode(object->payload, object->payload_bytes, reference, page);
}

/* The window is filled only after the reference is rebuilt: a dense reference needed it before. */
static int unpack_dense(struct de_rebuilder *rebuilder, const struct de_object *object, uint8_t *page)
{
    const struct de_dense_model *model = de_store_model(rebuilder->reader, object->references[0]);
    bool has_reference = object->reference_count > 1;
    if (!model || object->reference_count > 2)
        return DE_CORRUPT;
    if (rebuilder->cold)
        de_dense_prefetch(model);
    rebuilder->cold = false;
    if (has_reference) {
        const uint8_t *reference;
        /* Cold as a rule: let it come while the reference is rebuilt. */
        for (uint32_t at = 0; at < object->payload_bytes; at += 64)
            __builtin_prefetch(object->payload + at);
        int status = page_reference(rebuilder, object, 1, &reference);
        if (status != DE_OK)
            return status;
        memcpy(rebuilder->window.reference, reference, DE_PAGE_SIZE);
    }
    int status =
        de_dense_decode(model, object->payload, object->payload_bytes, has_reference, &rebuilder->window);
    if (status == DE_OK)
        memcpy(page, rebuilder->window.page, DE_PAGE_SIZE);
    return status;
}

/* At most DE_STORE_MAX_DEPTH + 1 deep, as each level's depth is less. */
static int decode(struct de_rebuilder *rebuilder, const struct de_object *object, uint8_t *page)
{
    switch (object->encoding) {
    case DE_ENCODING_RAW:
        memcpy(page, object->payload, DE_PAGE_SIZE);
        return DE_OK;
    case DE_ENCODING_FILL:
        return fill(object, page);
    case DE_ENCODING_LZ4:
        return de_decompress_page(rebuilder->lz4, object->payload, object->payload_bytes, page);
    case DE_ENCODING_ZSTD:
        return de_decompress_page(rebuilder->zstd, object->payload, object->payload_bytes, page);
    case DE_ENCODING_PATCH:
        return apply_patch(rebuilder, object, page);
    case DE_ENCODING_DENSE:
        return unpack_dense(rebuilder, object, page);
    case DE_ENCODING_MODEL:
    case DE_ENCODING_SWAPPED:
        break;
    }
    return DE_CORRUPT;
}

/* The page that an object is built on, DE_NONE: none. */
static uint32_t page_below(const struct de_object *object)
{
    switch (de_object_codec(object)) {
    case DE_ENCODING_PATCH:
        return object->references[0];
    case DE_ENCODING_DENSE:
        return object->reference_count > 1 ? object->references[1] : DE_NONE;
    default:
        return DE_NONE;
    }
}

int de_rebuild_find_swapped(struct de_rebuilder *rebuilder, uint32_t id, struct de_swapped_parts *parts)
{
    struct de_object object;
    int status = DE_OK;
    parts->count = 0;
    de_store_enter(rebuilder->reader);
    for (unsigned level = 0; status == DE_OK && id != DE_NONE && level < DE_REBUILD_MAX_SWAPPED; level++) {
        status = de_store_get(rebuilder->reader, id, &object);
        if (status != DE_OK)
            break;
        if (object.encoding == DE_ENCODING_SWAPPED) {
            parts->ids[parts->count] = id;
            parts->places[parts->count++] = de_object_swap_place(&object);
        }
        id = page_below(&object);
    }
    de_store_leave(rebuilder->reader);
    return status;
}

void de_rebuild_after_pause(struct de_rebuilder *rebuilder)
{
    rebuilder->cold = true;
}

int de_rebuild_page(struct de_rebuilder *rebuilder, uint32_t id, uint8_t *page)
{
    return de_rebuild_swapped(rebuilder, id, NULL, page);
}

int de_rebuild_swapped(struct de_rebuilder *rebuilder, uint32_t id, const struct de_swapped_parts *parts,
                       uint8_t *page)
{
    struct de_object object;
    rebuilder->parts = parts;
    de_store_enter(rebuilder->reader);
    int status = find(rebuilder, id, &object);
    if (status == DE_OK)
        status = decode(rebuilder, &object, page);
    if (status == DE_OK && de_page_checksum(page) != object.checksum)
        status = DE_CORRUPT;
    de_store_leave(rebuilder->reader);
    return status;
}

void de_rebuild_batch(struct de_rebuilder *rebuilder, const uint32_t *ids, size_t count, uint8_t *pages,
                      uint8_t *right)
{
    for (size_t i = 0; i < count; i++)
        right[i] = de_rebuild_page(rebuilder, ids[i], pages + i * DE_PAGE_SIZE) == DE_OK;
}

void de_rebuild_describe_batch(struct de_rebuilder *rebuilder, const uint32_t *ids, size_t count,
                               uint8_t *encodings, uint16_t *bytes, uint8_t *patched)
{
    for (size_t i = 0; i < count; i++) {
        struct de_object object;
        encodings[i] = patched[i] = 0;
        bytes[i] = 0;
        de_store_enter(rebuilder->reader);
        if (de_store_get(rebuilder->reader, ids[i], &object) == DE_OK) {
            encodings[i] = (uint8_t)object.encoding;
            bytes[i] = (uint16_t)object.payload_bytes;
            patched[i] = object.reference_count > (object.encoding == DE_ENCODING_DENSE);
        }
        de_store_leave(rebuilder->reader);
    }
}

void de_rebuild_verify_batch(struct de_rebuilder *rebuilder, const uint32_t *ids, const uint8_t *const *pages,
                             size_t count, uint8_t *right)
{
    uint8_t page[DE_PAGE_SIZE];
    for (size_t i = 0; i < count; i++) {
        right[i] = 1;
        if (ids[i] != DE_NONE)
            right[i] =
                de_rebuild_page(rebuilder, ids[i], page) == DE_OK && !memcmp(page, pages[i], DE_PAGE_SIZE);
    }
}
