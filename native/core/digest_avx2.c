/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The digest's loop with AVX2; compiled with -mavx2 -mbmi2 and called only where cpu_has_avx2(). */
#include "cpu.h"
#if DE_HAVE_AVX2_BUILD
#define DE_DIGEST_LOOP_SUFFIX avx2
#endif
#include "digest_loop.h"
