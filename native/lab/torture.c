#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "lab/clock.h"
#include "lab/torture_check.h"
#include "lab/torture_run.h"
#include "lock/registry.h"
#include "region/map_core.h"

#define ROUND_SECONDS 3.0 /* new maps so often, for sequences that start before their wrap once more */
#define SLOTS_PER_WRITER 3
#define LEAST_SLOTS 6
#define UNITS_FOR_LEASES 8
#define LINGER_ONE_IN 32 /* steps of a calm burst */
#define SLEEP_US 100     /* at most; one in 64 is longer: */
#define LONG_SLEEP 20u   /* times that */

_Noreturn void torture_violation(const char *file, int line, const char *function, const char *format, ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    const char *base = strrchr(file, '/');
    fprintf(stderr, "%s:%d: %s: %s\n", base != NULL ? base + 1 : file, line, function, text);
    _exit(1); /* other threads are in the map: nothing can be taken down */
}

/* ---- bursts ---- */

static void sleep_us(uint64_t us) {
    nanosleep(&(struct timespec){.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000 * 1000)}, NULL);
}

void torture_begin_burst(struct torture_worker *w) {
    if (w->role->rest_us > 0)
        sleep_us(torture_draw(w, w->role->rest_us));
    w->rough = torture_draw(w, 4) != 0;
    w->burst = 1 + torture_draw(w, w->rough ? w->role->rough_burst : w->role->calm_burst);
}

void torture_dawdle(struct torture_worker *w) {
    if (!w->rough && torture_draw(w, LINGER_ONE_IN) != 0)
        return;
    uint32_t lot = torture_draw(w, 256);
    if (lot == 0) {
        sleep_us(torture_draw(w, torture_draw(w, 64) ? SLEEP_US : LONG_SLEEP * SLEEP_US));
        w->sleeps++;
    } else if (lot <= 8) {
        sched_yield(); /* as if preempted, lock in hand */
        w->preemptions++;
    }
    for (uint32_t i = torture_draw(w, 40); i > 0; i--)
        zc_relax();
}

static void *work(void *argument) {
    struct torture_worker *w = argument;
    while (!atomic_load_explicit(&w->run->stop, ZC_RELAXED)) {
        if (w->burst == 0)
            torture_begin_burst(w);
        w->burst--;
        w->role->step(w);
        zc_count(&w->steps);
    }
    return NULL;
}

/* ---- a round: set up, run, taken down ---- */

static int set_up_side(struct torture_run *run, struct torture_side *side) {
    torture_start_before_wrap(side->map);
    side->copied = calloc(side->map->units, sizeof *side->copied);
    side->slots = aligned_alloc(ZC_CACHE_LINE, run->slots * sizeof *side->slots);
    struct zc_actor *self = zc_actor_create(side->map);
    if (side->copied == NULL || side->slots == NULL || self == NULL)
        return -ENOMEM;
    memset(side->slots, 0, run->slots * sizeof *side->slots);
    int error = 0;
    for (uint32_t i = 0; error == 0 && i < run->slots; i++) {
        struct zc_region *region;
        error = torture_attach(side, self, ZC_COPIED, &region);
        if (error == 0)
            torture_publish(&side->slots[i], region);
    }
    zc_actor_destroy(side->map, self);
    return error;
}

static int set_up(struct torture_run *run, const struct zc_torture_options *options, const struct zc_strategy *strategy) {
    uint32_t slots = SLOTS_PER_WRITER * options->writers;
    *run = (struct torture_run){.options = options, .strategy = strategy, .slots = slots > LEAST_SLOTS ? slots : LEAST_SLOTS};
    const struct zc_map_options map = {.budget = (run->slots + UNITS_FOR_LEASES) * ZC_UNIT, .retain = 2 * ZC_UNIT};
    int error = zc_map_create(strategy, &map, &run->sides[0].map);
    if (error == 0)
        error = zc_map_create_beside(run->sides[0].map, &map, &run->sides[1].map);
    for (int which = 0; error == 0 && which < TORTURE_MAPS; which++)
        error = set_up_side(run, &run->sides[which]);
    if (error == 0) {
        run->nursery = zc_nursery_create(run->sides[0].map);
        error = run->nursery != NULL ? 0 : -ENOMEM;
    }
    return error;
}

static void take_down(struct torture_run *run) {
    if (run->nursery != NULL)
        zc_nursery_drop(run->nursery);
    for (int which = 0; which < TORTURE_MAPS; which++) {
        struct torture_side *side = &run->sides[which];
        if (side->map != NULL)
            zc_map_drop(side->map);
        free(side->slots);
        free(side->copied);
    }
}

