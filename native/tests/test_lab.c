/* The laboratory's instruments: the histogram against sorted values, the load generator against servers that err, the seed experiment. */
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lab/lab.h"
#include "net/histogram.h"
#include "net/reactor.h"
#include "net/receive_probe.h"
#include "tests/check.h"

/* ---- histogram */

static int ascending(const void *a, const void *b) {
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return left < right ? -1 : left > right;
}

static void percentiles_are_within_a_step(void) {
    enum { COUNT = 100000 };
    static uint64_t values[COUNT];
    static struct zc_histogram histogram, half;
    uint64_t state = 88172645463325252ull;
    for (int i = 0; i < COUNT; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        values[i] = state >> (16 + state % 47); /* of every magnitude that is kept exactly or in steps */
        zc_histogram_record(i % 2 ? &histogram : &half, values[i]);
    }
    zc_histogram_merge(&histogram, &half);
    qsort(values, COUNT, sizeof *values, ascending);
    CHECK(histogram.count == COUNT && histogram.max == values[COUNT - 1]);
    const double fractions[] = {0, 0.25, 0.5, 0.9, 0.99, 0.999, 1};
    for (size_t i = 0; i < sizeof fractions / sizeof *fractions; i++) {
        size_t rank = (size_t)(fractions[i] * COUNT);
        uint64_t exact = values[rank > 0 ? rank - 1 : 0], found = zc_histogram_percentile(&histogram, fractions[i]);
        CHECK(found >= exact && found - exact <= exact / 64);
    }
}

static void histogram_has_edges(void) {
    static struct zc_histogram histogram;
    CHECK(zc_histogram_percentile(&histogram, 0.5) == 0);
    for (uint64_t value = 0; value < 128; value++)
        CHECK(zc_histogram_bucket(value) == value);
    for (uint64_t value = 1; value < 1ull << 47; value *= 2) /* the first of an octave follows the last of the one before */
        CHECK(zc_histogram_bucket(value) == zc_histogram_bucket(value - 1) + 1);
    zc_histogram_record(&histogram, UINT64_MAX);
    CHECK(histogram.max == (1ull << 48) - 1 && histogram.buckets[ZC_HISTOGRAM_BUCKETS - 1] == 1);
    CHECK(zc_histogram_percentile(&histogram, 1) == histogram.max);
}

/* HdrHistogram's countsArrayIndex, with 128 sub-buckets and units of 1. */
static uint32_t hdr_index(uint64_t value) {
    uint32_t bucket = 64u - (uint32_t)__builtin_clzll(value | 127) - 7, sub_bucket = (uint32_t)(value >> bucket);
    return ((bucket + 1) << 6) + (sub_bucket - 64);
}

static void buckets_are_those_of_hdr_histogram(void) {
    uint64_t state = 88172645463325252ull;
    for (uint64_t value = 0; value < 100000; value++)
        CHECK(zc_histogram_bucket(value) == hdr_index(value));
    for (int i = 0; i < 100000; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        CHECK(zc_histogram_bucket(state >> (16 + i % 47)) == hdr_index(state >> (16 + i % 47)));
    }
}

/* ---- probe */

static void preempted_samples_are_left_out(void) {
    static struct zc_receive_probe probe;
    static struct zc_actor actor;
    probe.preempted_from = 1u << 20;
    for (int i = 0; i < 3; i++) { /* an ordinary sample, one that was interrupted, one that waited */
        zc_probe_find(&probe, &actor);
        if (i > 0)
            probe.at_find -= 1ull << 30;
        actor.counters.waits += i == 2;
        zc_probe_locked(&probe);
        zc_probe_received(&probe);
        zc_probe_unlocked(&probe, &actor);
    }
    CHECK(probe.samples == 3 && probe.preempted == 1 && probe.waits == 1);
    CHECK(probe.lock_cycles < probe.preempted_from && probe.preempted_cycles >= 1ull << 30 && probe.wait_cycles >= 1ull << 30);
    CHECK(probe.lock_wait.count == 3 && probe.receive.max >= 1ull << 30);
}

/* ---- load generator, against raw echoes that do right or wrong */

enum conduct { RIGHT, CORRUPTS, DIES };

struct echo {
    int listener;
    uint32_t port;
    enum conduct conduct;
    pthread_t thread;
};

static void *echo_once(void *argument) {
    struct echo *echo = argument;
    int fd = accept(echo->listener, NULL, NULL);
    static unsigned char bytes[1 << 16];
    uint64_t total = 0;
    ssize_t got;
    while ((got = recv(fd, bytes, sizeof bytes, 0)) > 0) {
        if (echo->conduct == CORRUPTS && total / 100000 != (total + (uint64_t)got) / 100000)
            bytes[got - 1] ^= 1; /* a body's byte: the length prefixes are never last in what arrives here */
        total += (uint64_t)got;
        if (echo->conduct == DIES && total > 300000)
            break;
        if (send(fd, bytes, (size_t)got, MSG_NOSIGNAL) != got)
            break;
    }
    close(fd);
    return NULL;
}

static void start_echo(struct echo *echo, enum conduct conduct) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    echo->conduct = conduct;
    echo->listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(echo->listener, (struct sockaddr *)&at, size) == 0 && listen(echo->listener, 8) == 0);
    CHECK(getsockname(echo->listener, (struct sockaddr *)&at, &size) == 0);
    echo->port = ntohs(at.sin_port);
    CHECK(pthread_create(&echo->thread, NULL, echo_once, echo) == 0);
}

