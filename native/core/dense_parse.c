/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "dense_parse.h"

/*
 * A forward dynamic programme over positions, as in LZMA's and zstd's optimal parsers; since codes are
 * static, prices are exact, but for two approximations: a run's price before the copy that follows it is
 * known, and that only the cheapest way to a position is kept although ways differ in their repeated
 * distances.
 */
enum {
    /*
     * Two more bits per copy than its codes take. Fewer, longer copies decode faster, and the result is 0.2 %
     * smaller too: it makes up for the run that a copy ends, whose price is only an estimate.
     */
    COPY_PENALTY_BITS = 2,
    /* On real pages, 24 links of each instead gain 0.1 % and cost half as much time again. */
    LONG_CHAIN_LINKS = 3,
    SHORT_CHAIN_LINKS = 2,
    /* A copy this long is taken at once: looking for ways through its inside gains 0.2 % for twice the time.
     */
    NICE_LENGTH = 32,
    UNREACHED = INT32_MAX,
};

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
    uint32_t context = node->kind < REPEATS;
    return model->bits.sequence[context][class * KINDS + kind] + dense_run_ranges[class].extra_bits +
           dense_distance_ranges[kind].extra_bits + COPY_PENALTY_BITS;
}

static inline void arrive(struct parse_node *to, const struct parse_node *from, uint32_t cost,
                          uint32_t length, uint32_t distance, uint32_t kind)
{
    to->cost = cost;
    to->length = (uint16_t)length;
    to->distance = (uint16_t)distance;
    to->run = 0;
    to->kind = (uint8_t)kind;
    to->last_literal = from->last_literal;
    uint32_t slot = kind < REPEATS ? kind : REPEATS - 1;
    to->repeats[0] = (uint16_t)distance;
    to->repeats[1] = slot == 0 ? from->repeats[1] : from->repeats[0];
    to->repeats[2] = slot <= 1 ? from->repeats[2] : from->repeats[1];
}

/** Offer copies of @p shortest .. @p longest bytes from @p distance back. */
static inline void offer_copies(const struct search *search, uint32_t position, uint32_t distance,
                                uint32_t kind, uint32_t shortest, uint32_t longest)
{
    struct parse_node *node = &search->parser->nodes[position];
    const struct de_dense_model *model = search->model;
    const uint8_t *length_bits = model->bits.length[dense_length_context(kind, position)];
    uint32_t start = node->cost - model->run_price[node->run] + sequence_price(model, node, kind);
    uint32_t direct = longest < LENGTH_DIRECT ? longest : LENGTH_DIRECT;
    for (uint32_t length = shortest; length <= direct; length++) {
        uint32_t cost = start + length_bits[length - 1];
        if (cost < node[length].cost)
            arrive(&node[length], node, cost, length, distance, kind);
    }
    for (uint32_t length = longest; length > LENGTH_DIRECT && length + 8 > longest && length >= shortest;
         length--) {
        uint32_t symbol = dense_length_symbol(length);
        uint32_t cost = start + length_bits[symbol] + dense_length_ranges[symbol].extra_bits;
        if (cost < node[length].cost)
            arrive(&node[length], node, cost, length, distance, kind);
    }
}

static inline void offer_literal(const struct search *search, uint32_t position)
{
    struct parse_node *node = &search->parser->nodes[position];
    const struct de_dense_model *model = search->model;
    uint8_t literal = search->parser->window[search->base + position];
    uint32_t cost = node->cost + model->bits.literal[model->literal_context[node->last_literal]][literal] +
                    model->run_price[node->run + 1] - model->run_price[node->run];
    struct parse_node *next = node + 1;
    if (cost >= next->cost)
        return;
    *next = *node;
    next->cost = cost;
    next->length = 0;
    next->run = (uint16_t)(node->run + 1);
    next->last_literal = literal;
}

