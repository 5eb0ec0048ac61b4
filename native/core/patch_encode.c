/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The fast patch form's encoder.
 *
 * Pages that a detector pairs differ in few places, so it compares at equal offsets first and spends
 * everything else on what differs. Much of that is the same address moved by a constant (a kernel loaded
 * elsewhere, another process's heap): such relocations are taken out of the page before anything else, like a
 * linker's in executables (Percival's bsdiff and Courgette do it for programs). What differs still is looked
 * up in the reference and in the page so far.
 *
 * Time goes to wrong branch predictions, so positions are first listed and then visited, and lengths come
 * from 32-byte compares.
 */
#include <diffengine/patch.h>
#include <diffengine/status.h>

#include <stdbool.h>
#include <stdlib.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "cpu.h"
#include "patch_format.h"

enum {
    MAP_WORDS = DE_PAGE_SIZE / 64,
    BEFORE_MAP = 2, /* zero words, so that edges need no special case */
    LISTED_AT_ONCE = 6,

    SAMPLES = 32,
    SAMPLE_HASH_BITS = 8,
    MAX_RELOCATIONS = 2,     /* a third saves nothing on the whole */
    RELOCATION_MIN_USES = 5, /* of the samples: one costs some eight bytes, and time */
    MAX_STEPS = 255,
    MAX_SKIPS = DE_PAGE_SIZE / PATCH_SKIP, /* before one step */

    HASH_BITS = 12,
    MIN_MATCH = 4, /* what the hash covers */
    LAST_HASHED = DE_PAGE_SIZE - MIN_MATCH,
    /* Guests' data is aligned, and matches are extended backwards: indexing each fourth position loses 1 % in
     * size, and searching a run's first and each eighth position 7 %, for a fifth of the time. Who wants
     * density takes the dense form. */
    INDEX_STRIDE = 4,
    SEARCH_STRIDE = 8,
    /* So far into a run; then each ninth position, so that content moved by odd distances is found, too. */
    ALIGNED_RUN = 32,
    /* Shorter runs, and copies that save less, are literals. A copy costs three bytes, but a search costs a
     * wrongly guessed branch: from 6 to 12 the patch grows by 10 % and takes a sixth less time to make. */
    MIN_COVERED = 12,
    /* Equal bytes between two differing runs that join them: longer runs find more copies, and each token
     * takes time. */
    MAX_GAP = 3,
    LONGEST_SHORT_COPIES = 3 * PATCH_COPY_MAX, /* up to here, short copies decode faster than a long one */
    LONGEST_SHORT_LITERALS = 4 * PATCH_LITERAL_MAX,
    FILL_MIN = 16, /* twice the word */

    WIDE = 32,
    SLACK = 64, /* around buffers, for loads and stores of a fixed size */
};

/* A constant that differing words have in common. */
struct relocation {
    uint64_t delta;
    uint64_t mask; /* the low width bytes */
    unsigned width;
    unsigned step_count;
    uint8_t steps[MAX_STEPS + MAX_SKIPS];
};

/* Where differing runs start, and how the eight bytes there differ. */
struct differences {
    unsigned count;
    uint16_t places[DE_PAGE_SIZE / 2 + LISTED_AT_ONCE];
    uint64_t deltas[DE_PAGE_SIZE / 2 + LISTED_AT_ONCE];
};

/* An entry of the index that the page's positions replaced. */
struct replaced {
    uint16_t slot;
    uint16_t place;
};

struct de_patch_encoder {
    /* The reference, then the page without its relocations: a copy's 13-bit source is a place in here. With
     * room around for wide loads. */
    uint8_t text[SLACK + 2 * DE_PAGE_SIZE + SLACK];
    uint16_t index[1u << HASH_BITS]; /* a place in the text by its hash, plus one; 0: none */
    struct replaced replaced[DE_PAGE_SIZE];
    unsigned replaced_count;
    uint64_t
        differs[BEFORE_MAP + MAP_WORDS + 1]; /* bit per byte: differs from the reference; zero words around */
    uint64_t
        differing_words; /* bit per word of it: is not zero (or was not, before relocations were undone) */
    struct differences differences;
    uint16_t matching[DE_PAGE_SIZE / 2];
    uint16_t edges[DE_PAGE_SIZE + LISTED_AT_ONCE]; /* starts and ends of runs, in turn */
    unsigned relocation_count;
    struct relocation relocations[MAX_RELOCATIONS];
    uint8_t tokens[DE_PAGE_SIZE + SLACK];
    uint8_t data[DE_PAGE_SIZE + SLACK];
};

