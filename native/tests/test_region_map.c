/* Regions by hand, the budget, idle regions, wakers, actors: everything about a map but placing. */
#include "region/region_map.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "lock/registry.h"
#include "region/map_core.h"
#include "tests/check.h"

#define MIB (1ull << 20)

static struct zc_map *make(uint64_t budget, uint64_t retain) {
    struct zc_map *map;
    CHECK_EQUAL(zc_map_create(&zc_strategy_per_region, &(struct zc_map_options){.budget = budget, .retain = retain}, &map), 0);
    return map;
}

static struct zc_map_stats stats_of(struct zc_map *map) {
    struct zc_map_stats stats;
    zc_map_stats(map, &stats);
    return stats;
}

static struct zc_lease *reserve(struct zc_nursery *nursery, enum zc_memory memory, uint64_t length) {
    struct zc_lease *lease;
    CHECK_EQUAL(zc_lease_reserve(nursery, memory, length, false, &lease), 0);
    return lease;
}

/* Of our own page tables: mincore would also count what it cannot rule out. */
static long resident_pages(uintptr_t start, uint64_t bytes) {
    long count = 0;
    FILE *pagemap = fopen("/proc/self/pagemap", "r");
    CHECK(pagemap != NULL && fseek(pagemap, (long)(start / ZC_PAGE * sizeof(uint64_t)), SEEK_SET) == 0);
    for (uint64_t page = 0; page < bytes / ZC_PAGE; page++) {
        uint64_t entry;
        CHECK_EQUAL(fread(&entry, sizeof entry, 1, pagemap), 1);
        count += (long)(entry >> 63);
    }
    fclose(pagemap);
    return count;
}

static bool can_touch(uintptr_t address) { /* without a signal: write() says EFAULT */
    int ends[2];
    CHECK_EQUAL(pipe(ends), 0);
    bool can = write(ends[1], (void *)address, 1) == 1;
    close(ends[0]);
    close(ends[1]);
    return can;
}

/* ---- by hand ---- */

static void attach_rounds_up_and_detach_gives_back(void) {
    struct zc_map *map = make(64 * MIB, 0);
    struct zc_actor *self = zc_actor_create(map);
    struct zc_region *small, *large;
    CHECK_EQUAL(zc_region_attach(map, self, ZC_COPIED, 1, &small), 0);
    CHECK_EQUAL(zc_region_attach(map, self, ZC_COPIED, 4 * MIB + 1, &large), 0);
    CHECK_EQUAL(small->end - small->start, 2 * MIB);
    CHECK_EQUAL(large->end - large->start, 6 * MIB);
    CHECK(small->end <= large->start || large->end <= small->start);
    memset((void *)large->start, 0xaa, 6 * MIB);
    CHECK_EQUAL(resident_pages(large->start, 6 * MIB), 6 * MIB / ZC_PAGE);
    CHECK_EQUAL(stats_of(map).regions, 2);
    CHECK_EQUAL(stats_of(map).arena_bytes, 8 * MIB);
    CHECK_EQUAL(stats_of(map).attaches, 2);

    uintptr_t start = large->start;
    CHECK_EQUAL(zc_region_recycle(map, self, large), 0);
    CHECK_EQUAL(resident_pages(start, 6 * MIB), 0);
    CHECK_EQUAL(*(unsigned char *)start, 0); /* still there, and clean */
    CHECK_EQUAL(stats_of(map).recycles, 1);

    CHECK_EQUAL(zc_region_detach(map, self, large), 0);
    CHECK(!can_touch(start));
    CHECK_EQUAL(stats_of(map).arena_bytes, 2 * MIB);
    CHECK_EQUAL(stats_of(map).detaches, 1);
    CHECK_EQUAL(zc_region_detach(map, self, large), -EBUSY); /* it is nobody's by now */
    zc_actor_destroy(map, self);
    zc_map_drop(map); /* with one region still attached */
    CHECK(!can_touch(start - 2 * MIB) && !can_touch(start));
}

