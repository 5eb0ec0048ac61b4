/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * digest_bench [-r REPEATS] [-p] IMAGE...
 *
 * How near to memory speed is the digest (same-filled test, XXH3-64 and (2,1) keys)? Peer: a plain AVX2 loop
 * that only reads the same memory. Two sets: the images as they are (mapped files), and an anonymous copy of
 * their non-zero pages only. Passes of the two loops over a whole set alternate, so that none finds its
 * memory in a cache (give it more than the last-level cache holds). A pass is timed in slices of 128 MiB, and
 * each slice's best time of all repeats counts: what other users of the machine take away is taken from both.
 * One line of JSON; -p: the portable path. Exit 1 on bad use.
 */
#include <diffengine/digest.h>
#include <diffengine/status.h>

#include <fcntl.h>
#include <immintrin.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS 2u
#define BATCH 512u /* the smallest batch that the daemon hands over */
#define MAX_SLICES 256u
#define SLICE_PAGES 32768u
#define BENCH_K 2u
#define BENCH_S 1u

struct page_set {
    const char *name;
    const uint8_t **pages;
    size_t count;
};

struct output {
    uint64_t digests[BATCH];
    uint64_t keys[BATCH * BENCH_K];
    uint8_t kinds[BATCH];
};

struct job {
    const struct page_set *set;
    const struct de_digester *digester; /* NULL: only read */
    size_t first, end;
    pthread_barrier_t *start;
    double begin_s, end_s;
};

static volatile uint64_t sink;

static void die(const char *what, const char *name)
{
    fprintf(stderr, "digest_bench: %s %s\n", what, name);
    exit(1);
}

static void *checked(void *memory)
{
    if (memory == NULL || memory == MAP_FAILED)
        die("no memory for", "the benchmark");
    return memory;
}

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

__attribute__((target("avx2"))) static uint64_t read_pages(const uint8_t *const *pages, size_t count)
{
    __m256i sums[8] = {0};
    for (size_t i = 0; i < count; i++) {
        const __m256i *words = (const __m256i *)pages[i];
        for (unsigned w = 0; w < DE_PAGE_SIZE / 32; w += 8)
            for (unsigned lane = 0; lane < 8; lane++)
                sums[lane] = _mm256_xor_si256(sums[lane], _mm256_loadu_si256(words + w + lane));
    }
    for (unsigned lane = 1; lane < 8; lane++)
        sums[0] = _mm256_xor_si256(sums[0], sums[lane]);
    return (uint64_t)_mm256_extract_epi64(sums[0], 0) ^ (uint64_t)_mm256_extract_epi64(sums[0], 1) ^
           (uint64_t)_mm256_extract_epi64(sums[0], 2) ^ (uint64_t)_mm256_extract_epi64(sums[0], 3);
}

static uint64_t digest_pages(const struct de_digester *digester, const uint8_t *const *pages, size_t count,
                             struct output *output)
{
    uint64_t all = 0;
    for (size_t first = 0; first < count; first += BATCH) {
        size_t now = count - first < BATCH ? count - first : BATCH;
        de_digest_batch(digester, pages + first, now, output->digests, output->kinds, output->keys);
        all ^= output->digests[0];
    }
    return all;
}

static void *run_job(void *argument)
{
    struct job *job = argument;
    const uint8_t *const *pages = job->set->pages + job->first;
    size_t count = job->end - job->first;
    struct output *output = checked(calloc(1, sizeof *output));
    pthread_barrier_wait(job->start);
    job->begin_s = now_s();
    sink =
        job->digester == NULL ? read_pages(pages, count) : digest_pages(job->digester, pages, count, output);
    job->end_s = now_s();
    free(output);
    return NULL;
}

/* Seconds from the first thread's start to the last one's end; each takes an equal part. */
static double time_slice(const struct page_set *set, size_t first, size_t count,
                         const struct de_digester *digester, unsigned threads)
{
    pthread_t ids[MAX_THREADS];
    struct job jobs[MAX_THREADS];
    pthread_barrier_t start;
    pthread_barrier_init(&start, NULL, threads);
    for (unsigned t = 0; t < threads; t++) {
        jobs[t] = (struct job){.set = set, .digester = digester, .start = &start};
        jobs[t].first = first + count * t / threads;
        jobs[t].end = first + count * (t + 1) / threads;
        if (pthread_create(&ids[t], NULL, run_job, &jobs[t]) != 0)
            die("cannot start", "a thread");
    }
    double begin_s = 0, end_s = 0;
    for (unsigned t = 0; t < threads; t++) {
        pthread_join(ids[t], NULL);
        begin_s = t == 0 || jobs[t].begin_s < begin_s ? jobs[t].begin_s : begin_s;
        end_s = jobs[t].end_s > end_s ? jobs[t].end_s : end_s;
    }
    pthread_barrier_destroy(&start);
    return end_s - begin_s;
}

/* Best seconds of each slice so far; 0 = not yet measured. */
struct series {
    double best_s[MAX_SLICES];
};

