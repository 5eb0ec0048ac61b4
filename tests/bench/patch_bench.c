/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * patch_bench [-r PASSES] [-s SEED] [-c] IMAGE...
 *
 * The fast patch form against LZ4 with the reference as dictionary, and xdelta3 -1 if built with it: sizes,
 * and times of encoding and decoding. The pairs are those that HashSimilarityDetector(2,1), c = 1 finds: the
 * distinct non-zero pages of the images in order; two 64-byte blocks at aligned offsets drawn from the seed,
 * without those of one repeated byte; a page whose key an earlier page has gets that page as its reference.
 *
 * Codecs take turns at batches of 64 pairs; of each batch, the median pass counts, so that what else the
 * machine does weighs little. Loading a reference is timed apart. -c: cold memory, each codec over all pairs
 * in turn. One line of JSON; exit 1 on bad use, or if a codec does not give back a page.
 *
 * xdelta3 (GPL, not ours) is compiled in with: -DWITH_XDELTA3 -isystem DIRECTORY_OF_XDELTA3_C
 * LZ4 must be linked statically (-l:liblz4.a): attaching a dictionary is not among the shared library's
 * functions.
 */
#define LZ4_STATIC_LINKING_ONLY
#define XXH_INLINE_ALL
#include <diffengine/patch.h>
#include <diffengine/status.h>

#include <fcntl.h>
#include <lz4.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#ifdef WITH_XDELTA3
#define SIZEOF_SIZE_T 8
#define SIZEOF_UNSIGNED_LONG_LONG 8
#define XD3_MAIN 0
#define SECONDARY_DJW 0
#define SECONDARY_FGK 0
#include "xdelta3.c"
#endif

enum {
    BLOCK = 64,
    BATCH = 64,
    MAX_PASSES = 101,
    ROOM = 2 * DE_PAGE_SIZE,
};

struct pair {
    const uint8_t *reference;
    const uint8_t *page;
};

struct pairs {
    struct pair *pairs;
    size_t count, distinct;
};

/* A hash table from 64-bit keys to pages; a key is its own hash. */
struct table {
    struct {
        uint64_t key;
        const uint8_t *page;
    } * entries;
    size_t mask;
};

struct codec;
typedef void load_function(struct codec *codec, const uint8_t *reference);
typedef size_t encode_function(struct codec *codec, const struct pair *pair, uint8_t *out);
typedef bool decode_function(struct codec *codec, const struct pair *pair, const uint8_t *bytes, size_t count,
                             uint8_t *page);

struct times {
    double load_ns, encode_ns, decode_ns;
};

struct codec {
    const char *name;
    load_function *load;
    encode_function *encode;
    decode_function *decode;
    unsigned passes;
    struct de_patch_encoder *encoder;
    LZ4_stream_t *dictionary, *stream;
    uint8_t *encoded; /* all pairs' */
    uint32_t *sizes;
    uint64_t total;
    struct times *times; /* [batch][pass] */
};

static void die(const char *what, const char *name)
{
    fprintf(stderr, "patch_bench: %s %s\n", what, name);
    exit(1);
}

static void *must(void *pointer)
{
    if (!pointer)
        die("out of", "memory");
    return pointer;
}

static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static void load_patch(struct codec *codec, const uint8_t *reference)
{
    de_patch_load_reference(codec->encoder, reference);
}

static size_t encode_patch(struct codec *codec, const struct pair *pair, uint8_t *out)
{
    return de_patch_encode(codec->encoder, pair->page, out, DE_PATCH_MAX_BYTES);
}

static bool decode_patch(struct codec *codec, const struct pair *pair, const uint8_t *bytes, size_t count,
                         uint8_t *page)
{
    (void)codec;
    return de_patch_decode(bytes, count, pair->reference, page) == DE_OK;
}

static void load_lz4(struct codec *codec, const uint8_t *reference)
{
    LZ4_loadDict(codec->dictionary, (const char *)reference, DE_PAGE_SIZE);
    LZ4_resetStream_fast(codec->stream);
    LZ4_attach_dictionary(codec->stream, codec->dictionary);
}

