#include "region/region_map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lock/atomics.h"
#include "region/map_core.h"

static uint64_t units_of(uint64_t bytes) {
    return bytes / ZC_UNIT + (bytes % ZC_UNIT != 0);
}

/* ---- life of a map ---- */

static void init_locks(struct zc_core *core) {
    pthread_mutex_init(&core->internal_mutex, NULL);
    pthread_mutex_init(&core->nurseries_mutex, NULL);
    pthread_mutex_init(&core->ledger, NULL);
    pthread_mutex_init(&core->wakers_mutex, NULL);
    pthread_cond_init(&core->wakers_idle, NULL);
}

static void destroy_locks(struct zc_core *core) {
    pthread_mutex_destroy(&core->internal_mutex);
    pthread_mutex_destroy(&core->nurseries_mutex);
    pthread_mutex_destroy(&core->ledger);
    pthread_mutex_destroy(&core->wakers_mutex);
    pthread_cond_destroy(&core->wakers_idle);
}

/* Needs `strategy`, `lock` and an arena; undoes nothing: the caller's release does. */
static int fill(struct zc_core *core) {
    struct zc_map *map = &core->map;
    map->base = core->arena.base;
    map->units = core->arena.units;
    map->regions = zc_lazy_alloc(map->units * sizeof *map->regions);
    core->internal = zc_actor_create(map);
    return map->regions != NULL && core->internal != NULL ? 0 : -ENOMEM;
}

static void release(struct zc_core *core) {
    zc_actors_free(core);
    zc_lazy_free(core->map.regions, core->map.units * sizeof *core->map.regions);
    zc_arena_destroy(&core->arena);
    zc_slab_drop(core->slab);
    destroy_locks(core);
    free(core->map.lock);
    free(core);
}

/* Takes over the slab. */
static int create(struct zc_slab *slab, const struct zc_map_options *options, struct zc_map **out) {
    const struct zc_strategy *strategy = zc_slab_strategy(slab);
    size_t lock_size = (strategy->map_size + ZC_CACHE_LINE) / ZC_CACHE_LINE * ZC_CACHE_LINE;
    struct zc_core *core = aligned_alloc(ZC_CACHE_LINE, sizeof *core);
    void *lock = aligned_alloc(ZC_CACHE_LINE, lock_size);
    int error = -ENOMEM;
    if (core == NULL || lock == NULL)
        goto no_memory;
    memset(lock, 0, lock_size);
    memset(core, 0, sizeof *core);
    core->map.strategy = strategy;
    core->map.lock = lock;
    core->slab = slab;
    core->budget = units_of(options->budget);
    core->retain = options->retain / ZC_UNIT;
    core->holders = 1;
    error = zc_arena_init(&core->arena, core->budget);
    if (error != 0)
        goto no_memory;
    init_locks(core);
    error = fill(core);
    if (error == 0)
        error = strategy->map_init(&core->map);
    if (error != 0) {
        release(core);
        return error;
    }
    *out = &core->map;
    return 0;

no_memory:
    free(core);
    free(lock);
    zc_slab_drop(slab);
    return error;
}

int zc_map_create(const struct zc_strategy *strategy, const struct zc_map_options *options, struct zc_map **out) {
    if (strategy->abi != ZC_STRATEGY_ABI || options->budget == 0)
        return -EINVAL;
    struct zc_slab *slab = zc_slab_create(strategy);
    return slab != NULL ? create(slab, options, out) : -ENOMEM;
}

int zc_map_create_beside(struct zc_map *sibling, const struct zc_map_options *options, struct zc_map **out) {
    if (options->budget == 0)
        return -EINVAL;
    struct zc_slab *slab = zc_core_of(sibling)->slab;
    zc_slab_hold(slab);
    return create(slab, options, out);
}

