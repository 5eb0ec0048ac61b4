/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "latency.h"

/* Values below 16 ns have a bucket each; above, the top five bits choose it (the idea of HdrHistogram). */
static size_t bucket(uint64_t ns)
{
    if (ns < 16)
        return (size_t)ns;
    unsigned exponent = 63 - (unsigned)__builtin_clzll(ns);
    size_t index = (size_t)(exponent - 3) * 16 + (ns >> (exponent - 4) & 15);
    return index < DE_LATENCY_BUCKETS ? index : DE_LATENCY_BUCKETS - 1;
}

static uint64_t bucket_end(size_t index)
{
    if (index < 16)
        return index;
    return ((uint64_t)(16 + index % 16 + 1) << (index / 16 - 1)) - 1;
}

void latency_add(struct atomic_latency *latency, uint64_t ns)
{
    atomic_fetch_add_explicit(&latency->counts[bucket(ns)], 1, memory_order_relaxed);
}

void latency_read(const struct atomic_latency *latency, struct de_latency *copy)
{
    for (size_t i = 0; i < DE_LATENCY_BUCKETS; i++)
        copy->counts[i] = atomic_load_explicit(&latency->counts[i], memory_order_relaxed);
}

uint64_t de_latency_quantile(const struct de_latency *latency, double fraction)
{
    uint64_t total = 0;
    for (size_t i = 0; i < DE_LATENCY_BUCKETS; i++)
        total += latency->counts[i];
    uint64_t seen = 0;
    for (size_t i = 0; i < DE_LATENCY_BUCKETS; i++) {
        seen += latency->counts[i];
        if (seen && (double)seen >= fraction * (double)total)
            return bucket_end(i);
    }
    return 0;
}