static size_t encode_lz4(struct codec *codec, const struct pair *pair, uint8_t *out)
{
    return (size_t)LZ4_compress_fast_continue(codec->stream, (const char *)pair->page, (char *)out,
                                              DE_PAGE_SIZE, ROOM, 1);
}

static bool decode_lz4(struct codec *codec, const struct pair *pair, const uint8_t *bytes, size_t count,
                       uint8_t *page)
{
    (void)codec;
    return LZ4_decompress_safe_usingDict((const char *)bytes, (char *)page, (int)count, DE_PAGE_SIZE,
                                         (const char *)pair->reference, DE_PAGE_SIZE) == (int)DE_PAGE_SIZE;
}

#ifdef WITH_XDELTA3
static void load_xdelta3(struct codec *codec, const uint8_t *reference)
{
    (void)codec;
    (void)reference;
}

static size_t encode_xdelta3(struct codec *codec, const struct pair *pair, uint8_t *out)
{
    (void)codec;
    usize_t count = 0;
    if (xd3_encode_memory(pair->page, DE_PAGE_SIZE, pair->reference, DE_PAGE_SIZE, out, &count, ROOM,
                          XD3_COMPLEVEL_1) != 0)
        die("xdelta3 does not", "encode");
    return count;
}

static bool decode_xdelta3(struct codec *codec, const struct pair *pair, const uint8_t *bytes, size_t count,
                           uint8_t *page)
{
    (void)codec;
    usize_t made = 0;
    return xd3_decode_memory(bytes, (usize_t)count, pair->reference, DE_PAGE_SIZE, page, &made, DE_PAGE_SIZE,
                             0) == 0 &&
           made == DE_PAGE_SIZE;
}
#endif

static struct table make_table(size_t entries)
{
    size_t size = 1024;
    while (size < 2 * entries)
        size *= 2;
    struct table table = {.mask = size - 1};
    table.entries = must(calloc(size, sizeof *table.entries));
    return table;
}

/* @return the page that already has the key, or NULL after giving it to @page. */
static const uint8_t *find_or_put(struct table *table, uint64_t key, const uint8_t *page)
{
    key |= 1; /* 0 is an empty entry */
    size_t i = key >> 20 & table->mask;
    while (table->entries[i].key && table->entries[i].key != key)
        i = (i + 1) & table->mask;
    if (table->entries[i].key)
        return table->entries[i].page;
    table->entries[i].key = key;
    table->entries[i].page = page;
    return NULL;
}

static bool is_fill(const uint8_t *bytes, size_t count)
{
    return memcmp(bytes, bytes + 1, count - 1) == 0;
}

static const uint8_t *find_reference(struct table *keys, const size_t *offsets, const uint8_t *page)
{
    const uint8_t *reference = NULL;
    for (unsigned i = 0; i < 2; i++) {
        const uint8_t *block = page + offsets[i];
        if (is_fill(block, BLOCK))
            continue;
        const uint8_t *found = find_or_put(keys, XXH3_64bits_withSeed(block, BLOCK, i + 1), page);
        if (!reference)
            reference = found;
    }
    return reference;
}

static const uint8_t *map_image(const char *name, size_t *pages)
{
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) != 0)
        die("can't open", name);
    *pages = (size_t)status.st_size / DE_PAGE_SIZE;
    if (*pages == 0)
        die("no page in", name);
    void *bytes = mmap(NULL, *pages * DE_PAGE_SIZE, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    if (bytes == MAP_FAILED)
        die("can't map", name);
    close(fd);
    return bytes;
}

static struct pairs find_pairs(char **names, uint64_t seed)
{
    size_t total = 0, pages;
    for (char **name = names; *name; name++) {
        struct stat status;
        if (stat(*name, &status) != 0)
            die("can't open", *name);
        total += (size_t)status.st_size / DE_PAGE_SIZE;
    }
    struct pairs pairs = {.pairs = must(calloc(total + 1, sizeof *pairs.pairs))};
    struct table contents = make_table(total), keys = make_table(2 * total);
    size_t offsets[2], blocks = DE_PAGE_SIZE / BLOCK;
    uint64_t draw = XXH3_64bits_withSeed("offsets", 7, seed);
    offsets[0] = draw % blocks * BLOCK;
    offsets[1] = (draw % blocks + 1 + draw / blocks % (blocks - 1)) % blocks * BLOCK;
    for (char **name = names; *name; name++) {
        const uint8_t *page = map_image(*name, &pages);
        for (; pages > 0; pages--, page += DE_PAGE_SIZE) {
            if ((page[0] == 0 && is_fill(page, DE_PAGE_SIZE)) ||
                find_or_put(&contents, XXH3_64bits(page, DE_PAGE_SIZE), page))
                continue;
            pairs.distinct++;
            const uint8_t *reference = find_reference(&keys, offsets, page);
            if (reference)
                pairs.pairs[pairs.count++] = (struct pair){reference, page};
        }
    }
    free(contents.entries);
    free(keys.entries);
    return pairs;
}

