/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <diffengine/encode.h>
#include <diffengine/status.h>

int de_store_put_batch(struct de_store *store, const uint8_t *const *payloads, const uint16_t *bytes,
                       const uint8_t *encodings, const uint32_t *checksums, uint32_t model,
                       const uint32_t *pages, const uint32_t *references, size_t count, uint32_t *ids)
{
    for (size_t i = 0; i < count; i++) {
        struct de_object object = {.encoding = encodings[i],
                                   .checksum = checksums[i],
                                   .payload = payloads[i],
                                   .payload_bytes = bytes[i]};
        if (encodings[i] == DE_ENCODING_DENSE)
            object.references[object.reference_count++] = model;
        if (references[i] != DE_NONE)
            object.references[object.reference_count++] = ids[references[i]];
        int status = de_store_put(store, &object, &ids[pages[i]]);
        if (status != DE_OK)
            return status;
    }
    return DE_OK;
}

int de_store_release_batch(struct de_store *store, const uint32_t *ids, size_t count)
{
    int result = DE_OK;
    for (size_t i = 0; i < count; i++) {
        int status = ids[i] == DE_NONE ? DE_OK : de_store_release(store, ids[i]);
        if (result == DE_OK)
            result = status;
    }
    return result;
}
