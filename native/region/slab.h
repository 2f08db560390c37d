/* Type-stable region structs: one that was handed out is handed out again, but its memory is never anything else while any map that uses
 * the slab lives. A reader may therefore look into a region that is long gone, or another map's by now, and find out (guarantee 2 of
 * strategy.h). Maps that share a slab share a strategy: the lock state survives recycling.
 */
#ifndef ZCRPC_SLAB_H
#define ZCRPC_SLAB_H

#include "region/region_map.h"

struct zc_slab;

struct zc_slab *zc_slab_create(const struct zc_strategy *strategy); /* NULL without memory; held by its creator */
void zc_slab_hold(struct zc_slab *slab);
void zc_slab_drop(struct zc_slab *slab);
const struct zc_strategy *zc_slab_strategy(const struct zc_slab *slab);

/* A region with `owner` pointing at its struct zc_space, everything else as its last user left it. NULL without memory. */
struct zc_region *zc_slab_take(struct zc_slab *slab, struct zc_map *map);
void zc_slab_give(struct zc_slab *slab, struct zc_region *region);

#endif
