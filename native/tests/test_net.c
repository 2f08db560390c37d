/* Reactors against each other, and against peers that misbehave, over real sockets. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lock/registry.h"
#include "net/reactor.h"
#include "tests/check.h"

#define MIB (1ull << 20)

/* ---- what the tests are made of ---- */

static struct zc_map *new_map(uint64_t budget) {
    struct zc_map_options options = {.budget = budget, .retain = 16 * MIB};
    struct zc_map *map;
    CHECK(zc_map_create(zc_strategy_find("per-region"), &options, &map) == 0);
    return map;
}

static struct zc_reactor *new_reactor(struct zc_map *map, struct zc_reactor_options options) {
    struct zc_reactor *reactor;
    if (!options.place_from)
        options.place_from = 32768;
    if (!options.map_from)
        options.map_from = options.place_from;
    if (!options.header_limit)
        options.header_limit = 65536;
    if (!options.payload_limit)
        options.payload_limit = 64 * MIB;
    if (!options.outbound_limit)
        options.outbound_limit = 1 * MIB;
    CHECK(zc_reactor_create(map, &options, &reactor) == 0);
    return reactor;
}

/* A connected pair over loopback: [0] is the side that accepted, at this address. */
static void connect_tcp_at(in_addr_t at, int fds[2]) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(at)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 1) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    fds[1] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(fds[1], (struct sockaddr *)&address, size) == 0);
    fds[0] = accept(listener, NULL, NULL);
    CHECK(fds[0] >= 0);
    close(listener);
}

static void connect_tcp(int fds[2]) {
    connect_tcp_at(INADDR_LOOPBACK, fds);
}

static uint64_t put_frame(unsigned char *at, struct zc_frame frame, const void *header, const void *payload) {
    zc_frame_encode(&frame, at);
    if (header)
        memcpy(at + ZC_FRAME_SIZE, header, frame.header_length);
    if (payload)
        memcpy(at + ZC_FRAME_SIZE + frame.header_length, payload, frame.payload_length);
    return ZC_FRAME_SIZE + (header ? frame.header_length : 0) + (payload ? frame.payload_length : 0);
}

static void submit(struct zc_reactor *reactor, uint64_t connection, struct zc_frame frame, const void *header, const void *payload) {
    unsigned char record[ZC_RECORD_SIZE + 70000] = {0};
    uint32_t length = (uint32_t)put_frame(record + ZC_RECORD_SIZE, frame, header, payload);
    memcpy(record, &connection, 8);
    memcpy(record + 8, &length, 4);
    CHECK(zc_reactor_submit(reactor, record, ZC_RECORD_SIZE + length) == 0);
}

static const struct zc_frame hello = {.kind = ZC_HELLO};

/* Polls until an event of the kind comes, which is copied with its batch; other events' leases are released. Counts them in `passed`. */
struct seen {
    struct zc_event event;
    unsigned char header[64];
    unsigned passed;
};

static bool wait_for(struct zc_reactor *reactor, struct zc_reactor *other, uint8_t kind, struct seen *seen) {
    seen->passed = 0;
    for (int turns = 0; turns < 20000; turns++) {
        int64_t n = zc_reactor_poll(reactor, 0);
        CHECK(n >= 0);
        const struct zc_batch *batch = zc_reactor_batch(reactor, (uint32_t)(n >> 32));
        bool found = false;
        for (uint32_t i = 0; i < (uint32_t)n; i++) {
            const struct zc_event *event = &batch->events[i];
            if (event->kind == kind && !found) {
                found = true;
                seen->event = *event;
                memcpy(seen->header, batch->data + event->header, event->header_length < 64 ? event->header_length : 64);
            } else {
                seen->passed += !found;
                if (event->lease)
                    zc_lease_release((struct zc_lease *)(uintptr_t)event->lease);
            }
        }
        if (found)
            return true;
        if (other)
            CHECK(zc_reactor_poll(other, 0) >= 0);
        struct pollfd ready[] = {{zc_reactor_fd(reactor), POLLIN, 0}, {other ? zc_reactor_fd(other) : -1, POLLIN, 0}};
        poll(ready, 2, 1);
    }
    return false;
}

static void release(const struct zc_event *event) {
    zc_lease_release((struct zc_lease *)(uintptr_t)event->lease);
}

/* ---- between reactors ---- */

static void fill(unsigned char *at, uint64_t length, uint64_t seed) {
    for (uint64_t i = 0; i < length; i++)
        at[i] = (unsigned char)((i + seed) * 2654435761u >> 13);
}

static bool same(const unsigned char *at, uint64_t length, uint64_t seed) {
    for (uint64_t i = 0; i < length; i++) {
        if (at[i] != (unsigned char)((i + seed) * 2654435761u >> 13))
            return false;
    }
    return true;
}

static const uint64_t sizes[] = {32768, 32769, 40960, 65536, 100001, MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 4097, 16 * MIB, 1};

/* One payload of every size, from two buffers that split it oddly; every byte checked. Returns the server's statistics. */
static struct zc_reactor_stats exchange(uint32_t receive, uint32_t threaded) {
    struct zc_map *map = new_map(256 * MIB);
    struct zc_reactor *server = new_reactor(map, (struct zc_reactor_options){.receive = receive, .threaded = threaded});
    struct zc_reactor *client = new_reactor(map, (struct zc_reactor_options){.receive = ZC_RECEIVE_COPY});
    bool mapping = receive != ZC_RECEIVE_COPY;
    int fds[2];
    connect_tcp(fds);
    int64_t s = zc_reactor_add(server, fds[0], mapping), c = zc_reactor_add(client, fds[1], 0);
    CHECK(s > 0 && c > 0);
    submit(client, (uint64_t)c, hello, NULL, NULL);
    struct zc_peer peer = {.chunk = ZC_CHUNK_BYTES, .map_from = mapping ? 32768 : 0};
    CHECK(zc_reactor_set_peer(client, (uint64_t)c, &peer) == 0);
    unsigned char *source = malloc(16 * MIB), head[ZC_FRAME_SIZE + 5];
    for (uint32_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint64_t length = sizes[i], first = length / 3;
        fill(source, length, i);
        struct zc_frame frame = {.kind = ZC_REQUEST, .method = 7, .stream = i + 1, .header_length = 5, .payload_length = length};
        put_frame(head, frame, "abcde", NULL);
        struct zc_buffer buffers[] = {{source, first}, {source + first, length - first}};
        int sent = zc_reactor_send(client, (uint64_t)c, head, sizeof head, buffers, 2, 1000 + i);
        CHECK(sent == 0 || sent == 1);
        struct seen seen;
        CHECK(wait_for(server, client, ZC_REQUEST, &seen));
        CHECK(seen.event.connection == (uint64_t)s && seen.event.stream == i + 1 && seen.event.method == 7);
        CHECK(seen.event.payload_length == length && seen.event.header_length == 5 && memcmp(seen.header, "abcde", 5) == 0);
        if (length >= 32768) {
            CHECK(seen.event.lease && same((const unsigned char *)(uintptr_t)seen.event.payload, length, i));
            release(&seen.event);
        } else {
            CHECK(!seen.event.lease);
        }
    }
    struct zc_reactor_stats stats, sent;
    zc_reactor_stats(client, &sent);
    CHECK((sent.sends_zerocopy > 0) == mapping);
    struct seen seen;
    CHECK(zc_reactor_disconnect(client, (uint64_t)c, 1) == 0);
    CHECK(wait_for(server, NULL, ZC_EVENT_CLOSED, &seen) && seen.event.method == ZC_CLOSE_EOF);
    CHECK(wait_for(client, NULL, ZC_EVENT_CLOSED, &seen) && seen.event.method == ZC_CLOSE_LOCAL);
    zc_reactor_stats(server, &stats);
    CHECK(stats.connections == 0);
    zc_reactor_destroy(client);
    zc_reactor_destroy(server);
    struct zc_map_stats left;
    zc_map_stats(map, &left);
    CHECK(left.leases == 0);
    zc_map_drop(map);
    free(source);
    return stats;
}

