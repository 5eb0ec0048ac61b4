/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file guest_pages.h
 * What benchmarks need of images: their pages in anonymous 4-KiB frames (all populated, so that no page fault
 * is timed), clocks and quantiles. Errors end the program with a message and status 1.
 */
#ifndef DIFFENGINE_BENCH_GUEST_PAGES_H
#define DIFFENGINE_BENCH_GUEST_PAGES_H

#include <diffengine/page.h>
#include <diffengine/status.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct guest_pages {
    const uint8_t **pages;
    size_t count;
};

static inline void die(const char *what, const char *why)
{
    fprintf(stderr, "benchmark: %s %s\n", what, why);
    exit(1);
}

static inline void require(int status, const char *what)
{
    if (status != DE_OK)
        die(what, de_status_text(status));
}

static inline void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    if (memory == NULL)
        die("no memory for", "the benchmark");
    return memory;
}

static inline uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline uint64_t now_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

static inline uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state >> 33;
}

static inline void read_whole(int fd, uint8_t *bytes, size_t count, const char *path)
{
    for (size_t done = 0; done < count;) {
        ssize_t now = pread(fd, bytes + done, count - done, (off_t)done);
        if (now <= 0)
            die("cannot read", path);
        done += (size_t)now;
    }
}

/** Small pages, as a guest's frames are when dom0 maps them. */
static inline void add_image(struct guest_pages *guest, const char *path)
{
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) != 0 || status.st_size < (off_t)DE_PAGE_SIZE)
        die("cannot use image", path);
    size_t count = (size_t)status.st_size / DE_PAGE_SIZE;
    uint8_t *bytes =
        mmap(NULL, count * DE_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == MAP_FAILED)
        die("no memory for", path);
    /* Fails on a kernel without huge pages, which is what is asked for. */
    (void)madvise(bytes, count * DE_PAGE_SIZE, MADV_NOHUGEPAGE);
    read_whole(fd, bytes, count * DE_PAGE_SIZE, path);
    close(fd);
    guest->pages = realloc(guest->pages, (guest->count + count) * sizeof *guest->pages);
    if (guest->pages == NULL)
        die("no memory for", path);
    for (size_t i = 0; i < count; i++)
        guest->pages[guest->count + i] = bytes + i * DE_PAGE_SIZE;
    guest->count += count;
}

static inline struct guest_pages load_images(char *const *paths, int images)
{
    struct guest_pages guest = {0};
    for (int i = 0; i < images; i++)
        add_image(&guest, paths[i]);
    return guest;
}

/** Durations of one kind of operation. */
struct samples {
    const char *name;
    uint64_t *ns;
    size_t count;
    size_t capacity;
};

static inline void add_sample(struct samples *samples, uint64_t ns)
{
    if (samples->count == samples->capacity) {
        samples->capacity = samples->capacity ? 2 * samples->capacity : 4096;
        samples->ns = realloc(samples->ns, samples->capacity * sizeof *samples->ns);
        if (samples->ns == NULL)
            die("no memory for", samples->name);
    }
    samples->ns[samples->count++] = ns;
}

static inline int compare_ns(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/** Sorts them. 0 without samples. */
static inline double quantile_us(struct samples *samples, double fraction)
{
    if (samples->count == 0)
        return 0;
    qsort(samples->ns, samples->count, sizeof *samples->ns, compare_ns);
    return (double)samples->ns[(size_t)(fraction * (double)(samples->count - 1))] / 1e3;
}

#endif
