/* "speculative": a reader that only looks need not hold anything. It looks, and then asks whether a writer came between; it stores nothing
 * that others see. For a hold, and so for a receive, it is "per-region". What Linux 6.14 added to the per-VMA locks (mmap_lock_speculate_*),
 * with a sequence in each region instead of the map's, so that a writer elsewhere disturbs nobody.
 *
 *   region.changes   even: attached; odd: detached. Grows with every write lock, attach and detach; never goes back, whichever map it is in
 *   region.stamp     map.seq of the section that last changed it: being changed ⇔ stamp == map.seq, map.seq odd
 *   map.seq          odd while the map is write-locked; this and all else is per_region.h's
 *
 *   peek     region = index[address];  c = region.changes, odd → refuse;  region.stamp == map.seq → refuse;
 *            region.map is another map's, or address outside [start, end) → refuse
 *   confirm  region.changes == c: everything read of the region since peek belongs together
 *   refused, or not confirmed: look again, or read_lock
 *
 *   region_write_lock  per-region's; stamp = map.seq; changes += 2
 *   attach             stamp = map.seq; changes += 1 (even); per-region's
 *   detach             stamp = map.seq; changes += 1 (odd); per-region's
 *
 * Why a receive needs the hold. What is read can be thrown away if it turns out to be old; what was written cannot. A receive that was only
 * looked up could go into a region that is detached by now and is somebody else's. So read_lock is a real hold, with every guarantee of
 * strategy.h, and it is all that the server uses; peek is for those who read: the laboratory, and look-ups.
 *
 * Invariants. A writer changes `changes` before anything else of the region, and detached regions are odd until they are described again,
 * so fields that do not belong together are never confirmed. "Being changed" may be false, after a wrap: that costs a hold. 2^31 changes of
 * a region within one peek would go unnoticed.
 *
 * Memory orders. A seqlock without fences. Fields are stored with release after `changes`, and loaded with acquire before confirm loads
 * `changes`: who saw a new field sees the new count. peek loads `changes` with acquire, so it sees the stamp stored before it; and map.seq
 * with acquire, against the release in write_unlock: who finds the region unlocked sees what was changed. Whoever reads more of the region or
 * what it guards between the two uses acquire loads, and its writers release stores.
 *
 * Cost. Readers store nothing shared: lines stay in every cache until a writer comes. Stamp and count have a line of their own, apart from
 * the references of those that hold.
 */
#include <errno.h>

#include "lock/atomics.h"
#include "lock/per_region.h"
#include "lock/registry.h"

struct region_lock {
    struct zc_per_region_lock hold;
    alignas(ZC_CACHE_LINE) _Atomic uint32_t changes;
    _Atomic uint32_t stamp;
};

static inline struct region_lock *lock_of(struct zc_region *region) {
    return zc_region_lock(region);
}

static inline _Atomic uint32_t *map_seq(struct zc_map *map) {
    return &((struct zc_per_region_map *)map->lock)->seq;
}

/* ---- readers that only look ---- */

static bool is_inside(struct zc_map *map, struct zc_region *region, uintptr_t address) {
    return atomic_load_explicit(&region->map, ZC_ACQUIRE) == map && address >= atomic_load_explicit(&region->start, ZC_ACQUIRE) &&
           address < atomic_load_explicit(&region->end, ZC_ACQUIRE);
}

static int speculative_peek(struct zc_map *map, uintptr_t address, struct zc_guard *guard) {
    struct zc_region *region = zc_map_find(map, address);
    if (region == NULL)
        return -EAGAIN;
    struct region_lock *r = lock_of(region);
    uint32_t changes = atomic_load_explicit(&r->changes, ZC_ACQUIRE);
    if (changes % 2 != 0 || atomic_load_explicit(&r->stamp, ZC_RELAXED) == atomic_load_explicit(map_seq(map), ZC_ACQUIRE))
        return -EAGAIN;
    if (!is_inside(map, region, address))
        return -EAGAIN;
    *guard = (struct zc_guard){.region = region, .mode = changes};
    return 0;
}

static int speculative_confirm(struct zc_map *map, const struct zc_guard *guard) {
    (void)map;
    return atomic_load_explicit(&lock_of(guard->region)->changes, ZC_RELAXED) == guard->mode ? 0 : -EAGAIN;
}

/* ---- writers ---- */

static void change(struct zc_map *map, struct region_lock *r, uint32_t by) {
    atomic_store_explicit(&r->stamp, atomic_load_explicit(map_seq(map), ZC_RELAXED), ZC_RELAXED);
    atomic_fetch_add_explicit(&r->changes, by, ZC_RELEASE);
}

static void speculative_region_write_lock(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    zc_per_region_region_write_lock(map, self, region);
    change(map, lock_of(region), 2);
}

static void speculative_attach(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    ZC_ASSERT(atomic_load_explicit(&lock_of(region)->changes, ZC_RELAXED) % 2 == 1);
    change(map, lock_of(region), 1);
    zc_per_region_attach(map, self, region);
}

static void speculative_detach(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    change(map, lock_of(region), 1);
    zc_per_region_detach(map, self, region);
}

static void speculative_region_init(struct zc_map *map, struct zc_region *region) {
    zc_per_region_region_init(map, region);
    atomic_init(&lock_of(region)->changes, 1);
}

const struct zc_strategy zc_strategy_speculative = {
    .abi = ZC_STRATEGY_ABI,
    .size = sizeof(struct zc_strategy),
    .name = "speculative",
    .summary = "per-region for those that hold; those that only look store nothing, and look again if a region lock was taken meanwhile",
    .map_size = sizeof(struct zc_per_region_map),
    .region_size = sizeof(struct region_lock),
    .map_init = zc_per_region_map_init,
    .map_destroy = zc_per_region_map_destroy,
    .region_init = speculative_region_init,
    .read_lock = zc_per_region_read_lock,
    .read_unlock = zc_per_region_read_unlock,
    .write_lock = zc_per_region_write_lock,
    .region_write_lock = speculative_region_write_lock,
    .write_unlock = zc_per_region_write_unlock,
    .attach = speculative_attach,
    .detach = speculative_detach,
    .peek = speculative_peek,
    .confirm = speculative_confirm,
};
