/* The reactor: sockets in, batches of parsed frames out; queued frames in, vectored sends out. Knows nothing of what a call means.
 *
 * A reactor holds one epoll set. *Inline*, its fd is registered with an event loop and zc_reactor_poll does the work of everything that is
 * ready. *Threaded*, a thread of the reactor's own does that work and hands finished batches over; zc_reactor_poll then only collects.
 * Either way one thread at a time may call the functions below (they lock what they share with the reactor's thread).
 *
 * Connections are named by ids that are never used twice; an id that is gone is not an error (a reply may come too late): -ENOTCONN.
 */
#ifndef ZCRPC_REACTOR_H
#define ZCRPC_REACTOR_H

#include "net/frame.h"
#include "region/region_map.h"

/* Kinds of events beyond those of frames (enum zc_kind). */
enum zc_event_kind {
    ZC_EVENT_CLOSED = 32, /* the connection is gone: reason in `method` (enum zc_close), errno in `aux`; its last event */
    ZC_EVENT_SENT,        /* zc_reactor_send's buffers are free again: token in `aux` */
    ZC_EVENT_REFUSED, /* a REQUEST, RESPONSE or DATA whose payload is over the limit and is being discarded; its length in `payload_length`,
                           * its kind in the low byte of `aux`, its header's length above that */
};

enum zc_close {
    ZC_CLOSE_LOCAL,     /* zc_reactor_disconnect */
    ZC_CLOSE_EOF,       /* the peer closed, between frames */
    ZC_CLOSE_TRUNCATED, /* … in the middle of one */
    ZC_CLOSE_SYSTEM,    /* an error of the socket: errno in `aux` */
    ZC_CLOSE_PREFACE,   /* not zcrpc, or another version */
    ZC_CLOSE_HELLO,     /* no hello first, or a second one */
    ZC_CLOSE_KIND,      /* unknown kind of frame */
    ZC_CLOSE_HEADER,    /* header over the limit */
    ZC_CLOSE_CHUNK,     /* a chunk that continues nothing, or more than was announced */
    ZC_CLOSE_PAYLOAD,   /* a payload where none may be, or a second chunked payload before the first ended */
    ZC_CLOSE_STALLED,   /* half a frame, then nothing for stall_ms */
    ZC_CLOSE_UNREAD,    /* the peer read nothing of what waits for it for stall_ms */
    ZC_CLOSE_MEMORY,    /* the system refused memory */
};

struct zc_event {
    uint64_t connection;
    uint32_t stream;
    uint32_t header; /* offset in the batch's data */
    uint32_t header_length;
    uint32_t deadline_ms;
    uint16_t method;
    uint8_t kind, flags;
    union {
        uint64_t payload; /* lease == 0: offset in the batch's data; else the address */
        uint64_t aux;     /* of events that are no frame */
    };
    uint64_t payload_length;
    uint64_t lease; /* struct zc_lease *, now the receiver's to release; or 0 */
};

/* Valid until the next zc_reactor_poll. There are ZC_BATCHES of them in a reactor, at fixed addresses: batch i of zc_reactor_batch. */
struct zc_batch {
    struct zc_event *events;
    unsigned char *data;
    uint64_t capacity; /* bytes of data */
};
#define ZC_BATCHES 4         /* threaded: one that Python reads, one that is filled, two between them. Inline: only the first is used */
#define ZC_BATCH_EVENTS 8192 /* room for 64 KiB of the smallest frames many times over; touched only as far as it is used */
#define ZC_BATCH_BYTES (1u << 20)

enum zc_receive { ZC_RECEIVE_COPY, ZC_RECEIVE_ZEROCOPY, ZC_RECEIVE_AUTO };

/* Why a payload that lies in a region was not mapped. */
enum zc_fallback {
    ZC_FALLBACK_POLICY,      /* receive is "copy", or "auto" decided for this listener that copying is cheaper */
    ZC_FALLBACK_UNSUPPORTED, /* the socket or the kernel has no receive zerocopy */
    ZC_FALLBACK_UNPADDED,    /* the sender did not send it in whole pages */
    ZC_FALLBACK_SMALL,       /* below map_from */
    ZC_FALLBACK_CHEAPER,     /* "auto" found copying cheaper at this size */
    ZC_FALLBACK_UNMAPPABLE,  /* a page of it was not mappable; copied from its start */
    ZC_FALLBACK_REASONS
};

struct zc_reactor_options {
    uint32_t threaded;
    uint32_t receive;                 /* enum zc_receive */
    uint32_t place_from;              /* payloads of at least this go into a region; smaller ones stay in the batch. ≤ 64 KiB */
    uint32_t map_from;                /* payloads of at least this are mapped where they can be; ≥ place_from */
    uint32_t connections_per_nursery; /* 0: all share the reactor's own */
    uint32_t header_limit;            /* bytes of a frame's header at most */
    uint64_t payload_limit;           /* bytes of a payload at most */
    uint32_t outbound_limit;          /* bytes waiting for a peer that does not read at which the connection is not read either */
    uint32_t stall_ms;
};

