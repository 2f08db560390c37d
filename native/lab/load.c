#include "lab/load.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lab/clock.h"
#include "lab/hello.h"
#include "net/outbound.h"

#define PAGE 4096u
#define EVENTS 256
#define SEND_BUFFER (512 << 10) /* bytes; takes a padded request of one segment at once */

static int fill_random(unsigned char *at, size_t size) {
    while (size > 0) {
        ssize_t got = getrandom(at, size, 0);
        if (got < 0)
            return -errno;
        at += got;
        size -= (size_t)got;
    }
    return 0;
}

static int make_pool(struct load *load) {
    uint64_t payload = load->options->payload;
    load->pool_size = payload + LOAD_VARIANTS * (size_t)PAGE;
    if (posix_memalign((void **)&load->pool, PAGE, load->pool_size) != 0)
        return -ENOMEM;
    int filled = fill_random(load->pool, load->pool_size);
    if (filled < 0)
        return filled;
    for (uint32_t variant = 0; variant < LOAD_VARIANTS; variant++)
        for (uint64_t at = 0; at < payload; at += PAGE)
            load->sums[variant] += load->pool[variant * (size_t)PAGE + at];
    return 0;
}

static void queue(struct load *load, struct load_connection *connection, uint32_t slot) {
    const struct zc_load_options *options = load->options;
    if (options->requests && load->issued == options->requests)
        return;
    connection->slots[slot].variant = load->issued++ % LOAD_VARIANTS;
    connection->queue[(connection->queue_head + connection->queued++) % options->in_flight] = slot;
}

void load_complete(struct load *load, struct load_connection *connection, uint32_t slot, bool failed, bool mismatch) {
    load->completed++;
    load->result.requests++;
    load->result.errors += failed;
    load->result.mismatches += mismatch;
    zc_histogram_record(&load->latency, zc_cycles() - connection->slots[slot].sent_at);
    connection->slots[slot].waiting = false;
    connection->expected = (connection->expected + 1) % load->options->in_flight;
    queue(load, connection, slot);
}

static int connect_loopback(uint32_t port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    const struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0)
        return -errno;
    if (connect(fd, (const struct sockaddr *)&to, sizeof to) < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one) < 0) {
        int error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

static int greet(const struct load *load, int fd) {
    unsigned char opening[ZC_PREFACE_SIZE + ZC_LAB_HELLO_SIZE];
    memcpy(opening, ZC_PREFACE, ZC_PREFACE_SIZE);
    size_t length = ZC_PREFACE_SIZE + zc_lab_hello(opening + ZC_PREFACE_SIZE, load->options->chunk, 0);
    ssize_t sent = send(fd, opening, length, MSG_NOSIGNAL);
    return sent < 0 ? -errno : (size_t)sent == length ? 0 : -EIO; /* the first bytes of a connection always fit */
}

static int measure_segment(struct load *load, int fd) {
    load->segment = zc_whole_pages(fd);
    return load->options->padded && load->segment == 0 ? -EOPNOTSUPP : 0;
}

static int open_connection(struct load *load, struct load_connection *connection) {
    uint32_t in_flight = load->options->in_flight;
    connection->sending = connection->bulk_slot = LOAD_NONE;
    connection->reply.step = load->options->protocol == ZC_LOAD_ZCRPC ? LOAD_PREFACE : LOAD_HEAD;
    connection->slots = calloc(in_flight, sizeof *connection->slots);
    connection->queue = calloc(in_flight, sizeof *connection->queue);
    if (connection->slots == NULL || connection->queue == NULL)
        return -ENOMEM;
    connection->fd = connect_loopback(load->options->port);
    if (connection->fd < 0)
        return connection->fd;
    int greeted = measure_segment(load, connection->fd), room = SEND_BUFFER;
    if (greeted == 0 && load->options->padded && setsockopt(connection->fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room) < 0)
        greeted = -errno;
    if (greeted == 0 && load->options->protocol == ZC_LOAD_ZCRPC)
        greeted = greet(load, connection->fd);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = connection};
    if (greeted == 0 && epoll_ctl(load->epoll, EPOLL_CTL_ADD, connection->fd, &event) < 0)
        return -errno;
    load->open++;
    for (uint32_t slot = 0; slot < in_flight; slot++)
        queue(load, connection, slot);
    return greeted;
}

static void close_connection(struct load *load, struct load_connection *connection) {
    for (uint32_t slot = 0; slot < load->options->in_flight; slot++)
        if (connection->slots[slot].waiting && !load->options->until_closed)
            load->result.errors++;
    close(connection->fd);
    connection->fd = -1;
    load->open--;
}

/* Everything that arrived. 0, or a negative errno; -EPIPE at the end of the stream. */
static int receive_all(struct load *load, struct load_connection *connection) {
    for (;;) {
        ssize_t got = recv(connection->fd, load->scratch, LOAD_SCRATCH, MSG_DONTWAIT);
        if (got < 0)
            return errno == EAGAIN ? 0 : -errno;
        if (got == 0)
            return -EPIPE;
        load->result.bytes_received += (uint64_t)got;
        int taken = load_receive(load, connection, load->scratch, (size_t)got);
        if (taken < 0 || ((size_t)got < LOAD_SCRATCH && load->options->payload < LOAD_SCRATCH))
            return taken; /* a short read: the queue was empty, and what comes next raises a new edge */
    }
}

