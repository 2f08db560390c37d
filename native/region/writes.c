/* Changes of the map: attach, detach and recycle regions under the lock strategy. Everything that can be done outside the write section is,
 * since under "global" every receive waits for it: memory is opened before and closed after, when the region is out of everybody's sight.
 */
#include <errno.h>
#include <sys/mman.h>

#include "lock/atomics.h"
#include "region/map_core.h"

static struct zc_actor *begin(struct zc_core *core, struct zc_actor *self) {
    if (self == NULL) {
        pthread_mutex_lock(&core->internal_mutex);
        self = core->internal;
    }
    core->map.strategy->write_lock(&core->map, self);
    return self;
}

static void end(struct zc_core *core, struct zc_actor *self) {
    core->map.strategy->write_unlock(&core->map, self);
    if (self == core->internal)
        pthread_mutex_unlock(&core->internal_mutex);
}

static size_t first_unit(const struct zc_core *core, struct zc_region *region) {
    return (atomic_load_explicit(&region->start, ZC_RELAXED) - core->map.base) >> ZC_REGION_SHIFT;
}

/* With release: a reader that peeks and sees one of these sees what the strategy noted before. */
static void describe(struct zc_region *region, struct zc_map *map, uintptr_t start, uintptr_t limit) {
    atomic_store_explicit(&region->map, map, ZC_RELEASE);
    atomic_store_explicit(&region->start, start, ZC_RELEASE);
    atomic_store_explicit(&region->end, limit, ZC_RELEASE);
}

static void index_units(struct zc_core *core, size_t unit, size_t units, struct zc_region *region) {
    for (size_t end_unit = unit + units; unit < end_unit; unit++)
        atomic_store_explicit(&core->map.regions[unit], region, ZC_RELEASE);
}

static void tally(struct zc_core *core, uint64_t *counter, uint64_t count) {
    pthread_mutex_lock(&core->ledger);
    *counter += count;
    pthread_mutex_unlock(&core->ledger);
}

int zc_write_attach(struct zc_core *core, struct zc_actor *self, enum zc_memory memory, uint32_t units, struct zc_space **out) {
    struct zc_map *map = &core->map;
    int64_t unit = zc_arena_take(&core->arena, units);
    if (unit < 0)
        return -EAGAIN;
    struct zc_region *region = zc_slab_take(core->slab, map);
    int error = region != NULL ? zc_arena_open(&core->arena, (size_t)unit, units, memory) : -ENOMEM;
    if (error != 0) {
        if (region != NULL)
            zc_slab_give(core->slab, region);
        zc_arena_free(&core->arena, (size_t)unit, units);
        return error;
    }
    struct zc_space *space = zc_space_of(region);
    *space = (struct zc_space){.region = region, .memory = memory, .units = units, .room = ZC_UNIT_PAGES};
    uintptr_t start = (uintptr_t)zc_arena_at(&core->arena, (size_t)unit);

    self = begin(core, self);
    describe(region, map, start, start + ((uintptr_t)units << ZC_REGION_SHIFT));
    index_units(core, (size_t)unit, units, region);
    map->strategy->attach(map, self, region);
    end(core, self);

    tally(core, &core->attaches, 1);
    *out = space;
    return 0;
}

void zc_write_detach(struct zc_core *core, struct zc_actor *self, struct zc_space_list *spaces) {
    struct zc_map *map = &core->map;
    struct {
        size_t unit, units;
    } gone[16];
    while (spaces->first != NULL) {
        struct zc_space_list batch = {0};
        size_t count = 0;
        self = begin(core, self);
        for (struct zc_space *space; count < sizeof gone / sizeof *gone && (space = zc_space_pop(spaces)) != NULL; count++) {
            struct zc_region *region = space->region;
            gone[count].unit = first_unit(core, region);
            gone[count].units = space->units;
            map->strategy->region_write_lock(map, self, region);
            map->strategy->detach(map, self, region);
            index_units(core, gone[count].unit, gone[count].units, NULL);
            describe(region, NULL, 0, 0);
            zc_space_push(&batch, space);
        }
        end(core, self);
        if (self == core->internal)
            self = NULL;

        for (struct zc_space *space; (space = zc_space_pop(&batch)) != NULL;)
            zc_slab_give(core->slab, space->region);
        for (size_t i = 0; i < count; i++)
            if (zc_arena_close(&core->arena, gone[i].unit, gone[i].units) == 0)
                zc_arena_free(&core->arena, gone[i].unit, gone[i].units);
        tally(core, &core->detaches, count);
    }
}

/* Returns the bytes given back. */
static uint64_t give_back(struct zc_region *region, const struct zc_page_set *pages, uint64_t length) {
    uintptr_t start = atomic_load_explicit(&region->start, ZC_RELAXED);
    if (pages == NULL) {
        madvise((void *)start, length, MADV_DONTNEED);
        return length;
    }
    uint64_t bytes = 0;
    for (uint32_t first = 0; (first = zc_page_set_next(pages, first, true)) < ZC_UNIT_PAGES;) {
        uint32_t past = zc_page_set_next(pages, first, false);
        madvise((void *)(start + (uintptr_t)first * ZC_PAGE), (size_t)(past - first) * ZC_PAGE, MADV_DONTNEED);
        bytes += (uint64_t)(past - first) * ZC_PAGE;
        first = past;
    }
    return bytes;
}

void zc_write_recycle(struct zc_core *core, struct zc_actor *self, struct zc_space *space, const struct zc_page_set *pages,
                      uint64_t length) {
    struct zc_map *map = &core->map;
    self = begin(core, self);
    map->strategy->region_write_lock(map, self, space->region);
    uint64_t begun = zc_cycles(), bytes = give_back(space->region, pages, length), cycles = zc_cycles() - begun;
    end(core, self);

    pthread_mutex_lock(&core->ledger);
    core->recycles++;
    if (space->memory == ZC_MAPPED) {
        core->recycled_bytes += bytes;
        core->recycle_cycles += cycles;
    }
    pthread_mutex_unlock(&core->ledger);
}

double zc_map_recycle_cost(struct zc_map *map) {
    struct zc_core *core = zc_core_of(map);
    pthread_mutex_lock(&core->ledger);
    double cost = core->recycled_bytes ? (double)core->recycle_cycles / (double)core->recycled_bytes : 0;
    pthread_mutex_unlock(&core->ledger);
    return cost;
}
