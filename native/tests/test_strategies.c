/* The guarantees of strategy.h, for every strategy in the registry; then what only "per-region" has. */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "lock/atomics.h"
#include "lock/per_region.h"
#include "lock/registry.h"
#include "region/map_core.h"
#include "tests/check.h"

#define MIB (1ull << 20)

struct fixture {
    struct zc_map *map;
    struct zc_actor *actor; /* of the main thread */
    struct zc_region *regions[4];
};

static struct fixture make(const struct zc_strategy *strategy) {
    struct fixture f;
    CHECK_EQUAL(zc_map_create(strategy, &(struct zc_map_options){.budget = 64 * MIB}, &f.map), 0);
    f.actor = zc_actor_create(f.map);
    for (int i = 0; i < 4; i++)
        CHECK_EQUAL(zc_region_attach(f.map, f.actor, ZC_COPIED, (i + 1) * 2 * MIB, &f.regions[i]), 0);
    return f;
}

static void unmake(struct fixture *f) {
    zc_actor_destroy(f->map, f->actor);
    zc_map_drop(f->map);
}

static struct zc_lock_counters counters(struct zc_map *map) {
    struct zc_map_stats stats;
    zc_map_stats(map, &stats);
    return stats.lock;
}

static int read_lock(struct fixture *f, uintptr_t address, struct zc_guard *guard) {
    return f->map->strategy->read_lock(f->map, f->actor, address, guard);
}

static void read_unlock(struct fixture *f, struct zc_guard *guard) {
    f->map->strategy->read_unlock(f->map, f->actor, guard);
}

