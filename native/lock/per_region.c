/* "per-region": a lock in every region, which readers only ever try; the map lock for writers and for readers whose try failed. The protocol
 * of the kernel's per-VMA locks since Linux 6.15 (mm/mmap_lock.c, include/linux/mmap_lock.h).
 *
 *   region.refs   0 detached · 1 attached · 1 + k with k readers · bit 30: a writer is draining the readers
 *   region.seq    the *stamp*: region is write-locked ⇔ region.seq == map.seq, map.seq odd
 *   map.seq       odd while the map is write-locked
 *   map.lock      a fair rwlock
 *
 *   read_lock     1  region = index[address]; none → fall back
 *                 2  region.seq == map.seq → fall back
 *                 3  refs += 1, unless it is 0 → look up again, or bit 30 is set or the count at its limit → fall back
 *                 4  region.seq == map.seq → put, fall back
 *                 5  region.map is another map's → put, fall back
 *                 6  address outside [start, end) → put, fall back
 *   fall back     map.lock in read mode, look up there, and hold that lock until read_unlock; a miss is only believed here
 *                 "per-region-convert": refs += 1 there, unless it is at its limit, and let map.lock go; a receive never holds it
 *   put           refs -= 1; bit 30 was set and no reader is left → wake the writer
 *
 *   write_lock         map.lock in write mode, map.seq += 1 (odd)
 *   region_write_lock  stamped already → done; refs += bit 30; wait until refs == 1 + bit 30; region.seq = map.seq; refs -= bit 30
 *   write_unlock       map.seq += 1 (even), which unlocks every stamped region at once; map.lock unlocked
 *   attach             region.seq = map.seq; refs = 1
 *   detach             refs -= 1; if that is not 0: refs += bit 30, wait until refs == bit 30, refs = 0
 *
 * Invariants.
 *   I1  A region is stamped, attached and detached only with the map write-locked. Order is map, then region; a reader never waits for a
 *       region, and holds none when it waits for the map.
 *   I2  Between stamping and write_unlock a reader may hold a reference only for as long as steps 3 to 6 take.
 *   I3  "Locked" may be false (the sequence wrapped, the struct belongs to another map): that costs a fallback. "Unlocked" never is.
 *   I4  refs == 0 lets nobody in; only attach leaves 0.
 *   I5  One writer per map, so at most one thread waits for a region.
 *
 * Memory orders. Reader's step 3 acquires: against attach's release store, so the fields are those of this attachment; and against a
 * writer's release when it takes bit 30 off, so the stamp and the odd map.seq are seen in step 4. Step 4 loads map.seq with acquire, against
 * the release in write_unlock: a reader that finds the region unlocked sees what the writer changed. Put releases, and the draining writer
 * acquires: what readers did in there is over. The reader's mark and the writer's flag are in *one* word, hence ordered by coherence: no
 * store→load fence is needed on either side. Step 2 is relaxed, as it only saves work.
 *
 * Where this differs from the kernel.
 *   - The draining writer sleeps on refs itself rather than in a slot of the map. Region structs are type-stable, so the wake after the
 *     decrement uses an address that stays good, even if region and map are gone by then; the kernel had to pin the map for that.
 *   - Stamps are compared for equality, and a stamp that is 2^31 write locks old would look like a lock that its writer already holds: its
 *     readers would not be drained. So attach stamps anew, and write_lock sweeps all stamps once per wrap. (The kernel lives with it.)
 *   - Looking up again is bounded: if the writer was preempted between detach and clearing the index, readers queue at the map lock.
 *
 * The two fallbacks. Holding map.lock through a receive, as the kernel does, makes the next writer wait for that receive, and everybody who
 * falls back behind the writer; converting costs two more read-modify-writes in a fallback, and none without.
 *
 * Cost. Readers of different regions write no line in common: map.seq and the index are only read, and counters are the actor's.
 */
#include "lock/per_region.h"

#include <errno.h>

#include "lock/faults.h"
#include "lock/registry.h"
#include "lock/under_map_lock.h"

#define EXCLUDE (1u << 30)
#define READERS_LIMIT (EXCLUDE - 1)
#define LOOKUPS 3

enum how { REGION_LOCKED, MAP_LOCKED }; /* zc_guard.mode */

static inline struct zc_per_region_lock *lock_of(struct zc_region *region) {
    return zc_region_lock(region);
}

