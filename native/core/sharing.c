/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <diffengine/sharing.h>
#include <diffengine/status.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* One page: its number plus one (0 = free slot, so that untouched memory of a large table is never populated)
 * and the digest's low half, which spares most looks at the digest array. */
struct entry {
    uint32_t page_plus_one;
    uint32_t tag;
};

struct de_sharing_table {
    struct entry *entries;
    uint64_t slots;
    uint64_t used;
    uint64_t capacity;
};

/* Pages looked up together: their slots are random, so each would be a cache miss waited for. 8 million
 * pages, table full: 34 ns per page in groups of 32, 36 with 16, 41 with 8, 57 one by one. */
#define LOOKUP_GROUP 32u

/* A page number has 32 bits: more slots than this are never of use. */
#define MAX_SLOTS ((uint64_t)UINT32_MAX + UINT32_MAX / 7 + 2)

struct lookup {
    uint32_t page;
    uint64_t slot;
};

int de_sharing_create(size_t memory_bytes, struct de_sharing_table **table)
{
    if (memory_bytes < DE_SHARING_MIN_BYTES)
        return DE_INVALID;
    struct de_sharing_table *made = malloc(sizeof *made);
    if (made == NULL)
        return DE_NO_MEMORY;
    uint64_t slots = (memory_bytes - sizeof *made) / sizeof(struct entry);
    if (slots > MAX_SLOTS)
        slots = MAX_SLOTS;
    /* Any number of slots, not only powers of two (home_slot multiplies instead of masking): no memory is
     * wasted. Linear probing: up to 7/8 full, a search stays within a few cache lines. */
    *made = (struct de_sharing_table){.slots = slots, .capacity = slots - slots / 8};
    made->entries = calloc(slots, sizeof *made->entries);
    if (made->entries == NULL) {
        free(made);
        return DE_NO_MEMORY;
    }
    *table = made;
    return DE_OK;
}

void de_sharing_free(struct de_sharing_table *table)
{
    if (table == NULL)
        return;
    free(table->entries);
    free(table);
}

void de_sharing_clear(struct de_sharing_table *table)
{
    memset(table->entries, 0, table->slots * sizeof *table->entries);
    table->used = 0;
}

size_t de_sharing_bytes(const struct de_sharing_table *table)
{
    return sizeof *table + table->slots * sizeof *table->entries;
}

size_t de_sharing_capacity(const struct de_sharing_table *table)
{
    return table->capacity;
}

__extension__ typedef unsigned __int128 uint128; /* not ISO C, but every 64-bit GCC and Clang has it */

/* digest * passes as a 128-bit number: its high half is the pass, its low half the position within the pass's
 * interval, spread evenly over the whole table in every pass. */
static inline uint128 scale_to_passes(uint64_t digest, uint32_t passes)
{
    return (uint128)digest * passes;
}

static inline uint64_t home_slot(const struct de_sharing_table *table, uint64_t position)
{
    return (uint64_t)(((uint128)position * table->slots) >> 64);
}

/* The slot that holds the digest, or the free one where it belongs. Ends, as an eighth of the slots is free.
 */
static inline uint64_t find_slot(const struct de_sharing_table *table, const uint64_t *digests,
                                 uint64_t digest, uint64_t slot)
{
    for (;;) {
        struct entry entry = table->entries[slot];
        if (entry.page_plus_one == 0)
            return slot;
        if (entry.tag == (uint32_t)digest && digests[entry.page_plus_one - 1] == digest)
            return slot;
        slot = slot + 1 == table->slots ? 0 : slot + 1;
    }
}

/* In the order of visit, so that a leader is always the first of its class. */
static int resolve_group(struct de_sharing_table *table, const uint64_t *digests,
                         const struct lookup *lookups, unsigned count, uint32_t *leaders)
{
    for (unsigned i = 0; i < count; i++) {
        uint32_t page = lookups[i].page;
        struct entry *entry = &table->entries[find_slot(table, digests, digests[page], lookups[i].slot)];
        if (entry->page_plus_one == 0) {
            if (table->used == table->capacity)
                return DE_FULL;
            *entry = (struct entry){.page_plus_one = page + 1, .tag = (uint32_t)digests[page]};
            table->used++;
        }
        leaders[page] = entry->page_plus_one - 1;
    }
    return DE_OK;
}

int de_sharing_pass(struct de_sharing_table *table, const uint64_t *digests, const uint8_t *eligible,
                    uint32_t first, uint32_t count, uint32_t pass, uint32_t passes, uint32_t *leaders)
{
    if (pass >= passes || count > DE_NONE - first)
        return DE_INVALID;
    struct lookup group[LOOKUP_GROUP];
    unsigned gathered = 0;
    for (uint32_t page = first; page < first + count; page++) {
        uint128 scaled = scale_to_passes(digests[page], passes);
        if (!eligible[page] || (uint32_t)(scaled >> 64) != pass)
            continue;
        group[gathered] = (struct lookup){.page = page, .slot = home_slot(table, (uint64_t)scaled)};
        __builtin_prefetch(&table->entries[group[gathered].slot], 1);
        if (++gathered < LOOKUP_GROUP)
            continue;
        int status = resolve_group(table, digests, group, gathered, leaders);
        if (status != DE_OK)
            return status;
        gathered = 0;
    }
    return resolve_group(table, digests, group, gathered, leaders);
}