/* Bring a pair into the cache, so that the codec whose turn is first does not pay for it. */
static void touch(const struct pair *pair)
{
    volatile uint8_t sink = 0;
    for (size_t i = 0; i < DE_PAGE_SIZE; i += 64)
        sink = (uint8_t)(sink + pair->reference[i] + pair->page[i]);
}

static void encode_some(struct codec *codec, const struct pairs *pairs, size_t first, size_t end,
                        struct times *times)
{
    for (size_t i = first; i < end; i++) {
        touch(&pairs->pairs[i]);
        double begin = now_ns();
        codec->load(codec, pairs->pairs[i].reference);
        double loaded = now_ns();
        size_t count = codec->encode(codec, &pairs->pairs[i], codec->encoded + i * ROOM);
        double encoded = now_ns();
        times->load_ns += loaded - begin;
        times->encode_ns += encoded - loaded;
        codec->sizes[i] = (uint32_t)count;
    }
}

static double decode_some(struct codec *codec, const struct pairs *pairs, size_t first, size_t end)
{
    uint8_t page[DE_PAGE_SIZE];
    double begin = now_ns();
    for (size_t i = first; i < end; i++)
        if (codec->sizes[i] &&
            !codec->decode(codec, &pairs->pairs[i], codec->encoded + i * ROOM, codec->sizes[i], page))
            die("does not decode:", codec->name);
    return now_ns() - begin;
}

static void run_pass(struct codec *codecs, unsigned codec_count, const struct pairs *pairs, unsigned pass,
                     size_t batch)
{
    for (size_t first = 0; first < pairs->count; first += batch) {
        size_t end = first + batch < pairs->count ? first + batch : pairs->count;
        for (unsigned turn = 0; turn < codec_count; turn++) {
            struct codec *codec = &codecs[(turn + pass) % codec_count];
            if (pass >= codec->passes)
                continue;
            struct times *times = &codec->times[first / batch * MAX_PASSES + pass];
            encode_some(codec, pairs, first, end, times);
            if (batch == BATCH)
                decode_some(codec, pairs, first, end); /* warm */
            times->decode_ns = decode_some(codec, pairs, first, end);
        }
    }
}

/* Check each page and sum up the sizes; a page that does not fit counts as a raw one. */
static void verify(struct codec *codec, const struct pairs *pairs)
{
    uint8_t page[DE_PAGE_SIZE];
    for (size_t i = 0; i < pairs->count; i++) {
        size_t count = codec->sizes[i];
        codec->total += count ? count : DE_PAGE_SIZE;
        if (count && (!codec->decode(codec, &pairs->pairs[i], codec->encoded + i * ROOM, count, page) ||
                      memcmp(page, pairs->pairs[i].page, DE_PAGE_SIZE) != 0))
            die("gives back another page:", codec->name);
    }
}

