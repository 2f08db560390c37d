#include "lock/registry.h"

#include <string.h>

static const struct zc_strategy *const strategies[] = {
    &zc_strategy_global,
    &zc_strategy_per_region,
    &zc_strategy_per_region_convert,
    &zc_strategy_speculative,
    &zc_strategy_per_region_6_4,
    &zc_strategy_per_region_6_4_convert,
    &zc_strategy_region_rwlock,
    &zc_strategy_range,
    &zc_strategy_global_mutex,
    &zc_strategy_global_pthread,
    &zc_strategy_global_phase_fair,
    &zc_strategy_global_bravo,
    &zc_strategy_global_big_reader,
};

const struct zc_strategy *zc_strategy_at(size_t index) {
    return index < sizeof strategies / sizeof *strategies ? strategies[index] : NULL;
}

const struct zc_strategy *zc_strategy_find(const char *name) {
    const struct zc_strategy *strategy;
    for (size_t index = 0; (strategy = zc_strategy_at(index)) != NULL; index++)
        if (strcmp(strategy->name, name) == 0)
            return strategy;
    return NULL;
}
