/* What a lock strategy costs by itself: threads that find, read-lock and unlock regions as fast as they can, others that write. */
#ifndef ZCRPC_LOCK_BENCH_H
#define ZCRPC_LOCK_BENCH_H

#include <stdint.h>

struct zc_lock_bench_options {
    const char *strategy;     /* a name of the registry; or, without writers, "none": what the rest of the loop costs */
    uint32_t readers;         /* threads, at least 1 */
    uint32_t writers;         /* threads that take the map lock and write-lock one region that no reader uses, over and over */
    uint32_t hot;             /* 1: all readers use one region; 0: each has regions of its own */
    uint32_t writer_hold_ns;  /* that a writer stays inside */
    uint32_t writer_pause_ns; /* … and outside */
    uint64_t iterations;      /* lock pairs of each reader, from when every writer has been inside once … */
    double seconds;           /* … or, if above 0, as many as fit: what preempts a writer then cannot end the run */
    uint32_t hold;            /* 1: lock and unlock even where the strategy lets readers look without holding */
};

struct zc_lock_bench_result {
    double ns_per_read;      /* elapsed time of a reader per pair, mean of the readers */
    double reads_per_second; /* all readers together */
    double longest_read_ns;  /* find → locked, the longest of one pair in 16 */
    uint64_t reads, writes;
    uint64_t fallbacks, waits;
};

/* 0, -ENOENT (no such strategy), -EINVAL, or what the system said. */
int zc_lock_bench(const struct zc_lock_bench_options *options, struct zc_lock_bench_result *result);

#endif
