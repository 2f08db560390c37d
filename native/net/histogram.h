/* A histogram of 64-bit values with 64 linear steps to each power of two (HdrHistogram's layout): every value below 128 is exact, a larger
 * one is known to 1/64 of itself. Recording is a handful of instructions and never allocates. One thread records; whoever reads does so
 * after that thread has stopped, or merges a copy. */
#ifndef ZCRPC_HISTOGRAM_H
#define ZCRPC_HISTOGRAM_H

#include <stdint.h>

#define ZC_HISTOGRAM_STEP_BITS 6u
#define ZC_HISTOGRAM_VALUE_BITS 48u /* larger values count as 2^48 - 1: a day in cycles of 3 GHz */
#define ZC_HISTOGRAM_BUCKETS ((ZC_HISTOGRAM_VALUE_BITS - ZC_HISTOGRAM_STEP_BITS + 1) << ZC_HISTOGRAM_STEP_BITS)

struct zc_histogram { /* all zero is an empty one */
    uint64_t count;
    uint64_t sum;
    uint64_t max;
    uint64_t buckets[ZC_HISTOGRAM_BUCKETS];
};

static inline uint32_t zc_histogram_bucket(uint64_t value) {
    if (value >> ZC_HISTOGRAM_STEP_BITS == 0)
        return (uint32_t)value;
    uint32_t octave = 63u - (uint32_t)__builtin_clzll(value) - ZC_HISTOGRAM_STEP_BITS; /* how far the top 7 bits are from the bottom */
    return (octave << ZC_HISTOGRAM_STEP_BITS) + (uint32_t)(value >> octave);
}

static inline void zc_histogram_record(struct zc_histogram *histogram, uint64_t value) {
    if (value >> ZC_HISTOGRAM_VALUE_BITS)
        value = (1ull << ZC_HISTOGRAM_VALUE_BITS) - 1;
    histogram->buckets[zc_histogram_bucket(value)]++;
    histogram->count++;
    histogram->sum += value;
    if (value > histogram->max)
        histogram->max = value;
}

/* The value that `fraction` (0 … 1) of what was recorded does not exceed: the largest one of its bucket, at most the maximum; 0 if empty.
 */
uint64_t zc_histogram_percentile(const struct zc_histogram *histogram, double fraction);
void zc_histogram_merge(struct zc_histogram *into, const struct zc_histogram *from);

#endif
