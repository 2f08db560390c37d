#include "lab/clock.h"

double zc_lab_cycles_per_second(void) {
    double started = zc_lab_seconds(CLOCK_MONOTONIC), now;
    uint64_t cycles = zc_cycles();
    do
        now = zc_lab_seconds(CLOCK_MONOTONIC);
    while (now - started < 0.02);
    return (double)(zc_cycles() - cycles) / (now - started);
}

void zc_lab_latency(const struct zc_histogram *cycles, double cycles_per_second, struct zc_latency *out) {
    double us = 1e6 / cycles_per_second;
    *out = (struct zc_latency){
        .samples = cycles->count,
        .p50_us = (double)zc_histogram_percentile(cycles, 0.5) * us,
        .p99_us = (double)zc_histogram_percentile(cycles, 0.99) * us,
        .p999_us = (double)zc_histogram_percentile(cycles, 0.999) * us,
        .max_us = (double)cycles->max * us,
        .mean_us = cycles->count ? (double)cycles->sum / (double)cycles->count * us : 0,
    };
}
