/* What tests of lock strategies share: a map with four regions, and another thread that may have to wait. */
#ifndef ZCRPC_LOCKING_H
#define ZCRPC_LOCKING_H

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "lock/atomics.h"
#include "region/map_core.h"
#include "tests/check.h"

#define MIB (1ull << 20)

struct fixture {
    struct zc_map *map;
    struct zc_actor *actor; /* of the main thread */
    struct zc_region *regions[4];
};

static inline struct fixture make(const struct zc_strategy *strategy) {
    struct fixture f;
    CHECK_EQUAL(zc_map_create(strategy, &(struct zc_map_options){.budget = 64 * MIB}, &f.map), 0);
    f.actor = zc_actor_create(f.map);
    for (int i = 0; i < 4; i++)
        CHECK_EQUAL(zc_region_attach(f.map, f.actor, ZC_COPIED, (i + 1) * 2 * MIB, &f.regions[i]), 0);
    return f;
}

static inline void unmake(struct fixture *f) {
    zc_actor_destroy(f->map, f->actor);
    zc_map_drop(f->map);
}

static inline struct zc_lock_counters counters(struct zc_map *map) {
    struct zc_map_stats stats;
    zc_map_stats(map, &stats);
    return stats.lock;
}

static inline int read_lock(struct fixture *f, uintptr_t address, struct zc_guard *guard) {
    return f->map->strategy->read_lock(f->map, f->actor, address, guard);
}

static inline void read_unlock(struct fixture *f, struct zc_guard *guard) {
    f->map->strategy->read_unlock(f->map, f->actor, guard);
}

static inline void sleep_ms(long ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* ---- another thread ---- */

struct other {
    struct fixture *f;
    void (*act)(struct fixture *f, struct zc_actor *self);
    _Atomic bool begun, done;
    pthread_t thread;
};

static inline void *run_other(void *argument) {
    struct other *other = argument;
    struct zc_actor *self = zc_actor_create(other->f->map);
    atomic_store(&other->begun, true);
    other->act(other->f, self);
    zc_actor_destroy(other->f->map, self);
    atomic_store(&other->done, true);
    return NULL;
}

static inline void start_other(struct other *other, struct fixture *f, void (*act)(struct fixture *, struct zc_actor *)) {
    *other = (struct other){.f = f, .act = act};
    CHECK_EQUAL(pthread_create(&other->thread, NULL, run_other, other), 0);
}

/* Whether it is still waiting a while after it began: long enough to have been seen to wait even on a busy machine. */
static inline bool is_kept_waiting(struct other *other) {
    while (!atomic_load(&other->begun))
        sleep_ms(1);
    sleep_ms(100);
    return !atomic_load(&other->done);
}

static inline bool is_done_within(struct other *other, int ms) {
    for (; ms > 0 && !atomic_load(&other->done); ms--)
        sleep_ms(1);
    return atomic_load(&other->done);
}

static inline void write_first(struct fixture *f, struct zc_actor *self) {
    f->map->strategy->write_lock(f->map, self);
    f->map->strategy->region_write_lock(f->map, self, f->regions[0]);
    f->map->strategy->region_write_lock(f->map, self, f->regions[0]); /* idempotent */
    f->map->strategy->write_unlock(f->map, self);
}

static inline void write_second(struct fixture *f, struct zc_actor *self) {
    f->map->strategy->write_lock(f->map, self);
    f->map->strategy->region_write_lock(f->map, self, f->regions[1]);
    f->map->strategy->write_unlock(f->map, self);
}

static inline void read_first(struct fixture *f, struct zc_actor *self) {
    struct zc_guard guard;
    CHECK_EQUAL(f->map->strategy->read_lock(f->map, self, f->regions[0]->start + 5, &guard), 0);
    CHECK(guard.region == f->regions[0]);
    f->map->strategy->read_unlock(f->map, self, &guard);
}

#endif
