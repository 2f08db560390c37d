/* One connection's turn, and the steps of receiving a large payload. Between inbound.c, which reads frames, and payload.c. */
#ifndef ZCRPC_TURN_H
#define ZCRPC_TURN_H

#include "net/inbound.h"

struct zc_turn {
    struct zc_inbound *in;
    struct zc_intake *intake;
    struct zc_nursery *nursery;
    uint64_t id;
    int fd;
    bool mapping;
    enum zc_close *reason;
};

/* Notes why the connection is to be closed; returns `error`. */
static inline int zc_turn_close(struct zc_turn *t, enum zc_close reason, int error) {
    *t->reason = reason;
    return error;
}

/* A new event about a frame. */
struct zc_event *zc_turn_event(struct zc_turn *t, const struct zc_frame *frame, uint8_t kind);

/* Reserves the place of a payload whose header is complete. 0; -EAGAIN: no memory now; or another negative errno, with the reason. */
int zc_payload_begin(struct zc_turn *t, const struct zc_frame *frame, const unsigned char *header);
/* A chunk frame: the unfinished payload goes on. 0 or a negative errno. */
int zc_payload_continue(struct zc_turn *t, const struct zc_frame *frame);
/* A page of it could not be mapped: the payload moves to ordinary memory, from its start. 0 or a negative errno. */
int zc_payload_move(struct zc_turn *t, enum zc_fallback why);
/* `n` bytes of the current chunk and its padding are in place; a payload that is whole becomes an event. */
void zc_payload_arrived(struct zc_turn *t, uint64_t n);
/* The same for bytes that lie elsewhere. Returns how many of `n` were the chunk's and its padding's, or a negative errno. */
int64_t zc_payload_feed(struct zc_turn *t, const unsigned char *bytes, uint64_t n);

#endif
