/* The floor: what a server costs that does nothing but move length-prefixed messages. One thread, epoll, no request ids, no errors, no flow
 * control.
 *
 *   c_echo echo     sends every message back as it came
 *   c_echo upload   receives bodies into one reused 1 MiB buffer (so no message is ever whole in memory), adds up the first byte of each of
 *                   their pages as they stream by, and answers with 16 bytes: a length of 8 and that sum
 *
 * Listens on 127.0.0.1, prints the port, and serves until it is killed. A message is 8 bytes of little-endian length, then the body. */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAGE 4096u
#define PREFIX 8u
#define BUFFER (1u << 20)

struct connection {
    int fd;
    unsigned char *bytes; /* echo: messages that are not whole yet, or not sent yet */
    size_t room, filled, sent;
    unsigned char prefix[PREFIX]; /* upload */
    uint64_t prefix_done, body, done, sum;
};

static unsigned char buffer[BUFFER];
static bool upload;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void close_connection(struct connection *connection) {
    close(connection->fd);
    free(connection->bytes);
    free(connection);
}

static void want(int epoll, struct connection *connection, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = connection};
    if (epoll_ctl(epoll, EPOLL_CTL_MOD, connection->fd, &event) < 0)
        die("epoll_ctl");
}

/* Length of the whole messages at the front of the buffer. */
static size_t whole_messages(const unsigned char *bytes, size_t filled, size_t *next) {
    size_t end = 0;
    uint64_t length;
    *next = PREFIX;
    while (filled - end >= PREFIX) {
        memcpy(&length, bytes + end, PREFIX);
        *next = PREFIX + le64toh(length);
        if (filled - end < *next)
            break;
        end += *next;
        *next = PREFIX;
    }
    return end;
}

/* Sends [sent, end). Returns whether all of it went out. */
static bool send_to(struct connection *connection, size_t end) {
    while (connection->sent < end) {
        ssize_t k = send(connection->fd, connection->bytes + connection->sent, end - connection->sent, MSG_NOSIGNAL);
        if (k < 0)
            return false;
        connection->sent += (size_t)k;
    }
    return true;
}

static bool echo_ready(int epoll, struct connection *connection) {
    size_t next, end = whole_messages(connection->bytes, connection->filled, &next);
    if (!send_to(connection, end)) {
        want(epoll, connection, EPOLLOUT); /* not read again until the peer has read */
        return errno == EAGAIN;
    }
    if (connection->filled > end)
        memmove(connection->bytes, connection->bytes + end, connection->filled - end);
    connection->filled -= end;
    connection->sent = 0;
    if (next + BUFFER > connection->room) {
        connection->room = next + BUFFER;
        connection->bytes = realloc(connection->bytes, connection->room);
        if (connection->bytes == NULL)
            die("realloc");
    }
    return true;
}

static bool echo(int epoll, struct connection *connection, uint32_t events) {
    if (events & EPOLLOUT) {
        want(epoll, connection, EPOLLIN);
        return echo_ready(epoll, connection);
    }
    ssize_t got = recv(connection->fd, connection->bytes + connection->filled, connection->room - connection->filled, 0);
    if (got <= 0)
        return got < 0 && errno == EAGAIN;
    connection->filled += (size_t)got;
    return echo_ready(epoll, connection);
}

static bool acknowledge(struct connection *connection) {
    uint64_t answer[2] = {htole64(8), htole64(connection->sum)};
    connection->prefix_done = connection->done = connection->sum = 0;
    return send(connection->fd, answer, sizeof answer, MSG_NOSIGNAL) == sizeof answer;
}

/* Takes one stretch of a stream of messages apart. */
static bool absorb(struct connection *connection, const unsigned char *at, size_t left) {
    while (left > 0) {
        if (connection->prefix_done < PREFIX) {
            connection->prefix[connection->prefix_done++] = *at++;
            left--;
            memcpy(&connection->body, connection->prefix, PREFIX);
            connection->body = le64toh(connection->body);
        } else {
            uint64_t rest = connection->body - connection->done, take = rest < left ? rest : left;
            for (uint64_t page = -connection->done % PAGE; page < take; page += PAGE)
                connection->sum += at[page];
            connection->done += take;
            at += take;
            left -= take;
        }
        if (connection->prefix_done == PREFIX && connection->done == connection->body && !acknowledge(connection))
            return false;
    }
    return true;
}

static bool take_upload(struct connection *connection) {
    ssize_t got = recv(connection->fd, buffer, BUFFER, 0);
    if (got <= 0)
        return got < 0 && errno == EAGAIN;
    return absorb(connection, buffer, (size_t)got);
}

static void accept_one(int epoll, int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
    if (fd < 0)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct connection *connection = calloc(1, sizeof *connection);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (connection == NULL)
        die("calloc");
    connection->fd = fd;
    connection->room = upload ? 0 : 64u << 10;
    connection->bytes = malloc(connection->room);
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll_ctl");
}

static int listen_on_loopback(void) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    if (listener < 0 || bind(listener, (struct sockaddr *)&at, size) < 0 || listen(listener, 1024) < 0 ||
        getsockname(listener, (struct sockaddr *)&at, &size) < 0)
        die("listen");
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    return listener;
}

int main(int argc, char **argv) {
    if (argc != 2 || (strcmp(argv[1], "echo") != 0 && strcmp(argv[1], "upload") != 0)) {
        fprintf(stderr, "usage: c_echo echo|upload\n");
        return 2;
    }
    upload = strcmp(argv[1], "upload") == 0;
    int epoll = epoll_create1(EPOLL_CLOEXEC), listener = listen_on_loopback();
    struct epoll_event event = {.events = EPOLLIN}, events[256];
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) < 0)
        die("epoll");
    for (;;) {
        int ready = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            struct connection *connection = events[i].data.ptr;
            if (connection == NULL)
                accept_one(epoll, listener);
            else if (!(upload ? take_upload(connection) : echo(epoll, connection, events[i].events)))
                close_connection(connection);
        }
    }
}
