/* Faults that real implementations of such locks had, each to be put in again for a test build: -DZCRPC_FAULT=n. The default, 0, is none of
 * them, and then the compiler sees constants: nothing is left of all this. tests/test_faults.py says which tool catches which.
 *
 *   1   unlock without release: put, and the map's sequence in write_unlock                   per_region.c
 *   2   range and identity are examined before the reference is held                          per_region.c
 *   3   a change that spans two regions write-locks one of them                               lab/torture_writers.c
 *   4   the last reader wakes the writer through a region that is somebody else's by then     per_region.c
 *   5   neither identity nor range is examined                                                per_region.c
 *   6   the reference count has no limit                                                      per_region.c
 *   7   a stamp from before the sequence wrapped passes for a lock                            per_region.c
 *   8   one waiter that leaves takes away the mark of the others that sleep: lost wake-up     fair_rwlock.c
 *   9   the map lock is taken while the region's reference is held                            per_region.c
 *   10  recursive read lock, with a lock that prefers writers                                 global_pthread.c
 *   11  a reader's mark is a plain store: not ordered before its look at the writer's flag    marks.h
 */
#ifndef ZCRPC_FAULTS_H
#define ZCRPC_FAULTS_H

#ifndef ZCRPC_FAULT
#define ZCRPC_FAULT 0
#endif

#define ZC_FAULT(number) (ZCRPC_FAULT == (number))

/* In a build with a fault: the thread loses its processor here, now and then. */
#if ZCRPC_FAULT
#include <sched.h>
#include <stdint.h>
#include <time.h>

static inline void zc_preempted_here(void) {
    static _Thread_local uint32_t random = 1;
    random = random * 1664525 + 1013904223;
    if (random >> 28 == 0)
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    else if (random >> 28 < 4)
        sched_yield();
}
#else
static inline void zc_preempted_here(void) {}
#endif

#endif
