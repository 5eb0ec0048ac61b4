/* SPDX-License-Identifier: GPL-2.0-or-later */
/* zstd's magicless frames are stable in its library, but still declared as experimental. */
#define ZSTD_STATIC_LINKING_ONLY
#include <diffengine/digest.h>
#include <diffengine/patch.h>
#include <diffengine/rebuild.h>
#include <diffengine/status.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

/** Page references of one object: all but a DENSE object's model. */
#define PAGE_REFERENCES (DE_STORE_MAX_REFERENCES - 1)

struct de_rebuilder {
    struct de_store_reader *reader;
    ZSTD_DCtx *zstd;
    /** What an object of depth d refers to is rebuilt into scratch[d - 1]. */
    uint8_t scratch[DE_STORE_MAX_DEPTH][PAGE_REFERENCES][DE_PAGE_SIZE];
};

int de_rebuilder_create(struct de_store *store, struct de_rebuilder **rebuilder)
{
    struct de_rebuilder *made = calloc(1, sizeof(*made));
    if (!made)
        return DE_NO_MEMORY;
    int status = de_store_reader_create(store, &made->reader);
    if (status == DE_OK) {
        made->zstd = ZSTD_createDCtx();
        if (!made->zstd ||
            ZSTD_isError(ZSTD_DCtx_setParameter(made->zstd, ZSTD_d_format, ZSTD_f_zstd1_magicless)))
            status = DE_NO_MEMORY;
    }
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
    ZSTD_freeDCtx(rebuilder->zstd);
    de_store_reader_free(rebuilder->reader);
    free(rebuilder);
}

static int fill(const struct de_object *object, uint8_t *page)
{
    for (size_t at = 0; at < DE_PAGE_SIZE; at += sizeof(uint64_t))
        memcpy(page + at, object->payload, sizeof(uint64_t));
    return DE_OK;
}

static int unpack_lz4(const struct de_object *object, uint8_t *page)
{
    int count = LZ4_decompress_safe((const char *)object->payload, (char *)page, (int)object->payload_bytes,
                                    DE_PAGE_SIZE);
    return count == (int)DE_PAGE_SIZE ? DE_OK : DE_CORRUPT;
}

static int unpack_zstd(const struct de_rebuilder *rebuilder, const struct de_object *object, uint8_t *page)
{
    size_t count =
        ZSTD_decompressDCtx(rebuilder->zstd, page, DE_PAGE_SIZE, object->payload, object->payload_bytes);
    return count == DE_PAGE_SIZE ? DE_OK : DE_CORRUPT;
}

static int decode(struct de_rebuilder *rebuilder, const struct de_object *object, uint8_t *page);

/*
 * A reference's page: where it lies in the store if it is raw, else rebuilt into @p scratch. It must be less
 * deep than what refers to it, which also ends any circle that damaged headers make.
 */
static int open_reference(struct de_rebuilder *rebuilder, uint32_t id, uint8_t above, uint8_t *scratch,
                          const uint8_t **page)
{
    struct de_object reference;
    if (de_store_get(rebuilder->reader, id, &reference) != DE_OK || reference.depth >= above)
        return DE_CORRUPT;
    *page = reference.encoding == DE_ENCODING_RAW ? reference.payload : scratch;
    return *page == scratch ? decode(rebuilder, &reference, scratch) : DE_OK;
}

static int apply_patch(struct de_rebuilder *rebuilder, const struct de_object *object, uint8_t *page)
{
    const uint8_t *reference;
    if (object->depth < 1 || object->depth > DE_STORE_MAX_DEPTH)
        return DE_CORRUPT;
    int status = open_reference(rebuilder, object->references[0], object->depth,
                                rebuilder->scratch[object->depth - 1][0], &reference);
    if (status != DE_OK)
        return status;
    return de_patch_decode(object->payload, object->payload_bytes, reference, page);
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
        return unpack_lz4(object, page);
    case DE_ENCODING_ZSTD:
        return unpack_zstd(rebuilder, object, page);
    case DE_ENCODING_PATCH:
        return apply_patch(rebuilder, object, page);
    case DE_ENCODING_DENSE:
    case DE_ENCODING_MODEL:
        break;
    }
    return DE_CORRUPT;
}

int de_rebuild_page(struct de_rebuilder *rebuilder, uint32_t id, uint8_t *page)
{
    struct de_object object;
    de_store_enter(rebuilder->reader);
    int status = de_store_get(rebuilder->reader, id, &object);
    if (status == DE_OK)
        status = decode(rebuilder, &object, page);
    if (status == DE_OK && de_page_checksum(page) != object.checksum)
        status = DE_CORRUPT;
    de_store_leave(rebuilder->reader);
    return status;
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
