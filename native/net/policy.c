#include "net/policy.h"

#include "region/region_map.h"

/* Every so many payloads of a class the way that lost is tried again: costs drift with the load of the host. At 1 in 64, a way that is
 * twice as dear costs 1.6 % on average. */
#define RETRY 64u
/* Samples before a way counts as known. The first ones meet cold memory, so until then the smallest is taken. */
#define KNOWN 4u
/* A new sample's weight, and how many times the mean it counts for at most: a receive that was preempted, a hundred times as dear, shifts
 * the mean by no more than a fifth. */
#define WEIGHT (1.0 / 16)
#define OUTLIER 4.0

static unsigned class_of(uint64_t length) {
    unsigned bits = 63u - (unsigned)__builtin_clzll(length | ZC_PAGE), index = bits - 12;
    return index < ZC_POLICY_CLASSES ? index : ZC_POLICY_CLASSES - 1;
}

bool zc_policy_map(struct zc_policy *policy, uint64_t length) {
    unsigned index = class_of(length);
    const struct zc_policy_cost *cost = policy->classes[index].cost;
    if (cost[true].samples < KNOWN)
        return true;
    if (cost[false].samples < KNOWN)
        return false;
    bool map = cost[true].mean <= cost[false].mean;
    return ++policy->classes[index].payloads % RETRY == 0 ? !map : map;
}

void zc_policy_learn(struct zc_policy *policy, uint64_t length, bool mapped, uint64_t cycles) {
    struct zc_policy_cost *cost = &policy->classes[class_of(length)].cost[mapped];
    double sample = (double)cycles / (double)length;
    if (cost->samples < KNOWN) {
        if (!cost->samples++ || sample < cost->mean)
            cost->mean = sample;
        return;
    }
    if (sample > OUTLIER * cost->mean)
        sample = OUTLIER * cost->mean;
    cost->mean += (sample - cost->mean) * WEIGHT;
}
