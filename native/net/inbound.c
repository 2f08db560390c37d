#include "net/inbound.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

/* Bytes of small frames that are received along with the end of a payload, to save the next receive. */
#define AFTER_PAYLOAD 4096u
/* From this much missing on, readiness waits for more than the next byte; up to this much of it. Half a chunk keeps the sender busy while
 * we work; facts of the design measured 512 KiB best. */
#define LOW_WATER_FROM (128u << 10)
#define LOW_WATER_MOST (512u << 10)

/* One connection's turn. */
struct turn {
    struct zc_inbound *in;
    struct zc_intake *intake;
    struct zc_nursery *nursery;
    uint64_t id;
    int fd;
    bool mapping;
    enum zc_close *reason;
};

bool zc_intake_room(const struct zc_intake *intake) {
    /* What one step can add: the stash (a small frame, or a large one's beginning that waited for memory), what is received behind it, and
     * the headers of all the large payloads in there once more. */
    uint64_t step = 2 * (2ull * ZC_TURN_BYTES + ZC_FRAME_SIZE + intake->options->header_limit + intake->options->place_from);
    return intake->used + step <= intake->batch->capacity && intake->events + ZC_TURN_BYTES / ZC_FRAME_SIZE + 2 <= ZC_BATCH_EVENTS;
}

struct zc_event *zc_intake_event(struct zc_intake *intake, uint64_t connection, uint8_t kind) {
    struct zc_event *event = &intake->batch->events[intake->events++];
    *event = (struct zc_event){.connection = connection, .kind = kind};
    return event;
}

static struct zc_event *frame_event(struct turn *t, const struct zc_frame *frame, uint8_t kind) {
    struct zc_event *event = zc_intake_event(t->intake, t->id, kind);
    event->payload_length = frame->payload_length;
    event->stream = frame->stream;
    event->deadline_ms = frame->deadline_ms;
    event->method = frame->method;
    event->flags = frame->flags;
    return event;
}

static int close_for(struct turn *t, enum zc_close reason, int error) {
    *t->reason = reason;
    return error;
}

static int end_of_stream(struct turn *t) {
    return close_for(t, zc_inbound_unfinished(t->in) ? ZC_CLOSE_TRUNCATED : ZC_CLOSE_EOF, -EPIPE);
}

/* ---- large payloads ---- */

static void low_water(struct turn *t, uint64_t missing) {
    uint32_t bytes = missing < LOW_WATER_FROM ? 1 : missing < LOW_WATER_MOST ? (uint32_t)missing : LOW_WATER_MOST;
    if (t->in->low_water == bytes || (bytes == 1 && t->in->low_water == 0))
        return;
    t->in->low_water = bytes;
    zc_receive_low_water(t->fd, bytes);
}

