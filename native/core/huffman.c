/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "huffman.h"

#include <stdlib.h>

struct leaf {
    uint64_t weight;
    uint16_t symbol;
};

static int by_weight(const void *left, const void *right)
{
    const struct leaf *a = left, *b = right;
    if (a->weight != b->weight)
        return a->weight < b->weight ? -1 : 1;
    return (int)a->symbol - (int)b->symbol;
}

/** Depths of an unlimited Huffman tree over leaves sorted by weight: the two-queue construction. */
static void tree_depths(const struct leaf *leaves, size_t count, uint8_t *depths)
{
    uint64_t weights[2 * HUFFMAN_MAX_SYMBOLS];
    uint16_t parents[2 * HUFFMAN_MAX_SYMBOLS];
    uint8_t node_depths[2 * HUFFMAN_MAX_SYMBOLS];
    for (size_t i = 0; i < count; i++)
        weights[i] = leaves[i].weight;
    size_t leaf = 0, inner = count, nodes = count;
    while (nodes < 2 * count - 1) {
        uint64_t sum = 0;
        for (int child = 0; child < 2; child++) {
            bool take_leaf = leaf < count && (inner >= nodes || weights[leaf] <= weights[inner]);
            size_t chosen = take_leaf ? leaf++ : inner++;
            sum += weights[chosen];
            parents[chosen] = (uint16_t)nodes;
        }
        weights[nodes++] = sum;
    }
    node_depths[nodes - 1] = 0;
    for (size_t i = nodes - 1; i-- > 0;)
        node_depths[i] = (uint8_t)(node_depths[parents[i]] + 1);
    for (size_t i = 0; i < count; i++)
        depths[i] = node_depths[i];
}

/** Clamp to @p limit, then repair: lengthen light symbols until the code fits, shorten heavy ones while it
 * can. */
static void limit_depths(size_t count, unsigned limit, uint8_t *depths)
{
    uint64_t used = 0, whole = 1ull << limit;
    for (size_t i = 0; i < count; i++) {
        if (depths[i] > limit)
            depths[i] = (uint8_t)limit;
        used += whole >> depths[i];
    }
    while (used > whole) {
        /* The lightest symbol of the longest length below the limit loses least. */
        size_t chosen = 0;
        uint8_t longest = 0;
        for (size_t i = 0; i < count; i++) {
            if (depths[i] < limit && depths[i] > longest) {
                longest = depths[i];
                chosen = i;
            }
        }
        depths[chosen]++;
        used -= whole >> depths[chosen];
    }
    for (size_t i = count; i-- > 0;) {
        while (depths[i] > 1 && used + (whole >> depths[i]) <= whole) {
            used += whole >> depths[i];
            depths[i]--;
        }
    }
}

void huffman_lengths(const uint32_t *counts, size_t symbols, unsigned limit, uint8_t *lengths)
{
    struct leaf leaves[HUFFMAN_MAX_SYMBOLS];
    uint8_t depths[HUFFMAN_MAX_SYMBOLS];
    for (size_t i = 0; i < symbols; i++) {
        /* 32 to 1: an uncounted symbol costs little code space but still has a code. */
        leaves[i].weight = counts[i] ? (uint64_t)counts[i] * 32 : 1;
        leaves[i].symbol = (uint16_t)i;
    }
    qsort(leaves, symbols, sizeof(*leaves), by_weight);
    tree_depths(leaves, symbols, depths);
    limit_depths(symbols, limit, depths);
    for (size_t i = 0; i < symbols; i++)
        lengths[leaves[i].symbol] = depths[i];
}

static uint16_t reversed(uint32_t code, unsigned bits)
{
    uint32_t result = 0;
    for (unsigned i = 0; i < bits; i++)
        result |= ((code >> i) & 1) << (bits - 1 - i);
    return (uint16_t)result;
}

bool huffman_codes(const uint8_t *lengths, size_t symbols, unsigned limit, uint16_t *codes)
{
    uint32_t per_length[HUFFMAN_MAX_BITS + 1] = {0};
    uint32_t next[HUFFMAN_MAX_BITS + 1];
    for (size_t i = 0; i < symbols; i++) {
        if (lengths[i] < 1 || lengths[i] > limit)
            return false;
        per_length[lengths[i]]++;
    }
    uint32_t code = 0;
    for (unsigned bits = 1; bits <= limit; bits++) {
        code = (code + per_length[bits - 1]) << 1;
        next[bits] = code;
        if (code + per_length[bits] > 1u << bits)
            return false;
    }
    if (code + per_length[limit] != 1u << limit)
        return false;
    for (size_t i = 0; i < symbols; i++)
        codes[i] = reversed(next[lengths[i]]++, lengths[i]);
    return true;
}
