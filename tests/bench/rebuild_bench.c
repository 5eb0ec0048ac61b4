/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * rebuild_bench [-r PASSES] STORE_FILE
 *
 * How long does a fault wait for a page's content? Takes over a store file that fill_store.py made, as a
 * pager does after a restart, and rebuilds every object through de_rebuild_page(): lookup, references,
 * decoding and checksum. Objects come in random order and each once per pass, so from caches as a fault finds
 * them at best; the median and the 99th percentile are of all passes. One line of JSON. Exit 1 on bad use, or
 * if an object is not as it was.
 */
#include <diffengine/rebuild.h>
#include <diffengine/status.h>
#include <diffengine/store.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum kind { RAW, FILL, ALONE, DEPTH_1, DEPTH_2, PATCHED, KINDS };

static const char *const kind_names[KINDS] = {"raw", "fill", "alone", "depth_1", "depth_2", "patched"};

struct objects {
    uint32_t *ids;
    uint8_t *kinds;
    size_t count;
};

struct times {
    double *us;
    size_t count;
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "rebuild_bench: %s %s\n", what, why);
    exit(1);
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    if (memory == NULL)
        die("no memory for", "the benchmark");
    return memory;
}

static double now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec * 1e-3;
}

static enum kind kind_of(const struct de_object *object)
{
    if (object->encoding == DE_ENCODING_RAW)
        return RAW;
    if (object->encoding == DE_ENCODING_FILL)
        return FILL;
    return object->depth == 0 ? ALONE : object->depth == 1 ? DEPTH_1 : DEPTH_2;
}

/* All objects that are pages. Ids are given out from 0 on, and none was released when the store was filled.
 */
static struct objects list_objects(struct de_store *store)
{
    struct de_store_statistics statistics;
    de_store_statistics(store, &statistics);
    struct objects objects = {.ids = allocate(statistics.objects, sizeof *objects.ids),
                              .kinds = allocate(statistics.objects, 1)};
    struct de_store_reader *reader;
    if (de_store_reader_create(store, &reader) != DE_OK)
        die("cannot read", "the store");
    for (uint32_t id = 0; id <= statistics.objects; id++) {
        struct de_object object;
        de_store_enter(reader);
        if (de_store_get(reader, id, &object) == DE_OK && object.encoding != DE_ENCODING_MODEL) {
            objects.ids[objects.count] = id;
            objects.kinds[objects.count++] = (uint8_t)kind_of(&object);
        }
        de_store_leave(reader);
    }
    de_store_reader_free(reader);
    return objects;
}

static void shuffle(struct objects *objects)
{
    uint64_t state = 1;
    for (size_t i = objects->count; i > 1; i--) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        size_t other = (size_t)((state >> 33) % i);
        uint32_t id = objects->ids[i - 1];
        uint8_t kind = objects->kinds[i - 1];
        objects->ids[i - 1] = objects->ids[other];
        objects->kinds[i - 1] = objects->kinds[other];
        objects->ids[other] = id;
        objects->kinds[other] = kind;
    }
}

static void run_pass(struct de_rebuilder *rebuilder, const struct objects *objects, struct times times[KINDS])
{
    static uint8_t page[DE_PAGE_SIZE];
    for (size_t i = 0; i < objects->count; i++) {
        enum kind kind = objects->kinds[i];
        double begin = now_us();
        int status = de_rebuild_page(rebuilder, objects->ids[i], page);
        double us = now_us() - begin;
        if (status != DE_OK)
            die("an object does not rebuild:", de_status_text(status));
        times[kind].us[times[kind].count++] = us;
        if (kind == DEPTH_1 || kind == DEPTH_2)
            times[PATCHED].us[times[PATCHED].count++] = us;
    }
}

static int by_value(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static void print_times(const char *name, struct times *times, unsigned passes)
{
    printf(", \"%s\": {\"count\": %zu", name, times->count / passes);
    if (times->count > 0) {
        qsort(times->us, times->count, sizeof *times->us, by_value);
        printf(", \"p50_us\": %.2f, \"p99_us\": %.2f", times->us[times->count / 2],
               times->us[times->count - 1 - times->count / 100]);
    }
    printf("}");
}

static struct de_store *take_over(const char *path)
{
    struct de_store *store;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        die("cannot open", path);
    int status = de_store_open(fd, &store);
    if (status != DE_OK)
        die("cannot take over the store:", de_status_text(status));
    return store;
}

int main(int argc, char **argv)
{
    unsigned long passes = 5;
    int option;
    while ((option = getopt(argc, argv, "r:")) != -1)
        passes = option == 'r' ? strtoul(optarg, NULL, 10) : 0;
    if (optind + 1 != argc || passes < 1 || passes > 1000)
        die("usage:", "rebuild_bench [-r PASSES (1 to 1000)] STORE_FILE");
    struct de_store *store = take_over(argv[optind]);
    struct objects objects = list_objects(store);
    struct de_rebuilder *rebuilder;
    if (objects.count == 0 || de_rebuilder_create(store, &rebuilder) != DE_OK)
        die("nothing to rebuild in", argv[optind]);
    struct times times[KINDS] = {0};
    for (unsigned kind = 0; kind < KINDS; kind++)
        times[kind].us = allocate(objects.count * passes, sizeof(double));
    run_pass(rebuilder, &objects, times); /* maps the file; does not count */
    for (unsigned kind = 0; kind < KINDS; kind++)
        times[kind].count = 0;
    for (unsigned long pass = 0; pass < passes; pass++) {
        shuffle(&objects);
        run_pass(rebuilder, &objects, times);
    }
    printf("{\"benchmark\": \"rebuild\", \"objects\": %zu, \"passes\": %lu", objects.count, passes);
    for (unsigned kind = 0; kind < KINDS; kind++) {
        print_times(kind_names[kind], &times[kind], (unsigned)passes);
        free(times[kind].us);
    }
    puts("}");
    de_rebuilder_free(rebuilder);
    de_store_close(store);
    free(objects.ids);
    free(objects.kinds);
    return 0;
}
