#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "lab/load.h"
#include "lock/atomics.h"
#include "net/outbound.h"

#define PAGE 4096u
#define STREAM_OFFSET 4 /* in a frame header */
#define GATHER 32       /* pieces in one vectored send */
#define DRAIN_EVERY 16  /* completions left lying on the error queue; they are charged to the socket's option memory */

static const unsigned char zeros[PAGE];

static void build_zcrpc_piece(struct load *load, struct load_piece *piece, size_t index) {
    const struct zc_load_options *options = load->options;
    uint64_t chunk = options->chunk;
    piece->at = index * chunk;
    piece->length = options->payload - piece->at < chunk ? options->payload - piece->at : chunk;
    piece->padding = options->padded ? -piece->length % PAGE : 0;
    struct zc_frame frame = {.kind = ZC_CHUNK, .payload_length = piece->length};
    piece->head_length = ZC_FRAME_SIZE;
    if (index == 0) {
        frame = (struct zc_frame){
            .kind = ZC_REQUEST,
            .flags = options->padded ? ZC_FLAG_PADDED : 0,
            .method = (uint16_t)options->method,
            .header_length = (uint32_t)options->header_length,
            .payload_length = options->payload,
        };
        memcpy(piece->head + ZC_FRAME_SIZE, options->header, options->header_length);
        piece->head_length += options->header_length;
    }
    zc_frame_encode(&frame, piece->head);
}

int load_build_pieces(struct load *load) {
    const struct zc_load_options *options = load->options;
    bool raw = options->protocol == ZC_LOAD_RAW;
    uint64_t chunk = raw ? options->payload : options->chunk;
    load->piece_count = options->payload > chunk ? (options->payload + chunk - 1) / chunk : 1;
    load->pieces = calloc(load->piece_count, sizeof *load->pieces);
    load->heads = calloc(1, load->piece_count * ZC_FRAME_SIZE + options->header_length);
    if (load->pieces == NULL || load->heads == NULL)
        return -ENOMEM;
    unsigned char *head = load->heads;
    for (size_t i = 0; i < load->piece_count; i++) {
        struct load_piece *piece = &load->pieces[i];
        piece->head = head;
        if (raw) {
            uint64_t length = htole64(options->payload);
            memcpy(head, &length, sizeof length);
            piece->head_length = sizeof length;
            piece->length = options->payload;
        } else {
            build_zcrpc_piece(load, piece, i);
        }
        head += piece->head_length;
    }
    return 0;
}

