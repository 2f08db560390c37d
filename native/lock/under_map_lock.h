/* Looking a region up with the map's fair lock in read mode: what a strategy with locks in its regions falls back on, and where alone it
 * believes that there is no region. */
#ifndef ZCRPC_UNDER_MAP_LOCK_H
#define ZCRPC_UNDER_MAP_LOCK_H

#include "lock/fair_rwlock.h"
#include "zcrpc/strategy.h"

/* The region at the address, with `lock` held in read mode; or NULL, without it. */
static inline struct zc_region *zc_find_under(struct zc_fair_rwlock *lock, struct zc_map *map, struct zc_actor *self, uintptr_t address) {
    if (zc_fair_read_lock(lock))
        zc_count(&self->counters.waits);
    struct zc_region *region = zc_map_find(map, address);
    if (region != NULL && zc_region_contains(region, address)) {
        zc_count(&self->counters.read_locks);
        return region;
    }
    zc_fair_read_unlock(lock);
    zc_count(&self->counters.misses);
    return NULL;
}

#endif
