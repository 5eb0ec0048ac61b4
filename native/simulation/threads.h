/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file threads.h
 * Put before each file of machine, pager and store when they are compiled for the simulation: what they ask
 * of threads, clock, memory and atomics goes through the scheduler. Their sources stay as they are.
 *
 * Outside of a simulation (or on a thread that runs none) everything is the real thing. A mutex stays a real
 * one in any case: with one thread it says whether somebody has it, and who finds it taken waits as a fiber.
 */
#ifndef DIFFENGINE_SIMULATION_THREADS_H
#define DIFFENGINE_SIMULATION_THREADS_H

/* The C library has a function of this name, and so has the machine. */
#define unshare unshare_namespaces
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#undef unshare

#include "../core/futex.h"
#include "replacements.h"

#define pthread_mutex_lock(mutex) simulation_mutex_lock(mutex)
#define pthread_mutex_unlock(mutex) simulation_mutex_unlock(mutex)
#define pthread_cond_wait(condition, mutex) simulation_cond_wait(condition, mutex)
#define pthread_cond_timedwait(condition, mutex, deadline)                                                   \
    simulation_cond_timedwait(condition, mutex, deadline)
#define pthread_cond_signal(condition) simulation_cond_signal(condition)
#define pthread_cond_broadcast(condition) simulation_cond_broadcast(condition)
#define pthread_create(thread, attributes, run, argument)                                                    \
    simulation_thread_create(thread, attributes, run, argument)
#define pthread_join(thread, result) simulation_thread_join(thread, result)
#define sched_yield() simulation_sched_yield()
#define clock_gettime(clock, now) simulation_clock_gettime(clock, now)
#define nanosleep(duration, left) simulation_nanosleep(duration, left)
#define futex_wait(word, value, timeout) simulation_futex_wait(word, value, timeout)
#define futex_wake(word) simulation_futex_wake(word)

#define malloc(bytes) simulation_malloc(bytes)
#define calloc(count, bytes) simulation_calloc(count, bytes)
#define realloc(memory, bytes) simulation_realloc(memory, bytes)
#define aligned_alloc(alignment, bytes) simulation_aligned_alloc(alignment, bytes)
#define free(memory) simulation_free(memory)
#define mmap(address, bytes, protection, flags, fd, offset)                                                  \
    simulation_mmap(address, bytes, protection, flags, fd, offset)
#define munmap(address, bytes) simulation_munmap(address, bytes)
#define memfd_create(name, flags) simulation_track(memfd_create(name, flags))
#define open(...) simulation_track(open(__VA_ARGS__))
#define openat(...) simulation_track(openat(__VA_ARGS__))
#define close(fd) simulation_close(fd)
#define fdopendir(fd) simulation_fdopendir(fd)
#define closedir(directory) simulation_closedir(directory)

/* What takes its time although it gives nobody way. */
#define de_decompress_page(context, payload, bytes, page)                                                    \
    simulation_decompress_page(context, payload, bytes, page)
#define de_patch_decode(patch, bytes, reference, page) simulation_patch_decode(patch, bytes, reference, page)
#define de_dense_decode(model, payload, bytes, has_reference, window)                                        \
    simulation_dense_decode(model, payload, bytes, has_reference, window)

/* Contexts of libraries that allocate by themselves. */
#define de_compress_create simulation_compress_create
#define de_compress_free simulation_compress_free
#define EVP_CIPHER_CTX_new simulation_cipher_new
#define EVP_CIPHER_CTX_free simulation_cipher_free

/* Each access of an atomic is a point: what needs no lock is where orders matter most. What an exchange that
 * failed ran into may well be over when its caller looks. */
#undef atomic_load
#define atomic_load(object) (simulation_point(), atomic_load_explicit((object), memory_order_seq_cst))
#undef atomic_store
#define atomic_store(object, value)                                                                          \
    (simulation_point(), atomic_store_explicit((object), (value), memory_order_seq_cst))
#undef atomic_exchange
#define atomic_exchange(object, value)                                                                       \
    (simulation_point(), atomic_exchange_explicit((object), (value), memory_order_seq_cst))
#undef atomic_fetch_add
#define atomic_fetch_add(object, value)                                                                      \
    (simulation_point(), atomic_fetch_add_explicit((object), (value), memory_order_seq_cst))
#undef atomic_fetch_and
#define atomic_fetch_and(object, value)                                                                      \
    (simulation_point(), atomic_fetch_and_explicit((object), (value), memory_order_seq_cst))
#undef atomic_compare_exchange_weak
#define atomic_compare_exchange_weak(object, expected, value)                                                \
    (simulation_point(), simulation_exchanged(atomic_compare_exchange_weak_explicit(                         \
                             (object), (expected), (value), memory_order_seq_cst, memory_order_seq_cst)))
#undef atomic_compare_exchange_strong
#define atomic_compare_exchange_strong(object, expected, value)                                              \
    (simulation_point(), simulation_exchanged(atomic_compare_exchange_strong_explicit(                       \
                             (object), (expected), (value), memory_order_seq_cst, memory_order_seq_cst)))

#endif
