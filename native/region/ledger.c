/* The budget and the idle regions.
 *
 * A region counts against the budget from before it is attached until it was chosen for detaching. Idle regions count too; they are the
 * first to go when somebody needs another shape. So memory in use plus idle never exceeds the budget, except for what was overdrawn.
 */
#include <errno.h>

#include "lock/atomics.h"
#include "region/map_core.h"

/* With the ledger: the idle region that fits best, at most a quarter too large; among equals the warmest. */
static struct zc_space *best_idle(struct zc_core *core, enum zc_memory memory, uint64_t units) {
    struct zc_space *best = NULL;
    for (struct zc_space *space = core->idle.first; space != NULL; space = space->next)
        if (space->memory == memory && space->units >= units && space->units <= units + units / 4)
            if (best == NULL || space->units < best->units)
                best = space;
    return best;
}

/* With the ledger: takes a region out of the idle ones, into a list of those to be detached, and out of the budget. */
static void evict(struct zc_core *core, struct zc_space *space, struct zc_space_list *evicted) {
    zc_space_remove(&core->idle, space);
    atomic_store_explicit(&space->use, ZC_USE_NONE, ZC_RELAXED);
    core->idle_units -= space->units;
    core->attached_units -= space->units;
    core->regions--;
    zc_space_push(evicted, space);
}

/* With the ledger: charges for a new region if it fits, once enough idle ones are gone. */
static bool admit(struct zc_core *core, uint64_t units, bool overdraft, struct zc_space_list *evicted) {
    if (!overdraft && core->attached_units - core->idle_units + units > core->budget)
        return false;
    while (core->attached_units + units > core->budget && core->idle.last != NULL)
        evict(core, core->idle.last, evicted);
    core->attached_units += units;
    core->regions++;
    return true;
}

static void uncharge(struct zc_core *core, uint64_t units) {
    pthread_mutex_lock(&core->ledger);
    core->attached_units -= units;
    core->regions--;
    pthread_mutex_unlock(&core->ledger);
    zc_wake_refused(core);
}

static void evict_all(struct zc_core *core, struct zc_actor *self) {
    struct zc_space_list evicted = {0};
    pthread_mutex_lock(&core->ledger);
    while (core->idle.last != NULL)
        evict(core, core->idle.last, &evicted);
    pthread_mutex_unlock(&core->ledger);
    zc_write_detach(core, self, &evicted);
}

int zc_ledger_take(struct zc_core *core, struct zc_actor *self, enum zc_memory memory, uint64_t units, bool overdraft, bool fresh,
                   struct zc_space **out) {
    if (units > (overdraft ? core->arena.units : core->budget))
        return -EMSGSIZE;
    struct zc_space_list evicted = {0};
    pthread_mutex_lock(&core->ledger);
    struct zc_space *space = fresh ? NULL : best_idle(core, memory, units);
    bool admitted = true;
    if (space != NULL) {
        zc_space_remove(&core->idle, space);
        core->idle_units -= space->units;
        atomic_store_explicit(&space->use, ZC_USE_NONE, ZC_RELAXED);
    } else {
        admitted = admit(core, units, overdraft, &evicted);
        if (!admitted)
            atomic_store_explicit(&core->refused, true, ZC_SEQ_CST);
    }
    pthread_mutex_unlock(&core->ledger);

    zc_write_detach(core, self, &evicted);
    if (space != NULL) {
        *out = space;
        return 0;
    }
    if (!admitted)
        return -EAGAIN;
    int error = zc_write_attach(core, self, memory, (uint32_t)units, out);
    if (error == -EAGAIN) { /* no hole in the arena is long enough: idle regions may be in the way */
        evict_all(core, self);
        error = zc_write_attach(core, self, memory, (uint32_t)units, out);
    }
    if (error != 0) {
        uncharge(core, units);
        if (error == -EAGAIN) /* after the wake of others, so that it stays */
            atomic_store_explicit(&core->refused, true, ZC_SEQ_CST);
    }
    return error;
}

void zc_ledger_give(struct zc_core *core, struct zc_actor *self, struct zc_space_list *spaces) {
    struct zc_space_list evicted = {0};
    pthread_mutex_lock(&core->ledger);
    for (struct zc_space *space; (space = zc_space_pop(spaces)) != NULL;) {
        atomic_store_explicit(&space->use, ZC_USE_IDLE, ZC_RELAXED);
        space->nursery = NULL;
        space->spare = false;
        zc_space_push(&core->idle, space);
        core->idle_units += space->units;
        if (space->units > core->retain) /* rather than everything else */
            evict(core, space, &evicted);
    }
    while (core->idle.last != NULL && (core->idle_units > core->retain || core->attached_units > core->budget))
        evict(core, core->idle.last, &evicted);
    pthread_mutex_unlock(&core->ledger);
    zc_write_detach(core, self, &evicted);
}

void zc_ledger_discard(struct zc_core *core, struct zc_actor *self, struct zc_space *space) {
    struct zc_space_list one = {0};
    zc_space_push(&one, space);
    uint64_t units = space->units;
    zc_write_detach(core, self, &one);
    uncharge(core, units);
}
