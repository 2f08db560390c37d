/* "region-rwlock": a reader-writer lock in every region, and the map lock only to find it. The plain way to lock regions.
 *
 *   read_lock          map lock in read mode; look up; region's lock in read mode; let the map lock go
 *   read_unlock        region's lock
 *   write_lock         map lock in write mode
 *   region_write_lock  held already → done; region's lock in write mode; remember the region
 *   write_unlock       unlock every remembered region, then the map lock
 *   attach             nothing: a region that was detached in this section stays locked until its end
 *   detach             region_write_lock: nobody is inside, and nobody looks up while the map is write-locked
 *
 * Invariants. Order is map, then region. A region is write-locked only while the map is, and readers come to a region's lock only with the
 * map lock in read mode: so they never wait there. Only writers do, for readers that hold the region and nothing else. A region that was
 * found stays where it is, first by the map lock, then by its own; so it is checked once.
 *
 * Memory orders. The fair lock's. `held` and the chain of held regions are plain: guarded by the map lock in write mode.
 *
 * Cost. Four read-modify-writes, of which two are on the map lock's line, which all readers share; but a writer that has to wait for a
 * receive, and a receive that is under way, keep only the readers of a new region waiting, not those that are inside.
 */
#include <errno.h>

#include "lock/registry.h"
#include "lock/under_map_lock.h"

struct region_lock {
    struct zc_fair_rwlock lock;
    struct region_lock *next_held;
    bool held;
};

struct map_lock {
    struct zc_fair_rwlock lock; /* first: tests start its tickets before a wrap */
    struct region_lock *held;
};

static inline struct region_lock *lock_of(struct zc_region *region) {
    return zc_region_lock(region);
}

static int region_rwlock_map_init(struct zc_map *map) {
    struct map_lock *m = map->lock;
    zc_fair_init(&m->lock, 0);
    return 0;
}

static void region_rwlock_map_destroy(struct zc_map *map) {
    (void)map;
}

static void region_rwlock_region_init(struct zc_map *map, struct zc_region *region) {
    (void)map;
    zc_fair_init(&lock_of(region)->lock, 0);
}

static int region_rwlock_read_lock(struct zc_map *map, struct zc_actor *self, uintptr_t address, struct zc_guard *guard) {
    struct map_lock *m = map->lock;
    struct zc_region *region = zc_find_under(&m->lock, map, self, address);
    if (region == NULL)
        return -ENOENT;
    bool waited = zc_fair_read_lock(&lock_of(region)->lock);
    ZC_ASSERT(!waited);
    (void)waited;
    zc_fair_read_unlock(&m->lock);
    *guard = (struct zc_guard){.region = region};
    return 0;
}

static void region_rwlock_read_unlock(struct zc_map *map, struct zc_actor *self, struct zc_guard *guard) {
    (void)map, (void)self;
    zc_fair_read_unlock(&lock_of(guard->region)->lock);
}

static void region_rwlock_write_lock(struct zc_map *map, struct zc_actor *self) {
    struct map_lock *m = map->lock;
    if (zc_fair_write_lock(&m->lock))
        zc_count(&self->counters.waits);
    zc_count(&self->counters.write_locks);
    ZC_ASSERT(m->held == NULL);
}

static void region_rwlock_region_write_lock(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    struct map_lock *m = map->lock;
    struct region_lock *r = lock_of(region);
    if (r->held)
        return;
    if (zc_fair_write_lock(&r->lock))
        zc_count(&self->counters.waits);
    r->held = true;
    r->next_held = m->held;
    m->held = r;
}

static void region_rwlock_write_unlock(struct zc_map *map, struct zc_actor *self) {
    (void)self;
    struct map_lock *m = map->lock;
    for (struct region_lock *r = m->held, *next; r != NULL; r = next) {
        next = r->next_held;
        r->held = false;
        zc_fair_write_unlock(&r->lock);
    }
    m->held = NULL;
    zc_fair_write_unlock(&m->lock);
}

static void region_rwlock_attach(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    (void)map, (void)self, (void)region;
}

const struct zc_strategy zc_strategy_region_rwlock = {
    .abi = ZC_STRATEGY_ABI,
    .size = sizeof(struct zc_strategy),
    .name = "region-rwlock",
    .summary = "a fair reader-writer lock in every region, found under the map lock",
    .map_size = sizeof(struct map_lock),
    .region_size = sizeof(struct region_lock),
    .map_init = region_rwlock_map_init,
    .map_destroy = region_rwlock_map_destroy,
    .region_init = region_rwlock_region_init,
    .read_lock = region_rwlock_read_lock,
    .read_unlock = region_rwlock_read_unlock,
    .write_lock = region_rwlock_write_lock,
    .region_write_lock = region_rwlock_region_write_lock,
    .write_unlock = region_rwlock_write_unlock,
    .attach = region_rwlock_attach,
    .detach = region_rwlock_region_write_lock,
};
