#include "lab/lock_bench_thread.h"

#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define SLEEPS_FROM_NS 200000 /* what a thread that is this early does, so that slow schedules leave the cores alone … */
#define WAKES_EARLY_NS 100000 /* … until so long before: about what waking takes at worst */

static bool has_long_hold(const struct zc_lock_bench_options *options) {
    return options->reader_hold_ns >= BENCH_LONG_HOLD_NS;
}

/* ---- which operations write ---- */

static uint64_t next_random(struct bench_thread *thread) { /* xorshift64* */
    thread->random ^= thread->random >> 12;
    thread->random ^= thread->random << 25;
    thread->random ^= thread->random >> 27;
    return thread->random * 2685821657736338717ull;
}

/* Reads before the next write: geometric, so each operation is a write with the same probability, and none costs a draw. */
static uint64_t reads_before_write(struct bench_thread *thread) {
    double fraction = thread->bench->options->write_fraction;
    if (fraction <= 0)
        return UINT64_MAX;
    if (fraction >= 1)
        return 0;
    double uniform = ((double)(next_random(thread) >> 11) + 0.5) * 0x1p-53;
    double gap = floor(log(uniform) / log1p(-fraction));
    return gap < 0x1p62 ? (uint64_t)gap : 1ull << 62;
}

/* ---- one operation. `begun` is when it was, or was to be, in cycles; 0: it is not timed ---- */

static inline void compute(uint64_t cycles) {
    if (cycles == 0)
        return;
    for (uint64_t until = zc_cycles() + cycles; (int64_t)(until - zc_cycles()) > 0;)
        ;
}

static inline struct bench_place *next_place(struct bench_thread *thread) {
    struct bench_place *place = &thread->places[thread->next_place++];
    if (thread->next_place == thread->places_count)
        thread->next_place = 0;
    return place;
}

/* A call's pushes would have to leave the store buffer before a locked instruction is done, and be part of what is measured. */
#define INLINED __attribute__((always_inline)) static inline

/* What reading takes, gathered from where a loop would have to load it again after every call. */
struct reader {
    struct zc_map *map;
    const struct zc_strategy *strategy;
    struct zc_actor *actor;
    _Atomic uint64_t *reads;
    uint64_t count; /* what is in *reads, or will be */
    uint64_t cycles;
    bool looks;
};

static inline struct reader reader_of(struct bench_thread *thread) {
    struct bench *bench = thread->bench;
    return (struct reader){.map = bench->map,
                           .strategy = bench->map->strategy,
                           .actor = thread->actor,
                           .reads = &thread->reads,
                           .count = atomic_load_explicit(&thread->reads, ZC_RELAXED),
                           .cycles = bench->reader_hold,
                           .looks = thread->looks};
}

/* Looks without holding. 0: a writer came between, or does so now; else when it was inside, if that is asked. */
INLINED uint64_t look(struct reader *reader, uintptr_t address, bool timed) {
    struct zc_guard guard;
    if (reader->strategy->peek(reader->map, address, &guard) != 0)
        return 0;
    uint64_t inside = timed ? zc_cycles() : 1;
    compute(reader->cycles);
    if (reader->strategy->confirm(reader->map, &guard) != 0)
        return 0;
    atomic_store_explicit(reader->reads, ++reader->count, ZC_RELAXED);
    return inside;
}

/* Holds the region. When it was inside, if that is asked. */
INLINED uint64_t hold(struct reader *reader, uintptr_t address, bool timed) {
    struct zc_guard guard;
    if (reader->strategy->read_lock(reader->map, reader->actor, address, &guard) != 0)
        abort(); /* the regions stay where they are */
    uint64_t inside = timed ? zc_cycles() : 1;
    atomic_store_explicit(reader->reads, ++reader->count, ZC_RELAXED);
    compute(reader->cycles);
    reader->strategy->read_unlock(reader->map, reader->actor, &guard);
    return inside;
}