static void by_hand_refuses(void) {
    struct zc_map *map = make(4 * MIB, 4 * MIB), *other = make(4 * MIB, 0);
    struct zc_actor *self = zc_actor_create(map);
    struct zc_nursery *nursery = zc_nursery_create(map);
    struct zc_region *region, *none = NULL;
    CHECK_EQUAL(zc_region_attach(map, self, ZC_COPIED, 0, &none), -EINVAL);
    CHECK_EQUAL(zc_region_attach(map, self, ZC_COPIED, 4 * MIB + 1, &none), -ENOMEM);
    CHECK_EQUAL(zc_region_attach(map, self, ZC_COPIED, UINT64_MAX, &none), -ENOMEM);
    CHECK_EQUAL(zc_region_attach(map, self, ZC_COPIED, 2 * MIB, &region), 0);
    CHECK_EQUAL(zc_region_attach(map, self, ZC_COPIED, 4 * MIB, &none), -ENOMEM);
    CHECK(none == NULL);

    struct zc_actor *stranger = zc_actor_create(other);
    CHECK_EQUAL(zc_region_detach(other, stranger, region), -EBUSY); /* not its map */
    struct zc_lease *lease = reserve(nursery, ZC_COPIED, 100);
    struct zc_region *leased = lease->region;
    CHECK_EQUAL(zc_region_detach(map, self, leased), -EBUSY);
    CHECK_EQUAL(zc_region_recycle(map, self, leased), -EBUSY);
    zc_lease_release(lease);
    CHECK_EQUAL(zc_region_detach(map, self, leased), -EBUSY); /* the nursery's */
    zc_nursery_drop(nursery);
    CHECK_EQUAL(zc_region_detach(map, self, leased), -EBUSY); /* idle, the map's */
    CHECK_EQUAL(stats_of(map).idle_bytes, 2 * MIB);
    CHECK_EQUAL(zc_region_detach(map, self, region), 0);
    zc_actor_destroy(map, self);
    zc_actor_destroy(other, stranger);
    zc_map_drop(map);
    zc_map_drop(other);
}

static void bad_options(void) {
    struct zc_map *map = NULL;
    struct zc_strategy foreign = zc_strategy_global;
    foreign.abi = ZC_STRATEGY_ABI + 1;
    CHECK_EQUAL(zc_map_create(&zc_strategy_global, &(struct zc_map_options){.budget = 0}, &map), -EINVAL);
    CHECK_EQUAL(zc_map_create(&foreign, &(struct zc_map_options){.budget = MIB}, &map), -EINVAL);
    CHECK_EQUAL(zc_map_create(&zc_strategy_global, &(struct zc_map_options){.budget = UINT64_MAX}, &map), -ENOMEM);
    CHECK(map == NULL);
}

static void a_huge_budget_costs_nothing(void) {
    struct zc_map *map = make(1ull << 37, 1ull << 37); /* 128 GiB */
    struct zc_actor *self = zc_actor_create(map);
    struct zc_arena *arena = &zc_core_of(map)->arena;
    struct zc_region *region;
    CHECK(map->units >= 1ull << 37 >> ZC_REGION_SHIFT);
    CHECK_EQUAL(zc_region_attach(map, self, ZC_COPIED, 64 * MIB, &region), 0);
    CHECK_EQUAL(resident_pages((uintptr_t)map->regions, map->units * sizeof *map->regions), 1);
    CHECK_EQUAL(resident_pages((uintptr_t)arena->taken, map->units), 1);
    CHECK_EQUAL(resident_pages(region->start, 32 * MIB), 0);
    zc_actor_destroy(map, self);
    zc_map_drop(map);
}

static void mapped_memory_is_read_only_and_has_no_fd(void) {
    struct zc_map *map = make(64 * MIB, 0);
    struct zc_actor *self = zc_actor_create(map);
    struct zc_region *region;
    int before = dup(0);
    close(before);
    CHECK_EQUAL(zc_region_attach(map, self, ZC_MAPPED, 4 * MIB, &region), 0);
    int after = dup(0);
    close(after);
    CHECK_EQUAL(after, before);
    CHECK_EQUAL(zc_region_memory(region), ZC_MAPPED);
    CHECK(mprotect((void *)region->start, ZC_PAGE, PROT_READ | PROT_WRITE) != 0);
    CHECK(!can_touch(region->start)); /* no page was mapped yet */
    CHECK_EQUAL(zc_region_recycle(map, self, region), 0);
    zc_actor_destroy(map, self);
    zc_map_drop(map);
}

