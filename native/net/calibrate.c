/* What does this host pay per byte for copying, and for mapping? Both ends of a loopback connection in one thread, in turns, so that the
 * figure is CPU time alone: no wake-ups, no other core's TLB to shoot down. The two ways take turns too, so that drift hits both. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "lock/atomics.h"
#include "net/outbound.h"
#include "net/reactor.h"

#ifndef TCP_RECEIVE_ZEROCOPY_FLAG_TLB_CLEAN_HINT
#define TCP_RECEIVE_ZEROCOPY_FLAG_TLB_CLEAN_HINT 0x1
#endif

#define LONGEST (64u << 20)
#define ROUNDS 1000u

/* A connection that payloads go over in one way, and what they have cost. */
struct pair {
    int sender, receiver;
    uint64_t length;
    uint64_t segment;                     /* bytes of whole pages in one; 0: payloads are not mapped */
    unsigned char *source, *copied;       /* what is sent; where it arrives by copying */
    unsigned char *mapped;                /* and by mapping */
    uint64_t send_cycles, receive_cycles; /* of all payloads so far */
    uint64_t payloads, mapped_payloads;
    uint64_t ns[ROUNDS]; /* CPU time of each */
};

static uint64_t cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- setting up ---- */

static int connect_pair(struct pair *pair) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), failed = 0;
    pair->sender = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || pair->sender < 0 || bind(listener, (struct sockaddr *)&address, size) || listen(listener, 1) ||
        getsockname(listener, (struct sockaddr *)&address, &size) || connect(pair->sender, (struct sockaddr *)&address, size) ||
        (pair->receiver = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0)
        failed = -errno;
    if (listener >= 0)
        close(listener);
    zc_unpace(pair->sender); /* as the reactor does */
    return failed;
}

static int want_whole_pages(struct pair *pair) {
    int on = 1;
    if (setsockopt(pair->sender, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on))
        return -errno;
    pair->segment = zc_whole_pages(pair->sender);
    if (!pair->segment)
        return -EOPNOTSUPP;
    pair->mapped = mmap(NULL, pair->length, PROT_READ, MAP_SHARED, pair->receiver, 0);
    return pair->mapped == MAP_FAILED ? -errno : 0;
}

static void close_pair(struct pair *pair) {
    if (!pair)
        return;
    unsigned char *areas[] = {pair->source, pair->copied, pair->mapped};
    for (int i = 0; i < 3; i++)
        if (areas[i] != MAP_FAILED)
            munmap(areas[i], pair->length);
    if (pair->sender >= 0)
        close(pair->sender);
    if (pair->receiver >= 0)
        close(pair->receiver);
    free(pair);
}

static int open_pair(uint64_t length, bool mapping, struct pair **out) {
    struct pair *pair = *out = calloc(1, sizeof *pair);
    if (!pair)
        return -ENOMEM;
    int populate = mapping ? 0 : MAP_POPULATE; /* where payloads are mapped this is for those that cannot be */
    pair->sender = pair->receiver = -1;
    pair->length = length;
    pair->mapped = MAP_FAILED;
    pair->source = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    pair->copied = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | populate, -1, 0);
    if (pair->source == MAP_FAILED || pair->copied == MAP_FAILED)
        return -ENOMEM;
    int failed = connect_pair(pair);
    return failed || !mapping ? failed : want_whole_pages(pair);
}

/* ---- one payload ---- */

static void drop_reports(int fd) {
    char control[128];
    struct msghdr message;
    do
        message = (struct msghdr){.msg_control = control, .msg_controllen = sizeof control};
    while (recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) >= 0);
}

/* Each of the next three: bytes, 0 if there was no room or nothing there, or a negative errno. */

static ssize_t send_with(const struct pair *pair, uint64_t sent, uint64_t n, int flags) {
    ssize_t taken = send(pair->sender, pair->source + sent, n, flags | MSG_DONTWAIT | MSG_NOSIGNAL);
    return taken < 0 ? (errno == EAGAIN ? 0 : -errno) : taken;
}

static ssize_t send_some(const struct pair *pair, uint64_t sent) {
    uint64_t n = pair->length - sent;
    if (!pair->segment)
        return send_with(pair, sent, n, 0);
    n = n < pair->segment ? n : pair->segment; /* as outbound.c does it */
    ssize_t taken = send_with(pair, sent, n, MSG_ZEROCOPY | MSG_EOR);
    drop_reports(pair->sender);
    return taken == -ENOBUFS ? send_with(pair, sent, n, MSG_EOR) : taken;
}