static int compare_doubles(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* The sum over batches of the median pass of a field of the times. */
static double total_ns(const struct codec *codec, size_t batches, size_t field)
{
    double total = 0, values[MAX_PASSES];
    for (size_t i = 0; i < batches; i++) {
        for (unsigned pass = 0; pass < codec->passes; pass++)
            memcpy(&values[pass], (const char *)&codec->times[i * MAX_PASSES + pass] + field, sizeof *values);
        qsort(values, codec->passes, sizeof *values, compare_doubles);
        total += values[codec->passes / 2];
    }
    return total;
}

struct result {
    double bytes, load, encode, decode;
};

static struct result summarize(const struct codec *codec, size_t pairs, size_t batches)
{
    double n = (double)pairs;
    return (struct result){(double)codec->total / n,
                           total_ns(codec, batches, offsetof(struct times, load_ns)) / n,
                           total_ns(codec, batches, offsetof(struct times, encode_ns)) / n,
                           total_ns(codec, batches, offsetof(struct times, decode_ns)) / n};
}

static void print_results(const struct codec *codecs, unsigned codec_count, const struct pairs *pairs,
                          size_t batch)
{
    size_t batches = (pairs->count + batch - 1) / batch;
    struct result ours = summarize(&codecs[0], pairs->count, batches);
    printf("{\"distinct\": %zu, \"pairs\": %zu", pairs->distinct, pairs->count);
    for (unsigned k = 0; k < codec_count; k++) {
        struct result result = k ? summarize(&codecs[k], pairs->count, batches) : ours;
        printf(
            ", \"%s\": {\"mean_bytes\": %.1f, \"load_ns\": %.0f, \"encode_ns\": %.0f, \"decode_ns\": %.0f}",
            codecs[k].name, result.bytes, result.load, result.encode, result.decode);
        if (k)
            printf(", \"to_%s\": {\"bytes\": %.3f, \"encode\": %.3f, \"decode\": %.3f}", codecs[k].name,
                   ours.bytes / result.bytes, ours.encode / result.encode, ours.decode / result.decode);
    }
    puts("}");
}

static void prepare(struct codec *codec, size_t pairs)
{
    codec->encoded = must(malloc(pairs * ROOM));
    memset(codec->encoded, 0, pairs * ROOM);
    codec->sizes = must(calloc(pairs, sizeof *codec->sizes));
    codec->times = must(calloc((pairs / BATCH + 1) * MAX_PASSES, sizeof *codec->times));
    codec->dictionary = must(LZ4_createStream());
    codec->stream = must(LZ4_createStream());
    if (de_patch_encoder_create(&codec->encoder) != DE_OK)
        die("out of", "memory");
}

static void release(struct codec *codec)
{
    free(codec->encoded);
    free(codec->sizes);
    free(codec->times);
    LZ4_freeStream(codec->dictionary);
    LZ4_freeStream(codec->stream);
    de_patch_encoder_free(codec->encoder);
}

int main(int argc, char **argv)
{
    unsigned passes = 9;
    uint64_t seed = 1;
    bool cold = false;
    for (int option; (option = getopt(argc, argv, "r:s:c")) != -1;) {
        if (option == 'r')
            passes = (unsigned)strtoul(optarg, NULL, 10);
        else if (option == 's')
            seed = strtoull(optarg, NULL, 10);
        else if (option == 'c')
            cold = true;
        else
            die("usage: patch_bench [-r PASSES] [-s SEED] [-c]", "IMAGE...");
    }
    if (optind == argc || passes < 1 || passes > MAX_PASSES)
        die("usage: patch_bench [-r PASSES (1 to 101)] [-s SEED] [-c]", "IMAGE...");
    struct pairs pairs = find_pairs(argv + optind, seed);
    if (pairs.count == 0)
        die("no similar pages in", argv[optind]);
    struct codec codecs[] = {
        {.name = "patch",
         .load = load_patch,
         .encode = encode_patch,
         .decode = decode_patch,
         .passes = passes},
        {.name = "lz4", .load = load_lz4, .encode = encode_lz4, .decode = decode_lz4, .passes = passes},
#ifdef WITH_XDELTA3
        {.name = "xdelta3",
         .load = load_xdelta3,
         .encode = encode_xdelta3,
         .decode = decode_xdelta3,
         .passes = passes},
#endif
    };
    const unsigned codec_count = sizeof codecs / sizeof *codecs;
    for (unsigned k = 0; k < codec_count; k++)
        prepare(&codecs[k], pairs.count);
    const size_t batch = cold ? pairs.count : BATCH;
    for (unsigned pass = 0; pass < passes; pass++)
        run_pass(codecs, codec_count, &pairs, pass, batch);
    for (unsigned k = 0; k < codec_count; k++)
        verify(&codecs[k], &pairs);
    print_results(codecs, codec_count, &pairs, batch);
    for (unsigned k = 0; k < codec_count; k++)
        release(&codecs[k]);
    free(pairs.pairs);
    return 0;
}
