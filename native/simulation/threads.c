/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Threads, locks and the clock as the simulated processes see them. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "../core/futex.h"
#include "replacements.h"

#include <diffengine/page.h>
#include <errno.h>
#include <sched.h>

#define NS_PER_S 1000000000u

/* NULL: the real thing is meant. */
static struct scheduler *simulated(void)
{
    struct scheduler *scheduler = scheduler_of_thread();
    return scheduler && scheduler->current ? scheduler : NULL;
}

int simulation_mutex_lock(pthread_mutex_t *mutex)
{
    struct scheduler *scheduler = simulated();
    if (!scheduler)
        return pthread_mutex_lock(mutex);
    simulation_point();
    while (pthread_mutex_trylock(mutex))
        scheduler_wait(scheduler, mutex, FOREVER);
    return 0;
}

int simulation_mutex_unlock(pthread_mutex_t *mutex)
{
    struct scheduler *scheduler = simulated();
    int error = pthread_mutex_unlock(mutex);
    if (scheduler) {
        scheduler_wake(scheduler, mutex, true);
        simulation_point();
    }
    return error;
}

/* Nobody runs between the unlock and the wait, as with a real condition. */
static bool wait_unlocked(struct scheduler *scheduler, const void *condition, pthread_mutex_t *mutex,
                          uint64_t deadline_ns)
{
    pthread_mutex_unlock(mutex);
    scheduler_wake(scheduler, mutex, true);
    bool woken = scheduler_wait(scheduler, condition, deadline_ns);
    if (woken && scheduler->models_work)
        scheduler_sleep(scheduler, SIMULATION_WAKE_NS);
    while (pthread_mutex_trylock(mutex))
        scheduler_wait(scheduler, mutex, FOREVER);
    return woken;
}

int simulation_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
{
    struct scheduler *scheduler = simulated();
    if (!scheduler)
        return pthread_cond_wait(condition, mutex);
    wait_unlocked(scheduler, condition, mutex, FOREVER);
    return 0;
}

int simulation_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex,
                              const struct timespec *deadline)
{
    struct scheduler *scheduler = simulated();
    if (!scheduler)
        return pthread_cond_timedwait(condition, mutex, deadline);
    uint64_t deadline_ns = (uint64_t)deadline->tv_sec * NS_PER_S + (uint64_t)deadline->tv_nsec;
    return wait_unlocked(scheduler, condition, mutex, deadline_ns) ? 0 : ETIMEDOUT;
}

int simulation_cond_signal(pthread_cond_t *condition)
{
    struct scheduler *scheduler = simulated();
    if (scheduler)
        scheduler_wake(scheduler, condition, false);
    return scheduler ? 0 : pthread_cond_signal(condition);
}

int simulation_cond_broadcast(pthread_cond_t *condition)
{
    struct scheduler *scheduler = simulated();
    if (scheduler)
        scheduler_wake(scheduler, condition, true);
    return scheduler ? 0 : pthread_cond_broadcast(condition);
}

int simulation_thread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                             void *argument)
{
    struct scheduler *scheduler = simulated();
    if (!scheduler)
        return pthread_create(thread, attributes, run, argument);
    struct fiber *fiber = scheduler_spawn(scheduler, scheduler->current->process, "thread", run, argument);
    if (!fiber)
        return EAGAIN;
    *thread = (pthread_t)fiber->number;
    return 0;
}

int simulation_thread_join(pthread_t thread, void **result)
{
    struct scheduler *scheduler = simulated();
    if (!scheduler)
        return pthread_join(thread, result);
    for (size_t i = 0; i < scheduler->fiber_limit; i++) {
        struct fiber *fiber = &scheduler->fibers[i];
        while (fiber->state != FIBER_FREE && fiber->number == (uint64_t)thread)
            scheduler_wait(scheduler, fiber, FOREVER);
    }
    if (result)
        *result = NULL;
    return 0;
}

int simulation_sched_yield(void)
{
    struct scheduler *scheduler = simulated();
    if (!scheduler)
        return sched_yield();
    scheduler_yield(scheduler);
    return 0;
}

int simulation_clock_gettime(clockid_t clock, struct timespec *now)
{
    struct scheduler *scheduler = simulated();
    if (!scheduler)
        return clock_gettime(clock, now);
    uint64_t now_ns = scheduler_now(scheduler);
    now->tv_sec = (time_t)(now_ns / NS_PER_S);
    now->tv_nsec = (long)(now_ns % NS_PER_S);
    return 0;
}

int simulation_nanosleep(const struct timespec *duration, struct timespec *left)
{
    struct scheduler *scheduler = simulated();
    if (!scheduler)
        return nanosleep(duration, left);
    scheduler_sleep(scheduler, (uint64_t)duration->tv_sec * NS_PER_S + (uint64_t)duration->tv_nsec);
    return 0;
}

/* A process has the word at an address of its own, but all have it at the same place of a page. Who is woken
 * for another table's sake looks, and sleeps on. */
static const void *futex_key(const volatile void *word)
{
    return (const void *)(1 + (uintptr_t)word % DE_PAGE_SIZE);
}

int simulation_futex_wait(const volatile void *word, uint32_t value, const struct timespec *timeout)
{
    struct scheduler *scheduler = simulated();
    if (!scheduler)
        return futex_wait(word, value, timeout);
    simulation_point();
    if (*(const volatile uint32_t *)word != value) {
        errno = EAGAIN;
        return -1;
    }
    uint64_t deadline_ns = FOREVER;
    if (timeout)
        deadline_ns =
            scheduler_now(scheduler) + (uint64_t)timeout->tv_sec * NS_PER_S + (uint64_t)timeout->tv_nsec;
    if (scheduler_wait(scheduler, futex_key(word), deadline_ns))
        return 0;
    errno = ETIMEDOUT;
    return -1;
}

void simulation_futex_wake(const volatile void *word)
{
    struct scheduler *scheduler = simulated();
    if (scheduler)
        scheduler_wake(scheduler, futex_key(word), true);
    else
        futex_wake(word);
}
