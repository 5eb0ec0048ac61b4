/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "scheduler.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POINT_NS 100u
#define CHANGE_NS 200u
/** A run makes progress within so many changes. */
#define SPINS 4000000u
#define NS_PER_MS 1000000u
#define NEVER INT64_MAX
#define PREEMPTED_NS 60000u
#define PREEMPTION_TURNS 512u
#define EXCHANGE_TURNS 4u

_Thread_local int64_t simulation_countdown;
static _Thread_local struct scheduler *thread_scheduler;

struct scheduler *scheduler_of_thread(void)
{
    return thread_scheduler;
}

static void make_runnable(struct scheduler *scheduler, struct fiber *fiber)
{
    fiber->state = FIBER_RUNNABLE;
    fiber->waits_for = NULL;
    fiber->runnable_index = scheduler->runnable_count;
    scheduler->runnable[scheduler->runnable_count++] = fiber;
}

static void take_off(struct scheduler *scheduler, struct fiber *fiber)
{
    struct fiber *last = scheduler->runnable[--scheduler->runnable_count];
    scheduler->runnable[fiber->runnable_index] = last;
    last->runnable_index = fiber->runnable_index;
}

static void to_scheduler(struct scheduler *scheduler, bool final)
{
    struct fiber *fiber = scheduler->current;
    fiber_switch(&fiber->context, &scheduler->home, final);
}

static void fiber_main(void)
{
    fiber_entered();
    struct scheduler *scheduler = thread_scheduler;
    struct fiber *fiber = scheduler->current;
    fiber->run(fiber->argument);
    scheduler_exit(scheduler);
}

struct scheduler *scheduler_create(uint64_t seed, uint32_t gap)
{
    struct scheduler *scheduler = calloc(1, sizeof *scheduler);
    if (!scheduler)
        return NULL;
    scheduler->random.state = simulation_mix(seed);
    scheduler->gap = gap ? gap : 1;
    scheduler->point_ns = POINT_NS;
    scheduler->change_ns = CHANGE_NS;
    scheduler->next_deadline_ns = FOREVER;
    scheduler->limit_ns = FOREVER;
    scheduler->spins = scheduler->spins_left = SPINS;
    thread_scheduler = scheduler;
    simulation_countdown = NEVER;
    return scheduler;
}

void scheduler_free(struct scheduler *scheduler)
{
    for (size_t i = 0; i < scheduler->fiber_limit; i++)
        fiber_destroy(&scheduler->fibers[i].context);
    fiber_destroy(&scheduler->home);
    for (int process = 0; process < PROCESSES; process++)
        resources_free(scheduler, (enum process)process);
    thread_scheduler = NULL;
    simulation_countdown = 0;
    free(scheduler);
}

struct fiber *scheduler_spawn(struct scheduler *scheduler, enum process process, const char *name,
                              void *(*run)(void *), void *argument)
{
    size_t place = 0;
    while (place < MAX_FIBERS &&
           (scheduler->fibers[place].state != FIBER_FREE || &scheduler->fibers[place] == scheduler->current))
        place++;
    if (place == MAX_FIBERS)
        return NULL;
    struct fiber *fiber = &scheduler->fibers[place];
    struct fiber_context context = fiber->context;
    if (context.stack)
        fiber_restart(&context, fiber_main);
    else if (!fiber_create(&context, fiber_main))
        return NULL;
    *fiber = (struct fiber){
        .context = context,
        .process = process,
        .owner = process,
        .number = ++scheduler->next_number,
        .wake_ns = FOREVER,
        .run = run,
        .argument = argument,
        .name = name,
    };
    if (place >= scheduler->fiber_limit)
        scheduler->fiber_limit = place + 1;
    make_runnable(scheduler, fiber);
    return fiber;
}

struct fiber *scheduler_adopt(struct scheduler *scheduler, enum process process, const char *name)
{
    struct fiber *fiber = &scheduler->fibers[0];
    *fiber = (struct fiber){
        .process = process,
        .owner = process,
        .number = ++scheduler->next_number,
        .wake_ns = FOREVER,
        .name = name,
    };
    scheduler->fiber_limit = 1;
    make_runnable(scheduler, fiber);
    return fiber;
}

/* Uniform on 1 .. 2 * gap - 1. */
static int64_t draw_gap(struct scheduler *scheduler)
{
    return 1 + random_below(&scheduler->random, 2 * scheduler->gap - 1);
}

