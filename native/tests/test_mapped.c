/* A mapped region really receives: TCP_ZEROCOPY_RECEIVE over loopback into leases, from several connections, read back after they closed. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lock/registry.h"
#include "region/map_core.h"
#include "tests/check.h"

#define MIB (1ull << 20)
#define WHOLE_PAGES (7 * 4096 + 12) /* a segment: seven pages and the timestamp option */
#ifndef TCP_MAXSEG
#define TCP_MAXSEG 2
#endif

struct sender {
    int fd;
    unsigned char seed;
    uint64_t length;
    pthread_t thread;
};

static unsigned char byte_at(unsigned char seed, uint64_t at) {
    return (unsigned char)(seed + at * 31 + (at >> 12));
}

static void *send_all(void *argument) {
    struct sender *sender = argument;
    unsigned char *data = mmap(NULL, sender->length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(data != MAP_FAILED);
    for (uint64_t at = 0; at < sender->length; at++)
        data[at] = byte_at(sender->seed, at);
    for (uint64_t sent = 0; sent < sender->length;) {
        ssize_t count = send(sender->fd, data + sent, sender->length - sent, MSG_ZEROCOPY);
        CHECK(count > 0 || errno == ENOBUFS);
        if (count > 0)
            sent += (uint64_t)count;
    }
    char end;
    CHECK_EQUAL(recv(sender->fd, &end, 1, 0), 0); /* the receiver closed: it has everything */
    munmap(data, sender->length);
    close(sender->fd);
    return NULL;
}

static int connect_pair(struct sender *sender) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), size = WHOLE_PAGES, one = 1;
    sender->fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_EQUAL(setsockopt(listener, IPPROTO_TCP, TCP_MAXSEG, &size, sizeof size), 0);
    CHECK_EQUAL(setsockopt(sender->fd, IPPROTO_TCP, TCP_MAXSEG, &size, sizeof size), 0);
    CHECK_EQUAL(setsockopt(sender->fd, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one), 0);
    CHECK_EQUAL(bind(listener, (struct sockaddr *)&address, length), 0);
    CHECK_EQUAL(listen(listener, 1), 0);
    CHECK_EQUAL(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    CHECK_EQUAL(connect(sender->fd, (struct sockaddr *)&address, length), 0);
    int fd = accept(listener, NULL, NULL);
    CHECK(fd >= 0);
    close(listener);
    return fd;
}

/* Maps `length` bytes, whole pages, to `address`; returns how many of them were mapped before a page came that could not be. */
static uint64_t receive(struct zc_map *map, struct zc_actor *self, int fd, uintptr_t address, uint64_t length) {
    uint64_t done = 0;
    while (done < length) {
        int low = length - done < 256 * 1024 ? (int)(length - done) : 256 * 1024;
        setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low);
        CHECK_EQUAL(poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 10000), 1);
        struct zc_guard guard;
        CHECK_EQUAL(map->strategy->read_lock(map, self, address + done, &guard), 0);
        struct tcp_zerocopy_receive zc = {.address = address + done, .length = (uint32_t)(length - done)};
        zc.flags = TCP_RECEIVE_ZEROCOPY_FLAG_TLB_CLEAN_HINT;
        socklen_t size = sizeof zc;
        CHECK_EQUAL(getsockopt(fd, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &zc, &size), 0);
        map->strategy->read_unlock(map, self, &guard);
        done += zc.length;
        if (zc.length == 0 && zc.recv_skip_hint >= ZC_PAGE)
            break;
    }
    return done;
}

static void check_content(uintptr_t address, uint64_t length, unsigned char seed) {
    for (uint64_t at = 0; at < length; at++)
        if (((unsigned char *)address)[at] != byte_at(seed, at))
            CHECK_EQUAL(((unsigned char *)address)[at], byte_at(seed, at));
}

/* Three connections into leases of one map, closed at once; then the bytes are read, released, and the pages used again. */
static void connections_share_the_arena(const struct zc_strategy *strategy, uint64_t length) {
    struct zc_map *map;
    CHECK_EQUAL(zc_map_create(strategy, &(struct zc_map_options){.budget = 64 * MIB, .retain = 16 * MIB}, &map), 0);
    struct zc_actor *self = zc_actor_create(map);
    struct zc_nursery *nursery = zc_nursery_create(map);
    uint64_t mapped = 0, total = 0;
    for (int round = 0; round < 4; round++) {
        struct sender senders[3];
        struct zc_lease *leases[3];
        uint64_t got[3];
        for (int i = 0; i < 3; i++) {
            senders[i] = (struct sender){.seed = (unsigned char)(round * 3 + i), .length = length};
            int fd = connect_pair(&senders[i]);
            CHECK_EQUAL(pthread_create(&senders[i].thread, NULL, send_all, &senders[i]), 0);
            CHECK_EQUAL(zc_lease_reserve(nursery, ZC_MAPPED, length, false, &leases[i]), 0);
            got[i] = receive(map, self, fd, leases[i]->address, length);
            mapped += got[i];
            total += length;
            shutdown(fd, SHUT_RDWR);
            close(fd);
            pthread_join(senders[i].thread, NULL);
        }
        for (int i = 0; i < 3; i++) {
            check_content(leases[i]->address, got[i], senders[i].seed);
            zc_lease_release(leases[i]);
        }
    }
    printf("    %llu of %llu bytes mapped\n", (unsigned long long)mapped, (unsigned long long)total);
    CHECK(mapped > total / 10 * 9);
    zc_nursery_drop(nursery);
    zc_actor_destroy(map, self);
    zc_map_drop(map);
}

int main(void) {
    const struct zc_strategy *strategy;
    for (size_t index = 0; (strategy = zc_strategy_at(index)) != NULL; index++) {
        RUN(connections_share_the_arena, strategy, ZC_PAGE);
        RUN(connections_share_the_arena, strategy, 7 * ZC_PAGE);
        RUN(connections_share_the_arena, strategy, 256 * ZC_PAGE);
        RUN(connections_share_the_arena, strategy, 3 * MIB);
    }
    return 0;
}
