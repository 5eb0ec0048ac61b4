/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The digest's loop for any CPU of the build's baseline (SSE2 on x86-64, NEON on arm64). */
#define DE_DIGEST_LOOP_SUFFIX portable
#include "digest_loop.h"