static void no_fd_left_is_an_error_and_no_more(void) {
    struct zc_map *map = make(64 * MIB, 0);
    struct zc_actor *self = zc_actor_create(map);
    struct zc_nursery *nursery = zc_nursery_create(map);
    struct zc_region *region;
    struct zc_lease *lease;
    struct rlimit limit, none;
    getrlimit(RLIMIT_NOFILE, &limit);
    none = (struct rlimit){.rlim_cur = 0, .rlim_max = limit.rlim_max};
    setrlimit(RLIMIT_NOFILE, &none);
    CHECK_EQUAL(zc_region_attach(map, self, ZC_MAPPED, 4 * MIB, &region), -EMFILE);
    CHECK_EQUAL(zc_lease_reserve(nursery, ZC_MAPPED, 100, false, &lease), -ENOMEM);
    CHECK_EQUAL(stats_of(map).arena_bytes, 0);
    CHECK_EQUAL(stats_of(map).regions, 0);
    setrlimit(RLIMIT_NOFILE, &limit);
    CHECK_EQUAL(zc_region_attach(map, self, ZC_MAPPED, 64 * MIB, &region), 0); /* nothing of the budget was lost */
    zc_nursery_drop(nursery);
    zc_actor_destroy(map, self);
    zc_map_drop(map);
}

/* ---- idle regions ---- */

static void large_payloads_reuse_the_same_warm_memory(void) {
    struct zc_map *map = make(64 * MIB, 16 * MIB);
    struct zc_nursery *nursery = zc_nursery_create(map);
    uintptr_t address = 0;
    for (int round = 0; round < 100; round++) {
        struct zc_lease *lease = reserve(nursery, ZC_COPIED, 16 * MIB);
        CHECK(round == 0 || lease->address == address);
        address = lease->address;
        if (round > 0)
            CHECK_EQUAL(resident_pages(address, 16 * MIB), 16 * MIB / ZC_PAGE);
        memset((void *)address, round, 16 * MIB);
        zc_lease_release(lease);
    }
    CHECK_EQUAL(stats_of(map).attaches, 1);
    CHECK_EQUAL(stats_of(map).detaches, 0);
    CHECK_EQUAL(stats_of(map).idle_bytes, 16 * MIB);

    struct zc_lease *lease = reserve(nursery, ZC_COPIED, 13 * MIB); /* at most a quarter too large: good enough */
    CHECK_EQUAL(lease->address, address);
    zc_lease_release(lease);
    lease = reserve(nursery, ZC_COPIED, 12 * MIB); /* that would be too large */
    CHECK(lease->address != address);
    zc_lease_release(lease);
    CHECK_EQUAL(stats_of(map).attaches, 2);
    zc_lease_release(reserve(nursery, ZC_COPIED, 12 * MIB));
    CHECK_EQUAL(stats_of(map).attaches, 2);
    zc_lease_release(reserve(nursery, ZC_MAPPED, 12 * MIB)); /* the other memory */
    CHECK_EQUAL(stats_of(map).attaches, 3);
    zc_nursery_drop(nursery);
    zc_map_drop(map);
}

