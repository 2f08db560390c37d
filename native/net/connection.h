/* A connection's two halves. Inside net/ only.
 *
 * The *inbound* half, and `bulk_turn`, belong to the thread that runs the reactor's poll; nobody else touches them. The *outbound* half is guarded by the
 * reactor's mutex, since replies come from the thread of the event loop. `id`, `fd` and `mapping` never change.
 */
#ifndef ZCRPC_CONNECTION_H
#define ZCRPC_CONNECTION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "net/inbound.h"
#include "net/outbound.h"

enum zc_closing { ZC_OPEN, ZC_FLUSHING, ZC_LINGERING };

/* The regions that a number of connections place into together. */
struct zc_cradle {
    struct zc_nursery *nursery;
    uint32_t connections;
};

struct zc_connection {
    uint64_t id;
    int fd;
    bool mapping; /* our hello asks for whole pages, so receives must not run past a frame header into a payload */
    struct zc_cradle *cradle;
    _Atomic uint8_t closing; /* enum zc_closing; written with the mutex held */

    struct zc_inbound in;
    uint64_t bulk_turn;     /* the reactor's count of such turns when it last had one in the middle of a large payload */
    struct zc_outbound out; /* the reactor's mutex guards this and all below */
    _Atomic bool doomed;    /* poll is to close it, for this reason; written with the mutex held */
    uint8_t reason;         /* enum zc_close */
    int error;              /* errno of ZC_CLOSE_SYSTEM */
    bool waits_for_memory;  /* written by the thread that polls */
    uint32_t interest;      /* the epoll events that are registered */
    uint64_t resumed_ms;    /* when it was last read again after a pause */
    uint64_t linger_ms;     /* when lingering ends */
    struct zc_connection *next_doomed;
};

/* When bytes came last, or could come again. With the mutex held. */
static inline uint64_t zc_connection_heard_ms(const struct zc_connection *c) {
    uint64_t progress = atomic_load_explicit(&c->in.progress_ms, memory_order_relaxed);
    return progress > c->resumed_ms ? progress : c->resumed_ms;
}

#endif