static void payloads_arrive_whole(void) {
    for (uint32_t threaded = 0; threaded <= 1; threaded++) {
        struct zc_reactor_stats copied = exchange(ZC_RECEIVE_COPY, threaded), mapped = exchange(ZC_RECEIVE_ZEROCOPY, threaded);
        CHECK(copied.payload_bytes_mapped == 0 && copied.fallbacks[ZC_FALLBACK_POLICY] == 11);
        double share = (double)mapped.payload_bytes_mapped / (double)(mapped.payload_bytes_mapped + mapped.payload_bytes_copied);
        printf("threaded %u: %.3f of the bytes mapped, %llu payloads moved\n", threaded, share,
               (unsigned long long)mapped.fallbacks[ZC_FALLBACK_UNMAPPABLE]);
        CHECK(share >= 0.99);
        struct zc_reactor_stats learned = exchange(ZC_RECEIVE_AUTO, threaded);
        CHECK(learned.payload_bytes_mapped > 0);
    }
}

/* Connects the client to the server and greets it; where the server maps, its hello is taken as read. Returns the client's connection. */
static uint64_t join(struct zc_reactor *server, struct zc_reactor *client, bool mapping) {
    int fds[2];
    connect_tcp(fds);
    CHECK(zc_reactor_add(server, fds[0], mapping) > 0);
    int64_t c = zc_reactor_add(client, fds[1], 0);
    CHECK(c > 0);
    submit(client, (uint64_t)c, hello, NULL, NULL);
    if (mapping)
        CHECK(zc_reactor_set_peer(client, (uint64_t)c, &(struct zc_peer){ZC_CHUNK_BYTES, 4096}) == 0);
    return (uint64_t)c;
}

static void small_frames_pass_between_chunks(void) {
    struct zc_map *map = new_map(64 * MIB);
    struct zc_reactor *server = new_reactor(map, (struct zc_reactor_options){0}),
                      *client = new_reactor(map, (struct zc_reactor_options){0});
    uint64_t c = join(server, client, false);
    unsigned char *source = malloc(16 * MIB), head[ZC_FRAME_SIZE];
    fill(source, 16 * MIB, 3);
    for (uint32_t stream = 1; stream <= 2; stream++) {
        put_frame(head, (struct zc_frame){.kind = ZC_REQUEST, .stream = stream, .payload_length = 16 * MIB}, NULL, NULL);
        struct zc_buffer buffer = {source, 16 * MIB};
        CHECK(zc_reactor_send(client, c, head, sizeof head, &buffer, 1, stream) == 0);
    }
    submit(client, c, (struct zc_frame){.kind = ZC_PING, .header_length = 4}, "late", NULL);
    struct seen seen;
    CHECK(wait_for(server, client, ZC_PING, &seen) && seen.passed == 1); /* the hello, but neither payload */
    for (uint32_t stream = 1; stream <= 2; stream++) {
        CHECK(wait_for(server, client, ZC_REQUEST, &seen) && seen.event.stream == stream);
        CHECK(same((const unsigned char *)(uintptr_t)seen.event.payload, 16 * MIB, 3));
        release(&seen.event);
    }
    zc_reactor_destroy(client);
    zc_reactor_destroy(server);
    zc_map_drop(map);
    free(source);
}

static void send_payload(struct zc_reactor *client, uint64_t connection, uint32_t stream, const unsigned char *source, uint64_t length) {
    unsigned char head[ZC_FRAME_SIZE];
    struct zc_buffer buffer = {source, length};
    put_frame(head, (struct zc_frame){.kind = ZC_DATA, .stream = stream, .payload_length = length}, NULL, NULL);
    CHECK(zc_reactor_send(client, connection, head, sizeof head, &buffer, 1, stream) == 0);
}

struct arrivals {
    uint32_t streams[64], data, sent;
};

/* Polls once; notes the payloads that arrived, in order, having looked at every byte, and the tokens that came back. */
static void collect(struct zc_reactor *reactor, struct arrivals *arrivals) {
    int64_t n = zc_reactor_poll(reactor, 0);
    CHECK(n >= 0);
    const struct zc_batch *batch = zc_reactor_batch(reactor, (uint32_t)(n >> 32));
    for (uint32_t i = 0; i < (uint32_t)n; i++) {
        const struct zc_event *event = &batch->events[i];
        arrivals->sent += event->kind == ZC_EVENT_SENT;
        if (event->kind != ZC_DATA)
            continue;
        CHECK(
            same(event->lease ? (const unsigned char *)(uintptr_t)event->payload : batch->data + event->payload, event->payload_length, 7));
        arrivals->streams[arrivals->data++] = event->stream;
        if (event->lease)
            release(event);
    }
}

/* Payloads of one chunk at most do not wait for a long one that is being sent, unless they are padded; nor do long ones wait for ever. */
static void short_payloads_pass_between_chunks(bool mapping) {
    enum { SHORT = 24, LONG = 24 * 1024 * 1024 };
    struct zc_map *map = new_map(256 * MIB);
    struct zc_reactor_options options = {.receive = mapping ? ZC_RECEIVE_ZEROCOPY : ZC_RECEIVE_COPY};
    struct zc_reactor *server = new_reactor(map, options), *client = new_reactor(map, options);
    uint64_t c = join(server, client, mapping);
    unsigned char *source = malloc(LONG);
    fill(source, LONG, 7);
    send_payload(client, c, 1, source, LONG);
    send_payload(client, c, 2, source, LONG);
    for (uint32_t stream = 3; stream < 3 + SHORT; stream++)
        send_payload(client, c, stream, source, stream % 3 ? 1000 + stream : MIB); /* those of 1 MiB are padded where pages are mapped */
    send_payload(client, c, 99, source, 2 * MIB);
    struct arrivals arrived = {0}, returned = {0};
    for (int turns = 0; arrived.data < SHORT + 3 && turns < 20000; turns++) {
        collect(server, &arrived);
        collect(client, &returned);
    }
    CHECK(arrived.data == SHORT + 3 && arrived.streams[SHORT + 2] == 99);
    uint32_t before_first = 0, before_second = 0;
    while (arrived.streams[before_first] != 1)
        before_first++;
    while (arrived.streams[before_second] != 2)
        before_second++;
    CHECK(before_first == (mapping ? SHORT * 2 / 3 : SHORT) && before_second == before_first + 1);
    for (int turns = 0; returned.sent < SHORT + 3 && turns < 2000; turns++) {
        collect(client, &returned);
        poll(NULL, 0, 1);
    }
    CHECK(returned.sent == SHORT + 3); /* every token came back: none was free at once */
    zc_reactor_destroy(client);
    zc_reactor_destroy(server);
    zc_map_drop(map);
    free(source);
}

/* ---- many connections ---- */

enum { UPLOADS = 8, UPLOAD = 8 * 1024 * 1024 };

