/* What "speculative" builds on of "per-region", and a door into it for tests and the laboratory. */
#ifndef ZCRPC_PER_REGION_H
#define ZCRPC_PER_REGION_H

#include "lock/fair_rwlock.h"
#include "zcrpc/strategy.h"

struct zc_per_region_map {
    alignas(ZC_CACHE_LINE) _Atomic uint32_t seq; /* on a line of its own: read by all, written by writers */
    struct zc_fair_rwlock lock;
    bool written; /* ever; guarded by lock */
};

struct zc_per_region_lock {
    alignas(ZC_CACHE_LINE) _Atomic uint32_t refs;
    _Atomic uint32_t seq;
};

int zc_per_region_map_init(struct zc_map *map);
void zc_per_region_map_destroy(struct zc_map *map);
void zc_per_region_region_init(struct zc_map *map, struct zc_region *region);
int zc_per_region_read_lock(struct zc_map *map, struct zc_actor *self, uintptr_t address, struct zc_guard *guard);
void zc_per_region_read_unlock(struct zc_map *map, struct zc_actor *self, struct zc_guard *guard);
void zc_per_region_write_lock(struct zc_map *map, struct zc_actor *self);
void zc_per_region_region_write_lock(struct zc_map *map, struct zc_actor *self, struct zc_region *region);
void zc_per_region_write_unlock(struct zc_map *map, struct zc_actor *self);
void zc_per_region_attach(struct zc_map *map, struct zc_actor *self, struct zc_region *region);
void zc_per_region_detach(struct zc_map *map, struct zc_actor *self, struct zc_region *region);

/* Starts a map's sequence at an even number, and its map lock's tickets at `tickets`: just before a wrap, say. Only while the map has no
 * regions and no users. */
void zc_per_region_start(struct zc_map *map, uint32_t seq, uint32_t tickets);

/* What a region's reference word holds now: 0 detached, 1 attached, 1 + k with k readers, bit 30: a writer drains. */
uint32_t zc_per_region_refs(struct zc_region *region);

#endif
