/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file cpu.h
 * Which of a hot loop's two compiled forms this CPU can run.
 */
#ifndef DIFFENGINE_CORE_CPU_H
#define DIFFENGINE_CORE_CPU_H

#include <stdbool.h>

/** The build has AVX2 forms at all: they are compiled with -mavx2 -mbmi2 and must run only where
 * cpu_has_avx2(). */
#if defined(__x86_64__)
#define DE_HAVE_AVX2_BUILD 1
#else
#define DE_HAVE_AVX2_BUILD 0
#endif

/** Any thread; a few instructions (the compiler's runtime asks the CPU once, at program start). */
static inline bool cpu_has_avx2(void)
{
#if DE_HAVE_AVX2_BUILD
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
#else
    return false;
#endif
}

#endif
