/* Torture (lab/torture.h) of one strategy, or of one after the other.
 *
 *   torture [seconds [strategy | all | each [stalled [readers [writers [seed]]]]]]
 *
 * Of "all", the default, the seconds, default 6, are what they share; of "each" what it gets. A thread that does not get on for `stalled`
 * seconds, default 30, ends the run. By default 3 readers, 2 writers, and a seed from the clock. */
#include <string.h>
#include <time.h>

#include "lab/torture.h"
#include "lock/registry.h"
#include "tests/check.h"

static void report(const char *name, const struct zc_torture_options *options, const struct zc_torture_result *r) {
    printf("%s, %.1f s, %u rounds, seed %llu: %llu operations (%llu read locks, %llu misses, %llu of %llu looks confirmed, %llu touches)\n",
           name, r->elapsed_seconds, r->rounds, (unsigned long long)options->seed, (unsigned long long)r->operations,
           (unsigned long long)r->read_locks, (unsigned long long)r->misses, (unsigned long long)r->confirmed, (unsigned long long)r->looks,
           (unsigned long long)r->touches);
    printf("  %llu fallbacks, %llu retries, %llu waits, longest %.1f ms to read, %.1f ms to write; %lld wraps\n",
           (unsigned long long)r->fallbacks, (unsigned long long)r->retries, (unsigned long long)r->waits, r->longest_read_wait_us / 1e3,
           r->longest_write_wait_us / 1e3, (long long)r->wraps);
    printf("  %llu write locks, %llu attaches, %llu detaches, %llu recycles; leases: %llu placed, %llu released, %llu refused\n",
           (unsigned long long)r->write_locks, (unsigned long long)r->attaches, (unsigned long long)r->detaches,
           (unsigned long long)r->recycles, (unsigned long long)r->placed, (unsigned long long)r->released, (unsigned long long)r->refused);
    printf("  injected: %llu sleeps, %llu preemptions\n", (unsigned long long)r->sleeps, (unsigned long long)r->preemptions);
    fflush(stdout);
}

static void torture(const struct zc_strategy *strategy, struct zc_torture_options options) {
    struct zc_torture_result result;
    options.strategy = strategy->name;
    CHECK_EQUAL(zc_torture_run(&options, &result), 0);
    report(strategy->name, &options, &result);
    CHECK(result.read_locks > 0 && result.touches > 0 && result.recycles > 0 && result.detaches > 0 && result.placed > 0);
    CHECK((strategy->peek != NULL) == (result.confirmed > 0));
}

int main(int argc, char **argv) {
    struct zc_torture_options options = {
        .seconds = argc > 1 ? strtod(argv[1], NULL) : 6,
        .stalled_seconds = argc > 3 ? strtod(argv[3], NULL) : 30,
        .readers = argc > 4 ? (uint32_t)strtoul(argv[4], NULL, 10) : 3,
        .writers = argc > 5 ? (uint32_t)strtoul(argv[5], NULL, 10) : 2,
        .seed = argc > 6 ? strtoull(argv[6], NULL, 10) : (uint64_t)time(NULL),
    };
    if (argc > 2 && strcmp(argv[2], "all") != 0 && strcmp(argv[2], "each") != 0) {
        const struct zc_strategy *strategy = zc_strategy_find(argv[2]);
        CHECK(strategy != NULL);
        torture(strategy, options);
        return 0;
    }
    size_t count = 0;
    while (zc_strategy_at(count) != NULL)
        count++;
    if (argc <= 2 || strcmp(argv[2], "each") != 0)
        options.seconds /= (double)count;
    for (size_t index = 0; index < count; index++)
        torture(zc_strategy_at(index), options);
    return 0;
}
