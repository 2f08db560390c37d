/* Conflicts per operation: how many cache lines does a find + lock + unlock share with another thread that does the same? None is what scales;
 * a lock around the map has two, one when it is locked and one when it is unlocked. See touches.h. */
#include <string.h>

#include "lock/registry.h"
#include "region/region_map.h"
#include "tests/check.h"
#include "tests/touches.h"

enum { OPERATIONS = 10 };

static struct side {
    alignas(ZC_CACHE_LINE) struct zc_guard guard;
    struct zc_actor *actor;
    struct zc_region *region;
} sides[2];

/* Locking and unlocking are a call each: between them lies the receive, and the line is elsewhere by then. */
static void hold(struct zc_map *map, int thread) {
    struct side *side = &sides[thread];
    zc_touches_begin(thread);
    CHECK_EQUAL(map->strategy->read_lock(map, side->actor, side->region->start, &side->guard), 0);
    zc_touches_end();
    CHECK(side->guard.region == side->region);
    zc_touches_begin(thread);
    map->strategy->read_unlock(map, side->actor, &side->guard);
    zc_touches_end();
}

static void look(struct zc_map *map, int thread) {
    struct side *side = &sides[thread];
    zc_touches_begin(thread);
    CHECK_EQUAL(map->strategy->peek(map, side->region->start, &side->guard), 0);
    zc_touches_end();
    zc_touches_begin(thread);
    CHECK_EQUAL(map->strategy->confirm(map, &side->guard), 0);
    zc_touches_end();
}

static double conflicts(const struct zc_strategy *strategy, void (*act)(struct zc_map *, int), bool hot) {
    struct zc_map *map;
    CHECK_EQUAL(zc_map_create(strategy, &(struct zc_map_options){.budget = 4 * ZC_UNIT}, &map), 0);
    for (int thread = 0; thread < 2; thread++) {
        sides[thread].actor = zc_actor_create(map);
        CHECK_EQUAL(zc_region_attach(map, sides[thread].actor, ZC_COPIED, ZC_UNIT, &sides[thread].region), 0);
    }
    if (hot)
        sides[1].region = sides[0].region;
    for (int thread = 0; thread < 2; thread++)
        act(map, thread); /* a bias is set now */
    zc_touches_clear();
    for (int i = 0; i < OPERATIONS; i++)
        act(map, i % 2);
    double shared = (double)zc_touches_shared() / OPERATIONS;
    zc_touches_clear();
    for (int thread = 0; thread < 2; thread++)
        zc_actor_destroy(map, sides[thread].actor);
    zc_map_drop(map);
    return shared;
}

static const struct expected {
    const char *name;
    double disjoint, hot;
} table[] = {
    {"global", 2, 2},
    {"global-mutex", 2, 2},
    {"global-pthread", 2, 2},
    {"global-phase-fair", 2, 2},
    {"global-bravo", 0, 0},
    {"global-big-reader", 0, 0},
    /* The map's lock to find the region; if that is the same, its lock, too. */
    {"region-rwlock", 1, 3},
    {"per-region-6.4", 0, 2},
    {"per-region-6.4-convert", 0, 2},
    {"per-region", 0, 2},
    {"per-region-convert", 0, 2},
    /* Holding; looking is apart. */
    {"speculative", 0, 2},
    /* The list, and the range that the other had last. */
    {"range", 4, 4},
};

/* A row for people, or one for `zcrpc.lab.conflicts`; names need no escapes. */
static void say(bool json, const char *name, const char *way, double disjoint, double hot) {
    static bool more;
    if (json)
        printf("%s{\"strategy\": \"%s\", \"way\": \"%s\", \"disjoint_lines\": %.1f, \"hot_lines\": %.1f}", more ? ",\n" : "[", name, way,
               disjoint, hot);
    else
        printf("%-24s %-8s %.1f %.1f\n", name, way, disjoint, hot);
    more = true;
}

int main(int argc, char **argv) {
    bool json = argc > 1 && strcmp(argv[1], "--json") == 0;
    if (!json)
        printf("shared cache lines per find + lock + unlock: regions of their own, one region\n");
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const struct zc_strategy *strategy = zc_strategy_find(table[i].name);
        CHECK(strategy != NULL);
        double disjoint = conflicts(strategy, hold, false), hot = conflicts(strategy, hold, true);
        say(json, table[i].name, "holding", disjoint, hot);
        CHECK(disjoint == table[i].disjoint);
        CHECK(hot == table[i].hot);
    }
    double disjoint = conflicts(&zc_strategy_speculative, look, false), hot = conflicts(&zc_strategy_speculative, look, true);
    say(json, "speculative", "looking", disjoint, hot);
    CHECK(disjoint == 0);
    CHECK(hot == 0);
    CHECK(conflicts(&zc_strategy_none, hold, true) == 0);
    if (json)
        printf("]\n");
    return 0;
}
