/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guest programs: what each kind does, and how one is started, watched and ended. */
#include "program_internal.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ZIPF 4.0

void program_count(_Atomic(uint64_t) *counter, uint64_t change)
{
    atomic_fetch_add_explicit(counter, change, memory_order_relaxed);
}

uint32_t program_gfn(const struct de_program *program, uint32_t page)
{
    return program->options.first_gfn + page;
}

int program_read_page(struct de_program *program, uint32_t page, const uint8_t *expected)
{
    uint8_t found[DE_PAGE_SIZE];
    int error = de_machine_guest_read(program->vcpu, program_gfn(program, page), 0, found, DE_PAGE_SIZE);
    if (error)
        return error;
    program_count(&program->reads, 1);
    program_count(&program->wrong_bytes, count_wrong(found, expected));
    return 0;
}

static int read_logged(struct de_program *program, uint32_t page)
{
    uint8_t expected[DE_PAGE_SIZE];
    page_log_expected(&program->log, page, expected);
    return program_read_page(program, page, expected);
}

static int write_logged(struct de_program *program, uint32_t page)
{
    struct page_write write;
    page_log_next(&program->log, page, &write);
    int error = de_machine_guest_write(program->vcpu, program_gfn(program, page), write.offset, write.bytes,
                                       write.len);
    if (error)
        return error;
    program_count(&program->writes, 1);
    page_log_wrote(&program->log, page);
    return 0;
}

static int run_working_set(struct de_program *program)
{
    for (;;) {
        int error = program_sleep_until(program, program_next_ns(program));
        if (error)
            return error;
        uint32_t page = program_choose(program);
        bool write = program_chance(program) < program->options.write_fraction;
        error = write ? write_logged(program, page) : read_logged(program, page);
        if (error)
            return error;
        program_paced(program);
    }
}

/* The pages that a bitmap names, each once, in order of their first bit. */
static void collect_due(struct de_program *program, uint32_t interval)
{
    const struct de_program_options *options = &program->options;
    const uint8_t *bits = options->bits + (size_t)(interval % options->maps) * (options->bits_per_map / 8);
    uint8_t *seen = program->seen;
    memset(seen, 0, options->gfns / 8 + 1);
    program->due_count = program->due_done = 0;
    for (uint32_t bit = 0; bit < options->bits_per_map; bit++) {
        if (!(bits[bit / 8] >> bit % 8 & 1))
            continue;
        uint32_t page = bit % options->gfns;
        if (seen[page / 8] >> page % 8 & 1)
            continue;
        seen[page / 8] |= (uint8_t)(1u << page % 8);
        program->due[program->due_count++] = page;
    }
}

/* Reads and this interval's writes, whichever is due first. */
static int run_interval(struct de_program *program, uint64_t begin_ns)
{
    uint64_t length_ns = program->options.interval_ns;
    while (program->due_done < program->due_count || block_now_ns() < begin_ns + length_ns) {
        uint64_t read_ns = program_next_ns(program);
        uint64_t write_ns = begin_ns + length_ns;
        if (program->due_done < program->due_count)
            write_ns = begin_ns + (uint64_t)((double)length_ns * program->due_done / program->due_count);
        bool write = write_ns <= read_ns;
        int error = program_sleep_until(program, write ? write_ns : read_ns);
        if (error)
            return error;
        if (write && program->due_done == program->due_count)
            continue;
        error = write ? write_logged(program, program->due[program->due_done++])
                      : read_logged(program, program_choose(program));
        if (error)
            return error;
        if (!write)
            program_paced(program);
    }
    return 0;
}

static int run_trace(struct de_program *program)
{
    for (uint32_t interval = 0;; interval++) {
        atomic_store_explicit(&program->phase, interval + 1, memory_order_relaxed);
        collect_due(program, interval);
        int error = run_interval(program, program->start_ns + interval * program->options.interval_ns);
        if (error)
            return error;
    }
}

static int run_kind(struct de_program *program)
{
    switch (program->options.kind) {
    case DE_PROGRAM_WORKING_SET:
        return run_working_set(program);
    case DE_PROGRAM_PHASES:
        return generator_run(program);
    case DE_PROGRAM_TRACE:
        return run_trace(program);
    default:
        return program_sleep_until(program, BLOCK_FOREVER);
    }
}

static void *run(void *argument)
{
    struct de_program *program = argument;
    int error = run_kind(program);
    /* Stopped out of a wait: that was asked for. */
    atomic_store(&program->status, error == -EINTR ? 0 : error);
    atomic_store(&program->end_ns, block_now_ns());
    return NULL;
}

static bool fraction(double value)
{
    return value >= 0.0 && value <= 1.0;
}

static bool hot_set_valid(const struct de_program_options *options)
{
    if (!options->hot_count || !options->hot)
        return false;
    for (uint32_t i = 0; i < options->hot_count; i++)
        if (options->hot[i] >= options->gfns)
            return false;
    return options->zipf >= 0.0 && options->zipf <= MAX_ZIPF && fraction(options->excursion_fraction) &&
           fraction(options->write_fraction);
}

static bool trace_valid(const struct de_program_options *options)
{
    return options->bits && options->maps && options->bits_per_map && options->bits_per_map % 8 == 0 &&
           options->interval_ns;
}

