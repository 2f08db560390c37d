/* Placing: which pages of which region the next small payload gets.
 *
 * A region of one unit is shared by leases, page by page. A released page of copied memory is free again at once, and warm; one of mapped
 * memory still has the old payload's page in it and is *stale* until it is given back to the system, which is a write to the map and
 * therefore done for many pages at a time:
 *
 *   released, and the region is empty with ZC_STALE_MANY stale pages or more      the releasing thread recycles it
 *   no gap of clean pages in any region, but one with that many stale pages       the placing thread recycles it
 *   … and no memory for another region                                            … it or any that would then do
 *
 * The write is made with the region marked `recycling`, which keeps placing out of it, and with no mutex held: it may have to wait for a
 * receive that is under way, and the placing thread can go on elsewhere meanwhile.
 *
 * An empty region stays in its nursery as a spare if there is none of its kind yet; else it becomes idle. Spares are in nobody's way: who
 * finds no memory reclaims those of all nurseries, and who was refused is woken by the release that made a region one.
 */
#include "region/nursery.h"

#include <errno.h>
#include <stdlib.h>

#include "lock/atomics.h"

#define ZC_STALE_MANY (ZC_UNIT_PAGES / 4) /* 512 KiB: a write section per that much is under a percent of receiving it */

/* ---- regions of a nursery: all of this with its mutex held ---- */

static void make_spare(struct zc_nursery *nursery, struct zc_space *space, bool spare) {
    if (space->spare != spare)
        nursery->spares[space->memory] += spare ? 1 : -1u;
    space->spare = spare;
}

static void leave(struct zc_nursery *nursery, struct zc_space *space, struct zc_space_list *left) {
    make_spare(nursery, space, false);
    zc_space_remove(&nursery->open[space->memory], space);
    zc_space_push(left, space);
}

/* What becomes of a region that has just been found empty. */
static void settle(struct zc_nursery *nursery, struct zc_space *space, struct zc_space_list *left) {
    if (nursery->spares[space->memory] < ZC_NURSERY_SPARES && !nursery->closed)
        make_spare(nursery, space, true);
    else
        leave(nursery, space, left);
}

static void adopt(struct zc_nursery *nursery, struct zc_space *space) {
    space->nursery = nursery;
    atomic_store_explicit(&space->use, ZC_USE_NURSERY, ZC_RELAXED);
    zc_space_push(&nursery->open[space->memory], space);
    make_spare(nursery, space, true);
}

/* The first pages that are neither held nor stale, in the most recently used region. */
static struct zc_space *place(struct zc_nursery *nursery, enum zc_memory memory, uint32_t pages, uintptr_t *address) {
    for (struct zc_space *space = nursery->open[memory].first; space != NULL; space = space->next) {
        if (space->recycling || space->room < pages)
            continue;
        struct zc_page_set busy = zc_page_set_union(&space->held, &space->stale);
        int page = zc_page_set_find_gap(&busy, pages);
        if (page < 0) {
            space->room = (uint16_t)(pages - 1);
            continue;
        }
        make_spare(nursery, space, false);
        zc_page_set_add(&space->held, (uint32_t)page, pages);
        space->held_pages += pages;
        if (space->held_pages == ZC_UNIT_PAGES)
            zc_space_remove(&nursery->open[memory], space);
        nursery->leases++;
        nursery->leased_pages += pages;
        atomic_fetch_add_explicit(&nursery->holders, 1, ZC_RELAXED);
        *address = atomic_load_explicit(&space->region->start, ZC_RELAXED) + (uintptr_t)page * ZC_PAGE;
        return space;
    }
    return NULL;
}

/* The region with the most stale pages, at least `least`, that would have a gap once they are gone. */
static struct zc_space *worth_recycling(struct zc_nursery *nursery, enum zc_memory memory, uint32_t pages, uint32_t least) {
    struct zc_space *best = NULL;
    for (struct zc_space *space = nursery->open[memory].first; space != NULL; space = space->next)
        if (!space->recycling && space->stale_pages >= least && zc_page_set_find_gap(&space->held, pages) >= 0)
            if (best == NULL || space->stale_pages > best->stale_pages)
                best = space;
    return best;
}

/* ---- recycling ---- */

