/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file scheduler.h
 * Who runs next, and what time it is: threads of the simulated system are fibers of one thread, and every
 * choice between them comes from a seed.
 *
 * A fiber gives way at points (simulation_point(), about one in `gap` of them) and where it waits. The clock
 * moves with points and changes, and to the next deadline when all wait. Every choice goes into the trace
 * hash, so equal hashes mean equal runs.
 */
#ifndef DIFFENGINE_SIMULATION_SCHEDULER_H
#define DIFFENGINE_SIMULATION_SCHEDULER_H

#include "fiber.h"

#define MAX_FIBERS 528u
#define FOREVER UINT64_MAX
#define FAILURE_BYTES 256u

/** Whose memory, mappings and file descriptors something is: they go with the process. */
enum process {
    PROCESS_WORLD, /**< guests, operator, auditor: those who watch */
    PROCESS_MACHINE,
    PROCESS_PAGER,
    PROCESSES,
    PROCESS_CALLER = PROCESSES /**< the process that this runs in: it sees to what it holds itself */
};

enum fiber_state { FIBER_FREE, FIBER_RUNNABLE, FIBER_WAITING };

struct fiber {
    struct fiber_context context;
    enum fiber_state state;
    enum process process;
    enum process owner;       /**< of what it allocates now: during a hypercall it is the machine */
    bool in_hypercall;        /**< not killed with its process until it comes back */
    bool doomed;              /**< its process died while it was in there */
    uint64_t number;          /**< never used twice in a run */
    const void *waits_for;    /**< woken by scheduler_wake() of the same address */
    const void *waits_inside; /**< the lock it wants back; for a failure's report */
    uint64_t wake_ns;
    bool timed_out;
    uint64_t cpu_ns; /**< what it has computed, by the model */
    size_t runnable_index;
    void *(*run)(void *argument);
    void *argument;
    const char *name;
};

/** splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. */
static inline uint64_t simulation_mix(uint64_t z)
{
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

struct random_stream {
    uint64_t state;
};

static inline uint64_t random_next(struct random_stream *stream)
{
    stream->state += 0x9e3779b97f4a7c15u;
    uint64_t z = stream->state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline uint32_t random_below(struct random_stream *stream, uint32_t limit)
{
    return (uint32_t)((random_next(stream) >> 32) * limit >> 32);
}

struct held_resources;

struct scheduler {
    struct random_stream random;
    uint64_t now_ns;
    uint64_t trace_hash;
    uint64_t switches;
    uint32_t gap;       /**< mean number of points between two changes */
    uint32_t point_ns;  /**< virtual time from one point to the next */
    uint32_t change_ns; /**< for a change of fibers */
    bool models_work;   /**< what is computed between points takes time, and so does waking up */
    int64_t slice;      /**< points that the current fiber was given */
    uint64_t next_deadline_ns;
    uint64_t next_number;
    bool finished;
    char failure[FAILURE_BYTES]; /**< "": none */
    uint64_t spins;              /**< a run makes progress within so many changes */
    uint64_t spins_left;         /**< until it counts as stuck */
    uint64_t limit_ns;           /**< a run that lasts longer gets nowhere */
    int64_t saved_countdown;     /**< while quiet */
    unsigned quiet;              /**< > 0: points are off */
    uint32_t allocation_failures_per_million;
    struct fiber_context home;
    struct fiber *current; /**< NULL: the thread itself */
    size_t runnable_count;
    struct fiber *runnable[MAX_FIBERS];
    size_t fiber_limit; /**< no fiber was ever in this place or a later one */
    struct fiber fibers[MAX_FIBERS];
    struct held_resources *resources[PROCESSES];
};

/** Points left until the next change, of this thread's simulation; outside of one it never gets to 0. */
extern _Thread_local int64_t simulation_countdown;
void simulation_reschedule(void);

/** A place where another fiber may get on. */
static inline void simulation_point(void)
{
    if (--simulation_countdown == 0)
        simulation_reschedule();
}

/** A compare-and-swap that failed gives way half of the time. @return @p done. */
bool simulation_exchanged(bool done);

/** This thread's scheduler, NULL outside of a simulation. */
struct scheduler *scheduler_of_thread(void);

/** NULL: no memory. It becomes the calling thread's, which has none yet. */
struct scheduler *scheduler_create(uint64_t seed, uint32_t gap);
/** Ends all fibers where they stand, and frees what their processes hold. */
void scheduler_free(struct scheduler *scheduler);

/** NULL: none left. */
struct fiber *scheduler_spawn(struct scheduler *scheduler, enum process process, const char *name,
                              void *(*run)(void *), void *argument);
/** The calling thread's own flow of control as a fiber, runnable. There must be no other yet. */
struct fiber *scheduler_adopt(struct scheduler *scheduler, enum process process, const char *name);
/** Run fibers until scheduler_finish(), a failure, or until all wait for one another. */
void scheduler_run(struct scheduler *scheduler);
void scheduler_finish(struct scheduler *scheduler);
/** Something got done: the count that finds runs without progress starts anew. */
void scheduler_progress(struct scheduler *scheduler);
/** Note a failure (the first one counts) and end the run. From a fiber it does not return. */
void scheduler_fail(struct scheduler *scheduler, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/** Virtual time now, also between two points. */
static inline uint64_t scheduler_now(const struct scheduler *scheduler)
{
    if (!scheduler->current)
        return scheduler->now_ns;
    int64_t left = scheduler->quiet ? scheduler->saved_countdown : simulation_countdown;
    return scheduler->now_ns + scheduler->point_ns * (uint64_t)(scheduler->slice - left);
}

/* From a fiber: */

/** Let another one run. */
void scheduler_yield(struct scheduler *scheduler);
void scheduler_sleep(struct scheduler *scheduler, uint64_t ns);
/** Compute for so long, on a processor of its own: the others get on meanwhile. */
void scheduler_work(struct scheduler *scheduler, uint64_t ns);
/** Wait to be woken. @return false: @p deadline_ns passed. */
bool scheduler_wait(struct scheduler *scheduler, const void *key, uint64_t deadline_ns);
/** @param all false: only one of them, chosen by the seed. Also from outside of fibers. */
void scheduler_wake(struct scheduler *scheduler, const void *key, bool all);
/** End the calling fiber. */
void scheduler_exit(struct scheduler *scheduler) __attribute__((noreturn));
bool scheduler_alive(const struct scheduler *scheduler, uint64_t number);
/** Points off and on again: nobody else runs between the two. */
void scheduler_quiet(struct scheduler *scheduler, bool quiet);
/**
 * Kill a process: its fibers end where they stand, those in a hypercall when it is over. Not from one of its
 * own fibers.
 */
void scheduler_kill(struct scheduler *scheduler, enum process process);
/** Wait for the fibers of a killed process, then free what it held. */
void scheduler_bury(struct scheduler *scheduler, enum process process);
void scheduler_enter_hypercall(struct scheduler *scheduler);
void scheduler_leave_hypercall(struct scheduler *scheduler);
/** Something for the trace hash. */
static inline void scheduler_note(struct scheduler *scheduler, uint64_t value)
{
    scheduler->trace_hash = simulation_mix(scheduler->trace_hash ^ value);
}

/* resources.c */
void resources_free(struct scheduler *scheduler, enum process process);

#endif
