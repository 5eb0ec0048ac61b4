/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file program_internal.h
 * A guest program's data: program.c runs it, program_schedule.c says when, program_generate.c runs
 * the generator's phases.
 */
#ifndef DIFFENGINE_MACHINE_PROGRAM_INTERNAL_H
#define DIFFENGINE_MACHINE_PROGRAM_INTERNAL_H

#include "content.h"
#include "internal.h"
#include "page_log.h"

#include <diffengine/program.h>

enum generator_phase { PHASE_ALLOCATE, PHASE_READ, PHASE_WRITE, PHASE_FREE, PHASE_DONE };

struct de_program {
    struct de_program_options options;
    struct generator generator; /**< the phases' pages */
    struct de_vcpu *vcpu;
    pthread_t thread;
    struct page_log log;
    double *popularity; /**< of the hot pages: cumulative, the last is 1 */
    uint32_t *due;      /**< trace: pages to write in this interval */
    uint8_t *seen;      /**< trace: a bit per page */
    uint32_t due_count;
    uint32_t due_done;
    uint64_t *samples_ns;
    uint64_t random;
    uint64_t start_ns;
    uint64_t paced; /**< operations under operations_per_s */
    uint64_t paced_since_ns;

    pthread_mutex_t lock; /**< of stopping and sleeping */
    struct wait_queue wake;
    bool stopping;

    /* Written by the program's thread alone, read by any. */
    _Atomic(uint32_t) phase;
    _Atomic(uint64_t) reads;
    _Atomic(uint64_t) writes;
    _Atomic(uint64_t) releases;
    _Atomic(uint64_t) wrong_bytes;
    _Atomic(uint64_t) end_ns; /**< 0: it runs */
    _Atomic(int32_t) status;
};

/* program_schedule.c: each step of the program's life. 0, -EINTR (to stop) or an access's error. */

/** Sleep until then, or at most @p now. -EINTR: stopped. */
int program_sleep_until(struct de_program *program, uint64_t deadline_ns);
/** When the next operation may begin, in block_now_ns()'s time. */
uint64_t program_next_ns(struct de_program *program);
/** An operation under operations_per_s was done. */
void program_paced(struct de_program *program);
uint64_t program_random(struct de_program *program);
/** 0 .. 1, without 1. */
double program_chance(struct de_program *program);
/** A page of the hot set, or of an excursion. */
uint32_t program_choose(struct de_program *program);

/* program_generate.c */

/** All four phases. */
int generator_run(struct de_program *program);

/* program.c: accesses of its vCPU, counted and checked. */
int program_read_page(struct de_program *program, uint32_t page, const uint8_t *expected);
uint32_t program_gfn(const struct de_program *program, uint32_t page);
void program_count(_Atomic(uint64_t) *counter, uint64_t change);

#endif
