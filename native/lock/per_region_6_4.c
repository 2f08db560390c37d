/* "per-region-6.4": a reader-writer lock in every region, which readers only try; the map lock behind it. The kernel's per-VMA locks from 6.4
 * to 6.12 (include/linux/mm.h there): "per-region" before its lock and its mark of being detached became one word.
 *
 *   region.lock      readers in the low bits · bit 31: a writer has it or waits for it
 *   region.seq       the *stamp*: region is write-locked ⇔ region.seq == map.seq, while the map is
 *   region.detached
 *   map.seq          counts write sections, 0 left out
 *   map.lock         a fair rwlock
 *
 *   read_lock     1  region = index[address]; none → fall back
 *                 2  region.seq == map.seq → fall back
 *                 3  try region.lock in read mode; not to be had → fall back
 *                 4  region.seq == map.seq, or detached, or another map's, or address outside → unlock, fall back
 *   fall back     map.lock in read mode, look up there, and hold that lock until read_unlock; "-convert": take region.lock and let it go
 *
 *   write_lock         map.lock in write mode
 *   region_write_lock  stamped already → done; region.lock in write mode (wait for its readers); stamp; unlock region.lock
 *   write_unlock       map.seq += 1, which unlocks every stamped region; map.lock unlocked
 *   attach             stamp; detached = 0
 *   detach             region_write_lock; detached = 1
 *
 * Invariants. As in per_region.c: I1 to I3 and I5. I4 becomes: a detached region lets nobody in, as step 4 finds it stamped until the end of
 * the section and detached from then on. A region whose stamp *happens* to equal map.seq while nobody writes costs a fallback until the
 * next section; the stamp 0 never does, since map.seq leaves it out. On the wrap all stamps become 0, or one of 2^32 sections ago would make
 * its writer believe that it holds the region.
 *
 * Memory orders. Step 3 acquires, against the release when a writer unlocks region.lock: the stamp is seen in step 4. Step 4 loads map.seq
 * with acquire against the release in write_unlock: who finds the region unlocked sees what was changed. Unlocking after reading releases,
 * and the writer that waits for the readers acquires. A reader's count and the writer's bit are in one word.
 *
 * Cost. As "per-region"; the kernel moved on because lock and stamp were two cache lines and 40 bytes in every VMA. Type-stable structs make
 * us check identity and range, which the kernel left to RCU then.
 */
#include "lock/per_region_6_4.h"

#include <errno.h>

#include "lock/registry.h"
#include "lock/under_map_lock.h"

#define WRITER (1u << 31)
#define READERS_LIMIT (1u << 30)

struct map_lock {
    alignas(ZC_CACHE_LINE) _Atomic uint32_t seq;
    struct zc_fair_rwlock lock;
};

struct region_lock {
    alignas(ZC_CACHE_LINE) _Atomic uint32_t lock;
    _Atomic uint32_t seq;
    _Atomic uint32_t detached;
};

enum how { REGION_LOCKED, MAP_LOCKED }; /* zc_guard.mode */

static inline struct region_lock *lock_of(struct zc_region *region) {
    return zc_region_lock(region);
}

/* ---- the lock in a region ---- */

static bool try_to_read(struct region_lock *r) {
    uint32_t readers = atomic_load_explicit(&r->lock, ZC_RELAXED);
    do {
        if (readers >= READERS_LIMIT) /* WRITER is above it */
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&r->lock, &readers, readers + 1, ZC_ACQUIRE, ZC_RELAXED));
    return true;
}

static void unlock_after_read(struct region_lock *r) {
    uint32_t left = atomic_fetch_sub_explicit(&r->lock, 1, ZC_RELEASE) - 1;
    ZC_ASSERT((left & ~WRITER) < READERS_LIMIT);
    if (left == WRITER)
        zc_futex_wake(&r->lock, FUTEX_BITSET_MATCH_ANY);
}

static void lock_to_write(struct region_lock *r, struct zc_actor *self) {
    uint32_t lock = atomic_fetch_or_explicit(&r->lock, WRITER, ZC_ACQUIRE) | WRITER;
    if (lock == WRITER)
        return;
    zc_count(&self->counters.waits);
    for (int spin = 0; (lock = atomic_load_explicit(&r->lock, ZC_ACQUIRE)) != WRITER; spin++) {
        if (spin < ZC_SPINS)
            zc_relax();
        else
            zc_futex_wait(&r->lock, lock, FUTEX_BITSET_MATCH_ANY);
    }
}

static void unlock_after_write(struct region_lock *r) {
    atomic_store_explicit(&r->lock, 0, ZC_RELEASE);
}

/* ---- readers ---- */

static bool is_stamped(struct map_lock *m, struct region_lock *r) {
    return atomic_load_explicit(&m->seq, ZC_ACQUIRE) == atomic_load_explicit(&r->seq, ZC_RELAXED);
}

static bool try_enter(struct zc_map *map, struct zc_region *region, uintptr_t address) {
    struct region_lock *r = lock_of(region);
    if (is_stamped(map->lock, r) || !try_to_read(r))
        return false;
    if (!is_stamped(map->lock, r) && !atomic_load_explicit(&r->detached, ZC_RELAXED) &&
        atomic_load_explicit(&region->map, ZC_RELAXED) == map && zc_region_contains(region, address))
        return true;
    unlock_after_read(r);
    return false;
}