/* Peers that keep their sockets full of a large request each, and one beside them. */
struct crowd {
    struct zc_map *map;
    struct zc_reactor *server;
    int uploads[UPLOADS], accepted[UPLOADS + 1], small; /* accepted: the server's ends */
    uint32_t joined;
    uint64_t done[UPLOADS]; /* bytes handed to the socket */
    unsigned char *request; /* the whole of what an upload sends */
    uint64_t length;
};

/* A peer without a reactor, which has said hello: its end. */
static int join_raw(struct zc_reactor *server, uint64_t *connection, int *accepted) {
    int fds[2];
    unsigned char opening[ZC_PREFACE_SIZE + ZC_FRAME_SIZE];
    connect_tcp(fds);
    int64_t id = zc_reactor_add(server, fds[0], 0);
    CHECK(id > 0);
    *connection = (uint64_t)id;
    *accepted = fds[0];
    memcpy(opening, ZC_PREFACE, ZC_PREFACE_SIZE);
    put_frame(opening + ZC_PREFACE_SIZE, hello, NULL, NULL);
    CHECK(send(fds[1], opening, sizeof opening, 0) == sizeof opening);
    CHECK(fcntl(fds[1], F_SETFL, O_NONBLOCK) == 0);
    return fds[1];
}

static int crowd_join(struct crowd *crowd) {
    uint64_t connection;
    return join_raw(crowd->server, &connection, &crowd->accepted[crowd->joined++]);
}

static void begin_crowd(struct crowd *crowd) {
    *crowd = (struct crowd){.map = new_map(256 * MIB)};
    crowd->server = new_reactor(crowd->map, (struct zc_reactor_options){.receive = ZC_RECEIVE_COPY});
    crowd->request = malloc(UPLOAD + 16 * ZC_FRAME_SIZE);
    for (uint64_t at = 0; at < UPLOAD; at += ZC_CHUNK_BYTES) {
        struct zc_frame frame = {.kind = at ? ZC_CHUNK : ZC_REQUEST, .stream = 1, .payload_length = at ? ZC_CHUNK_BYTES : UPLOAD};
        crowd->length += put_frame(crowd->request + crowd->length, frame, NULL, NULL) + ZC_CHUNK_BYTES;
    }
    for (int i = 0; i < UPLOADS; i++)
        crowd->uploads[i] = crowd_join(crowd);
    crowd->small = crowd_join(crowd);
}

static void fill_sockets(struct crowd *crowd) {
    for (int i = 0; i < UPLOADS; i++) {
        ssize_t n = send(crowd->uploads[i], crowd->request + crowd->done[i], crowd->length - crowd->done[i], 0);
        crowd->done[i] += n > 0 ? (uint64_t)n : 0;
    }
}

/* Bytes that the server has taken of the upload of which it has taken least. */
static uint64_t least_taken(const struct crowd *crowd) {
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < UPLOADS; i++) {
        int unsent, unread;
        CHECK(ioctl(crowd->uploads[i], SIOCOUTQ, &unsent) == 0 && ioctl(crowd->accepted[i], FIONREAD, &unread) == 0);
        uint64_t taken = crowd->done[i] - (uint64_t)unsent - (uint64_t)unread;
        least = taken < least ? taken : least;
    }
    return least;
}

static void end_crowd(struct crowd *crowd) {
    for (int i = 0; i < UPLOADS; i++)
        close(crowd->uploads[i]);
    close(crowd->small);
    zc_reactor_destroy(crowd->server);
    zc_map_drop(crowd->map);
    free(crowd->request);
}

/* What a small frame waits for is one round, whose share of large payloads is bounded: however many are under way, and each of them gets
 * on. It is in the batch before what it would have to wait for. */
static void small_frames_pass_large_payloads_of_others(void) {
    struct crowd crowd;
    begin_crowd(&crowd);
    unsigned char ping[ZC_FRAME_SIZE];
    put_frame(ping, (struct zc_frame){.kind = ZC_PING}, NULL, NULL);
    uint32_t finished = 0, beside = 0;
    uint64_t most = 0, least = 0;
    for (int round = 0; finished < UPLOADS && round < 5000; round++) {
        struct zc_reactor_stats before, after;
        fill_sockets(&crowd);
        CHECK(send(crowd.small, ping, sizeof ping, 0) == sizeof ping);
        zc_reactor_stats(crowd.server, &before);
        int64_t n = zc_reactor_poll(crowd.server, 0);
        zc_reactor_stats(crowd.server, &after);
        most = after.bytes_in - before.bytes_in > most ? after.bytes_in - before.bytes_in : most;
        const struct zc_batch *batch = zc_reactor_batch(crowd.server, 0);
        bool pinged = false;
        for (int64_t i = 0; i < n; i++) {
            pinged |= batch->events[i].kind == ZC_PING;
            if (batch->events[i].kind != ZC_REQUEST)
                continue;
            release(&batch->events[i]);
            beside += pinged;
            if (!finished++)
                least = least_taken(&crowd);
        }
        CHECK(pinged || round == 0);
    }
    printf("at most %.2f MiB in a round; when the first upload was whole, each had got through %.2f MiB\n", (double)most / MIB,
           (double)least / MIB);
    CHECK(finished == UPLOADS && beside == UPLOADS);
    CHECK(most <= 3 * ZC_CHUNK_BYTES + UPLOADS * 65536); /* a turn each at first, in which the payload begins */
    CHECK(least >= UPLOAD / 2);
    end_crowd(&crowd);
}

static void *drain_all(void *argument) {
    struct pollfd *ends = argument;
    static char sink[MIB];
    for (uint32_t open = UPLOADS; open && poll(ends, UPLOADS, 10000) > 0;) {
        for (int i = 0; i < UPLOADS; i++) {
            if (ends[i].revents && recv(ends[i].fd, sink, sizeof sink, 0) <= 0) {
                close(ends[i].fd);
                ends[i].fd = -1;
                open--;
            }
        }
    }
    return NULL;
}

static uint64_t bytes_out(struct zc_reactor *reactor) {
    struct zc_reactor_stats stats;
    zc_reactor_stats(reactor, &stats);
    return stats.bytes_out;
}

/* The same the other way: peers that read as fast as they are sent to never fill a socket, and still one round sends a bounded share. */
static void what_is_sent_in_a_round_is_bounded(void) {
    struct zc_map *map = new_map(64 * MIB);
    struct zc_reactor *client = new_reactor(map, (struct zc_reactor_options){0});
    uint64_t connection, length = 4 * UPLOAD, most = 0;
    int accepted, small = join_raw(client, &connection, &accepted);
    unsigned char ping[ZC_FRAME_SIZE], head[ZC_FRAME_SIZE], *source = calloc(1, length);
    put_frame(ping, (struct zc_frame){.kind = ZC_PING}, NULL, NULL);
    put_frame(head, (struct zc_frame){.kind = ZC_REQUEST, .payload_length = length}, NULL, NULL);
    int64_t uploads[UPLOADS];
    struct pollfd ends[UPLOADS];
    for (int i = 0; i < UPLOADS; i++) {
        int fds[2];
        connect_tcp(fds);
        uploads[i] = zc_reactor_add(client, fds[1], 0);
        ends[i] = (struct pollfd){fds[0], POLLIN, 0};
    }
    pthread_t reader;
    CHECK(pthread_create(&reader, NULL, drain_all, ends) == 0);
    for (uint32_t i = 0; i < UPLOADS; i++) {
        uint64_t before = bytes_out(client);
        CHECK(zc_reactor_send(client, (uint64_t)uploads[i], head, sizeof head, &(struct zc_buffer){source, length}, 1, i) == 0);
        CHECK(bytes_out(client) - before < 2 * ZC_CHUNK_BYTES);
    }
    uint32_t sent = 0;
    for (int round = 0; sent < UPLOADS && round < 20000; round++) {
        CHECK(send(small, ping, sizeof ping, 0) == sizeof ping); /* with something to tell, no second round follows at once */
        uint64_t before = bytes_out(client), n = (uint64_t)zc_reactor_poll(client, 10), out = bytes_out(client) - before;
        most = out > most ? out : most;
        for (uint64_t i = 0; i < n; i++)
            sent += zc_reactor_batch(client, 0)->events[i].kind == ZC_EVENT_SENT;
    }
    printf("at most %.2f MiB sent in a round\n", (double)most / MIB);
    CHECK(sent == UPLOADS && most < 3 * ZC_CHUNK_BYTES);
    zc_reactor_destroy(client);
    pthread_join(reader, NULL);
    close(small);
    zc_map_drop(map);
    free(source);
}

