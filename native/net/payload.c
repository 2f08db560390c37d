/* Large payloads on their way in: a place is reserved, chunks arrive in it, the whole becomes an event. */
#include <errno.h>
#include <stdlib.h>

#include "net/turn.h"

struct zc_event *zc_turn_event(struct zc_turn *t, const struct zc_frame *frame, uint8_t kind) {
    struct zc_event *event = zc_intake_event(t->intake, t->id, kind);
    event->payload_length = frame->payload_length;
    event->stream = frame->stream;
    event->deadline_ms = frame->deadline_ms;
    event->method = frame->method;
    event->flags = frame->flags;
    return event;
}

/* How a payload is to be received. Counts why it is not mapped. */
static bool decide(struct zc_turn *t, const struct zc_frame *frame, bool *chosen, enum zc_fallback *why) {
    const struct zc_reactor_options *options = t->intake->options;
    *chosen = false;
    if (!t->mapping)
        *why = options->receive == ZC_RECEIVE_ZEROCOPY ? ZC_FALLBACK_UNSUPPORTED : ZC_FALLBACK_POLICY;
    else if (frame->payload_length < options->map_from)
        *why = ZC_FALLBACK_SMALL;
    else if (!(frame->flags & ZC_FLAG_PADDED))
        *why = ZC_FALLBACK_UNPADDED;
    else if (options->receive == ZC_RECEIVE_ZEROCOPY)
        return true;
    else {
        *chosen = true;
        *why = ZC_FALLBACK_CHEAPER;
        return zc_policy_map(t->intake->policy, frame->payload_length);
    }
    return false;
}

static void begin_chunk(struct zc_turn *t, struct zc_incoming *incoming, uint64_t length) {
    incoming->chunk_left = length;
    incoming->pad_left = incoming->frame.flags & ZC_FLAG_PADDED ? -length % ZC_PAGE : 0;
    t->in->receiving = incoming;
}

int zc_payload_begin(struct zc_turn *t, const struct zc_frame *frame, const unsigned char *header) {
    struct zc_inbound *in = t->in;
    struct zc_lease *lease = NULL;
    bool chosen = false, map = false;
    int failed = frame->payload_length > t->intake->options->payload_limit ? -EMSGSIZE : 0;
    if (!failed) {
        enum zc_fallback why = ZC_FALLBACK_POLICY;
        map = decide(t, frame, &chosen, &why);
        failed = zc_lease_reserve(t->nursery, map ? ZC_MAPPED : ZC_COPIED, frame->payload_length, in->chunked != NULL, &lease);
        if (failed == -EAGAIN)
            return failed;
        if (!failed && !map)
            t->intake->stats->fallbacks[why]++;
    }
    if (failed && failed != -EMSGSIZE)
        return zc_turn_close(t, ZC_CLOSE_MEMORY, failed);
    struct zc_incoming *incoming = malloc(sizeof *incoming + frame->header_length);
    if (!incoming) {
        if (lease)
            zc_lease_release(lease);
        return zc_turn_close(t, ZC_CLOSE_MEMORY, -ENOMEM);
    }
    *incoming = (struct zc_incoming){.frame = *frame, .lease = lease, .map = map, .chosen = chosen, .choice = map};
    memcpy(incoming->header, header, frame->header_length);
    if (!lease)
        zc_turn_event(t, frame, ZC_EVENT_REFUSED)->aux = frame->kind | (uint64_t)frame->header_length << 8;
    if (frame->payload_length > ZC_CHUNK_BYTES)
        in->chunked = incoming;
    begin_chunk(t, incoming, frame->payload_length < ZC_CHUNK_BYTES ? frame->payload_length : ZC_CHUNK_BYTES);
    return 0;
}

int zc_payload_continue(struct zc_turn *t, const struct zc_frame *frame) {
    struct zc_incoming *incoming = t->in->chunked;
    uint64_t length = frame->payload_length;
    if (!incoming || incoming->frame.stream != frame->stream || !length || length > ZC_CHUNK_BYTES ||
        length > incoming->frame.payload_length - incoming->received)
        return zc_turn_close(t, ZC_CLOSE_CHUNK, -EPROTO);
    bool last = length == incoming->frame.payload_length - incoming->received;
    if (!last && incoming->frame.flags & ZC_FLAG_PADDED && length % ZC_PAGE)
        return zc_turn_close(t, ZC_CLOSE_CHUNK, -EPROTO);
    begin_chunk(t, incoming, length);
    return 0;
}

