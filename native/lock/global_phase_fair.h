/* A door for tests and the laboratory into the "global-phase-fair" strategy. */
#ifndef ZCRPC_GLOBAL_PHASE_FAIR_H
#define ZCRPC_GLOBAL_PHASE_FAIR_H

#include "zcrpc/strategy.h"

/* Starts a map's counts of readers and writers just below a wrap, say. Only while the map has no users. */
void zc_phase_fair_start(struct zc_map *map, uint32_t readers, uint32_t writers);

/* What they are at now: readers that have left, in the high 24 bits, and writers that were served. Only while the map has no users. */
void zc_phase_fair_words(struct zc_map *map, uint32_t *left, uint32_t *served);

#endif