/* Where the next operation goes. */
struct writer {
    const uint8_t *page;
    uint8_t *token;
    uint8_t *data;
    size_t position; /* every byte of the page before it is encoded */
    size_t budget;   /* what tokens and data may take together */
    size_t used;
};

struct match {
    size_t start; /* in the page */
    size_t length;
    size_t source;
};

static inline size_t min(size_t left, size_t right)
{
    return left < right ? left : right;
}

static inline uint8_t *reference_of(struct de_patch_encoder *encoder)
{
    return encoder->text + SLACK;
}

static inline uint8_t *page_of(struct de_patch_encoder *encoder)
{
    return encoder->text + SLACK + DE_PAGE_SIZE;
}

static inline uint32_t hash32(uint32_t word, unsigned bits)
{
    return word * 2654435761u >> (32 - bits);
}

int de_patch_encoder_create(struct de_patch_encoder **encoder)
{
    *encoder = calloc(1, sizeof **encoder);
    return *encoder ? DE_OK : DE_NO_MEMORY;
}

void de_patch_encoder_free(struct de_patch_encoder *encoder)
{
    free(encoder);
}

void de_patch_load_reference(struct de_patch_encoder *encoder, const uint8_t *reference)
{
    memcpy(reference_of(encoder), reference, DE_PAGE_SIZE);
    memset(encoder->index, 0, sizeof encoder->index);
    /* Backwards, so that the first of several equal words stays: of a fill, it matches longest. */
    for (size_t i = DE_PAGE_SIZE; i > 0;) {
        i -= INDEX_STRIDE;
        encoder->index[hash32(load32(reference + i), HASH_BITS)] = (uint16_t)(i + 1);
    }
}

#if defined(__SSE2__)
static inline uint32_t equal_bytes16(const uint8_t *left, const uint8_t *right)
{
    __m128i a = _mm_loadu_si128((const __m128i *)left);
    __m128i b = _mm_loadu_si128((const __m128i *)right);
    return (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(a, b));
}
#else
static inline uint32_t equal_bytes8(const uint8_t *left, const uint8_t *right)
{
    uint64_t word = load64(left) ^ load64(right);
    word |= word >> 4;
    word |= word >> 2;
    word |= word >> 1;
    word &= 0x0101010101010101u;
    return ~(uint32_t)(word * 0x0102040810204080u >> 56) & 0xff; /* gathers the eight low bits */
}

static inline uint32_t equal_bytes16(const uint8_t *left, const uint8_t *right)
{
    return equal_bytes8(left, right) | equal_bytes8(left + 8, right + 8) << 8;
}
#endif

static inline uint32_t equal_bytes32(const uint8_t *left, const uint8_t *right)
{
    return equal_bytes16(left, right) | equal_bytes16(left + 16, right + 16) << 16;
}

static inline uint64_t differing_bytes64(const uint8_t *left, const uint8_t *right)
{
    return ~(equal_bytes32(left, right) | (uint64_t)equal_bytes32(left + 32, right + 32) << 32);
}

#if DE_HAVE_AVX2_BUILD
__attribute__((target("avx2"))) static inline uint64_t differing_bytes64_avx2(const uint8_t *left,
                                                                              const uint8_t *right)
{
    uint64_t equal = 0;
    for (unsigned i = 0; i < 64; i += 32) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(left + i));
        __m256i b = _mm256_loadu_si256((const __m256i *)(right + i));
        equal |= (uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(a, b)) << i;
    }
    return ~equal;
}
#else
#define differing_bytes64_avx2 differing_bytes64
#endif

