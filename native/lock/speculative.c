/* "speculative": a reader that only looks need not hold anything. It looks, and then asks whether a writer came between; it stores nothing
 * that others see. For a hold, and so for a receive, it is "per-region". What Linux 6.14 added to the per-VMA locks (mmap_lock_speculate_*),
 * with a sequence in each region instead of the map's, so that a writer elsewhere disturbs nobody.
 *
 *   region.changes   even: attached and not being changed; odd: being changed, or detached. Only grows, whichever map the region is in
 *   map.changed      the regions that the section has made odd and its end makes even
 *   all else is per_region.h's
 *
 *   peek     region = index[address];  c = region.changes, odd → refuse;
 *            region.map is another map's, or address outside [start, end) → refuse
 *   confirm  region.changes == c: everything read of the region since peek belongs together
 *   refused, or not confirmed: look again, or read_lock
 *
 *   region_write_lock  per-region's; changes += 1 (odd), once in a section; into map.changed
 *   attach             (odd since it was made or detached) into map.changed; per-region's
 *   detach             out of map.changed if it is there, else changes += 1 (odd); per-region's
 *   write_unlock       changes += 1 (even) for all of map.changed; per-region's
 *
 * Why a receive needs the hold. What is read can be thrown away if it turns out to be old; what was written cannot. A receive that was only
 * looked up could go into a region that is detached by now and is somebody else's. So read_lock is a real hold, with every guarantee of
 * strategy.h, and it is all that the server uses; peek is for those who read: the laboratory, and look-ups.
 *
 * Invariants. A region is odd from before the first change of it in a section until after the last, and while it is detached, so fields that
 * do not belong together are never confirmed. map.changed and a region's place in it belong to whoever has the map write-locked; a region
 * that is on no map is in no list. 2^31 changes of a region within one peek would go unnoticed.
 *
 * Memory orders. A seqlock without fences. Fields are stored with release after the odd count, and loaded with acquire before confirm loads
 * `changes`: who saw a new field sees that the count moved. The even count is stored with release, and peek loads it with acquire: who finds
 * the region unlocked sees what was changed. Whoever reads more of the region or what it guards between the two uses acquire loads, and its
 * writers release stores.
 *
 * Cost. Readers store nothing shared, and load nothing that is written for another region's sake: not even the map's sequence, which a busy
 * writer takes out of every cache. The price is the writer's: ending a section takes a store for each region that it changed. The count has a
 * line of its own, apart from the references of those that hold.
 */
#include <errno.h>

#include "lock/atomics.h"
#include "lock/per_region.h"
#include "lock/registry.h"

struct region_lock {
    struct zc_per_region_lock hold;
    alignas(ZC_CACHE_LINE) _Atomic uint32_t changes;
    struct region_lock *next, **link; /* in map.changed: who follows, and what points here; NULL where it is in no list */
};

struct map_lock {
    struct zc_per_region_map hold;
    struct region_lock *changed;
};

static inline struct region_lock *lock_of(struct zc_region *region) {
    return zc_region_lock(region);
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
    if (changes % 2 != 0 || !is_inside(map, region, address))
        return -EAGAIN;
    *guard = (struct zc_guard){.region = region, .mode = changes};
    return 0;
}

static int speculative_confirm(struct zc_map *map, const struct zc_guard *guard) {
    (void)map;
    return atomic_load_explicit(&lock_of(guard->region)->changes, ZC_RELAXED) == guard->mode ? 0 : -EAGAIN;
}

/* ---- writers ---- */

static void count(struct region_lock *r, memory_order order) {
    atomic_store_explicit(&r->changes, atomic_load_explicit(&r->changes, ZC_RELAXED) + 1, order); /* the only writer of this region */
}

static bool is_odd(struct region_lock *r) {
    return atomic_load_explicit(&r->changes, ZC_RELAXED) % 2 != 0;
}

static void note(struct zc_map *map, struct region_lock *r) {
    struct map_lock *m = map->lock;
    ZC_ASSERT(is_odd(r) && r->link == NULL);
    r->next = m->changed;
    r->link = &m->changed;
    if (r->next != NULL)
        r->next->link = &r->next;
    m->changed = r;
}

static void forget(struct region_lock *r) {
    if (r->next != NULL)
        r->next->link = r->link;
    *r->link = r->next;
    r->link = NULL;
}

static void speculative_region_write_lock(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    struct region_lock *r = lock_of(region);
    zc_per_region_region_write_lock(map, self, region);
    if (r->link != NULL)
        return;
    count(r, ZC_RELAXED);
    note(map, r);
}

static void speculative_attach(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    note(map, lock_of(region));
    zc_per_region_attach(map, self, region);
}

static void speculative_detach(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    struct region_lock *r = lock_of(region);
    if (r->link != NULL)
        forget(r);
    else
        count(r, ZC_RELAXED);
    zc_per_region_detach(map, self, region);
}

static void speculative_write_unlock(struct zc_map *map, struct zc_actor *self) {
    struct map_lock *m = map->lock;
    while (m->changed != NULL) {
        struct region_lock *r = m->changed;
        forget(r);
        count(r, ZC_RELEASE);
        ZC_ASSERT(!is_odd(r));
    }
    zc_per_region_write_unlock(map, self);
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
    .map_size = sizeof(struct map_lock),
    .region_size = sizeof(struct region_lock),
    .map_init = zc_per_region_map_init,
    .map_destroy = zc_per_region_map_destroy,
    .region_init = speculative_region_init,
    .read_lock = zc_per_region_read_lock,
    .read_unlock = zc_per_region_read_unlock,
    .write_lock = zc_per_region_write_lock,
    .region_write_lock = speculative_region_write_lock,
    .write_unlock = speculative_write_unlock,
    .attach = speculative_attach,
    .detach = speculative_detach,
    .peek = speculative_peek,
    .confirm = speculative_confirm,
};
