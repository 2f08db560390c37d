/* "range": no lock in regions, none around the map for readers: a sorted list of the ranges that are held. The control among the strategies.
 *
 *   range            units [first, past), shared or exclusive, blockers: how many conflicting ranges came before it and are still there
 *   hold(range)      under the list's lock: blockers = conflicting ranges in the list, insert it.   Then wait until blockers == 0
 *   drop(range)      under the list's lock: take it out, blockers -= 1 of every conflicting range that came after it, wake those at 0
 *
 *   read_lock          hold the address's unit, shared; look up; nothing there → drop, miss
 *   read_unlock        drop it
 *   write_lock         the writers' lock (a fair rwlock in write mode): readers do not notice
 *   region_write_lock  hold those of the region's units that are not held yet, exclusive; remember the ranges
 *   write_unlock       drop every remembered range, then the writers' lock
 *   attach             nothing: the units of a region that was detached in this section stay held until its end
 *   detach             region_write_lock
 *
 * Two ranges conflict if they overlap and one is exclusive. This is the range lock proposed for Linux (Kara, Bueso) and the order of arrival
 * of a fair lock; EuroSys '20's (Kogan, Dice, Issa) replaces the list's lock by marked pointers, which needs epochs to free a node. Ours come
 * from a pool in the map instead; if it is empty, a thread yields until one is free. The list's lock is a mutex: a fair one is handed from
 * thread to thread for every pair (measured with two threads: 5 µs, and 0.13 with the mutex), and stamps keep the order of ranges anyway.
 *
 * Invariants. blockers counts conflicts with ranges in the list that have smaller stamps; it only falls once the range is in. A thread that
 * waits holds no range but as the one writer, and readers hold one at a time: so nobody waits in a circle. Whatever lies at units that are
 * held stays there: a writer needs them exclusively to change it, and a *new* region is in the index only once its fields are written.
 *
 * Memory orders. The list, stamps and pool are plain, guarded by the list's lock. blockers falls with release, under that lock, and its owner
 * acquires 0: what the earlier holders did happens before, as all of them are read-modify-writes. Who brings blockers to 0 wakes the
 * range's owner, asleep or not, and sleeping compares the word once more: no wake is lost.
 *
 * Cost. Two short sections under the list's lock for a pair, so four read-modify-writes on a line that everybody shares, whatever the
 * ranges; and a list to walk. Readers of other ranges do not wait for a writer longer than that.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>

#include "lock/fair_rwlock.h"
#include "lock/registry.h"

#define RANGES 256

struct range {
    alignas(ZC_CACHE_LINE) _Atomic uint32_t blockers;
    bool exclusive;
    size_t first, past; /* units */
    uint64_t stamp;
    struct range *next; /* in the list, or in the pool */
    struct range *next_held;
};

struct map_lock {
    struct zc_fair_rwlock writers; /* first: tests start its tickets before a wrap */
    pthread_mutex_t list;          /* guards what follows, to `held` */
    struct range *ranges;          /* by first */
    struct range *pool;
    uint64_t stamp;
    struct range *held; /* by the writer; guarded by `writers` */
    struct range all[RANGES];
};

static bool conflict(const struct range *a, const struct range *b) {
    return (a->exclusive || b->exclusive) && a->first < b->past && b->first < a->past;
}

static struct range *take(struct map_lock *m) {
    for (;;) {
        pthread_mutex_lock(&m->list);
        struct range *range = m->pool;
        if (range != NULL) {
            m->pool = range->next;
            return range; /* with the list's lock held */
        }
        pthread_mutex_unlock(&m->list);
        sched_yield();
    }
}

static void wait_for_turn(struct range *range, struct zc_actor *self) {
    uint32_t blockers = atomic_load_explicit(&range->blockers, ZC_ACQUIRE);
    if (blockers == 0)
        return;
    zc_count(&self->counters.waits);
    for (int spin = 0; (blockers = atomic_load_explicit(&range->blockers, ZC_ACQUIRE)) != 0; spin++) {
        if (spin < ZC_SPINS)
            zc_relax();
        else
            zc_futex_wait(&range->blockers, blockers, FUTEX_BITSET_MATCH_ANY);
    }
}

static struct range *hold(struct map_lock *m, struct zc_actor *self, size_t first, size_t past, bool exclusive) {
    struct range *range = take(m);
    range->exclusive = exclusive;
    range->first = first;
    range->past = past;
    range->stamp = m->stamp++;
    uint32_t blockers = 0;
    struct range **place = &m->ranges;
    for (; *place != NULL && (*place)->first < past; place = &(*place)->next)
        blockers += conflict(*place, range);
    for (place = &m->ranges; *place != NULL && (*place)->first < first;)
        place = &(*place)->next;
    range->next = *place;
    *place = range;
    atomic_store_explicit(&range->blockers, blockers, ZC_RELAXED);
    pthread_mutex_unlock(&m->list);
    wait_for_turn(range, self);
    return range;
}

