#include "lab/lock_bench.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "lab/lock_bench_thread.h"
#include "lock/registry.h"

#define REGIONS_PER_THREAD 8
#define ADDRESS_STEP 64 /* addresses of a region that is used more than once are so far apart */
#define LONGEST_NS 1000000000u
#define POLL 5e-5        /* seconds */
#define PATIENCE 0.2     /* seconds that a window waits for threads that have not begun theirs: off their core, or kept out by a lock */
#define CALIBRATION 2e-3 /* seconds between two readings of both clocks: known to 1 in 20,000 */

/* ---- a pair of calls of libc, timed in the same loop as the strategies ---- */

static int pair_init(struct zc_map *map) {
    return -pthread_rwlock_init(map->lock, NULL);
}

static void pair_destroy(struct zc_map *map) {
    pthread_rwlock_destroy(map->lock);
}

static int pair_read_lock(struct zc_map *map, struct zc_actor *self, uintptr_t address, struct zc_guard *guard) {
    (void)self, (void)address, (void)guard;
    return pthread_rwlock_rdlock(map->lock);
}

static void pair_read_unlock(struct zc_map *map, struct zc_actor *self, struct zc_guard *guard) {
    (void)self, (void)guard;
    pthread_rwlock_unlock(map->lock);
}

static void pair_region_init(struct zc_map *map, struct zc_region *region) {
    (void)map, (void)region;
}

/* Regions are attached, before the threads start. */
static void pair_write_lock(struct zc_map *map, struct zc_actor *self) {
    (void)self;
    pthread_rwlock_wrlock(map->lock);
}

static void pair_write_unlock(struct zc_map *map, struct zc_actor *self) {
    (void)self;
    pthread_rwlock_unlock(map->lock);
}

static void pair_change(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    (void)map, (void)self, (void)region;
}

static const struct zc_strategy pthread_pair = {
    .abi = ZC_STRATEGY_ABI,
    .size = sizeof(struct zc_strategy),
    .name = "pthread-pair",
    .map_size = sizeof(pthread_rwlock_t),
    .map_init = pair_init,
    .map_destroy = pair_destroy,
    .region_init = pair_region_init,
    .read_lock = pair_read_lock,
    .read_unlock = pair_read_unlock,
    .write_lock = pair_write_lock,
    .region_write_lock = pair_change,
    .write_unlock = pair_write_unlock,
    .attach = pair_change,
    .detach = pair_change,
};

static const struct zc_strategy *find(const struct zc_lock_bench_options *options) {
    if (options->writers == 0 && options->write_fraction <= 0) {
        if (strcmp(options->strategy, zc_strategy_none.name) == 0)
            return &zc_strategy_none;
        if (strcmp(options->strategy, pthread_pair.name) == 0)
            return &pthread_pair;
    }
    return zc_strategy_find(options->strategy);
}

/* ---- options ---- */

static uint32_t regions_of(const struct zc_lock_bench_options *options) {
    if (options->hot)
        return 1;
    return options->regions ? options->regions : REGIONS_PER_THREAD * options->threads;
}

/* Written so that what is not a number fails. */
static bool is_possible(const struct zc_lock_bench_options *o) {
    bool threads = o->threads > 0 && o->threads <= ZC_LOCK_BENCH_THREADS && o->writers <= ZC_LOCK_BENCH_THREADS - o->threads;
    bool regions = o->hot || (regions_of(o) >= o->threads && regions_of(o) <= ZC_LOCK_BENCH_REGIONS);
    bool holds = o->reader_hold_ns <= LONGEST_NS && o->writer_hold_ns <= LONGEST_NS && o->writer_pause_ns <= LONGEST_NS;
    bool fraction = o->write_fraction >= 0 && o->write_fraction <= 1;
    bool rate = o->rate_per_thread == 0 || (o->rate_per_thread >= 1 && o->rate_per_thread <= 1e9);
    bool length = o->seconds > 0 ? o->iterations == 0 && o->seconds <= 3600 : o->seconds == 0 && o->iterations > 0;
    return threads && regions && holds && fraction && rate && length && o->warm_up_seconds >= 0 && o->warm_up_seconds <= 3600;
}

/* ---- before the run ---- */

static int attach(struct bench *bench, struct bench_thread *thread, struct bench_place *place) {
    int error = zc_region_attach(bench->map, thread->actor, ZC_COPIED, ZC_UNIT, &place->region);
    if (error == 0)
        place->address = zc_region_start(place->region);
    return error;
}

