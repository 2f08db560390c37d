#include <errno.h>
#include <string.h>

#include "lab/load.h"

#define PAGE 4096u

/* Collects up to `want` bytes of a fixed-size part. Returns the bytes taken from the input. */
static size_t collect(struct load_reply *reply, unsigned char *into, size_t room, uint64_t want, const unsigned char *bytes,
                      size_t length) {
    uint64_t take = want - reply->done < length ? want - reply->done : length;
    if (reply->done < room)
        memcpy(into + reply->done, bytes, reply->done + take <= room ? take : room - reply->done);
    reply->done += take;
    return take;
}

static void next_step(struct load_reply *reply, enum load_step step) {
    reply->step = step;
    reply->done = 0;
}

/* The slot that a reply's stream id or, raw, its order names; LOAD_NONE if there is no such call. */
static uint32_t slot_of(const struct load *load, const struct load_connection *connection) {
    if (load->options->protocol == ZC_LOAD_RAW)
        return connection->expected;
    uint32_t slot = connection->reply.frame.stream - 1;
    return slot < load->options->in_flight && connection->slots[slot].waiting ? slot : LOAD_NONE;
}

static bool is_sum(uint64_t expected, const unsigned char *last) {
    uint64_t sum;
    memcpy(&sum, last, sizeof sum);
    return le64toh(sum) == expected;
}

static bool verified(const struct load *load, const struct load_connection *connection, uint32_t slot, uint64_t payload_length, bool same) {
    const struct load_reply *reply = &connection->reply;
    switch (load->options->verify) {
    case ZC_LOAD_VERIFY_ECHO:
        return same && payload_length == load->options->payload;
    case ZC_LOAD_VERIFY_SUM: {
        uint64_t length = load->options->protocol == ZC_LOAD_RAW ? payload_length : reply->frame.header_length;
        return length >= 8 && length <= LOAD_REPLY_KEPT && is_sum(load->sums[connection->slots[slot].variant], reply->header + length - 8);
    }
    case ZC_LOAD_VERIFY_OWN_SUM:
        return payload_length >= 8 && is_sum(reply->sum, reply->header);
    default:
        return true;
    }
}

/* A whole frame is here: what it means. */
static int frame_ends(struct load *load, struct load_connection *connection) {
    struct load_reply *reply = &connection->reply;
    const struct zc_frame *frame = &reply->frame;
    next_step(reply, LOAD_HEAD);
    bool failed = frame->kind == ZC_ERROR;
    if (frame->kind == ZC_RESPONSE || failed) {
        uint32_t slot = slot_of(load, connection);
        if (slot == LOAD_NONE)
            return -EPROTO;
        if (reply->stretch < frame->payload_length) { /* chunks follow */
            connection->bulk_slot = slot;
            connection->bulk_expected = frame->payload_length;
            connection->bulk_received = reply->stretch;
            connection->bulk_same = reply->same;
            return 0;
        }
        load_complete(load, connection, slot, failed, !failed && !verified(load, connection, slot, frame->payload_length, reply->same));
    } else if (frame->kind == ZC_CHUNK) {
        connection->bulk_received += reply->stretch;
        if (connection->bulk_received < connection->bulk_expected)
            return 0;
        load_complete(load, connection, connection->bulk_slot, false,
                      !verified(load, connection, connection->bulk_slot, connection->bulk_received, connection->bulk_same));
        connection->bulk_slot = LOAD_NONE;
    }
    return 0; /* hello, ping, pong, goaway: nothing to a load generator; a server that says goodbye closes next */
}

static int head_ends(const struct load *load, struct load_connection *connection) {
    struct load_reply *reply = &connection->reply;
    struct zc_frame *frame = &reply->frame;
    if (load->options->protocol == ZC_LOAD_RAW) {
        uint64_t length;
        memcpy(&length, reply->head, sizeof length);
        *frame = (struct zc_frame){.kind = ZC_RESPONSE, .payload_length = le64toh(length)};
        reply->same = true;
        reply->stretch = frame->payload_length;
        reply->sum = 0;
        next_step(reply, LOAD_PAYLOAD);
        return 0;
    }
    zc_frame_decode(reply->head, frame);
    if (frame->kind == 0 || frame->kind >= ZC_KIND_END || frame->flags & ZC_FLAG_PADDED) /* our hello asked for no padding */
        return -EPROTO;
    if (frame->kind == ZC_CHUNK && (connection->bulk_slot == LOAD_NONE || connection->bulk_slot + 1 != frame->stream))
        return -EPROTO;
    uint64_t chunk = load->options->chunk;
    reply->stretch = frame->payload_length < chunk ? frame->payload_length : chunk;
    reply->same = true;
    next_step(reply, LOAD_HEADER);
    return 0;
}

