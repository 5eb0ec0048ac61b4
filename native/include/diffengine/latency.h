/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file latency.h
 * Histograms of times, as they are read: 16 buckets per power of two, so that a percentile is right within
 * 1/16.
 */
#ifndef DIFFENGINE_LATENCY_H
#define DIFFENGINE_LATENCY_H

#include <stdint.h>

#define DE_LATENCY_BUCKETS 640u
struct de_latency {
    uint64_t counts[DE_LATENCY_BUCKETS];
};
/** The upper end of the bucket that holds the @p fraction quantile, in ns; 0 if there are no samples. */
uint64_t de_latency_quantile(const struct de_latency *latency, double fraction);

#endif
