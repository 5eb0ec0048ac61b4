/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file latency.h
 * A histogram of times that any thread adds to and reads, without a lock.
 */
#ifndef DIFFENGINE_CORE_LATENCY_H
#define DIFFENGINE_CORE_LATENCY_H

#include <diffengine/latency.h>
#include <stdatomic.h>
#include <stddef.h>

struct atomic_latency {
    _Atomic(uint64_t) counts[DE_LATENCY_BUCKETS];
};

void latency_add(struct atomic_latency *latency, uint64_t ns);
void latency_read(const struct atomic_latency *latency, struct de_latency *copy);

#endif