/* Where small frames fill every batch to the brim, large payloads have their turn in every other round, and nobody who is loud keeps those
 * behind him from theirs. */
static void nobody_starves_in_a_flood(void) {
    enum { LOUD = 16, PING = 32000 };
    static unsigned char flood[2 * PING];
    struct crowd crowd;
    begin_crowd(&crowd);
    int loud[LOUD], accepted;
    uint64_t connections[LOUD], at[LOUD] = {0}, pings[LOUD] = {0}, least = UINT64_MAX, most = 0;
    uint32_t finished = 0;
    for (int i = 0; i < 2; i++)
        put_frame(flood + i * PING, (struct zc_frame){.kind = ZC_PING, .header_length = PING - ZC_FRAME_SIZE}, NULL, NULL);
    for (int i = 0; i < LOUD; i++)
        loud[i] = join_raw(crowd.server, &connections[i], &accepted);
    for (int round = 0; finished < UPLOADS && round < 2000; round++) {
        fill_sockets(&crowd);
        for (int i = 0; i < LOUD; i++) {
            ssize_t n = send(loud[i], flood + at[i], sizeof flood - at[i], 0);
            at[i] = (at[i] + (n > 0 ? (uint64_t)n : 0)) % sizeof flood;
        }
        int64_t n = zc_reactor_poll(crowd.server, 0);
        for (int64_t e = 0; e < n; e++) {
            const struct zc_event *event = &zc_reactor_batch(crowd.server, 0)->events[e];
            if (event->kind == ZC_REQUEST) {
                release(event);
                finished++;
            }
            for (int i = 0; i < LOUD; i++)
                pings[i] += event->kind == ZC_PING && event->connection == connections[i];
        }
    }
    for (int i = 0; i < LOUD; i++) {
        least = pings[i] < least ? pings[i] : least;
        most = pings[i] > most ? pings[i] : most;
        close(loud[i]);
    }
    printf("beside %u uploads: %llu to %llu of each who was loud\n", finished, (unsigned long long)least, (unsigned long long)most);
    CHECK(finished == UPLOADS && least >= most / 2);
    end_crowd(&crowd);
}

/* Where there is nothing else, one poll goes on for more than a round, but not for ever. */
static void rounds_follow_each_other_while_nothing_is_small(void) {
    struct crowd crowd;
    begin_crowd(&crowd);
    uint64_t most = 0;
    for (uint32_t finished = 0, turn = 0; finished < UPLOADS && turn < 5000; turn++) {
        struct zc_reactor_stats before, after;
        fill_sockets(&crowd);
        zc_reactor_stats(crowd.server, &before);
        int64_t n = zc_reactor_poll(crowd.server, 0);
        zc_reactor_stats(crowd.server, &after);
        most = after.bytes_in - before.bytes_in > most ? after.bytes_in - before.bytes_in : most;
        for (int64_t i = 0; i < n; i++) {
            const struct zc_event *event = &zc_reactor_batch(crowd.server, 0)->events[i];
            if (event->kind == ZC_REQUEST) {
                release(event);
                finished++;
            }
        }
    }
    printf("at most %.2f MiB in a poll\n", (double)most / MIB);
    CHECK(most > 3 * ZC_CHUNK_BYTES && most <= 7 * ZC_CHUNK_BYTES);
    end_crowd(&crowd);
}

static _Atomic unsigned yields;
static int sends_on_yield = -1; /* what is left of `payload_left` */
static uint64_t payload_left;

int sched_yield(void) { /* instead of libc's */
    static const unsigned char payload[64 * 1024];
    yields++;
    if (sends_on_yield >= 0 && payload_left) {
        CHECK(send(sends_on_yield, payload, payload_left, 0) == (ssize_t)payload_left);
        payload_left = 0;
    }
    return 0;
}

/* Who was woken by what is submitted gets the CPU before the next part of a large payload is copied; without one there is no need. */
static void what_is_submitted_beside_large_payloads_yields(void) {
    struct zc_map *map = new_map(64 * MIB);
    struct zc_reactor *server = new_reactor(map, (struct zc_reactor_options){.receive = ZC_RECEIVE_COPY});
    uint64_t small, large;
    int accepted[2], ends[2] = {join_raw(server, &small, &accepted[0]), join_raw(server, &large, &accepted[1])};
    static unsigned char request[32 * 1024]; /* and more is announced */
    unsigned char ping[ZC_FRAME_SIZE];
    put_frame(ping, (struct zc_frame){.kind = ZC_PING}, NULL, NULL);
    put_frame(request, (struct zc_frame){.kind = ZC_REQUEST, .payload_length = 8 * MIB}, NULL, NULL);
    for (uint32_t greeted = 0; greeted < 2;)
        greeted += (uint32_t)zc_reactor_poll(server, 1000);
    yields = 0;
    submit(server, small, (struct zc_frame){.kind = ZC_PING}, NULL, NULL);
    CHECK_EQUAL(yields, 0);
    CHECK(send(ends[1], request, sizeof request, 0) == sizeof request);
    CHECK(send(ends[0], ping, sizeof ping, 0) == sizeof ping);
    for (int i = 0; i < 2; i++) /* one round sees both */
        CHECK(poll(&(struct pollfd){accepted[i], POLLIN, 0}, 1, 1000) == 1);
    CHECK((uint32_t)zc_reactor_poll(server, 1000) == 1);
    submit(server, small, (struct zc_frame){.kind = ZC_PING}, NULL, NULL);
    CHECK_EQUAL(yields, 1);
    CHECK(zc_reactor_poll(server, 0) == 0); /* nothing more comes */
    submit(server, small, (struct zc_frame){.kind = ZC_PING}, NULL, NULL);
    CHECK_EQUAL(yields, 1);
    close(ends[0]);
    close(ends[1]);
    zc_reactor_destroy(server);
    zc_map_drop(map);
}

/* Announces a payload of which 64 KiB are missing, and polls once, while a yield of the reactor sends them if `on_yield`. Events of that poll. */
static uint32_t poll_before_the_end(struct zc_reactor *server, int end, int accepted, bool on_yield) {
    static unsigned char request[ZC_FRAME_SIZE + 36 * 1024];
    payload_left = 64 * 1024;
    put_frame(request, (struct zc_frame){.kind = ZC_REQUEST, .payload_length = sizeof request - ZC_FRAME_SIZE + payload_left}, NULL, NULL);
    CHECK(send(end, request, sizeof request, 0) == sizeof request);
    CHECK(poll(&(struct pollfd){accepted, POLLIN, 0}, 1, 1000) == 1);
    sends_on_yield = on_yield ? end : -1;
    uint32_t events = (uint32_t)zc_reactor_poll(server, 0);
    sends_on_yield = end;
    return events;
}

