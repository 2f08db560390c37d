#include <errno.h>
#include <sched.h>

#include "lab/torture_check.h"
#include "lab/torture_run.h"

#define MIB (1ull << 20)

/* What is written where a lease begins, and found there when it is released. */
static uint64_t signature(const struct zc_lease *lease) {
    return ~(uint64_t)lease->address;
}

static void fill(const struct zc_lease *lease) {
    if (zc_region_memory(lease->region) == ZC_COPIED)
        *(uint64_t *)lease->address = signature(lease);
}

static void place(struct torture_worker *w, _Atomic(struct zc_lease *) *free_place) {
    static const uint64_t lengths[] = {1, 5000, 100000, 700000, 3 * MIB};
    struct torture_run *run = w->run;
    struct zc_lease *lease, *none = NULL;
    int error = zc_lease_reserve(run->nursery, torture_draw(w, 2) ? ZC_MAPPED : ZC_COPIED, lengths[torture_draw(w, 5)], false, &lease);
    if (error != 0) {
        CHECK_EQUAL(error, -EAGAIN);
        w->refused++;
        sched_yield();
        return;
    }
    struct zc_map *map = run->sides[0].map;
    struct zc_guard guard;
    CHECK_EQUAL(map->strategy->read_lock(map, w->actors[0], lease->address + lease->length - 1, &guard), 0);
    w->read_locks[0]++;
    CHECK(guard.region == lease->region);
    fill(lease);
    torture_dawdle(w);
    map->strategy->read_unlock(map, w->actors[0], &guard);
    CHECK(atomic_compare_exchange_strong(free_place, &none, lease));
    w->placed++;
}

bool torture_release_one(struct torture_worker *w) {
    struct zc_lease *lease = atomic_exchange(&w->run->ring[torture_draw(w, TORTURE_RING)], NULL);
    if (lease == NULL)
        return false;
    if (zc_region_memory(lease->region) == ZC_COPIED)
        CHECK_EQUAL(*(const uint64_t *)lease->address, signature(lease));
    zc_lease_release(lease);
    w->released++;
    return true;
}

/* The only thread that fills the ring. */
static void lease_step(struct torture_worker *w) {
    _Atomic(struct zc_lease *) *drawn = &w->run->ring[torture_draw(w, TORTURE_RING)];
    if (atomic_load(drawn) == NULL)
        place(w, drawn);
    else
        torture_release_one(w);
}

const struct torture_role torture_lessee = {.step = lease_step, .rough_burst = 16, .calm_burst = 64, .rest_us = 1000};