static inline int read_lock(struct zc_map *map, struct zc_actor *self, uintptr_t address, struct zc_guard *guard, bool converts) {
    struct map_lock *m = map->lock;
    struct zc_region *region = zc_map_find(map, address);
    if (region != NULL && try_enter(map, region, address)) {
        zc_count(&self->counters.read_locks);
        *guard = (struct zc_guard){.region = region, .mode = REGION_LOCKED};
        return 0;
    }
    region = zc_find_under(&m->lock, map, self, address);
    if (region == NULL)
        return -ENOENT;
    zc_count(&self->counters.fallbacks);
    *guard = (struct zc_guard){.region = region, .mode = MAP_LOCKED};
    if (converts && try_to_read(lock_of(region))) { /* no writer is in the map: only the limit can stand in the way */
        zc_fair_read_unlock(&m->lock);
        guard->mode = REGION_LOCKED;
    }
    return 0;
}

static int holding_read_lock(struct zc_map *map, struct zc_actor *self, uintptr_t address, struct zc_guard *guard) {
    return read_lock(map, self, address, guard, false);
}

static int converting_read_lock(struct zc_map *map, struct zc_actor *self, uintptr_t address, struct zc_guard *guard) {
    return read_lock(map, self, address, guard, true);
}

static void per_region_read_unlock(struct zc_map *map, struct zc_actor *self, struct zc_guard *guard) {
    (void)self;
    if (guard->mode == REGION_LOCKED)
        unlock_after_read(lock_of(guard->region));
    else
        zc_fair_read_unlock(&((struct map_lock *)map->lock)->lock);
}

/* ---- writers ---- */

static uint32_t section(struct zc_map *map) {
    return atomic_load_explicit(&((struct map_lock *)map->lock)->seq, ZC_RELAXED); /* only writers change it */
}

static void per_region_write_lock(struct zc_map *map, struct zc_actor *self) {
    struct map_lock *m = map->lock;
    if (zc_fair_write_lock(&m->lock))
        zc_count(&self->counters.waits);
    zc_count(&self->counters.write_locks);
}

static void forget_stamps(struct zc_map *map) {
    for (size_t unit = 0; unit < map->units; unit++) {
        struct zc_region *region = atomic_load_explicit(&map->regions[unit], ZC_RELAXED);
        if (region != NULL)
            atomic_store_explicit(&lock_of(region)->seq, 0, ZC_RELAXED);
    }
}

/* Stamps are forgotten after the new sequence is out: until then the section's regions are locked by them, and after it nobody is. */
static void per_region_write_unlock(struct zc_map *map, struct zc_actor *self) {
    (void)self;
    struct map_lock *m = map->lock;
    uint32_t next = section(map) + 1;
    atomic_store_explicit(&m->seq, next != 0 ? next : 1, ZC_RELEASE);
    if (next == 0)
        forget_stamps(map);
    zc_fair_write_unlock(&m->lock);
}

static void per_region_region_write_lock(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    struct region_lock *r = lock_of(region);
    uint32_t seq = section(map);
    if (atomic_load_explicit(&r->seq, ZC_RELAXED) == seq)
        return;
    lock_to_write(r, self);
    atomic_store_explicit(&r->seq, seq, ZC_RELAXED);
    unlock_after_write(r);
}

static void per_region_attach(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    (void)self;
    struct region_lock *r = lock_of(region);
    lock_to_write(r, self); /* a reader may look at a region that is not attached */
    atomic_store_explicit(&r->seq, section(map), ZC_RELAXED);
    atomic_store_explicit(&r->detached, 0, ZC_RELAXED);
    unlock_after_write(r);
}

static void per_region_detach(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    per_region_region_write_lock(map, self, region);
    atomic_store_explicit(&lock_of(region)->detached, 1, ZC_RELAXED);
}

/* ---- the tables ---- */

static int per_region_map_init(struct zc_map *map) {
    zc_per_region_6_4_start(map, 1, 0);
    return 0;
}

static void per_region_map_destroy(struct zc_map *map) {
    (void)map;
}

static void per_region_region_init(struct zc_map *map, struct zc_region *region) {
    (void)map;
    atomic_init(&lock_of(region)->detached, 1);
}

void zc_per_region_6_4_start(struct zc_map *map, uint32_t seq, uint32_t tickets) {
    struct map_lock *m = map->lock;
    ZC_ASSERT(seq != 0);
    atomic_init(&m->seq, seq);
    zc_fair_init(&m->lock, tickets);
}

void zc_per_region_6_4_words(struct zc_map *map, uint32_t *seq, uint32_t *tickets) {
    struct map_lock *m = map->lock;
    *seq = atomic_load_explicit(&m->seq, ZC_RELAXED);
    *tickets = atomic_load_explicit(&m->lock.completions, ZC_RELAXED);
}

#define TABLE                                                                                                                              \
    .abi = ZC_STRATEGY_ABI, .size = sizeof(struct zc_strategy), .map_size = sizeof(struct map_lock),                                       \
    .region_size = sizeof(struct region_lock), .map_init = per_region_map_init, .map_destroy = per_region_map_destroy,                     \
    .region_init = per_region_region_init, .read_unlock = per_region_read_unlock, .write_lock = per_region_write_lock,                     \
    .region_write_lock = per_region_region_write_lock, .write_unlock = per_region_write_unlock, .attach = per_region_attach,               \
    .detach = per_region_detach

const struct zc_strategy zc_strategy_per_region_6_4 = {
    .name = "per-region-6.4",
    .summary = "a lock to try and a stamp in every region, the map lock behind them (Linux 6.4's per-VMA locks)",
    .read_lock = holding_read_lock,
    TABLE,
};

const struct zc_strategy zc_strategy_per_region_6_4_convert = {
    .name = "per-region-6.4-convert",
    .summary = "per-region-6.4, whose readers hold the region's lock even after a fallback to the map lock",
    .read_lock = converting_read_lock,
    TABLE,
};
