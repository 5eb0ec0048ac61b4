/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What each page must hold. */
#include "world.h"

#include <string.h>

#define MAX_WRITE_BYTES 64u

/*
 * Contents that compress, that patch one another well (a common half), and of which two groups have only the
 * zero page in common: a page that crossed over would be seen.
 */
void contents_create(struct world *world)
{
    for (uint32_t group = 0; group < GROUPS; group++) {
        for (uint32_t content = 1; content < CONTENTS; content++) {
            uint8_t *bytes = world->contents[group][content];
            for (uint32_t at = 0; at < DE_PAGE_SIZE; at += 8) {
                uint64_t key = at < DE_PAGE_SIZE / 2 ? content / 4 : content;
                uint64_t word = simulation_mix(key << 32 | group << 16 | at / 32);
                memcpy(bytes + at, &word, sizeof word);
            }
        }
    }
    /* One page of a single word, and two that do not compress. */
    memset(world->contents[0][1], 0x11, DE_PAGE_SIZE);
    memset(world->contents[1][1], 0x22, DE_PAGE_SIZE);
    for (uint32_t group = 0; group < GROUPS; group++)
        for (uint32_t at = 0; at < DE_PAGE_SIZE; at += 8) {
            uint64_t word = simulation_mix(0xabcdef + group * DE_PAGE_SIZE + at);
            memcpy(world->contents[group][2] + at, &word, sizeof word);
        }
}

void page_fill(struct world *world, struct place *place, struct page_model *page, uint32_t content)
{
    content %= CONTENTS;
    page->content = (uint8_t)content;
    memcpy(page->bytes, world->contents[place_group(place)][content], DE_PAGE_SIZE);
}

struct page_model *page_read_begin(struct place *place, uint32_t gfn)
{
    struct page_model *page = &place->pages[gfn];
    if (page->exclusive || page->readers == UINT8_MAX)
        return NULL;
    page->readers++;
    return page;
}

struct page_model *page_write_begin(struct place *place, uint32_t gfn)
{
    struct page_model *page = &place->pages[gfn];
    if (page->exclusive || page->readers)
        return NULL;
    page->exclusive = true;
    return page;
}

void page_check(struct place *place, uint32_t gfn, const uint8_t *found, const char *who)
{
    const uint8_t *bytes = place->pages[gfn].bytes;
    if (memcmp(found, bytes, DE_PAGE_SIZE) == 0)
        return;
    uint32_t at = 0;
    while (found[at] == bytes[at])
        at++;
    WORLD_FAIL(place->world, "wrong content: %s of domain %u read gfn %#x: byte %u is %#x, not %#x", who,
               place->id, gfn, at, found[at], bytes[at]);
}

uint32_t write_bytes(uint32_t argument, uint32_t *offset, uint8_t *bytes)
{
    uint64_t key = simulation_mix(argument);
    uint32_t length = 1 + (uint32_t)(key >> 32) % MAX_WRITE_BYTES;
    *offset = (uint32_t)(key % (DE_PAGE_SIZE - MAX_WRITE_BYTES));
    for (uint32_t at = 0; at < MAX_WRITE_BYTES; at += 8) {
        uint64_t word = simulation_mix(key + at);
        memcpy(bytes + at, &word, sizeof word);
    }
    return length;
}