static void make_clean(struct zc_space *space, const struct zc_page_set *pages) {
    zc_page_set_subtract(&space->stale, pages);
    space->stale_pages = (uint16_t)zc_page_set_count(&space->stale);
    space->room = ZC_UNIT_PAGES;
}

/* Entered and left with the nursery's mutex held, which it lets go of meanwhile; the region is marked `recycling`. */
static void recycle(struct zc_nursery *nursery, struct zc_actor *self, struct zc_space *space, struct zc_space_list *left) {
    struct zc_page_set stale = space->stale; /* what is released meanwhile stays stale */
    pthread_mutex_unlock(&nursery->mutex);
    zc_write_recycle(nursery->core, self, space, &stale, 0);
    pthread_mutex_lock(&nursery->mutex);
    make_clean(space, &stale);
    space->recycling = false;
    if (space->held_pages == 0 && !space->spare)
        settle(nursery, space, left);
}

/* ---- placing ---- */

/* Places in the nursery's own regions, recycling the best of those with at least `least` stale pages if there is no gap. */
static struct zc_space *place_here(struct zc_nursery *nursery, enum zc_memory memory, uint32_t pages, uint32_t least, uintptr_t *address) {
    struct zc_space_list left = {0};
    pthread_mutex_lock(&nursery->mutex);
    struct zc_space *space = place(nursery, memory, pages, address);
    struct zc_space *dirty = space == NULL && memory == ZC_MAPPED ? worth_recycling(nursery, memory, pages, least) : NULL;
    if (dirty != NULL) {
        dirty->recycling = true;
        recycle(nursery, nursery->actor, dirty, &left);
        space = place(nursery, memory, pages, address);
    }
    pthread_mutex_unlock(&nursery->mutex);
    if (left.first != NULL) {
        zc_ledger_give(nursery->core, nursery->actor, &left);
        zc_wake_refused(nursery->core);
    }
    return space;
}

static struct zc_space *place_in_new(struct zc_nursery *nursery, struct zc_space *space, uint32_t pages, uintptr_t *address) {
    if (space->stale_pages > 0 && zc_page_set_find_gap(&space->stale, pages) < 0) {
        zc_write_recycle(nursery->core, nursery->actor, space, &space->stale, 0);
        make_clean(space, &space->stale);
    }
    pthread_mutex_lock(&nursery->mutex);
    adopt(nursery, space);
    struct zc_space *placed = place(nursery, space->memory, pages, address);
    pthread_mutex_unlock(&nursery->mutex);
    return placed;
}

int zc_nursery_place(struct zc_nursery *nursery, enum zc_memory memory, uint32_t pages, bool overdraft, struct zc_space **space,
                     uintptr_t *address) {
    struct zc_core *core = nursery->core;
    if ((*space = place_here(nursery, memory, pages, ZC_STALE_MANY, address)) != NULL)
        return 0;
    struct zc_space *fresh;
    int error = zc_ledger_take(core, nursery->actor, memory, 1, overdraft, false, &fresh);
    if (error == -EAGAIN) {
        zc_nurseries_reclaim(core, nursery->actor);
        error = zc_ledger_take(core, nursery->actor, memory, 1, overdraft, false, &fresh);
        /* The map is marked as having refused. What was released here before that called nobody, so look once more. */
        if (error == -EAGAIN && (*space = place_here(nursery, memory, pages, 1, address)) != NULL)
            return 0;
    }
    if (error == 0)
        *space = place_in_new(nursery, fresh, pages, address);
    return error;
}

/* ---- releasing ---- */

static void drop(struct zc_nursery *nursery) {
    if (atomic_fetch_sub_explicit(&nursery->holders, 1, memory_order_acq_rel) != 1)
        return;
    struct zc_core *core = nursery->core;
    pthread_mutex_lock(&core->nurseries_mutex);
    *(nursery->previous != NULL ? &nursery->previous->next : &core->nurseries) = nursery->next;
    if (nursery->next != NULL)
        nursery->next->previous = nursery->previous;
    pthread_mutex_unlock(&core->nurseries_mutex);
    pthread_mutex_destroy(&nursery->mutex);
    free(nursery);
    zc_map_drop(&core->map);
}