static void the_end_of_a_payload_is_waited_for_awake(void) {
    struct zc_map *map = new_map(64 * MIB);
    struct zc_reactor *server = new_reactor(map, (struct zc_reactor_options){.receive = ZC_RECEIVE_COPY});
    uint64_t connection;
    struct seen seen;
    int accepted, end = join_raw(server, &connection, &accepted);
    CHECK(wait_for(server, NULL, ZC_HELLO, &seen));
    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(poll_before_the_end(server, end, accepted, true), 1);
        const struct zc_event *event = &zc_reactor_batch(server, 0)->events[0];
        CHECK(event->kind == ZC_REQUEST && event->payload_length == 100 * 1024 && event->lease);
        release(event);
    }
    CHECK_EQUAL(poll_before_the_end(server, end, accepted, false), 0); /* it does not come … */
    sched_yield();
    CHECK(wait_for(server, NULL, ZC_REQUEST, &seen));
    release(&seen.event);
    unsigned before = yields; /* … so the next one is not waited for */
    CHECK_EQUAL(poll_before_the_end(server, end, accepted, true), 0);
    CHECK_EQUAL(yields, before);
    sends_on_yield = -1;
    close(end);
    zc_reactor_destroy(server);
    zc_map_drop(map);
}

/* Requests with headers and payloads, large and small in turn, back to back, so that whatever is received behind one belongs to the next.
 * Those that may pass others keep their order among themselves, and so do the others. */
static void requests_follow_each_other(uint32_t receive, bool mapping) {
    enum { REQUESTS = 60 };
    struct zc_map *map = new_map(256 * MIB);
    struct zc_reactor *server = new_reactor(map, (struct zc_reactor_options){.receive = receive});
    struct zc_reactor *client = new_reactor(map, (struct zc_reactor_options){0});
    uint64_t c = join(server, client, mapping);
    unsigned char *source = malloc(2 * MIB), head[ZC_FRAME_SIZE + 40], header[40];
    fill(source, 2 * MIB, 11);
    uint64_t lengths[REQUESTS];
    for (uint32_t i = 0; i < REQUESTS; i++) {
        lengths[i] = i % 3 == 0 ? 33000 + i * 977 : i % 3 == 1 ? 100 + i : MIB + i * 4099;
        uint32_t header_length = 1 + i % 40;
        memset(header, (int)i, sizeof header);
        struct zc_frame frame = {.kind = ZC_REQUEST, .stream = i + 1, .header_length = header_length, .payload_length = lengths[i]};
        put_frame(head, frame, header, NULL);
        struct zc_buffer buffer = {source + i, lengths[i]};
        CHECK(zc_reactor_send(client, c, head, ZC_FRAME_SIZE + header_length, &buffer, 1, i) >= 0);
    }
    uint32_t came = 0, next[2] = {0};
    for (int turns = 0; came < REQUESTS && turns < 20000; turns++) {
        int64_t n = zc_reactor_poll(server, 1);
        const struct zc_batch *batch = zc_reactor_batch(server, 0);
        for (int64_t e = 0; e < n; e++) {
            const struct zc_event *event = &batch->events[e];
            CHECK(event->kind == ZC_REQUEST || event->kind == ZC_HELLO);
            if (event->kind == ZC_HELLO)
                continue;
            uint32_t i = event->stream - 1;
            bool passes = lengths[i] <= MIB && !(mapping && lengths[i] >= 4096);
            CHECK(i >= next[passes] && event->payload_length == lengths[i] && event->header_length == 1 + i % 40);
            next[passes] = i + 1;
            for (uint32_t k = 0; k < event->header_length; k++)
                CHECK(batch->data[event->header + k] == i);
            const unsigned char *payload = event->lease ? (const unsigned char *)(uintptr_t)event->payload : batch->data + event->payload;
            CHECK(memcmp(payload, source + i, lengths[i]) == 0);
            if (event->lease)
                release(event);
            came++;
        }
        CHECK(zc_reactor_poll(client, 0) >= 0);
    }
    CHECK_EQUAL(came, REQUESTS);
    zc_reactor_destroy(client);
    zc_reactor_destroy(server);
    zc_map_drop(map);
    free(source);
}

/* Reservations over the budget stop the reading, and only that. */
static void memory_runs_out_and_comes_back(void) {
    struct zc_map *map = new_map(4 * MIB), *elsewhere = new_map(4 * MIB);
    struct zc_reactor *server = new_reactor(map, (struct zc_reactor_options){.payload_limit = 2 * MIB});
    struct zc_reactor *client = new_reactor(elsewhere, (struct zc_reactor_options){0});
    uint64_t c = join(server, client, false);
    unsigned char *source = malloc(2 * MIB), head[ZC_FRAME_SIZE];
    fill(source, 2 * MIB, 9);
    for (uint32_t stream = 1; stream <= 6; stream++) {
        put_frame(head, (struct zc_frame){.kind = ZC_REQUEST, .stream = stream, .payload_length = 2 * MIB}, NULL, NULL);
        struct zc_buffer buffer = {source, 2 * MIB};
        CHECK(zc_reactor_send(client, c, head, sizeof head, &buffer, 1, stream) >= 0);
    }
    struct seen held[2], seen;
    CHECK(wait_for(server, client, ZC_REQUEST, &held[0]) && wait_for(server, client, ZC_REQUEST, &held[1]));
    struct zc_reactor_stats stats;
    for (int i = 0; i < 50; i++) {
        CHECK((uint32_t)zc_reactor_poll(server, 1) == 0);
        CHECK(zc_reactor_poll(client, 0) >= 0);
    }
    zc_reactor_stats(server, &stats);
    CHECK(stats.paused == 1 && stats.connections == 1);
    release(&held[0].event);
    release(&held[1].event);
    for (uint32_t stream = 3; stream <= 6; stream++) {
        CHECK(wait_for(server, client, ZC_REQUEST, &seen) && seen.event.stream == stream);
        CHECK(same((const unsigned char *)(uintptr_t)seen.event.payload, 2 * MIB, 9));
        release(&seen.event);
    }
    zc_reactor_stats(server, &stats);
    CHECK(stats.paused == 0);
    zc_reactor_destroy(client);
    zc_reactor_destroy(server);
    zc_map_drop(map);
    zc_map_drop(elsewhere);
    free(source);
}

static void a_lease_outlives_everything(void) {
    struct zc_map *map = new_map(64 * MIB);
    struct zc_reactor *server = new_reactor(map, (struct zc_reactor_options){.receive = ZC_RECEIVE_ZEROCOPY});
    struct zc_reactor *client = new_reactor(map, (struct zc_reactor_options){0});
    uint64_t c = join(server, client, true);
    unsigned char *source = malloc(MIB), head[ZC_FRAME_SIZE];
    fill(source, MIB, 5);
    put_frame(head, (struct zc_frame){.kind = ZC_REQUEST, .stream = 1, .payload_length = MIB}, NULL, NULL);
    CHECK(zc_reactor_send(client, c, head, sizeof head, &(struct zc_buffer){source, MIB}, 1, 1) >= 0);
    struct seen seen;
    CHECK(wait_for(server, client, ZC_REQUEST, &seen));
    zc_reactor_destroy(client);
    zc_reactor_destroy(server);
    zc_map_drop(map);
    CHECK(same((const unsigned char *)(uintptr_t)seen.event.payload, MIB, 5));
    release(&seen.event); /* the map ends here */
    free(source);
}

/* ---- against a hostile peer ---- */

