/* A door for tests and the laboratory into the "per-region-6.4" strategies. */
#ifndef ZCRPC_PER_REGION_6_4_H
#define ZCRPC_PER_REGION_6_4_H

#include "zcrpc/strategy.h"

/* Starts a map's sequence, above 0, and its map lock's tickets. Only while the map has no regions and no users. */
void zc_per_region_6_4_start(struct zc_map *map, uint32_t seq, uint32_t tickets);

/* What they are at now: the sequence, and the map lock's completions. Only while the map has no users. */
void zc_per_region_6_4_words(struct zc_map *map, uint32_t *seq, uint32_t *tickets);

#endif
