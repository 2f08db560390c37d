/* A thread of the lock benchmark: lock_bench_thread.c runs it, lock_bench.c prepares it and sums up what it did. */
#ifndef ZCRPC_LOCK_BENCH_THREAD_H
#define ZCRPC_LOCK_BENCH_THREAD_H

#include <pthread.h>
#include <stdbool.h>

#include "lab/clock.h"
#include "lab/lock_bench.h"
#include "net/histogram.h"
#include "region/region_map.h"

/* Operations of a closed loop after which a thread looks whether to stop; it times the first of them, as clocks cost as much as a few reads. */
#define BENCH_GROUP 64
/* In a closed loop a write in about so many operations is timed: to count who overtakes it takes the readers' lines away. */
#define BENCH_WRITE_SAMPLES 512
/* A hold beside which neither counts: everything is timed, and a group is one operation. */
#define BENCH_LONG_HOLD_NS 1000

enum bench_phase { BENCH_WARM_UP, BENCH_MEASURE, BENCH_STOP };

/* Where a thread reads and writes. */
struct bench_place {
    uintptr_t address;
    struct zc_region *region;
};

struct bench {
    const struct zc_lock_bench_options *options;
    struct zc_map *map;
    struct bench_thread *threads; /* those that read, then the writers */
    uint32_t count;
    bool crowded; /* there are more threads than cores */
    double cycles_per_ns;
    uint64_t reader_hold, writer_hold, writer_pause, interval; /* in cycles */
    pthread_barrier_t start;
    alignas(ZC_CACHE_LINE) _Atomic int phase;
    _Atomic uint32_t writers_ready;
    _Atomic uint32_t begun; /* threads whose window has begun */
};

struct bench_thread {
    /* Written by the thread with every read, read by those that write: how many got in. */
    alignas(ZC_CACHE_LINE) _Atomic uint64_t reads;
    alignas(ZC_CACHE_LINE) struct bench *bench;
    struct zc_actor *actor;
    pthread_t thread;
    struct bench_place *places;
    uint32_t places_count, next_place;
    uint32_t write_samples; /* closed loop: one write in so many is timed */
    bool looks;             /* without holding, where that does */
    uint64_t until_write;   /* reads before the next write */
    uint64_t random;
    uint64_t due; /* open loop: when the next operation is to begin, in cycles */
    uint64_t writes;
    /* Of the measured window. */
    double began, ended, cpu; /* seconds */
    uint64_t reads_before;
    struct zc_lock_counters counters; /* of the actor: at its beginning, then what was added */
    struct zc_histogram read_latency, write_latency, overtaking;
};

void *bench_operate(void *thread);
void *bench_write_only(void *thread);

#endif
