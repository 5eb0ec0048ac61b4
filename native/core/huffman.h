/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file huffman.h
 * Length-limited canonical Huffman codes, for the dense form's model.
 */
#ifndef DIFFENGINE_HUFFMAN_H
#define DIFFENGINE_HUFFMAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HUFFMAN_MAX_SYMBOLS 512u
#define HUFFMAN_MAX_BITS 15u

/**
 * Code lengths for symbol counts. Every symbol gets a code, counted or not, since any page must be encodable.
 * @param counts  @p symbols values; a count of 0 is taken as less than any other.
 * @param symbols 2 .. HUFFMAN_MAX_SYMBOLS, and at most 2^limit.
 * @param limit   Longest code, up to HUFFMAN_MAX_BITS.
 */
void huffman_lengths(const uint32_t *counts, size_t symbols, unsigned limit, uint8_t *lengths);

/**
 * Canonical codes, bit-reversed so that they can be written least significant bit first.
 * @return whether the lengths (untrusted: 1 .. limit each) make a complete prefix code.
 */
bool huffman_codes(const uint8_t *lengths, size_t symbols, unsigned limit, uint16_t *codes);

#endif