static uint32_t writer_seq(struct zc_per_region_map *m) {
    uint32_t seq = atomic_load_explicit(&m->seq, ZC_RELAXED); /* only the writer, who asks, changes it */
    ZC_ASSERT(seq % 2 == 1);
    return seq;
}

/* ---- readers ---- */

/* What readers seldom do is in functions of its own, so that the rest needs no stack: what is pushed has to leave the store buffer before a
 * locked instruction is done. */
#define SELDOM __attribute__((noinline, cold)) static
#define INLINED __attribute__((always_inline)) static inline

SELDOM void wake_writer(struct zc_region *region) {
    zc_preempted_here();
    if (ZC_FAULT(4)) { /* the kernel's waiter sleeps on a word of the map, which has to be found first */
        struct zc_per_region_map *m = atomic_load_explicit(&region->map, ZC_RELAXED)->lock;
        zc_futex_wake(&m->seq, FUTEX_BITSET_MATCH_ANY);
    }
    zc_futex_wake(&lock_of(region)->refs, FUTEX_BITSET_MATCH_ANY); /* the region may be anything by now: only its address is used */
}

static inline void put(struct zc_region *region) {
    uint32_t left = atomic_fetch_sub_explicit(&lock_of(region)->refs, 1, ZC_FAULT(1) ? ZC_RELAXED : ZC_RELEASE) - 1;
    ZC_ASSERT((left & ~EXCLUDE) < READERS_LIMIT);
    if (left == EXCLUDE || left == EXCLUDE + 1) /* nobody but perhaps the attachment itself */
        wake_writer(region);
}

enum attempt { ENTERED, GONE, REFUSED, TO_PUT }; /* TO_PUT: refused, with a reference that is to be put */

INLINED bool is_there(struct zc_map *map, struct zc_region *region, uintptr_t address) {
    return atomic_load_explicit(&region->map, ZC_RELAXED) == map && zc_region_contains(region, address);
}

static inline enum attempt try_enter(struct zc_map *map, struct zc_region *region, uintptr_t address) {
    struct zc_per_region_map *m = map->lock;
    struct zc_per_region_lock *r = lock_of(region);
    if (atomic_load_explicit(&r->seq, ZC_RELAXED) == atomic_load_explicit(&m->seq, ZC_RELAXED))
        return REFUSED;
    if (ZC_FAULT(2) && !is_there(map, region, address))
        return REFUSED;
    zc_preempted_here();
    uint32_t refs = atomic_load_explicit(&r->refs, ZC_RELAXED);
    do {
        if (refs == 0)
            return GONE;
        if (refs >= READERS_LIMIT && !(ZC_FAULT(6) && refs < EXCLUDE)) /* bit 30 is above it */
            return REFUSED;
    } while (!atomic_compare_exchange_weak_explicit(&r->refs, &refs, refs + 1, ZC_ACQUIRE, ZC_RELAXED));
    bool may = atomic_load_explicit(&m->seq, ZC_ACQUIRE) != atomic_load_explicit(&r->seq, ZC_RELAXED) &&
               (ZC_FAULT(2) || ZC_FAULT(5) || is_there(map, region, address));
    return may ? ENTERED : TO_PUT;
}

/* With the map lock held in read mode, so that no writer is in the map: the region's lock instead of it, unless its count is at the limit. */
static enum how convert(struct zc_per_region_map *m, struct zc_region *region) {
    struct zc_per_region_lock *r = lock_of(region);
    uint32_t refs = atomic_load_explicit(&r->refs, ZC_RELAXED);
    do {
        ZC_ASSERT(refs > 0 && refs < EXCLUDE);
        if (refs >= READERS_LIMIT)
            return MAP_LOCKED;
    } while (!atomic_compare_exchange_weak_explicit(&r->refs, &refs, refs + 1, ZC_ACQUIRE, ZC_RELAXED));
    zc_fair_read_unlock(&m->lock);
    return REGION_LOCKED;
}

SELDOM int fall_back(struct zc_map *map, struct zc_actor *self, uintptr_t address, struct zc_guard *guard, bool converts) {
    struct zc_per_region_map *m = map->lock;
    struct zc_region *region = zc_find_under(&m->lock, map, self, address);
    if (region == NULL)
        return -ENOENT;
    zc_count(&self->counters.fallbacks);
    *guard = (struct zc_guard){.region = region, .mode = converts ? convert(m, region) : MAP_LOCKED};
    return 0;
}

