/* Map or copy? What `receive="auto"` knows: the cost of both, per payload size, as measured on this reactor's own connections. */
#ifndef ZCRPC_POLICY_H
#define ZCRPC_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#define ZC_POLICY_CLASSES 24 /* by power of two from one page up */

struct zc_policy_cost {
    double mean; /* cycles per byte, smoothed */
    uint32_t samples;
};

struct zc_policy {
    struct {
        struct zc_policy_cost cost[2]; /* by copying, by mapping */
        uint32_t payloads;
    } classes[ZC_POLICY_CLASSES];
};

/* For a payload that can be received either way. */
bool zc_policy_map(struct zc_policy *policy, uint64_t length);
/* What a payload that was received in one way throughout has cost, giving its memory back included. */
void zc_policy_learn(struct zc_policy *policy, uint64_t length, bool mapped, uint64_t cycles);

#endif
