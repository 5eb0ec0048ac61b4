/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "dense_parse.h"

/*
 * A forward dynamic programme over positions, as in LZMA's and zstd's optimal parsers; since codes are
 * static, prices are exact, but for two approximations: a run's price before the copy that follows it is
 * known, and that only the cheapest way to a position is kept although ways differ in their repeated
 * distances and literal contexts.
 */
enum {
    /*
     * Two more bits per copy than its codes take. Fewer, longer copies decode faster, and the result is 0.2 %
     * smaller too: it makes up for the run that a copy ends, whose price is only an estimate.
     */
    COPY_PENALTY_BITS = 2,
    /* A copy this long is taken at once: looking for ways through its inside gains little. */
    NICE_LENGTH = 64,
    /* A position that may be passed by for this many bits more is not searched: a third of the time, at
     * hardly any loss of size; 4 lose 0.3 %. */
    SKIP_BITS = 3,
    BY_LITERAL = 0, /* an arrival */
    LANES = 8,
};

typedef uint16_t lanes_t __attribute__((vector_size(LANES * sizeof(uint16_t)), aligned(2), may_alias));

struct search {
    struct dense_parser *parser;
    const struct de_dense_model *model;
    uint32_t base; /* where the page starts in the window */
};

static inline uint64_t load64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof(value));
    return value;
}

static inline uint32_t load32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof(value));
    return value;
}

static inline uint32_t long_hash(const uint8_t *at)
{
    return (uint32_t)((load64(at) * 0x9E3779B185EBCA87ull) >> (64 - HASH_BITS));
}

static inline uint32_t short_hash(const uint8_t *at)
{
    return (load32(at) * 2654435761u) >> (32 - HASH_BITS);
}

/** How many bytes at @p left and @p right are equal; may read 7 bytes past @p limit. */
static inline uint32_t equal_bytes(const uint8_t *left, const uint8_t *right, uint32_t limit)
{
    uint32_t length = 0;
    while (length < limit) {
        uint64_t difference = load64(left + length) ^ load64(right + length);
        if (difference) {
            length += (uint32_t)__builtin_ctzll(difference) >> 3;
            break;
        }
        length += 8;
    }
    return length < limit ? length : limit;
}

static inline void insert(struct dense_parser *parser, uint32_t at)
{
    uint32_t hash = long_hash(parser->window + at);
    parser->long_chain[at] = parser->long_heads[hash];
    parser->long_heads[hash] = (int16_t)at;
    hash = short_hash(parser->window + at);
    parser->short_chain[at] = parser->short_heads[hash];
    parser->short_heads[hash] = (int16_t)at;
}

/** Fill the window and index the reference. @return where the page starts in the window. */
static uint32_t load_window(struct dense_parser *parser, const uint8_t *page, const uint8_t *reference)
{
    uint32_t base = reference ? DE_PAGE_SIZE : 0;
    if (reference)
        memcpy(parser->window, reference, DE_PAGE_SIZE);
    memcpy(parser->window + base, page, DE_PAGE_SIZE);
    memset(parser->window + base + DE_PAGE_SIZE, 0, 64);
    memset(parser->long_heads, 0xff, sizeof(parser->long_heads));
    memset(parser->short_heads, 0xff, sizeof(parser->short_heads));
    for (uint32_t at = 0; at < base; at++)
        insert(parser, at);
    return base;
}

static inline uint32_t sequence_price(const struct de_dense_model *model, const struct parse_node *node,
                                      uint32_t kind)
{
    uint32_t class = dense_run_class(node->run);
    return model->bits.sequence[node->context][class * KINDS + kind] + dense_run_ranges[class].extra_bits +
           dense_distance_ranges[kind].extra_bits + COPY_PENALTY_BITS;
}

/*
 * Offer the copies of @p shortest .. @p longest bytes, up to LENGTH_DIRECT, whose prices are in a table: a
 * vector of lengths at a time, since whether one is cheaper than the way known before can't be predicted.
 */
static inline void offer_direct(struct dense_parser *parser, uint32_t position, uint32_t start_cost,
                                const uint16_t *prices, uint32_t shortest, uint32_t longest, uint32_t offer)
{
    static const uint16_t one_to_eight[LANES] = {1, 2, 3, 4, 5, 6, 7, 8};
    lanes_t lengths;
    memcpy(&lengths, one_to_eight, sizeof(lengths));
    uint32_t first = (shortest - 1) & ~(uint32_t)(LANES - 1);
    lengths += (uint16_t)first;
    for (uint32_t i = first; i < longest; i += LANES, lengths += (uint16_t)LANES) {
        lanes_t *costs = (lanes_t *)(parser->costs + position + 1 + i);
        lanes_t *arrivals = (lanes_t *)(parser->arrivals + position + 1 + i);
        lanes_t cost = *(const lanes_t *)(prices + i) + (uint16_t)start_cost;
        lanes_t better = (lanes_t)(cost < *costs) & (lanes_t)(lengths >= (uint16_t)shortest) &
                         (lanes_t)(lengths <= (uint16_t)longest);
        *costs = (cost & better) | (*costs & ~better);
        *arrivals = ((uint16_t)offer & better) | (*arrivals & ~better);
    }
}

