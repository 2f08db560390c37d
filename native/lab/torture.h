/* Torture: everything that a lock strategy must guarantee, done by many threads at once, with what they see checked throughout.
 *
 * Two maps share a slab, so region structs move between them. Readers look addresses up and receive into what they find; writers change,
 * resize, swap, recycle, detach and attach regions; one more thread places and releases leases. Sequences and tickets start just before
 * they wrap.
 *
 * What is checked is said in lab/torture_run.h. Whoever finds something wrong prints "file:line: function: what, with which numbers" to
 * standard error and ends the process with status 1, since a map whose lock has failed cannot be taken apart any more; so this is run in a
 * process of its own. */
#ifndef ZCRPC_LAB_TORTURE_H
#define ZCRPC_LAB_TORTURE_H

#include <stdint.h>

#define ZC_TORTURE_READERS 64 /* threads at most */
#define ZC_TORTURE_WRITERS 16
#define ZC_TORTURE_SECONDS 86400 /* at most */

struct zc_torture_options {
    const char *strategy;
    uint32_t readers, writers; /* threads, at least 1 of each; leases have one more */
    double seconds;
    double stalled_seconds; /* a thread that does not get on for so long is a violation */
    uint64_t seed;          /* of every draw; schedules are the system's */
    const uint32_t *stop;   /* set by another thread: end early, with what was done so far. May be NULL */
};

struct zc_torture_result {
    uint64_t operations; /* read locks, misses and looks */
    uint64_t read_locks, misses, looks, confirmed;
    uint64_t touches; /* read locks under which memory was written as by a receive, and looked at again */
    uint64_t fallbacks, retries, waits;
    uint64_t write_locks; /* of the map; the maps' own included, as they make room */
    uint64_t attaches, detaches, recycles;
    uint64_t placed, released, refused; /* leases; refused for the budget */
    int64_t wraps;                      /* times that a sequence or a ticket passed its end; -1: not known of this strategy */
    uint64_t sleeps, preemptions;       /* injected, lock in hand: a sleep, a yield of the processor */
    uint32_t rounds;                    /* maps made, tortured and taken down, in turn */
    double longest_read_wait_us, longest_write_wait_us;
    double elapsed_seconds;
};

/* 0, -ENOENT (no such strategy), -EINVAL, or what the system said. */
int zc_torture_run(const struct zc_torture_options *options, struct zc_torture_result *result);

#endif