static void what_is_over_retain_goes_back(void) {
    struct zc_map *map = make(256 * MIB, 20 * MIB);
    struct zc_nursery *nursery = zc_nursery_create(map);
    struct zc_lease *leases[8];
    for (int i = 0; i < 8; i++)
        leases[i] = reserve(nursery, ZC_COPIED, 8 * MIB);
    CHECK_EQUAL(stats_of(map).arena_bytes, 64 * MIB);
    CHECK_EQUAL(stats_of(map).idle_bytes, 0);
    CHECK_EQUAL(stats_of(map).leases, 8);
    CHECK_EQUAL(stats_of(map).leased_bytes, 64 * MIB);
    for (int i = 0; i < 8; i++) {
        zc_lease_release(leases[i]);
        CHECK(stats_of(map).idle_bytes <= 20 * MIB);
    }
    CHECK_EQUAL(stats_of(map).idle_bytes, 16 * MIB);
    CHECK_EQUAL(stats_of(map).arena_bytes, 16 * MIB);
    CHECK_EQUAL(stats_of(map).detaches, 6);
    struct zc_lease *lease = reserve(nursery, ZC_COPIED, 30 * MIB);
    zc_lease_release(lease); /* larger than retain: goes, rather than everything else */
    CHECK_EQUAL(stats_of(map).idle_bytes, 16 * MIB);
    zc_nursery_drop(nursery);
    zc_map_drop(map);
}

static void idle_regions_make_way_for_other_shapes(void) {
    struct zc_map *map = make(32 * MIB, 32 * MIB);
    struct zc_nursery *nursery = zc_nursery_create(map);
    struct zc_lease *leases[4];
    for (int i = 0; i < 4; i++)
        leases[i] = reserve(nursery, ZC_COPIED, 8 * MIB);
    for (int i = 0; i < 4; i++)
        zc_lease_release(leases[i]);
    CHECK_EQUAL(stats_of(map).idle_bytes, 32 * MIB);
    leases[0] = reserve(nursery, ZC_COPIED, 18 * MIB);
    CHECK_EQUAL(stats_of(map).arena_bytes, (8 + 18) * MIB);
    CHECK_EQUAL(stats_of(map).detaches, 3); /* no more than needed */
    leases[1] = reserve(nursery, ZC_MAPPED, 8 * MIB);
    CHECK_EQUAL(stats_of(map).arena_bytes, (8 + 18) * MIB);
    CHECK_EQUAL(stats_of(map).idle_bytes, 0);
    zc_lease_release(leases[0]);
    zc_lease_release(leases[1]);
    zc_nursery_drop(nursery);
    zc_map_drop(map);
}

/* ---- the budget ---- */

struct bell {
    _Atomic int rung;
};

static void ring(void *context) {
    atomic_fetch_add(&((struct bell *)context)->rung, 1);
}

static void the_budget_refuses_and_wakes(enum zc_memory memory) {
    struct zc_map *map = make(16 * MIB, 16 * MIB);
    struct zc_nursery *nursery = zc_nursery_create(map);
    struct bell bell = {0};
    struct zc_lease *large, *small, *refused = NULL;
    CHECK_EQUAL(zc_map_add_waker(map, ring, &bell), 0);
    CHECK_EQUAL(zc_lease_reserve(nursery, memory, 16 * MIB + 1, false, &refused), -EMSGSIZE);
    CHECK_EQUAL(zc_lease_reserve(nursery, memory, UINT64_MAX, false, &refused), -EMSGSIZE);
    large = reserve(nursery, memory, 14 * MIB);
    small = reserve(nursery, memory, MIB);
    CHECK_EQUAL(zc_lease_reserve(nursery, memory, 2 * MIB, false, &refused), -EAGAIN);
    CHECK(refused == NULL);
    CHECK_EQUAL(stats_of(map).budget_refusals, 1);
    CHECK_EQUAL(stats_of(map).arena_bytes, 16 * MIB);
    CHECK_EQUAL(atomic_load(&bell.rung), 0);
    zc_lease_release(large);
    CHECK_EQUAL(atomic_load(&bell.rung), 1);
    large = reserve(nursery, memory, 2 * MIB);
    zc_lease_release(small); /* nobody was refused since */
    zc_lease_release(large);
    CHECK_EQUAL(atomic_load(&bell.rung), 1);
    CHECK_EQUAL(stats_of(map).leases, 0);
    CHECK_EQUAL(stats_of(map).leased_bytes, 0);
    zc_map_remove_waker(map, &bell);
    zc_nursery_drop(nursery);
    zc_map_drop(map);
}