/* Touches every page of a stretch of a reply, and keeps the last 8 bytes of the reply. */
static void add_up(struct load_reply *reply, const unsigned char *bytes, uint64_t length) {
    for (uint64_t page = -reply->done % PAGE; page < length; page += PAGE)
        reply->sum += bytes[page];
    uint64_t tail = reply->stretch - 8, end = reply->done + length;
    uint64_t from = reply->done > tail ? reply->done : tail;
    if (reply->stretch >= 8 && end > from)
        memcpy(reply->header + (from - tail), bytes + (from - reply->done), end - from);
}

/* Compares a stretch of a reply's payload with the request's, where that is asked for. */
static void compare(const struct load *load, struct load_connection *connection, const unsigned char *bytes, uint64_t length) {
    struct load_reply *reply = &connection->reply;
    if (load->options->verify == ZC_LOAD_VERIFY_SUM && load->options->protocol == ZC_LOAD_RAW && reply->done < LOAD_REPLY_KEPT) {
        uint64_t room = LOAD_REPLY_KEPT - reply->done;
        memcpy(reply->header + reply->done, bytes, length < room ? length : room);
    }
    if (load->options->verify == ZC_LOAD_VERIFY_OWN_SUM)
        add_up(reply, bytes, length);
    if (load->options->verify != ZC_LOAD_VERIFY_ECHO || length == 0)
        return;
    bool chunk = reply->frame.kind == ZC_CHUNK;
    uint32_t slot = chunk ? connection->bulk_slot : slot_of(load, connection);
    uint64_t at = reply->done + (chunk ? connection->bulk_received : 0);
    if (slot == LOAD_NONE || at + length > load->options->payload ||
        memcmp(load_payload(load, &connection->slots[slot]) + at, bytes, length) != 0)
        *(chunk ? &connection->bulk_same : &reply->same) = false;
}

static size_t take_payload(const struct load *load, struct load_connection *connection, const unsigned char *bytes, size_t length) {
    struct load_reply *reply = &connection->reply;
    uint64_t take = reply->stretch - reply->done < length ? reply->stretch - reply->done : length;
    compare(load, connection, bytes, take);
    reply->done += take;
    return take;
}

/* Does one step with what is there; *used grows by what it took. Returns 1 when the step needs more bytes, 0, or -EPROTO. */
static int step(struct load *load, struct load_connection *connection, const unsigned char *bytes, size_t length, size_t *used) {
    struct load_reply *reply = &connection->reply;
    uint64_t want;
    switch (reply->step) {
    case LOAD_PREFACE:
        *used += collect(reply, reply->head, sizeof reply->head, ZC_PREFACE_SIZE, bytes, length);
        if (reply->done < ZC_PREFACE_SIZE)
            return 1;
        next_step(reply, LOAD_HEAD);
        return memcmp(reply->head, ZC_PREFACE, ZC_PREFACE_SIZE) == 0 ? 0 : -EPROTO;
    case LOAD_HEAD:
        want = load->options->protocol == ZC_LOAD_RAW ? 8 : ZC_FRAME_SIZE;
        *used += collect(reply, reply->head, sizeof reply->head, want, bytes, length);
        return reply->done < want ? 1 : head_ends(load, connection);
    case LOAD_HEADER:
        want = reply->frame.header_length;
        *used += collect(reply, reply->header, sizeof reply->header, want, bytes, length);
        if (reply->done < want)
            return 1;
        next_step(reply, LOAD_PAYLOAD);
        return 0;
    default:
        *used += take_payload(load, connection, bytes, length);
        return reply->done < reply->stretch ? 1 : frame_ends(load, connection);
    }
}

int load_receive(struct load *load, struct load_connection *connection, const unsigned char *bytes, size_t length) {
    for (size_t used = 0;;) {
        int more = step(load, connection, bytes + used, length - used, &used);
        if (more < 0)
            return more;
        if (more == 1 && used == length)
            return 0;
    }
}