static inline void map_differences(struct de_patch_encoder *encoder, bool has_avx2)
{
    const uint8_t *reference = reference_of(encoder), *page = page_of(encoder);
    uint64_t *map = encoder->differs + BEFORE_MAP, words = 0;
    for (size_t i = 0; i < MAP_WORDS; i++) {
        map[i] = has_avx2 ? differing_bytes64_avx2(page + 64 * i, reference + 64 * i)
                          : differing_bytes64(page + 64 * i, reference + 64 * i);
        words |= (uint64_t)(map[i] != 0) << i;
    }
    encoder->differing_words = words;
}

/* Append the places of a map word's bits to a list; it may write LISTED_AT_ONCE - 1 entries more than it
 * counts. */
static inline unsigned list_bits(uint64_t word, size_t first, uint16_t *list, unsigned count)
{
    do {
        for (unsigned i = 0; i < LISTED_AT_ONCE; i++) {
            list[count] = (uint16_t)(first + (size_t)__builtin_ctzll(word | (uint64_t)1 << 63));
            count += word != 0;
            word &= word - 1;
        }
    } while (word);
    return count;
}

static void list_differences(struct de_patch_encoder *encoder)
{
    struct differences *differences = &encoder->differences;
    const uint64_t *differs = encoder->differs + BEFORE_MAP;
    unsigned count = 0;
    for (uint64_t words = encoder->differing_words; words; words &= words - 1) {
        size_t i = (size_t)__builtin_ctzll(words);
        uint64_t starts = differs[i] & ~(differs[i] << 1 | differs[(ptrdiff_t)i - 1] >> 63);
        if (i == MAP_WORDS - 1)
            starts &= UINT64_MAX >> (PATCH_RELOCATION_REACH - 1);
        count = list_bits(starts, 64 * i, differences->places, count);
    }
    const uint8_t *reference = reference_of(encoder), *page = page_of(encoder);
    for (unsigned i = 0; i < count; i++)
        differences->deltas[i] =
            load64(page + differences->places[i]) - load64(reference + differences->places[i]);
    differences->count = count;
}

/* How often a difference was met, in a sample. */
struct tally {
    uint64_t delta[1u << SAMPLE_HASH_BITS]; /* the last one with a hash; unset where count is 0 */
    uint8_t count[1u << SAMPLE_HASH_BITS];
    uint8_t
        repeated[1u << SAMPLE_HASH_BITS]; /* times that all eight bytes were the same as the time before */
    uint8_t hashes[SAMPLES];
    unsigned sample_count;
};

static void take_samples(struct tally *tally, const struct differences *differences)
{
    memset(tally->count, 0, sizeof tally->count);
    memset(tally->repeated, 0, sizeof tally->repeated);
    unsigned stride = (differences->count + SAMPLES - 1) / SAMPLES, n = 0;
    for (unsigned i = 0; i < differences->count; i += stride) {
        uint64_t delta = differences->deltas[i];
        uint8_t hash = (uint8_t)hash32((uint32_t)delta, SAMPLE_HASH_BITS);
        tally->repeated[hash] += tally->count[hash] && tally->delta[hash] == delta;
        tally->delta[hash] = delta;
        tally->count[hash]++;
        tally->hashes[n++] = hash;
    }
    tally->sample_count = n;
}

static void set_relocation(struct relocation *relocation, uint64_t delta, bool is_wide)
{
    /* What stands behind a relocated 32-bit address varies; behind a pointer's changed bytes come its
     * constant high ones. */
    if (!is_wide)
        delta = (uint64_t)(int64_t)(int32_t)delta;
    uint64_t magnitude = (int64_t)delta < 0 ? ~delta : delta;
    unsigned bits = magnitude ? 64 - (unsigned)__builtin_clzll(magnitude) : 0;
    unsigned width = (bits + 8) / 8 + 1; /* the sign, and room for a carry */
    relocation->delta = delta;
    relocation->width = width < 8 ? width : 8;
    relocation->mask = low_bytes(relocation->width);
    relocation->step_count = 0;
}