static void drop(struct map_lock *m, struct range *range) {
    pthread_mutex_lock(&m->list);
    struct range **place = &m->ranges;
    for (struct range *each; (each = *place) != NULL && each->first < range->past;) {
        if (each == range) {
            *place = range->next;
            continue;
        }
        if (each->stamp > range->stamp && conflict(each, range) && atomic_fetch_sub_explicit(&each->blockers, 1, ZC_RELEASE) == 1)
            zc_futex_wake(&each->blockers, FUTEX_BITSET_MATCH_ANY);
        place = &each->next;
    }
    range->next = m->pool;
    m->pool = range;
    pthread_mutex_unlock(&m->list);
}

static size_t unit_of(const struct zc_map *map, uintptr_t address) {
    return (address - map->base) >> ZC_REGION_SHIFT;
}

static int range_map_init(struct zc_map *map) {
    struct map_lock *m = map->lock;
    zc_fair_init(&m->writers, 0);
    for (int i = 0; i < RANGES; i++) {
        m->all[i].next = m->pool;
        m->pool = &m->all[i];
    }
    return -pthread_mutex_init(&m->list, NULL);
}

static void range_map_destroy(struct zc_map *map) {
    struct map_lock *m = map->lock;
    pthread_mutex_destroy(&m->list);
}

static void range_region_init(struct zc_map *map, struct zc_region *region) {
    (void)map, (void)region;
}

static int range_read_lock(struct zc_map *map, struct zc_actor *self, uintptr_t address, struct zc_guard *guard) {
    size_t unit = unit_of(map, address);
    struct range *range = hold(map->lock, self, unit, unit + 1, false);
    struct zc_region *region = zc_map_find(map, address);
    if (region == NULL || !zc_region_contains(region, address)) {
        drop(map->lock, range);
        zc_count(&self->counters.misses);
        return -ENOENT;
    }
    zc_count(&self->counters.read_locks);
    *guard = (struct zc_guard){.region = region, .mode = (uintptr_t)range};
    return 0;
}

static void range_read_unlock(struct zc_map *map, struct zc_actor *self, struct zc_guard *guard) {
    (void)self;
    drop(map->lock, (struct range *)guard->mode);
}

static void range_write_lock(struct zc_map *map, struct zc_actor *self) {
    struct map_lock *m = map->lock;
    if (zc_fair_write_lock(&m->writers))
        zc_count(&self->counters.waits);
    zc_count(&self->counters.write_locks);
}

static void range_region_write_lock(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    struct map_lock *m = map->lock;
    size_t first = unit_of(map, atomic_load_explicit(&region->start, ZC_RELAXED));
    size_t past = unit_of(map, atomic_load_explicit(&region->end, ZC_RELAXED) - 1) + 1;
    while (first < past) {
        size_t unheld = past; /* or where the next range begins that is held */
        struct range *range = m->held;
        for (; range != NULL && !(range->first <= first && first < range->past); range = range->next_held)
            if (first < range->first && range->first < unheld)
                unheld = range->first;
        if (range == NULL) {
            range = hold(m, self, first, unheld, true);
            range->next_held = m->held;
            m->held = range;
        }
        first = range->past;
    }
}

static void range_write_unlock(struct zc_map *map, struct zc_actor *self) {
    (void)self;
    struct map_lock *m = map->lock;
    for (struct range *range = m->held, *next; range != NULL; range = next) {
        next = range->next_held;
        drop(m, range);
    }
    m->held = NULL;
    zc_fair_write_unlock(&m->writers);
}

static void range_attach(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    (void)map, (void)self, (void)region;
}

const struct zc_strategy zc_strategy_range = {
    .abi = ZC_STRATEGY_ABI,
    .size = sizeof(struct zc_strategy),
    .name = "range",
    .summary = "a sorted list of the ranges that are held, in order of arrival; no lock in regions",
    .map_size = sizeof(struct map_lock),
    .region_size = 0,
    .map_init = range_map_init,
    .map_destroy = range_map_destroy,
    .region_init = range_region_init,
    .read_lock = range_read_lock,
    .read_unlock = range_read_unlock,
    .write_lock = range_write_lock,
    .region_write_lock = range_region_write_lock,
    .write_unlock = range_write_unlock,
    .attach = range_attach,
    .detach = range_region_write_lock,
};
