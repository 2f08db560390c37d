#include "lab/lock_bench.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lock/atomics.h"
#include "lock/registry.h"
#include "region/region_map.h"

#define REGIONS_PER_READER 8
#define MOST_THREADS 64

/* ---- threads ---- */

struct bench {
    const struct zc_lock_bench_options *options;
    struct zc_map *map;
    pthread_barrier_t start;
    _Atomic bool stop;
    _Atomic uint32_t writers_ready;
};

struct bench_thread {
    alignas(ZC_CACHE_LINE) struct bench *bench;
    struct zc_actor *actor;
    pthread_t thread;
    uintptr_t addresses[REGIONS_PER_READER];
    struct zc_region *written;
    uint64_t began_ns, ended_ns, longest_ticks, operations;
};

static uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Looks without holding. False: a writer came between, or does so now; to be done with a hold. */
static inline bool look(const struct zc_strategy *strategy, struct zc_map *map, uintptr_t address) {
    struct zc_guard guard;
    return strategy->peek(map, address, &guard) == 0 && strategy->confirm(map, &guard) == 0;
}

/* Reads `count` times. Returns the longest wait of those that were timed, in ticks. */
static uint64_t read_times(struct bench_thread *thread, uint64_t count) {
    struct zc_map *map = thread->bench->map;
    const struct zc_strategy *strategy = map->strategy;
    bool looks = strategy->peek != NULL && !thread->bench->options->hold;
    uint64_t longest = 0;
    struct zc_guard guard;
    for (uint64_t i = 0; i < count; i++) {
        uintptr_t address = thread->addresses[i % REGIONS_PER_READER];
        bool timed = i % 16 == 0;
        uint64_t before = timed ? zc_cycles() : 0;
        bool looked = looks && look(strategy, map, address);
        if (!looked && strategy->read_lock(map, thread->actor, address, &guard) != 0)
            abort(); /* the regions stay where they are */
        if (timed) {
            uint64_t took = zc_cycles() - before;
            longest = took > longest ? took : longest;
        }
        if (!looked)
            strategy->read_unlock(map, thread->actor, &guard);
    }
    return longest;
}

static void *read_regions(void *argument) {
    struct bench_thread *thread = argument;
    const struct zc_lock_bench_options *options = thread->bench->options;
    uint64_t step = options->seconds > 0 ? 64 : options->iterations, duration = (uint64_t)(options->seconds * 1e9);
    pthread_barrier_wait(&thread->bench->start);
    while (atomic_load_explicit(&thread->bench->writers_ready, ZC_ACQUIRE) < options->writers)
        zc_relax();
    thread->began_ns = clock_ns();
    do {
        uint64_t longest = read_times(thread, step);
        thread->longest_ticks = longest > thread->longest_ticks ? longest : thread->longest_ticks;
        thread->operations += step;
        thread->ended_ns = clock_ns();
    } while (thread->ended_ns - thread->began_ns < duration);
    return NULL;
}

static void wait_ns(uint64_t ns) {
    if (ns == 0)
        return;
    for (uint64_t until = clock_ns() + ns; clock_ns() < until;)
        zc_relax();
}

static void *write_a_region(void *argument) {
    struct bench_thread *thread = argument;
    struct zc_map *map = thread->bench->map;
    const struct zc_lock_bench_options *options = thread->bench->options;
    pthread_barrier_wait(&thread->bench->start);
    while (!atomic_load_explicit(&thread->bench->stop, ZC_RELAXED)) {
        map->strategy->write_lock(map, thread->actor);
        map->strategy->region_write_lock(map, thread->actor, thread->written);
        wait_ns(options->writer_hold_ns);
        map->strategy->write_unlock(map, thread->actor);
        wait_ns(options->writer_pause_ns);
        if (thread->operations++ == 0)
            atomic_fetch_add_explicit(&thread->bench->writers_ready, 1, ZC_RELEASE);
    }
    return NULL;
}

/* ---- the run ---- */

static int attach(struct bench *bench, struct zc_actor *self, struct zc_region **region) {
    return zc_region_attach(bench->map, self, ZC_COPIED, ZC_UNIT, region);
}

/* Regions first, all of them, so that the threads' own writes to the map are over. */
static int prepare(struct bench *bench, struct bench_thread *threads) {
    const struct zc_lock_bench_options *options = bench->options;
    for (uint32_t i = 0; i < options->readers + options->writers; i++) {
        struct bench_thread *thread = &threads[i];
        thread->bench = bench;
        thread->actor = zc_actor_create(bench->map);
        if (thread->actor == NULL)
            return -ENOMEM;
        for (uint32_t k = 0; k < (i < options->readers ? REGIONS_PER_READER : 1); k++) {
            if (options->hot && i > 0 && i < options->readers) {
                memcpy(thread->addresses, threads[0].addresses, sizeof thread->addresses);
                break;
            }
            int error = options->hot && k > 0 ? 0 : attach(bench, thread->actor, &thread->written);
            if (error != 0)
                return error;
            thread->addresses[k] = atomic_load_explicit(&thread->written->start, ZC_RELAXED) + k * 64;
        }
    }
    return 0;
}

