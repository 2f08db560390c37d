/* The laboratory's native drivers: what they take and what they report. Each call blocks its thread until its experiment is over; Python
 * calls them with the GIL released, server and load in processes of their own. All figures are of the measured window, without warm-up. */
#ifndef ZCRPC_LAB_H
#define ZCRPC_LAB_H

#include <stdint.h>

struct zc_latency {
    uint64_t samples;
    double p50_us, p99_us, p999_us, max_us, mean_us;
};

/* ---- load: one thread that keeps `in_flight` requests going on each of many connections to 127.0.0.1. A closed loop: a request's clock
 * starts when it is handed to the socket, so a stalled server also stalls the offered load. */
enum zc_load_protocol {
    ZC_LOAD_ZCRPC,
    ZC_LOAD_RAW, /* the floors: 8 bytes of little-endian length, then the body; both ways, replies in order */
};

enum zc_load_verify {
    ZC_LOAD_VERIFY_NONE,
    ZC_LOAD_VERIFY_ECHO,    /* the reply's payload (raw: body) is the request's, byte by byte */
    ZC_LOAD_VERIFY_SUM,     /* the reply (header; raw: body) ends in the sum of the first byte of each of the payload's pages, u64, LE */
    ZC_LOAD_VERIFY_OWN_SUM, /* raw: the reply's body ends in the sum of the first byte of each of its own pages, u64, LE */
};

struct zc_load_options {
    uint32_t protocol, verify;
    uint32_t port, connections, in_flight;
    uint32_t method;    /* zcrpc: the requests' method number */
    uint32_t padded;    /* zcrpc: header alone, payload in whole pages with MSG_ZEROCOPY */
    uint32_t chunk;     /* zcrpc: bytes of payload in a chunk, both ways; a multiple of 4096 */
    const void *header; /* zcrpc: the requests' msgpack header */
    uint64_t header_length;
    uint64_t payload;  /* bytes in each request */
    uint64_t requests; /* stop after as many; 0: go by time alone */
    double warm_up_seconds, seconds;
    uint32_t until_closed; /* the server ends the run by closing: that is no error */
    uint32_t server_pid;   /* the process whose CPU time is read at both ends of the window; 0: none */
};

struct zc_load_result {
    uint64_t requests, errors, mismatches; /* errors: ERROR frames, calls lost with their connection */
    uint64_t bytes_sent, bytes_received;   /* of payload; off the sockets */
    double elapsed_seconds;
    double cpu_seconds, server_cpu_seconds; /* the generator's own CPU, the server process's */
    uint64_t fewest, most;                  /* requests of one connection */
    double fairness;                        /* Jain's index of them: 1 if all have the same, 1/n if one has all */
    struct zc_latency latency;
};

int zc_load_run(const struct zc_load_options *options, struct zc_load_result *result);

/* ---- seed: the seed experiment's server. N native threads, each with a reactor of its own on one region map, answer every request with
 * an empty response; a writer thread may take the map lock over and over. */
enum zc_seed_receive {
    ZC_SEED_ZEROCOPY,   /* mapped, every payload */
    ZC_SEED_COPY_PAGES, /* the same segments on the wire, received with recv */
    ZC_SEED_COPY,       /* recv, and sent as suits it: no padding, the header with the payload, segments as large as they get */
};

struct zc_seed_options {
    const char *strategy;
    uint32_t receive; /* enum zc_seed_receive */
    uint32_t connections, threads;
    uint32_t connections_per_region; /* 1: a region for each, as in the seed; 0: the connections of a thread share */
    uint32_t payload_limit;
    uint32_t writer_interval_us, writer_hold_us; /* 0: no writer */
    uint32_t writer_busy;                        /* it computes while it holds the lock, rather than sleep */
    uint32_t probe;                              /* take time stamps around each receive */
    double warm_up_seconds, seconds;
};

struct zc_seed_result {
    uint64_t requests;
    double elapsed_seconds;
    double receiver_cpu_seconds, writer_cpu_seconds; /* summed over the threads */

    /* The lock path, find → locked and received → unlocked. Samples during which the strategy counted no wait, yet whose lock path took
     * longer than 10 µs, were hit by preemption: counted, and left out of the share. */
    double lock_path_share_percent; /* of the receivers' CPU cycles; cycles waited for a lock count on both sides */
    double lock_path_ns;            /* mean */
    uint64_t samples, waited_samples, preempted_samples;
    double preempted_ms;
    struct zc_latency lock_wait; /* find → locked, of every sample */
    struct zc_latency receive;   /* find → unlocked */

    uint64_t payload_bytes_mapped, payload_bytes_copied;
    uint64_t read_locks, fallbacks, retries, misses, write_locks, waits; /* the map's, writer included */
    uint64_t regions, arena_bytes, recycles;

    uint64_t writer_locks, writer_late; /* late: periods that passed before the writer came to them */
    struct zc_latency writer_wait;      /* wanted → locked */
    struct zc_latency writer_hold;      /* locked → unlocked */
};

struct zc_seed;
int zc_seed_open(const struct zc_seed_options *options, struct zc_seed **out); /* listens; -ENOENT: no such strategy */
uint32_t zc_seed_port(const struct zc_seed *seed);
/* Waits for all connections, warms up, measures, closes them. */
int zc_seed_run(struct zc_seed *seed, struct zc_seed_result *result);
void zc_seed_close(struct zc_seed *seed);

#endif