static int start(struct torture_run *run, struct torture_worker *w, const struct torture_role *role, uint32_t number, uint64_t seed) {
    *w = (struct torture_worker){.run = run, .role = role, .number = number, .random = seed};
    for (int which = 0; which < TORTURE_MAPS; which++) {
        w->actors[which] = zc_actor_create(run->sides[which].map);
        if (w->actors[which] == NULL)
            return -ENOMEM;
    }
    return -pthread_create(&w->thread, NULL, work, w);
}

/* Starts what it can; a worker without a thread has no `run`. */
static int start_all(struct torture_run *run, struct torture_worker *workers, uint32_t count, uint32_t round) {
    uint32_t readers = run->options->readers;
    int error = 0;
    for (uint32_t i = 0; error == 0 && i < count; i++) {
        const struct torture_role *role = i < readers ? &torture_reader : i < count - 1 ? &torture_writer : &torture_lessee;
        error = start(run, &workers[i], role, i < readers ? i : i - readers, torture_seed(run->options->seed, round, i));
        if (error != 0)
            workers[i].run = NULL;
    }
    return error;
}

static bool told_to_stop(const struct torture_run *run) {
    const uint32_t *stop = run->options->stop;
    return stop != NULL && __atomic_load_n(stop, __ATOMIC_RELAXED);
}

static _Noreturn void stuck(const struct torture_run *run, uint32_t thread) {
    torture_violation(__FILE__, __LINE__, __func__, "%s: thread %u has been stuck for %g s", run->strategy->name, thread,
                      run->options->stalled_seconds);
}

struct progress {
    uint64_t steps;
    double moved; /* when the watchdog last saw that the steps were more */
};

/* When the one that has not got on for the longest did so. */
static double see_progress(const struct torture_run *run, struct torture_worker *workers, uint32_t count, struct progress *last) {
    double now = zc_lab_seconds(CLOCK_MONOTONIC), bound = run->options->stalled_seconds, earliest = now;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t steps = __atomic_load_n(&workers[i].steps, __ATOMIC_RELAXED);
        if (steps != last[i].steps)
            last[i] = (struct progress){.steps = steps, .moved = now};
        if (now - last[i].moved > bound)
            stuck(run, i);
        earliest = last[i].moved < earliest ? last[i].moved : earliest;
    }
    return earliest;
}

/* Until the time is up and each thread has got on once more, while the others still press. */
static void watch(const struct torture_run *run, struct torture_worker *workers, uint32_t count, double seconds) {
    struct progress last[ZC_TORTURE_READERS + ZC_TORTURE_WRITERS + 1] = {0};
    double due = zc_lab_seconds(CLOCK_MONOTONIC) + seconds;
    for (uint32_t i = 0; i < count; i++)
        last[i].moved = due - seconds;
    while (see_progress(run, workers, count, last) <= due) {
        double now = zc_lab_seconds(CLOCK_MONOTONIC);
        if (now < due && told_to_stop(run))
            due = now;
        sleep_us(now + 0.02 < due ? 20000 : 2000);
    }
}

/* Each thread that there is ends after its step. */
static void join(const struct torture_run *run, struct torture_worker *workers, uint32_t count) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)run->options->stalled_seconds + 1;
    for (uint32_t i = 0; i < count; i++)
        if (workers[i].run != NULL && pthread_timedjoin_np(workers[i].thread, NULL, &until) != 0)
            stuck(run, i);
}

/* ---- what was done ---- */

struct tally {
    struct zc_torture_result *result;
    uint64_t longest_read, longest_write; /* cycles, over all rounds */
};

static void add_side(struct tally *tally, struct torture_run *run, const struct torture_worker *workers, uint32_t count, int which) {
    struct torture_side *side = &run->sides[which];
    uint64_t read_locks = 0, misses = 0, sections = 0;
    for (uint32_t i = 0; i < count; i++) {
        read_locks += workers[i].read_locks[which];
        misses += workers[i].misses[which];
        sections += workers[i].sections[which];
    }
    struct zc_map_stats stats;
    zc_map_stats(side->map, &stats);
    CHECK_EQUAL(stats.lock.read_locks, read_locks);
    CHECK_EQUAL(stats.lock.misses, misses);
    CHECK(stats.lock.fallbacks <= read_locks);
    CHECK(stats.lock.write_locks >= sections + run->slots); /* and those of the nursery and of releases */
    CHECK_EQUAL(stats.regions, stats.attaches - stats.detaches);
    CHECK_EQUAL(stats.leases, 0);
    for (uint32_t i = 0; i < run->slots; i++)
        CHECK_EQUAL(side->slots[i].record.a, side->slots[i].record.b);
    int64_t wraps = torture_wraps(side->map, &stats.lock);
    struct zc_torture_result *result = tally->result;
    result->wraps = wraps < 0 ? -1 : result->wraps + wraps;
    result->read_locks += read_locks;
    result->misses += misses;
    result->fallbacks += stats.lock.fallbacks;
    result->retries += stats.lock.retries;
    result->waits += stats.lock.waits;
    result->write_locks += stats.lock.write_locks;
    result->attaches += stats.attaches;
    result->detaches += stats.detaches;
    result->recycles += stats.recycles;
}

