/* Every strategy that is compiled in or was loaded. */
#ifndef ZCRPC_REGISTRY_H
#define ZCRPC_REGISTRY_H

#include "zcrpc/strategy.h"

extern const struct zc_strategy zc_strategy_global;
extern const struct zc_strategy zc_strategy_global_mutex;
extern const struct zc_strategy zc_strategy_global_pthread;
extern const struct zc_strategy zc_strategy_global_phase_fair;
extern const struct zc_strategy zc_strategy_global_bravo;
extern const struct zc_strategy zc_strategy_global_big_reader;
extern const struct zc_strategy zc_strategy_region_rwlock;
extern const struct zc_strategy zc_strategy_per_region_6_4;
extern const struct zc_strategy zc_strategy_per_region_6_4_convert;
extern const struct zc_strategy zc_strategy_per_region;
extern const struct zc_strategy zc_strategy_per_region_convert;
extern const struct zc_strategy zc_strategy_speculative;
extern const struct zc_strategy zc_strategy_range;
extern const struct zc_strategy zc_strategy_none; /* locks nothing: for benchmarks that ask for it; neither listed nor found by name */

const struct zc_strategy *zc_strategy_find(const char *name); /* NULL if there is none */
const struct zc_strategy *zc_strategy_at(size_t index);       /* NULL past the last */

/* Loads the plugin at a path (with a '/' in it, or the system's own directories are searched) and adds its strategy to the registry, for the
 * life of the process. 0, also if it was loaded before; else what is wrong, with a text about it in text[size]: -ELIBBAD (no shared object
 * that can be loaded), -ENOSYS (exports no ZC_STRATEGY_SYMBOL), -EPROTO (another ABI, or another size of the table), -EINVAL (incomplete, or
 * it names or sizes itself impossibly), -EEXIST (the name is taken), -ENOSPC. */
int zc_strategy_load(const char *path, const struct zc_strategy **out, char *text, size_t size);
#define ZC_STRATEGY_PLUGINS 64
#define ZC_STRATEGY_MOST_STATE (1u << 20) /* bytes of lock state in a map or a region */

#endif