/** Copies from the distances of recent copies. @return the longest. */
static uint32_t offer_repeats(const struct search *search, uint32_t position)
{
    const struct parse_node *node = &search->parser->nodes[position];
    const uint8_t *at = search->parser->window + search->base + position;
    uint32_t longest = 0;
    for (uint32_t repeat = 0; repeat < REPEATS; repeat++) {
        uint32_t distance = node->repeats[repeat];
        if (distance > search->base + position)
            continue;
        uint32_t length = equal_bytes(at, at - distance, DE_PAGE_SIZE - position);
        if (length == 0 || (repeat > 0 && length < 2))
            continue;
        uint32_t shortest = length >= NICE_LENGTH ? length : repeat ? 2 : 1;
        offer_copies(search, position, distance, repeat, shortest, length);
        if (length > longest)
            longest = length;
        if (longest >= NICE_LENGTH)
            break;
    }
    return longest;
}

/** Copies from new distances, found by hash. @return the longest, or @p known if none is longer. */
static uint32_t offer_new(const struct search *search, uint32_t position, uint32_t known)
{
    const struct dense_parser *parser = search->parser;
    const uint8_t *at = parser->window + search->base + position;
    uint32_t limit = DE_PAGE_SIZE - position;
    uint32_t longest = 7;
    int16_t candidate = parser->long_heads[long_hash(at)];
    for (int link = 0; candidate >= 0 && link < LONG_CHAIN_LINKS;
         link++, candidate = parser->long_chain[candidate]) {
        uint32_t length = equal_bytes(at, parser->window + candidate, limit);
        if (length <= longest)
            continue;
        uint32_t distance = (uint32_t)(at - (parser->window + candidate));
        offer_copies(search, position, distance, dense_distance_kind(distance), longest + 1, length);
        longest = length;
        if (longest >= NICE_LENGTH)
            return longest;
    }
    uint32_t short_limit = limit < 8 ? limit : 8; /* longer ones are in the other chain */
    uint32_t short_longest = 3;
    candidate = parser->short_heads[short_hash(at)];
    for (int link = 0; candidate >= 0 && link < SHORT_CHAIN_LINKS;
         link++, candidate = parser->short_chain[candidate]) {
        uint32_t length = equal_bytes(at, parser->window + candidate, short_limit);
        if (length <= short_longest)
            continue;
        uint32_t distance = (uint32_t)(at - (parser->window + candidate));
        offer_copies(search, position, distance, dense_distance_kind(distance), short_longest + 1, length);
        short_longest = length;
    }
    return longest > known ? longest : known;
}

/** Walk back from the page's end and write the sequences down, front to back. */
static void trace(struct dense_parser *parser)
{
    size_t count = 0;
    uint32_t position = DE_PAGE_SIZE;
    position -= parser->nodes[position].run; /* trailing literals */
    while (position > 0) {
        const struct parse_node *node = &parser->nodes[position];
        const struct parse_node *start = node - node->length;
        parser->sequences[count++] = (struct dense_sequence){
            .run = start->run, .length = node->length, .distance = node->distance, .kind = node->kind};
        position -= node->length + start->run;
    }
    parser->sequence_count = count;
    for (size_t i = 0; i < count / 2; i++) {
        struct dense_sequence swapped = parser->sequences[i];
        parser->sequences[i] = parser->sequences[count - 1 - i];
        parser->sequences[count - 1 - i] = swapped;
    }
}

void dense_parse(struct dense_parser *parser, const struct de_dense_model *model, const uint8_t *page,
                 const uint8_t *reference)
{
    struct search search = {.parser = parser, .model = model, .base = load_window(parser, page, reference)};
    for (uint32_t i = 1; i <= DE_PAGE_SIZE; i++)
        parser->nodes[i].cost = UNREACHED;
    uint32_t repeats[REPEATS];
    dense_first_repeats(reference != NULL, repeats);
    struct parse_node *first = &parser->nodes[0];
    *first = (struct parse_node){.cost = model->run_price[0], .kind = FIRST_BYTE_KIND};
    for (int i = 0; i < REPEATS; i++)
        first->repeats[i] = (uint16_t)repeats[i];
    uint32_t skip_until = 0;
    for (uint32_t position = 0; position < DE_PAGE_SIZE; position++) {
        if (position >= skip_until) {
            offer_literal(&search, position);
            uint32_t longest = offer_repeats(&search, position);
            if (longest < NICE_LENGTH)
                longest = offer_new(&search, position, longest);
            if (longest >= NICE_LENGTH)
                skip_until = position + longest;
        }
        insert(parser, search.base + position);
    }
    trace(parser);
}
