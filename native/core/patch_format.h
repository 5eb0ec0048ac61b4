/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file patch_format.h
 * Constants of the fast patch form, shared by its encoder and decoder. docs/formats.md explains each.
 */
#ifndef DIFFENGINE_CORE_PATCH_FORMAT_H
#define DIFFENGINE_CORE_PATCH_FORMAT_H

#include <diffengine/page.h>

#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the patch form is read and written in little-endian words"
#endif

enum {
    PATCH_VERSION = 0x10,        /**< in the first byte's high nibble */
    PATCH_VERSION_MASK = 0xf0,   /**< the low nibble holds flags: */
    PATCH_WIDE_COUNT = 0x01,     /**< the token count takes two bytes */
    PATCH_RESERVED = 0x02,       /**< zero */
    PATCH_RELOCATIONS_SHIFT = 2, /**< two bits: number of relocations */
    PATCH_MAX_RELOCATIONS = 3,
    PATCH_RELOCATION_REACH = 8, /**< bytes that applying one touches, whatever its width */
    PATCH_SKIP = 255,           /**< a relocation's step that only moves on */

    /* A token's high nibble: how many bytes stay as in the reference before the operation. */
    PATCH_GAP_BYTE = 14, /**< 14 plus one extra byte */
    PATCH_GAP_WORD = 15, /**< 14 plus two extra bytes */

    /* A token's low nibble: the operation. */
    PATCH_LITERAL_MAX = 13, /**< 0 .. 12: that many literals and one */
    PATCH_COPY = 13,        /**< 13, 14: a copy of 1 .. 8, 9 .. 16 bytes */
    PATCH_COPY_MAX = 16,
    PATCH_LONG = 15,

    /* A copy's word: 12 bits of place, one that says page (set) or reference, three low bits of its length
       less one. */
    PATCH_SOURCE_PAGE = 0x1000,
    PATCH_SOURCE_BITS = 13,

    /* A long operation's word: 12 bits of length less one, the kind above. */
    PATCH_LONG_BITS = 12,
    PATCH_LONG_LITERAL = 0,
    PATCH_LONG_COPY = 1,
    PATCH_LONG_FILL = 2, /**< one word of eight bytes, repeated */
};

static inline uint16_t load16(const uint8_t *bytes)
{
    uint16_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

static inline uint32_t load32(const uint8_t *bytes)
{
    uint32_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

static inline uint64_t load64(const uint8_t *bytes)
{
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

static inline void store16(uint8_t *bytes, uint16_t word)
{
    memcpy(bytes, &word, sizeof word);
}

static inline void store64(uint8_t *bytes, uint64_t word)
{
    memcpy(bytes, &word, sizeof word);
}

/** The low @p width (1 .. 8) bytes of a word. */
static inline uint64_t low_bytes(size_t width)
{
    return UINT64_MAX >> (64 - 8 * width);
}

#endif
