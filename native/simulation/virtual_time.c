/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The calling thread as one of the fibers, and the disk. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "replacements.h"

#include <diffengine/status.h>
#include <diffengine/virtual_time.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/** No clock of ours starts at 0, which means "not yet" in places. */
#define START_NS 1000000000u
#define MOST_SLEEP_NS 1000000000u
#define GAP 64u
#define POINT_NS 20u
#define CHANGE_NS 100u

static struct scheduler *running(void)
{
    struct scheduler *scheduler = scheduler_of_thread();
    if (!scheduler || !scheduler->current) {
        fputs("diffengine: no virtual time on this thread\n", stderr);
        abort();
    }
    return scheduler;
}

/* The caller may be in the middle of any function, so there is no way to give it an error. */
static void home_main(void)
{
    fiber_entered();
    struct scheduler *scheduler = scheduler_of_thread();
    scheduler_run(scheduler);
    fprintf(stderr, "diffengine: virtual time can't go on: %s\n", scheduler->failure);
    abort();
}

int de_virtual_begin(uint64_t seed)
{
    if (scheduler_of_thread())
        return DE_BUSY;
    struct scheduler *scheduler = scheduler_create(seed, GAP);
    if (!scheduler)
        return DE_NO_MEMORY;
    scheduler->now_ns = START_NS;
    scheduler->point_ns = POINT_NS;
    scheduler->change_ns = CHANGE_NS;
    scheduler->models_work = true;
    if (!fiber_create(&scheduler->home, home_main)) {
        scheduler_free(scheduler);
        return DE_NO_MEMORY;
    }
    scheduler->current = scheduler_adopt(scheduler, PROCESS_CALLER, "caller");
    scheduler_yield(scheduler);
    return DE_OK;
}

void de_virtual_end(void)
{
    scheduler_free(running());
}

uint64_t de_virtual_now_ns(void)
{
    return scheduler_now(running()) - START_NS;
}

void de_virtual_sleep_until(uint64_t ns)
{
    struct scheduler *scheduler = running();
    uint64_t end_ns = ns + START_NS;
    for (uint64_t now_ns; (now_ns = scheduler_now(scheduler)) < end_ns;) {
        uint64_t left_ns = end_ns - now_ns;
        scheduler_progress(scheduler);
        scheduler_sleep(scheduler, left_ns < MOST_SLEEP_NS ? left_ns : MOST_SLEEP_NS);
    }
}

void de_virtual_work(uint64_t ns)
{
    struct scheduler *scheduler = running();
    scheduler_progress(scheduler);
    scheduler_work(scheduler, ns);
}

size_t de_virtual_threads(uint64_t *numbers, uint64_t *cpu_ns, size_t capacity)
{
    const struct scheduler *scheduler = running();
    size_t count = 0;
    for (size_t i = 0; i < scheduler->fiber_limit && count < capacity; i++) {
        const struct fiber *fiber = &scheduler->fibers[i];
        if (fiber->state == FIBER_FREE)
            continue;
        numbers[count] = fiber->number;
        cpu_ns[count++] = fiber->cpu_ns;
    }
    return count;
}

void de_virtual_trace(struct de_virtual_trace *trace)
{
    const struct scheduler *scheduler = running();
    *trace = (struct de_virtual_trace){.hash = scheduler->trace_hash, .switches = scheduler->switches};
}

/* One disk for all of a run, which is one thread's. */
static struct disk {
    uint64_t read_ns;
    uint64_t write_ns;
    unsigned at_once;
    uint64_t free_ns[DE_VIRTUAL_DISK_MOST_AT_ONCE]; /* when each of those is done with what it has */
} the_disk;

/** A request's turn: it waits until one of those that the disk serves at once is done, and takes so long
 * itself. */
static void disk_serve(struct disk *disk, uint64_t ns)
{
    uint64_t now_ns = scheduler_now(running());
    uint64_t *first = disk->free_ns;
    for (unsigned i = 1; i < disk->at_once; i++) {
        if (disk->free_ns[i] < *first)
            first = &disk->free_ns[i];
    }
    *first = (*first > now_ns ? *first : now_ns) + ns;
    scheduler_sleep(running(), *first - now_ns);
}

static ssize_t disk_read(void *context, int fd, void *buffer, size_t bytes, int64_t offset)
{
    struct disk *disk = context;
    disk_serve(disk, disk->read_ns);
    return pread(fd, buffer, bytes, offset);
}

static ssize_t disk_write(void *context, int fd, const void *buffer, size_t bytes, int64_t offset)
{
    struct disk *disk = context;
    disk_serve(disk, disk->write_ns * (bytes / DE_PAGE_SIZE));
    return pwrite(fd, buffer, bytes, offset);
}

const struct de_swap_disk *de_virtual_disk(uint64_t read_ns, uint64_t write_ns, unsigned at_once)
{
    static const struct de_swap_disk operations = {
        .context = &the_disk, .read = disk_read, .write = disk_write};
    bool any = at_once == 0 || at_once > DE_VIRTUAL_DISK_MOST_AT_ONCE;
    the_disk = (struct disk){
        .read_ns = read_ns ? read_ns : SIMULATION_DISK_READ_NS,
        .write_ns = write_ns ? write_ns : SIMULATION_DISK_WRITE_NS,
        .at_once = any ? DE_VIRTUAL_DISK_MOST_AT_ONCE : at_once,
    };
    return &operations;
}
