/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "load.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

static pthread_t thread;
static bool started;
static atomic_bool stopping;
static struct load_options load;
static struct access_counts total;
static pthread_mutex_t total_lock = PTHREAD_MUTEX_INITIALIZER;

static void add(const struct access_counts *counts)
{
    pthread_mutex_lock(&total_lock);
    total.reads += counts->reads;
    total.writes += counts->writes;
    total.wrong_pages += counts->wrong_pages;
    total.wrong_bytes += counts->wrong_bytes;
    if (counts->longest_ns > total.longest_ns)
        total.longest_ns = counts->longest_ns;
    pthread_mutex_unlock(&total_lock);
}

static void *run(void *argument)
{
    (void)argument;
    struct timespec pause = {.tv_nsec =
                                 load.operations_per_s == 1 ? 999999999 : 1000000000 / load.operations_per_s};
    for (uint64_t number = 0; !stopping; number++) {
        uint64_t random = mix(mix(load.seed) + number);
        int region = load.first_region + (int)(random % (uint64_t)(load.last_region - load.first_region + 1));
        uint32_t pages = region_pages(region);
        if (!pages) /* given back meanwhile */
            break;
        uint32_t page = (uint32_t)((random >> 8) % pages);
        bool write = (random >> 48) % 100 < load.write_percent;
        struct access_counts counts = {0};
        if (write)
            region_change(region, page, &counts);
        else
            region_check(region, page, &counts);
        add(&counts);
        nanosleep(&pause, NULL);
    }
    return NULL;
}

int load_start(const struct load_options *options)
{
    if (started)
        return -EBUSY;
    if (!options->operations_per_s || options->write_percent > 100 ||
        options->last_region < options->first_region)
        return -EINVAL;
    for (int region = options->first_region; region <= options->last_region; region++)
        if (!region_pages(region))
            return -ENOENT;
    load = *options;
    total = (struct access_counts){0};
    stopping = false;
    int error = pthread_create(&thread, NULL, run, NULL);
    started = !error;
    return -error;
}

void load_read(struct access_counts *counts)
{
    pthread_mutex_lock(&total_lock);
    *counts = total;
    pthread_mutex_unlock(&total_lock);
}

void load_stop(void)
{
    if (!started)
        return;
    stopping = true;
    pthread_join(thread, NULL);
    started = false;
}
