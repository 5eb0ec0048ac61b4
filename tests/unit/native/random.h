/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Repeatable random numbers for tests (xorshift64*, Vigna 2016). A test program has one stream; it starts
 * from RANDOM_SEED, which the program defines before it includes this header.
 */
#ifndef DIFFENGINE_TEST_RANDOM_H
#define DIFFENGINE_TEST_RANDOM_H

#include <stddef.h>
#include <stdint.h>

static uint64_t random_state = RANDOM_SEED;

static inline uint64_t random_word(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x2545f4914f6cdd1du;
}

static inline uint32_t random_below(uint32_t limit)
{
    return (uint32_t)((random_word() >> 32) * limit >> 32);
}

static inline void fill_at_random(uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        bytes[i] = (uint8_t)random_below(256);
}

#endif