SELDOM int put_and_fall_back(struct zc_map *map, struct zc_actor *self, uintptr_t address, struct zc_guard *guard, struct zc_region *region,
                             bool converts) {
    struct zc_per_region_map *m = map->lock;
    if (ZC_FAULT(9)) { /* as if falling back first and putting then */
        zc_fair_read_lock(&m->lock);
        zc_fair_read_unlock(&m->lock);
    }
    put(region);
    return fall_back(map, self, address, guard, converts);
}

INLINED int read_lock(struct zc_map *map, struct zc_actor *self, uintptr_t address, struct zc_guard *guard, bool converts, int lookup);

/* The region that the index had was gone. */
SELDOM int look_up_again(struct zc_map *map, struct zc_actor *self, uintptr_t address, struct zc_guard *guard, bool converts, int lookup) {
    zc_count(&self->counters.retries);
    if (lookup == LOOKUPS)
        return fall_back(map, self, address, guard, converts);
    return read_lock(map, self, address, guard, converts, lookup + 1);
}

INLINED int read_lock(struct zc_map *map, struct zc_actor *self, uintptr_t address, struct zc_guard *guard, bool converts, int lookup) {
    struct zc_region *region = zc_map_find(map, address);
    switch (region != NULL ? try_enter(map, region, address) : REFUSED) {
    case ENTERED:
        zc_count(&self->counters.read_locks);
        *guard = (struct zc_guard){.region = region, .mode = REGION_LOCKED};
        return 0;
    case GONE:
        return look_up_again(map, self, address, guard, converts, lookup);
    case TO_PUT:
        return put_and_fall_back(map, self, address, guard, region, converts);
    default:
        return fall_back(map, self, address, guard, converts);
    }
}

int zc_per_region_read_lock(struct zc_map *map, struct zc_actor *self, uintptr_t address, struct zc_guard *guard) {
    return read_lock(map, self, address, guard, false, 1);
}

static int converting_read_lock(struct zc_map *map, struct zc_actor *self, uintptr_t address, struct zc_guard *guard) {
    return read_lock(map, self, address, guard, true, 1);
}

void zc_per_region_read_unlock(struct zc_map *map, struct zc_actor *self, struct zc_guard *guard) {
    (void)self;
    if (guard->mode == REGION_LOCKED)
        put(guard->region);
    else
        zc_fair_read_unlock(&((struct zc_per_region_map *)map->lock)->lock);
}

/* ---- writers ---- */

/* Once in 2^31 write locks. An even stamp never equals an odd sequence, so no region looks write-locked by a writer that it was not. */
static void sweep_stamps(struct zc_map *map) {
    for (size_t unit = 0; unit < map->units; unit++) {
        struct zc_region *region = atomic_load_explicit(&map->regions[unit], ZC_RELAXED);
        if (region != NULL)
            atomic_store_explicit(&lock_of(region)->seq, 0, ZC_RELAXED);
    }
}

void zc_per_region_write_lock(struct zc_map *map, struct zc_actor *self) {
    struct zc_per_region_map *m = map->lock;
    if (zc_fair_write_lock(&m->lock))
        zc_count(&self->counters.waits);
    zc_count(&self->counters.write_locks);
    uint32_t seq = atomic_load_explicit(&m->seq, ZC_RELAXED) + 1;
    ZC_ASSERT(seq % 2 == 1);
    atomic_store_explicit(&m->seq, seq, ZC_RELAXED);
    if (seq == 1 && m->written && !ZC_FAULT(7)) /* not the first time: wrapped */
        sweep_stamps(map);
    m->written = true;
}

void zc_per_region_write_unlock(struct zc_map *map, struct zc_actor *self) {
    (void)self;
    struct zc_per_region_map *m = map->lock;
    atomic_store_explicit(&m->seq, writer_seq(m) + 1, ZC_FAULT(1) ? ZC_RELAXED : ZC_RELEASE);
    zc_fair_write_unlock(&m->lock);
}

