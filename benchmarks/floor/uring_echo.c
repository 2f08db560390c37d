/* What io_uring would save: the same echo server in several shapes, epoll's and io_uring's. docs/io-uring.md has what they cost.
 *
 *   uring_echo epoll          epoll_wait, then recv each, then send each
 *   uring_echo epoll-nested   … behind a second epoll set, which stands for the event loop: the shape of zcrpc's reactor
 *   uring_echo sends          … and the replies of a wake-up are sent by one io_uring_enter
 *   uring_echo batched        … and its receives are made by another one
 *   uring_echo ring           no epoll: multishot accept and receive into provided buffers; one io_uring_enter per wake-up sends the replies
 *                             and waits
 *   uring_echo check          does nothing but fail where there is no io_uring that could do all this
 *
 * With a second argument each stretch of messages that came together takes so many nanoseconds more, as those of an RPC library do: what comes
 * in the meantime makes wake-ups larger, and that is what io_uring lives on.
 *
 * Listens on 127.0.0.1, prints the port, and serves until it is killed. A message is 8 bytes of little-endian length, then the body. No
 * request ids, no errors; waits for a peer that does not read its replies, and all others with it. */
#define _GNU_SOURCE
#include <endian.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#include "uring.h"

#define PREFIX 8u
#define READY 256        /* connections answered in a wake-up at most */
#define ROOM (64u << 10) /* of one receive of the epoll shapes, as in the reactor */
#define SPACE (1u << 20) /* … of all of a wake-up */
#define BUFFERS READY    /* of the ring shapes */
#define BUFFER_BYTES 8192u
#define ENTRIES 512
#define FILES 8192

enum shape { EPOLL, EPOLL_NESTED, SENDS, BATCHED, RING, SHAPES };
static const char *const names[SHAPES] = {"epoll", "epoll-nested", "sends", "batched", "ring"};

struct connection {
    int fd;
    unsigned char *rest; /* a message that is not whole yet */
    size_t filled, room;
    struct reply *reply; /* of this wake-up, not on its way yet */
};

struct reply {
    struct connection *connection;
    unsigned char *bytes; /* in `space`, in a provided buffer, or if `owned` from malloc */
    size_t length;
    int32_t buffer; /* to be provided again afterwards; -1: none */
    bool owned;
};

/* What a wake-up leaves to be done. */
struct work {
    struct reply replies[READY];
    struct connection *gone[READY]; /* to be closed after its replies */
    uint32_t reply_count, gone_count;
};

static enum shape shape;
static int listener, inner = -1, outer = -1;
static struct uring ring;
static struct uring_buffers buffers;
static uint64_t work_ns;
static unsigned char space[SPACE];

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* ---- messages ---- */

static uint64_t length_at(const unsigned char *bytes) {
    uint64_t length;
    memcpy(&length, bytes, PREFIX);
    return PREFIX + le64toh(length);
}

/* Length of the whole messages at the front. */
static size_t whole_messages(const unsigned char *bytes, size_t filled) {
    size_t end = 0;
    while (filled - end >= PREFIX && filled - end >= length_at(bytes + end))
        end += length_at(bytes + end);
    return end;
}

static void keep(struct connection *connection, const unsigned char *bytes, size_t n) {
    if (connection->filled + n > connection->room) {
        connection->room = 2 * (connection->filled + n);
        connection->rest = realloc(connection->rest, connection->room);
        if (connection->rest == NULL)
            die("realloc");
    }
    memcpy(connection->rest + connection->filled, bytes, n);
    connection->filled += n;
}

static void let_go(const struct reply *reply) {
    if (reply->buffer >= 0)
        uring_provide(&buffers, (uint16_t)reply->buffer);
    if (reply->owned)
        free(reply->bytes);
}