int zc_payload_move(struct zc_turn *t, enum zc_fallback why) {
    struct zc_incoming *incoming = t->in->receiving;
    struct zc_lease *copied;
    uint64_t begun = zc_cycles();
    int failed = zc_lease_reserve(t->nursery, ZC_COPIED, incoming->frame.payload_length, true, &copied);
    if (failed)
        return zc_turn_close(t, ZC_CLOSE_MEMORY, failed);
    failed = zc_receive_moved(&t->intake->receiver, copied->address, (const void *)incoming->lease->address, incoming->received);
    if (failed) {
        zc_lease_release(copied);
        return zc_turn_close(t, ZC_CLOSE_MEMORY, failed);
    }
    zc_lease_release(incoming->lease);
    incoming->lease = copied;
    incoming->map = false;
    incoming->mapped = 0;
    incoming->cycles += zc_cycles() - begun; /* what having tried costs */
    t->intake->stats->fallbacks[why]++;
    return 0;
}

static void learn(struct zc_intake *intake, const struct zc_incoming *incoming) {
    double release = incoming->map ? zc_map_recycle_cost(intake->receiver.map) : 0;
    uint64_t cycles = incoming->cycles + (uint64_t)(release * (double)incoming->received);
    zc_policy_learn(intake->policy, incoming->received, incoming->choice, cycles);
}

/* The payload is whole: it becomes an event, unless it was only discarded. */
static void finish_payload(struct zc_turn *t, struct zc_incoming *incoming) {
    struct zc_intake *intake = t->intake;
    if (incoming == t->in->chunked) {
        t->in->chunked = NULL;
        intake->bulk += incoming->received; /* whoever gets it will look at all of it */
    }
    if (incoming->lease) {
        struct zc_event *event = zc_turn_event(t, &incoming->frame, incoming->frame.kind);
        event->lease = (uintptr_t)incoming->lease;
        event->payload = incoming->lease->address;
        event->header = (uint32_t)intake->used;
        event->header_length = incoming->frame.header_length;
        memcpy(intake->batch->data + intake->used, incoming->header, incoming->frame.header_length);
        intake->used += incoming->frame.header_length;
        intake->stats->frames_in++;
        intake->stats->payload_bytes_mapped += incoming->mapped;
        intake->stats->payload_bytes_copied += incoming->received - incoming->mapped;
        if (incoming->chosen)
            learn(intake, incoming);
    }
    free(incoming);
}

void zc_payload_arrived(struct zc_turn *t, uint64_t n) {
    struct zc_inbound *in = t->in;
    struct zc_incoming *incoming = in->receiving;
    uint64_t payload = n < incoming->chunk_left ? n : incoming->chunk_left;
    incoming->chunk_left -= payload;
    incoming->received += payload;
    incoming->pad_left -= n - payload;
    t->intake->bulk += n;
    if (incoming->chunk_left || incoming->pad_left)
        return;
    in->receiving = NULL;
    in->expect = ZC_FRAME_SIZE;
    in->after_bulk = incoming->frame.payload_length > ZC_TURN_BYTES;
    if (incoming->received == incoming->frame.payload_length)
        finish_payload(t, incoming);
}

int64_t zc_payload_feed(struct zc_turn *t, const unsigned char *bytes, uint64_t n) {
    struct zc_incoming *incoming = t->in->receiving;
    uint64_t missing = incoming->chunk_left + incoming->pad_left;
    if (n > missing)
        n = missing;
    if (incoming->map && n) {
        int failed = zc_payload_move(t, ZC_FALLBACK_UNMAPPABLE);
        if (failed)
            return failed;
    }
    /* The padding has room too: a place is held in whole pages, and only the last chunk's length may be odd. */
    if (incoming->lease) {
        int failed = zc_receive_moved(&t->intake->receiver, incoming->lease->address + incoming->received, bytes, n);
        if (failed)
            return zc_turn_close(t, ZC_CLOSE_MEMORY, failed);
    }
    zc_payload_arrived(t, n);
    return (int64_t)n;
}
