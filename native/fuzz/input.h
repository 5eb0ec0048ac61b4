/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file input.h
 * What a libFuzzer target draws from its input, and how it says that something is wrong.
 */
#ifndef DIFFENGINE_FUZZ_INPUT_H
#define DIFFENGINE_FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

struct input {
    const uint8_t *bytes;
    size_t count;
};

/** A finding, unless the condition holds. */
static inline void require(int condition)
{
    if (!condition)
        abort();
}

/** The next bytes as a number, most significant first; with fewer left, those; 0 at the end. */
static inline uint32_t take(struct input *input, size_t bytes)
{
    uint32_t number = 0;
    for (; bytes && input->count; bytes--, input->count--)
        number = number << 8 | *input->bytes++;
    return number;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

#endif
