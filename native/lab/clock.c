#include "lab/clock.h"

#include <errno.h>

#define READINGS 8 /* of both clocks, of which the one counts that nothing came between */

struct instant {
    double seconds;
    uint64_t cycles;
};

static struct instant read_both(void) {
    struct instant best = {0};
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < READINGS; i++) {
        uint64_t before = zc_cycles();
        double seconds = zc_lab_seconds(CLOCK_MONOTONIC);
        uint64_t after = zc_cycles();
        if (after - before < least) {
            least = after - before;
            best = (struct instant){.seconds = seconds, .cycles = before + (after - before) / 2};
        }
    }
    return best;
}

double zc_lab_cycles_per_second(double takes) {
    struct instant from = read_both();
    while (zc_lab_seconds(CLOCK_MONOTONIC) - from.seconds < takes)
        ;
    struct instant to = read_both();
    return (double)(to.cycles - from.cycles) / (to.seconds - from.seconds);
}

void zc_lab_sleep(double seconds) {
    struct timespec left = {.tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)};
    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
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