static void sleep_ms(long ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* ---- every strategy ---- */

static void finds_the_region_of_every_address(const struct zc_strategy *strategy) {
    struct fixture f = make(strategy);
    for (int i = 0; i < 4; i++) {
        uintptr_t start = f.regions[i]->start, end = f.regions[i]->end;
        CHECK_EQUAL(start % ZC_UNIT, 0);
        CHECK_EQUAL(end - start, (i + 1) * 2 * MIB);
        uintptr_t addresses[] = {start, start + 1, (start + end) / 2, end - 1};
        for (int k = 0; k < 4; k++) {
            struct zc_guard guard;
            CHECK_EQUAL(read_lock(&f, addresses[k], &guard), 0);
            CHECK(guard.region == f.regions[i]);
            read_unlock(&f, &guard);
        }
    }
    CHECK_EQUAL(counters(f.map).read_locks, 16);
    CHECK_EQUAL(counters(f.map).misses, 0);
    CHECK_EQUAL(counters(f.map).fallbacks, 0);
    unmake(&f);
}

static void misses_where_there_is_no_region(const struct zc_strategy *strategy) {
    struct fixture f = make(strategy);
    uintptr_t past = f.regions[3]->end, inside = f.regions[1]->start;
    uintptr_t addresses[] = {0, 1, f.map->base - 1, past, f.map->base + (f.map->units << ZC_REGION_SHIFT), UINTPTR_MAX, inside};
    CHECK_EQUAL(zc_region_detach(f.map, f.actor, f.regions[1]), 0);
    struct zc_guard guard;
    for (size_t i = 0; i < sizeof addresses / sizeof *addresses; i++)
        CHECK_EQUAL(read_lock(&f, addresses[i], &guard), -ENOENT);
    CHECK_EQUAL(counters(f.map).misses, sizeof addresses / sizeof *addresses);
    CHECK_EQUAL(counters(f.map).read_locks, 0);
    unmake(&f);
}

struct other {
    struct fixture *f;
    void (*act)(struct fixture *f, struct zc_actor *self);
    _Atomic bool begun, done;
    pthread_t thread;
};

static void *run_other(void *argument) {
    struct other *other = argument;
    struct zc_actor *self = zc_actor_create(other->f->map);
    atomic_store(&other->begun, true);
    other->act(other->f, self);
    zc_actor_destroy(other->f->map, self);
    atomic_store(&other->done, true);
    return NULL;
}

static void start_other(struct other *other, struct fixture *f, void (*act)(struct fixture *, struct zc_actor *)) {
    *other = (struct other){.f = f, .act = act};
    CHECK_EQUAL(pthread_create(&other->thread, NULL, run_other, other), 0);
}

/* Whether it is still waiting a while after it began: long enough to have been seen to wait even on a busy machine. */
static bool is_kept_waiting(struct other *other) {
    while (!atomic_load(&other->begun))
        sleep_ms(1);
    sleep_ms(100);
    return !atomic_load(&other->done);
}

static bool is_done_within(struct other *other, int ms) {
    for (; ms > 0 && !atomic_load(&other->done); ms--)
        sleep_ms(1);
    return atomic_load(&other->done);
}

static void write_first(struct fixture *f, struct zc_actor *self) {
    f->map->strategy->write_lock(f->map, self);
    f->map->strategy->region_write_lock(f->map, self, f->regions[0]);
    f->map->strategy->region_write_lock(f->map, self, f->regions[0]); /* idempotent */
    f->map->strategy->write_unlock(f->map, self);
}

static void write_second(struct fixture *f, struct zc_actor *self) {
    f->map->strategy->write_lock(f->map, self);
    f->map->strategy->region_write_lock(f->map, self, f->regions[1]);
    f->map->strategy->write_unlock(f->map, self);
}

static void detach_first(struct fixture *f, struct zc_actor *self) {
    CHECK_EQUAL(zc_region_detach(f->map, self, f->regions[0]), 0);
}

static void recycle_first(struct fixture *f, struct zc_actor *self) {
    CHECK_EQUAL(zc_region_recycle(f->map, self, f->regions[0]), 0);
}

static void read_first(struct fixture *f, struct zc_actor *self) {
    struct zc_guard guard;
    CHECK_EQUAL(f->map->strategy->read_lock(f->map, self, f->regions[0]->start + 5, &guard), 0);
    CHECK(guard.region == f->regions[0]);
    f->map->strategy->read_unlock(f->map, self, &guard);
}

static void a_reader_keeps_writers_out(const struct zc_strategy *strategy, void (*write)(struct fixture *, struct zc_actor *)) {
    struct fixture f = make(strategy);
    struct zc_guard guard;
    struct other writer;
    for (int i = 0; i < 2; i++) { /* the second by the fast path of a lock that has to get used to readers first */
        if (i > 0)
            read_unlock(&f, &guard);
        CHECK_EQUAL(read_lock(&f, f.regions[0]->start, &guard), 0);
    }
    start_other(&writer, &f, write);
    CHECK(is_kept_waiting(&writer));
    read_unlock(&f, &guard);
    CHECK(is_done_within(&writer, 5000));
    pthread_join(writer.thread, NULL);
    CHECK_EQUAL(counters(f.map).waits, 1);
    unmake(&f);
}

static void a_writer_keeps_readers_out(const struct zc_strategy *strategy) {
    struct fixture f = make(strategy);
    struct other reader;
    strategy->write_lock(f.map, f.actor);
    strategy->region_write_lock(f.map, f.actor, f.regions[0]);
    start_other(&reader, &f, read_first);
    CHECK(is_kept_waiting(&reader));
    strategy->write_unlock(f.map, f.actor);
    CHECK(is_done_within(&reader, 5000));
    pthread_join(reader.thread, NULL);
    CHECK_EQUAL(counters(f.map).waits, 1);
    CHECK_EQUAL(counters(f.map).read_locks, 1);
    unmake(&f);
}

/* All but the mutex. */
static void readers_share(const struct zc_strategy *strategy) {
    struct fixture f = make(strategy);
    struct zc_guard guard;
    struct other reader;
    bool share = strategy != &zc_strategy_global_mutex;
    CHECK_EQUAL(read_lock(&f, f.regions[0]->start, &guard), 0);
    start_other(&reader, &f, read_first);
    CHECK(share ? is_done_within(&reader, 5000) : is_kept_waiting(&reader));
    read_unlock(&f, &guard);
    pthread_join(reader.thread, NULL);
    CHECK_EQUAL(counters(f.map).waits, share ? 0 : 1);
    unmake(&f);
}

static void write_all(struct fixture *f, struct zc_actor *self) {
    f->map->strategy->write_lock(f->map, self);
    for (int i = 0; i < 4; i++)
        f->map->strategy->region_write_lock(f->map, self, f->regions[i]);
    f->map->strategy->write_unlock(f->map, self);
}

/* One section that write-locks several regions, a reader in the last: it waits for that one, and lets all of them go. */
static void a_section_spans_regions(const struct zc_strategy *strategy) {
    struct fixture f = make(strategy);
    struct zc_guard guard;
    struct other writer;
    CHECK_EQUAL(read_lock(&f, f.regions[3]->end - 1, &guard), 0);
    start_other(&writer, &f, write_all);
    CHECK(is_kept_waiting(&writer));
    read_unlock(&f, &guard);
    CHECK(is_done_within(&writer, 5000));
    pthread_join(writer.thread, NULL);
    for (int i = 0; i < 4; i++) {
        CHECK_EQUAL(read_lock(&f, f.regions[i]->start, &guard), 0);
        read_unlock(&f, &guard);
    }
    unmake(&f);
}

/* A region that grew in a section is locked whole by being write-locked again. */
static void a_region_grows_in_a_section(const struct zc_strategy *strategy) {
    struct fixture f = make(strategy);
    struct zc_region *grown = f.regions[0], *next = f.regions[1];
    CHECK_EQUAL(next->start, grown->end); /* the arena is filled from below */
    uintptr_t end = next->end;
    size_t unit = (next->start - f.map->base) >> ZC_REGION_SHIFT, units = (end - next->start) >> ZC_REGION_SHIFT;
    strategy->write_lock(f.map, f.actor);
    strategy->region_write_lock(f.map, f.actor, grown);
    strategy->region_write_lock(f.map, f.actor, next);
    strategy->detach(f.map, f.actor, next);
    for (size_t i = 0; i < units; i++)
        f.map->regions[unit + i] = grown;
    grown->end = end;
    strategy->region_write_lock(f.map, f.actor, grown);
    strategy->write_unlock(f.map, f.actor);

    struct zc_guard guard;
    CHECK_EQUAL(read_lock(&f, end - 1, &guard), 0);
    CHECK(guard.region == grown);
    read_unlock(&f, &guard);

    strategy->write_lock(f.map, f.actor); /* as it was, for the map to clean up */
    strategy->region_write_lock(f.map, f.actor, grown);
    grown->end = next->start;
    for (size_t i = 0; i < units; i++)
        f.map->regions[unit + i] = next;
    strategy->attach(f.map, f.actor, next);
    strategy->write_unlock(f.map, f.actor);
    CHECK_EQUAL(read_lock(&f, end - 1, &guard), 0);
    CHECK(guard.region == next);
    read_unlock(&f, &guard);
    unmake(&f);
}

/* ---- looking without holding ---- */

static void a_look_is_confirmed_unless_a_writer_came(const struct zc_strategy *strategy) {
    struct fixture f = make(strategy);
    struct zc_guard look, other;
    uintptr_t address = f.regions[0]->end - 1;
    struct zc_lock_counters before = counters(f.map);
    CHECK_EQUAL(strategy->peek(f.map, address, &look), 0);
    CHECK(look.region == f.regions[0]);
    CHECK_EQUAL(strategy->confirm(f.map, &look), 0);
    CHECK_EQUAL(strategy->peek(f.map, 0, &other), -EAGAIN);
    CHECK_EQUAL(strategy->peek(f.map, f.regions[3]->end, &other), -EAGAIN);

    strategy->write_lock(f.map, f.actor);
    strategy->region_write_lock(f.map, f.actor, f.regions[1]);
    CHECK_EQUAL(strategy->confirm(f.map, &look), 0); /* not ours */
    CHECK_EQUAL(strategy->peek(f.map, address, &other), 0);
    strategy->region_write_lock(f.map, f.actor, f.regions[0]);
    CHECK_EQUAL(strategy->confirm(f.map, &look), -EAGAIN);
    CHECK_EQUAL(strategy->confirm(f.map, &other), -EAGAIN);
    CHECK_EQUAL(strategy->peek(f.map, address, &other), -EAGAIN);
    strategy->write_unlock(f.map, f.actor);
    CHECK_EQUAL(strategy->confirm(f.map, &look), -EAGAIN);
    CHECK_EQUAL(strategy->peek(f.map, address, &look), 0);

    struct zc_region *region = f.regions[0];
    CHECK_EQUAL(zc_region_detach(f.map, f.actor, region), 0);
    CHECK_EQUAL(strategy->confirm(f.map, &look), -EAGAIN);
    f.map->regions[(address - f.map->base) >> ZC_REGION_SHIFT] = region; /* the index lags */
    CHECK_EQUAL(strategy->peek(f.map, address, &other), -EAGAIN);
    f.map->regions[(address - f.map->base) >> ZC_REGION_SHIFT] = NULL;
    CHECK_EQUAL(zc_region_attach(f.map, f.actor, ZC_COPIED, 2 * MIB, &f.regions[0]), 0);
    CHECK_EQUAL(strategy->confirm(f.map, &look), -EAGAIN); /* the same struct, perhaps at the same place */
    CHECK_EQUAL(counters(f.map).read_locks, before.read_locks);
    unmake(&f);
}

/* ---- strategies with a lock per region ---- */

static void an_untouched_region_does_not_wait_for_a_writer(const struct zc_strategy *strategy) {
    struct fixture f = make(strategy);
    struct other reader;
    struct zc_actor *writer = zc_actor_create(f.map);
    f.map->strategy->write_lock(f.map, writer);
    f.map->strategy->region_write_lock(f.map, writer, f.regions[1]);
    start_other(&reader, &f, read_first);
    CHECK(is_done_within(&reader, 5000)); /* while the map is still write-locked */
    pthread_join(reader.thread, NULL);
    CHECK_EQUAL(counters(f.map).fallbacks, 0);
    f.map->strategy->write_unlock(f.map, writer);
    zc_actor_destroy(f.map, writer);
    unmake(&f);
}

/* A reader that fell back: what does it hold of the map, the lock or only its region? */
static void a_fallback_holds_the_map_or_converts(const struct zc_strategy *strategy, bool converts) {
    struct fixture f = make(strategy);
    struct zc_guard guard;
    struct other writer;
    size_t unit = (f.regions[0]->start - f.map->base) >> ZC_REGION_SHIFT;
    uintptr_t address = f.regions[0]->start;
    _Atomic uint32_t *stamp = (_Atomic uint32_t *)zc_region_lock(f.regions[0]) + 1, *seq = f.map->lock; /* refs or lock, then the stamp */
    uint32_t old = atomic_exchange(stamp, atomic_load(seq));                                            /* false locked */
    CHECK(f.map->regions[unit] == f.regions[0]);
    CHECK_EQUAL(read_lock(&f, address, &guard), 0);
    CHECK_EQUAL(counters(f.map).fallbacks, 1);
    CHECK_EQUAL(counters(f.map).read_locks, 1);
    atomic_store(stamp, old);
    start_other(&writer, &f, write_second);
    CHECK(converts ? is_done_within(&writer, 5000) : is_kept_waiting(&writer));
    if (converts) {
        pthread_join(writer.thread, NULL);
        start_other(&writer, &f, write_first);
        CHECK(is_kept_waiting(&writer)); /* the region is held all the same */
    }
    read_unlock(&f, &guard);
    CHECK(is_done_within(&writer, 5000));
    pthread_join(writer.thread, NULL);
    unmake(&f);
}

/* ---- "per-region" ---- */

static void references_are_counted(void) {
    struct fixture f = make(&zc_strategy_per_region);
    struct zc_actor *second = zc_actor_create(f.map);
    struct zc_guard a, b;
    CHECK_EQUAL(zc_per_region_refs(f.regions[2]), 1);
    CHECK_EQUAL(read_lock(&f, f.regions[2]->start, &a), 0);
    CHECK_EQUAL(f.map->strategy->read_lock(f.map, second, f.regions[2]->start, &b), 0);
    CHECK_EQUAL(zc_per_region_refs(f.regions[2]), 3);
    f.map->strategy->read_unlock(f.map, second, &b);
    read_unlock(&f, &a);
    CHECK_EQUAL(zc_per_region_refs(f.regions[2]), 1);
    struct zc_region *region = f.regions[2];
    CHECK_EQUAL(zc_region_detach(f.map, f.actor, region), 0);
    CHECK_EQUAL(zc_per_region_refs(region), 0);
    zc_actor_destroy(f.map, second);
    unmake(&f);
}

static void a_full_count_falls_back(void) {
    struct fixture f = make(&zc_strategy_per_region);
    _Atomic uint32_t *refs = zc_region_lock(f.regions[0]);
    struct zc_guard guard;
    atomic_store(refs, (1u << 30) - 1); /* as if that many readers were inside */
    CHECK_EQUAL(read_lock(&f, f.regions[0]->start, &guard), 0);
    CHECK_EQUAL(atomic_load(refs), (1u << 30) - 1);
    CHECK_EQUAL(counters(f.map).fallbacks, 1);
    read_unlock(&f, &guard);
    atomic_store(refs, 1);
    unmake(&f);
}

/* A struct that now belongs to another map must not be mistaken for ours, although the index (made to lag here) still names it. */
static void a_region_of_another_map_is_not_ours(void) {
    struct fixture f = make(&zc_strategy_per_region);
    struct zc_map *sibling;
    CHECK_EQUAL(zc_map_create_beside(f.map, &(struct zc_map_options){.budget = 16 * MIB}, &sibling), 0);
    struct zc_actor *there = zc_actor_create(sibling);
    struct zc_region *region = f.regions[0], *moved = NULL;
    uintptr_t address = region->start;
    size_t unit = (address - f.map->base) >> ZC_REGION_SHIFT;
    CHECK_EQUAL(zc_region_detach(f.map, f.actor, region), 0);
    CHECK_EQUAL(zc_region_attach(sibling, there, ZC_COPIED, 2 * MIB, &moved), 0);
    CHECK(moved == region); /* recycled */

    f.map->regions[unit] = region;
    struct zc_guard guard;
    CHECK_EQUAL(read_lock(&f, address, &guard), -ENOENT);
    CHECK_EQUAL(counters(f.map).misses, 1);
    CHECK_EQUAL(zc_per_region_refs(region), 1); /* what the attempt took it put back */

    uintptr_t start = region->start, end = region->end; /* even if it lay where we look: its stamp is not of our sequence */
    region->start = address;
    region->end = address + ZC_UNIT;
    CHECK_EQUAL(read_lock(&f, address, &guard), 0);
    CHECK_EQUAL(zc_per_region_refs(region), 1); /* through the map lock */
    CHECK_EQUAL(counters(f.map).fallbacks, 1);
    read_unlock(&f, &guard);
    region->start = start;
    region->end = end;
    f.map->regions[unit] = NULL;

    CHECK_EQUAL(zc_region_attach(f.map, f.actor, ZC_COPIED, 2 * MIB, &f.regions[0]), 0);
    zc_actor_destroy(sibling, there);
    zc_map_drop(sibling);
    unmake(&f);
}

/* A struct that lies elsewhere now must not be taken for the one that was at the address. */
static void a_region_that_moved_is_not_the_one(void) {
    struct fixture f = make(&zc_strategy_per_region);
    uintptr_t old = f.regions[0]->start, next = f.regions[1]->start;
    struct zc_guard guard;
    size_t unit = (old - f.map->base) >> ZC_REGION_SHIFT;
    struct zc_region *region = f.regions[0];
    f.map->regions[unit] = f.regions[1];
    CHECK_EQUAL(read_lock(&f, old, &guard), -ENOENT);
    CHECK_EQUAL(zc_per_region_refs(f.regions[1]), 1);
    f.map->regions[unit] = region;
    CHECK_EQUAL(read_lock(&f, next, &guard), 0);
    CHECK(guard.region == f.regions[1]);
    read_unlock(&f, &guard);
    unmake(&f);
}

/* Between detach and the cleared index, a reader looks up again a few times and then asks under the map lock. */
static void a_detached_region_is_looked_up_again(void) {
    struct fixture f = make(&zc_strategy_per_region);
    struct zc_region *region = f.regions[0];
    uintptr_t address = region->start;
    size_t unit = (address - f.map->base) >> ZC_REGION_SHIFT;
    CHECK_EQUAL(zc_region_detach(f.map, f.actor, region), 0);
    f.map->regions[unit] = region;
    struct zc_guard guard;
    CHECK_EQUAL(read_lock(&f, address, &guard), -ENOENT);
    CHECK(counters(f.map).retries > 0);
    f.map->regions[unit] = NULL;
    unmake(&f);
}

/* Sequence and tickets start just before they wrap; all the way through it the lock must hold and let in. */
static void the_sequence_wraps(void) {
    struct zc_map *map;
    CHECK_EQUAL(zc_map_create(&zc_strategy_per_region, &(struct zc_map_options){.budget = 16 * MIB}, &map), 0);
    zc_per_region_start(map, -20u, -10u);
    struct fixture f = {.map = map, .actor = zc_actor_create(map)};
    CHECK_EQUAL(zc_region_attach(map, f.actor, ZC_COPIED, 2 * MIB, &f.regions[0]), 0);
    CHECK_EQUAL(zc_region_attach(map, f.actor, ZC_COPIED, 2 * MIB, &f.regions[1]), 0);
    for (int round = 0; round < 30; round++) {
        struct other reader, writer;
        struct zc_guard guard;
        map->strategy->write_lock(map, f.actor);
        map->strategy->region_write_lock(map, f.actor, f.regions[0]);
        start_other(&reader, &f, read_first);
        CHECK(!is_done_within(&reader, 2));
        map->strategy->write_unlock(map, f.actor);
        CHECK(is_done_within(&reader, 5000));
        pthread_join(reader.thread, NULL);
        CHECK_EQUAL(read_lock(&f, f.regions[0]->start, &guard), 0);
        start_other(&writer, &f, write_first);
        CHECK(!is_done_within(&writer, 2));
        read_unlock(&f, &guard);
        CHECK(is_done_within(&writer, 5000));
        pthread_join(writer.thread, NULL);
    }
    unmake(&f);
}

/* With a reader inside, a write lock of the first region must wait, whatever its stamp happens to be. */
static void check_that_a_writer_waits(struct fixture *f) {
    struct zc_guard guard;
    struct other writer;
    CHECK_EQUAL(read_lock(f, f->regions[0]->start, &guard), 0);
    CHECK_EQUAL(guard.mode, 0);
    start_other(&writer, f, write_first);
    CHECK(is_kept_waiting(&writer));
    read_unlock(f, &guard);
    CHECK(is_done_within(&writer, 5000));
    pthread_join(writer.thread, NULL);
}

/* A stamp from 2^31 write locks ago must not pass for a lock that the writer holds already. */
static void a_stamp_from_before_the_wrap_is_no_lock(void) {
    struct zc_map *map;
    CHECK_EQUAL(zc_map_create(&zc_strategy_per_region, &(struct zc_map_options){.budget = 16 * MIB}, &map), 0);
    struct fixture f = {.map = map, .actor = zc_actor_create(map)};
    CHECK_EQUAL(zc_region_attach(map, f.actor, ZC_COPIED, 2 * MIB, &f.regions[0]), 0); /* stamped 1 */
    zc_per_region_start(map, 0, 0);                                                    /* the next write lock is 1 again */
    check_that_a_writer_waits(&f);
    unmake(&f);
}

/* Nor must one that another map left in the struct. */
static void a_stamp_of_another_map_is_no_lock(void) {
    struct fixture f = make(&zc_strategy_per_region); /* four attaches: sequence 8 */
    struct zc_map *sibling;
    CHECK_EQUAL(zc_map_create_beside(f.map, &(struct zc_map_options){.budget = 16 * MIB}, &sibling), 0);
    struct fixture there = {.map = sibling, .actor = zc_actor_create(sibling)};
    struct zc_region *region = f.regions[0];
    CHECK_EQUAL(zc_region_detach(f.map, f.actor, region), 0); /* stamped 9 */
    zc_per_region_start(sibling, 6, 0);
    CHECK_EQUAL(zc_region_attach(sibling, there.actor, ZC_COPIED, 2 * MIB, &there.regions[0]), 0); /* at 7; the next write lock is 9 */
    CHECK(there.regions[0] == region);
    check_that_a_writer_waits(&there);
    unmake(&there);
    unmake(&f);
}

/* ---- the registry ---- */

static void the_registry_has_all(void) {
    CHECK(zc_strategy_find("global") == &zc_strategy_global);
    CHECK(zc_strategy_find("per-region") == &zc_strategy_per_region);
    CHECK(zc_strategy_find("per_region") == NULL);
    CHECK(zc_strategy_find("") == NULL);
    CHECK(zc_strategy_find("none") == NULL);
    size_t count = 0;
    for (const struct zc_strategy *strategy; (strategy = zc_strategy_at(count)) != NULL; count++) {
        CHECK(zc_strategy_find(strategy->name) == strategy);
        CHECK_EQUAL(strategy->abi, ZC_STRATEGY_ABI);
        CHECK_EQUAL(strategy->size, sizeof *strategy);
        CHECK(strlen(strategy->summary) > 0);
        CHECK((strategy->peek == NULL) == (strategy->confirm == NULL));
    }
    CHECK_EQUAL(count, 13);
    CHECK(zc_strategy_at(count + 1000) == NULL);
}

/* test_strategies [strategy]: the guarantees of this one only. */
int main(int argc, char **argv) {
    RUN(the_registry_has_all);
    const struct zc_strategy *strategy;
    for (size_t index = 0; (strategy = zc_strategy_at(index)) != NULL; index++) {
        if (argc > 1 && strcmp(strategy->name, argv[1]) != 0)
            continue;
        printf("%s\n", strategy->name);
        RUN(finds_the_region_of_every_address, strategy);
        RUN(misses_where_there_is_no_region, strategy);
        RUN(a_reader_keeps_writers_out, strategy, write_first);
        RUN(a_reader_keeps_writers_out, strategy, detach_first);
        RUN(a_reader_keeps_writers_out, strategy, recycle_first);
        RUN(a_writer_keeps_readers_out, strategy);
        RUN(readers_share, strategy);
        RUN(a_section_spans_regions, strategy);
        RUN(a_region_grows_in_a_section, strategy);
        if (strategy->peek != NULL)
            RUN(a_look_is_confirmed_unless_a_writer_came, strategy);
    }
    RUN(an_untouched_region_does_not_wait_for_a_writer, &zc_strategy_per_region);
    RUN(an_untouched_region_does_not_wait_for_a_writer, &zc_strategy_per_region_convert);
    RUN(an_untouched_region_does_not_wait_for_a_writer, &zc_strategy_speculative);
    RUN(an_untouched_region_does_not_wait_for_a_writer, &zc_strategy_per_region_6_4);
    RUN(an_untouched_region_does_not_wait_for_a_writer, &zc_strategy_per_region_6_4_convert);
    RUN(an_untouched_region_does_not_wait_for_a_writer, &zc_strategy_range);
    RUN(a_fallback_holds_the_map_or_converts, &zc_strategy_per_region, false);
    RUN(a_fallback_holds_the_map_or_converts, &zc_strategy_per_region_6_4, false);
    RUN(a_fallback_holds_the_map_or_converts, &zc_strategy_per_region_convert, true);
    RUN(a_fallback_holds_the_map_or_converts, &zc_strategy_per_region_6_4_convert, true);
    RUN(references_are_counted);
    RUN(a_full_count_falls_back);
    RUN(a_region_of_another_map_is_not_ours);
    RUN(a_region_that_moved_is_not_the_one);
    RUN(a_detached_region_is_looked_up_again);
    RUN(the_sequence_wraps);
    RUN(a_stamp_from_before_the_wrap_is_no_lock);
    RUN(a_stamp_of_another_map_is_no_lock);
    return 0;
}
