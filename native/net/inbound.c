#include "net/turn.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

/* From this much missing on, readiness waits for more than the next byte; up to this much of it. Half a chunk, so that the sender works on
 * the other half while we take this one. */
#define LOW_WATER_FROM (128u << 10)
#define LOW_WATER_MOST (512u << 10)
/* The same for an end that is waited for awake (work.c), so that less is left to be copied when the sender is through. */
#define LOW_WATER_ENDING (256u << 10)

/* Bytes of small frames that are received along with the end of a payload, to save the next receive; and all that is received into the batch
 * where another payload is likely, for what is there of one has to be moved to its place. */
#define AFTER_PAYLOAD 4096u

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

static int end_of_stream(struct zc_turn *t) {
    return zc_turn_close(t, zc_inbound_unfinished(t->in) ? ZC_CLOSE_TRUNCATED : ZC_CLOSE_EOF, -EPIPE);
}

/* ---- small frames ---- */

static int check_frame(struct zc_turn *t, const struct zc_frame *frame) {
    struct zc_inbound *in = t->in;
    if (!frame->kind || frame->kind >= ZC_KIND_END)
        return zc_turn_close(t, ZC_CLOSE_KIND, -EPROTO);
    if ((frame->kind == ZC_HELLO) == in->hello)
        return zc_turn_close(t, ZC_CLOSE_HELLO, -EPROTO);
    if (frame->header_length > t->intake->options->header_limit)
        return zc_turn_close(t, ZC_CLOSE_HEADER, -EPROTO);
    if (frame->kind == ZC_CHUNK)
        return frame->header_length ? zc_turn_close(t, ZC_CLOSE_CHUNK, -EPROTO) : 0;
    bool payload = frame->kind == ZC_REQUEST || frame->kind == ZC_RESPONSE || frame->kind == ZC_DATA;
    if (frame->payload_length && !payload)
        return zc_turn_close(t, ZC_CLOSE_PAYLOAD, -EPROTO);
    if (frame->payload_length > ZC_CHUNK_BYTES && in->chunked)
        return zc_turn_close(t, ZC_CLOSE_PAYLOAD, -EPROTO);
    return 0;
}

static void small_frame(struct zc_turn *t, const struct zc_frame *frame, const unsigned char *at) {
    struct zc_intake *intake = t->intake;
    struct zc_event *event = zc_turn_event(t, frame, frame->kind);
    event->header = (uint32_t)(at + ZC_FRAME_SIZE - intake->batch->data);
    event->header_length = frame->header_length;
    event->payload = event->header + frame->header_length;
    intake->stats->frames_in++;
    intake->stats->payload_bytes_copied += frame->payload_length;
    t->in->hello |= frame->kind == ZC_HELLO;
    t->in->expect = 0;
    t->in->after_bulk = false;
}