/** Offer copies of @p shortest .. @p longest bytes from @p distance back. */
static inline void offer_copies(const struct search *search, uint32_t position, uint32_t distance,
                                uint32_t kind, uint32_t shortest, uint32_t longest)
{
    struct dense_parser *parser = search->parser;
    const struct de_dense_model *model = search->model;
    const struct parse_node *node = &parser->nodes[position];
    uint32_t context = dense_length_context(kind, position);
    uint32_t start =
        parser->costs[position] - model->run_price[node->run] + sequence_price(model, node, kind);
    uint32_t offer = parser->offer_count++;
    parser->offers[offer] = (struct parse_offer){
        .start = (uint16_t)position, .distance = (uint16_t)distance, .kind = (uint8_t)kind};
    if (shortest <= LENGTH_DIRECT)
        offer_direct(parser, position, start, model->length_price[context], shortest,
                     longest < LENGTH_DIRECT ? longest : LENGTH_DIRECT, offer);
    const uint8_t *length_bits = model->bits.length[context];
    for (uint32_t length = longest; length > LENGTH_DIRECT && length + 8 > longest && length >= shortest;
         length--) {
        uint32_t symbol = dense_length_symbol(length);
        uint32_t cost = start + length_bits[symbol] + dense_length_ranges[symbol].extra_bits;
        if (cost < parser->costs[position + length]) {
            parser->costs[position + length] = (uint16_t)cost;
            parser->arrivals[position + length] = (uint16_t)offer;
        }
    }
}

static inline void offer_literal(const struct search *search, uint32_t position)
{
    struct dense_parser *parser = search->parser;
    const struct parse_node *node = &parser->nodes[position];
    const struct de_dense_model *model = search->model;
    uint8_t literal = parser->window[search->base + position];
    uint32_t cost = parser->costs[position] + model->bits.literal[node->literal_context][literal] +
                    model->run_price[node->run + 1] - model->run_price[node->run];
    if (cost < parser->costs[position + 1]) {
        parser->costs[position + 1] = (uint16_t)cost;
        parser->arrivals[position + 1] = BY_LITERAL;
    }
}

/** All ways to @p position have been offered: work out what the cheapest one leaves behind. */
static inline void settle(const struct search *search, uint32_t position)
{
    struct dense_parser *parser = search->parser;
    struct parse_node *node = &parser->nodes[position];
    uint32_t arrival = parser->arrivals[position];
    if (arrival == BY_LITERAL) {
        *node = node[-1];
        node->run++;
        uint8_t literal = parser->window[search->base + position - 1];
        node->literal_context = search->model->literal_next[node->literal_context][literal];
        return;
    }
    const struct parse_offer *offer = &parser->offers[arrival];
    const struct parse_node *from = &parser->nodes[offer->start];
    uint32_t slot = offer->kind < REPEATS ? offer->kind : REPEATS - 1;
    node->run = 0;
    node->repeats[0] = offer->distance;
    node->repeats[1] = slot == 0 ? from->repeats[1] : from->repeats[0];
    node->repeats[2] = slot <= 1 ? from->repeats[2] : from->repeats[1];
    node->context = offer->kind < REPEATS;
    node->literal_context = from->literal_context;
}

/** Copies from the distances of recent copies. @return the longest. */
static uint32_t offer_repeats(const struct search *search, uint32_t position)
{
    const struct parse_node *node = &search->parser->nodes[position];
    const uint8_t *at = search->parser->window + search->base + position;
    uint64_t first = load64(at);
    uint32_t longest = 0, limit = DE_PAGE_SIZE - position;
    for (uint32_t repeat = 0; repeat < REPEATS; repeat++) {
        uint32_t distance = node->repeats[repeat], shortest = repeat ? 2 : 1;
        if (distance > search->base + position)
            continue;
        uint64_t difference = first ^ load64(at - distance);
        if (difference & (repeat ? 0xffff : 0xff))
            continue;
        uint32_t length = difference ? (uint32_t)__builtin_ctzll(difference) >> 3
                                     : 8 + equal_bytes(at + 8, at + 8 - distance, limit);
        length = length < limit ? length : limit;
        if (length < shortest)
            continue;
        if (length >= NICE_LENGTH)
            shortest = length;
        offer_copies(search, position, distance, repeat, shortest, length);
        if (length > longest)
            longest = length;
        if (longest >= NICE_LENGTH)
            break;
    }
    return longest;
}

static inline bool is_repeat(const struct parse_node *node, uint32_t distance)
{
    return distance == node->repeats[0] || distance == node->repeats[1] || distance == node->repeats[2];
}

