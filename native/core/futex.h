/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file futex.h
 * Sleep on a word that several processes share, as futex(2). The library has no function for it.
 */
#ifndef DIFFENGINE_CORE_FUTEX_H
#define DIFFENGINE_CORE_FUTEX_H

#include <limits.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/**
 * Sleep while the word has @p value, until somebody wakes it. @param timeout NULL: for ever.
 * @return 0 (woken, perhaps for nothing), or -1 with errno: EAGAIN (another value), ETIMEDOUT, EINTR, EFAULT.
 */
static inline int futex_wait(const volatile void *word, uint32_t value, const struct timespec *timeout)
{
    return (int)syscall(SYS_futex, word, FUTEX_WAIT, value, timeout, NULL, 0);
}

/** Wake all who sleep on it. */
static inline void futex_wake(const volatile void *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

#endif
