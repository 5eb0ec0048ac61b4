/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A guest program that knows what it must read: uniform random reads and writes. */
#include "content.h"
#include "internal.h"
#include "page_log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct de_guest {
    struct de_guest_options options;
    struct de_vcpu *vcpu;
    pthread_t thread;
    struct page_log log;
    uint64_t *samples_ns;
    uint64_t random;
    _Atomic(uint64_t) progress;
    atomic_bool stop;
    struct de_guest_result result;
};

static uint64_t next_random(struct de_guest *guest)
{
    return mix(guest->random++);
}

static int read_and_check(struct de_guest *guest, uint32_t page)
{
    uint8_t found[DE_PAGE_SIZE];
    uint8_t expected[DE_PAGE_SIZE];
    int error = de_machine_guest_read(guest->vcpu, guest->options.first_gfn + page, 0, found, DE_PAGE_SIZE);
    if (error)
        return error;
    guest->result.reads++;
    page_log_expected(&guest->log, page, expected);
    guest->result.wrong_bytes += count_wrong(found, expected);
    return 0;
}

static int write_page(struct de_guest *guest, uint32_t page)
{
    struct page_write write;
    page_log_next(&guest->log, page, &write);
    int error = de_machine_guest_write(guest->vcpu, guest->options.first_gfn + page, write.offset,
                                       write.bytes, write.len);
    if (error)
        return error;
    guest->result.writes++;
    page_log_wrote(&guest->log, page);
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
    atomic_store(&guest->progress, options->operations);
    return NULL;
}

static void guest_free(struct de_guest *guest)
{
    de_vcpu_free(guest->vcpu);
    page_log_free(&guest->log);
    free(guest->samples_ns);
    free(guest);
}

static int copy_options(struct de_guest *guest, const struct de_guest_options *options)
{
    guest->options = *options;
    int error = page_log_create(&guest->log, options->seed, options->content, options->gfns);
    size_t samples = options->sample_capacity ? options->sample_capacity : 1;
    guest->samples_ns = malloc(samples * sizeof *guest->samples_ns);
    return !guest->samples_ns ? -ENOMEM : error;
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
        error = block_thread_start(&guest->thread, run, guest);
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
    block_thread_join(guest->thread);
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
