/* Clocks of the laboratory, and cycles as microseconds. */
#ifndef ZCRPC_LAB_CLOCK_H
#define ZCRPC_LAB_CLOCK_H

#include <time.h>

#include "lab/lab.h"
#include "lock/atomics.h"
#include "net/histogram.h"

static inline double zc_lab_seconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Measured anew, in so many seconds: known to about 100 ns in that time. */
double zc_lab_cycles_per_second(double takes);
#define ZC_LAB_CALIBRATION 0.02 /* seconds, for a run that lasts */

void zc_lab_sleep(double seconds);
void zc_lab_latency(const struct zc_histogram *cycles, double cycles_per_second, struct zc_latency *out);

#endif
