/* The reactor's inside: shared by reactor.c (its life and its connections), submit.c (sending), work.c (one round
 * of work) and handover.c (its thread). */
#ifndef ZCRPC_REACTOR_STATE_H
#define ZCRPC_REACTOR_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "net/connection.h"

/* Batches on their way from the reactor's thread to the event loop's. Guarded by `lock`. */
struct zc_handover {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t freed;
    int ready_fd; /* eventfd: a batch is ready */
    bool running, stop;
    int failed;                                                        /* the thread ended with this negative errno */
    uint32_t ready[ZC_BATCHES], ready_events[ZC_BATCHES], ready_count; /* first in, first out */
    uint32_t unused[ZC_BATCHES], unused_count;
    int64_t taken; /* the batch that the event loop has; -1: none */
};

struct zc_reactor {
    struct zc_map *map;
    struct zc_reactor_options options;
    int epoll_fd, wake_fd;
    struct zc_batch batches[ZC_BATCHES];

    /* The thread that does the work, alone. */
    struct zc_intake intake;
    struct zc_policy policy;
    struct zc_reactor_stats received; /* its part of the statistics, published at the end of a round */
    uint64_t now_ms, next_sweep_ms;
    uint32_t starved; /* connections that wait for memory */
    uint32_t rounds;  /* of feeding them */
    int left;         /* where in the list of ready sockets the next round begins */
    uint64_t bulk_turns;
    uint32_t asleep; /* so many ends of payloads are still to be waited for asleep */
    bool ending;     /* some connection was left in the last chunk of a payload from this host */
    bool bulk_waits; /* no connection in the middle of a large payload had a turn in the last round, though some were ready */

    /* Shared; the mutex guards these and the outbound half of every connection. */
    pthread_mutex_t lock;
    struct zc_connection **slots;
    uint32_t slot_count, slot_capacity, *free_slots, free_count;
    uint64_t serial;
    struct zc_connection *doomed;
    struct zc_tokens done;      /* finished sends that no batch has told of yet: connection, token, connection, token, … */
    struct zc_tokens finishing; /* scratch of one flush */
    struct zc_send_counters sent;
    struct zc_reactor_stats published;
    struct zc_cradle *cradle; /* of the connections added last; the reactor counts as one of its users */
    uint64_t connections;

    _Atomic bool bulky; /* the last round had to do with large payloads; relaxed: a hint */

    struct zc_handover handover;
};

/* One round of work into batch `index`, waiting up to timeout_ms. Returns the number of events or a negative errno. */
int64_t zc_reactor_work(struct zc_reactor *reactor, uint32_t index, int timeout_ms);

/* With the mutex held. find: NULL if it is gone or doomed. */
struct zc_connection *zc_reactor_find(struct zc_reactor *reactor, uint64_t id);
void zc_reactor_doom(struct zc_reactor *reactor, struct zc_connection *connection, enum zc_close reason, int error);
void zc_reactor_flush(struct zc_reactor *reactor, struct zc_connection *connection);
void zc_reactor_sent(struct zc_reactor *reactor, struct zc_connection *connection, int failed);
void zc_reactor_watch(struct zc_reactor *reactor, struct zc_connection *connection);

void zc_reactor_wake(struct zc_reactor *reactor);
uint64_t zc_reactor_clock_ms(void);
/* Closes and frees a connection that is not doomed, or not any more. */
void zc_reactor_remove(struct zc_reactor *reactor, struct zc_connection *connection);

int zc_handover_start(struct zc_reactor *reactor);
void zc_handover_stop(struct zc_reactor *reactor);
int64_t zc_handover_collect(struct zc_reactor *reactor);

#endif
