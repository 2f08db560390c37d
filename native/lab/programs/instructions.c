/* What a request costs in instructions: the native path driven by plain C, for valgrind to count (benchmarks/instructions.py).
 *
 *   instructions WORKLOAD [requests=1024]     prints how many requests were counted
 *   instructions list                         names of workloads
 *   instructions environment                  what counts depend on besides the source
 *
 * One thread, and sockets whose other ends are peers in the same thread: what happens in which order depends on no clock, so counts can be
 * repeated to the instruction. Only what runs inside `counted` is to be counted, which is not called before everything is warm. */
#include <arpa/inet.h>
#include <errno.h>
#include <gnu/libc-version.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "lock/registry.h"
#include "net/reactor.h"

#define MIB (1ull << 20)
#define MOST_PEERS 64u
#define WARM_UP 256u /* requests, or one a peer */
#define HEADER 16u   /* bytes of msgpack in a request */
#define REQUEST (ZC_FRAME_SIZE + HEADER)
#define MOST_IN_FLIGHT 64u
#define RECORDS ((ZC_RECORD_SIZE + REQUEST + 64u) * MOST_IN_FLIGHT * 4)

static void check(int holds, const char *what) {
    if (holds)
        return;
    fprintf(stderr, "instructions: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* ---- the scene ---- */

/* The other end of a connection: asks again when everything is answered, or answers what it is asked. */
struct peer {
    int fd;
    uint64_t connection;
    uint64_t sent, received; /* bytes of this round */
};

struct scene {
    const struct workload *workload;
    struct zc_map *map;
    struct zc_reactor *reactor, *sender; /* sender: of the mapped workload, the peer's */
    struct zc_actor *actor;
    struct zc_nursery *nursery;
    uintptr_t place;
    struct peer peers[MOST_PEERS];
    unsigned char *round;               /* what a peer sends in a round */
    uint64_t round_bytes, answer_bytes; /* of a peer */
    unsigned char records[RECORDS];
    uint64_t done; /* requests */
    int free_again;
};

struct workload {
    const char *name, *strategy;
    uint32_t peers, in_flight; /* per peer */
    uint64_t payload;
    void (*begin)(struct scene *scene);
    void (*act)(struct scene *scene);      /* what is counted; must not wait */
    void (*surround)(struct scene *scene); /* the peers' part */
};

__attribute__((noinline)) void counted(struct scene *scene);

void counted(struct scene *scene) {
    scene->workload->act(scene);
}

static struct zc_reactor *new_reactor(struct scene *scene, uint32_t receive) {
    struct zc_reactor_options options = {
        .receive = receive,
        .place_from = ZC_PAGE,
        .map_from = ZC_PAGE,
        .header_limit = 65536,
        .payload_limit = 64 * MIB,
        .outbound_limit = 64 * MIB,
    };
    struct zc_reactor *reactor;
    check(zc_reactor_create(scene->map, &options, &reactor) == 0, "reactor");
    return reactor;
}

static void put_frame(unsigned char *at, struct zc_frame frame) {
    zc_frame_encode(&frame, at);
}

/* What the peers send in a round, at once: as many requests, or answers, as are in flight. */
static void fill_round(struct scene *scene, uint8_t kind, uint64_t payload) {
    uint64_t each = REQUEST + payload;
    scene->round_bytes = each * scene->workload->in_flight;
    scene->round = aligned_alloc(ZC_PAGE, (scene->round_bytes + 2 * ZC_PAGE) / ZC_PAGE * ZC_PAGE);
    check(scene->round != NULL, "memory");
    memset(scene->round, 0, scene->round_bytes);
    for (uint32_t i = 0; i < scene->workload->in_flight; i++)
        put_frame(scene->round + each * i,
                  (struct zc_frame){.kind = kind, .method = 1, .stream = i + 1, .header_length = HEADER, .payload_length = payload});
}

static void greet(int fd) {
    unsigned char greeting[ZC_PREFACE_SIZE + ZC_FRAME_SIZE];
    memcpy(greeting, ZC_PREFACE, ZC_PREFACE_SIZE);
    put_frame(greeting + ZC_PREFACE_SIZE, (struct zc_frame){.kind = ZC_HELLO});
    check(send(fd, greeting, sizeof greeting, 0) == sizeof greeting, "hello");
}

static void take_preface(int fd) {
    unsigned char preface[ZC_PREFACE_SIZE];
    check(recv(fd, preface, sizeof preface, MSG_WAITALL) == sizeof preface, "preface");
}

static void join(struct scene *scene) {
    for (uint32_t i = 0; i < scene->workload->peers; i++) {
        int fds[2];
        check(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0, "socketpair");
        int64_t connection = zc_reactor_add(scene->reactor, fds[0], 0);
        check(connection > 0, "connection");
        scene->peers[i] = (struct peer){.fd = fds[1], .connection = (uint64_t)connection};
        greet(fds[1]);
        take_preface(fds[1]);
    }
    for (int64_t greeted = 0, n; greeted < scene->workload->peers; greeted += n)
        check((n = zc_reactor_poll(scene->reactor, 0)) > 0, "hello");
}

/* ---- a server: echoes what is small, acknowledges what is large ---- */

static void begin_server(struct scene *scene) {
    scene->reactor = new_reactor(scene, ZC_RECEIVE_COPY);
    fill_round(scene, ZC_REQUEST, scene->workload->payload);
    uint64_t echoed = scene->workload->payload < ZC_PAGE ? scene->workload->payload : 0;
    scene->answer_bytes = (REQUEST + echoed) * scene->workload->in_flight;
    join(scene);
}

static unsigned char *put_record(unsigned char *at, uint64_t connection, const struct zc_frame *frame, const void *header,
                                 const void *payload) {
    uint32_t length = (uint32_t)(REQUEST + frame->payload_length);
    memcpy(at, &connection, 8);
    memcpy(at + 8, &length, 4);
    memset(at + 12, 0, 4);
    zc_frame_encode(frame, at + ZC_RECORD_SIZE);
    memcpy(at + ZC_RECORD_SIZE + ZC_FRAME_SIZE, header, HEADER);
    memcpy(at + ZC_RECORD_SIZE + REQUEST, payload, frame->payload_length);
    return at + ZC_RECORD_SIZE + length;
}

static unsigned char *answer(unsigned char *at, const struct zc_batch *batch, const struct zc_event *event) {
    struct zc_frame reply = {.kind = ZC_RESPONSE, .stream = event->stream, .header_length = HEADER};
    if (event->lease)
        zc_lease_release((struct zc_lease *)(uintptr_t)event->lease);
    else
        reply.payload_length = event->payload_length;
    return put_record(at, event->connection, &reply, batch->data + event->header, batch->data + event->payload);
}

static void serve(struct scene *scene) {
    unsigned char *at = scene->records;
    int64_t n = zc_reactor_poll(scene->reactor, 0);
    check(n >= 0, "poll");
    const struct zc_batch *batch = zc_reactor_batch(scene->reactor, 0);
    for (int64_t i = 0; i < n; i++) {
        check(batch->events[i].kind == ZC_REQUEST, "request");
        at = answer(at, batch, &batch->events[i]);
    }
    if (at == scene->records)
        return;
    check(zc_reactor_submit(scene->reactor, scene->records, (uint64_t)(at - scene->records)) == 0, "submit");
    scene->done += (uint64_t)n;
}

static void receive_all(struct peer *peer) {
    unsigned char scratch[65536];
    ssize_t n;
    while ((n = recv(peer->fd, scratch, sizeof scratch, MSG_DONTWAIT)) > 0)
        peer->received += (uint64_t)n;
    check(n < 0 && errno == EAGAIN, "a peer's receive");
}

static void send_more(struct scene *scene, struct peer *peer) {
    ssize_t n = 0;
    while (peer->sent < scene->round_bytes && n >= 0) {
        n = send(peer->fd, scene->round + peer->sent, scene->round_bytes - peer->sent, MSG_DONTWAIT);
        if (n > 0)
            peer->sent += (uint64_t)n;
    }
    check(n >= 0 || errno == EAGAIN, "a peer's send");
}

/* Peers that ask. */
static void ask(struct scene *scene) {
    for (uint32_t i = 0; i < scene->workload->peers; i++) {
        struct peer *peer = &scene->peers[i];
        receive_all(peer);
        if (peer->received == scene->answer_bytes)
            peer->received = peer->sent = 0;
        send_more(scene, peer);
    }
}

/* ---- a client, whose peer answers ---- */

static void begin_client(struct scene *scene) {
    scene->reactor = new_reactor(scene, ZC_RECEIVE_COPY);
    fill_round(scene, ZC_RESPONSE, scene->workload->payload);
    scene->answer_bytes = (REQUEST + scene->workload->payload) * scene->workload->in_flight;
    join(scene);
    scene->peers[0].sent = scene->round_bytes; /* as if a round had just ended */
}

static void issue(struct scene *scene) {
    unsigned char *at = scene->records, payload[64] = {0};
    for (uint32_t i = 0; i < scene->workload->in_flight; i++) {
        struct zc_frame frame = {
            .kind = ZC_REQUEST, .method = 1, .stream = i + 1, .header_length = HEADER, .payload_length = scene->workload->payload};
        at = put_record(at, scene->peers[0].connection, &frame, payload, payload);
    }
    check(zc_reactor_submit(scene->reactor, scene->records, (uint64_t)(at - scene->records)) == 0, "submit");
}

static void call(struct scene *scene) {
    int64_t n = zc_reactor_poll(scene->reactor, 0);
    check(n >= 0, "poll");
    scene->done += (uint64_t)n;
    if (scene->done % scene->workload->in_flight == 0)
        issue(scene);
}

static void reply(struct scene *scene) {
    struct peer *peer = &scene->peers[0];
    receive_all(peer);
    if (peer->received == scene->answer_bytes)
        peer->received = peer->sent = 0;
    send_more(scene, peer);
}

/* ---- large payloads that are sent ---- */

static void begin_download(struct scene *scene) {
    scene->reactor = new_reactor(scene, ZC_RECEIVE_COPY);
    fill_round(scene, ZC_DATA, scene->workload->payload);
    scene->free_again = 1;
    join(scene);
}

static int send_payload(struct scene *scene, struct zc_reactor *reactor, uint64_t connection) {
    struct zc_buffer buffer = {scene->round + ZC_PAGE, scene->workload->payload};
    return zc_reactor_send(reactor, connection, scene->round, REQUEST, &buffer, 1, 7);
}

static void download(struct scene *scene) {
    if (scene->free_again)
        scene->free_again = send_payload(scene, scene->reactor, scene->peers[0].connection);
    else
        scene->free_again = zc_reactor_poll(scene->reactor, 0) == 1;
    scene->done += (uint64_t)scene->free_again;
}

static void drain(struct scene *scene) {
    receive_all(&scene->peers[0]);
}

/* ---- payloads that are mapped: only TCP can, so a reactor sends them over loopback ---- */

static void connect_tcp(int fds[2]) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    check(bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 1) == 0, "listen");
    check(getsockname(listener, (struct sockaddr *)&address, &size) == 0, "address");
    fds[1] = socket(AF_INET, SOCK_STREAM, 0);
    check(connect(fds[1], (struct sockaddr *)&address, size) == 0, "connect");
    fds[0] = accept(listener, NULL, NULL);
    check(fds[0] >= 0, "accept");
    close(listener);
}

