/* The floor: what a server costs that does nothing but move length-prefixed messages. One thread, epoll, no request ids, no errors, no flow
 * control.
 *
 *   c_echo echo     sends every message back as it came
 *   c_echo upload   receives bodies into one reused 1 MiB buffer (so no message is ever whole in memory), adds up the first byte of each of
 *                   their pages as they stream by, and answers with 16 bytes: a length of 8 and that sum
 *   c_echo download BYTES   answers every message with so many bytes, the last 8 of which are the sum of their pages' first bytes
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
    unsigned char prefix[PREFIX]; /* upload, download */
    uint64_t prefix_done, body, done, sum;
    uint64_t owed; /* download: replies; `sent` counts in the first of them */
};

static unsigned char buffer[BUFFER];
static enum { ECHO, UPLOAD, DOWNLOAD } mode;
static unsigned char *reply; /* download: prefix and body */
static size_t reply_size;

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

/* Sends [sent, end) of these bytes. Returns whether all of it went out. */
static bool send_to(struct connection *connection, const unsigned char *bytes, size_t end) {
    while (connection->sent < end) {
        ssize_t k = send(connection->fd, bytes + connection->sent, end - connection->sent, MSG_NOSIGNAL);
        if (k < 0)
            return false;
        connection->sent += (size_t)k;
    }
    return true;
}

static bool echo_ready(int epoll, struct connection *connection) {
    size_t next, end = whole_messages(connection->bytes, connection->filled, &next);
    if (!send_to(connection, connection->bytes, end)) {
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

/* A message is whole: an upload is answered, a download is owed. */
static bool answer_to(struct connection *connection) {
    uint64_t answer[2] = {htole64(8), htole64(connection->sum)};
    connection->prefix_done = connection->done = connection->sum = 0;
    connection->owed += mode == DOWNLOAD;
    if (mode == DOWNLOAD)
        return true;
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
        if (connection->prefix_done == PREFIX && connection->done == connection->body && !answer_to(connection))
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

static bool send_owed(int epoll, struct connection *connection) {
    for (; connection->owed > 0; connection->owed--) {
        if (!send_to(connection, reply, reply_size)) {
            want(epoll, connection, EPOLLOUT);
            return errno == EAGAIN;
        }
        connection->sent = 0;
    }
    return true;
}

static bool download(int epoll, struct connection *connection, uint32_t events) {
    if (events & EPOLLOUT) {
        want(epoll, connection, EPOLLIN);
        return send_owed(epoll, connection);
    }
    return take_upload(connection) && send_owed(epoll, connection);
}

static bool serve(int epoll, struct connection *connection, uint32_t events) {
    switch (mode) {
    case UPLOAD:
        return take_upload(connection);
    case DOWNLOAD:
        return download(epoll, connection, events);
    default:
        return echo(epoll, connection, events);
    }
}

static void make_reply(size_t body) {
    uint64_t length = htole64(body), sum = 0;
    reply_size = PREFIX + body;
    reply = malloc(reply_size);
    if (reply == NULL)
        die("malloc");
    memcpy(reply, &length, PREFIX);
    for (size_t i = 0; i < body; i++)
        reply[PREFIX + i] = (unsigned char)random();
    for (size_t page = 0; page < body - 8; page += PAGE)
        sum += reply[PREFIX + page];
    sum = htole64(sum);
    memcpy(reply + reply_size - 8, &sum, 8);
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
    connection->room = mode == ECHO ? 64u << 10 : 0;
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
    const char *wanted = argc > 1 ? argv[1] : "";
    size_t bytes = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;
    mode = strcmp(wanted, "upload") == 0 ? UPLOAD : strcmp(wanted, "download") == 0 ? DOWNLOAD : ECHO;
    if ((mode == ECHO && strcmp(wanted, "echo") != 0) || (mode == DOWNLOAD && bytes < 8)) {
        fprintf(stderr, "usage: c_echo echo|upload|download BYTES\n");
        return 2;
    }
    if (mode == DOWNLOAD)
        make_reply(bytes);
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
            else if (!serve(epoll, connection, events[i].events))
                close_connection(connection);
        }
    }
}
