/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "block.h"

#include <errno.h>
#include <sched.h>
#include <time.h>

#define NS_PER_S 1000000000u

int wait_queue_init(struct wait_queue *queue)
{
    pthread_condattr_t attributes;
    int error = pthread_condattr_init(&attributes);
    if (error)
        return -error;
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    error = pthread_cond_init(&queue->condition, &attributes);
    pthread_condattr_destroy(&attributes);
    return -error;
}

void wait_queue_destroy(struct wait_queue *queue)
{
    pthread_cond_destroy(&queue->condition);
}

void block_on(struct wait_queue *queue, pthread_mutex_t *lock)
{
    pthread_cond_wait(&queue->condition, lock);
}

bool block_until(struct wait_queue *queue, pthread_mutex_t *lock, uint64_t deadline_ns)
{
    if (deadline_ns == BLOCK_FOREVER) {
        block_on(queue, lock);
        return true;
    }
    struct timespec deadline = {
        .tv_sec = (time_t)(deadline_ns / NS_PER_S),
        .tv_nsec = (long)(deadline_ns % NS_PER_S),
    };
    return pthread_cond_timedwait(&queue->condition, lock, &deadline) != ETIMEDOUT;
}

void block_wake(struct wait_queue *queue)
{
    pthread_cond_broadcast(&queue->condition);
}

void block_yield(void)
{
    sched_yield();
}

uint64_t block_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

int block_thread_start(pthread_t *thread, void *(*run)(void *), void *argument)
{
    return -pthread_create(thread, NULL, run, argument);
}

void block_thread_join(pthread_t thread)
{
    pthread_join(thread, NULL);
}
