/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest program that knows what it must read. It keeps no copy of its memory: every write follows from
 * (seed, gfn, number of the write), so that a page's right content is the image's with its writes done again.
 * One write in REWRITE is of the whole page, which keeps that short.
 */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define REWRITE 32u
#define MAX_WRITE_BYTES 64u

struct de_guest {
    struct de_guest_options options;
    struct de_vcpu *vcpu;
    pthread_t thread;
    uint32_t *writes; /**< per gfn, how many so far */
    uint64_t *samples_ns;
    uint64_t random;
    _Atomic(uint64_t) progress;
    atomic_bool stop;
    struct de_guest_result result;
};

/* splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. */
static uint64_t mix(uint64_t z)
{
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t next_random(struct de_guest *guest)
{
    return mix(guest->random++);
}

struct guest_write {
    uint32_t offset;
    uint32_t len;
    uint8_t bytes[DE_PAGE_SIZE];
};

static void fill(uint8_t *bytes, uint32_t len, uint64_t key)
{
    for (uint32_t i = 0; i < len; i += 8) {
        uint64_t word = mix(key + i);
        memcpy(bytes + i, &word, len - i < 8 ? len - i : 8);
    }
}

/* Write number @p number of a page, the same each time it is asked for. */
static void make_write(const struct de_guest *guest, uint32_t page, uint32_t number,
                       struct guest_write *write)
{
    uint64_t key = mix(mix(guest->options.seed ^ 0x5eed) + ((uint64_t)page << 32 | number));
    write->offset = 0;
    write->len = DE_PAGE_SIZE;
    if (number % REWRITE != REWRITE - 1) {
        write->offset = (uint32_t)(key % DE_PAGE_SIZE);
        write->len = 1 + (uint32_t)(key >> 32) % MAX_WRITE_BYTES;
        if (write->len > DE_PAGE_SIZE - write->offset)
            write->len = DE_PAGE_SIZE - write->offset;
    }
    fill(write->bytes, write->len, key);
}

static void expected_page(const struct de_guest *guest, uint32_t page, uint8_t *expected)
{
    uint32_t writes = guest->writes[page];
    const uint8_t *image = guest->options.content[page];
    if (image)
        memcpy(expected, image, DE_PAGE_SIZE);
    else
        memset(expected, 0, DE_PAGE_SIZE);
    /* Nothing before the last rewrite of the whole page matters. */
    uint32_t number = writes >= REWRITE ? writes / REWRITE * REWRITE - 1 : 0;
    for (; number < writes; number++) {
        struct guest_write write;
        make_write(guest, page, number, &write);
        memcpy(expected + write.offset, write.bytes, write.len);
    }
}

static int read_and_check(struct de_guest *guest, uint32_t page)
{
    uint8_t found[DE_PAGE_SIZE];
    uint8_t expected[DE_PAGE_SIZE];
    int error = de_machine_guest_read(guest->vcpu, guest->options.first_gfn + page, 0, found, DE_PAGE_SIZE);
    if (error)
        return error;
    guest->result.reads++;
    expected_page(guest, page, expected);
    if (memcmp(found, expected, DE_PAGE_SIZE) == 0)
        return 0;
    for (size_t i = 0; i < DE_PAGE_SIZE; i++)
        guest->result.wrong_bytes += found[i] != expected[i];
    return 0;
}

static int write_page(struct de_guest *guest, uint32_t page)
{
    struct guest_write write;
    make_write(guest, page, guest->writes[page], &write);
    int error = de_machine_guest_write(guest->vcpu, guest->options.first_gfn + page, write.offset,
                                       write.bytes, write.len);
    if (error)
        return error;
    guest->result.writes++;
    guest->writes[page]++;
    return 0;
}

static void *run(void *argument)
{
    struct de_guest *guest = argument;
    const struct de_guest_options *options = &guest->options;
    uint64_t start_ns = block_now_ns();
    int error = 0;
    for (uint64_t i = 0; i < options->operations && !error && !atomic_load(&guest->stop); i++) {
        uint32_t page = (uint32_t)(next_random(guest) % options->gfns);
        bool write = (double)(next_random(guest) >> 11) * 0x1p-53 < options->write_fraction;
        error = write ? write_page(guest, page) : read_and_check(guest, page);
        atomic_store_explicit(&guest->progress, i + 1, memory_order_relaxed);
    }
    guest->result.run_ns = block_now_ns() - start_ns;
    /* Stopped out of a wait: that was asked for. */
    guest->result.status = error == -EINTR ? 0 : error;
    return NULL;
}

static void guest_free(struct de_guest *guest)
{
    de_vcpu_free(guest->vcpu);
    free(guest->writes);
    free(guest->samples_ns);
    free((void *)guest->options.content);
    free(guest);
}

static int copy_options(struct de_guest *guest, const struct de_guest_options *options)
{
    guest->options = *options;
    const uint8_t **content = malloc(options->gfns * sizeof *content);
    guest->options.content = content;
    guest->writes = calloc(options->gfns, sizeof *guest->writes);
    size_t samples = options->sample_capacity ? options->sample_capacity : 1;
    guest->samples_ns = malloc(samples * sizeof *guest->samples_ns);
    if (!content || !guest->writes || !guest->samples_ns)
        return -ENOMEM;
    memcpy(content, options->content, options->gfns * sizeof *content);
    return 0;
}

int de_guest_start(struct de_machine *machine, uint16_t domain, const struct de_guest_options *options,
                   struct de_guest **result)
{
    if (!options->gfns || !(options->write_fraction >= 0.0 && options->write_fraction <= 1.0))
        return -EINVAL;
    struct de_guest *guest = calloc(1, sizeof *guest);
    if (!guest)
        return -ENOMEM;
    int error = copy_options(guest, options);
    if (!error)
        error = de_vcpu_create(machine, domain, &guest->vcpu);
    if (!error && (uint64_t)options->first_gfn + options->gfns > guest->vcpu->domain->gfns)
        error = -EINVAL;
    if (!error) {
        de_vcpu_sample(guest->vcpu, guest->samples_ns, options->sample_capacity);
        guest->random = mix(options->seed);
        error = -pthread_create(&guest->thread, NULL, run, guest);
    }
    if (error) {
        guest_free(guest);
        return error;
    }
    *result = guest;
    return 0;
}

uint64_t de_guest_progress(const struct de_guest *guest)
{
    return atomic_load_explicit(&guest->progress, memory_order_relaxed);
}

void de_guest_stop(struct de_guest *guest)
{
    atomic_store(&guest->stop, true);
    de_vcpu_kick(guest->vcpu);
}

void de_guest_join(struct de_guest *guest, struct de_guest_result *result, uint64_t *samples_ns)
{
    pthread_join(guest->thread, NULL);
    struct de_vcpu_statistics statistics;
    de_vcpu_statistics(guest->vcpu, &statistics);
    *result = guest->result;
    result->faults = statistics.faults;
    result->cow_breaks = statistics.cow_breaks;
    result->stall_ns = statistics.stall_ns;
    size_t capacity = guest->options.sample_capacity;
    result->samples = statistics.faults < capacity ? (size_t)statistics.faults : capacity;
    if (samples_ns)
        memcpy(samples_ns, guest->samples_ns, result->samples * sizeof *samples_ns);
    guest_free(guest);
}