static uint64_t join_reactor(struct zc_reactor *reactor, int fd, int mapping) {
    unsigned char hello[ZC_RECORD_SIZE + ZC_FRAME_SIZE] = {0};
    uint32_t length = ZC_FRAME_SIZE;
    int64_t connection = zc_reactor_add(reactor, fd, mapping);
    check(connection > 0, "connection");
    memcpy(hello, &connection, 8);
    memcpy(hello + 8, &length, 4);
    put_frame(hello + ZC_RECORD_SIZE, (struct zc_frame){.kind = ZC_HELLO});
    check(zc_reactor_submit(reactor, hello, sizeof hello) == 0, "hello");
    return (uint64_t)connection;
}

static void begin_mapped(struct scene *scene) {
    int fds[2];
    scene->reactor = new_reactor(scene, ZC_RECEIVE_ZEROCOPY);
    scene->sender = new_reactor(scene, ZC_RECEIVE_COPY);
    fill_round(scene, ZC_REQUEST, scene->workload->payload);
    connect_tcp(fds);
    join_reactor(scene->reactor, fds[0], 1);
    uint64_t connection = scene->peers[0].connection = join_reactor(scene->sender, fds[1], 0);
    check(zc_reactor_set_peer(scene->sender, connection, &(struct zc_peer){ZC_CHUNK_BYTES, ZC_PAGE}) == 0, "peer");
    check(zc_reactor_poll(scene->reactor, -1) == 1, "hello");
}

