/* "global": one fair reader-writer lock around the whole map. What the kernel did before per-VMA locks.
 *
 *   read_lock      map lock in read mode; look the region up; hold the lock until read_unlock
 *   write_lock     map lock in write mode; every region is write-locked with it
 *
 * Invariants. Whoever is in the map in either mode keeps writers out of all of it, so a region that was found stays where it is: identity
 * and range are checked under the lock, and attaching and detaching need nothing more.
 *
 * Memory orders. All of them are the rwlock's.
 *
 * Cost. A reader writes the lock's cache line twice, whichever region it is after: two line transfers per operation under contention. And
 * while a writer is inside, every reader waits.
 */
#include <errno.h>

#include "lock/fair_rwlock.h"
#include "lock/registry.h"

static int global_map_init(struct zc_map *map) {
    zc_fair_init(map->lock, 0);
    return 0;
}

static void global_map_destroy(struct zc_map *map) {
    (void)map;
}

static void global_region_init(struct zc_map *map, struct zc_region *region) {
    (void)map, (void)region;
}

static int global_read_lock(struct zc_map *map, struct zc_actor *self, uintptr_t address, struct zc_guard *guard) {
    if (zc_fair_read_lock(map->lock))
        zc_count(&self->counters.waits);
    struct zc_region *region = zc_map_find(map, address);
    if (region == NULL || !zc_region_contains(region, address)) {
        zc_fair_read_unlock(map->lock);
        zc_count(&self->counters.misses);
        return -ENOENT;
    }
    zc_count(&self->counters.read_locks);
    *guard = (struct zc_guard){.region = region};
    return 0;
}

static void global_read_unlock(struct zc_map *map, struct zc_actor *self, struct zc_guard *guard) {
    (void)self, (void)guard;
    zc_fair_read_unlock(map->lock);
}

static void global_write_lock(struct zc_map *map, struct zc_actor *self) {
    if (zc_fair_write_lock(map->lock))
        zc_count(&self->counters.waits);
    zc_count(&self->counters.write_locks);
}

static void global_write_unlock(struct zc_map *map, struct zc_actor *self) {
    (void)self;
    zc_fair_write_unlock(map->lock);
}

/* Write-locking, attaching or detaching a region: the map lock says it all. */
static void global_region_nothing(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    (void)map, (void)self, (void)region;
}

const struct zc_strategy zc_strategy_global = {
    .abi = ZC_STRATEGY_ABI,
    .size = sizeof(struct zc_strategy),
    .name = "global",
    .summary = "one fair reader-writer lock around the whole map",
    .map_size = sizeof(struct zc_fair_rwlock),
    .region_size = 0,
    .map_init = global_map_init,
    .map_destroy = global_map_destroy,
    .region_init = global_region_init,
    .read_lock = global_read_lock,
    .read_unlock = global_read_unlock,
    .write_lock = global_write_lock,
    .region_write_lock = global_region_nothing,
    .write_unlock = global_write_unlock,
    .attach = global_region_nothing,
    .detach = global_region_nothing,
};
