/* The send half of a connection: what waits to be sent, in which order, and which of it the kernel still reads.
 *
 * Small frames are copied into one buffer. Payloads are referenced: each is an *item*, cut into chunks. Between two chunks all small frames
 * pass, so a call never waits for more than one chunk of somebody else's payload. Items go one after the other, but *short* ones, of one
 * chunk at most, pass between the chunks of a long one, a chunk's worth of them each time, so that neither keeps the other waiting. A short
 * one that is sent in whole pages does not pass: numbers of zerocopy sends, see below, must be consecutive.
 *
 * Where the peer asked for whole pages, a chunk is sent as: its frame header alone with MSG_EOR, so that no segment holds both header and
 * payload; then the payload and zeros up to a page boundary with MSG_ZEROCOPY, which makes the kernel put it into single pages, the only
 * ones that can be mapped. Each send of pages is at most one segment and ends with MSG_EOR too. So every segment is whole pages, whatever
 * the maximal segment size, and the kernel never splits one where the peer's window ends, which would tear a page. (TCP_MAXSEG of whole
 * pages does the first but not the second, and halves the speed of ordinary sends.)
 *
 * The kernel numbers the zerocopy sends of a socket 0, 1, 2, …; it reports ranges of numbers on the error queue when it no longer reads the
 * memory. Numbers of one item are consecutive; it is finished when all of them were reported.
 */
#ifndef ZCRPC_OUTBOUND_H
#define ZCRPC_OUTBOUND_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "net/reactor.h"

/* Bytes of a connection's turn. A socket whose peer reads at the same time may never be full. */
#define ZC_TURN_SENT ZC_CHUNK_BYTES

struct zc_item {
    struct zc_item *next;
    uint64_t token;
    uint32_t stream;
    bool padded;
    bool is_long;                    /* more than one chunk */
    uint32_t head_length, head_sent; /* of `head`: the frame header, and in the first chunk the msgpack header */
    uint64_t left;                   /* payload bytes after the current chunk */
    uint64_t chunk_left;             /* payload bytes of the current chunk */
    uint32_t pad_left;               /* zeros after it */
    uint32_t index, count;           /* the buffer that comes next, of how many */
    uint64_t offset;                 /* in that buffer */
    uint32_t zerocopy_first;         /* number of this item's first zerocopy send */
    uint32_t zerocopy_sends, zerocopy_done;
    unsigned char *head;
    struct zc_buffer buffers[];
};

struct zc_outbound {
    unsigned char *small; /* frames, whole but for what was sent already */
    uint32_t small_begin, small_end, small_capacity;
    struct zc_item *first, **last;        /* to be sent */
    struct zc_item *shorts, **last_short; /* to be sent between the chunks of long ones; empty if there is no long one above */
    uint32_t longs;                       /* in the list above */
    uint64_t passed;                      /* bytes of short ones since the last chunk of a long one */
    struct zc_item *unreported;           /* sent, but the kernel may still read them */
    uint32_t zerocopy_next;
    bool blocked; /* goes on when the socket is writable: it took nothing more, or this connection's turn is over */
    struct zc_peer peer;
    uint32_t
        segment; /* bytes of whole pages that fit one segment, when the last head was sent; 0: this socket cannot send them so that they can be mapped */
    uint64_t progress_ms; /* when it last took something, or when there was nothing to take */
};

/* Tokens of items that are finished; grows as needed. */
struct zc_tokens {
    uint64_t *at;
    uint32_t count, capacity;
};
void zc_tokens_add(struct zc_tokens *tokens, uint64_t token);

struct zc_send_counters {
    uint64_t frames, bytes, zerocopy, zerocopy_copied;
};

/* One vectored send that does not wait. Bytes sent, or a negative errno. */
ssize_t zc_send_vectors(int fd, struct iovec *vectors, int count, int flags);

/* Bytes of the whole pages that fit a segment of this connection; 0: not even one. It grows with the peer's window. */
uint32_t zc_whole_pages(int fd);

/* Both ends of a TCP connection have the same address: its peer is in this host. */
bool zc_is_local(int fd);
/* Takes such a connection off congestion control that paces (bbr): a timer every few packets, where nothing is congested. */
void zc_unpace(int fd);

void zc_outbound_init(struct zc_outbound *out);
void zc_outbound_free(struct zc_outbound *out);
bool zc_outbound_empty(const struct zc_outbound *out); /* nothing waits to be sent */
bool zc_outbound_bulky(const struct zc_outbound *out); /* in the middle of a large payload */
uint64_t zc_outbound_queued(const struct zc_outbound *out);

/* Copies bytes of whole frames behind the small ones. 0 or -ENOMEM. */
int zc_outbound_append(struct zc_outbound *out, const void *bytes, uint64_t length);
/* Queues a frame with a payload by reference. 0, -EINVAL (the frame does not fit the buffers) or -ENOMEM. */
int zc_outbound_queue(struct zc_outbound *out, const void *head, uint64_t head_length, const struct zc_buffer *buffers, uint32_t count,
                      uint64_t token);
/* One turn: sends until nothing is left, the socket is full or ZC_TURN_SENT were sent; `blocked` if something is left. Finished items'
 * tokens go to `done`. 0 or a negative errno. */
int zc_outbound_flush(struct zc_outbound *out, int fd, struct zc_tokens *done, struct zc_send_counters *counters);
/* Reads the kernel's reports of zerocopy sends. Returns how many reports there were. */
int zc_outbound_reports(struct zc_outbound *out, int fd, struct zc_tokens *done, struct zc_send_counters *counters);

#endif
