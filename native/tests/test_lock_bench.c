/* The lock benchmark: what it counts is what was asked for, and its figures are possible. */
#include <errno.h>
#include <math.h>

#include "lab/lock_bench.h"
#include "lock/registry.h"
#include "tests/check.h"

static struct zc_lock_bench_result run(struct zc_lock_bench_options options) {
    struct zc_lock_bench_result result;
    CHECK_EQUAL(zc_lock_bench(&options, &result), 0);
    return result;
}

static void iterations_are_counted(const char *strategy) {
    for (uint32_t hot = 0; hot < 2; hot++) {
        struct zc_lock_bench_result result =
            run((struct zc_lock_bench_options){.strategy = strategy, .threads = 3, .hot = hot, .iterations = 10007, .hold = 1});
        CHECK_EQUAL(result.reads, 3 * 10007);
        CHECK_EQUAL(result.read_locks, 3 * 10007);
        CHECK_EQUAL(result.writes + result.write_locks + result.misses, 0);
        CHECK(result.fallbacks <= result.reads);
        CHECK(result.ns_per_operation > 0 && result.operations_per_second > 0 && result.cpu_ns_per_operation > 0);
        CHECK(result.jain > 1.0 / 3 - 1e-9 && result.jain <= 1 + 1e-9);
        CHECK(result.read_latency.samples >= 3 * (10007 / 64) && result.read_latency.samples <= 3 * (10007 / 64 + 1));
    }
}

/* A binomial count: within five standard deviations of what was asked for. */
static void writes_are_as_often_as_asked(double fraction) {
    enum { EACH = 200000, THREADS = 2 };
    for (uint64_t seed = 0; seed < 3; seed++) {
        struct zc_lock_bench_options options = {
            .strategy = "per-region", .threads = THREADS, .write_fraction = fraction, .iterations = EACH, .seed = seed};
        struct zc_lock_bench_result result = run(options);
        double wanted = fraction * EACH * THREADS, deviation = sqrt(wanted * (1 - fraction));
        CHECK(fabs((double)result.writes - wanted) <= 5 * deviation);
        CHECK_EQUAL(result.reads + result.writes, EACH * THREADS);
        CHECK_EQUAL(result.write_locks, result.writes);
        CHECK_EQUAL(run(options).writes, result.writes); /* the same seed, the same operations */
        uint64_t samples = result.write_latency.samples;
        CHECK(fraction <= 0.001 ? samples == result.writes : samples <= THREADS * EACH / 512 + THREADS);
        CHECK(result.writes == 0 || samples > 0);
    }
}

static void one_thread_is_fair_and_is_not_overtaken(void) {
    struct zc_lock_bench_result result =
        run((struct zc_lock_bench_options){.strategy = "global", .threads = 1, .write_fraction = 0.5, .iterations = 10000});
    CHECK(fabs(result.jain - 1) < 1e-9);
    CHECK_EQUAL(result.longest_overtaking, 0);
}

static void readers_overtake_a_writer(void) {
    struct zc_lock_bench_result result = run((struct zc_lock_bench_options){.strategy = "global",
                                                                            .threads = 2,
                                                                            .writers = 1,
                                                                            .reader_hold_ns = 2000,
                                                                            .writer_hold_ns = 1000,
                                                                            .writer_pause_ns = 10000,
                                                                            .seconds = 0.1});
    CHECK(result.longest_overtaking >= 1); /* of those that were there first */
    CHECK(result.overtaking_p99 <= result.longest_overtaking && result.longest_overtaking <= result.reads);
    CHECK(result.writer_locks > 0 && result.write_latency.samples > 0);
    CHECK_EQUAL(result.write_locks, result.writer_locks);
}

static void a_window_is_as_long_as_asked(void) {
    struct zc_lock_bench_options options = {.strategy = "global", .threads = 1, .seconds = 0.1, .warm_up_seconds = 0.02};
    struct zc_lock_bench_result result = run(options);
    double elapsed = (double)result.reads * result.ns_per_operation * 1e-9;
    CHECK(elapsed >= 0.1 && elapsed < 1);
    CHECK(result.cpu_ns_per_operation <= result.ns_per_operation * 1.01);
}

/* Holds are stayed out, and are no part of the latency. */
static void holds_hold(const char *strategy) {
    struct zc_lock_bench_result result =
        run((struct zc_lock_bench_options){.strategy = strategy, .threads = 1, .reader_hold_ns = 20000, .iterations = 500});
    CHECK(result.ns_per_operation >= 19900);
    CHECK(result.read_latency.samples == 500 && result.read_latency.p50_us < 15);
    result = run((struct zc_lock_bench_options){
        .strategy = strategy, .threads = 1, .writer_hold_ns = 20000, .write_fraction = 1, .iterations = 500});
    CHECK(result.ns_per_operation >= 19900);
    CHECK(result.write_latency.samples == 500 && result.write_latency.p50_us < 15);
}