struct hostile {
    struct zc_map *map;
    struct zc_reactor *server;
    uint64_t connection;
    int fd;
};

static struct hostile begin_hostile(struct zc_reactor_options options, bool mapping) {
    struct hostile h = {.map = new_map(64 * MIB)};
    int fds[2];
    h.server = new_reactor(h.map, options);
    connect_tcp(fds);
    h.connection = (uint64_t)zc_reactor_add(h.server, fds[0], mapping);
    h.fd = fds[1];
    return h;
}

static void end_hostile(struct hostile *h) {
    struct zc_map_stats left;
    close(h->fd);
    zc_reactor_destroy(h->server);
    zc_map_stats(h->map, &left);
    CHECK(left.leases == 0);
    zc_map_drop(h->map);
}

/* What a connection that sends these bytes is closed for. */
static void closed_for(enum zc_close reason, const void *bytes, uint64_t length, bool then_eof) {
    for (int one_by_one = 0; one_by_one <= 1; one_by_one++) {
        struct hostile h = begin_hostile((struct zc_reactor_options){.header_limit = 1024, .payload_limit = MIB}, false);
        for (uint64_t sent = 0; sent < length;) {
            ssize_t n = send(h.fd, (const char *)bytes + sent, one_by_one ? 1 : length - sent, MSG_NOSIGNAL);
            if (n < 0)
                break; /* closed already */
            sent += (uint64_t)n;
            if (one_by_one && zc_reactor_poll(h.server, 0) > 0)
                break; /* nothing but the end is an event here */
        }
        if (then_eof)
            shutdown(h.fd, SHUT_WR);
        struct seen seen;
        if (!one_by_one) {
            CHECK(wait_for(h.server, NULL, ZC_EVENT_CLOSED, &seen));
            if (seen.event.method != reason)
                printf("closed for %d, not %d\n", seen.event.method, reason);
            CHECK(seen.event.method == reason && seen.event.connection == h.connection);
        }
        end_hostile(&h);
    }
}

static void illegal_bytes_close_with_a_reason(void) {
    unsigned char ok[8 + ZC_FRAME_SIZE], bad[2048];
    memcpy(ok, ZC_PREFACE, 8);
    put_frame(ok + 8, hello, NULL, NULL);
    closed_for(ZC_CLOSE_PREFACE, "GET / HTTP/1.1\r\n\r\n", 18, false);
    closed_for(ZC_CLOSE_PREFACE, "ZCRPC\r\n\x02", 8, false);
    closed_for(ZC_CLOSE_TRUNCATED, "ZCRP", 4, true);
    closed_for(ZC_CLOSE_EOF, "", 0, true);
    closed_for(ZC_CLOSE_EOF, ok, sizeof ok, true);
    closed_for(ZC_CLOSE_TRUNCATED, ok, sizeof ok - 1, true);

    const struct {
        enum zc_close reason;
        struct zc_frame frame;
    } after_hello[] = {
        {ZC_CLOSE_KIND, {.kind = 0}},
        {ZC_CLOSE_KIND, {.kind = ZC_KIND_END}},
        {ZC_CLOSE_KIND, {.kind = 255, .payload_length = UINT64_MAX}},
        {ZC_CLOSE_HELLO, {.kind = ZC_HELLO}},
        {ZC_CLOSE_HEADER, {.kind = ZC_REQUEST, .header_length = 1025}},
        {ZC_CLOSE_HEADER, {.kind = ZC_REQUEST, .header_length = UINT32_MAX}},
        {ZC_CLOSE_CHUNK, {.kind = ZC_CHUNK, .stream = 1, .payload_length = 10}},
        {ZC_CLOSE_PAYLOAD, {.kind = ZC_PING, .payload_length = 1}},
        {ZC_CLOSE_PAYLOAD, {.kind = ZC_ERROR, .payload_length = UINT64_MAX}},
    };
    for (size_t i = 0; i < sizeof after_hello / sizeof *after_hello; i++) {
        memcpy(bad, ok, sizeof ok);
        put_frame(bad + sizeof ok, after_hello[i].frame, NULL, NULL);
        closed_for(after_hello[i].reason, bad, sizeof ok + ZC_FRAME_SIZE, false);
    }
    memcpy(bad, ok, 8);
    put_frame(bad + 8, (struct zc_frame){.kind = ZC_PING}, NULL, NULL);
    closed_for(ZC_CLOSE_HELLO, bad, 8 + ZC_FRAME_SIZE, false);

    memcpy(bad, ok, sizeof ok);
    put_frame(bad + sizeof ok, (struct zc_frame){.kind = ZC_REQUEST, .stream = 1, .payload_length = 100000}, NULL, NULL);
    closed_for(ZC_CLOSE_TRUNCATED, bad, sizeof ok + ZC_FRAME_SIZE + 50, true);
}

/* Chunk frames that continue the wrong thing. The payload is refused (over the limit), so no memory is claimed meanwhile. */
static void chunks_must_continue(void) {
    const struct zc_frame wrong[] = {
        {.kind = ZC_CHUNK, .stream = 2, .payload_length = 4096},               /* another stream */
        {.kind = ZC_CHUNK, .stream = 1, .payload_length = 0},                  /* nothing */
        {.kind = ZC_CHUNK, .stream = 1, .payload_length = ZC_CHUNK_BYTES + 1}, /* too long a chunk */
        {.kind = ZC_CHUNK, .stream = 1, .payload_length = 500001},             /* more than announced */
        {.kind = ZC_REQUEST, .stream = 3, .payload_length = ZC_CHUNK_BYTES + 1},
    };
    unsigned char *bytes = calloc(1, 2 * MIB);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct hostile h = begin_hostile((struct zc_reactor_options){.payload_limit = i % 2 ? MIB : 64 * MIB}, false);
        memcpy(bytes, ZC_PREFACE, 8);
        uint64_t n = 8 + put_frame(bytes + 8, hello, NULL, NULL);
        n +=
            put_frame(bytes + n, (struct zc_frame){.kind = ZC_REQUEST, .stream = 1, .payload_length = ZC_CHUNK_BYTES + 500000}, NULL, NULL);
        n += ZC_CHUNK_BYTES;
        n += put_frame(bytes + n, wrong[i], NULL, NULL);
        for (uint64_t sent = 0; sent < n;) {
            ssize_t k = send(h.fd, bytes + sent, n - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (k > 0)
                sent += (uint64_t)k;
            CHECK(k > 0 || errno == EAGAIN);
            if (sent < n)
                CHECK(zc_reactor_poll(h.server, 1) >= 0);
        }
        struct seen seen;
        CHECK(wait_for(h.server, NULL, ZC_EVENT_CLOSED, &seen));
        CHECK(seen.event.method == (i == 4 ? ZC_CLOSE_PAYLOAD : ZC_CLOSE_CHUNK));
        end_hostile(&h);
    }
    free(bytes);
}