struct zc_reactor_stats {
    uint64_t connections;
    uint64_t frames_in, frames_out;
    uint64_t payload_bytes_mapped, payload_bytes_copied;
    uint64_t bytes_in, bytes_out;
    uint64_t outbound_bytes;                        /* waiting to be sent, not counting referenced buffers */
    uint64_t paused;                                /* connections not read now, for memory or because their peer does not read */
    uint64_t sends_zerocopy, sends_zerocopy_copied; /* MSG_ZEROCOPY calls; of these the kernel copied after all */
    uint64_t fallbacks[ZC_FALLBACK_REASONS];
};

struct zc_buffer {
    const void *address;
    uint64_t length;
};

/* What the peer asked for in its hello. */
struct zc_peer {
    uint32_t chunk;    /* bytes of payload in a chunk at most; a multiple of ZC_PAGE */
    uint32_t map_from; /* payloads of at least this are to be sent in whole pages, header alone; 0: none */
};

struct zc_reactor;
struct zc_receive_probe; /* net/receive_probe.h: where the reactor's receives spend their time */

int zc_reactor_create(struct zc_map *map, const struct zc_reactor_options *options, struct zc_reactor **out);
void zc_reactor_destroy(struct zc_reactor *reactor); /* closes every connection at once; leases live on */
/* In a process that was forked: closes its copies of the sockets, and touches nothing else, since the sockets themselves, the epoll set and
 * the memory's locks are those of the parent. The struct stays. */
void zc_reactor_abandon(struct zc_reactor *reactor);
int zc_reactor_fd(struct zc_reactor *reactor); /* readable when zc_reactor_poll has something to do; stays the reactor's */
const struct zc_batch *zc_reactor_batch(struct zc_reactor *reactor, uint32_t index);
void zc_reactor_stats(struct zc_reactor *reactor, struct zc_reactor_stats *out);

void zc_reactor_set_probe(struct zc_reactor *reactor, struct zc_receive_probe *probe); /* inline only; NULL: none */

/* Takes over a connected stream socket (made non-blocking); sends our preface. `mapping`: our hello will ask the peer for whole pages.
 * Returns the connection's id > 0, or a negative errno and the fd is still the caller's. */
int64_t zc_reactor_add(struct zc_reactor *reactor, int fd, int mapping);
int zc_reactor_set_peer(struct zc_reactor *reactor, uint64_t connection, const struct zc_peer *peer);

/* Closes after what is queued was sent (flush), or at once. A CLOSED event follows in both cases. */
int zc_reactor_disconnect(struct zc_reactor *reactor, uint64_t connection, int flush);

/* Milliseconds since bytes came from the peer, or since the connection is read again after a pause; 0 while it is not read. -ENOTCONN. */
int64_t zc_reactor_silence(struct zc_reactor *reactor, uint64_t connection);

/* Does what is ready, waiting up to timeout_ms for it (inline only; -1: for ever). Returns batch index << 32 | number of events, or a
 * negative errno. Sweeps stalled connections when called at least every second or so. */
int64_t zc_reactor_poll(struct zc_reactor *reactor, int timeout_ms);

/* Sends small frames: records of { u64 connection, u32 length, u32 0 } followed by `length` bytes, which are whole frames. One vectored send
 * per run of records of one connection; what the socket does not take is copied. Records of connections that are gone are skipped. */
#define ZC_RECORD_SIZE 16
int zc_reactor_submit(struct zc_reactor *reactor, const void *records, uint64_t length);

/* Sends one frame with a payload by reference. `head` is the encoded frame header and msgpack header, whose payload_length is the sum of
 * the buffers; the reactor cuts it into chunks, pads, and maps as the peer asked. Small frames pass between the chunks, and so
 * do payloads of at most one chunk, unless they are padded; longer payloads of one connection go one after the other. Returns 1 if the buffers are free again already; 0 if a SENT event with `token`
 * will say so (or the connection's CLOSED event); or a negative errno. */
int zc_reactor_send(struct zc_reactor *reactor, uint64_t connection, const void *head, uint64_t head_length,
                    const struct zc_buffer *buffers, uint32_t count, uint64_t token);

/* Bytes of small frames that wait for the connection's peer to read, or -ENOTCONN. */
int64_t zc_reactor_queued(struct zc_reactor *reactor, uint64_t connection);

/* Whether this kernel has TCP_ZEROCOPY_RECEIVE: 0, or a negative errno saying why not. */
int zc_mapping_supported(void);

struct zc_way_cost {
    double sender, receiver; /* nanoseconds of CPU per byte */
};

struct zc_calibration {
    struct zc_way_cost copy, map; /* each sent in the way that it likes best */
    double mapped;                /* share of the payloads that could be mapped; the cost of mapping includes those that could not */
    int32_t map_failed;           /* 0, or a negative errno: why mapping could not be measured */
};

/* What it costs to send and receive payloads of `length` bytes, whole pages, over loopback, by copying and by mapping. Both ends are in the
 * calling thread. Takes some milliseconds per MiB. 0, or a negative errno. */
int zc_calibrate(uint64_t length, uint32_t rounds, struct zc_calibration *out);

#endif
