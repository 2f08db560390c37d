/* A door for tests into the "global-phase-fair" strategy. */
#ifndef ZCRPC_GLOBAL_PHASE_FAIR_H
#define ZCRPC_GLOBAL_PHASE_FAIR_H

#include "zcrpc/strategy.h"

/* Starts a map's counts of readers and writers just below a wrap, say. Only while the map has no users. */
void zc_phase_fair_start(struct zc_map *map, uint32_t readers, uint32_t writers);

#endif