INLINED uint64_t read_region(struct reader *reader, const struct bench_place *place, bool timed) {
    uint64_t inside = reader->looks ? look(reader, place->address, timed) : 0;
    return inside != 0 ? inside : hold(reader, place->address, timed);
}

static void read_once(struct bench_thread *thread, uint64_t begun) {
    struct reader reader = reader_of(thread);
    uint64_t inside = read_region(&reader, next_place(thread), true);
    zc_histogram_record(&thread->read_latency, inside > begun ? inside - begun : 0);
}

static void read_times(struct bench_thread *thread, uint64_t count) {
    struct reader reader = reader_of(thread);
    const struct bench_place *place = &thread->places[thread->next_place], *end = thread->places + thread->places_count;
    for (uint64_t i = 0; i < count; i++) {
        read_region(&reader, place, false);
        place = place + 1 == end ? thread->places : place + 1;
    }
    thread->next_place = (uint32_t)(place - thread->places);
}

static uint64_t reads_of_others(const struct bench_thread *thread) {
    const struct bench *bench = thread->bench;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < bench->options->threads; i++)
        if (&bench->threads[i] != thread)
            sum += atomic_load_explicit(&bench->threads[i].reads, ZC_RELAXED);
    return sum;
}

static void write_once(struct bench_thread *thread, struct zc_region *region, uint64_t begun) {
    struct zc_map *map = thread->bench->map;
    bool counts = begun != 0 && thread->bench->interval == 0; /* counting costs a miss or two, which a schedule should not see */
    uint64_t before = counts ? reads_of_others(thread) : 0;
    map->strategy->write_lock(map, thread->actor);
    map->strategy->region_write_lock(map, thread->actor, region);
    if (begun != 0) {
        uint64_t inside = zc_cycles();
        zc_histogram_record(&thread->write_latency, inside > begun ? inside - begun : 0);
    }
    if (counts)
        zc_histogram_record(&thread->overtaking, reads_of_others(thread) - before);
    thread->writes++;
    compute(thread->bench->writer_hold);
    map->strategy->write_unlock(map, thread->actor);
}

/* ---- loops ---- */

/* When a write was begun, if it is one that is timed. */
static uint64_t begin_write(const struct bench_thread *thread) {
    return thread->writes % thread->write_samples == 0 ? zc_cycles() : 0;
}

static void operate_flat_out(struct bench_thread *thread, uint64_t count) {
    bool timed = true;
    while (count > 0) {
        if (thread->until_write == 0) {
            thread->until_write = reads_before_write(thread);
            write_once(thread, next_place(thread)->region, begin_write(thread));
            count--;
            continue;
        }
        uint64_t reads = timed ? 1 : count < thread->until_write ? count : thread->until_write;
        thread->until_write -= reads;
        count -= reads;
        if (timed)
            read_once(thread, zc_cycles());
        else
            read_times(thread, reads);
        timed = false;
    }
}

/* Waits by looking at the clock, as often as it can: what would be kinder to the core would be late. */
static void wait_until(const struct bench *bench, uint64_t due) {
    for (int64_t left; (left = (int64_t)(due - zc_cycles())) > 0;) {
        double ns = (double)left / bench->cycles_per_ns;
        if (ns > SLEEPS_FROM_NS) {
            uint64_t sleeps = (uint64_t)ns - WAKES_EARLY_NS;
            const struct timespec time = {.tv_sec = (time_t)(sleeps / 1000000000), .tv_nsec = (long)(sleeps % 1000000000)};
            nanosleep(&time, NULL);
        } else if (bench->crowded) {
            sched_yield();
        }
    }
}

static void operate_on_schedule(struct bench_thread *thread) {
    uint64_t due = thread->due;
    wait_until(thread->bench, due);
    thread->due += thread->bench->interval;
    if (thread->until_write != 0) {
        thread->until_write--;
        read_once(thread, due);
    } else {
        thread->until_write = reads_before_write(thread);
        write_once(thread, next_place(thread)->region, due);
    }
}

