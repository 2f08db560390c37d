/* The writer of the storm. It sleeps while it holds the map lock, unless it is told to be busy: on two cores a busy writer takes a quarter of
 * the machine from everybody, under every strategy alike, and most of what is then seen is that. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "lab/seed.h"

static void sleep_until(double at) {
    const struct timespec when = {.tv_sec = (time_t)at, .tv_nsec = (long)((at - (double)(time_t)at) * 1e9)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) == EINTR)
        ;
}

static void hold(const struct zc_seed_options *options, uint64_t until) {
    if (!options->writer_busy) {
        const struct timespec time = {.tv_nsec = options->writer_hold_us % 1000000 * 1000l, .tv_sec = options->writer_hold_us / 1000000};
        nanosleep(&time, NULL);
    }
    while ((int64_t)(until - zc_cycles()) > 0)
        zc_relax();
}

/* Takes the map lock, changes a region that no connection uses, and holds the lock for a while longer. */
static void change(struct seed_writer *writer, uint64_t hold_cycles) {
    struct zc_map *map = writer->seed->map;
    const struct zc_strategy *strategy = map->strategy;
    uint64_t wanted = zc_cycles();
    strategy->write_lock(map, writer->actor);
    uint64_t locked = zc_cycles();
    strategy->region_write_lock(map, writer->actor, writer->region);
    madvise((void *)atomic_load_explicit(&writer->region->start, memory_order_relaxed), ZC_UNIT, MADV_DONTNEED);
    hold(&writer->seed->options, locked + hold_cycles);
    strategy->write_unlock(map, writer->actor);
    zc_histogram_record(&writer->hold, zc_cycles() - locked);
    zc_histogram_record(&writer->wait, locked - wanted);
    writer->locks++;
}

static void begin_window(struct seed_writer *writer) {
    memset(&writer->wait, 0, sizeof writer->wait);
    memset(&writer->hold, 0, sizeof writer->hold);
    writer->locks = writer->late = 0;
    writer->cpu = -zc_lab_seconds(CLOCK_THREAD_CPUTIME_ID);
}

void *seed_write(void *argument) {
    struct seed_writer *writer = argument;
    const struct zc_seed_options *options = &writer->seed->options;
    double interval = options->writer_interval_us * 1e-6, next = zc_lab_seconds(CLOCK_MONOTONIC);
    uint64_t hold_cycles = (uint64_t)(options->writer_hold_us * 1e-6 * writer->seed->cycles_per_second);
    int phase = SEED_WARM_UP;
    prctl(PR_SET_TIMERSLACK, 1000ul); /* ns; the usual 50 µs would blur the schedule */
    while (phase != SEED_STOP) {
        int now = atomic_load_explicit(&writer->seed->phase, memory_order_acquire);
        if (now == SEED_MEASURE && phase != SEED_MEASURE)
            begin_window(writer);
        phase = now;
        change(writer, hold_cycles);
        for (next += interval; next < zc_lab_seconds(CLOCK_MONOTONIC); next += interval)
            writer->late++; /* periods that a late writer skips rather than makes up for */
        sleep_until(next);
    }
    writer->cpu += zc_lab_seconds(CLOCK_THREAD_CPUTIME_ID);
    return NULL;
}