/* Each thread on a core of its own, if there are enough: two that take turns on one never meet. */
static void pin(struct bench_thread *threads, uint32_t count) {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || (uint32_t)CPU_COUNT(&allowed) < count)
        return;
    for (int cpu = 0; count > 0; cpu++) {
        if (!CPU_ISSET(cpu, &allowed))
            continue;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pthread_setaffinity_np(threads[--count].thread, sizeof one, &one);
    }
}

static void start_threads(struct bench *bench, struct bench_thread *threads, uint32_t count) {
    pthread_barrier_init(&bench->start, NULL, count + 1);
    for (uint32_t i = 0; i < count; i++)
        if (pthread_create(&threads[i].thread, NULL, i < bench->options->readers ? read_regions : write_a_region, &threads[i]) != 0)
            abort(); /* those that wait at the barrier could not be ended */
    pin(threads, count);
    pthread_barrier_wait(&bench->start);
}

static void summarise(struct bench *bench, const struct bench_thread *threads, double ns_per_tick, struct zc_lock_bench_result *result) {
    uint32_t readers = bench->options->readers;
    uint64_t began = UINT64_MAX, ended = 0;
    *result = (struct zc_lock_bench_result){0};
    for (uint32_t i = 0; i < readers; i++) {
        const struct bench_thread *thread = &threads[i];
        began = thread->began_ns < began ? thread->began_ns : began;
        ended = thread->ended_ns > ended ? thread->ended_ns : ended;
        result->ns_per_read += (double)(thread->ended_ns - thread->began_ns) / (double)thread->operations / readers;
        result->reads += thread->operations;
        if ((double)thread->longest_ticks * ns_per_tick > result->longest_read_ns)
            result->longest_read_ns = (double)thread->longest_ticks * ns_per_tick;
    }
    result->reads_per_second = (double)result->reads * 1e9 / (double)(ended - began);
    for (uint32_t i = readers; i < readers + bench->options->writers; i++)
        result->writes += threads[i].operations;
    struct zc_map_stats stats;
    zc_map_stats(bench->map, &stats);
    result->fallbacks = stats.lock.fallbacks;
    result->waits = stats.lock.waits;
}

static void run(struct bench *bench, struct bench_thread *threads, struct zc_lock_bench_result *result) {
    uint32_t readers = bench->options->readers, count = readers + bench->options->writers;
    uint64_t ticks = zc_cycles(), ns = clock_ns();
    start_threads(bench, threads, count);
    for (uint32_t i = 0; i < readers; i++)
        pthread_join(threads[i].thread, NULL);
    atomic_store_explicit(&bench->stop, true, ZC_RELAXED);
    for (uint32_t i = readers; i < count; i++)
        pthread_join(threads[i].thread, NULL);
    pthread_barrier_destroy(&bench->start);
    double ns_per_tick = (double)(clock_ns() - ns) / (double)(zc_cycles() - ticks);
    summarise(bench, threads, ns_per_tick, result);
}

int zc_lock_bench(const struct zc_lock_bench_options *options, struct zc_lock_bench_result *result) {
    const struct zc_strategy *strategy = zc_strategy_find(options->strategy);
    if (strategy == NULL && options->writers == 0 && strcmp(options->strategy, zc_strategy_none.name) == 0)
        strategy = &zc_strategy_none;
    if (strategy == NULL)
        return -ENOENT;
    uint32_t count = options->readers + options->writers;
    if (options->readers == 0 || options->readers > MOST_THREADS || options->writers > MOST_THREADS ||
        (options->iterations == 0) == !(options->seconds > 0))
        return -EINVAL;
    struct bench bench = {.options = options};
    struct bench_thread *threads = aligned_alloc(ZC_CACHE_LINE, count * sizeof *threads);
    if (threads == NULL)
        return -ENOMEM;
    memset(threads, 0, count * sizeof *threads);
    uint64_t budget = (uint64_t)count * REGIONS_PER_READER * ZC_UNIT;
    int error = zc_map_create(strategy, &(struct zc_map_options){.budget = budget}, &bench.map);
    if (error == 0) {
        error = prepare(&bench, threads);
        if (error == 0)
            run(&bench, threads, result);
        for (uint32_t i = 0; i < count; i++)
            if (threads[i].actor != NULL)
                zc_actor_destroy(bench.map, threads[i].actor);
        zc_map_drop(bench.map);
    }
    free(threads);
    return error;
}