static void dispatch(struct scheduler *scheduler)
{
    uint32_t chosen = random_below(&scheduler->random, (uint32_t)scheduler->runnable_count);
    struct fiber *fiber = scheduler->runnable[chosen];
    scheduler->switches++;
    scheduler_note(scheduler, fiber->number);
    scheduler->current = fiber;
    scheduler->slice = simulation_countdown = draw_gap(scheduler);
    fiber_switch(&scheduler->home, &fiber->context, false);
    uint64_t points = (uint64_t)(scheduler->slice - simulation_countdown);
    fiber->cpu_ns += scheduler->point_ns * points;
    scheduler->now_ns += scheduler->change_ns + scheduler->point_ns * points;
    simulation_countdown = NEVER;
    scheduler->current = NULL;
}

static void wake_due(struct scheduler *scheduler)
{
    uint64_t next_ns = FOREVER;
    for (size_t i = 0; i < scheduler->fiber_limit; i++) {
        struct fiber *fiber = &scheduler->fibers[i];
        if (fiber->state != FIBER_WAITING || fiber->wake_ns == FOREVER)
            continue;
        if (fiber->wake_ns <= scheduler->now_ns) {
            fiber->timed_out = true;
            fiber->wake_ns = FOREVER;
            make_runnable(scheduler, fiber);
        } else if (fiber->wake_ns < next_ns) {
            next_ns = fiber->wake_ns;
        }
    }
    scheduler->next_deadline_ns = next_ns;
}

static void describe_waiting(struct scheduler *scheduler)
{
    char *text = scheduler->failure;
    size_t used = (size_t)snprintf(text, FAILURE_BYTES, "everybody waits:");
    for (size_t i = 0; i < scheduler->fiber_limit; i++)
        if (scheduler->fibers[i].state == FIBER_WAITING && used < FAILURE_BYTES)
            used += (size_t)snprintf(text + used, FAILURE_BYTES - used, " %s", scheduler->fibers[i].name);
    scheduler->finished = true;
}

void scheduler_run(struct scheduler *scheduler)
{
    while (!scheduler->finished) {
        if (scheduler->now_ns >= scheduler->next_deadline_ns)
            wake_due(scheduler);
        if (scheduler->now_ns > scheduler->limit_ns)
            scheduler_fail(scheduler, "not over after %llu ms",
                           (unsigned long long)(scheduler->limit_ns / NS_PER_MS));
        if (scheduler->runnable_count) {
            if (!--scheduler->spins_left)
                scheduler_fail(scheduler, "%llu changes of fibers and nothing got done",
                               (unsigned long long)scheduler->spins);
            dispatch(scheduler);
        } else if (scheduler->next_deadline_ns != FOREVER) {
            scheduler->now_ns = scheduler->next_deadline_ns;
        } else {
            describe_waiting(scheduler);
        }
    }
}

void scheduler_finish(struct scheduler *scheduler)
{
    scheduler->finished = true;
}

void scheduler_progress(struct scheduler *scheduler)
{
    scheduler->spins_left = scheduler->spins;
}

void scheduler_fail(struct scheduler *scheduler, const char *format, ...)
{
    if (!scheduler->failure[0]) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(scheduler->failure, FAILURE_BYTES, format, arguments);
        va_end(arguments);
    }
    scheduler->finished = true;
    if (scheduler->current)
        scheduler_exit(scheduler);
}

/* Now and then another program has the processor for long: what comes at the worst moment then has time to
 * happen as a whole. A run that models what things take has none of it. */
static void give_way(struct scheduler *scheduler, uint32_t turns)
{
    if (!scheduler->models_work && !scheduler->quiet && random_below(&scheduler->random, turns) == 0)
        scheduler_sleep(scheduler, random_below(&scheduler->random, PREEMPTED_NS));
    else
        scheduler_yield(scheduler);
}

void simulation_reschedule(void)
{
    give_way(thread_scheduler, PREEMPTION_TURNS);
}

bool simulation_exchanged(bool done)
{
    struct scheduler *scheduler = thread_scheduler;
    if (!done && scheduler && scheduler->current && random_below(&scheduler->random, 2))
        give_way(scheduler, EXCHANGE_TURNS);
    return done;
}

void scheduler_yield(struct scheduler *scheduler)
{
    if (scheduler->quiet)
        return;
    to_scheduler(scheduler, false);
}

