/* Torture's own instruments: draws that a seed repeats, wraps that are counted truly, runs that end when told. */
#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lab/torture_run.h"
#include "lock/registry.h"
#include "tests/check.h"

static void draws_follow_the_seed(void) {
    struct torture_worker one = {.random = torture_seed(7, 2, 1)}, same = {.random = torture_seed(7, 2, 1)};
    uint32_t seen[10] = {0};
    for (int i = 0; i < 100000; i++) {
        uint32_t drawn = torture_draw(&one, 10);
        CHECK_EQUAL(torture_draw(&same, 10), drawn);
        CHECK(drawn < 10);
        seen[drawn]++;
    }
    for (int i = 0; i < 10; i++)
        CHECK(seen[i] > 9500 && seen[i] < 10500);
    CHECK(torture_seed(7, 2, 1) != torture_seed(8, 2, 1));
    CHECK(torture_seed(7, 2, 1) != torture_seed(7, 1, 2));
    CHECK(torture_seed(7, 2, 1) != torture_seed(7, 2, 2));
}

static struct zc_map *map_before_wrap(const struct zc_strategy *strategy) {
    struct zc_map *map;
    const struct zc_map_options options = {.budget = ZC_UNIT};
    CHECK_EQUAL(zc_map_create(strategy, &options, &map), 0);
    torture_start_before_wrap(map);
    return map;
}

static int64_t wraps_after(struct zc_map *map, struct zc_actor *self, int sections) {
    for (int i = 0; i < sections; i++) {
        map->strategy->write_lock(map, self);
        map->strategy->write_unlock(map, self);
    }
    struct zc_map_stats stats;
    zc_map_stats(map, &stats);
    return torture_wraps(map, &stats.lock);
}

static void wraps_are_counted(const char *name) {
    const struct zc_strategy *strategy = zc_strategy_find(name);
    struct zc_map *map = map_before_wrap(strategy);
    struct zc_actor *self = zc_actor_create(map);
    bool wraps = strategy != &zc_strategy_global_mutex && strategy != &zc_strategy_global_pthread;
    CHECK_EQUAL(wraps_after(map, self, 0), 0);
    CHECK_EQUAL(wraps_after(map, self, 99), 0);
    int64_t once = wraps_after(map, self, 301);
    CHECK(wraps ? once > 0 : once == 0);
    CHECK_EQUAL(wraps_after(map, self, 100), once); /* the next is 65,536 sections away */
    if (strategy == &zc_strategy_global)
        CHECK_EQUAL(wraps_after(map, self, 65536), once + 1);
    zc_actor_destroy(map, self);
    zc_map_drop(map);
}

static void a_strategy_from_outside_has_none(void) {
    struct zc_strategy outside = zc_strategy_global;
    struct zc_map *map = map_before_wrap(&outside);
    struct zc_actor *self = zc_actor_create(map);
    CHECK_EQUAL(wraps_after(map, self, 400), -1);
    zc_actor_destroy(map, self);
    zc_map_drop(map);
}

static void a_section_that_was_not_counted_shows(const struct zc_strategy *strategy) {
    struct zc_map *map = map_before_wrap(strategy);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(STDERR_FILENO);
        torture_wraps(map, &(struct zc_lock_counters){.write_locks = 1});
        _exit(0);
    }
    int status;
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    zc_map_drop(map);
}

static struct zc_torture_options short_run(const char *strategy) {
    return (struct zc_torture_options){.strategy = strategy, .readers = 2, .writers = 1, .seconds = 0.1, .stalled_seconds = 30, .seed = 1};
}

static void it_stops_when_told(void) {
    uint32_t stop = 1;
    struct zc_torture_options options = short_run("per-region");
    options.seconds = 1000;
    options.stop = &stop;
    struct zc_torture_result result;
    CHECK_EQUAL(zc_torture_run(&options, &result), 0);
    CHECK_EQUAL(result.rounds, 1);
    CHECK(result.elapsed_seconds < 20);
    CHECK(result.operations > 0);
}

static void the_impossible_is_refused(void) {
    struct zc_torture_result result;
    struct zc_torture_options options = short_run("no-such-lock");
    CHECK_EQUAL(zc_torture_run(&options, &result), -ENOENT);
    options = short_run("global");
    options.readers = ZC_TORTURE_READERS + 1;
    CHECK_EQUAL(zc_torture_run(&options, &result), -EINVAL);
    options.readers = 0;
    CHECK_EQUAL(zc_torture_run(&options, &result), -EINVAL);
    options = short_run("global");
    options.writers = ZC_TORTURE_WRITERS + 1;
    CHECK_EQUAL(zc_torture_run(&options, &result), -EINVAL);
    options.writers = 0;
    CHECK_EQUAL(zc_torture_run(&options, &result), -EINVAL);
    options = short_run("global");
    options.seconds = 0;
    CHECK_EQUAL(zc_torture_run(&options, &result), -EINVAL);
}

/* More threads than slots, lines for marks, or processors. */
static void many_threads_get_on(void) {
    struct zc_torture_options options = short_run("global-big-reader");
    options.readers = ZC_TORTURE_READERS;
    options.writers = ZC_TORTURE_WRITERS;
    struct zc_torture_result result;
    CHECK_EQUAL(zc_torture_run(&options, &result), 0);
    CHECK(result.operations >= ZC_TORTURE_READERS);
}

int main(void) {
    RUN(draws_follow_the_seed);
    for (size_t i = 0; zc_strategy_at(i) != NULL; i++)
        RUN(wraps_are_counted, zc_strategy_at(i)->name);
    RUN(a_strategy_from_outside_has_none);
    RUN(a_section_that_was_not_counted_shows, &zc_strategy_global);
    RUN(a_section_that_was_not_counted_shows, &zc_strategy_per_region);
    RUN(it_stops_when_told);
    RUN(the_impossible_is_refused);
    RUN(many_threads_get_on);
    return 0;
}