static void run_pass(struct series *series, const struct page_set *set, const struct de_digester *digester,
                     unsigned threads)
{
    for (size_t first = 0, slice = 0; first < set->count; first += SLICE_PAGES, slice++) {
        size_t count = set->count - first < SLICE_PAGES ? set->count - first : SLICE_PAGES;
        double seconds = time_slice(set, first, count, digester, threads);
        if (series->best_s[slice] == 0 || seconds < series->best_s[slice])
            series->best_s[slice] = seconds;
    }
}

static double series_gbps(const struct series *series, const struct page_set *set)
{
    double seconds = 0;
    for (unsigned slice = 0; slice < MAX_SLICES; slice++)
        seconds += series->best_s[slice];
    return (double)set->count * DE_PAGE_SIZE / seconds / 1e9;
}

static void bench_set(const struct page_set *set, const struct de_digester *digester, unsigned repeats)
{
    struct series read[MAX_THREADS] = {0}, digest[MAX_THREADS] = {0};
    double read_gbps[MAX_THREADS], digest_gbps[MAX_THREADS];
    for (unsigned r = 0; r < repeats; r++)
        for (unsigned t = 0; t < MAX_THREADS; t++) {
            run_pass(&read[t], set, NULL, t + 1);
            run_pass(&digest[t], set, digester, t + 1);
        }
    printf("\"%s\": {\"bytes\": %zu", set->name, set->count * (size_t)DE_PAGE_SIZE);
    for (unsigned t = 0; t < MAX_THREADS; t++) {
        read_gbps[t] = series_gbps(&read[t], set);
        digest_gbps[t] = series_gbps(&digest[t], set);
        printf(", \"threads_%u\": {\"read_gbps\": %.2f, \"digest_gbps\": %.2f, \"ratio\": %.3f}", t + 1,
               read_gbps[t], digest_gbps[t], digest_gbps[t] / read_gbps[t]);
    }
    double read_scaling = read_gbps[1] / read_gbps[0], digest_scaling = digest_gbps[1] / digest_gbps[0];
    printf(", \"read_scaling\": %.3f, \"digest_scaling\": %.3f, \"scaling_ratio\": %.3f}", read_scaling,
           digest_scaling, digest_scaling / read_scaling);
}

static void add_image(struct page_set *set, const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) != 0 || status.st_size < (off_t)DE_PAGE_SIZE)
        die("cannot use image", path);
    size_t count = (size_t)status.st_size / DE_PAGE_SIZE;
    const uint8_t *bytes =
        checked(mmap(NULL, count * DE_PAGE_SIZE, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0));
    close(fd);
    if (set->count + count > (size_t)MAX_SLICES * SLICE_PAGES)
        die("too much memory to measure with", path);
    set->pages = checked(realloc(set->pages, (set->count + count) * sizeof *set->pages));
    for (size_t i = 0; i < count; i++)
        set->pages[set->count + i] = bytes + i * DE_PAGE_SIZE;
    set->count += count;
}

/* An anonymous copy of the pages that are not zero. */
static struct page_set copy_nonzero(const struct page_set *set)
{
    static const uint8_t zero[DE_PAGE_SIZE];
    struct page_set copy = {.name = "nonzero_anonymous"};
    copy.pages = checked(malloc(set->count * sizeof *copy.pages));
    uint8_t *bytes = checked(mmap(NULL, set->count * DE_PAGE_SIZE, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    for (size_t i = 0; i < set->count; i++)
        if (memcmp(set->pages[i], zero, DE_PAGE_SIZE) != 0) {
            copy.pages[copy.count] = memcpy(bytes + copy.count * DE_PAGE_SIZE, set->pages[i], DE_PAGE_SIZE);
            copy.count++;
        }
    return copy;
}

int main(int argc, char **argv)
{
    unsigned repeats = 9;
    int option;
    while ((option = getopt(argc, argv, "r:p")) != -1) {
        if (option == 'p')
            de_digest_force_portable(true);
        else if (option == 'r')
            repeats = (unsigned)strtoul(optarg, NULL, 10);
    }
    if (optind >= argc || repeats < 1)
        die("usage:", "digest_bench [-r REPEATS] [-p] IMAGE...");
    if (!__builtin_cpu_supports("avx2"))
        die("the peer needs", "AVX2");
    struct page_set images = {.name = "images"};
    for (int i = optind; i < argc; i++)
        add_image(&images, argv[i]);
    struct page_set nonzero = copy_nonzero(&images);
    if (nonzero.count == 0)
        die("nothing but zeros in", "the images");
    struct de_digester *digester;
    if (de_digester_create(0x5eed, BENCH_K, BENCH_S, &digester) != DE_OK)
        die("cannot make", "a digester");
    printf("{\"benchmark\": \"digest\", \"path\": \"%s\", \"k\": %u, \"s\": %u, \"repeats\": %u, ",
           de_digest_path(), BENCH_K, BENCH_S, repeats);
    bench_set(&images, digester, repeats);
    printf(", ");
    bench_set(&nonzero, digester, repeats);
    printf("}\n");
    de_digester_free(digester);
    return 0;
}
