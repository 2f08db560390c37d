/* The sending half of a reactor: replies come in batches, from the thread of the event loop.
 *
 * A send over loopback wakes the peer, and the kernel may well put it on this very CPU, taking the sender for about to sleep. Where large
 * payloads are under way the sender is not: the peer would wait for the end of our time slice. So what was submitted is followed by a
 * sched_yield, which costs a fraction of a microsecond where nobody waits. */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "net/reactor_state.h"

/* How long a connection that has sent everything waits for its peer to close, so that unread input does not turn the close into a reset
 * that destroys what the peer has not read yet. */
#define LINGER_MS 1000
/* Records of one connection that go into one vectored send. */
#define RUN 64

void zc_reactor_watch(struct zc_reactor *r, struct zc_connection *c) {
    bool unread = c->closing == ZC_OPEN && zc_outbound_queued(&c->out) > r->options.outbound_limit;
    uint32_t interest = (c->waits_for_memory || unread ? 0 : EPOLLIN) | (c->out.blocked ? EPOLLOUT : 0);
    if (interest == c->interest || c->doomed)
        return;
    struct epoll_event event = {.events = interest, .data.ptr = c};
    if (interest & EPOLLIN && !(c->interest & EPOLLIN))
        c->resumed_ms = zc_reactor_clock_ms();
    c->interest = interest;
    if (epoll_ctl(r->epoll_fd, EPOLL_CTL_MOD, c->fd, &event))
        zc_reactor_doom(r, c, ZC_CLOSE_SYSTEM, errno);
}

/* After a send: notes failure, progress and finished tokens, and ends a connection that was only to be flushed. */
void zc_reactor_sent(struct zc_reactor *r, struct zc_connection *c, int failed) {
    for (uint32_t i = 0; i < r->finishing.count; i++) {
        zc_tokens_add(&r->done, c->id);
        zc_tokens_add(&r->done, r->finishing.at[i]);
    }
    if (r->finishing.count)
        zc_reactor_wake(r);
    r->finishing.count = 0;
    if (failed) {
        zc_reactor_doom(r, c, ZC_CLOSE_SYSTEM, -failed);
        zc_reactor_wake(r);
        return;
    }
    if (c->closing == ZC_FLUSHING && zc_outbound_empty(&c->out)) {
        shutdown(c->fd, SHUT_WR);
        c->closing = ZC_LINGERING;
        c->linger_ms = zc_reactor_clock_ms() + LINGER_MS;
    }
    zc_reactor_watch(r, c);
}

static int flush(struct zc_reactor *r, struct zc_connection *c) {
    uint64_t before = r->sent.bytes;
    bool waited = c->out.blocked;
    int failed = zc_outbound_flush(&c->out, c->fd, &r->finishing, &r->sent);
    if (!waited || r->sent.bytes != before)
        c->out.progress_ms = zc_reactor_clock_ms();
    return failed;
}

void zc_reactor_flush(struct zc_reactor *r, struct zc_connection *c) {
    zc_reactor_sent(r, c, flush(r, c));
}

/* Sends a run of records at once if nothing waits before them; what is not taken is copied. */
static void send_run(struct zc_reactor *r, struct zc_connection *c, struct iovec *vectors, int count, uint64_t now_ms) {
    ssize_t sent = 0;
    r->sent.frames += (uint64_t)count;
    if (zc_outbound_empty(&c->out)) {
        sent = zc_send_vectors(c->fd, vectors, count, 0);
        if (sent < 0 && sent != -EAGAIN) {
            zc_reactor_sent(r, c, (int)sent);
            return;
        }
        if (sent < 0)
            sent = 0;
        r->sent.bytes += (uint64_t)sent;
        c->out.progress_ms = now_ms;
    }
    int failed = 0;
    uint64_t taken = (uint64_t)sent;
    for (int i = 0; i < count && !failed; i++) {
        uint64_t part = taken < vectors[i].iov_len ? taken : vectors[i].iov_len;
        taken -= part;
        if (part < vectors[i].iov_len)
            failed = zc_outbound_append(&c->out, (char *)vectors[i].iov_base + part, vectors[i].iov_len - part);
    }
    if (failed || !zc_outbound_empty(&c->out)) {
        c->out.blocked = true;
        zc_reactor_sent(r, c, failed);
    }
}

int zc_reactor_submit(struct zc_reactor *r, const void *records, uint64_t length) {
    const unsigned char *at = records, *end = at + length;
    struct zc_connection *c = NULL;
    struct iovec vectors[RUN];
    uint64_t id = 0, now_ms = zc_reactor_clock_ms();
    int count = 0, failed = 0;
    pthread_mutex_lock(&r->lock);
    while (at < end) {
        struct {
            uint64_t connection;
            uint32_t length, zero;
        } record;
        if ((uint64_t)(end - at) < ZC_RECORD_SIZE ||
            (memcpy(&record, at, ZC_RECORD_SIZE), record.length > (uint64_t)(end - at) - ZC_RECORD_SIZE)) {
            failed = -EINVAL;
            break;
        }
        if (record.connection != id || count == RUN) {
            if (c && count)
                send_run(r, c, vectors, count, now_ms);
            count = 0;
            id = record.connection;
            c = zc_reactor_find(r, id);
        }
        vectors[count++] = (struct iovec){(void *)(at + ZC_RECORD_SIZE), record.length};
        at += ZC_RECORD_SIZE + record.length;
    }
    if (c && count)
        send_run(r, c, vectors, count, now_ms);
    pthread_mutex_unlock(&r->lock);
    if (atomic_load_explicit(&r->bulky, memory_order_relaxed))
        sched_yield();
    return failed;
}

int zc_reactor_send(struct zc_reactor *r, uint64_t connection, const void *head, uint64_t head_length, const struct zc_buffer *buffers,
                    uint32_t count, uint64_t token) {
    pthread_mutex_lock(&r->lock);
    struct zc_connection *c = zc_reactor_find(r, connection);
    int result = c ? zc_outbound_queue(&c->out, head, head_length, buffers, count, token) : -ENOTCONN;
    if (result == 0 && !c->out.blocked) {
        int failed = flush(r, c);
        for (uint32_t i = 0; i < r->finishing.count; i++) {
            if (r->finishing.at[i] != token)
                continue;
            r->finishing.at[i] = r->finishing.at[--r->finishing.count];
            result = 1;
            break;
        }
        zc_reactor_sent(r, c, failed);
    }
    pthread_mutex_unlock(&r->lock);
    return result;
}

int64_t zc_reactor_queued(struct zc_reactor *r, uint64_t connection) {
    pthread_mutex_lock(&r->lock);
    struct zc_connection *c = zc_reactor_find(r, connection);
    int64_t result = c ? (int64_t)zc_outbound_queued(&c->out) : -ENOTCONN;
    pthread_mutex_unlock(&r->lock);
    return result;
}