/* A thread's share of the regions; the first thread's, where all use the same. */
static int find_places(struct bench *bench, uint32_t index) {
    const struct zc_lock_bench_options *options = bench->options;
    struct bench_thread *thread = &bench->threads[index];
    bool reads = index < options->threads, shares = options->hot && reads && index > 0;
    uint32_t dealt = regions_of(options), count = 1;
    if (reads && !options->hot)
        count = dealt / options->threads + (index < dealt % options->threads);
    thread->places = calloc(count, sizeof *thread->places);
    if (thread->places == NULL)
        return -ENOMEM;
    thread->places_count = count;
    if (shares) {
        thread->places[0] = bench->threads[0].places[0];
        thread->places[0].address += (uintptr_t)index * ADDRESS_STEP;
        return 0;
    }
    int error = 0;
    for (uint32_t i = 0; i < count && error == 0; i++)
        error = attach(bench, thread, &thread->places[i]);
    return error;
}

/* Closed loop: one write in so many is timed. */
static uint32_t write_samples(const struct zc_lock_bench_options *options, bool only_writes) {
    if (options->writer_hold_ns >= BENCH_LONG_HOLD_NS)
        return 1;
    return 1 + (uint32_t)((only_writes ? 1 : options->write_fraction) * (BENCH_WRITE_SAMPLES - 1));
}

/* Regions first, all of them, so that the threads' own writes to the map are over. */
static int prepare(struct bench *bench) {
    const struct zc_lock_bench_options *options = bench->options;
    int error = 0;
    for (uint32_t i = 0; i < bench->count && error == 0; i++) {
        struct bench_thread *thread = &bench->threads[i];
        thread->bench = bench;
        thread->looks = !options->hold && bench->map->strategy->peek != NULL;
        thread->write_samples = write_samples(options, i >= options->threads);
        thread->actor = zc_actor_create(bench->map);
        error = thread->actor != NULL ? find_places(bench, i) : -ENOMEM;
    }
    return error;
}

static void calibrate(struct bench *bench) {
    const struct zc_lock_bench_options *options = bench->options;
    double per_ns = zc_lab_cycles_per_second(CALIBRATION) * 1e-9;
    bench->cycles_per_ns = per_ns;
    bench->reader_hold = (uint64_t)(options->reader_hold_ns * per_ns);
    bench->writer_hold = (uint64_t)(options->writer_hold_ns * per_ns);
    bench->writer_pause = (uint64_t)(options->writer_pause_ns * per_ns);
    bench->interval = options->rate_per_thread > 0 ? (uint64_t)(1e9 / options->rate_per_thread * per_ns) : 0;
}

/* ---- the run ---- */

/* Each thread on a core of its own, if there are enough: two that take turns on one never meet. */
static void pin(struct bench *bench) {
    cpu_set_t allowed;
    bench->crowded = sched_getaffinity(0, sizeof allowed, &allowed) != 0 || (uint32_t)CPU_COUNT(&allowed) < bench->count;
    uint32_t left = bench->crowded ? 0 : bench->count;
    for (int cpu = 0; left > 0; cpu++) {
        if (!CPU_ISSET(cpu, &allowed))
            continue;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pthread_setaffinity_np(bench->threads[--left].thread, sizeof one, &one);
    }
}

static void start_threads(struct bench *bench) {
    pthread_barrier_init(&bench->start, NULL, bench->count + 1);
    for (uint32_t i = 0; i < bench->count; i++) {
        void *(*work)(void *) = i < bench->options->threads ? bench_operate : bench_write_only;
        if (pthread_create(&bench->threads[i].thread, NULL, work, &bench->threads[i]) != 0)
            abort(); /* those that wait at the barrier could not be ended */
    }
    pin(bench);
    pthread_barrier_wait(&bench->start);
}

static void run(struct bench *bench) {
    const struct zc_lock_bench_options *options = bench->options;
    start_threads(bench);
    zc_lab_sleep(options->warm_up_seconds);
    while (atomic_load_explicit(&bench->writers_ready, ZC_ACQUIRE) < options->writers)
        zc_lab_sleep(POLL);
    atomic_store_explicit(&bench->phase, BENCH_MEASURE, ZC_RELEASE);
    if (options->seconds > 0) {
        for (double waited = 0; atomic_load_explicit(&bench->begun, ZC_RELAXED) < bench->count && waited < PATIENCE; waited += POLL)
            zc_lab_sleep(POLL);
        zc_lab_sleep(options->seconds);
        atomic_store_explicit(&bench->phase, BENCH_STOP, ZC_RELEASE);
    }
    for (uint32_t i = 0; i < options->threads; i++)
        pthread_join(bench->threads[i].thread, NULL);
    atomic_store_explicit(&bench->phase, BENCH_STOP, ZC_RELEASE);
    for (uint32_t i = options->threads; i < bench->count; i++)
        pthread_join(bench->threads[i].thread, NULL);
    pthread_barrier_destroy(&bench->start);
}

