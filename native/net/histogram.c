#include "net/histogram.h"

static uint64_t last_of_bucket(uint32_t bucket) {
    uint32_t steps = 1u << ZC_HISTOGRAM_STEP_BITS;
    if (bucket < 2 * steps)
        return bucket;
    uint32_t octave = bucket / steps - 1;
    return ((uint64_t)(bucket - octave * steps + 1) << octave) - 1;
}

uint64_t zc_histogram_percentile(const struct zc_histogram *histogram, double fraction) {
    double wanted = fraction * (double)histogram->count;
    uint64_t rank = (uint64_t)wanted, seen = 0;
    if (rank < 1 || (double)rank < wanted)
        rank++; /* round up, and never below the first */
    for (uint32_t i = 0; i < ZC_HISTOGRAM_BUCKETS; i++) {
        seen += histogram->buckets[i];
        if (seen >= rank)
            return last_of_bucket(i) < histogram->max ? last_of_bucket(i) : histogram->max;
    }
    return histogram->max;
}

void zc_histogram_merge(struct zc_histogram *into, const struct zc_histogram *from) {
    for (uint32_t i = 0; i < ZC_HISTOGRAM_BUCKETS; i++)
        into->buckets[i] += from->buckets[i];
    into->count += from->count;
    into->sum += from->sum;
    if (from->max > into->max)
        into->max = from->max;
}
