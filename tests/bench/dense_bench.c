/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dense_bench [-d MAX_DEPTH] [-s STEP] IMAGE...
 *
 * How small, and how fast to rebuild, is the dense form on real memory? The images' distinct non-zero pages
 * are planned with the shift-tolerant detector, a model is trained on one in 20 of them, all are encoded;
 * then every STEP-th (default 1) is rebuilt, in random order and once, so from caches as a fault finds them
 * at best. A patch's time includes rebuilding its reference. Peers on the same pages, turn by turn in the
 * same run: LZ4 and zstd -1. One line of JSON. Exit 1 on bad use, or if any page does not come out as it went
 * in.
 */
#include <diffengine/compress.h>
#include <diffengine/dense.h>
#include <diffengine/similarity.h>
#include <diffengine/status.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    TRAINING_STEP = 20,
    INDEX_BYTES_PER_PAGE = 32,
    SEED = 0x5eed,
};

struct payload {
    uint8_t *bytes; /* the page itself if nothing is shorter */
    uint16_t count; /* DE_PAGE_SIZE: raw */
};

struct corpus {
    const uint8_t **pages;
    uint32_t *references; /* DE_NONE: alone */
    struct payload *dense, *lz4, *zstd;
    size_t count;
};

struct codecs {
    struct de_dense_model *model;
    struct de_dense_encoder *encoder;
    struct de_dense_window *window;
    struct de_compress_context *lz4, *zstd;
};

struct times {
    double *seconds;
    size_t count;
};

static void die(const char *what, const char *name)
{
    fprintf(stderr, "dense_bench: %s %s\n", what, name);
    exit(1);
}

static void require(int status, const char *what)
{
    if (status != DE_OK)
        die(what, de_status_text(status));
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    if (memory == NULL)
        die("no memory for", "the benchmark");
    return memory;
}

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static uint64_t hash_page(const uint8_t *page)
{
    uint64_t hash = SEED;
    for (unsigned at = 0; at < DE_PAGE_SIZE; at += 8) {
        uint64_t word;
        memcpy(&word, page + at, 8);
        hash = (hash ^ word) * 0x9E3779B185EBCA87ull;
        hash ^= hash >> 29;
    }
    return hash;
}

/* The pages' addresses, in an open hash table as large as a power of two above twice their number. */
struct page_set {
    const uint8_t **slots;
    size_t mask;
};

static int add_if_new(struct page_set *set, const uint8_t *page)
{
    size_t slot = hash_page(page) & set->mask;
    for (; set->slots[slot] != NULL; slot = (slot + 1) & set->mask)
        if (memcmp(set->slots[slot], page, DE_PAGE_SIZE) == 0)
            return 0;
    set->slots[slot] = page;
    return 1;
}

static const uint8_t *map_image(const char *path, size_t *pages)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) != 0 || status.st_size < (off_t)DE_PAGE_SIZE)
        die("cannot use image", path);
    *pages = (size_t)status.st_size / DE_PAGE_SIZE;
    const uint8_t *bytes = mmap(NULL, *pages * DE_PAGE_SIZE, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
    close(fd);
    if (bytes == MAP_FAILED)
        die("cannot map", path);
    return bytes;
}

static void collect_distinct(struct corpus *corpus, char *const *paths, int images)
{
    static const uint8_t zero[DE_PAGE_SIZE];
    const uint8_t **bytes = allocate((size_t)images, sizeof(*bytes));
    size_t *counts = allocate((size_t)images, sizeof(*counts)), total = 0;
    for (int i = 0; i < images; i++) {
        bytes[i] = map_image(paths[i], &counts[i]);
        total += counts[i];
    }
    struct page_set set = {.mask = 1};
    while (set.mask < 2 * total)
        set.mask = set.mask << 1 | 1;
    set.slots = allocate(set.mask + 1, sizeof(*set.slots));
    corpus->pages = allocate(total, sizeof(*corpus->pages));
    for (int i = 0; i < images; i++)
        for (size_t j = 0; j < counts[i]; j++) {
            const uint8_t *page = bytes[i] + j * DE_PAGE_SIZE;
            if (memcmp(page, zero, DE_PAGE_SIZE) != 0 && add_if_new(&set, page))
                corpus->pages[corpus->count++] = page;
        }
    free(set.slots);
    free(counts);
    free(bytes);
}

