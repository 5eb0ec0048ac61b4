/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file patch.h
 * The fast patch form: a 4096-byte page as a byte-aligned edit of one reference page.
 *
 * Meant for C3 pages: cheap to make, and rebuilt in well under a microsecond. It finds moved content (copies
 * from any offset of the reference and from the page itself), not only words that differ at equal offsets.
 * The byte-by-byte format is docs/formats.md; its first byte is the version. The denser, entropy-coded form
 * is dense.h.
 */
#ifndef DIFFENGINE_PATCH_H
#define DIFFENGINE_PATCH_H

#include <diffengine/page.h>

/** No patch is longer: encoding gives up (returns 0) before it. */
#define DE_PATCH_MAX_BYTES DE_PAGE_SIZE

struct de_patch_encoder;

/** An encoder belongs to one thread. @return DE_OK or DE_NO_MEMORY. */
int de_patch_encoder_create(struct de_patch_encoder **encoder);
void de_patch_encoder_free(struct de_patch_encoder *encoder);

/** Index @p reference for the encodes that follow. It must stay unchanged and mapped as long as it is used.
 */
void de_patch_load_reference(struct de_patch_encoder *encoder, const uint8_t *reference);

/**
 * Encode @p page against the loaded reference.
 * @return bytes written, or 0 if the patch does not fit @p capacity.
 */
size_t de_patch_encode(struct de_patch_encoder *encoder, const uint8_t *page, uint8_t *out, size_t capacity);

/**
 * Rebuild a page. No allocation, no context: any thread, the pager's fault path included.
 * @param[out] page DE_PAGE_SIZE bytes, not overlapping @p reference. Undefined content after an error.
 * @return DE_OK or DE_CORRUPT. Safe on any input: never reads outside @p untrusted_patch and @p reference,
 * never writes outside @p page.
 */
int de_patch_decode(const uint8_t *untrusted_patch, size_t count, const uint8_t *reference, uint8_t *page);

#endif