/* What a connection's events ask for. 0, or a negative errno that ends the run. */
static int serve(struct load *load, struct load_connection *connection, uint32_t events) {
    int result = 0;
    if (connection->fd < 0)
        return 0;
    if (events & EPOLLIN)
        result = receive_all(load, connection);
    if (result == 0 && (events & EPOLLRDHUP)) /* no new edge will follow */
        result = receive_all(load, connection);
    if (result == 0 && (events & EPOLLERR) && connection->undrained > 0)
        result = load_drain_completions(connection);
    if (result == 0)
        result = load_send(load, connection);
    if (result == 0)
        return 0;
    close_connection(load, connection);
    return result == -EPROTO ? result : 0; /* a lost connection is a result: its calls count as errors */
}

/* Until the time is up, everything asked for is answered, or every connection is gone. */
static int run_until(struct load *load, double deadline) {
    struct epoll_event events[EVENTS];
    while (load->open > 0 && (load->options->requests == 0 || load->completed < load->options->requests)) {
        double left = deadline - zc_lab_seconds(CLOCK_MONOTONIC);
        if (left <= 0)
            break;
        int ready = epoll_wait(load->epoll, events, EVENTS, left < 0.1 ? 1 + (int)(left * 1e3) : 100);
        if (ready < 0 && errno != EINTR)
            return -errno;
        for (int i = 0; i < ready; i++) {
            int served = serve(load, events[i].data.ptr, events[i].events);
            if (served < 0)
                return served;
        }
    }
    return 0;
}

static int set_up(struct load *load) {
    const struct zc_load_options *options = load->options;
    int made = make_pool(load);
    if (made == 0)
        made = load_build_pieces(load);
    load->scratch = malloc(LOAD_SCRATCH);
    load->connections = calloc(options->connections, sizeof *load->connections);
    if (made < 0 || load->scratch == NULL || load->connections == NULL)
        return made < 0 ? made : -ENOMEM;
    for (uint32_t i = 0; i < options->connections; i++)
        load->connections[i].fd = -1;
    load->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (load->epoll < 0)
        return -errno;
    for (uint32_t i = 0; i < options->connections; i++) {
        int opened = open_connection(load, &load->connections[i]);
        if (opened < 0)
            return opened;
    }
    return load_open_pipe(load);
}

static void tear_down(struct load *load) {
    for (uint32_t i = 0; load->connections != NULL && i < load->options->connections; i++) {
        if (load->connections[i].fd >= 0)
            close(load->connections[i].fd);
        free(load->connections[i].slots);
        free(load->connections[i].queue);
    }
    if (load->epoll >= 0)
        close(load->epoll);
    if (load->pipe[0] >= 0) {
        close(load->pipe[0]);
        close(load->pipe[1]);
    }
    free(load->connections);
    free(load->scratch);
    free(load->pieces);
    free(load->heads);
    free(load->pool);
}

static int warm_up(struct load *load) {
    if (load->options->warm_up_seconds <= 0)
        return 0;
    int ran = run_until(load, zc_lab_seconds(CLOCK_MONOTONIC) + load->options->warm_up_seconds);
    load->result = (struct zc_load_result){.errors = load->result.errors, .mismatches = load->result.mismatches}; /* these count always */
    memset(&load->latency, 0, sizeof load->latency);
    return ran;
}

static int measure(struct load *load) {
    struct zc_load_result *result = &load->result;
    double cycles_per_second = zc_lab_cycles_per_second(ZC_LAB_CALIBRATION);
    clockid_t server = CLOCK_MONOTONIC;
    if (load->options->server_pid != 0 && clock_getcpuclockid((pid_t)load->options->server_pid, &server) != 0)
        return -ESRCH;
    int ran = warm_up(load);
    double started = zc_lab_seconds(CLOCK_MONOTONIC), cpu = zc_lab_seconds(CLOCK_THREAD_CPUTIME_ID), server_cpu = zc_lab_seconds(server);
    if (ran == 0)
        ran = run_until(load, started + load->options->seconds);
    result->elapsed_seconds = zc_lab_seconds(CLOCK_MONOTONIC) - started;
    result->cpu_seconds = zc_lab_seconds(CLOCK_THREAD_CPUTIME_ID) - cpu;
    if (load->options->server_pid != 0)
        result->server_cpu_seconds = zc_lab_seconds(server) - server_cpu;
    zc_lab_latency(&load->latency, cycles_per_second, &result->latency);
    return ran;
}

/* splice knows no MSG_NOSIGNAL: into a connection that the server has closed it would end the process. So the thread that generates the load
 * blocks SIGPIPE, and takes what came before it lets it through again, unless it was blocked all along. */
static void hold_back_sigpipe(sigset_t *before) {
    sigset_t pipe;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, before);
}

static void let_through_sigpipe(const sigset_t *before) {
    sigset_t pipe;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    if (!sigismember(before, SIGPIPE))
        sigtimedwait(&pipe, NULL, &(struct timespec){0});
    pthread_sigmask(SIG_SETMASK, before, NULL);
}

int zc_load_run(const struct zc_load_options *options, struct zc_load_result *result) {
    if (options->connections == 0 || options->in_flight == 0 || options->port == 0 || options->port > UINT16_MAX)
        return -EINVAL;
    if (options->protocol == ZC_LOAD_ZCRPC && (options->chunk == 0 || options->chunk % PAGE != 0))
        return -EINVAL;
    struct load *load = calloc(1, sizeof *load);
    if (load == NULL)
        return -ENOMEM;
    load->options = options;
    load->epoll = load->pipe[0] = load->pipe[1] = -1;
    sigset_t before;
    hold_back_sigpipe(&before);
    int ran = set_up(load);
    if (ran == 0)
        ran = measure(load);
    *result = load->result;
    tear_down(load);
    let_through_sigpipe(&before);
    free(load);
    return ran;
}
