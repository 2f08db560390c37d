#include "lab/seed.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lab/hello.h"
#include "lock/registry.h"

#define PREEMPTED_US 10.0 /* a lock path of dozens of nanoseconds that took longer, and waited for nobody, was interrupted */
#define ACCEPT_MS 10000
#define CHUNK (1u << 20)

static int listen_on_loopback(struct zc_seed *seed) {
    seed->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (seed->listener < 0)
        return -errno;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    if (bind(seed->listener, (struct sockaddr *)&at, size) < 0 || listen(seed->listener, 4096) < 0 ||
        getsockname(seed->listener, (struct sockaddr *)&at, &size) < 0)
        return -errno;
    seed->port = ntohs(at.sin_port);
    return 0;
}

/* Every payload of the experiment, however small, is received into a region. */
static uint32_t seed_map_from(const struct zc_seed_options *options) {
    return options->payload_limit < ZC_PAGE ? options->payload_limit : ZC_PAGE;
}

static int open_receiver(struct zc_seed *seed, struct seed_receiver *receiver) {
    const struct zc_seed_options *options = &seed->options;
    const struct zc_reactor_options reactor = {
        .receive = options->receive == ZC_SEED_ZEROCOPY ? ZC_RECEIVE_ZEROCOPY : ZC_RECEIVE_COPY,
        .place_from = seed_map_from(options),
        .map_from = seed_map_from(options),
        .connections_per_nursery = options->connections_per_region,
        .header_limit = 4096,
        .payload_limit = options->payload_limit,
        .outbound_limit = 1u << 20,
        .stall_ms = 10000,
    };
    receiver->seed = seed;
    receiver->records = malloc(ZC_BATCH_EVENTS * SEED_RECORD);
    if (receiver->records == NULL)
        return -ENOMEM;
    int created = zc_reactor_create(seed->map, &reactor, &receiver->reactor);
    if (created < 0)
        return created;
    receiver->probe.preempted_from = (uint64_t)(PREEMPTED_US * 1e-6 * seed->cycles_per_second);
    if (options->probe)
        zc_reactor_set_probe(receiver->reactor, &receiver->probe);
    return 0;
}

static int open_writer(struct zc_seed *seed) {
    struct seed_writer *writer = &seed->writer;
    writer->seed = seed;
    if (seed->options.writer_interval_us == 0)
        return 0;
    writer->actor = zc_actor_create(seed->map);
    return writer->actor ? zc_region_attach(seed->map, writer->actor, ZC_MAPPED, ZC_UNIT, &writer->region) : -ENOMEM;
}

static int open_parts(struct zc_seed *seed, const struct zc_strategy *strategy) {
    const struct zc_seed_options *options = &seed->options;
    uint64_t per_connection = 4 * (options->payload_limit + ZC_UNIT); /* what is in flight, what is being recycled, both twice */
    const struct zc_map_options map = {.budget = 64 * ZC_UNIT + options->connections * per_connection, .retain = UINT64_MAX};
    int opened = zc_map_create(strategy, &map, &seed->map);
    if (opened == 0)
        opened = listen_on_loopback(seed);
    for (uint32_t i = 0; opened == 0 && i < options->threads; i++)
        opened = open_receiver(seed, &seed->receivers[i]);
    return opened == 0 ? open_writer(seed) : opened;
}

int zc_seed_open(const struct zc_seed_options *options, struct zc_seed **out) {
    const struct zc_strategy *strategy = zc_strategy_find(options->strategy);
    if (strategy == NULL)
        return -ENOENT;
    if (options->connections == 0 || options->threads == 0 || options->payload_limit == 0)
        return -EINVAL;
    struct zc_seed *seed = calloc(1, sizeof *seed);
    if (seed == NULL)
        return -ENOMEM;
    seed->options = *options;
    seed->options.strategy = NULL; /* the caller's string */
    seed->listener = -1;
    seed->cycles_per_second = zc_lab_cycles_per_second(ZC_LAB_CALIBRATION);
    seed->receivers = calloc(options->threads, sizeof *seed->receivers);
    int opened = seed->receivers ? open_parts(seed, strategy) : -ENOMEM;
    if (opened < 0) {
        zc_seed_close(seed);
        return opened;
    }
    *out = seed;
    return 0;
}

uint32_t zc_seed_port(const struct zc_seed *seed) {
    return seed->port;
}

static int greet(struct zc_reactor *reactor, uint64_t connection, uint32_t map_from) {
    unsigned char record[ZC_RECORD_SIZE + ZC_LAB_HELLO_SIZE];
    const uint32_t length[2] = {(uint32_t)zc_lab_hello(record + ZC_RECORD_SIZE, CHUNK, map_from), 0};
    memcpy(record, &connection, sizeof connection);
    memcpy(record + 8, length, sizeof length);
    return zc_reactor_submit(reactor, record, ZC_RECORD_SIZE + length[0]);
}

/* Whether the load is to send whole pages, in segments of their own. */
static bool in_pages(const struct zc_seed_options *options) {
    return options->receive != ZC_SEED_COPY;
}

