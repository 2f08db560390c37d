/* The guarantees of strategy.h, for every strategy in the registry. */
#include "lock/registry.h"
#include "tests/locking.h"

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

static void detach_first(struct fixture *f, struct zc_actor *self) {
    CHECK_EQUAL(zc_region_detach(f->map, self, f->regions[0]), 0);
}

static void recycle_first(struct fixture *f, struct zc_actor *self) {
    CHECK_EQUAL(zc_region_recycle(f->map, self, f->regions[0]), 0);
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

/* Strategies that give each actor a line of its own have only so many. */
static void there_may_be_many_actors(const struct zc_strategy *strategy) {
    enum { ACTORS = 200 };
    struct fixture f = make(strategy);
    struct zc_actor *actors[ACTORS];
    struct zc_guard guards[ACTORS];
    struct other writer;
    int step = strategy != &zc_strategy_global_mutex ? 16 : ACTORS; /* these are inside at a time: 0, 64 and 128 among them */
    for (int i = 0; i < ACTORS; i++) {
        actors[i] = zc_actor_create(f.map);
        CHECK_EQUAL(strategy->read_lock(f.map, actors[i], f.regions[0]->start, &guards[i]), 0);
        strategy->read_unlock(f.map, actors[i], &guards[i]);
    }
    for (int i = 0; i < ACTORS; i += step)
        CHECK_EQUAL(strategy->read_lock(f.map, actors[i], f.regions[0]->start, &guards[i]), 0);
    start_other(&writer, &f, write_first);
    for (int i = 0; i < ACTORS; i += step) {
        if (i == 0 || i + step >= ACTORS)
            CHECK(is_kept_waiting(&writer));
        strategy->read_unlock(f.map, actors[i], &guards[i]);
    }
    CHECK(is_done_within(&writer, 5000));
    pthread_join(writer.thread, NULL);
    for (int i = 0; i < ACTORS; i++)
        zc_actor_destroy(f.map, actors[i]);
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

int main(void) {
    RUN(the_registry_has_all);
    const struct zc_strategy *strategy;
    for (size_t index = 0; (strategy = zc_strategy_at(index)) != NULL; index++) {
        printf("%s\n", strategy->name);
        RUN(finds_the_region_of_every_address, strategy);
        RUN(misses_where_there_is_no_region, strategy);
        RUN(a_reader_keeps_writers_out, strategy, write_first);
        RUN(a_reader_keeps_writers_out, strategy, detach_first);
        RUN(a_reader_keeps_writers_out, strategy, recycle_first);
        RUN(a_writer_keeps_readers_out, strategy);
        RUN(readers_share, strategy);
        RUN(there_may_be_many_actors, strategy);
        RUN(a_section_spans_regions, strategy);
        RUN(a_region_grows_in_a_section, strategy);
        if (strategy->peek != NULL)
            RUN(a_look_is_confirmed_unless_a_writer_came, strategy);
    }
    return 0;
}