/* Takes the frame that begins at `at`. Returns its length, or 0 if it is not all there, or a negative errno. */
static int64_t take_frame(struct zc_turn *t, const unsigned char *at, uint64_t n) {
    struct zc_frame frame;
    if (!t->in->preface) {
        if (memcmp(at, ZC_PREFACE, n < ZC_PREFACE_SIZE ? n : ZC_PREFACE_SIZE) != 0)
            return zc_turn_close(t, ZC_CLOSE_PREFACE, -EPROTO);
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
        return (failed = zc_payload_continue(t, &frame)) ? failed : (int64_t)length;
    bool large = frame.payload_length >= t->intake->options->place_from || (frame.payload_length && frame.flags & ZC_FLAG_PADDED);
    if (n < length + (large ? 0 : frame.payload_length)) {
        t->in->expect = large ? (uint32_t)length : 0;
        return 0;
    }
    if (large)
        return (failed = zc_payload_begin(t, &frame, at + ZC_FRAME_SIZE)) ? failed : (int64_t)length;
    small_frame(t, &frame, at);
    return (int64_t)(length + frame.payload_length);
}

/* Takes everything that is whole. Returns the bytes taken, or a negative errno. `stop`: leave the bytes of a payload that is to be mapped
 * where they are. */
static int64_t parse(struct zc_turn *t, const unsigned char *at, uint64_t n, bool stop) {
    uint64_t taken = 0;
    while (taken < n) {
        struct zc_incoming *incoming = t->in->receiving;
        if (incoming && incoming->map && stop)
            break;
        int64_t step = incoming ? zc_payload_feed(t, at + taken, n - taken) : take_frame(t, at + taken, n - taken);
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

static int keep_in_stash(struct zc_turn *t, const unsigned char *at, uint64_t n) {
    struct zc_inbound *in = t->in;
    if (n > in->stash_capacity || (n == 0 && in->stash)) {
        free(in->stash); /* its bytes are in the batch, `at` is behind them or the same */
        in->stash = n ? malloc(n) : NULL;
        in->stash_capacity = in->stash ? (uint32_t)n : 0;
        in->stash_length = 0;
        if (n && !in->stash)
            return zc_turn_close(t, ZC_CLOSE_MEMORY, -ENOMEM);
    }
    if (n)
        memcpy(in->stash, at, n);
    in->stash_length = (uint32_t)n;
    return 0;
}

/* Parses `n` bytes at the batch's end; what cannot be taken yet goes to the stash. */
static int64_t digest(struct zc_turn *t, uint64_t n, bool stop) {
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

static void low_water(struct zc_turn *t, uint64_t missing) {
    uint32_t most = zc_inbound_ending(t->in) ? LOW_WATER_ENDING : LOW_WATER_MOST;
    uint32_t bytes = missing < LOW_WATER_FROM ? 1 : missing < most ? (uint32_t)missing : most;
    if (t->in->low_water == bytes || (bytes == 1 && t->in->low_water == 0))
        return;
    t->in->low_water = bytes;
    zc_receive_low_water(t->fd, bytes);
}

static int64_t receive_bytes(struct zc_turn *t, unsigned char *at, uint64_t n, int flags) {
    ssize_t received;
    do
        received = recv(t->fd, at, n, flags | MSG_DONTWAIT);
    while (received < 0 && errno == EINTR);
    if (received == 0)
        return end_of_stream(t);
    if (received > 0)
        return received;
    return errno == EAGAIN ? -EAGAIN : zc_turn_close(t, ZC_CLOSE_SYSTEM, -errno);
}

/* Each of the following returns bytes received if more may be there, 0 if not, or a negative errno. */

static int64_t receive_frames(struct zc_turn *t) {
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
    uint64_t room = exact ? in->expect - have : in->after_bulk ? AFTER_PAYLOAD : ZC_TURN_BYTES;
    int64_t received = receive_bytes(t, at + have, room, peek ? MSG_PEEK : 0);
    if (received < 0)
        return received == -EAGAIN ? 0 : received;
    int64_t taken = digest(t, have + (uint64_t)received, peek);
    if (taken < 0)
        return taken;
    if (peek) {
        uint64_t consumed = (uint64_t)taken - have;
        /* Writes nothing, but ThreadSanitizer would take NULL for an address that two threads write. */
        if (consumed && recv(t->fd, at, consumed, MSG_TRUNC | MSG_DONTWAIT) != (ssize_t)consumed)
            return zc_turn_close(t, ZC_CLOSE_SYSTEM, -EIO);
        t->intake->stats->bytes_in += consumed;
    } else {
        t->intake->stats->bytes_in += (uint64_t)received;
    }
    if (in->starved)
        return -ENOBUFS;
    return in->receiving || (uint64_t)received == room ? received : 0;
}

static int64_t discard_payload(struct zc_turn *t) {
    uint64_t missing = t->in->receiving->chunk_left + t->in->receiving->pad_left;
    uint64_t room = missing < ZC_TURN_BYTES ? missing : ZC_TURN_BYTES;
    int64_t received = receive_bytes(t, t->intake->batch->data + t->intake->used, room, 0);
    if (received < 0)
        return received == -EAGAIN ? 0 : received;
    t->intake->stats->bytes_in += (uint64_t)received;
    zc_payload_arrived(t, (uint64_t)received);
    return received;
}

static int64_t receive_copied(struct zc_turn *t) {
    struct zc_incoming *incoming = t->in->receiving;
    uint64_t missing = incoming->chunk_left + incoming->pad_left;
    bool last = incoming->received + incoming->chunk_left == incoming->frame.payload_length;
    uint64_t after = last ? (t->mapping ? 0 : AFTER_PAYLOAD) : ZC_FRAME_SIZE;
    uintptr_t address = incoming->lease->address + incoming->received;
    /* What comes behind the payload lies behind its header too, which becomes part of the batch when the payload is whole. */
    unsigned char *behind = t->intake->batch->data + t->intake->used + (last ? incoming->frame.header_length : 0);
    struct iovec vectors[] = {{(void *)address, missing}, {behind, after}};
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
        return zc_turn_close(t, ZC_CLOSE_SYSTEM, (int)received);
    t->intake->stats->bytes_in += (uint64_t)received;
    uint64_t placed = (uint64_t)received < missing ? (uint64_t)received : missing;
    zc_payload_arrived(t, placed);
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

static int64_t receive_mapped(struct zc_turn *t) {
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
        return zc_turn_close(t, ZC_CLOSE_SYSTEM, failed);
    if (failed || !got.mapped) {
        int moved = zc_payload_move(t, failed ? ZC_FALLBACK_UNSUPPORTED : ZC_FALLBACK_UNMAPPABLE);
        return moved ? moved : 1;
    }
    t->intake->stats->bytes_in += got.mapped;
    incoming->mapped += got.mapped < incoming->chunk_left ? got.mapped : incoming->chunk_left;
    zc_payload_arrived(t, got.mapped);
    low_water(t, missing - got.mapped);
    return got.queued ? got.mapped : 0; /* asking an empty socket again would cost what receiving a small frame does */
}

int zc_inbound_turn(struct zc_inbound *in, struct zc_intake *intake, struct zc_nursery *nursery, uint64_t id, int fd, bool mapping,
                    enum zc_close *reason) {
    struct zc_turn t = {in, intake, nursery, id, fd, mapping, reason};
    uint64_t done = 0;
    bool bulky = zc_inbound_bulky(in);
    while (done < ZC_CHUNK_BYTES && zc_intake_room(intake)) {
        struct zc_incoming *incoming = in->receiving;
        int64_t step = !incoming          ? receive_frames(&t)
                       : !incoming->lease ? discard_payload(&t)
                       : incoming->map    ? receive_mapped(&t)
                                          : receive_copied(&t);
        if (step <= 0)
            return (int)step;
        done += (uint64_t)step;
        if (!bulky && zc_inbound_bulky(in))
            return 0;
        if (!incoming && !in->receiving && done >= ZC_TURN_BYTES)
            return 0;
    }
    return 0;
}

bool zc_inbound_unfinished(const struct zc_inbound *in) {
    return in->stash_length || in->receiving || in->chunked;
}

bool zc_inbound_bulky(const struct zc_inbound *in) {
    return in->chunked || (in->receiving && in->receiving->chunk_left >= ZC_BULK_FROM);
}

bool zc_inbound_ending(const struct zc_inbound *in) {
    const struct zc_incoming *incoming = in->receiving;
    return in->local && incoming && incoming->received + incoming->chunk_left == incoming->frame.payload_length;
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