/* A region that nobody leases, but a nursery keeps, is not in the way of anybody. */
static void spares_of_nurseries_make_way(void) {
    struct zc_map *map = make(16 * MIB, 0);
    struct zc_nursery *nurseries[4];
    for (int i = 0; i < 4; i++) {
        nurseries[i] = zc_nursery_create(map);
        zc_lease_release(reserve(nurseries[i], ZC_COPIED, 5000));
        zc_lease_release(reserve(nurseries[i], ZC_MAPPED, 5000));
    }
    CHECK_EQUAL(stats_of(map).arena_bytes, 16 * MIB);
    CHECK_EQUAL(stats_of(map).idle_bytes, 0);
    struct zc_lease *lease = reserve(nurseries[0], ZC_COPIED, 15 * MIB);
    CHECK_EQUAL(stats_of(map).arena_bytes, 16 * MIB);
    zc_lease_release(lease);
    struct zc_actor *self = zc_actor_create(map);
    struct zc_region *region;
    CHECK_EQUAL(zc_region_attach(map, self, ZC_COPIED, 16 * MIB, &region), 0);
    zc_actor_destroy(map, self);
    for (int i = 0; i < 4; i++)
        zc_nursery_drop(nurseries[i]);
    zc_map_drop(map);
}

/* The waiter wakes when a region becomes empty in another nursery, and when pages become free in its own. */
static void a_part_of_a_region_wakes(void) {
    struct zc_map *map = make(4 * MIB, 0);
    struct zc_nursery *mine = zc_nursery_create(map), *theirs = zc_nursery_create(map);
    struct bell bell = {0};
    struct zc_lease *a = reserve(mine, ZC_COPIED, MIB), *b = reserve(mine, ZC_COPIED, MIB), *c = reserve(theirs, ZC_COPIED, MIB), *d;
    CHECK_EQUAL(zc_map_add_waker(map, ring, &bell), 0);
    CHECK_EQUAL(zc_lease_reserve(mine, ZC_COPIED, MIB, false, &d), -EAGAIN);
    zc_lease_release(a);
    CHECK_EQUAL(atomic_load(&bell.rung), 1);
    a = reserve(mine, ZC_COPIED, MIB);
    CHECK_EQUAL(zc_lease_reserve(mine, ZC_COPIED, MIB, false, &d), -EAGAIN);
    zc_lease_release(c);
    CHECK_EQUAL(atomic_load(&bell.rung), 2);
    d = reserve(mine, ZC_COPIED, MIB);
    zc_lease_release(a);
    zc_lease_release(b);
    zc_lease_release(d);
    zc_map_remove_waker(map, &bell);
    zc_nursery_drop(mine);
    zc_nursery_drop(theirs);
    zc_map_drop(map);
}

static void overdraft_goes_over_and_comes_back(void) {
    struct zc_map *map = make(4 * MIB, 64 * MIB);
    struct zc_nursery *nursery = zc_nursery_create(map);
    struct zc_lease *over[3];
    for (int i = 0; i < 3; i++)
        CHECK_EQUAL(zc_lease_reserve(nursery, ZC_COPIED, 6 * MIB, true, &over[i]), 0);
    CHECK_EQUAL(stats_of(map).arena_bytes, 18 * MIB);
    struct zc_lease *refused;
    CHECK_EQUAL(zc_lease_reserve(nursery, ZC_COPIED, 100, false, &refused), -EAGAIN);
    for (int i = 0; i < 3; i++)
        zc_lease_release(over[i]);
    CHECK(stats_of(map).arena_bytes <= 4 * MIB);
    zc_lease_release(reserve(nursery, ZC_COPIED, 100));
    zc_nursery_drop(nursery);
    zc_map_drop(map);
}

