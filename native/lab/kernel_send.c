/* The sender. A process of its own: MSG_ZEROCOPY looks its pages up under the mmap lock of whoever sends. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lab/kernel_parts.h"

static void drain_completions(int fd) {
    char control[128];
    struct msghdr message;
    do
        message = (struct msghdr){.msg_control = control, .msg_controllen = sizeof control};
    while (recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) >= 0);
}

/* At most one segment's whole pages a call, never merged with the next (net/outbound.h says why). Returns whether all of it went. */
static bool send_payload(int fd, const unsigned char *payload, size_t length, size_t segment) {
    for (size_t sent = 0; sent < length;) {
        size_t left = length - sent;
        ssize_t taken = send(fd, payload + sent, left < segment ? left : segment, MSG_ZEROCOPY | MSG_EOR | MSG_NOSIGNAL);
        if (taken < 0 && errno != ENOBUFS && errno != EINTR)
            return false;
        drain_completions(fd);
        sent += taken > 0 ? (size_t)taken : 0;
    }
    return true;
}

/* Answers what was asked for on one connection. Returns whether it goes on. */
static bool answer(int fd, unsigned char *payload, size_t length, uint64_t *sequence) {
    char wish;
    ssize_t got = recv(fd, &wish, sizeof wish, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) { /* woken by completions */
        drain_completions(fd);
        return true;
    }
    int segment = 0;
    socklen_t size = sizeof segment;
    if (got <= 0 || getsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &segment, &size) < 0)
        return false;
    for (size_t at = 0; at < length; at += KERNEL_PAGE) {
        uint64_t stamp = kernel_stamp(*sequence, at / KERNEL_PAGE);
        memcpy(payload + at, &stamp, sizeof stamp);
    }
    ++*sequence;
    return send_payload(fd, payload, length, (size_t)segment / KERNEL_PAGE * KERNEL_PAGE);
}

_Noreturn void kernel_send(const struct kernel *kernel) {
    uint32_t count = kernel->options->receivers;
    size_t length = kernel->options->payload;
    struct pollfd ready[ZC_KERNEL_RECEIVERS];
    uint64_t sequence[ZC_KERNEL_RECEIVERS];
    /* A buffer for each connection: what was sent may be read only when it is delivered. */
    unsigned char *payloads = mmap(NULL, count * length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (payloads == MAP_FAILED)
        _exit(1);
    for (uint32_t i = 0; i < count; i++) {
        close(kernel->receivers[i].fd);
        ready[i] = (struct pollfd){.fd = kernel->senders[i], .events = POLLIN};
        sequence[i] = 0;
    }
    for (;;) {
        if (poll(ready, count, -1) < 0)
            _exit(1);
        for (uint32_t i = 0; i < count; i++) {
            if (ready[i].revents != 0 && !answer(ready[i].fd, payloads + i * length, length, &sequence[i]))
                _exit(0);
        }
    }
}