int load_drain_completions(struct load_connection *connection) {
    char control[128];
    for (;;) {
        struct msghdr message = {.msg_control = control, .msg_controllen = sizeof control};
        if (recvmsg(connection->fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
            break;
    }
    connection->undrained = 0;
    return errno == EAGAIN ? 0 : -errno;
}

/* Adds what is left of one piece after `done` bytes; head_only: up to the payload. */
static void add_piece(const struct load *load, const struct load_piece *piece, const struct load_slot *slot, uint64_t done, bool head_only,
                      struct iovec *iov, size_t *count) {
    const unsigned char *payload = load_payload(load, slot) + piece->at;
    const struct iovec parts[3] = {
        {piece->head, piece->head_length},
        {(void *)(uintptr_t)payload, piece->length},
        {(void *)(uintptr_t)zeros, piece->padding},
    };
    for (size_t i = 0; i < (head_only ? 1 : 3); i++) {
        if (done >= parts[i].iov_len) {
            done -= parts[i].iov_len;
            continue;
        }
        iov[(*count)++] = (struct iovec){(char *)parts[i].iov_base + done, parts[i].iov_len - done};
        done = 0;
    }
}

static void stamp_heads(const struct load *load, uint32_t slot, size_t from, size_t to) {
    if (load->options->protocol != ZC_LOAD_ZCRPC)
        return;
    uint32_t stream = htole32(slot + 1);
    for (size_t i = from; i < to; i++)
        memcpy(load->pieces[i].head + STREAM_OFFSET, &stream, sizeof stream);
}

/* Cuts the vectors after `most` bytes: whole pages to a segment (net/outbound.h says why). Returns how many are left. */
static size_t limit(struct iovec *iov, size_t count, size_t most) {
    for (size_t i = 0; i < count; i++) {
        if (iov[i].iov_len >= most) {
            iov[i].iov_len = most;
            return i + 1;
        }
        most -= iov[i].iov_len;
    }
    return count;
}

/* Asked anew for each piece: it grows with the server's window. */
static size_t segment_of(const struct load *load, struct load_connection *connection) {
    if (connection->piece_done == load->pieces[connection->piece].head_length)
        connection->segment = zc_whole_pages(connection->fd);
    return connection->segment;
}

int load_open_pipe(struct load *load) {
    const struct zc_load_options *options = load->options;
    const struct load_piece *only = &load->pieces[0];
    if (!options->padded || options->in_flight > 1 || load->piece_count > 1 || only->head_length >= PAGE)
        return 0;
    if (only->length + only->padding > load->segment - PAGE) /* the head needs room too */
        return 0;
    return pipe2(load->pipe, O_CLOEXEC | O_NONBLOCK) < 0 ? -errno : 0;
}

/* A whole padded request as one segment, head and pages: a pipe's pages go into the packet as they are, behind the head, whereas those of
 * MSG_ZEROCOPY are put together anew on loopback, and would be shifted by it. With one request in flight the socket's buffer is empty, so
 * that all of it is taken. */
static ssize_t send_through_pipe(const struct load *load, struct load_connection *connection) {
    const struct load_piece *piece = &load->pieces[0];
    struct iovec iov[3];
    size_t count = 0;
    ssize_t pages = (ssize_t)(piece->length + piece->padding), head = (ssize_t)piece->head_length;
    stamp_heads(load, connection->sending, 0, 1);
    add_piece(load, piece, &connection->slots[connection->sending], 0, false, iov, &count);
    bool sent = writev(load->pipe[1], iov + 1, (int)count - 1) == pages &&
                send(connection->fd, piece->head, piece->head_length, MSG_NOSIGNAL | MSG_DONTWAIT | MSG_MORE) == head &&
                splice(load->pipe[0], NULL, connection->fd, NULL, (size_t)pages, SPLICE_F_NONBLOCK) == pages;
    return sent ? head + pages : -EPIPE;
}

/* One send from where the slot under way stands. Returns the bytes taken or a negative errno. */
static ssize_t send_once(const struct load *load, struct load_connection *connection) {
    if (load->pipe[0] >= 0)
        return send_through_pipe(load, connection);
    const struct load_slot *slot = &connection->slots[connection->sending];
    const struct load_piece *piece = &load->pieces[connection->piece];
    bool in_head = connection->piece_done < piece->head_length;
    size_t end = load->options->padded ? connection->piece + 1 : load->piece_count, count = 0;
    if (end > connection->piece + GATHER)
        end = connection->piece + GATHER;
    struct iovec iov[3 * GATHER];
    stamp_heads(load, connection->sending, connection->piece, end);
    uint64_t done = connection->piece_done;
    for (size_t i = connection->piece; i < end; i++, done = 0)
        add_piece(load, &load->pieces[i], slot, done, load->options->padded && in_head, iov, &count);
    int flags = MSG_NOSIGNAL | MSG_DONTWAIT;
    if (load->options->padded) /* the head is a segment of its own (MSG_EOR), but leaves together with what follows (MSG_MORE) */
        flags |= MSG_EOR | (in_head ? MSG_MORE : MSG_ZEROCOPY);
    else if (connection->queued > 0) /* what is due at once leaves together, as a client of pipelined requests would have it */
        flags |= MSG_MORE;
    if (flags & MSG_ZEROCOPY)
        count = limit(iov, count, segment_of(load, connection));
    const struct msghdr message = {.msg_iov = iov, .msg_iovlen = count};
    ssize_t sent = sendmsg(connection->fd, &message, flags);
    if (sent >= 0 && (flags & MSG_ZEROCOPY))
        connection->undrained++;
    return sent < 0 ? -errno : sent;
}

/* Moves the position on by what was sent. Returns whether the request is complete. */
static bool advance(const struct load *load, struct load_connection *connection, uint64_t sent) {
    while (connection->piece < load->piece_count) {
        const struct load_piece *piece = &load->pieces[connection->piece];
        uint64_t left = piece->head_length + piece->length + piece->padding - connection->piece_done;
        if (sent < left) {
            connection->piece_done += sent;
            return false;
        }
        sent -= left;
        connection->piece++;
        connection->piece_done = 0;
    }
    return true;
}

static void begin_next(struct load *load, struct load_connection *connection) {
    connection->sending = connection->queue[connection->queue_head];
    connection->queue_head = (connection->queue_head + 1) % load->options->in_flight;
    connection->queued--;
    connection->piece = 0;
    connection->piece_done = 0;
    struct load_slot *slot = &connection->slots[connection->sending];
    slot->waiting = true;
    slot->sent_at = zc_cycles();
}

int load_send(struct load *load, struct load_connection *connection) {
    for (;;) {
        if (connection->sending == LOAD_NONE) {
            if (connection->queued == 0)
                return 0;
            begin_next(load, connection);
        }
        ssize_t sent = send_once(load, connection);
        if (sent == -EAGAIN)
            return 0;
        if (sent == -ENOBUFS) { /* the option memory is full of completions */
            int drained = load_drain_completions(connection);
            if (drained < 0)
                return drained;
            continue;
        }
        if (sent < 0)
            return (int)sent;
        if (connection->undrained >= DRAIN_EVERY && load_drain_completions(connection) < 0)
            return -EIO;
        if (advance(load, connection, (uint64_t)sent)) {
            load->result.bytes_sent += load->options->payload;
            connection->sending = LOAD_NONE;
        }
    }
}
