/* What the parts of the load generator share: load.c runs it, load_send.c writes requests, load_receive.c takes replies apart.
 *
 * Every request is the same sequence of *pieces*: a head (frame header and msgpack header, or the raw length), then a stretch of payload,
 * then the next chunk's head, and so on. Only the stream id in the heads and the place in the pool that the payload is taken from differ,
 * so a request under way is a slot number and a position, and nothing is ever copied together. */
#ifndef ZCRPC_LAB_LOAD_H
#define ZCRPC_LAB_LOAD_H

#include <stdbool.h>
#include <stddef.h>

#include "lab/lab.h"
#include "net/frame.h"
#include "net/histogram.h"

#define LOAD_VARIANTS 16     /* contents that requests take in turn: the pool's pages, each time starting one further */
#define LOAD_REPLY_KEPT 256u /* bytes of a reply's header that are kept to be verified */
#define LOAD_SCRATCH (256u << 10)
#define LOAD_NONE UINT32_MAX

struct load_piece {
    unsigned char *head;
    size_t head_length;
    uint64_t at, length, padding; /* of the payload */
};

struct load_slot {
    uint64_t sent_at; /* cycles */
    uint32_t variant;
    bool waiting; /* sent, not answered */
};

/* Where the reply under way stands. */
struct load_reply {
    enum load_step { LOAD_PREFACE, LOAD_HEAD, LOAD_HEADER, LOAD_PAYLOAD } step;
    unsigned char head[ZC_FRAME_SIZE], header[LOAD_REPLY_KEPT];
    struct zc_frame frame;
    uint64_t done;    /* bytes of the step */
    uint64_t stretch; /* bytes of payload in this frame */
    bool same;        /* as the request, so far */
    uint64_t sum;     /* of its own pages' first bytes */
};

struct load_connection {
    int fd;
    struct load_slot *slots;
    uint32_t *queue; /* slots to be sent, a ring of in_flight */
    uint32_t queue_head, queued;
    uint32_t expected; /* raw: the slot whose reply comes next */
    uint32_t sending;  /* slot, or LOAD_NONE */
    size_t piece;
    uint64_t piece_done; /* bytes of the piece that the socket took */
    uint64_t completed;  /* requests, in the window */
    size_t segment;      /* bytes of whole pages that fit one, when the piece was begun */
    uint32_t undrained;  /* MSG_ZEROCOPY sends whose completions lie on the error queue */
    struct load_reply reply;
    uint32_t bulk_slot;     /* whose chunked reply is under way, or LOAD_NONE */
    uint64_t bulk_expected; /* bytes of its payload */
    uint64_t bulk_received;
    bool bulk_same;
};

struct load {
    const struct zc_load_options *options;
    int epoll;
    unsigned char *pool; /* random bytes: payload and LOAD_VARIANTS pages */
    size_t pool_size;
    uint64_t sums[LOAD_VARIANTS];
    struct load_piece *pieces;
    size_t piece_count;
    unsigned char *heads;
    struct load_connection *connections;
    uint32_t open;
    size_t segment;             /* the same of a new connection */
    int pipe[2];                /* padded requests that fit one segment go through it; else -1 */
    uint64_t issued, completed; /* requests ever queued, ever answered */
    unsigned char *scratch;     /* LOAD_SCRATCH bytes that every receive goes to */
    struct zc_load_result result;
    struct zc_histogram latency;
};

int load_build_pieces(struct load *load);
/* Opens the pipe, if it is of use. 0, or a negative errno. */
int load_open_pipe(struct load *load);
/* Sends what is queued until the socket takes no more. 0, or a negative errno: the connection is broken. */
int load_send(struct load *load, struct load_connection *connection);
int load_drain_completions(struct load_connection *connection);

/* Takes replies out of `length` received bytes. 0, or -EPROTO. */
int load_receive(struct load *load, struct load_connection *connection, const unsigned char *bytes, size_t length);
/* A slot's reply is complete: counts it and queues the next request. */
void load_complete(struct load *load, struct load_connection *connection, uint32_t slot, bool failed, bool mismatch);

static inline const unsigned char *load_payload(const struct load *load, const struct load_slot *slot) {
    return load->pool + (size_t)slot->variant * 4096;
}

#endif
