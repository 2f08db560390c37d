#include <errno.h>

#include "lab/torture_check.h"
#include "lab/torture_run.h"

#define RELEASE_ONE_IN 8192 /* leases are released by threads that did not reserve them */

/* The slot whose region this is; NULL if it is a nursery's, or attached and not published yet. `guess`: likely to be the one. */
static struct torture_slot *slot_of(const struct torture_run *run, struct torture_side *side, struct torture_slot *guess,
                                    struct zc_region *region) {
    if (atomic_load(&guess->region) == region)
        return guess;
    for (uint32_t i = 0; i < run->slots; i++)
        if (atomic_load(&side->slots[i].region) == region)
            return &side->slots[i];
    return NULL;
}

static void look(struct torture_worker *w, struct torture_side *side, struct torture_slot *aimed, uintptr_t address) {
    struct zc_map *map = side->map;
    struct zc_guard guard;
    w->looks++;
    if (map->strategy->peek(map, address, &guard) != 0)
        return;
    struct torture_slot *slot = slot_of(w->run, side, aimed, guard.region);
    bool inside = zc_region_contains(guard.region, address); /* stored with seq_cst here, as all that follows */
    uint64_t left = slot != NULL ? atomic_load(&slot->left) : 0;
    torture_dawdle(w);
    uint64_t right = slot != NULL ? atomic_load(&slot->right) : 0;
    bool ours = atomic_load(&guard.region->map) == map;
    if (map->strategy->confirm(map, &guard) != 0)
        return;
    w->confirmed++;
    CHECK(inside);
    CHECK(ours);
    CHECK_EQUAL(left, right);
}

/* A read lock: whether there is something at the address. */
static bool enter(struct torture_worker *w, uint32_t which, uintptr_t address, struct zc_guard *guard) {
    struct zc_map *map = w->run->sides[which].map;
    uint64_t began = zc_cycles();
    int error = map->strategy->read_lock(map, w->actors[which], address, guard);
    torture_keep_longest(&w->longest_read, began);
    if (error != 0)
        CHECK_EQUAL(error, -ENOENT);
    ++*(error != 0 ? &w->misses[which] : &w->read_locks[which]);
    return error == 0;
}

/* Writes to the reader's own line of the memory at an address, as a receive would; to `elsewhere` if that memory is not to be written. */
static uint64_t *receive(struct torture_worker *w, const struct torture_side *side, uintptr_t address, uint64_t *elsewhere) {
    uint64_t *lane = elsewhere;
    if (side->copied[torture_unit(side->map, address)]) {
        lane = torture_lane(address, w->number);
        w->touches++;
    }
    *lane = w->steps;
    return lane;
}

static void read_step(struct torture_worker *w) {
    if (torture_draw(w, RELEASE_ONE_IN) == 0)
        torture_release_one(w);
    uint32_t which = torture_draw(w, TORTURE_MAPS);
    struct torture_side *side = &w->run->sides[which];
    struct zc_map *map = side->map;
    struct torture_slot *aimed = &side->slots[torture_draw(w, w->run->slots)];
    uintptr_t address = atomic_load(&aimed->address) + torture_draw(w, ZC_UNIT);
    if (map->strategy->peek != NULL && torture_draw(w, 2)) {
        look(w, side, aimed, address);
        return;
    }
    struct zc_guard guard;
    if (!enter(w, which, address, &guard))
        return;
    struct zc_region *region = guard.region;
    CHECK(atomic_load(&region->map) == map);
    CHECK(zc_region_contains(region, address));
    CHECK(zc_map_find(map, address) == region);
    struct torture_slot *slot = slot_of(w->run, side, aimed, region);
    if (slot != NULL) {
        const struct torture_record *record = &slot->record;
        uint64_t a = record->a, elsewhere;
        CHECK_EQUAL(record->start, atomic_load(&region->start));
        CHECK_EQUAL(record->past, atomic_load(&region->end));
        const uint64_t *received = receive(w, side, address, &elsewhere);
        torture_dawdle(w);
        CHECK_EQUAL(*received, w->steps);
        CHECK_EQUAL(record->b, a);
        CHECK_EQUAL(record->a, a);
    }
    CHECK(zc_region_contains(region, address));
    CHECK(atomic_load(&region->map) == map);
    map->strategy->read_unlock(map, w->actors[which], &guard);
}

const struct torture_role torture_reader = {.step = read_step, .rough_burst = 64, .calm_burst = 8192};
