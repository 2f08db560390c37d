/* Where the receives of one thread spend their time, in cycles of the time-stamp counter. The receive path calls the four functions below
 * around its steps; without a probe (NULL) each costs one branch.
 *
 *   find ──lock── locked ──receive── received ──unlock── unlocked
 *
 * The *lock path* is lock + unlock, without the receive. A sample whose lock path took longer than `preempted_from` cycles although the
 * strategy counted no wait did not wait for a lock: the thread was preempted, or an interrupt hit it, inside those few dozen nanoseconds.
 * One such sample of milliseconds would falsify a mean, so it is left out of the sums, counted and its cycles added up apart. The
 * histograms keep everything. */
#ifndef ZCRPC_RECEIVE_PROBE_H
#define ZCRPC_RECEIVE_PROBE_H

#include <stddef.h>

#include "lock/atomics.h"
#include "net/histogram.h"
#include "zcrpc/strategy.h"

struct zc_receive_probe {
    uint64_t preempted_from; /* set by the owner; the rest starts as zeros */

    uint64_t samples;              /* receives that came through to `unlocked` */
    uint64_t lock_cycles;          /* of the lock path, where nothing was waited for */
    uint64_t waits;                /* samples during which the strategy counted a wait */
    uint64_t wait_cycles;          /* of their lock paths; the thread may have slept meanwhile */
    uint64_t preempted;            /* samples left out of lock_cycles */
    uint64_t preempted_cycles;     /* of their lock paths */
    struct zc_histogram lock_wait; /* find → locked */
    struct zc_histogram receive;   /* find → unlocked */

    uint64_t at_find, at_locked, at_received; /* the sample under way */
    uint64_t waits_before;
};

static inline void zc_probe_find(struct zc_receive_probe *probe, const struct zc_actor *self) {
    if (probe == NULL)
        return;
    probe->waits_before = self->counters.waits;
    probe->at_find = zc_cycles();
}

static inline void zc_probe_locked(struct zc_receive_probe *probe) {
    if (probe != NULL)
        probe->at_locked = zc_cycles();
}

static inline void zc_probe_received(struct zc_receive_probe *probe) {
    if (probe != NULL)
        probe->at_received = zc_cycles();
}

static inline void zc_probe_unlocked(struct zc_receive_probe *probe, const struct zc_actor *self) {
    if (probe == NULL)
        return;
    uint64_t now = zc_cycles(), lock = probe->at_locked - probe->at_find, path = lock + (now - probe->at_received);
    probe->samples++;
    if (self->counters.waits != probe->waits_before) {
        probe->waits++;
        probe->wait_cycles += path;
    } else if (path > probe->preempted_from) {
        probe->preempted++;
        probe->preempted_cycles += path;
    } else {
        probe->lock_cycles += path;
    }
    zc_histogram_record(&probe->lock_wait, lock);
    zc_histogram_record(&probe->receive, now - probe->at_find);
}

/* Adds up two threads' samples, once they have stopped. */
static inline void zc_probe_merge(struct zc_receive_probe *into, const struct zc_receive_probe *from) {
    into->samples += from->samples;
    into->lock_cycles += from->lock_cycles;
    into->waits += from->waits;
    into->wait_cycles += from->wait_cycles;
    into->preempted += from->preempted;
    into->preempted_cycles += from->preempted_cycles;
    zc_histogram_merge(&into->lock_wait, &from->lock_wait);
    zc_histogram_merge(&into->receive, &from->receive);
}

#endif
