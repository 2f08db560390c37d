#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lab/kernel_parts.h"

#define PATIENCE_MS 20000     /* an emulated machine may take its time */
#define COUNTING_SECONDS 20.0 /* after which fewer receives have to do */

static ssize_t copy_once(struct kernel_receiver *receiver, size_t length) {
    ssize_t copied = recv(receiver->fd, receiver->scratch, length, MSG_DONTWAIT);
    receiver->copied += copied > 0 ? (uint64_t)copied : 0;
    return copied < 0 ? -errno : copied > 0 ? copied : -ECONNRESET;
}

/* One call. Returns the bytes that are here now, 0 if nothing came, or a negative errno. */
static ssize_t receive_once(struct kernel_receiver *receiver, size_t at, size_t left) {
    struct tcp_zerocopy_receive call = {.address = (uintptr_t)(receiver->target + at), .length = (uint32_t)left};
    socklen_t size = sizeof call;
    uint64_t began = zc_cycles();
    int failed = getsockopt(receiver->fd, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &call, &size) < 0 ? errno : 0;
    zc_histogram_record(&receiver->latency, zc_cycles() - began);
    receiver->receives++;
    if (failed)
        return failed == EINVAL || failed == ENOPROTOOPT ? -EOPNOTSUPP : -failed;
    if (call.length > 0 || call.recv_skip_hint == 0) {
        receiver->mapped += call.length;
        return call.length;
    }
    return copy_once(receiver, left < call.recv_skip_hint ? left : call.recv_skip_hint);
}

/* Counts the pages among the mapped ones that are not what was sent. */
static uint64_t wrong_pages(const struct kernel_receiver *receiver, size_t from, size_t to) {
    uint64_t wrong = 0;
    for (size_t at = from; at < to; at += KERNEL_PAGE) {
        uint64_t stamp;
        memcpy(&stamp, receiver->target + at, sizeof stamp);
        wrong += stamp != kernel_stamp(receiver->sequence, at / KERNEL_PAGE);
    }
    return wrong;
}

/* Asks for a payload and receives it. 0, or a negative errno. */
static int receive_payload(struct kernel_receiver *receiver) {
    size_t length = receiver->kernel->options->payload;
    if (send(receiver->fd, "", 1, MSG_NOSIGNAL) < 0)
        return -errno;
    for (size_t done = 0; done < length;) {
        struct pollfd ready = {.fd = receiver->fd, .events = POLLIN};
        if (poll(&ready, 1, PATIENCE_MS) <= 0)
            return -ETIMEDOUT;
        uint64_t mapped = receiver->mapped;
        size_t torn = done % KERNEL_PAGE;
        ssize_t came = torn ? copy_once(receiver, KERNEL_PAGE - torn) : receive_once(receiver, done, length - done);
        if (came == -EAGAIN)
            continue;
        if (came < 0)
            return (int)came;
        if (receiver->mapped > mapped)
            receiver->wrong += wrong_pages(receiver, done, done + (size_t)came);
        done += (size_t)came;
    }
    receiver->sequence++;
    receiver->payloads++;
    return 0;
}

static void receive_during(struct kernel_receiver *receiver, enum kernel_phase phase) {
    while (receiver->failed == 0 && kernel_during(receiver->kernel, phase))
        receiver->failed = receive_payload(receiver);
}

/* Takes the mmap lock in write mode a known number of times, so that a count of zero means what it says. */
static void take_controls(struct kernel_receiver *receiver) {
    for (uint32_t i = 0; i < KERNEL_CONTROLS; i++)
        mprotect(receiver->scratch, KERNEL_PAGE, i % 2 ? PROT_READ | PROT_WRITE : PROT_READ);
}

static void receive_counted(struct kernel_receiver *receiver) {
    uint64_t before = receiver->receives;
    double until = zc_lab_seconds(CLOCK_MONOTONIC) + COUNTING_SECONDS;
    take_controls(receiver);
    while (receiver->failed == 0 && receiver->receives - before < receiver->kernel->quota && zc_lab_seconds(CLOCK_MONOTONIC) < until)
        receiver->failed = receive_payload(receiver);
    receiver->counted = receiver->receives - before;
}

static void measure(struct kernel_receiver *receiver) {
    memset(&receiver->latency, 0, sizeof receiver->latency);
    receiver->payloads = receiver->receives = receiver->mapped = receiver->copied = 0;
    double began = zc_lab_seconds(CLOCK_MONOTONIC), cpu = zc_lab_seconds(CLOCK_THREAD_CPUTIME_ID);
    receive_during(receiver, KERNEL_MEASURE);
    receiver->elapsed = zc_lab_seconds(CLOCK_MONOTONIC) - began;
    receiver->cpu = zc_lab_seconds(CLOCK_THREAD_CPUTIME_ID) - cpu;
}

void *kernel_receive(void *argument) {
    struct kernel_receiver *receiver = argument;
    struct kernel *kernel = receiver->kernel;
    receiver->id = gettid();
    receive_during(receiver, KERNEL_WARM_UP);
    kernel_arrive(kernel, KERNEL_COUNT);
    if (kernel_during(kernel, KERNEL_COUNT) && kernel->quota > 0)
        receive_counted(receiver);
    kernel_arrive(kernel, KERNEL_MEASURE);
    measure(receiver);
    return NULL;
}