/* Waits until refs is `drained`; the flag is set, so readers only leave. */
static void drain(struct zc_per_region_lock *r, uint32_t refs, uint32_t drained, struct zc_actor *self) {
    if (refs == drained)
        return;
    zc_count(&self->counters.waits);
    for (int spin = 0; (refs = atomic_load_explicit(&r->refs, ZC_ACQUIRE)) != drained; spin++) {
        if (spin < ZC_SPINS)
            zc_relax();
        else
            zc_futex_wait(&r->refs, refs, FUTEX_BITSET_MATCH_ANY);
    }
}

void zc_per_region_region_write_lock(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    struct zc_per_region_lock *r = lock_of(region);
    uint32_t seq = writer_seq(map->lock);
    if (atomic_load_explicit(&r->seq, ZC_RELAXED) == seq)
        return;
    uint32_t refs = atomic_fetch_add_explicit(&r->refs, EXCLUDE, ZC_ACQUIRE) + EXCLUDE;
    ZC_ASSERT(refs > EXCLUDE && refs < 2 * EXCLUDE);
    drain(r, refs, EXCLUDE + 1, self);
    atomic_store_explicit(&r->seq, seq, ZC_RELAXED);
    atomic_fetch_sub_explicit(&r->refs, EXCLUDE, ZC_RELEASE);
}

void zc_per_region_attach(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    (void)self;
    struct zc_per_region_lock *r = lock_of(region);
    ZC_ASSERT(atomic_load_explicit(&r->refs, ZC_RELAXED) == 0);
    atomic_store_explicit(&r->seq, writer_seq(map->lock), ZC_RELAXED);
    atomic_store_explicit(&r->refs, 1, ZC_RELEASE);
}

void zc_per_region_detach(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    struct zc_per_region_lock *r = lock_of(region);
    ZC_ASSERT(writer_seq(map->lock) % 2 == 1);
    (void)map;
    uint32_t refs = atomic_fetch_sub_explicit(&r->refs, 1, ZC_ACQUIRE) - 1;
    ZC_ASSERT(refs < EXCLUDE);
    if (refs == 0)
        return;
    refs = atomic_fetch_add_explicit(&r->refs, EXCLUDE, ZC_ACQUIRE) + EXCLUDE;
    drain(r, refs, EXCLUDE, self);
    atomic_store_explicit(&r->refs, 0, ZC_RELAXED); /* nobody changes it under the flag */
}

/* ---- the table ---- */

int zc_per_region_map_init(struct zc_map *map) {
    zc_per_region_start(map, 0, 0);
    return 0;
}

void zc_per_region_map_destroy(struct zc_map *map) {
    (void)map;
}

void zc_per_region_region_init(struct zc_map *map, struct zc_region *region) {
    (void)map;
    atomic_init(&lock_of(region)->refs, 0);
    atomic_init(&lock_of(region)->seq, 0);
}

void zc_per_region_start(struct zc_map *map, uint32_t seq, uint32_t tickets) {
    struct zc_per_region_map *m = map->lock;
    ZC_ASSERT(seq % 2 == 0);
    atomic_init(&m->seq, seq);
    zc_fair_init(&m->lock, tickets);
}

uint32_t zc_per_region_refs(struct zc_region *region) {
    return atomic_load_explicit(&lock_of(region)->refs, ZC_RELAXED);
}

#define TABLE                                                                                                                              \
    .abi = ZC_STRATEGY_ABI, .size = sizeof(struct zc_strategy), .map_size = sizeof(struct zc_per_region_map),                              \
    .region_size = sizeof(struct zc_per_region_lock), .map_init = zc_per_region_map_init, .map_destroy = zc_per_region_map_destroy,        \
    .region_init = zc_per_region_region_init, .read_unlock = zc_per_region_read_unlock, .write_lock = zc_per_region_write_lock,            \
    .region_write_lock = zc_per_region_region_write_lock, .write_unlock = zc_per_region_write_unlock, .attach = zc_per_region_attach,      \
    .detach = zc_per_region_detach

const struct zc_strategy zc_strategy_per_region = {
    .name = "per-region",
    .summary = "a reference count and a stamp in every region, the map lock behind them (Linux 6.15's per-VMA locks)",
    .read_lock = zc_per_region_read_lock,
    TABLE,
};

const struct zc_strategy zc_strategy_per_region_convert = {
    .name = "per-region-convert",
    .summary = "per-region, whose readers hold the region's count even after a fallback to the map lock",
    .read_lock = converting_read_lock,
    TABLE,
};
