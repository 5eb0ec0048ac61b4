/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file check.h
 * Assertions of the C unit tests. They stay on in every build type, unlike assert().
 */
#ifndef DIFFENGINE_TEST_CHECK_H
#define DIFFENGINE_TEST_CHECK_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/** End the test program with exit status 1, naming the place, unless @p condition holds. */
#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: %s: failed: %s\n", __FILE__, __LINE__, __func__, #condition);            \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

/** The same for the equality of two integers, printing both. */
#define CHECK_EQ(left, right)                                                                                \
    do {                                                                                                     \
        const int64_t check_left = (int64_t)(left), check_right = (int64_t)(right);                          \
        if (check_left != check_right) {                                                                     \
            fprintf(stderr, "%s:%d: %s: failed: %s == %s: %" PRId64 " is not %" PRId64 "\n", __FILE__,       \
                    __LINE__, __func__, #left, #right, check_left, check_right);                             \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

#endif