/* Choose the constants that most sampled words share. */
static void choose_relocations(struct de_patch_encoder *encoder)
{
    struct tally tally;
    take_samples(&tally, &encoder->differences);
    while (encoder->relocation_count < MAX_RELOCATIONS) {
        unsigned best = 0;
        for (unsigned i = 0; i < tally.sample_count; i++) {
            unsigned candidate = (unsigned)tally.count[tally.hashes[i]] << SAMPLE_HASH_BITS | tally.hashes[i];
            best = candidate > best ? candidate : best;
        }
        unsigned count = best >> SAMPLE_HASH_BITS, hash = best % (1u << SAMPLE_HASH_BITS);
        if (count < RELOCATION_MIN_USES)
            break;
        set_relocation(&encoder->relocations[encoder->relocation_count++], tally.delta[hash],
                       tally.repeated[hash] * 2u >= count);
        tally.count[hash] = 0;
    }
}

static inline void clear_bits(uint64_t *map, size_t position, size_t count)
{
    uint64_t bits = ((uint64_t)1 << count) - 1;
    unsigned shift = position % 64;
    map[position / 64] &= ~(bits << shift);
    map[position / 64 + 1] &= ~(bits >> 1 >> (63 - shift));
}

static unsigned find_places(const struct differences *differences, const struct relocation *relocation,
                            uint16_t *matching)
{
    unsigned count = 0;
    for (unsigned i = 0; i < differences->count; i++) {
        matching[count] = differences->places[i]; /* always stored, sometimes kept: no branch to guess */
        count += ((differences->deltas[i] - relocation->delta) & relocation->mask) == 0;
    }
    return count;
}

/* Take a relocation out of the page and note its steps. */
static void undo_relocation(struct de_patch_encoder *encoder, struct relocation *relocation)
{
    const uint8_t *reference = reference_of(encoder);
    uint8_t *page = page_of(encoder);
    size_t last = 0;
    unsigned count = 0, matching = find_places(&encoder->differences, relocation, encoder->matching);
    for (unsigned i = 0; i < matching; i++) {
        size_t place = encoder->matching[i], distance = place - last;
        uint64_t word = load64(page + place), plain = word - relocation->delta;
        if ((plain ^ load64(reference + place)) & relocation->mask)
            continue; /* overlaps one that is undone already */
        if (count + distance / PATCH_SKIP + 1 > MAX_STEPS)
            break;
        memset(relocation->steps + count, PATCH_SKIP, MAX_SKIPS); /* a fixed size is fast */
        count += distance / PATCH_SKIP;
        relocation->steps[count++] = (uint8_t)(distance % PATCH_SKIP);
        last = place;
        store64(page + place, (word & ~relocation->mask) | (plain & relocation->mask));
        clear_bits(encoder->differs + BEFORE_MAP, place, relocation->width);
    }
    relocation->step_count = count;
}

/* Find relocated addresses and make the page's copy what it would be without; fewer differences are left. */
static void undo_relocations(struct de_patch_encoder *encoder)
{
    list_differences(encoder);
    encoder->relocation_count = 0;
    if (encoder->differences.count < 2 * RELOCATION_MIN_USES)
        return;
    choose_relocations(encoder);
    for (unsigned i = 0; i < encoder->relocation_count; i++)
        undo_relocation(encoder, &encoder->relocations[i]);
}

/* A word's bits, and each also MAX_GAP places above. */
static inline uint64_t widened(uint64_t before, uint64_t word)
{
    uint64_t wide = word;
    for (unsigned i = 1; i <= MAX_GAP; i++)
        wide |= word << i | before >> (64 - i);
    return wide;
}

/* The inverse on bits that stay with what follows them: gaps of at most MAX_GAP are closed by both in turn.
 */
static inline uint64_t narrowed(uint64_t wide, uint64_t after)
{
    uint64_t narrow = wide;
    for (unsigned i = 1; i <= MAX_GAP; i++)
        narrow &= wide >> i | after << (64 - i);
    return narrow;
}