/* A payload over the limit is refused; the connection goes on, and what was only claimed costs nothing. */
static void refused_payloads_leave_the_stream_intact(void) {
    struct hostile h = begin_hostile((struct zc_reactor_options){.payload_limit = 100000}, false);
    unsigned char *bytes = calloc(1, 300000);
    memcpy(bytes, ZC_PREFACE, 8);
    uint64_t n = 8 + put_frame(bytes + 8, hello, NULL, NULL);
    n += put_frame(bytes + n, (struct zc_frame){.kind = ZC_REQUEST, .stream = 5, .payload_length = 200000}, NULL, NULL);
    n += 200000;
    CHECK(send(h.fd, bytes, n, 0) == (ssize_t)n);
    struct seen seen;
    CHECK(wait_for(h.server, NULL, ZC_EVENT_REFUSED, &seen) && seen.event.stream == 5 && seen.event.payload_length == 200000);
    n = put_frame(bytes, (struct zc_frame){.kind = ZC_PING, .header_length = 2}, "hi", NULL);
    CHECK(send(h.fd, bytes, n, 0) == (ssize_t)n);
    CHECK(wait_for(h.server, NULL, ZC_PING, &seen) && seen.passed == 0 && memcmp(seen.header, "hi", 2) == 0);
    n = put_frame(bytes, (struct zc_frame){.kind = ZC_REQUEST, .stream = 6, .payload_length = UINT64_MAX}, NULL, NULL);
    CHECK(send(h.fd, bytes, n, 0) == (ssize_t)n);
    CHECK(wait_for(h.server, NULL, ZC_EVENT_REFUSED, &seen) && seen.event.stream == 6);
    struct zc_map_stats stats;
    zc_map_stats(h.map, &stats);
    CHECK(stats.leases == 0 && stats.arena_bytes == 0);
    free(bytes);
    end_hostile(&h);
}

static void who_stops_is_dropped(void) {
    unsigned char bytes[128];
    struct seen seen;
    memcpy(bytes, ZC_PREFACE, 8);
    uint64_t n = 8 + put_frame(bytes + 8, hello, NULL, NULL);
    n += put_frame(bytes + n, (struct zc_frame){.kind = ZC_REQUEST, .stream = 1, .payload_length = 50000}, NULL, NULL);
    for (uint64_t part = 3; part <= n; part += n - 3) { /* inside the preface; inside a payload */
        struct hostile h = begin_hostile((struct zc_reactor_options){.stall_ms = 200}, false);
        CHECK(send(h.fd, bytes, part, 0) == (ssize_t)part);
        CHECK(wait_for(h.server, NULL, ZC_EVENT_CLOSED, &seen) && seen.event.method == ZC_CLOSE_STALLED);
        end_hostile(&h);
    }
    struct hostile h = begin_hostile((struct zc_reactor_options){.stall_ms = 200, .outbound_limit = 100000}, false);
    n = 8 + put_frame(bytes + 8, hello, NULL, NULL);
    CHECK(send(h.fd, bytes, n, 0) == (ssize_t)n);
    CHECK(wait_for(h.server, NULL, ZC_HELLO, &seen));
    static unsigned char reply[60000];
    struct zc_reactor_stats stats = {0};
    for (int i = 0; i < 1000 && stats.outbound_bytes < 200000; i++) { /* replies that are not read */
        submit(h.server, h.connection, (struct zc_frame){.kind = ZC_RESPONSE, .payload_length = sizeof reply}, NULL, reply);
        zc_reactor_stats(h.server, &stats);
    }
    CHECK(stats.outbound_bytes >= 200000 && stats.paused == 1);
    CHECK(wait_for(h.server, NULL, ZC_EVENT_CLOSED, &seen) && seen.event.method == ZC_CLOSE_UNREAD);
    end_hostile(&h);
}

/* Random damage to a stream that began well, in random pieces, to a reactor that maps and to one that copies. Whatever comes of it: no
 * crash (the sanitizers see to that), no lease left, the reactor goes on. */
static void random_damage_is_survived(unsigned seed, int rounds) {
    static unsigned char bytes[400000], copy[400000];
    srandom(seed);
    uint64_t n = 8;
    memcpy(bytes, ZC_PREFACE, 8);
    n += put_frame(bytes + n, hello, NULL, NULL);
    n += put_frame(bytes + n, (struct zc_frame){.kind = ZC_REQUEST, .stream = 1, .header_length = 3, .payload_length = 100}, "abc", NULL) +
         100;
    n += put_frame(bytes + n, (struct zc_frame){.kind = ZC_REQUEST, .stream = 2, .payload_length = 70000}, NULL, NULL) + 70000;
    n += put_frame(bytes + n, (struct zc_frame){.kind = ZC_REQUEST, .stream = 3, .flags = ZC_FLAG_PADDED, .payload_length = 40000}, NULL,
                   NULL) +
         40960;
    n += put_frame(bytes + n, (struct zc_frame){.kind = ZC_CANCEL, .stream = 1}, NULL, NULL);
    for (int round = 0; round < rounds; round++) {
        struct hostile h = begin_hostile((struct zc_reactor_options){.receive = round % 2 ? ZC_RECEIVE_ZEROCOPY : ZC_RECEIVE_COPY,
                                                                     .place_from = 4096,
                                                                     .payload_limit = MIB},
                                         round % 2);
        memcpy(copy, bytes, n);
        for (long damage = random() % 4; damage > 0; damage--) {
            static const uint64_t heads[] = {8, 32, 159, 70183};
            uint64_t at = random() % 2 ? heads[random() % 4] + (uint64_t)random() % ZC_FRAME_SIZE : (uint64_t)random() % n;
            copy[at] = (unsigned char)(random() % 3 ? random() : copy[at] ^ (1 << random() % 8));
        }
        for (uint64_t sent = 0; sent < n;) {
            uint64_t piece = (uint64_t)random() % (random() % 2 ? 50000 : 60) + 1;
            if (piece > n - sent)
                piece = n - sent;
            ssize_t k = send(h.fd, copy + sent, piece, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (k > 0)
                sent += (uint64_t)k;
            else if (errno != EAGAIN)
                break;
            int64_t polled = zc_reactor_poll(h.server, 0);
            CHECK(polled >= 0);
            const struct zc_batch *batch = zc_reactor_batch(h.server, 0);
            for (int64_t i = 0; i < polled; i++) {
                if (batch->events[i].lease)
                    release(&batch->events[i]);
            }
        }
        shutdown(h.fd, SHUT_WR);
        struct seen seen;
        for (int i = 0; i < 100; i++) {
            struct zc_reactor_stats stats;
            zc_reactor_stats(h.server, &stats);
            if (!stats.connections)
                break;
            wait_for(h.server, NULL, ZC_EVENT_CLOSED, &seen);
        }
        end_hostile(&h);
    }
}

/* Silence grows while nothing comes, ends with every byte, and does not count while the connection is not read. */
static void silence_is_measured(void) {
    struct hostile h = begin_hostile((struct zc_reactor_options){.payload_limit = MIB, .outbound_limit = 100}, false);
    unsigned char bytes[8 + ZC_FRAME_SIZE], record[ZC_RECORD_SIZE + 1000] = {0};
    CHECK(zc_reactor_silence(h.server, 12345) == -ENOTCONN);
    usleep(60000);
    CHECK(zc_reactor_silence(h.server, h.connection) >= 40);
    memcpy(bytes, ZC_PREFACE, 8);
    put_frame(bytes + 8, hello, NULL, NULL);
    for (size_t i = 0; i < sizeof bytes; i++) {
        usleep(1000);
        CHECK(send(h.fd, bytes + i, 1, MSG_NOSIGNAL) == 1);
        CHECK(zc_reactor_poll(h.server, 100) >= 0);
        CHECK(zc_reactor_silence(h.server, h.connection) <= 20);
    }
    memcpy(record, &h.connection, 8);
    record[8] = 1000 & 0xFF, record[9] = 1000 >> 8;
    for (int i = 0; i < 100000; i++) /* until what waits for the peer is over the limit */
        CHECK(zc_reactor_submit(h.server, record, sizeof record) == 0);
    usleep(60000);
    CHECK(zc_reactor_silence(h.server, h.connection) == 0);
    end_hostile(&h);
}

/* What a process does that was forked from the reactors', and that they go on as if nothing had been. */
static void leave_to_the_parent(struct zc_reactor *server, struct zc_reactor *client, struct zc_map *map, const struct zc_event *event) {
    int fd = zc_reactor_fd(server);
    zc_reactor_abandon(server);
    zc_reactor_abandon(client);
    zc_map_abandon(map);
    CHECK(fcntl(fd, F_GETFD) < 0);
    CHECK(same((const unsigned char *)(uintptr_t)event->payload, MIB, 5));
    release(event);
    struct zc_map_stats stats;
    zc_map_stats(map, &stats);
    CHECK(stats.leases == 1); /* the parent's to release */
    zc_map_drop(map);
    zc_map_stats(map, &stats); /* still there */
    _exit(0);
}

static void a_forked_process_lets_go(uint32_t threaded) {
    struct zc_map *map = new_map(64 * MIB);
    struct zc_reactor *server = new_reactor(map, (struct zc_reactor_options){.threaded = threaded}),
                      *client = new_reactor(map, (struct zc_reactor_options){0});
    uint64_t c = join(server, client, false);
    unsigned char *source = malloc(MIB), head[ZC_FRAME_SIZE];
    fill(source, MIB, 5);
    for (uint32_t stream = 1; stream <= 2; stream++) {
        struct seen seen;
        put_frame(head, (struct zc_frame){.kind = ZC_REQUEST, .stream = stream, .payload_length = MIB}, NULL, NULL);
        CHECK(zc_reactor_send(client, c, head, sizeof head, &(struct zc_buffer){source, MIB}, 1, stream) >= 0);
        CHECK(wait_for(server, client, ZC_REQUEST, &seen) && seen.event.stream == stream && seen.event.lease != 0);
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0)
            leave_to_the_parent(server, client, map, &seen.event);
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        CHECK(same((const unsigned char *)(uintptr_t)seen.event.payload, MIB, 5));
        release(&seen.event);
    }
    zc_reactor_destroy(client);
    zc_reactor_destroy(server);
    zc_map_drop(map);
    free(source);
}

