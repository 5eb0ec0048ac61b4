/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file virtual_time.h
 * Machine, pager and guest programs in virtual time, beside a program that goes on living in this one: from
 * de_virtual_begin() on, the calling thread is one of the threads that a seed decides between, and what it
 * starts through machine.h, pager.h and program.h are the others.
 *
 * While the caller is not in one of those functions, or in one below, no time passes and nobody else runs.
 * Time passes with the steps that threads make (20 ns each), with what they compute (a fixed time for each
 * kind of work, on a processor of its own for each), when they are woken, on the disk, and while all sleep.
 * The same seed and the same calls give the same run.
 *
 * Only in a build of machine and pager that was made for it (native/simulation). What is defined here may
 * only be called between de_virtual_begin() and de_virtual_end() of the same thread, which ends otherwise.
 * If all threads wait for one another, or spin without end, that is said on stderr and the process aborts.
 */
#ifndef DIFFENGINE_VIRTUAL_TIME_H
#define DIFFENGINE_VIRTUAL_TIME_H

#include <diffengine/swap.h>

/** Threads in virtual time at once, the caller's own included. */
#define DE_VIRTUAL_MAX_THREADS 528u

/** What the run did so far, in a number: equal hashes, equal runs. */
struct de_virtual_trace {
    uint64_t hash;
    uint64_t switches; /**< of threads */
};

/** @return DE_OK, DE_NO_MEMORY, or DE_BUSY: this thread is in virtual time already. */
int de_virtual_begin(uint64_t seed);
/** Machine, pager and programs are freed first; threads that are left end where they stand. */
void de_virtual_end(void);

#define DE_VIRTUAL_DISK_MOST_AT_ONCE 64u

/** Time since de_virtual_begin(). */
uint64_t de_virtual_now_ns(void);
/** Let everybody else run until @p ns of de_virtual_now_ns(). */
void de_virtual_sleep_until(uint64_t ns);
/** The caller computes for so long; everybody else runs meanwhile. */
void de_virtual_work(uint64_t ns);
/**
 * Threads that there are, and what each has computed so far. The caller's number is 1, later ones have higher
 * numbers. @return how many, at most @p capacity.
 */
size_t de_virtual_threads(uint64_t *numbers, uint64_t *cpu_ns, size_t capacity);
void de_virtual_trace(struct de_virtual_trace *trace);
/**
 * A disk for de_swap_open(): real files, in virtual time. There is one: another call makes another of it.
 * @param read_ns To read a page. @param write_ns To write one. 0: those of the model.
 * @param at_once How many requests it serves at once, 1 for a disk with heads; the others wait for their
 * turn. 0 or more than DE_VIRTUAL_DISK_MOST_AT_ONCE: as many as that.
 */
const struct de_swap_disk *de_virtual_disk(uint64_t read_ns, uint64_t write_ns, unsigned at_once);

#endif