static void wakers_have_a_limit(void) {
    struct zc_map *map = make(4 * MIB, 0);
    struct bell bells[ZC_MAP_WAKERS + 1] = {0};
    for (int i = 0; i < ZC_MAP_WAKERS; i++)
        CHECK_EQUAL(zc_map_add_waker(map, ring, &bells[i]), 0);
    CHECK_EQUAL(zc_map_add_waker(map, ring, &bells[ZC_MAP_WAKERS]), -ENOSPC);
    zc_map_remove_waker(map, &bells[7]);
    CHECK_EQUAL(zc_map_add_waker(map, ring, &bells[ZC_MAP_WAKERS]), 0);
    struct zc_nursery *nursery = zc_nursery_create(map);
    struct zc_lease *all = reserve(nursery, ZC_COPIED, 4 * MIB), *refused;
    CHECK_EQUAL(zc_lease_reserve(nursery, ZC_COPIED, 1, false, &refused), -EAGAIN);
    zc_lease_release(all);
    for (int i = 0; i <= ZC_MAP_WAKERS; i++)
        CHECK_EQUAL(bells[i].rung, i != 7);
    zc_nursery_drop(nursery);
    zc_map_drop(map);
}

/* ---- lifetime and actors ---- */

static void a_lease_outlives_everything(uint64_t length) {
    struct zc_map *map = make(64 * MIB, 0);
    struct zc_nursery *nursery = zc_nursery_create(map);
    struct zc_lease *lease = reserve(nursery, ZC_COPIED, length);
    uintptr_t address = lease->address;
    zc_nursery_drop(nursery);
    zc_map_drop(map);
    memset((void *)address, 7, length);
    CHECK_EQUAL(*(char *)(address + length - 1), 7);
    CHECK_EQUAL(stats_of(lease->map).leases, 1);
    zc_lease_release(lease);
    CHECK(!can_touch(address));
}

static void actors_have_small_ids_and_leave_their_counts(void) {
    struct zc_map *map = make(64 * MIB, 0);
    struct zc_actor *actors[20];
    struct zc_region *region;
    for (int i = 0; i < 20; i++) {
        actors[i] = zc_actor_create(map);
        CHECK(actors[i]->id < 21); /* one is the map's own */
        for (int k = 0; k < i; k++)
            CHECK(actors[i]->id != actors[k]->id);
    }
    CHECK_EQUAL(zc_region_attach(map, actors[3], ZC_COPIED, 1, &region), 0);
    for (int i = 0; i < 20; i++)
        for (int k = 0; k <= i; k++) {
            struct zc_guard guard;
            CHECK_EQUAL(map->strategy->read_lock(map, actors[i], region->start, &guard), 0);
            map->strategy->read_unlock(map, actors[i], &guard);
        }
    CHECK_EQUAL(stats_of(map).lock.read_locks, 210);
    CHECK_EQUAL(stats_of(map).lock.write_locks, 1);
    uint32_t id = actors[5]->id;
    for (int i = 0; i < 20; i++)
        if (i != 3)
            zc_actor_destroy(map, actors[i]);
    CHECK_EQUAL(stats_of(map).lock.read_locks, 210);
    struct zc_actor *again = zc_actor_create(map);
    CHECK(again->id <= id);
    zc_actor_destroy(map, again);
    zc_actor_destroy(map, actors[3]);
    zc_map_drop(map);
}

int main(void) {
    RUN(attach_rounds_up_and_detach_gives_back);
    RUN(by_hand_refuses);
    RUN(bad_options);
    RUN(a_huge_budget_costs_nothing);
    RUN(mapped_memory_is_read_only_and_has_no_fd);
    RUN(no_fd_left_is_an_error_and_no_more);
    RUN(large_payloads_reuse_the_same_warm_memory);
    RUN(what_is_over_retain_goes_back);
    RUN(idle_regions_make_way_for_other_shapes);
    RUN(the_budget_refuses_and_wakes, ZC_COPIED);
    RUN(the_budget_refuses_and_wakes, ZC_MAPPED);
    RUN(spares_of_nurseries_make_way);
    RUN(a_part_of_a_region_wakes);
    RUN(overdraft_goes_over_and_comes_back);
    RUN(wakers_have_a_limit);
    RUN(a_lease_outlives_everything, 5000);
    RUN(a_lease_outlives_everything, 5 * MIB);
    RUN(actors_have_small_ids_and_leave_their_counts);
    return 0;
}