static bool valid(const struct de_program_options *options)
{
    if (!options->gfns || !(options->operations_per_s >= 0.0) || isinf(options->operations_per_s))
        return false;
    switch (options->kind) {
    case DE_PROGRAM_IDLE:
        return true;
    case DE_PROGRAM_WORKING_SET:
        return hot_set_valid(options);
    case DE_PROGRAM_PHASES:
        return options->generated >= DE_GENERATED_ZERO && options->generated <= DE_GENERATED_WORDS &&
               options->similar_percent <= 100 && options->free_as >= DE_FREE_KEEP &&
               options->free_as <= DE_FREE_RELEASE;
    case DE_PROGRAM_TRACE:
        return hot_set_valid(options) && trace_valid(options);
    default:
        return false;
    }
}

/* Cumulative popularity of the hot pages, so that one random number and a binary search choose one. */
static int popularity_create(struct de_program *program)
{
    const struct de_program_options *options = &program->options;
    uint32_t *hot = malloc(options->hot_count * sizeof *hot);
    program->popularity = malloc(options->hot_count * sizeof *program->popularity);
    if (hot)
        memcpy(hot, options->hot, options->hot_count * sizeof *hot);
    program->options.hot = hot;
    if (!hot || !program->popularity)
        return -ENOMEM;
    double total = 0;
    for (uint32_t rank = 0; rank < options->hot_count; rank++) {
        total += pow(rank + 1.0, -options->zipf);
        program->popularity[rank] = total;
    }
    for (uint32_t rank = 0; rank < options->hot_count; rank++)
        program->popularity[rank] /= total;
    return 0;
}

static int tables_create(struct de_program *program, const struct de_program_options *options)
{
    program->options = *options;
    program->generator = (struct generator){
        .kind = options->generated,
        .similar_percent = options->similar_percent,
        .seed = options->seed,
    };
    program->options.hot = NULL;
    bool chooses = options->kind == DE_PROGRAM_WORKING_SET || options->kind == DE_PROGRAM_TRACE;
    int error = page_log_create(&program->log, options->seed, options->content, options->gfns);
    if (!error && chooses) {
        program->options.hot = options->hot;
        error = popularity_create(program);
    }
    size_t samples = options->sample_capacity ? options->sample_capacity : 1;
    program->samples_ns = calloc(samples, sizeof *program->samples_ns);
    program->due = malloc((options->kind == DE_PROGRAM_TRACE ? options->gfns : 1) * sizeof *program->due);
    program->seen = malloc(options->gfns / 8 + 1);
    return !program->samples_ns || !program->due || !program->seen ? -ENOMEM : error;
}

static void program_free(struct de_program *program)
{
    de_vcpu_free(program->vcpu);
    page_log_free(&program->log);
    free((void *)program->options.hot);
    free(program->popularity);
    free(program->due);
    free(program->seen);
    free(program->samples_ns);
    wait_queue_destroy(&program->wake);
    pthread_mutex_destroy(&program->lock);
    free(program);
}

static int attach(struct de_program *program, struct de_machine *machine, uint16_t domain)
{
    const struct de_program_options *options = &program->options;
    int error = de_vcpu_create(machine, domain, &program->vcpu);
    if (error)
        return error;
    if ((uint64_t)options->first_gfn + options->gfns > program->vcpu->domain->gfns)
        return -EINVAL;
    de_vcpu_sample(program->vcpu, program->samples_ns, options->sample_capacity);
    program->random = mix(options->seed);
    program->start_ns = program->paced_since_ns = block_now_ns();
    return block_thread_start(&program->thread, run, program);
}

int de_program_start(struct de_machine *machine, uint16_t domain, const struct de_program_options *options,
                     struct de_program **result)
{
    if (!valid(options))
        return -EINVAL;
    struct de_program *program = calloc(1, sizeof *program);
    if (!program)
        return -ENOMEM;
    int error = wait_queue_init(&program->wake);
    if (error) {
        free(program);
        return error;
    }
    pthread_mutex_init(&program->lock, NULL);
    error = tables_create(program, options);
    if (!error)
        error = attach(program, machine, domain);
    if (error) {
        program_free(program);
        return error;
    }
    *result = program;
    return 0;
}

void de_program_read(const struct de_program *program, struct de_program_result *result)
{
    struct de_vcpu_statistics statistics;
    de_vcpu_statistics(program->vcpu, &statistics);
    uint64_t end_ns = atomic_load(&program->end_ns);
    size_t capacity = program->options.sample_capacity;
    *result = (struct de_program_result){
        .status = atomic_load(&program->status),
        .phase = atomic_load_explicit(&program->phase, memory_order_relaxed),
        .reads = atomic_load_explicit(&program->reads, memory_order_relaxed),
        .writes = atomic_load_explicit(&program->writes, memory_order_relaxed),
        .releases = atomic_load_explicit(&program->releases, memory_order_relaxed),
        .wrong_bytes = atomic_load_explicit(&program->wrong_bytes, memory_order_relaxed),
        .faults = statistics.faults,
        .cow_breaks = statistics.cow_breaks,
        .stall_ns = statistics.stall_ns,
        .run_ns = (end_ns ? end_ns : block_now_ns()) - program->start_ns,
        .samples = statistics.faults < capacity ? (size_t)statistics.faults : capacity,
    };
}

void de_program_stop(struct de_program *program)
{
    pthread_mutex_lock(&program->lock);
    program->stopping = true;
    block_wake(&program->wake);
    pthread_mutex_unlock(&program->lock);
    de_vcpu_kick(program->vcpu);
}

void de_program_join(struct de_program *program, struct de_program_result *result, uint64_t *samples_ns)
{
    block_thread_join(program->thread);
    de_program_read(program, result);
    if (samples_ns)
        memcpy(samples_ns, program->samples_ns, result->samples * sizeof *samples_ns);
    program_free(program);
}
