/* Leases: small payloads share a region of a nursery, large ones have a run of units to themselves. */
#include <errno.h>
#include <stdlib.h>

#include "lock/atomics.h"
#include "region/nursery.h"

static int take_run(struct zc_nursery *nursery, enum zc_memory memory, uint64_t units, bool overdraft, struct zc_space **out) {
    struct zc_core *core = nursery->core;
    int error = zc_ledger_take(core, nursery->actor, memory, units, overdraft, false, out);
    if (error == -EAGAIN) {
        zc_nurseries_reclaim(core, nursery->actor);
        error = zc_ledger_take(core, nursery->actor, memory, units, overdraft, false, out);
    }
    return error;
}

static void count_run(struct zc_core *core, uint64_t runs, uint64_t pages) {
    pthread_mutex_lock(&core->ledger);
    core->runs += runs;
    core->run_pages += pages;
    pthread_mutex_unlock(&core->ledger);
}

/* Gives back what a nursery left in a region. */
static void clean(struct zc_core *core, struct zc_actor *self, struct zc_space *space) {
    zc_write_recycle(core, self, space, &space->stale, 0);
    space->stale = (struct zc_page_set){{0}};
    space->stale_pages = 0;
    space->room = ZC_UNIT_PAGES;
}

static int reserve_run(struct zc_nursery *nursery, enum zc_memory memory, uint64_t pages, bool overdraft, struct zc_lease *lease) {
    struct zc_core *core = nursery->core;
    struct zc_space *space;
    int error = take_run(nursery, memory, (pages + ZC_UNIT_PAGES - 1) / ZC_UNIT_PAGES, overdraft, &space);
    if (error != 0)
        return error;
    if (space->stale_pages > 0) /* of one unit, from a nursery */
        clean(core, nursery->actor, space);
    atomic_store_explicit(&space->use, ZC_USE_RUN, ZC_RELAXED);
    count_run(core, 1, pages);
    zc_map_hold(&core->map);
    lease->region = space->region;
    lease->address = atomic_load_explicit(&space->region->start, ZC_RELAXED);
    return 0;
}

static int reserve_pages(struct zc_nursery *nursery, enum zc_memory memory, uint32_t pages, bool overdraft, struct zc_lease *lease) {
    struct zc_space *space;
    int error = zc_nursery_place(nursery, memory, pages, overdraft, &space, &lease->address);
    if (error != 0)
        return error;
    lease->region = space->region;
    lease->nursery = nursery;
    return 0;
}

static uint64_t pages_of(uint64_t length) {
    return length / ZC_PAGE + (length % ZC_PAGE != 0);
}

int zc_lease_reserve(struct zc_nursery *nursery, enum zc_memory memory, uint64_t length, bool overdraft, struct zc_lease **out) {
    struct zc_core *core = nursery->core;
    uint64_t pages = pages_of(length);
    struct zc_lease *lease = malloc(sizeof *lease);
    if (lease == NULL)
        return -ENOMEM;
    *lease = (struct zc_lease){.map = &core->map, .length = length};
    int error = pages > ZC_NURSERY_PAGES ? reserve_run(nursery, memory, pages, overdraft, lease)
                                         : reserve_pages(nursery, memory, (uint32_t)pages, overdraft, lease);
    if (error == 0) {
        *out = lease;
        return 0;
    }
    free(lease);
    if (error == -EAGAIN) {
        pthread_mutex_lock(&core->ledger);
        core->budget_refusals++;
        pthread_mutex_unlock(&core->ledger);
    }
    return error == -EAGAIN || error == -EMSGSIZE ? error : -ENOMEM;
}

static void release_run(struct zc_core *core, struct zc_space *space, uint64_t pages) {
    struct zc_space_list one = {0};
    atomic_store_explicit(&space->use, ZC_USE_NONE, ZC_RELAXED);
    if (space->memory == ZC_MAPPED) /* the run may be longer: what lies behind the payload was never mapped */
        zc_write_recycle(core, NULL, space, NULL, pages * ZC_PAGE);
    count_run(core, -1ull, -pages);
    zc_space_push(&one, space);
    zc_ledger_give(core, NULL, &one);
    zc_wake_refused(core);
    zc_map_drop(&core->map);
}

void zc_lease_release(struct zc_lease *lease) {
    if (zc_core_of(lease->map)->abandoned)
        return;
    struct zc_space *space = zc_space_of(lease->region);
    uint64_t pages = pages_of(lease->length);
    if (lease->nursery != NULL)
        zc_nursery_unplace(lease->nursery, space, lease->address, (uint32_t)pages);
    else
        release_run(zc_core_of(lease->map), space, pages);
    free(lease);
}
