/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file block.h
 * Every place where a thread of the machine may wait, and its clock. A scheduler that decides all
 * interleavings in virtual time replaces block.c and nothing else.
 */
#ifndef DIFFENGINE_MACHINE_BLOCK_H
#define DIFFENGINE_MACHINE_BLOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define BLOCK_FOREVER UINT64_MAX

struct wait_queue {
    pthread_cond_t condition;
};

/** 0 or a negative errno value. */
int wait_queue_init(struct wait_queue *queue);
void wait_queue_destroy(struct wait_queue *queue);

/** Sleep until woken (or spuriously): the caller checks its condition again. @p lock is held before and
 * after. */
void block_on(struct wait_queue *queue, pthread_mutex_t *lock);
/** The same until @p deadline_ns of block_now_ns(), or BLOCK_FOREVER. @return false: the deadline passed. */
bool block_until(struct wait_queue *queue, pthread_mutex_t *lock, uint64_t deadline_ns);
/** Wake all sleepers; the lock is held. */
void block_wake(struct wait_queue *queue);

/** Let a vCPU get on with the copy it is in the middle of: it needs no lock to finish. */
void block_yield(void);

uint64_t block_now_ns(void);

/** A thread of a guest. 0 or a negative errno value. */
int block_thread_start(pthread_t *thread, void *(*run)(void *), void *argument);
void block_thread_join(pthread_t thread);

#endif
