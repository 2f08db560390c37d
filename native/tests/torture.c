/* Torture: every strategy, everything at once, sequences starting just before they wrap.
 *
 *   torture [seconds [strategy [stalled]]]      in all; the strategies share them, unless one is named. Default 6. A thread that does not
 *                                               get on for `stalled` seconds, default 30, ends the run
 *
 * Two maps share a slab, so region structs move between them. In each there are SLOTS regions, which two writers change, swap, recycle,
 * detach and attach again, while readers look addresses up and a placing and a releasing thread churn leases.
 *
 * What is checked. Each slot has a record of plain, non-atomic fields, changed only with the region write-locked (or detached) and read only
 * with it read-locked: a lock that lets both in shows as torn fields, and to ThreadSanitizer as a race even if the timing was lucky. Each map
 * has a plain counter of its write sections, for writers against each other. The region of a lease is always there. Every thread gets
 * on, or the watchdog ends the run. Each slot has a pair of atomic fields as well, for those that look without holding: what is confirmed
 * must be equal. In the end the strategies' counters are what the threads counted themselves.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "lock/fair_rwlock.h"
#include "lock/faults.h"
#include "lock/global_phase_fair.h"
#include "lock/per_region.h"
#include "lock/per_region_6_4.h"
#include "lock/registry.h"
#include "region/map_core.h"
#include "tests/check.h"

enum { MAPS = 2, SLOTS = 6, READERS = 3, WRITERS = 2, RING = 32, THREADS = READERS + WRITERS + 2 };
#define MIB (1ull << 20)

struct record { /* plain on purpose */
    uint64_t a, b;
    uintptr_t start;
};

struct slot {
    _Atomic(struct zc_region *) region; /* NULL while it is being replaced */
    _Atomic uintptr_t address;          /* where it was last; readers try it whether or not it still is */
    struct record record;
    _Atomic uint64_t left, right; /* equal but in a section */
};

struct arena_side {
    struct zc_map *map;
    struct slot slots[SLOTS];
    uint64_t sections; /* write sections; plain on purpose */
};

struct run {
    const struct zc_strategy *strategy;
    struct arena_side sides[MAPS];
    _Atomic(struct zc_lease *) ring[RING];
    struct zc_nursery *nursery;
    _Atomic bool stop;
    _Atomic uint64_t placed, released, refused;
    double stalled_seconds;
};

struct worker {
    struct run *run;
    struct zc_actor *actors[MAPS];
    pthread_t thread;
    void (*step)(struct worker *);
    uint32_t number, random;
    _Atomic uint64_t steps;
    uint64_t read_locks[MAPS], misses[MAPS], sections[MAPS], unlisted, longest_ns;
    uint64_t looks, confirmed;
};

