/* What a lock strategy costs by itself: native threads that find, lock and unlock regions, and change some of them. Nothing is received.
 *
 * A *closed loop* (rate_per_thread 0) begins an operation when the one before is done: it shows throughput, and what operations cost. Only
 * one read in 64 is timed, and a write in 512 operations, from its own beginning, so that clocks are not what is measured; a stall is one long sample there, however many
 * operations it kept from beginning. An *open loop* begins operations on a fixed schedule and times each from when it was to begin, so a
 * stall is seen by every operation that should have begun meanwhile: that is the latency to believe (no coordinated omission). */
#ifndef ZCRPC_LOCK_BENCH_H
#define ZCRPC_LOCK_BENCH_H

#include <stdint.h>

#include "lab/lab.h"

#define ZC_LOCK_BENCH_THREADS 64   /* at most, writers included */
#define ZC_LOCK_BENCH_REGIONS 4096 /* at most: 8 GiB of address space */

struct zc_lock_bench_options {
    const char *strategy;     /* a name of the registry. Where nothing writes also "none", what the rest of the loop costs, and
                               * "pthread-pair", a pthread rwlock locked to read and unlocked without looking for a region */
    uint32_t threads;         /* at least 1. They read, and write as often as write_fraction says, each in its share of the regions */
    uint32_t writers;         /* more threads, that only write: each one region that nobody else uses, over and over */
    uint32_t regions;         /* of the threads, at least as many; 0: eight for each */
    uint32_t hot;             /* 1: there is one region, and all threads use it */
    uint32_t hold;            /* 1: lock and unlock even where the strategy lets readers look without holding */
    double write_fraction;    /* of the threads' operations, 0 … 1 */
    uint64_t seed;            /* which ones */
    uint32_t reader_hold_ns;  /* that a reader stays inside, computing; up to a second, as all of these */
    uint32_t writer_hold_ns;  /* that any writer does */
    uint32_t writer_pause_ns; /* that one of `writers` stays outside */
    double rate_per_thread;   /* operations begun per second; 0: a closed loop */
    double warm_up_seconds;   /* not counted */
    uint64_t iterations;      /* operations of each thread, from when every writer has been inside once … */
    double seconds;           /* … or, if above 0, as many as fit: what preempts a writer then cannot end the run */
};

struct zc_lock_bench_result {
    /* Of the threads. `operations`: reads and writes. */
    uint64_t reads, writes;
    double operations_per_second;   /* the sum of the threads' own rates */
    double ns_per_operation;        /* elapsed time of a thread per operation, mean of the threads; 0 if nothing was done */
    double cpu_ns_per_operation;    /* their CPU time; waiting for the schedule included */
    double jain;                    /* Jain's index of their rates: 1 if all are alike, 1 / threads if only one got anywhere */
    struct zc_latency read_latency; /* wanted → inside; see above */
    /* Of all that write, `writers` included. */
    uint64_t writer_locks; /* of `writers` */
    struct zc_latency write_latency;
    /* Reads that got in between a writer's wish and its turn, wherever they read. Closed loop only, of the writes that are timed. */
    uint64_t longest_overtaking;
    uint64_t overtaking_p99;
    /* The strategy's own counts, all threads. */
    uint64_t read_locks, fallbacks, retries, misses, write_locks, waits;
    uint32_t pinned; /* 1: each thread had a core of its own */
};

/* 0, -ENOENT (no such strategy), -EINVAL (impossible options), or what the system said. */
int zc_lock_bench(const struct zc_lock_bench_options *options, struct zc_lock_bench_result *result);

#endif