/* Both ends' congestion control as the reactor leaves it, for a connection to this address. False where the kernel has no bbr. */
static bool left_with(in_addr_t at, char names[2][16]) {
    struct zc_map *map = new_map(64 * MIB);
    struct zc_reactor *reactor = new_reactor(map, (struct zc_reactor_options){0});
    int fds[2];
    bool there = true;
    connect_tcp_at(at, fds);
    for (int i = 0; i < 2; i++) {
        there = there && setsockopt(fds[i], IPPROTO_TCP, TCP_CONGESTION, "bbr", 3) == 0;
        CHECK(zc_reactor_add(reactor, fds[i], 0) > 0);
        CHECK(getsockopt(fds[i], IPPROTO_TCP, TCP_CONGESTION, names[i], &(socklen_t){16}) == 0);
    }
    zc_reactor_destroy(reactor);
    zc_map_drop(map);
    return there;
}

static void connections_within_the_host_are_not_paced(void) {
    char names[2][16] = {"", ""};
    if (!left_with(INADDR_LOOPBACK, names)) {
        printf("no bbr here\n");
        return;
    }
    CHECK(strcmp(names[0], "reno") == 0 && strcmp(names[1], "reno") == 0);
    CHECK(left_with(INADDR_LOOPBACK + 1, names)); /* the ends' addresses differ, as those of two hosts do */
    CHECK(strcmp(names[0], "bbr") == 0 && strcmp(names[1], "bbr") == 0);
}

static void wrong_arguments_are_refused(void) {
    struct zc_map *map = new_map(64 * MIB);
    struct zc_reactor *reactor;
    struct zc_reactor_options good = {.place_from = 4096, .map_from = 4096, .header_limit = 1024, .payload_limit = MIB}, bad = good;
    bad.receive = 9;
    CHECK(zc_reactor_create(map, &bad, &reactor) == -EINVAL);
    bad = good, bad.map_from = 1;
    CHECK(zc_reactor_create(map, &bad, &reactor) == -EINVAL);
    bad = good, bad.header_limit = 1u << 30;
    CHECK(zc_reactor_create(map, &bad, &reactor) == -EINVAL);
    CHECK(zc_reactor_create(map, &good, &reactor) == 0);
    CHECK(zc_reactor_add(reactor, -1, 0) == -EBADF);
    CHECK(zc_reactor_disconnect(reactor, 12345, 0) == -ENOTCONN);
    CHECK(zc_reactor_set_peer(reactor, 12345, &(struct zc_peer){.chunk = 100}) == -EINVAL);
    CHECK(zc_reactor_send(reactor, 12345, "", 0, NULL, 0, 0) == -ENOTCONN);
    unsigned char record[ZC_RECORD_SIZE + 4] = {0};
    record[8] = 5;
    CHECK(zc_reactor_submit(reactor, record, sizeof record) == -EINVAL);
    record[8] = 4;
    CHECK(zc_reactor_submit(reactor, record, sizeof record) == 0); /* a connection that is gone: skipped */
    struct zc_calibration cost;
    CHECK(zc_calibrate(100, 1, &cost) == -EINVAL && zc_calibrate(MIB, 0, &cost) == -EINVAL);
    CHECK(zc_mapping_supported() == 0);
    CHECK(zc_calibrate(MIB, 5, &cost) == 0 && cost.map_failed == 0 && cost.mapped == 1.0);
    CHECK(cost.copy.sender > 0 && cost.copy.receiver > 0 && cost.map.sender > 0 && cost.map.receiver > 0);
    printf("1 MiB, ns/byte: copying %.3f + %.3f, mapping %.3f + %.3f\n", cost.copy.sender, cost.copy.receiver, cost.map.sender,
           cost.map.receiver);
    zc_reactor_destroy(reactor);
    zc_map_drop(map);
}

int main(int argc, char **argv) {
    RUN(wrong_arguments_are_refused);
    RUN(connections_within_the_host_are_not_paced);
    RUN(payloads_arrive_whole);
    RUN(small_frames_pass_between_chunks);
    RUN(a_forked_process_lets_go, 0);
    RUN(a_forked_process_lets_go, 1);
    RUN(short_payloads_pass_between_chunks, false);
    RUN(short_payloads_pass_between_chunks, true);
    RUN(small_frames_pass_large_payloads_of_others);
    RUN(what_is_sent_in_a_round_is_bounded);
    RUN(rounds_follow_each_other_while_nothing_is_small);
    RUN(what_is_submitted_beside_large_payloads_yields);
    RUN(the_end_of_a_payload_is_waited_for_awake);
    RUN(nobody_starves_in_a_flood);
    RUN(requests_follow_each_other, ZC_RECEIVE_COPY, false);
    RUN(requests_follow_each_other, ZC_RECEIVE_ZEROCOPY, true);
    RUN(requests_follow_each_other, ZC_RECEIVE_AUTO, true);
    RUN(memory_runs_out_and_comes_back);
    RUN(a_lease_outlives_everything);
    RUN(illegal_bytes_close_with_a_reason);
    RUN(chunks_must_continue);
    RUN(refused_payloads_leave_the_stream_intact);
    RUN(who_stops_is_dropped);
    RUN(silence_is_measured);
    RUN(random_damage_is_survived, argc > 1 ? (unsigned)atoi(argv[1]) : 1, argc > 2 ? atoi(argv[2]) : 200);
    return 0;
}
