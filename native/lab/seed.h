/* What the parts of the seed experiment's server share: seed.c sets up and adds up, seed_receiver.c and seed_writer.c are its threads. */
#ifndef ZCRPC_LAB_SEED_H
#define ZCRPC_LAB_SEED_H

#include <pthread.h>
#include <stdatomic.h>

#include "lab/clock.h"
#include "lab/lab.h"
#include "net/reactor.h"
#include "net/receive_probe.h"

enum seed_phase { SEED_WARM_UP, SEED_MEASURE, SEED_STOP };

/* A receiving thread. Everything below `reactor` is the thread's own until it has ended. */
struct seed_receiver {
    struct zc_seed *seed;
    pthread_t thread;
    struct zc_reactor *reactor;
    struct zc_receive_probe probe;
    unsigned char *records; /* a batch's replies */
    uint64_t requests, closed;
    double started, cpu_started, elapsed, cpu; /* of the measured window, seconds */
    struct zc_reactor_stats before, after;
    int failed; /* a negative errno ended it */
};

struct seed_writer {
    struct zc_seed *seed;
    pthread_t thread;
    bool running;
    struct zc_actor *actor;
    struct zc_region *region; /* the one it changes; no connection uses it */
    struct zc_histogram wait, hold;
    uint64_t locks, late;
    double cpu;
};

struct zc_seed {
    struct zc_seed_options options;
    struct zc_map *map;
    int listener;
    uint32_t port;
    _Atomic int phase; /* enum seed_phase */
    double cycles_per_second;
    struct seed_receiver *receivers;
    struct seed_writer writer;
    struct zc_map_stats before;
};

#define SEED_RECORD (ZC_RECORD_SIZE + ZC_FRAME_SIZE + 11) /* one reply: its msgpack header holds the payload's page sum */

void *seed_receive(void *receiver); /* thread functions */
void *seed_write(void *writer);

#endif