static void plan_references(struct corpus *corpus, unsigned max_depth)
{
    size_t count = corpus->count;
    size_t memory_bytes = count * INDEX_BYTES_PER_PAGE < 4096 ? 4096 : count * INDEX_BYTES_PER_PAGE;
    uint32_t *features = allocate(count * DE_SHIFT_MAX_FEATURES, sizeof(*features));
    uint32_t *numbers = allocate(count, sizeof(*numbers));
    uint8_t *feature_counts = allocate(count, 1), *depths = allocate(count, 1);
    struct de_shift_index *index;
    corpus->references = allocate(count, sizeof(*corpus->references));
    for (size_t i = 0; i < count; i++)
        numbers[i] = (uint32_t)i;
    require(de_shift_index_create(memory_bytes, max_depth, &index), "cannot make the index:");
    de_shift_features(SEED, corpus->pages, count, features, feature_counts);
    de_shift_index_pass(index, features, feature_counts, numbers, count, depths, corpus->references);
    de_shift_index_free(index);
    free(features);
    free(numbers);
    free(feature_counts);
    free(depths);
}

static const uint8_t *reference_of(const struct corpus *corpus, size_t page)
{
    return corpus->references[page] == DE_NONE ? NULL : corpus->pages[corpus->references[page]];
}

static struct codecs make_codecs(const struct corpus *corpus)
{
    struct codecs codecs = {.window = allocate(1, sizeof(*codecs.window))};
    const uint8_t **pages = allocate(corpus->count, sizeof(*pages));
    const uint8_t **references = allocate(corpus->count, sizeof(*references));
    size_t sample = 0;
    for (size_t i = 0; i < corpus->count; i += TRAINING_STEP, sample++) {
        pages[sample] = corpus->pages[i];
        references[sample] = reference_of(corpus, i);
    }
    require(de_dense_model_train(pages, references, sample, &codecs.model), "cannot train:");
    require(de_dense_encoder_create(&codecs.encoder), "cannot make an encoder:");
    require(de_compress_create(DE_COMPRESS_LZ4, 1, &codecs.lz4), "cannot use LZ4:");
    require(de_compress_create(DE_COMPRESS_ZSTD, 1, &codecs.zstd), "cannot use zstd:");
    de_dense_window_init(codecs.window);
    free(references);
    free(pages);
    return codecs;
}

static struct payload keep(const uint8_t *page, const uint8_t *bytes, size_t count)
{
    struct payload payload = {.count = (uint16_t)(count ? count : DE_PAGE_SIZE)};
    payload.bytes = allocate(payload.count, 1);
    memcpy(payload.bytes, count ? bytes : page, payload.count);
    return payload;
}

/** @return seconds spent in the dense encoder. */
static double encode_all(struct corpus *corpus, const struct codecs *codecs)
{
    uint8_t out[DE_PAGE_SIZE];
    double seconds = 0;
    corpus->dense = allocate(corpus->count, sizeof(*corpus->dense));
    corpus->lz4 = allocate(corpus->count, sizeof(*corpus->lz4));
    corpus->zstd = allocate(corpus->count, sizeof(*corpus->zstd));
    for (size_t i = 0; i < corpus->count; i++) {
        const uint8_t *page = corpus->pages[i];
        double start = now_s();
        size_t count = de_dense_encode(codecs->encoder, codecs->model, page, reference_of(corpus, i), out,
                                       DE_PAGE_SIZE - 1);
        seconds += now_s() - start;
        if (count == 0)
            corpus->references[i] = DE_NONE; /* raw */
        corpus->dense[i] = keep(page, out, count);
        corpus->lz4[i] = keep(page, out, de_compress_page(codecs->lz4, page, out, DE_PAGE_SIZE - 1));
        corpus->zstd[i] = keep(page, out, de_compress_page(codecs->zstd, page, out, DE_PAGE_SIZE - 1));
    }
    return seconds;
}

/** Rebuild in codecs->window->page, references first. */
static void rebuild(const struct corpus *corpus, const struct codecs *codecs, size_t page)
{
    struct de_dense_window *window = codecs->window;
    const struct payload *payload = &corpus->dense[page];
    uint32_t reference = corpus->references[page];
    if (reference != DE_NONE) {
        rebuild(corpus, codecs, reference);
        memcpy(window->reference, window->page, DE_PAGE_SIZE);
    }
    if (payload->count == DE_PAGE_SIZE)
        memcpy(window->page, payload->bytes, DE_PAGE_SIZE);
    else
        require(de_dense_decode(codecs->model, payload->bytes, payload->count, reference != DE_NONE, window),
                "a page does not decode:");
}

static double time_dense(const struct corpus *corpus, const struct codecs *codecs, size_t page)
{
    double start = now_s();
    rebuild(corpus, codecs, page);
    double seconds = now_s() - start;
    if (memcmp(codecs->window->page, corpus->pages[page], DE_PAGE_SIZE) != 0)
        die("a page came out wrong:", "dense");
    return seconds;
}

static double time_peer(struct de_compress_context *context, const struct payload *payload,
                        const uint8_t *page)
{
    static uint8_t out[DE_PAGE_SIZE];
    double start = now_s();
    if (payload->count == DE_PAGE_SIZE)
        memcpy(out, payload->bytes, DE_PAGE_SIZE);
    else
        require(de_decompress_page(context, payload->bytes, payload->count, out), "a page does not decode:");
    double seconds = now_s() - start;
    if (memcmp(out, page, DE_PAGE_SIZE) != 0)
        die("a page came out wrong:", "peer");
    return seconds;
}