/* As many operations begin as the rate says, and each is timed from then: one that comes behind a long hold began late, and shows it. */
static void a_schedule_is_kept(void) {
    struct zc_lock_bench_options options = {.strategy = "per-region", .threads = 2, .rate_per_thread = 20000, .iterations = 4000};
    struct zc_lock_bench_result result = run(options); /* never early; late only where others have the core */
    CHECK(result.ns_per_operation > 0.99 * 50000 && result.ns_per_operation < 5 * 50000);
    CHECK(result.read_latency.samples == 8000 && result.longest_overtaking == 0);
    options.rate_per_thread = 500; /* sleeps in between */
    options.iterations = 100;
    result = run(options);
    CHECK(result.ns_per_operation > 0.98 * 2000000 && result.ns_per_operation < 5 * 2000000);
    CHECK(result.cpu_ns_per_operation < 1000000);
    options = (struct zc_lock_bench_options){
        .strategy = "global", .threads = 1, .rate_per_thread = 20000, .reader_hold_ns = 100000, .seconds = 0.1};
    result = run(options); /* twice as long as there is time: the last one is half the run late */
    CHECK(result.read_latency.max_us > 30000 && result.operations_per_second < 11000);
    options.rate_per_thread = 0;
    CHECK(run(options).read_latency.p50_us < 50); /* a closed loop does not see it */
}

static void floors_are_for_readers(void) {
    for (int i = 0; i < 2; i++) {
        struct zc_lock_bench_options options = {.strategy = i ? "none" : "pthread-pair", .threads = 1, .iterations = 1000};
        CHECK_EQUAL(run(options).reads, 1000);
        struct zc_lock_bench_result result;
        options.writers = 1;
        CHECK_EQUAL(zc_lock_bench(&options, &result), -ENOENT);
        options.writers = 0;
        options.write_fraction = 0.1;
        CHECK_EQUAL(zc_lock_bench(&options, &result), -ENOENT);
    }
}

static void the_impossible_is_refused(void) {
    const struct zc_lock_bench_options impossible[] = {
        {.threads = 0, .iterations = 1},
        {.threads = 65, .iterations = 1},
        {.threads = 1, .writers = 64, .iterations = 1},
        {.threads = 1, .writers = UINT32_MAX, .iterations = 1},
        {.threads = 1},
        {.threads = 1, .iterations = 1, .seconds = 1},
        {.threads = 1, .seconds = -1},
        {.threads = 1, .seconds = NAN},
        {.threads = 1, .iterations = 1, .warm_up_seconds = NAN},
        {.threads = 1, .iterations = 1, .write_fraction = 2},
        {.threads = 1, .iterations = 1, .write_fraction = -0.1},
        {.threads = 1, .iterations = 1, .write_fraction = NAN},
        {.threads = 3, .iterations = 1, .regions = 2},
        {.threads = 1, .iterations = 1, .regions = ZC_LOCK_BENCH_REGIONS + 1},
        {.threads = 1, .iterations = 1, .rate_per_thread = -1},
        {.threads = 1, .iterations = 1, .rate_per_thread = NAN},
        {.threads = 1, .iterations = 1, .reader_hold_ns = UINT32_MAX},
    };
    struct zc_lock_bench_result result;
    for (size_t i = 0; i < sizeof impossible / sizeof *impossible; i++) {
        struct zc_lock_bench_options options = impossible[i];
        options.strategy = "global";
        CHECK_EQUAL(zc_lock_bench(&options, &result), -EINVAL);
    }
    CHECK_EQUAL(zc_lock_bench(&(struct zc_lock_bench_options){.strategy = "no-such-lock", .threads = 1}, &result), -ENOENT);
}

int main(void) {
    for (size_t i = 0; zc_strategy_at(i) != NULL; i++)
        RUN(iterations_are_counted, zc_strategy_at(i)->name);
    RUN(writes_are_as_often_as_asked, 0);
    RUN(writes_are_as_often_as_asked, 0.001);
    RUN(writes_are_as_often_as_asked, 0.1);
    RUN(writes_are_as_often_as_asked, 1);
    RUN(one_thread_is_fair_and_is_not_overtaken);
    RUN(readers_overtake_a_writer);
    RUN(a_window_is_as_long_as_asked);
    RUN(holds_hold, "per-region");
    RUN(holds_hold, "speculative");
    RUN(a_schedule_is_kept);
    RUN(floors_are_for_readers);
    RUN(the_impossible_is_refused);
    return 0;
}