/* List the edges of differing runs, with short gaps closed. */
static unsigned list_edges(struct de_patch_encoder *encoder)
{
    const uint64_t *differs = encoder->differs + BEFORE_MAP;
    unsigned count = 0;
    uint64_t edges[MAP_WORDS];
    for (size_t i = 0; i < MAP_WORDS; i++) { /* for the compiler to make vectors of */
        const uint64_t *word = differs + i;
        uint64_t before = widened(word[-2], word[-1]), wide = widened(word[-1], word[0]);
        uint64_t runs = narrowed(wide, widened(word[0], word[1]));
        edges[i] = runs ^ (runs << 1 | narrowed(before, wide) >> 63);
    }
    /* A run may end with its word: then the edge is in the next. */
    for (uint64_t words = encoder->differing_words | encoder->differing_words << 1; words;
         words &= words - 1) {
        size_t i = (size_t)__builtin_ctzll(words);
        count = list_bits(edges[i], 64 * i, encoder->edges, count);
    }
    encoder->edges[count] = DE_PAGE_SIZE;
    encoder->edges[count + 1] = DE_PAGE_SIZE;
    return (count + 1) / 2;
}

/* Write an operation's token and gap; false if the patch becomes too long with @data_bytes more. */
static inline bool put_token(struct writer *writer, unsigned operation, size_t start, size_t data_bytes)
{
    size_t gap = start - writer->position;
    size_t gap_bytes = (size_t)(gap >= PATCH_GAP_BYTE) + (gap >= PATCH_GAP_BYTE + 256);
    size_t code = gap_bytes ? PATCH_GAP_BYTE - 1 + gap_bytes : gap;
    writer->used += 1 + gap_bytes + data_bytes;
    if (writer->used > writer->budget)
        return false;
    *writer->token++ = (uint8_t)(code << 4 | operation);
    store16(writer->data, (uint16_t)(gap - PATCH_GAP_BYTE));
    writer->data += gap_bytes;
    writer->position = start;
    return true;
}

static bool put_long_literals(struct writer *writer, size_t start, size_t count)
{
    if (!put_token(writer, PATCH_LONG, start, 2 + count))
        return false;
    store16(writer->data, (uint16_t)(PATCH_LONG_LITERAL << PATCH_LONG_BITS | (count - 1)));
    memcpy(writer->data + 2, writer->page + start, count);
    writer->data += 2 + count;
    writer->position += count;
    return true;
}

static inline bool put_literals(struct writer *writer, size_t start, size_t end)
{
    if (end - start > LONGEST_SHORT_LITERALS)
        return put_long_literals(writer, start, end - start);
    while (start < end) {
        size_t count = min(end - start, PATCH_LITERAL_MAX);
        if (!put_token(writer, (unsigned)count - 1, start, count))
            return false;
        memcpy(writer->data, writer->page + start,
               16); /* the buffers have room behind; a fixed size is fast */
        writer->data += count;
        start += count;
        writer->position = start;
    }
    return true;
}

static bool put_long_copy(struct writer *writer, const struct match *match)
{
    if (!put_token(writer, PATCH_LONG, match->start, 4))
        return false;
    store16(writer->data, (uint16_t)(PATCH_LONG_COPY << PATCH_LONG_BITS | (match->length - 1)));
    store16(writer->data + 2, (uint16_t)match->source);
    writer->data += 4;
    writer->position += match->length;
    return true;
}

static inline bool put_copy(struct writer *writer, const struct match *match)
{
    if (match->length > LONGEST_SHORT_COPIES)
        return put_long_copy(writer, match);
    for (size_t done = 0; done < match->length;) {
        size_t count = min(match->length - done, PATCH_COPY_MAX);
        if (!put_token(writer, PATCH_COPY + (unsigned)(count - 1) / 8, match->start + done, 2))
            return false;
        store16(writer->data, (uint16_t)((count - 1) % 8 << PATCH_SOURCE_BITS | (match->source + done)));
        writer->data += 2;
        writer->position += count;
        done += count;
    }
    return true;
}