static void add_worker(struct tally *tally, const struct torture_worker *w) {
    struct zc_torture_result *result = tally->result;
    result->looks += w->looks;
    result->confirmed += w->confirmed;
    result->touches += w->touches;
    result->placed += w->placed;
    result->released += w->released;
    result->refused += w->refused;
    result->sleeps += w->sleeps;
    result->preemptions += w->preemptions;
    tally->longest_read = w->longest_read > tally->longest_read ? w->longest_read : tally->longest_read;
    tally->longest_write = w->longest_write > tally->longest_write ? w->longest_write : tally->longest_write;
}

static void release_leases(struct torture_run *run) {
    for (int i = 0; i < TORTURE_RING; i++)
        if (run->ring[i] != NULL)
            zc_lease_release(run->ring[i]);
}

static int run_round(struct tally *tally, struct torture_run *run, struct torture_worker *workers, uint32_t count, double seconds) {
    int error = start_all(run, workers, count, tally->result->rounds);
    double began = zc_lab_seconds(CLOCK_MONOTONIC);
    if (error == 0)
        watch(run, workers, count, seconds);
    atomic_store(&run->stop, true);
    join(run, workers, count);
    tally->result->elapsed_seconds += zc_lab_seconds(CLOCK_MONOTONIC) - began;
    release_leases(run);
    for (int which = 0; error == 0 && which < TORTURE_MAPS; which++)
        add_side(tally, run, workers, count, which);
    for (uint32_t i = 0; i < count; i++) {
        if (error == 0)
            add_worker(tally, &workers[i]);
        for (int which = 0; which < TORTURE_MAPS; which++)
            if (workers[i].actors[which] != NULL)
                zc_actor_destroy(run->sides[which].map, workers[i].actors[which]);
    }
    return error;
}

static int run_rounds(const struct zc_torture_options *options, const struct zc_strategy *strategy, struct torture_worker *workers,
                      struct tally *tally) {
    uint32_t count = options->readers + options->writers + 1, rounds = 1 + (uint32_t)(options->seconds / ROUND_SECONDS);
    struct torture_run run;
    int error = 0;
    for (uint32_t i = 0; i < rounds && error == 0 && !(i > 0 && told_to_stop(&run)); i++) {
        memset(workers, 0, count * sizeof *workers);
        error = set_up(&run, options, strategy);
        if (error == 0)
            error = run_round(tally, &run, workers, count, options->seconds / rounds);
        take_down(&run);
        tally->result->rounds++;
    }
    return error;
}

/* ---- memory that goes away under a thread that holds its region ---- */

static void on_bad_access(int signal, siginfo_t *info, void *context) {
    (void)context;
    torture_violation(__FILE__, __LINE__, __func__, "signal %d: memory at %p is gone, while a thread uses it", signal, info->si_addr);
}

/* Where a sanitizer has handlers of its own, they say more. */
static void handle(int signal) {
    struct sigaction before;
    struct sigaction action = {.sa_sigaction = on_bad_access, .sa_flags = SA_SIGINFO};
    if (sigaction(signal, NULL, &before) == 0 && !(before.sa_flags & SA_SIGINFO) && before.sa_handler == SIG_DFL)
        sigaction(signal, &action, NULL);
}

int zc_torture_run(const struct zc_torture_options *options, struct zc_torture_result *result) {
    const struct zc_strategy *strategy = zc_strategy_find(options->strategy);
    if (strategy == NULL)
        return -ENOENT;
    if (options->readers == 0 || options->readers > ZC_TORTURE_READERS || options->writers == 0 || options->writers > ZC_TORTURE_WRITERS ||
        !(options->seconds > 0 && options->seconds <= ZC_TORTURE_SECONDS && options->stalled_seconds > 0))
        return -EINVAL;
    struct torture_worker *workers = aligned_alloc(ZC_CACHE_LINE, (options->readers + options->writers + 1) * sizeof *workers);
    if (workers == NULL)
        return -ENOMEM;
    handle(SIGSEGV);
    handle(SIGBUS);
    *result = (struct zc_torture_result){0};
    struct tally tally = {.result = result};
    double us = 1e6 / zc_lab_cycles_per_second(ZC_LAB_CALIBRATION);
    int error = run_rounds(options, strategy, workers, &tally);
    free(workers);
    result->operations = result->read_locks + result->misses + result->looks;
    result->longest_read_wait_us = (double)tally.longest_read * us;
    result->longest_write_wait_us = (double)tally.longest_write * us;
    return error;
}
