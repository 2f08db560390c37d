/* What does this host pay per byte for copying, and for mapping? Both ends of a loopback connection in one thread, in turns, so that the
 * figure is CPU time alone: no wake-ups, no other core's TLB to shoot down. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "net/reactor.h"

#ifndef TCP_RECEIVE_ZEROCOPY_FLAG_TLB_CLEAN_HINT
#define TCP_RECEIVE_ZEROCOPY_FLAG_TLB_CLEAN_HINT 0x1
#endif

struct pair {
    int sender, receiver;
    unsigned char *source, *target; /* what is sent; where it arrives */
    uint64_t length;
    bool mapping;
    uint64_t segment; /* bytes of whole pages in one */
};

static uint64_t cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int connect_pair(struct pair *pair) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    pair->sender = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || pair->sender < 0)
        goto failed;
    if (pair->mapping && setsockopt(pair->sender, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on))
        goto failed;
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 1))
        goto failed;
    if (getsockname(listener, (struct sockaddr *)&address, &size) || connect(pair->sender, (struct sockaddr *)&address, size))
        goto failed;
    pair->receiver = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (pair->receiver < 0)
        goto failed;
    close(listener);
    int segment = 0;
    size = sizeof segment;
    getsockopt(pair->sender, IPPROTO_TCP, TCP_MAXSEG, &segment, &size);
    pair->segment = (uint64_t)segment / ZC_PAGE * ZC_PAGE;
    return pair->mapping && !pair->segment ? -EOPNOTSUPP : 0;
failed:;
    int error = errno;
    if (listener >= 0)
        close(listener);
    return -error;
}

static int map_buffers(struct pair *pair) {
    pair->source = mmap(NULL, pair->length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (pair->source == MAP_FAILED)
        return -ENOMEM;
    pair->target = pair->mapping ? mmap(NULL, pair->length, PROT_READ, MAP_SHARED, pair->receiver, 0)
                                 : mmap(NULL, pair->length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    return pair->target == MAP_FAILED ? -errno : 0;
}

static void drop_reports(int fd) {
    char control[128];
    struct msghdr message;
    do
        message = (struct msghdr){.msg_control = control, .msg_controllen = sizeof control};
    while (recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) >= 0);
}

static ssize_t send_some(const struct pair *pair, uint64_t sent) {
    uint64_t n = pair->length - sent;
    int flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    if (pair->mapping) { /* as outbound.c does it */
        n = n < pair->segment ? n : pair->segment;
        flags |= MSG_ZEROCOPY | MSG_EOR;
    }
    ssize_t taken = send(pair->sender, pair->source + sent, n, flags);
    if (pair->mapping)
        drop_reports(pair->sender);
    return taken < 0 ? (errno == EAGAIN || errno == ENOBUFS ? 0 : -errno) : taken;
}

static ssize_t receive_some(const struct pair *pair, uint64_t received) {
    if (!pair->mapping) {
        ssize_t n = recv(pair->receiver, pair->target + received, pair->length - received, MSG_DONTWAIT);
        return n < 0 ? (errno == EAGAIN ? 0 : -errno) : n;
    }
    struct tcp_zerocopy_receive call = {.address = (uintptr_t)pair->target + received,
                                        .length = (uint32_t)(pair->length - received),
                                        .flags = TCP_RECEIVE_ZEROCOPY_FLAG_TLB_CLEAN_HINT};
    socklen_t size = sizeof call;
    if (getsockopt(pair->receiver, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &call, &size))
        return -errno;
    return call.length || !call.recv_skip_hint ? (ssize_t)call.length
                                               : -EOPNOTSUPP; /* a page that cannot be mapped: mapping does not win */
}

/* Sends one payload, receives it, touches it, gives mapped pages back. */
static int one_payload(const struct pair *pair) {
    uint64_t sent = 0, received = 0, idle = 0;
    while (received < pair->length) {
        ssize_t out = sent < pair->length ? send_some(pair, sent) : 0, in = receive_some(pair, received);
        if (out < 0 || in < 0)
            return (int)(out < 0 ? out : in);
        sent += (uint64_t)out;
        received += (uint64_t)in;
        if (out || in)
            idle = 0;
        else if (++idle > 1000)
            return -ETIMEDOUT;
        else
            poll(&(struct pollfd){pair->receiver, POLLIN, 0}, 1, 1);
    }
    volatile unsigned sum = 0;
    for (uint64_t i = 0; i < pair->length; i += 64)
        sum += pair->target[i];
    if (pair->mapping)
        madvise(pair->target, pair->length, MADV_DONTNEED);
    return 0;
}

static int compare_ns(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static int measure(uint64_t length, uint32_t rounds, bool mapping, double *ns_per_byte) {
    struct pair pair = {-1, -1, MAP_FAILED, MAP_FAILED, length, mapping, 0};
    uint64_t *ns = calloc(rounds, sizeof *ns);
    int failed = ns ? connect_pair(&pair) : -ENOMEM;
    if (!failed)
        failed = map_buffers(&pair);
    for (uint32_t i = 0; !failed && i < rounds + 1; i++) { /* the first one warms up */
        uint64_t begun = cpu_ns();
        failed = one_payload(&pair);
        if (i)
            ns[i - 1] = cpu_ns() - begun;
    }
    if (!failed) {
        qsort(ns, rounds, sizeof *ns, compare_ns);
        *ns_per_byte = (double)ns[rounds / 2] / (double)length;
    }
    if (pair.source != MAP_FAILED)
        munmap(pair.source, length);
    if (pair.target != MAP_FAILED)
        munmap(pair.target, length);
    if (pair.sender >= 0)
        close(pair.sender);
    if (pair.receiver >= 0)
        close(pair.receiver);
    free(ns);
    return failed;
}

int zc_calibrate(uint64_t length, uint32_t rounds, double *copy_ns_per_byte, double *map_ns_per_byte) {
    if (!length || length % ZC_PAGE || length > 64u << 20 || !rounds || rounds > 1000)
        return -EINVAL;
    int failed = measure(length, rounds, false, copy_ns_per_byte);
    return failed ? failed : measure(length, rounds, true, map_ns_per_byte);
}
