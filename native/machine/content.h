/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file content.h
 * Bytes that follow from a key, and the pages of the paper's generator (section 5.2). Knows no machine: the
 * guest program that runs on a real Xen (tests/xen/guest) fills its memory with the same.
 */
#ifndef DIFFENGINE_MACHINE_CONTENT_H
#define DIFFENGINE_MACHINE_CONTENT_H

#include <diffengine/page.h>
#include <diffengine/program.h>
#include <stdint.h>

#define GENERATOR_WRITES 16u /**< bytes that the generator's write phase changes in a page */

struct generator {
    enum de_generated_kind kind;
    uint32_t similar_percent; /**< 0 .. 100; for DE_GENERATED_SIMILAR */
    uint64_t seed;
};

/** splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. */
static inline uint64_t mix(uint64_t z)
{
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/** Bytes that follow from a key. */
void fill_random(uint8_t *bytes, uint32_t len, uint64_t key);
/** Bytes that differ. */
uint64_t count_wrong(const uint8_t *found, const uint8_t *expected);

/** What page @p page holds after the allocate phase. */
void generate_page(const struct generator *generator, uint32_t page, uint8_t *bytes);
/** Offset of the write phase's byte @p i in every page. */
static inline uint32_t generator_offset(uint32_t i)
{
    return i * (DE_PAGE_SIZE / GENERATOR_WRITES);
}

#endif
