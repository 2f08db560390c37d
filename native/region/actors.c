/* The threads that use a map, and what they counted. */
#include <stdlib.h>
#include <string.h>

#include "lock/atomics.h"
#include "region/map_core.h"

#define COUNTERS (sizeof(struct zc_lock_counters) / sizeof(uint64_t))

static void add_counters(struct zc_lock_counters *sum, const struct zc_lock_counters *counters) {
    uint64_t *to = (uint64_t *)sum;
    const uint64_t *from = (const uint64_t *)counters;
    for (size_t i = 0; i < COUNTERS; i++)
        to[i] += __atomic_load_n(&from[i], __ATOMIC_RELAXED); /* the actor may be counting now: zc_count */
}

/* With the ledger: an id that is free, or -1 without memory. */
static int64_t free_id(struct zc_core *core) {
    for (uint32_t id = 0; id < core->actor_slots; id++)
        if (core->actors[id] == NULL)
            return id;
    uint32_t slots = core->actor_slots != 0 ? 2 * core->actor_slots : 8;
    struct zc_actor **actors = realloc(core->actors, slots * sizeof *actors);
    if (actors == NULL)
        return -1;
    memset(actors + core->actor_slots, 0, (slots - core->actor_slots) * sizeof *actors);
    uint32_t id = core->actor_slots;
    core->actors = actors;
    core->actor_slots = slots;
    return id;
}

struct zc_actor *zc_actor_create(struct zc_map *map) {
    struct zc_core *core = zc_core_of(map);
    struct zc_actor *actor = aligned_alloc(alignof(struct zc_actor), sizeof *actor);
    if (actor == NULL)
        return NULL;
    memset(actor, 0, sizeof *actor);
    pthread_mutex_lock(&core->ledger);
    int64_t id = free_id(core);
    if (id >= 0) {
        actor->id = (uint32_t)id;
        core->actors[id] = actor;
    }
    pthread_mutex_unlock(&core->ledger);
    if (id < 0) {
        free(actor);
        return NULL;
    }
    return actor;
}

void zc_actor_destroy(struct zc_map *map, struct zc_actor *actor) {
    struct zc_core *core = zc_core_of(map);
    pthread_mutex_lock(&core->ledger);
    add_counters(&core->departed, &actor->counters);
    core->actors[actor->id] = NULL;
    pthread_mutex_unlock(&core->ledger);
    free(actor);
}

void zc_actors_count(struct zc_core *core, struct zc_lock_counters *sum) {
    add_counters(sum, &core->departed);
    for (uint32_t id = 0; id < core->actor_slots; id++)
        if (core->actors[id] != NULL)
            add_counters(sum, &core->actors[id]->counters);
}

void zc_actors_free(struct zc_core *core) {
    for (uint32_t id = 0; id < core->actor_slots; id++)
        free(core->actors[id]);
    free(core->actors);
}
