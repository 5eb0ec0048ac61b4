/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file replacements.h
 * What stands in for threads, clock, memory and descriptors in the simulated system; threads.h puts them in
 * place. Contracts are those of the functions that they stand in for.
 */
#ifndef DIFFENGINE_SIMULATION_REPLACEMENTS_H
#define DIFFENGINE_SIMULATION_REPLACEMENTS_H

#include <diffengine/compress.h>
#include <diffengine/dense.h>
#include <diffengine/patch.h>
#include <dirent.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <sys/types.h>
#include <time.h>

#include "scheduler.h"

/* What things take in virtual time: round figures of docs/measurements.md. */
#define SIMULATION_DECOMPRESS_NS 1200u /**< LZ4 */
#define SIMULATION_PATCH_NS 700u
#define SIMULATION_DENSE_NS 6000u
#define SIMULATION_GUEST_NS 1000u /**< one access of a guest program, and the checking of it */
#define SIMULATION_WAKE_NS 5000u  /**< a sleeping thread that is woken */
#define SIMULATION_DISK_READ_NS 70000u
#define SIMULATION_DISK_WRITE_NS 4000u

struct de_vcpu;

/* threads.c */
int simulation_mutex_lock(pthread_mutex_t *mutex);
int simulation_mutex_unlock(pthread_mutex_t *mutex);
int simulation_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex);
int simulation_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex,
                              const struct timespec *deadline);
int simulation_cond_signal(pthread_cond_t *condition);
int simulation_cond_broadcast(pthread_cond_t *condition);
int simulation_thread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                             void *argument);
int simulation_thread_join(pthread_t thread, void **result);
int simulation_sched_yield(void);
int simulation_clock_gettime(clockid_t clock, struct timespec *now);
int simulation_nanosleep(const struct timespec *duration, struct timespec *left);
int simulation_futex_wait(const volatile void *word, uint32_t value, const struct timespec *timeout);
void simulation_futex_wake(const volatile void *word);

/* resources.c */
void *simulation_malloc(size_t bytes);
void *simulation_calloc(size_t count, size_t bytes);
void *simulation_realloc(void *memory, size_t bytes);
void *simulation_aligned_alloc(size_t alignment, size_t bytes);
void simulation_free(void *memory);
void *simulation_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
int simulation_munmap(void *address, size_t bytes);
int simulation_track(int fd);
int simulation_untrack(int fd);
int simulation_close(int fd);
DIR *simulation_fdopendir(int fd);
int simulation_closedir(DIR *directory);
int simulation_compress_create(enum de_compressor compressor, int level,
                               struct de_compress_context **context);
void simulation_compress_free(struct de_compress_context *context);
EVP_CIPHER_CTX *simulation_cipher_new(void);
void simulation_cipher_free(EVP_CIPHER_CTX *context);

/* work.c: the real thing, and the time that it takes by the model. */
int simulation_decompress_page(struct de_compress_context *context, const uint8_t *payload, size_t bytes,
                               uint8_t *page);
int simulation_patch_decode(const uint8_t *patch, size_t bytes, const uint8_t *reference, uint8_t *page);
int simulation_dense_decode(const struct de_dense_model *model, const uint8_t *payload, size_t bytes,
                            bool has_reference, struct de_dense_window *window);
int simulation_guest_read(struct de_vcpu *vcpu, uint32_t gfn, uint32_t offset, void *buffer, uint32_t len);
int simulation_guest_write(struct de_vcpu *vcpu, uint32_t gfn, uint32_t offset, const void *buffer,
                           uint32_t len);

#endif