static struct zc_load_result load_raw(enum conduct conduct) {
    struct echo echo;
    start_echo(&echo, conduct);
    const struct zc_load_options options = {.protocol = ZC_LOAD_RAW,
                                            .verify = ZC_LOAD_VERIFY_ECHO,
                                            .port = echo.port,
                                            .connections = 1,
                                            .in_flight = 4,
                                            .payload = 5000,
                                            .requests = 500,
                                            .seconds = 20};
    struct zc_load_result result;
    CHECK(zc_load_run(&options, &result) == 0);
    pthread_join(echo.thread, NULL);
    close(echo.listener);
    return result;
}

static void load_tells_right_from_wrong(void) {
    struct zc_load_result result = load_raw(RIGHT);
    CHECK(result.requests == 500 && result.errors == 0 && result.mismatches == 0);
    CHECK(result.latency.samples == 500 && result.latency.p50_us > 0 && result.latency.p50_us <= result.latency.max_us);
    CHECK(result.bytes_received == 500 * 5008);
    result = load_raw(CORRUPTS);
    CHECK(result.requests == 500 && result.mismatches > 0);
    result = load_raw(DIES);
    CHECK(result.requests < 500 && result.errors >= 1 && result.errors <= 4); /* those that were in flight */
    const struct zc_load_options nobody = {
        .protocol = ZC_LOAD_RAW, .port = 1, .connections = 1, .in_flight = 1, .payload = 1, .seconds = 1};
    CHECK(zc_load_run(&nobody, &result) == -ECONNREFUSED);
}

/* ---- the seed experiment, in small */

static void *load_seed(void *argument) {
    struct zc_load_options *options = argument;
    static struct zc_load_result result;
    CHECK(zc_load_run(options, &result) == 0);
    return &result;
}

static void seed_runs(const char *strategy, enum zc_seed_receive receive, uint32_t writer_hold_us) {
    const struct zc_seed_options options = {.strategy = strategy,
                                            .receive = receive,
                                            .connections = 8,
                                            .threads = 2,
                                            .connections_per_region = 1,
                                            .payload_limit = 4096,
                                            .probe = 1,
                                            .writer_interval_us = writer_hold_us * 2,
                                            .writer_hold_us = writer_hold_us,
                                            .warm_up_seconds = 0.1,
                                            .seconds = 0.4};
    struct zc_seed *seed;
    struct zc_seed_result result;
    CHECK(zc_seed_open(&options, &seed) == 0);
    struct zc_load_options load = {.protocol = ZC_LOAD_ZCRPC,
                                   .verify = ZC_LOAD_VERIFY_SUM,
                                   .port = zc_seed_port(seed),
                                   .connections = 8,
                                   .in_flight = 1,
                                   .method = 1,
                                   .padded = receive != ZC_SEED_COPY,
                                   .chunk = 1u << 20,
                                   .header = "",
                                   .header_length = 0,
                                   .payload = 4096,
                                   .seconds = 30,
                                   .until_closed = 1};
    pthread_t thread;
    void *loaded;
    CHECK(pthread_create(&thread, NULL, load_seed, &load) == 0);
    CHECK(zc_seed_run(seed, &result) == 0);
    zc_seed_close(seed);
    pthread_join(thread, &loaded);
    const struct zc_load_result *seen = loaded;
    CHECK(seen->mismatches == 0 && seen->errors == 0 && seen->requests >= result.requests);
    CHECK(result.requests > 100 && result.receiver_cpu_seconds > 0);
    uint64_t mapped = result.payload_bytes_mapped, copied = result.payload_bytes_copied;
    CHECK(mapped + copied + 4096 * 2 * ZC_BATCH_EVENTS >= 4096 * result.requests); /* the window's ends may cut a batch in two */
    if (receive == ZC_SEED_ZEROCOPY) {
        CHECK(mapped * 100 >= (mapped + copied) * 99);
        CHECK(result.samples >= result.requests / 2 && result.receive.p50_us > result.lock_wait.p50_us);
        CHECK(result.lock_path_share_percent > 0 && result.lock_path_share_percent <= 100);
    } else {
        CHECK(mapped == 0);
    }
    CHECK(writer_hold_us == 0 ? result.writer_locks == 0 : result.writer_locks > 10 && result.writer_hold.p50_us >= writer_hold_us);
}

static void seed_refuses(void) {
    struct zc_seed *seed;
    struct zc_seed_options options = {.strategy = "no-such-lock", .connections = 1, .threads = 1};
    CHECK(zc_seed_open(&options, &seed) == -ENOENT);
    options.strategy = "global";
    options.threads = 0;
    CHECK(zc_seed_open(&options, &seed) == -EINVAL);
}

int main(void) {
    RUN(percentiles_are_within_a_step);
    RUN(histogram_has_edges);
    RUN(buckets_are_those_of_hdr_histogram);
    RUN(preempted_samples_are_left_out);
    RUN(load_tells_right_from_wrong);
    RUN(seed_refuses);
    RUN(seed_runs, "global", ZC_SEED_ZEROCOPY, 0);
    RUN(seed_runs, "per-region", ZC_SEED_ZEROCOPY, 0);
    RUN(seed_runs, "global", ZC_SEED_ZEROCOPY, 500);
    RUN(seed_runs, "per-region", ZC_SEED_ZEROCOPY, 500);
    RUN(seed_runs, "per-region", ZC_SEED_COPY_PAGES, 0);
    RUN(seed_runs, "per-region", ZC_SEED_COPY, 0);
    return 0;
}
