/* One round of a reactor's work: what is ready is received, parsed and sent, and everything that happened becomes a batch of events. */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/reactor_state.h"

/* Sockets looked at in one round. */
#define READY 256
/* Events after which a round ends although more is ready, so that the first replies do not wait for the last request. */
#define ENOUGH 1024
/* Stalled connections are looked for this often. */
#define SWEEP_MS 500

static void doom(struct zc_reactor *r, struct zc_connection *c, enum zc_close reason, int error) {
    pthread_mutex_lock(&r->lock);
    zc_reactor_doom(r, c, reason, error);
    pthread_mutex_unlock(&r->lock);
}

static void set_waiting(struct zc_reactor *r, struct zc_connection *c, bool waits) {
    r->starved += waits ? 1 : -1u;
    pthread_mutex_lock(&r->lock);
    c->waits_for_memory = waits;
    zc_reactor_watch(r, c);
    pthread_mutex_unlock(&r->lock);
}

/* What still comes in on a connection that only waits for its peer to close. */
static void drain(struct zc_reactor *r, struct zc_connection *c) {
    struct zc_batch *batch = r->intake.batch;
    ssize_t n = recv(c->fd, batch->data + r->intake.used, batch->capacity - r->intake.used, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        doom(r, c, ZC_CLOSE_LOCAL, 0);
}

static void turn(struct zc_reactor *r, struct zc_connection *c) {
    enum zc_close reason = ZC_CLOSE_SYSTEM;
    int failed = zc_inbound_turn(&c->in, &r->intake, c->cradle->nursery, c->id, c->fd, c->mapping, &reason);
    atomic_store_explicit(&c->in.progress_ms, r->now_ms, memory_order_relaxed);
    bool waits = failed == -ENOBUFS;
    if (waits != c->waits_for_memory)
        set_waiting(r, c, waits);
    if (failed && !waits)
        doom(r, c, reason, reason == ZC_CLOSE_SYSTEM ? -failed : 0);
}

static void attend(struct zc_reactor *r, struct zc_connection *c, uint32_t ready) {
    if (ready & (EPOLLERR | EPOLLOUT)) {
        pthread_mutex_lock(&r->lock);
        int error = 0, reports = 0;
        socklen_t size = sizeof error;
        if (ready & EPOLLERR)
            reports = zc_outbound_reports(&c->out, c->fd, &r->finishing, &r->sent);
        if (ready & EPOLLERR && !reports)
            getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error)
            zc_reactor_doom(r, c, ZC_CLOSE_SYSTEM, error);
        else
            zc_reactor_flush(r, c);
        pthread_mutex_unlock(&r->lock);
        if (c->doomed)
            return;
    }
    if (ready & EPOLLIN) {
        if (c->closing == ZC_OPEN)
            turn(r, c);
        else
            drain(r, c);
    } else if (ready & EPOLLHUP) { /* not read now, and gone in both directions: nothing could be answered */
        doom(r, c, ZC_CLOSE_EOF, 0);
    }
}

/* The connection in a slot. Only the thread that polls frees connections, so for it the pointer stays good without the mutex. */
static struct zc_connection *at_slot(struct zc_reactor *r, uint32_t slot, uint32_t *slots) {
    pthread_mutex_lock(&r->lock);
    *slots = r->slot_count;
    struct zc_connection *c = slot < *slots ? r->slots[slot] : NULL;
    pthread_mutex_unlock(&r->lock);
    return c;
}

/* There is memory again: those that wait for it try in turn, each time beginning elsewhere, so that no slot is always first. */
static void feed_starved(struct zc_reactor *r) {
    uint32_t slots, begin;
    at_slot(r, 0, &slots);
    begin = (uint32_t)r->rounds++ % slots;
    for (uint32_t i = 0; i < slots && r->starved; i++) {
        struct zc_connection *c = at_slot(r, (begin + i) % slots, &slots);
        if (!c || !c->waits_for_memory || c->doomed)
            continue;
        if (!zc_intake_room(&r->intake)) {
            zc_reactor_wake(r);
            return;
        }
        turn(r, c);
    }
}

static void sweep_one(struct zc_reactor *r, struct zc_connection *c) {
    uint64_t now = r->now_ms, stall = r->options.stall_ms;
    if (c->doomed)
        return;
    if (c->closing == ZC_LINGERING) {
        if (now >= c->linger_ms)
            zc_reactor_doom(r, c, ZC_CLOSE_LOCAL, 0);
        return;
    }
    if (!stall)
        return;
    bool waits = !c->in.hello || zc_inbound_unfinished(&c->in);
    uint64_t since = zc_connection_heard_ms(c);
    if (waits && c->interest & EPOLLIN && now > since + stall)
        zc_reactor_doom(r, c, ZC_CLOSE_STALLED, 0);
    else if (c->out.blocked && now > c->out.progress_ms + stall)
        zc_reactor_doom(r, c, ZC_CLOSE_UNREAD, 0);
}

static void sweep(struct zc_reactor *r) {
    if (r->now_ms < r->next_sweep_ms)
        return;
    r->next_sweep_ms = r->now_ms + SWEEP_MS;
    pthread_mutex_lock(&r->lock);
    for (uint32_t i = 0; i < r->slot_count; i++) {
        if (r->slots[i])
            sweep_one(r, r->slots[i]);
    }
    pthread_mutex_unlock(&r->lock);
}

/* Tells of what ended since the last round, as far as the batch has room. */
static void report_ends(struct zc_reactor *r) {
    struct zc_intake *intake = &r->intake;
    pthread_mutex_lock(&r->lock);
    uint32_t told = 0;
    for (; told < r->done.count && intake->events < ZC_BATCH_EVENTS; told += 2)
        zc_intake_event(intake, r->done.at[told], ZC_EVENT_SENT)->aux = r->done.at[told + 1];
    r->done.count -= told;
    if (r->done.count)
        memmove(r->done.at, r->done.at + told, r->done.count * sizeof *r->done.at);
    while (r->doomed && intake->events < ZC_BATCH_EVENTS) {
        struct zc_connection *c = r->doomed;
        struct zc_event *event = zc_intake_event(intake, c->id, ZC_EVENT_CLOSED);
        event->method = c->reason;
        event->aux = (uint64_t)c->error;
        r->doomed = c->next_doomed;
        r->starved -= c->waits_for_memory;
        zc_reactor_remove(r, c);
    }
    if (r->done.count || r->doomed)
        zc_reactor_wake(r);
    r->published = r->received;
    pthread_mutex_unlock(&r->lock);
}

int64_t zc_reactor_work(struct zc_reactor *r, uint32_t index, int timeout_ms) {
    struct epoll_event ready[READY];
    struct zc_intake *intake = &r->intake;
    bool woken = false;
    intake->batch = &r->batches[index];
    intake->events = 0;
    intake->used = 0;
    int n = epoll_wait(r->epoll_fd, ready, READY, timeout_ms);
    if (n < 0 && errno != EINTR)
        return -errno;
    r->now_ms = zc_reactor_clock_ms();
    for (int i = 0; i < n; i++) {
        struct zc_connection *c = ready[i].data.ptr;
        if (!c) {
            uint64_t count;
            woken = read(r->wake_fd, &count, sizeof count) > 0;
        } else if (!c->doomed && intake->events < ENOUGH && zc_intake_room(intake)) {
            attend(r, c, ready[i].events);
        }
    }
    if (woken && r->starved)
        feed_starved(r);
    sweep(r);
    report_ends(r);
    return intake->events;
}
