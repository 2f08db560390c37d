/* The receive half of a connection: bytes in, events out.
 *
 * Small frames are received into the batch and parsed there. What is left of an unfinished one is kept in `stash`, which grows with what
 * has really arrived, never with what a header claims. A large payload gets a place in a region as soon as its header is there, and is
 * received straight into it, a chunk at a time, mapped or copied; its event comes when it is whole.
 *
 * Two payloads can be unfinished at once: a chunked one, and a short one that passes between its chunks. A second chunked one may not begin
 * before the first ended: that bounds what a connection can reserve, and lets every reserved payload be finished without further memory.
 *
 * Where payloads are to be mapped, no receive may run past a header into a payload, or the pages would be torn. So there frames are looked
 * at with MSG_PEEK first and then consumed exactly; after a large payload, when another is likely, the next header is received exactly
 * (`expect`), without the look.
 */
#ifndef ZCRPC_INBOUND_H
#define ZCRPC_INBOUND_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "net/policy.h"
#include "net/reactor.h"
#include "net/receive.h"

#define ZC_TURN_BYTES (64u << 10) /* of small frames per connection and wake-up, so that a loud one does not starve the others */

/* A large payload on its way in. */
struct zc_incoming {
    struct zc_frame frame;
    struct zc_lease *lease; /* NULL: the payload was refused and is being discarded */
    uint64_t received;      /* payload bytes in place */
    uint64_t mapped;        /* of these: by mapping */
    uint64_t chunk_left;    /* payload bytes of the current chunk that are still to come */
    uint64_t pad_left;      /* zeros after them */
    uint64_t cycles;        /* spent receiving it: what the policy learns from */
    bool map;               /* by mapping, as long as that works */
    bool chosen, choice;    /* the policy was asked whether to map it, and what it said */
    unsigned char header[]; /* frame.header_length bytes */
};

struct zc_inbound {
    unsigned char *stash; /* an unfinished small frame, or the unfinished header of a large one */
    uint32_t stash_length, stash_capacity;
    uint32_t expect;               /* bytes that can be received without running into a payload; 0: unknown, look first */
    uint32_t low_water;            /* SO_RCVLOWAT as set */
    bool local;                    /* the peer is in this host; never changes */
    bool preface, hello;           /* have come */
    bool after_bulk;               /* the last frame ended a payload over ZC_TURN_BYTES: another is likely */
    bool starved;                  /* waits for memory: the frame that needs it is in the stash */
    struct zc_incoming *receiving; /* whose bytes come next */
    struct zc_incoming *chunked;   /* between two chunks, or the same as receiving */
    _Atomic uint64_t progress_ms;  /* when bytes came last; relaxed: written by the thread that polls, read by any */
};

/* What a turn works with: the reactor's receiving side. */
struct zc_intake {
    const struct zc_reactor_options *options;
    struct zc_receiver receiver;
    struct zc_policy *policy;
    struct zc_reactor_stats *stats; /* the receiving thread's part of them */
    struct zc_batch *batch;
    uint32_t events; /* in the batch */
    uint64_t used;   /* bytes of the batch's data */
    uint64_t bulk;   /* bytes of large payloads taken in this round, and of those of several chunks handed over */
};

/* True while a connection may still be given a turn with this batch. */
bool zc_intake_room(const struct zc_intake *intake);
struct zc_event *zc_intake_event(struct zc_intake *intake, uint64_t connection, uint8_t kind);

/* One turn: receives and parses what is there, within bounds; it ends where a large payload begins. 0, or a negative errno; -EPROTO and -EPIPE come with the reason. -ENOBUFS:
 * no memory now, `starved` is set; to be given another turn when there is. */
int zc_inbound_turn(struct zc_inbound *in, struct zc_intake *intake, struct zc_nursery *nursery, uint64_t id, int fd, bool mapping,
                    enum zc_close *reason);
bool zc_inbound_unfinished(const struct zc_inbound *in); /* half a frame is here */
bool zc_inbound_bulky(const struct zc_inbound *in);      /* in the middle of a large payload */
bool zc_inbound_ending(const struct zc_inbound *in);     /* in the last chunk of one that comes from this host */
void zc_inbound_free(struct zc_inbound *in);

#endif