void scheduler_sleep(struct scheduler *scheduler, uint64_t ns)
{
    (void)scheduler_wait(scheduler, &scheduler->now_ns, scheduler_now(scheduler) + ns);
}

void scheduler_work(struct scheduler *scheduler, uint64_t ns)
{
    scheduler->current->cpu_ns += ns;
    scheduler_sleep(scheduler, ns);
}

bool scheduler_wait(struct scheduler *scheduler, const void *key, uint64_t deadline_ns)
{
    struct fiber *fiber = scheduler->current;
    if (scheduler->quiet)
        scheduler_fail(scheduler, "%s waits where nobody else may run", fiber->name);
    take_off(scheduler, fiber);
    fiber->state = FIBER_WAITING;
    fiber->waits_for = key;
    fiber->wake_ns = deadline_ns;
    fiber->timed_out = false;
    if (deadline_ns < scheduler->next_deadline_ns)
        scheduler->next_deadline_ns = deadline_ns;
    to_scheduler(scheduler, false);
    return !fiber->timed_out;
}

static void wake_fiber(struct scheduler *scheduler, struct fiber *fiber)
{
    fiber->wake_ns = FOREVER;
    make_runnable(scheduler, fiber);
}

void scheduler_wake(struct scheduler *scheduler, const void *key, bool all)
{
    struct fiber *chosen = NULL;
    uint32_t found = 0;
    for (size_t i = 0; i < scheduler->fiber_limit; i++) {
        struct fiber *fiber = &scheduler->fibers[i];
        if (fiber->state != FIBER_WAITING || fiber->waits_for != key)
            continue;
        if (all)
            wake_fiber(scheduler, fiber);
        else if (random_below(&scheduler->random, ++found) == 0)
            chosen = fiber;
    }
    if (chosen)
        wake_fiber(scheduler, chosen);
}

static void end(struct scheduler *scheduler, struct fiber *fiber)
{
    if (fiber->state == FIBER_RUNNABLE)
        take_off(scheduler, fiber);
    fiber->state = FIBER_FREE;
    /* Whoever joins it, or waits for its process to be gone. */
    scheduler_wake(scheduler, fiber, true);
}

void scheduler_exit(struct scheduler *scheduler)
{
    scheduler->quiet = 0;
    end(scheduler, scheduler->current);
    to_scheduler(scheduler, true);
    __builtin_unreachable();
}

bool scheduler_alive(const struct scheduler *scheduler, uint64_t number)
{
    for (size_t i = 0; i < scheduler->fiber_limit; i++)
        if (scheduler->fibers[i].state != FIBER_FREE && scheduler->fibers[i].number == number)
            return true;
    return false;
}

void scheduler_quiet(struct scheduler *scheduler, bool quiet)
{
    if (quiet && scheduler->quiet++ == 0) {
        scheduler->saved_countdown = simulation_countdown;
        simulation_countdown = NEVER;
    }
    if (!quiet && --scheduler->quiet == 0)
        simulation_countdown = scheduler->saved_countdown;
}

void scheduler_kill(struct scheduler *scheduler, enum process process)
{
    /* Those in a hypercall get to its end. */
    for (size_t i = 0; i < scheduler->fiber_limit; i++) {
        struct fiber *fiber = &scheduler->fibers[i];
        if (fiber->state == FIBER_FREE || fiber->process != process)
            continue;
        if (fiber->in_hypercall)
            fiber->doomed = true;
        else
            end(scheduler, fiber);
    }
}

void scheduler_bury(struct scheduler *scheduler, enum process process)
{
    for (size_t i = 0; i < scheduler->fiber_limit; i++)
        while (scheduler->fibers[i].state != FIBER_FREE && scheduler->fibers[i].process == process)
            scheduler_wait(scheduler, &scheduler->fibers[i], FOREVER);
    resources_free(scheduler, process);
}

void scheduler_enter_hypercall(struct scheduler *scheduler)
{
    simulation_point();
    scheduler->current->in_hypercall = true;
    scheduler->current->owner = PROCESS_MACHINE;
}

void scheduler_leave_hypercall(struct scheduler *scheduler)
{
    struct fiber *fiber = scheduler->current;
    fiber->in_hypercall = false;
    fiber->owner = fiber->process;
    if (fiber->doomed)
        scheduler_exit(scheduler);
    simulation_point();
}
