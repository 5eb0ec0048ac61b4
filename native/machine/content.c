/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "content.h"

#include <string.h>

#define PATTERN_BYTES 64u
#define RUN_BYTES 16u
#define WORDS 16u
#define RUNS (DE_PAGE_SIZE / RUN_BYTES)

void fill_random(uint8_t *bytes, uint32_t len, uint64_t key)
{
    for (uint32_t i = 0; i < len; i += 8) {
        uint64_t word = mix(key + i);
        memcpy(bytes + i, &word, len - i < 8 ? len - i : 8);
    }
}

uint64_t count_wrong(const uint8_t *found, const uint8_t *expected)
{
    if (memcmp(found, expected, DE_PAGE_SIZE) == 0)
        return 0;
    uint64_t wrong = 0;
    for (size_t i = 0; i < DE_PAGE_SIZE; i++)
        wrong += found[i] != expected[i];
    return wrong;
}

static void similar_page(const struct generator *generator, uint32_t page, uint8_t *bytes)
{
    uint64_t key = mix(mix(generator->seed ^ 0x51) + page);
    uint32_t changed = ((100 - generator->similar_percent) * RUNS + 50) / 100;
    uint8_t order[RUNS];
    fill_random(bytes, DE_PAGE_SIZE, mix(generator->seed ^ 0xba5e));
    for (uint32_t i = 0; i < RUNS; i++)
        order[i] = (uint8_t)i;
    for (uint32_t i = 0; i < changed; i++) {
        uint32_t other = i + (uint32_t)(mix(key + i) % (RUNS - i));
        uint8_t run = order[other];
        order[other] = order[i];
        fill_random(bytes + run * RUN_BYTES, RUN_BYTES, mix(key ^ run) + RUN_BYTES);
    }
}

static void page_of_words(const struct generator *generator, uint32_t page, uint8_t *bytes)
{
    uint64_t key = mix(mix(generator->seed ^ 0x30d) + page);
    uint8_t words[WORDS * RUN_BYTES];
    fill_random(words, sizeof words, key);
    for (uint32_t run = 0; run < RUNS; run++)
        memcpy(bytes + run * RUN_BYTES, words + mix(key ^ run) % WORDS * RUN_BYTES, RUN_BYTES);
}

void generate_page(const struct generator *generator, uint32_t page, uint8_t *bytes)
{
    uint64_t seed = generator->seed;
    switch (generator->kind) {
    case DE_GENERATED_ZERO:
        memset(bytes, 0, DE_PAGE_SIZE);
        break;
    case DE_GENERATED_IDENTICAL:
        fill_random(bytes, PATTERN_BYTES, mix(seed ^ 0x1d));
        for (uint32_t i = PATTERN_BYTES; i < DE_PAGE_SIZE; i += PATTERN_BYTES)
            memcpy(bytes + i, bytes, PATTERN_BYTES);
        break;
    case DE_GENERATED_RANDOM:
        fill_random(bytes, DE_PAGE_SIZE, mix(mix(seed ^ 0x4a) + page));
        break;
    case DE_GENERATED_SIMILAR:
        similar_page(generator, page, bytes);
        break;
    case DE_GENERATED_WORDS:
        page_of_words(generator, page, bytes);
        break;
    }
}