static bool put_fill(struct writer *writer, size_t start, size_t count)
{
    if (!put_token(writer, PATCH_LONG, start, 10))
        return false;
    store16(writer->data, (uint16_t)(PATCH_LONG_FILL << PATCH_LONG_BITS | (count - 1)));
    memcpy(writer->data + 2, writer->page + start, 8);
    writer->data += 10;
    writer->position += count;
    return true;
}

/* Equal bytes from @left and @right on, at most @limit; up to WIDE bytes behind the limit are read. */
static inline size_t equal_length(const uint8_t *left, const uint8_t *right, size_t limit)
{
    for (size_t length = 0; length < limit; length += WIDE) {
        uint32_t equal = equal_bytes32(left + length, right + length);
        if (equal != UINT32_MAX)
            return min(length + (size_t)__builtin_ctz(~equal), limit);
    }
    return limit;
}

static inline uint16_t look_up(struct de_patch_encoder *encoder, size_t position, uint32_t word)
{
    uint32_t slot = hash32(word, HASH_BITS);
    uint16_t found = encoder->index[slot];
    encoder->replaced[encoder->replaced_count++] = (struct replaced){(uint16_t)slot, found};
    encoder->index[slot] = (uint16_t)(DE_PAGE_SIZE + position + 1);
    return found;
}

/*
 * Find a copy that makes bytes from @position on, begun not before @first; it may not read what it writes.
 * Whether it pays is the caller's single guess: everything up to there is computed without branches, from
 * rubbish if need be.
 */
static inline struct match find_match(struct de_patch_encoder *encoder, size_t first, size_t position)
{
    const uint8_t *text = encoder->text + SLACK, *here = page_of(encoder) + position;
    uint32_t found = look_up(encoder, position, load32(here));
    size_t source = found ? found - 1 : 0, place = DE_PAGE_SIZE + position;
    size_t room = (source < DE_PAGE_SIZE ? DE_PAGE_SIZE : place) - source;
    size_t limit = min(room, DE_PAGE_SIZE - position);
    uint32_t equal = equal_bytes32(here, text + source);
    size_t length = equal == UINT32_MAX ? equal_length(here, text + source, limit)
                                        : min((size_t)__builtin_ctz(~equal), limit);
    uint32_t equal_before = equal_bytes16(here - 16, text + source - 16);
    size_t more = (size_t)__builtin_clz(~(equal_before << 16));
    size_t most = min(min(position - first, source % DE_PAGE_SIZE), room - length);
    while (more >= 16 && more < most && here[-1 - (ptrdiff_t)more] == text[source - more - 1])
        more++;
    more = min(more, most);
    return (struct match){.start = position - more, .length = length + more, .source = source - more};
}

/* Encode a differing run; @next is where the one after it starts. */
static bool encode_run(struct de_patch_encoder *encoder, struct writer *writer, size_t first, size_t end,
                       size_t next)
{
    const uint8_t *page = writer->page;
    for (size_t i = first; i + MIN_COVERED <= end && i <= LAST_HASHED;) {
        struct match match = find_match(encoder, first, i);
        bool done;
        if (min(end - match.start, match.length) >= MIN_COVERED) {
            if (match.start + match.length <= next) /* behind the run all is equal anyway */
                match.length = min(match.length, end - match.start);
            done = put_literals(writer, first, match.start) && put_copy(writer, &match);
        } else if (i + FILL_MIN <= end && load64(page + i) == load64(page + i + 8)) {
            size_t length = 8 + equal_length(page + i, page + i + 8, end - 8 - i);
            done = put_literals(writer, first, i) && put_fill(writer, i, length);
        } else {
            i = i - first < ALIGNED_RUN ? i / SEARCH_STRIDE * SEARCH_STRIDE + SEARCH_STRIDE
                                        : i + SEARCH_STRIDE + 1;
            continue;
        }
        if (!done)
            return false;
        i = first = writer->position;
    }
    return first >= end || put_literals(writer, first, end);
}