/* From here on operations are those of the seed, and a new schedule begins: what the warm-up was late with is not this window's. Threads
 * take turns within an interval. */
static void begin_operations(struct bench_thread *thread) {
    const struct bench *bench = thread->bench;
    uint64_t turn = (uint64_t)(thread - bench->threads);
    thread->random = (bench->options->seed * ZC_LOCK_BENCH_THREADS + turn + 1) * 0x9e3779b97f4a7c15ull | 1;
    thread->until_write = reads_before_write(thread);
    thread->due = zc_cycles() + bench->interval * turn / bench->options->threads;
}

static void begin_window(struct bench_thread *thread) {
    memset(&thread->read_latency, 0, sizeof thread->read_latency);
    memset(&thread->write_latency, 0, sizeof thread->write_latency);
    memset(&thread->overtaking, 0, sizeof thread->overtaking);
    thread->reads_before = atomic_load_explicit(&thread->reads, ZC_RELAXED);
    thread->writes = 0;
    thread->counters = thread->actor->counters;
    thread->cpu = zc_lab_seconds(CLOCK_THREAD_CPUTIME_ID);
    thread->began = zc_lab_seconds(CLOCK_MONOTONIC);
    begin_operations(thread);
    atomic_fetch_add_explicit(&thread->bench->begun, 1, ZC_RELAXED);
}

static void end_window(struct bench_thread *thread) {
    const struct zc_lock_counters *now = &thread->actor->counters;
    struct zc_lock_counters *counted = &thread->counters;
    thread->ended = zc_lab_seconds(CLOCK_MONOTONIC);
    thread->cpu = zc_lab_seconds(CLOCK_THREAD_CPUTIME_ID) - thread->cpu;
    *counted = (struct zc_lock_counters){
        .read_locks = now->read_locks - counted->read_locks,
        .fallbacks = now->fallbacks - counted->fallbacks,
        .retries = now->retries - counted->retries,
        .misses = now->misses - counted->misses,
        .write_locks = now->write_locks - counted->write_locks,
        .waits = now->waits - counted->waits,
    };
}

/* Whether the thread is to go on. A window ends where the thread notices, and begins so: an operation that is stuck belongs to it. */
static bool heed_phase(struct bench_thread *thread, int *phase) {
    int now = atomic_load_explicit(&thread->bench->phase, ZC_ACQUIRE);
    if (now == *phase)
        return true;
    if (now == BENCH_MEASURE)
        begin_window(thread);
    else if (*phase == BENCH_MEASURE)
        end_window(thread);
    *phase = now;
    return now != BENCH_STOP;
}

void *bench_operate(void *argument) {
    struct bench_thread *thread = argument;
    const struct zc_lock_bench_options *options = thread->bench->options;
    bool scheduled = options->rate_per_thread > 0, counted = options->seconds <= 0;
    uint64_t group = scheduled || has_long_hold(options) ? 1 : BENCH_GROUP, left = options->iterations;
    int phase = BENCH_WARM_UP;
    pthread_barrier_wait(&thread->bench->start);
    begin_operations(thread);
    while (heed_phase(thread, &phase)) {
        uint64_t count = counted && phase == BENCH_MEASURE && left < group ? left : group;
        if (count == 0) {
            end_window(thread);
            break;
        }
        if (scheduled)
            operate_on_schedule(thread);
        else
            operate_flat_out(thread, count);
        left -= phase == BENCH_MEASURE ? count : 0;
    }
    return NULL;
}

void *bench_write_only(void *argument) {
    struct bench_thread *thread = argument;
    struct bench *bench = thread->bench;
    int phase = BENCH_WARM_UP;
    pthread_barrier_wait(&bench->start);
    for (bool first = true; heed_phase(thread, &phase); first = false) {
        write_once(thread, thread->places[0].region, begin_write(thread));
        compute(bench->writer_pause);
        if (first)
            atomic_fetch_add_explicit(&bench->writers_ready, 1, ZC_RELEASE);
    }
    return NULL;
}