static uint32_t draw(struct worker *w, uint32_t below) {
    w->random = w->random * 1664525 + 1013904223;
    return (w->random >> 8) % below;
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void dawdle(struct worker *w) {
    if (draw(w, 64) == 0)
        sched_yield(); /* as if preempted, lock in hand */
    for (uint32_t i = draw(w, 40); i > 0; i--)
        zc_relax();
}

/* ---- readers ---- */

static struct slot *slot_of(struct arena_side *side, struct zc_region *region) {
    for (int i = 0; i < SLOTS; i++)
        if (atomic_load(&side->slots[i].region) == region)
            return &side->slots[i];
    return NULL;
}

static void look(struct worker *w, struct arena_side *side, uintptr_t address) {
    struct zc_map *map = side->map;
    struct zc_guard guard;
    w->looks++;
    if (map->strategy->peek(map, address, &guard) != 0)
        return;
    struct slot *slot = slot_of(side, guard.region);
    bool inside = zc_region_contains(guard.region, address); /* stored with seq_cst here, as all that follows */
    uint64_t left = slot != NULL ? atomic_load(&slot->left) : 0;
    dawdle(w);
    uint64_t right = slot != NULL ? atomic_load(&slot->right) : 0;
    bool ours = atomic_load(&guard.region->map) == map;
    if (map->strategy->confirm(map, &guard) != 0)
        return;
    w->confirmed++;
    CHECK(inside);
    CHECK(ours);
    CHECK_EQUAL(left, right);
}

static void read_step(struct worker *w) {
    uint32_t which = draw(w, MAPS);
    struct arena_side *side = &w->run->sides[which];
    struct zc_map *map = side->map;
    uintptr_t address = atomic_load(&side->slots[draw(w, SLOTS)].address) + draw(w, ZC_UNIT);
    if (map->strategy->peek != NULL && draw(w, 2)) {
        look(w, side, address);
        return;
    }
    struct zc_guard guard;
    uint64_t began = now_ns();
    int error = map->strategy->read_lock(map, w->actors[which], address, &guard);
    uint64_t took = now_ns() - began;
    w->longest_ns = took > w->longest_ns ? took : w->longest_ns;
    if (error != 0) {
        CHECK_EQUAL(error, -ENOENT);
        w->misses[which]++;
        return;
    }
    w->read_locks[which]++;
    struct zc_region *region = guard.region;
    CHECK(atomic_load(&region->map) == map);
    CHECK(zc_region_contains(region, address));
    CHECK(zc_map_find(map, address) == region);
    struct slot *slot = slot_of(side, region);
    if (slot == NULL) {
        w->unlisted++; /* attached, its slot not published yet; or a nursery's */
    } else {
        const struct record *record = &slot->record;
        uint64_t a = record->a;
        CHECK_EQUAL(record->start, atomic_load(&region->start));
        dawdle(w);
        CHECK_EQUAL(record->b, a);
        CHECK_EQUAL(record->a, a);
    }
    CHECK(zc_region_contains(region, address));
    CHECK(atomic_load(&region->map) == map);
    map->strategy->read_unlock(map, w->actors[which], &guard);
}

/* ---- writers: each has the slots of its own parity ---- */

struct section {
    struct worker *w;
    struct arena_side *side;
    struct zc_map *map;
    struct zc_actor *self;
};

static struct section begin(struct worker *w, uint32_t which) {
    struct section s = {.w = w, .side = &w->run->sides[which], .map = w->run->sides[which].map, .self = w->actors[which]};
    uint64_t began = now_ns();
    s.map->strategy->write_lock(s.map, s.self);
    uint64_t took = now_ns() - began;
    w->longest_ns = took > w->longest_ns ? took : w->longest_ns;
    w->sections[which]++;
    s.side->sections++;
    return s;
}

static void end(struct section *s) {
    s->map->strategy->write_unlock(s->map, s->self);
}

static void change(struct section *s, struct slot *slot) {
    s->map->strategy->region_write_lock(s->map, s->self, atomic_load(&slot->region));
    slot->record.a++;
    atomic_fetch_add(&slot->left, 1);
    dawdle(s->w);
    slot->record.b++;
    atomic_fetch_add(&slot->right, 1);
}

static void put_at(struct zc_map *map, struct zc_region *region, uintptr_t start) {
    atomic_store(&region->start, start);
    atomic_store(&region->end, start + ZC_UNIT);
    atomic_store(&map->regions[(start - map->base) >> ZC_REGION_SHIFT], region);
}

/* Two regions change places: the reader of either address must not come out with the other. */
static void swap(struct section *s, struct slot *one, struct slot *two) {
    struct zc_region *a = atomic_load(&one->region), *b = atomic_load(&two->region);
    uintptr_t at_a = atomic_load(&a->start), at_b = atomic_load(&b->start);
    s->map->strategy->region_write_lock(s->map, s->self, a);
    if (!ZC_FAULT(3))
        s->map->strategy->region_write_lock(s->map, s->self, b);
    put_at(s->map, a, at_b);
    one->record.start = at_b;
    dawdle(s->w);
    put_at(s->map, b, at_a);
    two->record.start = at_a;
}

/* Out and in again within one section, with the fields wrong in between. */
static void bounce(struct section *s, struct slot *slot) {
    struct zc_region *region = atomic_load(&slot->region);
    uintptr_t start = atomic_load(&region->start);
    s->map->strategy->detach(s->map, s->self, region);
    slot->record.a = slot->record.b + 12345;
    atomic_store(&s->map->regions[(start - s->map->base) >> ZC_REGION_SHIFT], NULL);
    atomic_store(&region->map, NULL);
    dawdle(s->w);
    slot->record.b = slot->record.a;
    atomic_store(&region->map, s->map);
    put_at(s->map, region, start);
    s->map->strategy->attach(s->map, s->self, region);
}

static void publish(struct slot *slot, struct zc_region *region) {
    uintptr_t start = atomic_load(&region->start);
    slot->record.start = start;
    atomic_store(&slot->address, start);
    atomic_store(&slot->region, region);
}

/* Away altogether, its struct and its address free for anybody, and a new one instead. */
static void replace(struct worker *w, uint32_t which, struct slot *slot) {
    struct zc_map *map = w->run->sides[which].map;
    struct zc_region *region = atomic_exchange(&slot->region, NULL), *fresh;
    CHECK_EQUAL(zc_region_detach(map, w->actors[which], region), 0);
    slot->record.a += 3; /* nobody is inside */
    slot->record.b += 3;
    int error;
    while ((error = zc_region_attach(map, w->actors[which], draw(w, 2) ? ZC_MAPPED : ZC_COPIED, ZC_UNIT, &fresh)) != 0) {
        CHECK_EQUAL(error, -ENOMEM); /* leases have it all */
        if (atomic_load(&w->run->stop))
            return;
        sched_yield();
    }
    w->sections[which] += 2;
    publish(slot, fresh);
}

static void write_step(struct worker *w) {
    uint32_t which = draw(w, MAPS), parity = w->number % WRITERS;
    struct slot *slots = w->run->sides[which].slots;
    struct slot *one = &slots[draw(w, SLOTS / 2) * 2 + parity], *two = &slots[draw(w, SLOTS / 2) * 2 + parity];
    uint32_t action = draw(w, 8);
    if (action == 0) {
        replace(w, which, one);
    } else if (action == 1) {
        CHECK_EQUAL(zc_region_recycle(w->run->sides[which].map, w->actors[which], atomic_load(&one->region)), 0);
        w->sections[which]++;
    } else {
        struct section s = begin(w, which);
        change(&s, one);
        if (action == 2 && one != two)
            swap(&s, one, two);
        if (action == 3)
            bounce(&s, two);
        if (action == 4)
            change(&s, two); /* perhaps the same again: idempotent */
        end(&s);
    }
    for (uint32_t i = draw(w, 3); i > 0; i--)
        sched_yield();
}

/* ---- leases ---- */

static void place_step(struct worker *w) {
    struct run *run = w->run;
    static const uint64_t lengths[] = {1, 5000, 100000, 700000, 3 * MIB};
    _Atomic(struct zc_lease *) *place = &run->ring[draw(w, RING)];
    struct zc_lease *lease, *none = NULL;
    if (atomic_load(place) != NULL) {
        sched_yield();
        return;
    }
    int error = zc_lease_reserve(run->nursery, draw(w, 2) ? ZC_MAPPED : ZC_COPIED, lengths[draw(w, 5)], false, &lease);
    if (error != 0) {
        CHECK_EQUAL(error, -EAGAIN);
        atomic_fetch_add(&run->refused, 1);
        sched_yield();
        return;
    }
    struct zc_map *map = run->sides[0].map;
    struct zc_guard guard;
    CHECK_EQUAL(map->strategy->read_lock(map, w->actors[0], lease->address + lease->length - 1, &guard), 0);
    CHECK(guard.region == lease->region);
    if (zc_region_memory(lease->region) == ZC_COPIED)
        memset((void *)lease->address, (int)draw(w, 256), 1 + draw(w, 64));
    map->strategy->read_unlock(map, w->actors[0], &guard);
    w->read_locks[0]++;
    CHECK(atomic_compare_exchange_strong(place, &none, lease));
    atomic_fetch_add(&run->placed, 1);
}

static void release_step(struct worker *w) {
    struct zc_lease *lease = atomic_exchange(&w->run->ring[draw(w, RING)], NULL);
    if (lease == NULL) {
        sched_yield();
        return;
    }
    zc_lease_release(lease);
    atomic_fetch_add(&w->run->released, 1);
}

/* ---- the run ---- */

static void *work(void *argument) {
    struct worker *w = argument;
    while (!atomic_load(&w->run->stop)) {
        w->step(w);
        atomic_fetch_add(&w->steps, 1);
    }
    return NULL;
}

static void start_before_wrap(struct zc_map *map) {
    const struct zc_strategy *strategy = map->strategy;
    if (strategy == &zc_strategy_per_region || strategy == &zc_strategy_per_region_convert || strategy == &zc_strategy_speculative)
        zc_per_region_start(map, -2000u, -500u);
    else if (strategy == &zc_strategy_per_region_6_4 || strategy == &zc_strategy_per_region_6_4_convert)
        zc_per_region_6_4_start(map, -1000u, -500u);
    else if (strategy == &zc_strategy_global_phase_fair)
        zc_phase_fair_start(map, -100000u, -500u);
    else if (strategy == &zc_strategy_global || strategy == &zc_strategy_global_bravo || strategy == &zc_strategy_global_big_reader ||
             strategy == &zc_strategy_region_rwlock || strategy == &zc_strategy_range)
        zc_fair_init(map->lock, -500u); /* their state begins with a fair lock; mutexes have nothing that wraps */
}

static void set_up(struct run *run, const struct zc_strategy *strategy, double stalled) {
    *run = (struct run){.strategy = strategy, .stalled_seconds = stalled};
    struct zc_map_options options = {.budget = (SLOTS + 8) * ZC_UNIT, .retain = 2 * ZC_UNIT};
    CHECK_EQUAL(zc_map_create(strategy, &options, &run->sides[0].map), 0);
    CHECK_EQUAL(zc_map_create_beside(run->sides[0].map, &options, &run->sides[1].map), 0);
    for (int which = 0; which < MAPS; which++) {
        struct arena_side *side = &run->sides[which];
        start_before_wrap(side->map);
        struct zc_actor *self = zc_actor_create(side->map);
        for (int i = 0; i < SLOTS; i++) {
            struct zc_region *region;
            CHECK_EQUAL(zc_region_attach(side->map, self, ZC_COPIED, ZC_UNIT, &region), 0);
            publish(&side->slots[i], region);
        }
        zc_actor_destroy(side->map, self);
    }
    run->nursery = zc_nursery_create(run->sides[0].map);
}

static void watch(struct worker *workers, double seconds) {
    uint64_t last[THREADS] = {0}, moved[THREADS];
    uint64_t began = now_ns();
    for (int i = 0; i < THREADS; i++)
        moved[i] = began;
    while (now_ns() - began < seconds * 1e9) {
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
        for (int i = 0; i < THREADS; i++) {
            uint64_t steps = atomic_load(&workers[i].steps), now = now_ns();
            if (steps != last[i])
                moved[i] = now;
            last[i] = steps;
            if ((double)(now - moved[i]) > workers[i].run->stalled_seconds * 1e9) {
                fprintf(stderr, "%s: thread %d has been stuck for %g s\n", workers[i].run->strategy->name, i,
                        workers[i].run->stalled_seconds);
                abort();
            }
        }
    }
}

static void check_counters(struct run *run, struct worker *workers) {
    for (int which = 0; which < MAPS; which++) {
        uint64_t read_locks = 0, misses = 0, sections = 0;
        for (int i = 0; i < THREADS; i++) {
            read_locks += workers[i].read_locks[which];
            misses += workers[i].misses[which];
            sections += workers[i].sections[which];
        }
        struct zc_map_stats stats;
        zc_map_stats(run->sides[which].map, &stats);
        CHECK_EQUAL(stats.lock.read_locks, read_locks);
        CHECK_EQUAL(stats.lock.misses, misses);
        CHECK(stats.lock.fallbacks <= read_locks);
        CHECK(stats.lock.write_locks >= sections + SLOTS); /* and those of the nursery and of releases */
        CHECK_EQUAL(stats.regions, stats.attaches - stats.detaches);
        CHECK_EQUAL(stats.leases, 0);
        printf("  map %d: %llu read locks (%llu misses, %llu fallbacks, %llu retries), %llu write locks, %llu waits, %llu attaches, "
               "%llu recycles\n",
               which, (unsigned long long)read_locks, (unsigned long long)misses, (unsigned long long)stats.lock.fallbacks,
               (unsigned long long)stats.lock.retries, (unsigned long long)stats.lock.write_locks, (unsigned long long)stats.lock.waits,
               (unsigned long long)stats.attaches, (unsigned long long)stats.recycles);
        for (int i = 0; i < SLOTS; i++)
            CHECK_EQUAL(run->sides[which].slots[i].record.a, run->sides[which].slots[i].record.b);
    }
}

static void torture(const struct zc_strategy *strategy, double seconds, double stalled) {
    static struct run run;
    static struct worker workers[THREADS];
    void (*const steps[THREADS])(struct worker *) = {read_step, read_step, read_step, write_step, write_step, place_step, release_step};
    set_up(&run, strategy, stalled);
    for (uint32_t i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.run = &run, .step = steps[i], .number = i, .random = i * 7919 + (uint32_t)now_ns()};
        for (int which = 0; which < MAPS; which++)
            workers[i].actors[which] = zc_actor_create(run.sides[which].map);
    }
    for (int i = 0; i < THREADS; i++)
        CHECK_EQUAL(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    watch(workers, seconds);
    atomic_store(&run.stop, true);
    printf("%s, %.1f s:", strategy->name, seconds);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        CHECK(atomic_load(&workers[i].steps) > 0);
        printf(" %s %llu (longest wait %.1f ms)",
               i < READERS             ? "reader"
               : i < READERS + WRITERS ? "writer"
                                       : "leases",
               (unsigned long long)workers[i].steps, (double)workers[i].longest_ns / 1e6);
    }
    uint64_t looks = 0, confirmed = 0;
    for (int i = 0; i < THREADS; i++) {
        looks += workers[i].looks;
        confirmed += workers[i].confirmed;
    }
    CHECK((strategy->peek != NULL) == (confirmed > 0));
    for (int i = 0; i < RING; i++)
        if (atomic_load(&run.ring[i]) != NULL)
            zc_lease_release(atomic_load(&run.ring[i]));
    printf("\n  leases: %llu placed, %llu refused\n", (unsigned long long)run.placed, (unsigned long long)run.refused);
    if (looks > 0)
        printf("  looks: %llu, confirmed %llu\n", (unsigned long long)looks, (unsigned long long)confirmed);
    zc_nursery_drop(run.nursery);
    check_counters(&run, workers);
    for (int which = 0; which < MAPS; which++) {
        for (int i = 0; i < THREADS; i++)
            zc_actor_destroy(run.sides[which].map, workers[i].actors[which]);
        zc_map_drop(run.sides[which].map);
    }
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? strtod(argv[1], NULL) : 6, stalled = argc > 3 ? strtod(argv[3], NULL) : 30;
    if (argc > 2) {
        const struct zc_strategy *strategy = zc_strategy_find(argv[2]);
        CHECK(strategy != NULL);
        torture(strategy, seconds, stalled);
        return 0;
    }
    size_t count = 0;
    while (zc_strategy_at(count) != NULL)
        count++;
    for (size_t index = 0; index < count; index++)
        torture(zc_strategy_at(index), seconds / (double)count, stalled);
    return 0;
}