/* Takes the last one's answer and its buffer back, and sends the next. Those of this size are mapped, or there is nothing to count. */
static void send_mapped(struct scene *scene) {
    struct peer *peer = &scene->peers[0];
    struct zc_reactor_stats stats;
    zc_reactor_stats(scene->reactor, &stats);
    check(stats.payload_bytes_copied == 0, "a payload could not be mapped");
    check(zc_reactor_poll(scene->sender, 0) >= 0, "poll");
    if (peer->sent > scene->done)
        return;
    check(send_payload(scene, scene->sender, peer->connection) >= 0, "send");
    peer->sent++;
}

/* ---- the map and its locks ---- */

static void begin_places(struct scene *scene) {
    struct zc_region *region;
    scene->actor = zc_actor_create(scene->map);
    scene->nursery = zc_nursery_create(scene->map);
    check(scene->actor && scene->nursery, "memory");
    check(zc_region_attach(scene->map, scene->actor, ZC_COPIED, 2 * MIB, &region) == 0, "region");
    scene->place = zc_region_start(region) + ZC_PAGE;
}

static void lock(struct scene *scene) {
    struct zc_guard guard;
    check(zc_map_read_lock(scene->map, scene->actor, scene->place, &guard) == 0, "lock");
    zc_map_read_unlock(scene->map, scene->actor, &guard);
    scene->done++;
}