static int by_value(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static void print_times(struct times *times)
{
    qsort(times->seconds, times->count, sizeof(*times->seconds), by_value);
    size_t last = times->count ? times->count - 1 : 0;
    printf("\"p50_us\": %.2f, \"p99_us\": %.2f}", times->seconds[last / 2] * 1e6,
           times->seconds[last * 99 / 100] * 1e6);
}

/** All pages once, in random order. */
static size_t *shuffled(size_t count)
{
    size_t *order = allocate(count, sizeof(*order));
    uint64_t state = SEED;
    for (size_t i = 0; i < count; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        size_t other = (size_t)((state >> 33) % (i + 1));
        order[i] = order[other];
        order[other] = i;
    }
    return order;
}

enum series { RAW, ALONE, PATCHED, LZ4, ZSTD, SERIES };

static void add_time(struct times *times, double seconds)
{
    times->seconds[times->count++] = seconds;
}

static void time_all(const struct corpus *corpus, const struct codecs *codecs, size_t step,
                     struct times times[SERIES])
{
    for (int i = 0; i < SERIES; i++)
        times[i].seconds = allocate(corpus->count, sizeof(double));
    size_t *order = shuffled(corpus->count);
    for (size_t i = 0; i < corpus->count; i += step) {
        size_t page = order[i];
        enum series series = corpus->dense[page].count == DE_PAGE_SIZE ? RAW
                             : corpus->references[page] == DE_NONE     ? ALONE
                                                                       : PATCHED;
        add_time(&times[series], time_dense(corpus, codecs, page));
        add_time(&times[LZ4], time_peer(codecs->lz4, &corpus->lz4[page], corpus->pages[page]));
        add_time(&times[ZSTD], time_peer(codecs->zstd, &corpus->zstd[page], corpus->pages[page]));
    }
    free(order);
}

static void print_peer(const char *name, const struct corpus *corpus, const struct payload *payloads,
                       struct times *times)
{
    size_t bytes = 0;
    for (size_t i = 0; i < corpus->count; i++)
        bytes += payloads[i].count;
    printf(", \"%s\": {\"mean_bytes\": %.0f, ", name, (double)bytes / (double)corpus->count);
    print_times(times);
}

static void print_result(const struct corpus *corpus, struct times times[SERIES], double encode_s)
{
    size_t bytes[SERIES] = {0}, counts[SERIES] = {0}, total = 0;
    for (size_t i = 0; i < corpus->count; i++) {
        int series = corpus->dense[i].count == DE_PAGE_SIZE ? RAW
                     : corpus->references[i] == DE_NONE     ? ALONE
                                                            : PATCHED;
        bytes[series] += corpus->dense[i].count;
        counts[series]++;
        total += corpus->dense[i].count;
    }
    printf("\"pages\": %zu, \"bytes\": %zu, \"mean_bytes\": %.0f, \"raw\": %zu, \"encode_mean_us\": %.1f",
           corpus->count, total, (double)total / (double)corpus->count, counts[RAW],
           encode_s / (double)corpus->count * 1e6);
    for (int series = ALONE; series <= PATCHED; series++) {
        printf(", \"%s\": {\"count\": %zu, \"mean_bytes\": %.0f, ", series == ALONE ? "alone" : "patched",
               counts[series], counts[series] ? (double)bytes[series] / (double)counts[series] : 0.0);
        print_times(&times[series]);
    }
    print_peer("lz4", corpus, corpus->lz4, &times[LZ4]);
    print_peer("zstd", corpus, corpus->zstd, &times[ZSTD]);
}

int main(int argc, char **argv)
{
    unsigned long max_depth = 1, step = 1;
    int option;
    while ((option = getopt(argc, argv, "d:s:")) != -1) {
        if (option == 'd')
            max_depth = strtoul(optarg, NULL, 10);
        else if (option == 's')
            step = strtoul(optarg, NULL, 10);
        else
            step = 0;
    }
    if (optind >= argc || step < 1 || max_depth > 3)
        die("usage:", "dense_bench [-d MAX_DEPTH 0..3] [-s STEP] IMAGE...");
    struct corpus corpus = {0};
    struct times times[SERIES] = {0};
    collect_distinct(&corpus, argv + optind, argc - optind);
    if (corpus.count == 0)
        die("nothing but zeros in", "the images");
    plan_references(&corpus, (unsigned)max_depth);
    struct codecs codecs = make_codecs(&corpus);
    double encode_s = encode_all(&corpus, &codecs);
    time_all(&corpus, &codecs, step, times);
    printf("{\"benchmark\": \"dense\", \"max_depth\": %lu, ", max_depth);
    print_result(&corpus, times, encode_s);
    printf("}\n");
    return 0;
}
