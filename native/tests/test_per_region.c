/* What strategies with a lock in every region have beyond strategy.h, "per-region" above all. */
#include "lock/per_region.h"
#include "lock/registry.h"
#include "tests/locking.h"

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

int main(void) {
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
