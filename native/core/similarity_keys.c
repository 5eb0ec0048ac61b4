/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <diffengine/similarity.h>
#include <diffengine/status.h>

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    uint32_t key_high; /* the low half chooses the slot */
    uint32_t page;     /* DE_NONE: empty */
};

struct de_key_index {
    size_t slots;
    size_t used;
    unsigned candidates;
    struct entry entries[];
};

int de_key_index_create(size_t keys_expected, unsigned candidates, struct de_key_index **index)
{
    if (candidates < 1 || candidates > 16 || keys_expected > UINT32_MAX)
        return DE_INVALID;
    /* Entries of one key follow one another in probe order, so a key takes up to `candidates` slots. */
    size_t slots = keys_expected * candidates * 5 / 4 + 64;
    struct de_key_index *made = malloc(sizeof(*made) + slots * sizeof(struct entry));
    if (!made)
        return DE_NO_MEMORY;
    *made = (struct de_key_index){.slots = slots, .candidates = candidates};
    memset(made->entries, 0xff, slots * sizeof(struct entry));
    *index = made;
    return DE_OK;
}

void de_key_index_free(struct de_key_index *index)
{
    free(index);
}

size_t de_key_index_bytes(const struct de_key_index *index)
{
    return sizeof(*index) + index->slots * sizeof(struct entry);
}

static bool contains(const uint32_t *pages, size_t count, uint32_t page)
{
    for (size_t i = 0; i < count; i++)
        if (pages[i] == page)
            return true;
    return false;
}

/** Add the pages under @p key to @p found, then enter @p page if fewer than c are there. */
static size_t look_up_and_enter(struct de_key_index *index, uint64_t key, uint32_t page, uint32_t *found,
                                size_t found_count)
{
    uint32_t high = (uint32_t)(key >> 32);
    size_t slot = (size_t)(((uint64_t)(uint32_t)key * index->slots) >> 32);
    unsigned same = 0;
    while (index->entries[slot].page != DE_NONE) {
        const struct entry *entry = &index->entries[slot];
        if (entry->key_high == high) {
            if (entry->page == page)
                return found_count; /* two equal keys in one page */
            /* More than c: of other keys that agree in their high half and came to lie here. */
            if (same++ < index->candidates && !contains(found, found_count, entry->page))
                found[found_count++] = entry->page;
        }
        slot = slot + 1 == index->slots ? 0 : slot + 1;
    }
    /* A fifth of the slots stays empty: a search ends at an empty one, so in a full table it would never be
     * short. */
    if (same < index->candidates && index->used < index->slots - index->slots / 5) {
        index->entries[slot] = (struct entry){.key_high = high, .page = page};
        index->used++;
    }
    return found_count;
}

void de_key_index_pass(struct de_key_index *index, const uint64_t *keys, unsigned k, const uint32_t *pages,
                       size_t count, uint32_t *found)
{
    size_t width = (size_t)k * index->candidates;
    for (size_t i = 0; i < count; i++) {
        uint32_t *here = found + i * width;
        size_t found_count = 0;
        for (unsigned j = 0; j < k; j++)
            if (keys[i * k + j] != 0)
                found_count = look_up_and_enter(index, keys[i * k + j], pages[i], here, found_count);
        for (; found_count < width; found_count++)
            here[found_count] = DE_NONE;
    }
}