/* Takes all connections in, one thread's after the other's, before any thread runs. */
static int accept_all(struct zc_seed *seed) {
    uint32_t map_from = in_pages(&seed->options) ? seed_map_from(&seed->options) : 0;
    for (uint32_t i = 0; i < seed->options.connections; i++) {
        struct pollfd ready = {.fd = seed->listener, .events = POLLIN};
        if (poll(&ready, 1, ACCEPT_MS) <= 0)
            return -ETIMEDOUT;
        int fd = accept4(seed->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return -errno;
        struct zc_reactor *reactor = seed->receivers[i % seed->options.threads].reactor;
        int64_t connection = zc_reactor_add(reactor, fd, seed->options.receive == ZC_SEED_ZEROCOPY);
        if (connection < 0) {
            close(fd);
            return (int)connection;
        }
        int greeted = greet(reactor, (uint64_t)connection, map_from);
        if (greeted < 0)
            return greeted;
    }
    return 0;
}

static int run_threads(struct zc_seed *seed, struct zc_map_stats *after) {
    uint32_t started = 0;
    int failed = 0;
    for (; started < seed->options.threads && failed == 0; started += failed == 0)
        failed = -pthread_create(&seed->receivers[started].thread, NULL, seed_receive, &seed->receivers[started]);
    if (failed == 0 && seed->writer.actor != NULL) {
        failed = -pthread_create(&seed->writer.thread, NULL, seed_write, &seed->writer);
        seed->writer.running = failed == 0;
    }
    if (failed == 0) {
        zc_lab_sleep(seed->options.warm_up_seconds);
        zc_map_stats(seed->map, &seed->before);
        atomic_store_explicit(&seed->phase, SEED_MEASURE, memory_order_release);
        zc_lab_sleep(seed->options.seconds);
        zc_map_stats(seed->map, after);
    }
    atomic_store_explicit(&seed->phase, SEED_STOP, memory_order_release);
    for (uint32_t i = 0; i < started; i++)
        pthread_join(seed->receivers[i].thread, NULL);
    if (seed->writer.running)
        pthread_join(seed->writer.thread, NULL);
    return failed;
}

/* Adds up what the receivers noted; `sum` is a probe to merge theirs into. */
static int add_up_receivers(const struct zc_seed *seed, struct zc_receive_probe *sum, struct zc_seed_result *result) {
    int failed = 0;
    for (uint32_t i = 0; i < seed->options.threads; i++) {
        const struct seed_receiver *receiver = &seed->receivers[i];
        failed = receiver->failed < 0 ? receiver->failed : receiver->closed ? -ECONNRESET : failed;
        zc_probe_merge(sum, &receiver->probe);
        result->requests += receiver->requests;
        result->elapsed_seconds += receiver->elapsed / seed->options.threads;
        result->receiver_cpu_seconds += receiver->cpu;
        result->payload_bytes_mapped += receiver->after.payload_bytes_mapped - receiver->before.payload_bytes_mapped;
        result->payload_bytes_copied += receiver->after.payload_bytes_copied - receiver->before.payload_bytes_copied;
    }
    return failed;
}

static void report_lock_path(const struct zc_seed *seed, const struct zc_receive_probe *sum, struct zc_seed_result *result) {
    double per_second = seed->cycles_per_second, path = (double)(sum->lock_cycles + sum->wait_cycles);
    double cycles = result->receiver_cpu_seconds * per_second + (double)sum->wait_cycles;
    uint64_t kept = sum->samples - sum->preempted;
    result->lock_path_share_percent = cycles > 0 ? 100 * path / cycles : 0;
    result->lock_path_ns = kept ? path / (double)kept / per_second * 1e9 : 0;
    result->samples = sum->samples;
    result->waited_samples = sum->waits;
    result->preempted_samples = sum->preempted;
    result->preempted_ms = (double)sum->preempted_cycles / per_second * 1e3;
    zc_lab_latency(&sum->lock_wait, per_second, &result->lock_wait);
    zc_lab_latency(&sum->receive, per_second, &result->receive);
}

static void report_map(const struct zc_map_stats *before, const struct zc_map_stats *after, struct zc_seed_result *result) {
    result->read_locks = after->lock.read_locks - before->lock.read_locks;
    result->fallbacks = after->lock.fallbacks - before->lock.fallbacks;
    result->retries = after->lock.retries - before->lock.retries;
    result->misses = after->lock.misses - before->lock.misses;
    result->write_locks = after->lock.write_locks - before->lock.write_locks;
    result->waits = after->lock.waits - before->lock.waits;
    result->recycles = after->recycles - before->recycles;
    result->regions = after->regions;
    result->arena_bytes = after->arena_bytes;
}

int zc_seed_run(struct zc_seed *seed, struct zc_seed_result *result) {
    struct zc_map_stats after = {0};
    *result = (struct zc_seed_result){0};
    struct zc_receive_probe *sum = calloc(1, sizeof *sum);
    int ran = sum ? accept_all(seed) : -ENOMEM;
    if (ran == 0)
        ran = run_threads(seed, &after);
    if (ran == 0) {
        ran = add_up_receivers(seed, sum, result);
        report_lock_path(seed, sum, result);
        report_map(&seed->before, &after, result);
        result->writer_cpu_seconds = seed->writer.cpu;
        result->writer_locks = seed->writer.locks;
        result->writer_late = seed->writer.late;
        zc_lab_latency(&seed->writer.wait, seed->cycles_per_second, &result->writer_wait);
        zc_lab_latency(&seed->writer.hold, seed->cycles_per_second, &result->writer_hold);
    }
    free(sum);
    return ran;
}

void zc_seed_close(struct zc_seed *seed) {
    for (uint32_t i = 0; seed->receivers != NULL && i < seed->options.threads; i++) {
        if (seed->receivers[i].reactor != NULL)
            zc_reactor_destroy(seed->receivers[i].reactor);
        free(seed->receivers[i].records);
    }
    if (seed->writer.region != NULL)
        zc_region_detach(seed->map, seed->writer.actor, seed->writer.region);
    if (seed->writer.actor != NULL)
        zc_actor_destroy(seed->map, seed->writer.actor);
    if (seed->map != NULL)
        zc_map_drop(seed->map);
    if (seed->listener >= 0)
        close(seed->listener);
    free(seed->receivers);
    free(seed);
}