/* How a payload is to be received. Counts why it is not mapped. */
static bool decide(struct turn *t, const struct zc_frame *frame, bool *chosen, enum zc_fallback *why) {
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

static void begin_chunk(struct turn *t, struct zc_incoming *incoming, uint64_t length) {
    incoming->chunk_left = length;
    incoming->pad_left = incoming->frame.flags & ZC_FLAG_PADDED ? -length % ZC_PAGE : 0;
    t->in->receiving = incoming;
}

/* Reserves the place of a payload whose header is complete. -EAGAIN: no memory now. */
static int begin_payload(struct turn *t, const struct zc_frame *frame, const unsigned char *header) {
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
        return close_for(t, ZC_CLOSE_MEMORY, failed);
    struct zc_incoming *incoming = malloc(sizeof *incoming + frame->header_length);
    if (!incoming) {
        if (lease)
            zc_lease_release(lease);
        return close_for(t, ZC_CLOSE_MEMORY, -ENOMEM);
    }
    *incoming = (struct zc_incoming){.frame = *frame, .lease = lease, .map = map, .chosen = chosen};
    memcpy(incoming->header, header, frame->header_length);
    if (!lease)
        frame_event(t, frame, ZC_EVENT_REFUSED)->aux = frame->kind;
    if (frame->payload_length > ZC_CHUNK_BYTES)
        in->chunked = incoming;
    begin_chunk(t, incoming, frame->payload_length < ZC_CHUNK_BYTES ? frame->payload_length : ZC_CHUNK_BYTES);
    return 0;
}

/* A chunk frame: the unfinished payload goes on. */
static int continue_payload(struct turn *t, const struct zc_frame *frame) {
    struct zc_incoming *incoming = t->in->chunked;
    uint64_t length = frame->payload_length;
    if (!incoming || incoming->frame.stream != frame->stream || !length || length > ZC_CHUNK_BYTES ||
        length > incoming->frame.payload_length - incoming->received)
        return close_for(t, ZC_CLOSE_CHUNK, -EPROTO);
    bool last = length == incoming->frame.payload_length - incoming->received;
    if (!last && incoming->frame.flags & ZC_FLAG_PADDED && length % ZC_PAGE)
        return close_for(t, ZC_CLOSE_CHUNK, -EPROTO);
    begin_chunk(t, incoming, length);
    return 0;
}

/* A page of it could not be mapped: the payload moves to ordinary memory, from its start. */
static int move_to_copied(struct turn *t, struct zc_incoming *incoming, enum zc_fallback why) {
    struct zc_lease *copied;
    int failed = zc_lease_reserve(t->nursery, ZC_COPIED, incoming->frame.payload_length, true, &copied);
    if (failed)
        return close_for(t, ZC_CLOSE_MEMORY, failed);
    memcpy((void *)copied->address, (const void *)incoming->lease->address, incoming->received);
    zc_lease_release(incoming->lease);
    incoming->lease = copied;
    incoming->map = incoming->chosen = false;
    incoming->mapped = 0;
    t->intake->stats->fallbacks[why]++;
    return 0;
}

/* The payload is whole: it becomes an event, unless it was only discarded. */
static void finish_payload(struct turn *t, struct zc_incoming *incoming) {
    struct zc_intake *intake = t->intake;
    if (incoming == t->in->chunked)
        t->in->chunked = NULL;
    if (incoming->lease) {
        struct zc_event *event = frame_event(t, &incoming->frame, incoming->frame.kind);
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
            zc_policy_learn(intake->policy, incoming->received, incoming->map, incoming->cycles);
    }
    free(incoming);
}

/* `n` bytes of the current chunk and its padding are here. */
static void payload_arrived(struct turn *t, uint64_t n) {
    struct zc_inbound *in = t->in;
    struct zc_incoming *incoming = in->receiving;
    uint64_t payload = n < incoming->chunk_left ? n : incoming->chunk_left;
    incoming->chunk_left -= payload;
    incoming->received += payload;
    incoming->pad_left -= n - payload;
    if (incoming->chunk_left || incoming->pad_left)
        return;
    in->receiving = NULL;
    in->expect = ZC_FRAME_SIZE;
    if (incoming->received == incoming->frame.payload_length)
        finish_payload(t, incoming);
}

/* Payload bytes that were received along with a header. Returns how many of them were payload. */
static int64_t feed_payload(struct turn *t, const unsigned char *bytes, uint64_t n) {
    struct zc_incoming *incoming = t->in->receiving;
    uint64_t missing = incoming->chunk_left + incoming->pad_left;
    if (n > missing)
        n = missing;
    if (incoming->map && n) {
        int failed = move_to_copied(t, incoming, ZC_FALLBACK_UNMAPPABLE);
        if (failed)
            return failed;
    }
    /* The padding has room too: a place is held in whole pages, and only the last chunk's length may be odd. */
    if (incoming->lease)
        memcpy((char *)incoming->lease->address + incoming->received, bytes, n);
    payload_arrived(t, n);
    return (int64_t)n;
}

/* ---- small frames ---- */

static int check_frame(struct turn *t, const struct zc_frame *frame) {
    struct zc_inbound *in = t->in;
    if (!frame->kind || frame->kind >= ZC_KIND_END)
        return close_for(t, ZC_CLOSE_KIND, -EPROTO);
    if ((frame->kind == ZC_HELLO) == in->hello)
        return close_for(t, ZC_CLOSE_HELLO, -EPROTO);
    if (frame->header_length > t->intake->options->header_limit)
        return close_for(t, ZC_CLOSE_HEADER, -EPROTO);
    if (frame->kind == ZC_CHUNK)
        return frame->header_length ? close_for(t, ZC_CLOSE_CHUNK, -EPROTO) : 0;
    bool payload = frame->kind == ZC_REQUEST || frame->kind == ZC_RESPONSE;
    if (frame->payload_length && !payload)
        return close_for(t, ZC_CLOSE_PAYLOAD, -EPROTO);
    if (frame->payload_length > ZC_CHUNK_BYTES && in->chunked)
        return close_for(t, ZC_CLOSE_PAYLOAD, -EPROTO);
    return 0;
}

static void small_frame(struct turn *t, const struct zc_frame *frame, const unsigned char *at) {
    struct zc_intake *intake = t->intake;
    struct zc_event *event = frame_event(t, frame, frame->kind);
    event->header = (uint32_t)(at + ZC_FRAME_SIZE - intake->batch->data);
    event->header_length = frame->header_length;
    event->payload = event->header + frame->header_length;
    intake->stats->frames_in++;
    intake->stats->payload_bytes_copied += frame->payload_length;
    t->in->hello |= frame->kind == ZC_HELLO;
    t->in->expect = 0;
}

/* Takes the frame that begins at `at`. Returns its length, or 0 if it is not all there, or a negative errno. */
static int64_t take_frame(struct turn *t, const unsigned char *at, uint64_t n) {
    struct zc_frame frame;
    if (!t->in->preface) {
        if (memcmp(at, ZC_PREFACE, n < ZC_PREFACE_SIZE ? n : ZC_PREFACE_SIZE) != 0)
            return close_for(t, ZC_CLOSE_PREFACE, -EPROTO);
        t->in->preface = n >= ZC_PREFACE_SIZE;
        return t->in->preface ? ZC_PREFACE_SIZE : 0;
    }
    if (n < ZC_FRAME_SIZE)
        return 0;
    zc_frame_decode(at, &frame);
    int failed = check_frame(t, &frame);
    if (failed)
        return failed;
    uint64_t length = ZC_FRAME_SIZE + frame.header_length;
    if (frame.kind == ZC_CHUNK)
        return (failed = continue_payload(t, &frame)) ? failed : (int64_t)length;
    bool large = frame.payload_length >= t->intake->options->place_from || (frame.payload_length && frame.flags & ZC_FLAG_PADDED);
    if (n < length + (large ? 0 : frame.payload_length)) {
        t->in->expect = large ? (uint32_t)length : 0;
        return 0;
    }
    if (large)
        return (failed = begin_payload(t, &frame, at + ZC_FRAME_SIZE)) ? failed : (int64_t)length;
    small_frame(t, &frame, at);
    return (int64_t)(length + frame.payload_length);
}

/* Takes everything that is whole. Returns the bytes taken, or a negative errno. `stop`: leave the bytes of a payload that is to be mapped
 * where they are. */
static int64_t parse(struct turn *t, const unsigned char *at, uint64_t n, bool stop) {
    uint64_t taken = 0;
    while (taken < n) {
        struct zc_incoming *incoming = t->in->receiving;
        if (incoming && incoming->map && stop)
            break;
        int64_t step = incoming ? feed_payload(t, at + taken, n - taken) : take_frame(t, at + taken, n - taken);
        if (step == -EAGAIN)
            t->in->starved = true;
        if (step == 0 || step == -EAGAIN)
            break;
        if (step < 0)
            return step;
        taken += (uint64_t)step;
    }
    return (int64_t)taken;
}

static int keep_in_stash(struct turn *t, const unsigned char *at, uint64_t n) {
    struct zc_inbound *in = t->in;
    if (n > in->stash_capacity || (n == 0 && in->stash)) {
        free(in->stash); /* its bytes are in the batch, `at` is behind them or the same */
        in->stash = n ? malloc(n) : NULL;
        in->stash_capacity = in->stash ? (uint32_t)n : 0;
        in->stash_length = 0;
        if (n && !in->stash)
            return close_for(t, ZC_CLOSE_MEMORY, -ENOMEM);
    }
    if (n)
        memcpy(in->stash, at, n);
    in->stash_length = (uint32_t)n;
    return 0;
}

/* Parses `n` bytes at the batch's end; what cannot be taken yet goes to the stash. */
static int64_t digest(struct turn *t, uint64_t n, bool stop) {
    unsigned char *at = t->intake->batch->data + t->intake->used;
    uint64_t used = t->intake->used;
    t->intake->used += n; /* headers of large frames are put behind */
    int64_t taken = parse(t, at, n, stop);
    if (taken < 0)
        return taken;
    uint64_t rest = n - (uint64_t)taken;
    if (t->in->receiving && stop)
        rest = 0; /* looked at, not consumed */
    struct zc_frame frame;
    if (t->in->starved && stop && rest > ZC_FRAME_SIZE) {
        zc_frame_decode(at + taken, &frame);
        rest = ZC_FRAME_SIZE + frame.header_length;
    }
    int failed = keep_in_stash(t, at + taken, rest);
    if (failed)
        return failed;
    if (t->intake->used == used + n)
        t->intake->used = used + (uint64_t)taken;
    return taken + (int64_t)rest;
}

/* ---- receiving ---- */

static int64_t receive_bytes(struct turn *t, unsigned char *at, uint64_t n, int flags) {
    ssize_t received;
    do
        received = recv(t->fd, at, n, flags | MSG_DONTWAIT);
    while (received < 0 && errno == EINTR);
    if (received == 0)
        return end_of_stream(t);
    if (received > 0)
        return received;
    return errno == EAGAIN ? -EAGAIN : close_for(t, ZC_CLOSE_SYSTEM, -errno);
}

/* Each of the following returns bytes received if more may be there, 0 if not, or a negative errno. */

static int64_t receive_frames(struct turn *t) {
    struct zc_inbound *in = t->in;
    unsigned char *at = t->intake->batch->data + t->intake->used;
    uint64_t have = in->stash_length;
    if (have)
        memcpy(at, in->stash, have);
    if (in->starved) { /* there is memory again: the frame is all there already */
        in->starved = false;
        int64_t taken = digest(t, have, false);
        return taken < 0 ? taken : in->starved ? -ENOBUFS : 1;
    }
    bool exact = t->mapping && in->expect > have, peek = t->mapping && !exact;
    uint64_t room = exact ? in->expect - have : ZC_TURN_BYTES;
    int64_t received = receive_bytes(t, at + have, room, peek ? MSG_PEEK : 0);
    if (received < 0)
        return received == -EAGAIN ? 0 : received;
    int64_t taken = digest(t, have + (uint64_t)received, peek);
    if (taken < 0)
        return taken;
    if (peek) {
        uint64_t consumed = (uint64_t)taken - have;
        if (consumed && recv(t->fd, NULL, consumed, MSG_TRUNC | MSG_DONTWAIT) != (ssize_t)consumed)
            return close_for(t, ZC_CLOSE_SYSTEM, -EIO);
        t->intake->stats->bytes_in += consumed;
    } else {
        t->intake->stats->bytes_in += (uint64_t)received;
    }
    if (in->starved)
        return -ENOBUFS;
    return in->receiving || (uint64_t)received == room ? received : 0;
}

static int64_t discard_payload(struct turn *t) {
    uint64_t missing = t->in->receiving->chunk_left + t->in->receiving->pad_left;
    uint64_t room = missing < ZC_TURN_BYTES ? missing : ZC_TURN_BYTES;
    int64_t received = receive_bytes(t, t->intake->batch->data + t->intake->used, room, 0);
    if (received < 0)
        return received == -EAGAIN ? 0 : received;
    t->intake->stats->bytes_in += (uint64_t)received;
    payload_arrived(t, (uint64_t)received);
    return received;
}

static int64_t receive_copied(struct turn *t) {
    struct zc_incoming *incoming = t->in->receiving;
    uint64_t missing = incoming->chunk_left + incoming->pad_left;
    bool last = incoming->received + incoming->chunk_left == incoming->frame.payload_length;
    uint64_t after = last ? (t->mapping ? 0 : AFTER_PAYLOAD) : ZC_FRAME_SIZE;
    uintptr_t address = incoming->lease->address + incoming->received;
    struct iovec vectors[] = {{(void *)address, missing}, {t->intake->batch->data + t->intake->used, after}};
    uint64_t begun = zc_cycles();
    ssize_t received = zc_receive_copy(&t->intake->receiver, t->fd, address, vectors, after ? 2 : 1);
    incoming->cycles += zc_cycles() - begun;
    if (received == -EAGAIN || received == -EINTR) {
        low_water(t, missing);
        return received == -EINTR;
    }
    if (received == 0)
        return end_of_stream(t);
    if (received < 0)
        return close_for(t, ZC_CLOSE_SYSTEM, (int)received);
    t->intake->stats->bytes_in += (uint64_t)received;
    uint64_t placed = (uint64_t)received < missing ? (uint64_t)received : missing;
    payload_arrived(t, placed);
    low_water(t, missing - placed);
    if ((uint64_t)received > placed) {
        int64_t taken = digest(t, (uint64_t)received - placed, false);
        if (taken < 0)
            return taken;
        if (t->in->starved)
            return -ENOBUFS;
    }
    return (uint64_t)received == missing + after ? received : 0;
}

static int64_t receive_mapped(struct turn *t) {
    struct zc_incoming *incoming = t->in->receiving;
    uint64_t missing = incoming->chunk_left + incoming->pad_left, begun = zc_cycles();
    struct zc_mapping got;
    int failed = zc_receive_map(&t->intake->receiver, t->fd, incoming->lease->address + incoming->received, missing, &got);
    incoming->cycles += zc_cycles() - begun;
    if (failed == -EAGAIN) {
        low_water(t, missing);
        return 0;
    }
    if (failed == -EIO)
        return end_of_stream(t);
    if (failed && failed != -ENOPROTOOPT)
        return close_for(t, ZC_CLOSE_SYSTEM, failed);
    if (failed || !got.mapped) {
        int moved = move_to_copied(t, incoming, failed ? ZC_FALLBACK_UNSUPPORTED : ZC_FALLBACK_UNMAPPABLE);
        return moved ? moved : 1;
    }
    t->intake->stats->bytes_in += got.mapped;
    incoming->mapped += got.mapped < incoming->chunk_left ? got.mapped : incoming->chunk_left;
    payload_arrived(t, got.mapped);
    low_water(t, missing - got.mapped);
    return got.mapped;
}

int zc_inbound_turn(struct zc_inbound *in, struct zc_intake *intake, struct zc_nursery *nursery, uint64_t id, int fd, bool mapping,
                    enum zc_close *reason) {
    struct turn t = {in, intake, nursery, id, fd, mapping, reason};
    uint64_t done = 0;
    while (done < ZC_CHUNK_BYTES && zc_intake_room(intake)) {
        struct zc_incoming *incoming = in->receiving;
        int64_t step = !incoming          ? receive_frames(&t)
                       : !incoming->lease ? discard_payload(&t)
                       : incoming->map    ? receive_mapped(&t)
                                          : receive_copied(&t);
        if (step <= 0)
            return (int)step;
        done += (uint64_t)step;
        if (!incoming && !in->receiving && done >= ZC_TURN_BYTES)
            return 0;
    }
    return 0;
}

bool zc_inbound_unfinished(const struct zc_inbound *in) {
    return in->stash_length || in->receiving || in->chunked;
}

static void free_incoming(struct zc_incoming *incoming) {
    if (!incoming)
        return;
    if (incoming->lease)
        zc_lease_release(incoming->lease);
    free(incoming);
}

void zc_inbound_free(struct zc_inbound *in) {
    if (in->receiving != in->chunked)
        free_incoming(in->receiving);
    free_incoming(in->chunked);
    free(in->stash);
    *in = (struct zc_inbound){0};
}
