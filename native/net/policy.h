/* Map or copy? What `receive="auto"` knows: the cost of both, per payload size, as measured on this reactor's own connections.
 *
 * A class of sizes has a way that is in use, and now and then a trial of the other one:
 *
 *   a trial      takes the other way for a few payloads in a row, so that its memory gets as warm as it would be in use
 *   judged       after 6, 12, 24 and 48 payloads: it ends as soon as it is not cheaper; what is cheaper after 48, by 3 %, is in use from then
 *                on
 *   the next     comes after at least INTERVAL payloads, and so late that trials cost 1 % of all; or early, when the way in use becomes
 *                dearer than it was
 *
 * So a trial compares payloads of the same time, whatever the load of the host was when the other way was in use, and what is level stays
 * as it is. Both means are of medians of three: a receive that was preempted, or met cold memory, does not count.
 */
#ifndef ZCRPC_POLICY_H
#define ZCRPC_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#define ZC_POLICY_CLASSES 24 /* by power of two from one page up */

struct zc_policy_cost {
    double mean;      /* cycles per byte; of the last payloads, or of all if they are few */
    double last[2];   /* of the two payloads before */
    uint32_t samples; /* up to what the mean remembers */
};

struct zc_policy_class {
    struct zc_policy_cost way, trial; /* of the way that is in use; of the other, in its last trial */
    double compared;                  /* the least of the former since that ended */
    uint32_t payloads, interval;      /* since a trial began or ended; how many until the next begins */
    uint32_t left, goal;              /* payloads that the trial may still begin; samples after which it is judged, 0: there is none */
    bool copy;                        /* in use is copying */
};

/* All zero in the beginning: mapping is in use, and copying is tried as soon as the cost of mapping is known. */
struct zc_policy {
    struct zc_policy_class classes[ZC_POLICY_CLASSES];
};

/* For a payload that can be received either way. */
bool zc_policy_map(struct zc_policy *policy, uint64_t length);
/* What a payload has cost for which that was the answer, giving its memory back included. */
void zc_policy_learn(struct zc_policy *policy, uint64_t length, bool map, uint64_t cycles);

#endif