/** Copies of 8 bytes or more from new distances. @return the longest, or @p known if none is longer. */
static inline uint32_t offer_long(const struct search *search, uint32_t position, uint32_t known)
{
    const struct dense_parser *parser = search->parser;
    const struct parse_node *node = &parser->nodes[position];
    const uint8_t *at = parser->window + search->base + position;
    uint32_t limit = DE_PAGE_SIZE - position;
    uint32_t longest = known < 7 ? 7 : known;
    int16_t candidate = parser->long_heads[long_hash(at)];
    for (int link = 0; candidate >= 0 && link < LONG_CHAIN_LINKS && longest < limit;
         link++, candidate = parser->long_chain[candidate]) {
        const uint8_t *from = parser->window + candidate;
        uint32_t distance = (uint32_t)(at - from);
        if (load64(at + longest - 7) != load64(from + longest - 7) || is_repeat(node, distance))
            continue;
        uint32_t length = equal_bytes(at, from, limit);
        if (length <= longest)
            continue;
        offer_copies(search, position, distance, dense_distance_kind(distance), longest + 1, length);
        longest = length;
        if (longest >= NICE_LENGTH)
            break;
    }
    return longest;
}

/** Copies of 4 to 8 bytes from new distances; longer ones are in the other chain. */
static inline void offer_short(const struct search *search, uint32_t position, uint32_t known)
{
    const struct dense_parser *parser = search->parser;
    const struct parse_node *node = &parser->nodes[position];
    const uint8_t *at = parser->window + search->base + position;
    uint64_t first = load64(at);
    uint32_t limit = DE_PAGE_SIZE - position;
    uint32_t longest = known < 3 ? 3 : known;
    limit = limit < 8 ? limit : 8;
    int16_t candidate = parser->short_heads[short_hash(at)];
    for (int link = 0; candidate >= 0 && link < SHORT_CHAIN_LINKS && longest < limit;
         link++, candidate = parser->short_chain[candidate]) {
        uint64_t difference = first ^ load64(parser->window + candidate);
        uint32_t length = difference ? (uint32_t)__builtin_ctzll(difference) >> 3 : 8;
        length = length < limit ? length : limit;
        if (length <= longest)
            continue;
        uint32_t distance = (uint32_t)(at - (parser->window + candidate));
        if (is_repeat(node, distance))
            continue;
        offer_copies(search, position, distance, dense_distance_kind(distance), longest + 1, length);
        longest = length;
    }
}

/** Walk back from the page's end and write the sequences down, front to back. */
static void trace(struct dense_parser *parser)
{
    size_t count = 0;
    uint32_t position = DE_PAGE_SIZE;
    position -= parser->nodes[position].run; /* trailing literals */
    while (position > 0) {
        const struct parse_offer *offer = &parser->offers[parser->arrivals[position]];
        uint16_t run = parser->nodes[offer->start].run;
        parser->sequences[count++] = (struct dense_sequence){.run = run,
                                                             .length = (uint16_t)(position - offer->start),
                                                             .distance = offer->distance,
                                                             .kind = offer->kind};
        position = (uint32_t)offer->start - run;
    }
    parser->sequence_count = count;
    for (size_t i = 0; i < count / 2; i++) {
        struct dense_sequence swapped = parser->sequences[i];
        parser->sequences[i] = parser->sequences[count - 1 - i];
        parser->sequences[count - 1 - i] = swapped;
    }
}

static void begin(const struct search *search, bool has_reference)
{
    struct dense_parser *parser = search->parser;
    memset(parser->costs, 0xff, sizeof(parser->costs));
    parser->costs[0] = (uint16_t)search->model->run_price[0];
    parser->offer_count = BY_LITERAL + 1;
    uint32_t repeats[REPEATS];
    dense_first_repeats(has_reference, repeats);
    parser->nodes[0] = (struct parse_node){.literal_context = (uint8_t)dense_first_context(search->model)};
    for (int i = 0; i < REPEATS; i++)
        parser->nodes[0].repeats[i] = (uint16_t)repeats[i];
}

/** Whether the next position is not reached as cheaply as this one. */
static inline bool is_promising(const struct dense_parser *parser, uint32_t position)
{
    return parser->costs[position + 1] > parser->costs[position] + SKIP_BITS;
}

void dense_parse(struct dense_parser *parser, const struct de_dense_model *model, const uint8_t *page,
                 const uint8_t *reference)
{
    struct search search = {.parser = parser, .model = model, .base = load_window(parser, page, reference)};
    begin(&search, reference != NULL);
    uint32_t skip_until = 0;
    for (uint32_t position = 0; position < DE_PAGE_SIZE; position++) {
        if (position >= skip_until && is_promising(parser, position)) {
            if (position > 0)
                settle(&search, position);
            offer_literal(&search, position);
            uint32_t longest = offer_repeats(&search, position);
            if (longest < NICE_LENGTH) {
                uint32_t known = longest;
                longest = offer_long(&search, position, longest);
                if (longest < NICE_LENGTH)
                    offer_short(&search, position, known);
            }
            if (longest >= NICE_LENGTH)
                skip_until = position + longest;
        }
        insert(parser, search.base + position);
    }
    settle(&search, DE_PAGE_SIZE);
    trace(parser);
}
