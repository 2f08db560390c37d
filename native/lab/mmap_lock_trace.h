/* Counts how often some threads of this process take the mmap lock, and how long they wait for it: the kernel's `mmap_lock` tracepoints
 * (Linux 5.11 and later), in a tracing instance of our own, so that nobody else's tracing is disturbed. It needs tracefs and, as a rule, root. */
#ifndef ZCRPC_LAB_MMAP_LOCK_TRACE_H
#define ZCRPC_LAB_MMAP_LOCK_TRACE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define ZC_TRACE_PATH 96
#define ZC_TRACE_THREADS 64 /* at most */

struct zc_mmap_lock_trace {
    char directory[ZC_TRACE_PATH]; /* the instance; empty: there is none */
    pid_t threads[ZC_TRACE_THREADS];
    uint32_t count;
};

struct zc_mmap_lock_counts {
    uint64_t reads, writes;       /* acquisitions */
    double waited_us, longest_us; /* for read mode */
    uint64_t lost;                /* events that the buffer did not hold: the rest is too low */
};

/* 0, or -1 and in `why` (size bytes) the reason for people. */
int zc_mmap_lock_trace_open(struct zc_mmap_lock_trace *trace, char *why, size_t size);
int zc_mmap_lock_trace_start(struct zc_mmap_lock_trace *trace, const pid_t *threads, uint32_t count, char *why, size_t size);
/* Ends what start began, and adds up. */
int zc_mmap_lock_trace_stop(struct zc_mmap_lock_trace *trace, struct zc_mmap_lock_counts *counts, char *why, size_t size);
void zc_mmap_lock_trace_close(struct zc_mmap_lock_trace *trace);

#endif