/* A connection has one reply in a wake-up: if there were two and the first could not be sent whole, the second might overtake its rest. */
static void add_reply(struct work *work, const struct reply *reply) {
    struct connection *connection = reply->connection;
    struct reply *before = connection->reply;
    if (before == NULL) {
        connection->reply = &work->replies[work->reply_count++];
        *connection->reply = *reply;
        return;
    }
    unsigned char *both = malloc(before->length + reply->length);
    if (both == NULL)
        die("malloc");
    memcpy(both, before->bytes, before->length);
    memcpy(both + before->length, reply->bytes, reply->length);
    let_go(before);
    let_go(reply);
    *before = (struct reply){connection, both, before->length + reply->length, -1, true};
}

/* The whole messages that are put together are to be echoed; what is behind them begins anew. */
static void reply_from_rest(struct work *work, struct connection *connection) {
    size_t end = whole_messages(connection->rest, connection->filled);
    if (end == 0)
        return;
    struct connection after = {.fd = connection->fd};
    if (connection->filled > end)
        keep(&after, connection->rest + end, connection->filled - end);
    add_reply(work, &(struct reply){connection, connection->rest, end, -1, true});
    after.reply = connection->reply;
    *connection = after;
}

static uint64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void pretend_to_work(void) {
    for (uint64_t end = work_ns ? clock_ns() + work_ns : 0; end && clock_ns() < end;)
        ;
}

/* What came is echoed from where it is if it begins with a whole message, else from where it is put together. */
static void take(struct work *work, struct connection *connection, unsigned char *bytes, size_t n, int32_t buffer) {
    size_t end = connection->filled ? 0 : whole_messages(bytes, n);
    pretend_to_work();
    if (end < n)
        keep(connection, bytes + end, n - end);
    if (end)
        add_reply(work, &(struct reply){connection, bytes, end, buffer, false});
    else
        reply_from_rest(work, connection);
    if (!end && buffer >= 0)
        uring_provide(&buffers, (uint16_t)buffer);
}

/* ---- sending ---- */

static void send_whole(int fd, const unsigned char *bytes, size_t length) {
    while (length > 0) {
        ssize_t sent = send(fd, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN)
            return; /* the next receive tells */
        if (sent > 0) {
            bytes += sent;
            length -= (size_t)sent;
        } else {
            poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, -1);
        }
    }
}

/* Success is silent and at once; what is not sent at once fails, with a completion whose data is odd. */
static void queue_sends(struct work *work) {
    for (struct reply *reply = work->replies; reply < work->replies + work->reply_count; reply++) {
        struct io_uring_sqe *entry = uring_entry(&ring, IORING_OP_SEND, reply->connection->fd, (uint64_t)(uintptr_t)reply | 1);
        entry->addr = (uint64_t)(uintptr_t)reply->bytes;
        entry->len = (uint32_t)reply->length;
        entry->msg_flags = MSG_NOSIGNAL | MSG_DONTWAIT | MSG_WAITALL;
        entry->flags = IOSQE_FIXED_FILE | IOSQE_CQE_SKIP_SUCCESS;
        reply->connection->reply = NULL;
    }
}

static void send_failed(const struct io_uring_cqe *completion) {
    const struct reply *reply = (struct reply *)(uintptr_t)(completion->user_data & ~1ull);
    size_t sent = completion->res > 0 ? (size_t)completion->res : 0;
    if (completion->res >= 0 || completion->res == -EAGAIN)
        send_whole(reply->connection->fd, reply->bytes + sent, reply->length - sent);
}

/* ---- connections ---- */

static void register_file(int fd) {
    struct io_uring_files_update update = {.offset = (uint32_t)fd, .fds = (uint64_t)(uintptr_t)&fd};
    if (!uring_register(&ring, IORING_REGISTER_FILES_UPDATE, &update, 1))
        die("registering a file");
}

static struct connection *welcome(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct connection *connection = calloc(1, sizeof *connection);
    if (connection == NULL)
        die("calloc");
    connection->fd = fd;
    if (shape >= SENDS)
        register_file(fd);
    return connection;
}

