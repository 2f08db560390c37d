/* Every strategy that is compiled in or was loaded. */
#ifndef ZCRPC_REGISTRY_H
#define ZCRPC_REGISTRY_H

#include "zcrpc/strategy.h"

extern const struct zc_strategy zc_strategy_global;
extern const struct zc_strategy zc_strategy_per_region;

const struct zc_strategy *zc_strategy_find(const char *name); /* NULL if there is none */
const struct zc_strategy *zc_strategy_at(size_t index);       /* NULL past the last */

#endif
