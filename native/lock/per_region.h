/* A door for tests and the laboratory into the "per-region" strategy. */
#ifndef ZCRPC_PER_REGION_H
#define ZCRPC_PER_REGION_H

#include "zcrpc/strategy.h"

/* Starts a map's sequence at an even number, and its map lock's tickets at `tickets`: just before a wrap, say. Only while the map has no
 * regions and no users. */
void zc_per_region_start(struct zc_map *map, uint32_t seq, uint32_t tickets);

/* What a region's reference word holds now: 0 detached, 1 attached, 1 + k with k readers, bit 30: a writer drains. */
uint32_t zc_per_region_refs(struct zc_region *region);

#endif