void zc_nursery_unplace(struct zc_nursery *nursery, struct zc_space *space, uintptr_t address, uint32_t pages) {
    uint32_t page = (uint32_t)((address - atomic_load_explicit(&space->region->start, ZC_RELAXED)) / ZC_PAGE);
    struct zc_space_list left = {0};
    pthread_mutex_lock(&nursery->mutex);
    ZC_ASSERT(space->held_pages >= pages);
    if (space->held_pages == ZC_UNIT_PAGES)
        zc_space_push(&nursery->open[space->memory], space);
    zc_page_set_remove(&space->held, page, pages);
    space->held_pages -= pages;
    if (space->memory == ZC_MAPPED) {
        zc_page_set_add(&space->stale, page, pages);
        space->stale_pages += pages;
    } else {
        space->room = ZC_UNIT_PAGES;
    }
    nursery->leases--;
    nursery->leased_pages -= pages;
    if (space->held_pages == 0 && !space->recycling) {
        if (space->stale_pages >= ZC_STALE_MANY) {
            space->recycling = true;
            recycle(nursery, NULL, space, &left);
        } else {
            settle(nursery, space, &left);
        }
    }
    pthread_mutex_unlock(&nursery->mutex);
    if (left.first != NULL)
        zc_ledger_give(nursery->core, NULL, &left);
    zc_wake_refused(nursery->core);
    drop(nursery);
}

/* ---- nurseries ---- */

static void leave_if_spare(struct zc_nursery *nursery, struct zc_space_list *left) {
    for (int memory = 0; memory < 2; memory++)
        for (struct zc_space *space = nursery->open[memory].first, *next; space != NULL; space = next) {
            next = space->next;
            if (space->spare && !space->recycling)
                leave(nursery, space, left);
        }
}

struct zc_nursery *zc_nursery_create(struct zc_map *map) {
    struct zc_core *core = zc_core_of(map);
    struct zc_nursery *nursery = calloc(1, sizeof *nursery);
    if (nursery == NULL)
        return NULL;
    nursery->actor = zc_actor_create(map);
    if (nursery->actor == NULL) {
        free(nursery);
        return NULL;
    }
    zc_map_hold(map);
    nursery->core = core;
    nursery->holders = 1;
    pthread_mutex_init(&nursery->mutex, NULL);
    pthread_mutex_lock(&core->nurseries_mutex);
    nursery->next = core->nurseries;
    if (nursery->next != NULL)
        nursery->next->previous = nursery;
    core->nurseries = nursery;
    pthread_mutex_unlock(&core->nurseries_mutex);
    return nursery;
}

void zc_nursery_drop(struct zc_nursery *nursery) {
    struct zc_core *core = nursery->core;
    struct zc_space_list left = {0};
    pthread_mutex_lock(&nursery->mutex);
    nursery->closed = true;
    leave_if_spare(nursery, &left);
    pthread_mutex_unlock(&nursery->mutex);
    if (left.first != NULL) {
        zc_ledger_give(core, nursery->actor, &left);
        zc_wake_refused(core);
    }
    zc_actor_destroy(&core->map, nursery->actor);
    drop(nursery);
}

void zc_nurseries_reclaim(struct zc_core *core, struct zc_actor *self) {
    struct zc_space_list left = {0};
    pthread_mutex_lock(&core->nurseries_mutex);
    for (struct zc_nursery *nursery = core->nurseries; nursery != NULL; nursery = nursery->next) {
        pthread_mutex_lock(&nursery->mutex);
        leave_if_spare(nursery, &left);
        pthread_mutex_unlock(&nursery->mutex);
    }
    pthread_mutex_unlock(&core->nurseries_mutex);
    if (left.first != NULL)
        zc_ledger_give(core, self, &left);
}

void zc_nurseries_count(struct zc_core *core, uint64_t *leases, uint64_t *pages) {
    pthread_mutex_lock(&core->nurseries_mutex);
    for (struct zc_nursery *nursery = core->nurseries; nursery != NULL; nursery = nursery->next) {
        pthread_mutex_lock(&nursery->mutex);
        *leases += nursery->leases;
        *pages += nursery->leased_pages;
        pthread_mutex_unlock(&nursery->mutex);
    }
    pthread_mutex_unlock(&core->nurseries_mutex);
}