/* ---- what came of it ---- */

/* A thread that was kept out, or off its core, from before the window until after it has done nothing in it. */
static bool took_part(const struct bench_thread *thread) {
    return thread->ended > thread->began;
}

static uint64_t operations_of(const struct bench_thread *thread) {
    return took_part(thread) ? thread->reads - thread->reads_before + thread->writes : 0;
}

static void sum_up_threads(const struct bench *bench, struct zc_lock_bench_result *result) {
    double squares = 0, cpu = 0;
    uint64_t operations = 0;
    uint32_t busy = 0;
    for (uint32_t i = 0; i < bench->options->threads; i++) {
        const struct bench_thread *thread = &bench->threads[i];
        uint64_t done = operations_of(thread);
        if (done == 0)
            continue;
        double elapsed = thread->ended - thread->began, rate = (double)done / elapsed;
        busy++;
        operations += done;
        cpu += thread->cpu;
        squares += rate * rate;
        result->writes += thread->writes;
        result->ns_per_operation += elapsed * 1e9 / (double)done;
        result->operations_per_second += rate;
    }
    if (busy == 0)
        return;
    result->reads = operations - result->writes;
    result->ns_per_operation /= busy;
    result->cpu_ns_per_operation = cpu * 1e9 / (double)operations;
    result->jain = result->operations_per_second * result->operations_per_second / (squares * bench->options->threads);
}

static void sum_up_counters(const struct bench *bench, struct zc_lock_bench_result *result) {
    for (uint32_t i = 0; i < bench->count; i++) {
        const struct bench_thread *thread = &bench->threads[i];
        if (!took_part(thread))
            continue;
        result->writer_locks += i >= bench->options->threads ? thread->writes : 0;
        result->read_locks += thread->counters.read_locks;
        result->fallbacks += thread->counters.fallbacks;
        result->retries += thread->counters.retries;
        result->misses += thread->counters.misses;
        result->write_locks += thread->counters.write_locks;
        result->waits += thread->counters.waits;
    }
}

static int sum_up_latencies(const struct bench *bench, struct zc_lock_bench_result *result) {
    struct {
        struct zc_histogram read, write, overtaking;
    } *sum = calloc(1, sizeof *sum);
    if (sum == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < bench->count; i++) {
        const struct bench_thread *thread = &bench->threads[i];
        if (!took_part(thread))
            continue;
        zc_histogram_merge(&sum->read, &thread->read_latency);
        zc_histogram_merge(&sum->write, &thread->write_latency);
        zc_histogram_merge(&sum->overtaking, &thread->overtaking);
    }
    zc_lab_latency(&sum->read, bench->cycles_per_ns * 1e9, &result->read_latency);
    zc_lab_latency(&sum->write, bench->cycles_per_ns * 1e9, &result->write_latency);
    result->longest_overtaking = sum->overtaking.max;
    result->overtaking_p99 = zc_histogram_percentile(&sum->overtaking, 0.99);
    free(sum);
    return 0;
}

static int run_on_map(struct bench *bench, struct zc_lock_bench_result *result) {
    int error = prepare(bench);
    if (error == 0) {
        calibrate(bench);
        run(bench);
        *result = (struct zc_lock_bench_result){.pinned = !bench->crowded};
        sum_up_threads(bench, result);
        sum_up_counters(bench, result);
        error = sum_up_latencies(bench, result);
    }
    for (uint32_t i = 0; i < bench->count; i++) {
        free(bench->threads[i].places);
        if (bench->threads[i].actor != NULL)
            zc_actor_destroy(bench->map, bench->threads[i].actor);
    }
    return error;
}

int zc_lock_bench(const struct zc_lock_bench_options *options, struct zc_lock_bench_result *result) {
    const struct zc_strategy *strategy = find(options);
    if (strategy == NULL)
        return -ENOENT;
    if (!is_possible(options))
        return -EINVAL;
    struct bench bench = {.options = options, .count = options->threads + options->writers};
    bench.threads = aligned_alloc(ZC_CACHE_LINE, bench.count * sizeof *bench.threads);
    if (bench.threads == NULL)
        return -ENOMEM;
    memset(bench.threads, 0, bench.count * sizeof *bench.threads);
    const struct zc_map_options map = {.budget = ((uint64_t)regions_of(options) + options->writers) * ZC_UNIT};
    int error = zc_map_create(strategy, &map, &bench.map);
    if (error == 0) {
        error = run_on_map(&bench, result);
        zc_map_drop(bench.map);
    }
    free(bench.threads);
    return error;
}