static void place(struct scene *scene) {
    struct zc_lease *lease;
    check(zc_lease_reserve(scene->nursery, ZC_COPIED, ZC_PAGE, false, &lease) == 0, "place");
    zc_lease_release(lease);
    scene->done++;
}

static void nothing(struct scene *scene) {
    (void)scene;
}

/* ---- all of them ---- */

static const struct workload workloads[] = {
    {"echo of 64 B", "per-region", 1, 1, 64, begin_server, serve, ask},
    {"echo of 64 B, 64 in flight", "per-region", 1, 64, 64, begin_server, serve, ask},
    {"echo of 64 B, 64 connections", "per-region", 64, 1, 64, begin_server, serve, ask},
    {"upload of 4 KiB", "per-region", 1, 1, 4096, begin_server, serve, ask},
    {"upload of 1 MiB", "per-region", 1, 1, MIB, begin_server, serve, ask},
    {"upload of 32 KiB, mapped", "per-region", 1, 1, 32768, begin_mapped, serve, send_mapped},
    {"download of 1 MiB", "per-region", 1, 1, MIB, begin_download, download, drain},
    {"call of 64 B", "per-region", 1, 1, 64, begin_client, call, reply},
    {"call of 64 B, 64 in flight", "per-region", 1, 64, 64, begin_client, call, reply},
    {"place of 4 KiB", "per-region", 0, 0, 0, begin_places, place, nothing},
};
#define WORKLOADS (sizeof workloads / sizeof *workloads)
#define LOCK "lock "

static struct workload find(const char *name) {
    for (size_t i = 0; i < WORKLOADS; i++) {
        if (strcmp(name, workloads[i].name) == 0)
            return workloads[i];
    }
    const char *strategy = strncmp(name, LOCK, strlen(LOCK)) == 0 ? name + strlen(LOCK) : "";
    if (zc_strategy_find(strategy) == NULL) {
        fprintf(stderr, "instructions: what is %s?\n", name);
        exit(2);
    }
    return (struct workload){name, strategy, 0, 0, 0, begin_places, lock, nothing};
}

static int list(void) {
    for (size_t i = 0; i < WORKLOADS; i++)
        puts(workloads[i].name);
    for (size_t i = 0; zc_strategy_at(i); i++)
        printf(LOCK "%s\n", zc_strategy_at(i)->name);
    return 0;
}

static int print_environment(void) {
    struct utsname machine;
    uname(&machine);
#ifdef __clang__
    printf("%s, clang %d, ", machine.machine, __clang_major__);
#else
    printf("%s, gcc %d, ", machine.machine, __GNUC__);
#endif
    printf("glibc %s\n", gnu_get_libc_version());
    return 0;
}

static void run(struct scene *scene, uint64_t requests, void (*act)(struct scene *scene)) {
    uint64_t end = scene->done + requests;
    while (scene->done < end) {
        scene->workload->surround(scene);
        act(scene);
    }
}

int main(int count, char **words) {
    static struct scene scene;
    if (count == 2 && strcmp(words[1], "list") == 0)
        return list();
    if (count == 2 && strcmp(words[1], "environment") == 0)
        return print_environment();
    uint64_t requests = count == 3 ? strtoull(words[2], NULL, 10) : 1024;
    if (count < 2 || count > 3 || requests == 0) {
        fputs("usage: instructions list | environment | WORKLOAD [requests]\n", stderr);
        return 2;
    }
    struct workload workload = find(words[1]);
    struct zc_map_options options = {.budget = 64 * MIB, .retain = 16 * MIB};
    scene.workload = &workload;
    check(zc_map_create(zc_strategy_find(workload.strategy), &options, &scene.map) == 0, "map");
    workload.begin(&scene);
    run(&scene, WARM_UP, workload.act);
    uint64_t before = scene.done;
    run(&scene, requests, counted);
    printf("%llu\n", (unsigned long long)(scene.done - before));
    return 0;
}
