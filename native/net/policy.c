#include "net/policy.h"

#include "region/region_map.h"

#define KNOWN 6u /* samples after which a mean says something; a trial is judged then, and whenever it has twice as many */
#define LONG 48u /* samples of a whole trial, and those that a mean remembers */
/* A median counts for so many times the mean at most: two of three were preempted, or all has become dearer; then a few will tell. */
#define OUTLIER 4.0
/* What a trial has to gain for the ways to be swapped: what is nearer than that does not matter. */
#define MARGIN 0.97
/* A way in use that becomes dearer by this is compared at once. Not by less: noise would do it. */
#define DEARER 1.25
/* Payloads between two trials: so many that at most one in PRICE is lost by them; but a trial that something disturbed is not believed for
 * long. A way that is 30 times as dear costs 4 %. */
#define INTERVAL 256u
#define INTERVAL_MOST 4096u
#define PRICE 100

static unsigned class_of(uint64_t length) {
    unsigned bits = 63u - (unsigned)__builtin_clzll(length | ZC_PAGE), index = bits - 12;
    return index < ZC_POLICY_CLASSES ? index : ZC_POLICY_CLASSES - 1;
}

static double middle(double a, double b, double c) {
    double low = a < b ? a : b, high = a < b ? b : a;
    return c < low ? low : c > high ? high : c;
}

static void add(struct zc_policy_cost *cost, double sample) {
    uint32_t means = cost->samples < 2 ? 0 : cost->samples - 1; /* with this one */
    if (means) {
        double typical = middle(cost->last[0], cost->last[1], sample);
        if (cost->samples >= KNOWN && typical > OUTLIER * cost->mean)
            typical = OUTLIER * cost->mean;
        cost->mean += (typical - cost->mean) / means;
    }
    cost->last[0] = cost->last[1];
    cost->last[1] = sample;
    if (cost->samples <= LONG)
        cost->samples++;
}

static void begin_trial(struct zc_policy_class *class) {
    class->trial = (struct zc_policy_cost){0};
    class->left = class->goal = KNOWN;
    class->payloads = 0;
    class->interval = INTERVAL; /* until it is given up and begun again: payloads that are lost with their connection are not learned */
}

static void end_trial(struct zc_policy_class *class, double lost) {
    lost *= PRICE;
    class->interval = lost > INTERVAL_MOST ? INTERVAL_MOST : lost > INTERVAL ? (uint32_t)lost : INTERVAL;
    class->compared = class->way.mean;
    class->payloads = class->left = class->goal = 0;
}

static void judge(struct zc_policy_class *class) {
    if (class->goal < LONG && class->trial.mean < class->way.mean) {
        class->left = class->goal;
        class->goal *= 2;
        return;
    }
    double lost = class->goal * (class->trial.mean / class->way.mean - 1); /* payloads that could have been received instead */
    if (class->trial.mean < MARGIN * class->way.mean) {
        class->way = class->trial;
        class->copy = !class->copy;
    }
    end_trial(class, lost);
}

bool zc_policy_map(struct zc_policy *policy, uint64_t length) {
    struct zc_policy_class *class = &policy->classes[class_of(length)];
    if (class->way.samples >= KNOWN && ++class->payloads > class->interval)
        begin_trial(class);
    if (!class->left)
        return !class->copy;
    class->left--;
    return class->copy;
}

void zc_policy_learn(struct zc_policy *policy, uint64_t length, bool map, uint64_t cycles) {
    struct zc_policy_class *class = &policy->classes[class_of(length)];
    double sample = (double)cycles / (double)length;
    if (map == class->copy) { /* the other way */
        if (!class->goal)
            return; /* begun in a trial that is over */
        add(&class->trial, sample);
        if (class->trial.samples >= class->goal)
            judge(class);
        return;
    }
    add(&class->way, sample);
    if (class->goal || !class->compared)
        return;
    if (class->way.mean < class->compared)
        class->compared = class->way.mean;
    if (class->way.mean > DEARER * class->compared)
        class->payloads = class->interval;
}
