/* What the core has behind a map and a region: shared by the files of region/, and by tests.
 *
 * Lock order, left before right; whoever holds one may take those to the right of it:
 *
 *   internal actor → strategy's map lock → strategy's region locks
 *   nurseries → nursery → ledger, arena, slab, wakers (leaves: nothing is taken under them)
 *
 * The two rows do not mix: a write to the map may have to wait for a receive that is under way, so it is never made under a nursery or the
 * ledger. What has to be written is taken off its list first, which makes it the thread's own; then written; then put where it belongs.
 */
#ifndef ZCRPC_MAP_CORE_H
#define ZCRPC_MAP_CORE_H

#include <pthread.h>

#include "region/arena.h"
#include "region/page_set.h"
#include "region/region_map.h"
#include "region/slab.h"

enum zc_use {
    ZC_USE_NONE, /* on its way from one use to another, or free */
    ZC_USE_HAND, /* attached by zc_region_attach */
    ZC_USE_IDLE,
    ZC_USE_NURSERY, /* leases share its pages */
    ZC_USE_RUN,     /* one lease has it */
};

/* The core's part of a region. `use` decides who may touch the rest: the ledger's mutex for IDLE, the nursery's for NURSERY, else the one
 * thread that took or holds it. */
struct zc_space {
    struct zc_region *region; /* for the life of the struct */
    struct zc_space *next, *previous;
    struct zc_nursery *nursery;
    enum zc_memory memory;
    _Atomic uint32_t use; /* enum zc_use; read by zc_region_detach of a region that may be anybody's */
    uint32_t units;

    /* Of regions of one unit: */
    struct zc_page_set held;  /* by leases */
    struct zc_page_set stale; /* mapped memory: not held, but old pages are mapped there until the next recycle. Disjoint from held */
    uint16_t held_pages, stale_pages;
    uint16_t room;  /* no gap between held and stale pages is larger than this */
    bool spare;     /* empty, and counted in its nursery's spares */
    bool recycling; /* some thread is giving its stale pages back: no placing here meanwhile */
};

struct zc_space_list {
    struct zc_space *first, *last;
};

struct zc_waker {
    zc_wake_fn wake; /* NULL: a free entry */
    void *context;
    uint32_t running;
};

struct zc_core {
    struct zc_map map; /* first: a struct zc_map * is a struct zc_core * */
    struct zc_slab *slab;
    uint64_t budget, retain; /* in units */
    struct zc_arena arena;

    bool abandoned;       /* this process was forked from the map's */
    _Atomic bool refused; /* a reservation waits for memory. Read by every release, so kept off the lines that are written often */

    alignas(ZC_CACHE_LINE) _Atomic uint64_t holders;

    pthread_mutex_t internal_mutex; /* makes `internal` usable by any thread */
    struct zc_actor *internal;

    pthread_mutex_t nurseries_mutex;
    struct zc_nursery *nurseries;

    pthread_mutex_t ledger;              /* guards what follows */
    struct zc_space_list idle;           /* most recently used first */
    uint64_t attached_units, idle_units; /* attached includes idle */
    uint64_t regions, runs, run_pages;
    uint64_t recycles, attaches, detaches, budget_refusals;
    uint64_t recycled_bytes, recycle_cycles; /* of mapped memory */
    struct zc_actor **actors;                /* by id; NULL where free */
    uint32_t actor_slots;
    struct zc_lock_counters departed; /* of actors that are gone */

    pthread_mutex_t wakers_mutex;
    pthread_cond_t wakers_idle;
    struct zc_waker wakers[ZC_MAP_WAKERS];
};

static inline struct zc_core *zc_core_of(struct zc_map *map) {
    return (struct zc_core *)map;
}

static inline struct zc_space *zc_space_of(const struct zc_region *region) {
    return region->owner;
}

/* Like zc_map_create, with region structs from the slab of another map of the same strategy (-EINVAL if it is not): structs move between
 * the two, which is what the identity check of a strategy is for. */
int zc_map_create_beside(struct zc_map *sibling, const struct zc_map_options *options, struct zc_map **out);

/* ---- lists of regions ---- */

static inline void zc_space_push(struct zc_space_list *list, struct zc_space *space) {
    space->previous = NULL;
    space->next = list->first;
    *(list->first != NULL ? &list->first->previous : &list->last) = space;
    list->first = space;
}

static inline void zc_space_remove(struct zc_space_list *list, struct zc_space *space) {
    *(space->previous != NULL ? &space->previous->next : &list->first) = space->next;
    *(space->next != NULL ? &space->next->previous : &list->last) = space->previous;
    space->next = space->previous = NULL;
}

static inline struct zc_space *zc_space_pop(struct zc_space_list *list) {
    struct zc_space *space = list->first;
    if (space != NULL)
        zc_space_remove(list, space);
    return space;
}

/* ---- writes.c: changes of the map under its lock strategy. self: the calling thread's actor, or NULL for the map's internal one ---- */

/* Opens a run of fresh units as a region; the ledger has been charged already. -EAGAIN if the arena has no such hole now. */
int zc_write_attach(struct zc_core *core, struct zc_actor *self, enum zc_memory memory, uint32_t units, struct zc_space **out);
/* Detaches all of the list in one write section and gives the memory back; the ledger has been credited already. */
void zc_write_detach(struct zc_core *core, struct zc_actor *self, struct zc_space_list *spaces);
/* Gives pages back to the system: those in the set or, without one, those of the first `length` bytes. */
void zc_write_recycle(struct zc_core *core, struct zc_actor *self, struct zc_space *space, const struct zc_page_set *pages,
                      uint64_t length);

/* ---- ledger.c: the budget and the idle regions ---- */

/* A region of at least so many units, idle or new: 0, -EAGAIN (the map is marked as having refused), -EMSGSIZE, -ENOMEM or what the system
 * said. `fresh`: a new one of exactly so many units. It comes with ZC_USE_NONE. */
int zc_ledger_take(struct zc_core *core, struct zc_actor *self, enum zc_memory memory, uint64_t units, bool overdraft, bool fresh,
                   struct zc_space **out);
/* Makes regions that nobody uses idle, and detaches what is over `retain` or the budget. */
void zc_ledger_give(struct zc_core *core, struct zc_actor *self, struct zc_space_list *spaces);
/* Detaches one region that nobody uses, without making it idle. */
void zc_ledger_discard(struct zc_core *core, struct zc_actor *self, struct zc_space *space);

/* ---- actors.c ---- */

void zc_actors_count(struct zc_core *core, struct zc_lock_counters *sum); /* with the ledger's mutex held */
void zc_actors_free(struct zc_core *core);

/* ---- wakers.c ---- */

/* To be called, under no lock, after memory came back. */
void zc_wake_refused(struct zc_core *core);

/* ---- nursery.c ---- */

/* Makes the regions idle that nurseries keep although they are empty. Leaves the mark of a refusal alone. */
void zc_nurseries_reclaim(struct zc_core *core, struct zc_actor *self);
void zc_nurseries_count(struct zc_core *core, uint64_t *leases, uint64_t *pages);

#endif
