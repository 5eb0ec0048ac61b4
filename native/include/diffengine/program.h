/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file program.h
 * What guests do: programs with one vCPU each, that read and write their domain's memory and check every
 * byte.
 *
 * A program knows what each page must hold without keeping a copy: the content at the start, or the
 * generator's, with its own writes done again (all of which follow from the seed). Several programs may run
 * in one domain if their gfns do not overlap. Functions return 0 or a negative errno value.
 */
#ifndef DIFFENGINE_PROGRAM_H
#define DIFFENGINE_PROGRAM_H

#include <diffengine/machine.h>

enum de_program_kind {
    /** Touches nothing until it is stopped. */
    DE_PROGRAM_IDLE = 0,
    /**
     * Each operation is an excursion with probability excursion_fraction: any of its pages, all equally
     * likely. Otherwise it is of the hot set: hot[rank] with a probability proportional to
     * 1 / (rank + 1)^zipf. It is a write with probability write_fraction, else a read.
     */
    DE_PROGRAM_WORKING_SET = 1,
    /**
     * The paper's generator (section 5.2): allocate, read, write, free all of its pages, in order of gfn,
     * each phase beginning phase_ns after the one before; after the last it touches nothing. Allocating
     * writes a whole page of the kind asked for; writing changes one byte at each of 16 fixed offsets, as one
     * operation.
     */
    DE_PROGRAM_PHASES = 2,
    /**
     * Reads as the working set does, all but those that its write_fraction (unused here) would make writes;
     * writes as a recorded guest did: in interval i, each page with a bit set in bitmap i (bit j: page
     * j % gfns) is written once, spread evenly over interval_ns; after the last bitmap comes the first.
     * Writes come on top of operations_per_s.
     */
    DE_PROGRAM_TRACE = 3,
};

/** What the generator fills pages with. */
enum de_generated_kind {
    DE_GENERATED_ZERO = 0,
    /** All pages alike: 64 random bytes, repeated. */
    DE_GENERATED_IDENTICAL = 1,
    DE_GENERATED_RANDOM = 2,
    /**
     * One random page for all, but in each page 16-byte runs at random multiples of 16 are random: as many as
     * bring it to similar_percent.
     */
    DE_GENERATED_SIMILAR = 3,
    /** Each page its own 16 random words of 16 bytes, in random order: unlike any other, but well
       compressible. */
    DE_GENERATED_WORDS = 4,
};

/** What the generator's last phase does to a page. */
enum de_generated_free {
    DE_FREE_KEEP = 0,    /**< nothing: a guest kernel leaves the content (Linux, by default) */
    DE_FREE_ZERO = 1,    /**< the guest kernel clears it (Linux with init_on_free) */
    DE_FREE_RELEASE = 2, /**< it goes back to the host: a hole (ballooning) */
};

struct de_program_options {
    enum de_program_kind kind;
    uint64_t seed;
    double operations_per_s; /**< 0: as fast as it can. Kept to by sleeping, 1 ms at a time */
    uint32_t first_gfn; /**< it uses gfns first_gfn .. first_gfn + gfns - 1; "page i" is the i-th of them */
    uint32_t gfns;      /**< at least 1 */
    const uint8_t *const
        *content;           /**< gfns addresses: what the pages hold at the start; NULL entries, or NULL
                               itself: zero. Copied; what they point at is unchanged until join. */
    size_t sample_capacity; /**< fault latencies kept, 0: none; the latest replace the oldest */

    /* Working set, trace. */
    const uint32_t
        *hot;           /**< page indices below gfns in order of popularity, the most popular first. Copied */
    uint32_t hot_count; /**< at least 1 */
    double zipf;        /**< 0 (all alike) .. 4 */
    double excursion_fraction; /**< 0 .. 1 */
    double write_fraction;     /**< 0 .. 1 */

    /* Phases. */
    enum de_generated_kind generated;
    uint32_t similar_percent; /**< 0 .. 100 */
    enum de_generated_free free_as;
    uint64_t phase_ns;

    /* Trace. */
    const uint8_t *bits; /**< bitmaps one after the other, little bit order; owned by the caller until join */
    uint32_t bits_per_map; /**< a multiple of 8 */
    uint32_t maps;         /**< at least 1 */
    uint64_t interval_ns;  /**< at least 1 */
};

/** Counters so far. */
struct de_program_result {
    int32_t status; /**< 0, or the negative errno value of the access that ended the program early */
    uint32_t phase; /**< phases: 0 allocate, 1 read, 2 write, 3 free, 4 all done; trace: intervals begun */
    uint64_t reads; /**< each of a whole page, every byte compared */
    uint64_t writes;
    uint64_t releases;
    uint64_t wrong_bytes;
    uint64_t faults;
    uint64_t cow_breaks;
    uint64_t stall_ns; /**< time in those two, also of the one that it is in now */
    uint64_t run_ns;
    size_t samples; /**< fault latencies kept */
};

struct de_program;

/**
 * Start a program on a thread and a vCPU of its own.
 * @return 0, -EINVAL (a range above), -ESRCH, -ENOSPC (DE_MACHINE_MAX_VCPUS), -ENOMEM, -EAGAIN (no thread).
 */
int de_program_start(struct de_machine *machine, uint16_t domain, const struct de_program_options *options,
                     struct de_program **program);
/** Counters up to now; disturbs nobody. Any thread, until join. */
void de_program_read(const struct de_program *program, struct de_program_result *result);
/** Ask it to end soon, also out of an access that waits for ever, and out of a sleep. Any thread. */
void de_program_stop(struct de_program *program);
/**
 * Wait for its end, and free it.
 * @param[out] samples_ns Fault latencies, up to the sample_capacity it was started with; may be NULL.
 */
void de_program_join(struct de_program *program, struct de_program_result *result, uint64_t *samples_ns);

#endif