static bool encode_runs(struct de_patch_encoder *encoder, struct writer *writer)
{
    unsigned runs = list_edges(encoder);
    for (const uint16_t *edge = encoder->edges, *last = edge + 2 * runs; edge < last; edge += 2) {
        size_t first = edge[0] > writer->position ? edge[0] : writer->position, end = edge[1];
        if (end <= first)
            continue;
        bool fits = end - first < MIN_COVERED ? put_literals(writer, first, end)
                                              : encode_run(encoder, writer, first, end, edge[2]);
        if (!fits)
            return false;
    }
    return true;
}

static void restore_index(struct de_patch_encoder *encoder)
{
    while (encoder->replaced_count) {
        const struct replaced *replaced = &encoder->replaced[--encoder->replaced_count];
        encoder->index[replaced->slot] = replaced->place;
    }
}

static size_t write_header(const struct de_patch_encoder *encoder, size_t tokens, uint8_t *header)
{
    uint8_t *at = header;
    bool wide = tokens > UINT8_MAX;
    *at++ = (uint8_t)(PATCH_VERSION | (wide ? PATCH_WIDE_COUNT : 0) |
                      encoder->relocation_count << PATCH_RELOCATIONS_SHIFT);
    store16(at, (uint16_t)tokens);
    at += wide ? 2 : 1;
    for (unsigned i = 0; i < encoder->relocation_count; i++) {
        const struct relocation *relocation = &encoder->relocations[i];
        *at++ = (uint8_t)relocation->width;
        store64(at, relocation->delta);
        at += relocation->width;
        *at++ = (uint8_t)relocation->step_count;
    }
    return (size_t)(at - header);
}

static uint8_t *append(uint8_t *to, const uint8_t *bytes, size_t count)
{
    memcpy(to, bytes, count);
    return to + count;
}

/* Put the parts together. */
static size_t assemble(const struct de_patch_encoder *encoder, const struct writer *writer, uint8_t *out)
{
    uint8_t header[3 + MAX_RELOCATIONS * 10 + 8];
    size_t tokens = (size_t)(writer->token - encoder->tokens), data = (size_t)(writer->data - encoder->data);
    size_t header_bytes = write_header(encoder, tokens, header);
    size_t total = header_bytes + tokens + data;
    for (unsigned i = 0; i < encoder->relocation_count; i++)
        total += encoder->relocations[i].step_count;
    if (total > writer->budget)
        return 0;
    out = append(out, header, header_bytes);
    out = append(out, encoder->tokens, tokens);
    for (unsigned i = 0; i < encoder->relocation_count; i++)
        out = append(out, encoder->relocations[i].steps, encoder->relocations[i].step_count);
    append(out, encoder->data, data);
    return total;
}

static inline size_t encode(struct de_patch_encoder *encoder, const uint8_t *page, uint8_t *out,
                            size_t capacity, bool has_avx2)
{
    memcpy(page_of(encoder), page, DE_PAGE_SIZE);
    map_differences(encoder, has_avx2);
    undo_relocations(encoder);
    struct writer writer = {.page = page_of(encoder),
                            .token = encoder->tokens,
                            .data = encoder->data,
                            .budget = min(capacity, DE_PATCH_MAX_BYTES)};
    bool fits = encode_runs(encoder, &writer);
    restore_index(encoder);
    return fits ? assemble(encoder, &writer, out) : 0;
}

#if DE_HAVE_AVX2_BUILD
/* All of it once more, with wider compares and BMI's bit instructions. */
__attribute__((target("avx2,bmi,bmi2"), flatten)) static size_t
encode_avx2(struct de_patch_encoder *encoder, const uint8_t *page, uint8_t *out, size_t capacity)
{
    return encode(encoder, page, out, capacity, true);
}
#endif

size_t de_patch_encode(struct de_patch_encoder *encoder, const uint8_t *page, uint8_t *out, size_t capacity)
{
#if DE_HAVE_AVX2_BUILD
    if (cpu_has_avx2())
        return encode_avx2(encoder, page, out, capacity);
#endif
    return encode(encoder, page, out, capacity, false);
}
