/* The common part of every strategy that is one lock around the whole map: a strategy file defines a lock, includes this, and is done.
 *
 *   read_lock      the lock in read mode; look the region up; hold the lock until read_unlock
 *   write_lock     the lock in write mode; every region is write-locked with it
 *
 * Invariants. Whoever is in the map in either mode keeps writers out of all of it, so a region that was found stays where it is: identity
 * and range are checked under the lock, and attaching and detaching need nothing more. Memory orders are all the lock's.
 *
 * To be defined before: the type lock_type (its zeroed bytes come first in the map's lock state) and
 *
 *   int  init_lock(lock_type *)                                        0 or a negative errno
 *   void destroy_lock(lock_type *)
 *   bool lock_to_read(lock_type *, struct zc_actor *, uintptr_t *mode) whether it had to wait; mode is 0 and comes back in unlock
 *   void unlock_after_read(lock_type *, struct zc_actor *, uintptr_t mode)
 *   bool lock_to_write(lock_type *)                                    whether it had to wait
 *   void unlock_after_write(lock_type *)
 *
 * and STRATEGY, STRATEGY_NAME, STRATEGY_SUMMARY.
 */
#include <errno.h>
#include <stdbool.h>

#include "lock/registry.h"

static int around_map_init(struct zc_map *map) {
    return init_lock(map->lock);
}

static void around_map_destroy(struct zc_map *map) {
    destroy_lock(map->lock);
}

static void around_region_init(struct zc_map *map, struct zc_region *region) {
    (void)map, (void)region;
}

static int around_read_lock(struct zc_map *map, struct zc_actor *self, uintptr_t address, struct zc_guard *guard) {
    uintptr_t mode = 0;
    if (lock_to_read(map->lock, self, &mode))
        zc_count(&self->counters.waits);
    struct zc_region *region = zc_map_find(map, address);
    if (region == NULL || !zc_region_contains(region, address)) {
        unlock_after_read(map->lock, self, mode);
        zc_count(&self->counters.misses);
        return -ENOENT;
    }
    zc_count(&self->counters.read_locks);
    *guard = (struct zc_guard){.region = region, .mode = mode};
    return 0;
}

static void around_read_unlock(struct zc_map *map, struct zc_actor *self, struct zc_guard *guard) {
    unlock_after_read(map->lock, self, guard->mode);
}

static void around_write_lock(struct zc_map *map, struct zc_actor *self) {
    if (lock_to_write(map->lock))
        zc_count(&self->counters.waits);
    zc_count(&self->counters.write_locks);
}

static void around_write_unlock(struct zc_map *map, struct zc_actor *self) {
    (void)self;
    unlock_after_write(map->lock);
}

/* Write-locking, attaching or detaching a region: the map lock says it all. */
static void around_nothing(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    (void)map, (void)self, (void)region;
}

const struct zc_strategy STRATEGY = {
    .abi = ZC_STRATEGY_ABI,
    .size = sizeof(struct zc_strategy),
    .name = STRATEGY_NAME,
    .summary = STRATEGY_SUMMARY,
    .map_size = sizeof(lock_type),
    .region_size = 0,
    .map_init = around_map_init,
    .map_destroy = around_map_destroy,
    .region_init = around_region_init,
    .read_lock = around_read_lock,
    .read_unlock = around_read_unlock,
    .write_lock = around_write_lock,
    .region_write_lock = around_nothing,
    .write_unlock = around_write_unlock,
    .attach = around_nothing,
    .detach = around_nothing,
};
