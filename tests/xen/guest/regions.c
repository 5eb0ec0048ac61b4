/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "regions.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define MAX_REGIONS 32

struct region {
    pthread_mutex_t lock;
    struct generator generator;
    uint8_t *memory; /**< NULL: not in use */
    uint8_t *writes; /**< per page, modulo 256 */
    uint32_t pages;
};

static struct region regions[MAX_REGIONS];
static int regions_made;

static uint64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static struct region *find(int number)
{
    return number >= 0 && number < regions_made && regions[number].memory ? &regions[number] : NULL;
}

int region_fill(const struct generator *generator, uint32_t pages)
{
    if (regions_made == MAX_REGIONS)
        return -ENOSPC;
    struct region *region = &regions[regions_made];
    size_t size = (size_t)pages * DE_PAGE_SIZE;
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    region->writes = calloc(pages, 1);
    if (memory == MAP_FAILED || !region->writes)
        return -ENOMEM;
    pthread_mutex_init(&region->lock, NULL);
    region->generator = *generator;
    region->pages = pages;
    for (uint32_t page = 0; page < pages; page++)
        generate_page(generator, page, memory + (size_t)page * DE_PAGE_SIZE);
    region->memory = memory;
    return regions_made++;
}

int region_free(int number)
{
    struct region *region = find(number);
    if (!region)
        return -ENOENT;
    pthread_mutex_lock(&region->lock);
    munmap(region->memory, (size_t)region->pages * DE_PAGE_SIZE);
    region->memory = NULL;
    pthread_mutex_unlock(&region->lock);
    return 0;
}

uint32_t region_pages(int number)
{
    struct region *region = find(number);
    return region ? region->pages : 0;
}

uint8_t *region_page(int number, uint32_t page)
{
    struct region *region = find(number);
    return region && page < region->pages ? region->memory + (size_t)page * DE_PAGE_SIZE : NULL;
}

static void expected_page(const struct region *region, uint32_t page, uint8_t *bytes)
{
    generate_page(&region->generator, page, bytes);
    for (uint32_t i = 0; i < GENERATOR_WRITES; i++)
        bytes[generator_offset(i)] ^= (uint8_t)(region->writes[page] * 0xffu);
}

static int use_page(int number, uint32_t page, bool change, struct access_counts *counts)
{
    struct region *region = find(number);
    if (!region)
        return -ENOENT;
    if (page >= region->pages)
        return -ERANGE;
    uint8_t expected[DE_PAGE_SIZE], found[DE_PAGE_SIZE];
    uint8_t *memory = region->memory + (size_t)page * DE_PAGE_SIZE;
    pthread_mutex_lock(&region->lock);
    if (change)
        region->writes[page]++;
    expected_page(region, page, expected);
    uint64_t begin_ns = now_ns();
    if (change)
        for (uint32_t i = 0; i < GENERATOR_WRITES; i++)
            ((volatile uint8_t *)memory)[generator_offset(i)] = expected[generator_offset(i)];
    memcpy(found, memory, DE_PAGE_SIZE);
    uint64_t took_ns = now_ns() - begin_ns;
    pthread_mutex_unlock(&region->lock);
    uint64_t wrong = count_wrong(found, expected);
    counts->reads += !change;
    counts->writes += change;
    counts->wrong_pages += wrong > 0;
    counts->wrong_bytes += wrong;
    if (took_ns > counts->longest_ns)
        counts->longest_ns = took_ns;
    return 0;
}

int region_check(int number, uint32_t page, struct access_counts *counts)
{
    return use_page(number, page, false, counts);
}

int region_change(int number, uint32_t page, struct access_counts *counts)
{
    return use_page(number, page, true, counts);
}

uint64_t region_wrong(int number, uint32_t page, const uint8_t *copy)
{
    struct region *region = find(number);
    if (!region || page >= region->pages)
        return DE_PAGE_SIZE;
    uint8_t expected[DE_PAGE_SIZE];
    expected_page(region, page, expected);
    return count_wrong(copy, expected);
}