static ssize_t copy_some(const struct pair *pair, uint64_t received) {
    ssize_t n = recv(pair->receiver, pair->copied + received, pair->length - received, MSG_DONTWAIT);
    return n < 0 ? (errno == EAGAIN ? 0 : -errno) : n ? n : -EPIPE;
}

/* Sets `copy` when it comes to a page that cannot be mapped; what was mapped has then moved to where the rest is to be copied to. */
static ssize_t map_some(const struct pair *pair, uint64_t received, bool *copy) {
    struct tcp_zerocopy_receive call = {.address = (uintptr_t)pair->mapped + received,
                                        .length = (uint32_t)(pair->length - received),
                                        .flags = TCP_RECEIVE_ZEROCOPY_FLAG_TLB_CLEAN_HINT};
    socklen_t size = sizeof call;
    if (getsockopt(pair->receiver, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &call, &size))
        return -errno;
    if (!call.length && call.recv_skip_hint) {
        *copy = true;
        memcpy(pair->copied, pair->mapped, received);
    }
    return (ssize_t)call.length;
}

/* What every handler does at least. */
static void touch(const unsigned char *at, uint64_t length) {
    volatile unsigned sum = 0;
    for (uint64_t i = 0; i < length; i += 64)
        sum += at[i];
}

/* Sends a payload, receives it, touches it, gives mapped pages back. */
static int one_payload(struct pair *pair) {
    uint64_t sent = 0, received = 0, idle = 0;
    bool copy = !pair->segment;
    if (pair->segment)
        pair->segment = zc_whole_pages(pair->sender);
    while (received < pair->length) {
        uint64_t begun = zc_cycles();
        ssize_t out = sent < pair->length ? send_some(pair, sent) : 0;
        uint64_t between = zc_cycles();
        ssize_t in = copy ? copy_some(pair, received) : map_some(pair, received, &copy);
        if (out < 0 || in < 0)
            return (int)(out < 0 ? out : in);
        pair->send_cycles += between - begun;
        pair->receive_cycles += zc_cycles() - between;
        sent += (uint64_t)out;
        received += (uint64_t)in;
        if (out || in)
            idle = 0;
        else if (++idle > 1000)
            return -ETIMEDOUT;
        else
            poll(&(struct pollfd){pair->receiver, POLLIN, 0}, 1, 1);
    }
    uint64_t begun = zc_cycles();
    touch(copy ? pair->copied : pair->mapped, pair->length);
    if (pair->segment)
        madvise(pair->mapped, pair->length, MADV_DONTNEED);
    pair->receive_cycles += zc_cycles() - begun;
    pair->mapped_payloads += !copy;
    return 0;
}

static int measure_payload(struct pair *pair) {
    uint64_t begun = cpu_ns();
    int failed = one_payload(pair);
    pair->ns[pair->payloads++ % ROUNDS] = cpu_ns() - begun;
    return failed;
}

static void forget(struct pair *pair) {
    pair->payloads = pair->mapped_payloads = pair->send_cycles = pair->receive_cycles = 0;
}

/* ---- the result ---- */

static int compare_ns(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* CPU time is the median payload's; how the ends share it, cycles tell. */
static struct zc_way_cost cost_of(struct pair *pair) {
    qsort(pair->ns, pair->payloads, sizeof *pair->ns, compare_ns);
    double ns = (double)pair->ns[pair->payloads / 2] / (double)pair->length;
    double sender = (double)pair->send_cycles / (double)(pair->send_cycles + pair->receive_cycles);
    return (struct zc_way_cost){ns * sender, ns * (1 - sender)};
}

int zc_calibrate(uint64_t length, uint32_t rounds, struct zc_calibration *out) {
    if (!length || length % ZC_PAGE || length > LONGEST || !rounds || rounds > ROUNDS)
        return -EINVAL;
    struct pair *copying, *mapping;
    int failed = open_pair(length, false, &copying), map_failed = open_pair(length, true, &mapping);
    for (uint32_t i = 0; !failed && i <= rounds; i++) {
        failed = measure_payload(copying);
        if (!map_failed)
            map_failed = measure_payload(mapping);
        if (i == 0 && !failed) { /* that one warmed up */
            forget(copying);
            if (!map_failed)
                forget(mapping);
        }
    }
    *out = (struct zc_calibration){.map_failed = map_failed};
    if (!failed)
        out->copy = cost_of(copying);
    if (!failed && !map_failed) {
        out->map = cost_of(mapping);
        out->mapped = (double)mapping->mapped_payloads / (double)mapping->payloads;
    }
    close_pair(copying);
    close_pair(mapping);
    return failed;
}