static void close_connection(struct connection *connection) {
    int none = -1;
    struct io_uring_files_update update = {.offset = (uint32_t)connection->fd, .fds = (uint64_t)(uintptr_t)&none};
    if (shape >= SENDS)
        uring_register(&ring, IORING_REGISTER_FILES_UPDATE, &update, 1);
    close(connection->fd);
    free(connection->rest);
    free(connection);
}

/* All of its replies have been sent. */
static void forget(struct work *work) {
    for (uint32_t i = 0; i < work->reply_count; i++)
        let_go(&work->replies[i]);
    for (uint32_t i = 0; i < work->gone_count; i++)
        close_connection(work->gone[i]);
    work->reply_count = work->gone_count = 0;
}

/* ---- epoll's shapes ---- */

static void accept_one(void) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = welcome(fd)};
    if (epoll_ctl(inner, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll_ctl");
}

static void receive_each(struct epoll_event *events, int ready, ssize_t *got, unsigned char **at) {
    size_t used = 0;
    for (int i = 0; i < ready; i++) {
        struct connection *connection = events[i].data.ptr;
        at[i] = space + used;
        got[i] = -EAGAIN;
        if (connection == NULL || SPACE - used < ROOM)
            continue;
        got[i] = recv(connection->fd, at[i], ROOM, MSG_DONTWAIT);
        if (got[i] < 0)
            got[i] = -errno;
        else
            used += (size_t)got[i];
    }
}

/* All at once, so each into a place of its own. */
static void receive_batched(struct epoll_event *events, int ready, ssize_t *got, unsigned char **at) {
    struct io_uring_cqe completion;
    uint32_t queued = 0;
    for (int i = 0; i < ready; i++) {
        struct connection *connection = events[i].data.ptr;
        got[i] = -EAGAIN;
        at[i] = space + queued * BUFFER_BYTES;
        if (connection == NULL || (queued + 1) * BUFFER_BYTES > SPACE)
            continue;
        struct io_uring_sqe *entry = uring_entry(&ring, IORING_OP_RECV, connection->fd, (uint64_t)i);
        entry->addr = (uint64_t)(uintptr_t)at[i];
        entry->len = BUFFER_BYTES;
        entry->msg_flags = MSG_DONTWAIT;
        entry->flags = IOSQE_FIXED_FILE;
        queued++;
    }
    if (queued && !uring_enter(&ring, queued, true))
        die("io_uring_enter");
    while (uring_next(&ring, &completion))
        got[completion.user_data] = completion.res;
}

static void send_replies(struct work *work) {
    struct io_uring_cqe completion;
    if (shape == SENDS || shape == BATCHED) {
        queue_sends(work);
        if (work->reply_count && !uring_enter(&ring, 0, true))
            die("io_uring_enter");
        while (uring_next(&ring, &completion))
            send_failed(&completion);
    } else {
        for (uint32_t i = 0; i < work->reply_count; i++) {
            send_whole(work->replies[i].connection->fd, work->replies[i].bytes, work->replies[i].length);
            work->replies[i].connection->reply = NULL;
        }
    }
    forget(work);
}

static void serve_epoll(void) {
    static struct work work;
    struct epoll_event events[READY];
    ssize_t got[READY];
    unsigned char *at[READY];
    for (;;) {
        if (outer >= 0)
            epoll_wait(outer, events, READY, -1);
        int ready = epoll_wait(inner, events, READY, outer >= 0 ? 0 : -1);
        (shape == BATCHED ? receive_batched : receive_each)(events, ready, got, at);
        for (int i = 0; i < ready; i++) {
            struct connection *connection = events[i].data.ptr;
            if (connection == NULL)
                accept_one();
            else if (got[i] > 0)
                take(&work, connection, at[i], (size_t)got[i], -1);
            else if (got[i] != -EAGAIN)
                work.gone[work.gone_count++] = connection;
        }
        send_replies(&work);
    }
}

/* ---- io_uring's shape ---- */

static void receive_from(struct connection *connection) {
    struct io_uring_sqe *entry = uring_entry(&ring, IORING_OP_RECV, connection->fd, (uint64_t)(uintptr_t)connection);
    entry->ioprio = IORING_RECV_MULTISHOT;
    entry->flags = IOSQE_FIXED_FILE | IOSQE_BUFFER_SELECT;
}

static void received(struct work *work, struct connection *connection, const struct io_uring_cqe *completion) {
    int32_t buffer = (int32_t)(completion->flags >> IORING_CQE_BUFFER_SHIFT);
    if (completion->res > 0)
        take(work, connection, buffers.bytes + (size_t)buffer * BUFFER_BYTES, (size_t)completion->res, buffer);
    if (completion->flags & IORING_CQE_F_MORE)
        return;
    if (completion->res > 0 || completion->res == -ENOBUFS)
        receive_from(connection);
    else
        work->gone[work->gone_count++] = connection;
}

static void accept_more(void) {
    struct io_uring_sqe *entry = uring_entry(&ring, IORING_OP_ACCEPT, listener, 0);
    entry->ioprio = IORING_ACCEPT_MULTISHOT;
    entry->accept_flags = SOCK_CLOEXEC;
}

static void accepted(const struct io_uring_cqe *completion) {
    if (completion->res >= 0)
        receive_from(welcome(completion->res));
    if (!(completion->flags & IORING_CQE_F_MORE))
        accept_more();
}

static void attend(struct work *work) {
    struct io_uring_cqe completion;
    while (work->gone_count < READY && uring_next(&ring, &completion)) {
        if (completion.user_data & 1)
            send_failed(&completion);
        else if (completion.user_data)
            received(work, (struct connection *)(uintptr_t)completion.user_data, &completion);
        else
            accepted(&completion);
    }
}

static void serve_ring(void) {
    static struct work rounds[2];
    accept_more();
    for (unsigned round = 0;; round ^= 1) {
        queue_sends(&rounds[round ^ 1]);
        if (!uring_enter(&ring, 1, true))
            die("io_uring_enter");
        attend(&rounds[round]);
        forget(&rounds[round ^ 1]);
        uring_publish(&buffers);
    }
}

/* ---- life ---- */

static int listen_on_loopback(void) {
    int socket_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    if (socket_fd < 0 || bind(socket_fd, (struct sockaddr *)&at, size) < 0 || listen(socket_fd, 1024) < 0 ||
        getsockname(socket_fd, (struct sockaddr *)&at, &size) < 0)
        die("listen");
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    return socket_fd;
}

static void open_ring(void) {
    struct io_uring_rsrc_register files = {.nr = FILES, .flags = IORING_RSRC_REGISTER_SPARSE};
    if (!uring_open(&ring, ENTRIES, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN) ||
        !uring_register(&ring, IORING_REGISTER_FILES2, &files, sizeof files) || !uring_open_buffers(&ring, &buffers, BUFFERS, BUFFER_BYTES))
        die("io_uring");
}

static int epoll_of(int fd) {
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll");
    return epoll;
}

int main(int argc, char **argv) {
    const char *wanted = argc == 2 || argc == 3 ? argv[1] : "";
    bool checking = strcmp(wanted, "check") == 0;
    while (shape < SHAPES && strcmp(wanted, names[shape]) != 0)
        shape++;
    if (shape == SHAPES && !checking) {
        fprintf(stderr, "usage: uring_echo check|epoll|epoll-nested|sends|batched|ring [nanoseconds]\n");
        return 2;
    }
    work_ns = argc == 3 ? strtoull(argv[2], NULL, 10) : 0;
    if (shape >= SENDS)
        open_ring();
    if (checking)
        return 0;
    listener = listen_on_loopback();
    if (shape != RING)
        inner = epoll_of(listener);
    if (shape != EPOLL && shape != RING)
        outer = epoll_of(inner);
    (shape == RING ? serve_ring : serve_epoll)();
}
