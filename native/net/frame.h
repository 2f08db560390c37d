/* The wire's fixed part: preface and frame header. docs/wire.md is its description for other languages; the two must agree.
 *
 * Each side opens with the 8-byte preface, then frames. All integers are little-endian.
 *
 *   offset size
 *        0    1  kind            enum zc_kind
 *        1    1  flags           ZC_FLAG_*
 *        2    2  method          REQUEST: the method's number; ERROR, GOAWAY: the status code; else 0
 *        4    4  stream          the call; chosen by the caller, not in use; 0 for frames about the connection
 *        8    4  header length   bytes of msgpack that follow at once
 *       12    4  deadline        REQUEST: milliseconds left, 0 for none; CREDIT: bytes granted; else 0
 *       16    8  payload length  bytes of payload. CHUNK: of this chunk; else of the whole payload, of which the first chunk follows at once
 */
#ifndef ZCRPC_FRAME_H
#define ZCRPC_FRAME_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define ZC_PREFACE "ZCRPC\r\n\x01" /* the last byte is the version of everything below; \r\n shows a line-end conversion */
#define ZC_PREFACE_SIZE 8
#define ZC_FRAME_SIZE 24
#define ZC_CHUNK_BYTES (1u << 20) /* what we ask peers to cut payloads into: 0.3 ms of loopback, a small call waits no longer */
#define ZC_BULK_FROM (128u << 10) /* a payload of which so much is left makes small frames of other connections wait noticeably */

enum zc_kind {
    ZC_HELLO = 1, /* limits, features, methods: a msgpack map; the first frame in each direction, and only there */
    ZC_REQUEST,
    ZC_RESPONSE,
    ZC_ERROR,  /* method: status code; header: message and details */
    ZC_CHUNK,  /* the next piece of the payload that the stream's first frame began; no header */
    ZC_CANCEL, /* the caller does not want the answer any more */
    ZC_PING,   /* header: up to 64 bytes of the sender's; answered by a PONG with the same */
    ZC_PONG,
    ZC_GOAWAY, /* no new calls, please; method: status code; header: message */
    ZC_DATA,   /* items of a stream: a msgpack array of them */
    ZC_END,    /* the caller's items are over */
    ZC_CREDIT, /* so many bytes more of DATA may be sent; stream 0: in all streams together */
    ZC_KIND_END
};

#define ZC_FLAG_PADDED 0x01     /* first frame: every chunk of this payload is followed by zeros up to whole pages of 4096 */
#define ZC_FLAG_STREAM_IN 0x02  /* REQUEST: the caller will send DATA, then END */
#define ZC_FLAG_STREAM_OUT 0x04 /* REQUEST: the caller wants DATA before the RESPONSE */

struct zc_frame {
    uint8_t kind, flags;
    uint16_t method;
    uint32_t stream, header_length, deadline_ms;
    uint64_t payload_length;
};

static inline void zc_frame_decode(const unsigned char *at, struct zc_frame *frame) {
    memcpy(frame, at, ZC_FRAME_SIZE); /* the struct has the wire's layout; on a big-endian machine the fields are swapped below */
    frame->method = le16toh(frame->method);
    frame->stream = le32toh(frame->stream);
    frame->header_length = le32toh(frame->header_length);
    frame->deadline_ms = le32toh(frame->deadline_ms);
    frame->payload_length = le64toh(frame->payload_length);
}

static inline void zc_frame_encode(const struct zc_frame *frame, unsigned char *at) {
    struct zc_frame wire = *frame;
    wire.method = htole16(frame->method);
    wire.stream = htole32(frame->stream);
    wire.header_length = htole32(frame->header_length);
    wire.deadline_ms = htole32(frame->deadline_ms);
    wire.payload_length = htole64(frame->payload_length);
    memcpy(at, &wire, ZC_FRAME_SIZE);
}

_Static_assert(sizeof(struct zc_frame) == ZC_FRAME_SIZE, "the frame header has no holes");

#endif