/* Also what its user forgot to detach: the structs go back to the slab, which another map may share, the way that they came. */
static void detach_all(struct zc_core *core) {
    struct zc_space_list all = {0};
    for (size_t unit = 0; unit < core->arena.high; unit++) {
        struct zc_region *region = atomic_load_explicit(&core->map.regions[unit], ZC_ACQUIRE);
        if (region == NULL)
            continue;
        struct zc_space *space = zc_space_of(region);
        unit += space->units - 1;
        zc_space_push(&all, space);
    }
    zc_write_detach(core, NULL, &all);
}

void zc_map_hold(struct zc_map *map) {
    atomic_fetch_add_explicit(&zc_core_of(map)->holders, 1, ZC_RELAXED);
}

void zc_map_abandon(struct zc_map *map) {
    zc_core_of(map)->abandoned = true;
}

void zc_map_drop(struct zc_map *map) {
    struct zc_core *core = zc_core_of(map);
    if (core->abandoned || atomic_fetch_sub_explicit(&core->holders, 1, memory_order_acq_rel) != 1)
        return;
    detach_all(core);
    map->strategy->map_destroy(map);
    release(core);
}

void zc_map_stats(struct zc_map *map, struct zc_map_stats *out) {
    struct zc_core *core = zc_core_of(map);
    uint64_t leases = 0, pages = 0;
    zc_nurseries_count(core, &leases, &pages);
    pthread_mutex_lock(&core->ledger);
    *out = (struct zc_map_stats){
        .regions = core->regions,
        .arena_bytes = core->attached_units * ZC_UNIT,
        .idle_bytes = core->idle_units * ZC_UNIT,
        .leases = leases + core->runs,
        .leased_bytes = (pages + core->run_pages) * ZC_PAGE,
        .recycles = core->recycles,
        .attaches = core->attaches,
        .detaches = core->detaches,
        .budget_refusals = core->budget_refusals,
    };
    zc_actors_count(core, &out->lock);
    pthread_mutex_unlock(&core->ledger);
}

/* ---- regions by hand ---- */

int zc_region_attach(struct zc_map *map, struct zc_actor *self, enum zc_memory memory, uint64_t length, struct zc_region **out) {
    struct zc_core *core = zc_core_of(map);
    if (length == 0)
        return -EINVAL;
    struct zc_space *space;
    int error = zc_ledger_take(core, self, memory, units_of(length), false, true, &space);
    if (error == -EAGAIN) {
        zc_nurseries_reclaim(core, self);
        error = zc_ledger_take(core, self, memory, units_of(length), false, true, &space);
    }
    if (error != 0)
        return error == -EAGAIN || error == -EMSGSIZE ? -ENOMEM : error;
    atomic_store_explicit(&space->use, ZC_USE_HAND, ZC_RELEASE);
    *out = space->region;
    return 0;
}

/* Whether the region was attached to this map by hand: then it is the caller's from now on, until `use` says so again. */
static bool claim(struct zc_map *map, struct zc_region *region) {
    uint32_t hand = ZC_USE_HAND;
    return atomic_load_explicit(&region->map, ZC_RELAXED) == map &&
           atomic_compare_exchange_strong_explicit(&zc_space_of(region)->use, &hand, ZC_USE_NONE, memory_order_acq_rel, ZC_RELAXED);
}

int zc_region_detach(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    if (!claim(map, region))
        return -EBUSY;
    zc_ledger_discard(zc_core_of(map), self, zc_space_of(region));
    return 0;
}

int zc_region_recycle(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    if (!claim(map, region))
        return -EBUSY;
    zc_write_recycle(zc_core_of(map), self, zc_space_of(region), NULL, zc_region_end(region) - zc_region_start(region));
    atomic_store_explicit(&zc_space_of(region)->use, ZC_USE_HAND, ZC_RELEASE);
    return 0;
}

enum zc_memory zc_region_memory(const struct zc_region *region) {
    return zc_space_of(region)->memory;
}

uintptr_t zc_region_start(const struct zc_region *region) {
    return atomic_load_explicit(&region->start, ZC_RELAXED);
}

uintptr_t zc_region_end(const struct zc_region *region) {
    return atomic_load_explicit(&region->end, ZC_RELAXED);
}
