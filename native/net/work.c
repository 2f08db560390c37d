/* One round of a reactor's work: what is ready is received, parsed and sent, and everything that happened becomes a batch of events.
 *
 * Small before large: connections in the middle of a large payload, in either direction, come after all others, so that what is small is
 * first in the batch, too; and they share ROUND_BULK bytes, so that the next round, with what is small by then, is never far. Those that
 * waited longest come first. One has its turn in any case; before all others, if they left it no room in the last round.
 *
 * While there is nothing but large payloads, and nothing to tell of them, round follows round, up to ALONE_BULK bytes: a turn of the event
 * loop costs a tenth of what receiving a chunk does. */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "net/reactor_state.h"

/* Sockets looked at in one round. So few that what they bring, and what is answered, stays in the cache until it is sent, and that who is
 * answered first works while the others are: with 100 callers of 4 KiB on each side a tenth more calls than with all of them in a round. */
#define READY 32
/* Events after which a round ends although more is ready, so that the first replies do not wait for the last request. */
#define ENOUGH 1024
/* Bytes of large payloads after which a round ends: 0.1 to 0.2 ms of copying. A payload of several chunks that is handed over ends it, too,
 * since its handler will take its time. */
#define ROUND_BULK ZC_CHUNK_BYTES
/* Bytes of large payloads after which the event loop has its turn although there is nothing for it here: about a millisecond. */
#define ALONE_BULK (4 * ROUND_BULK)
/* Stalled connections are looked for this often. */
#define SWEEP_MS 500

/* The last chunk of a payload from this host is waited for awake, once some of it is here: the sender is copying the rest on another core, at
 * gigabytes a second, and going to sleep takes about as long, and costs the sender a wake-up. Where it does not come in time (the sender was
 * preempted, or is this very thread) the next ones are waited for asleep. */
#define AWAKE_NS 100000u
#define ASLEEP 32

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
    r->ending |= !failed && zc_inbound_ending(&c->in);
    if (waits != c->waits_for_memory)
        set_waiting(r, c, waits);
    if (failed && !waits)
        doom(r, c, reason, reason == ZC_CLOSE_SYSTEM ? -failed : 0);
}

/* A connection in the middle of a large payload, which is ready to go on with it. */
struct bulk_turn {
    struct zc_connection *connection;
    bool in, out;
};

struct bulk {
    struct bulk_turn turns[READY];
    uint32_t count;
};

static bool bulky_out(struct zc_reactor *r, struct zc_connection *c) {
    pthread_mutex_lock(&r->lock);
    bool bulky = zc_outbound_bulky(&c->out);
    pthread_mutex_unlock(&r->lock);
    return bulky;
}

static void attend_errors(struct zc_reactor *r, struct zc_connection *c) {
    int error = 0;
    socklen_t size = sizeof error;
    if (zc_outbound_reports(&c->out, c->fd, &r->finishing, &r->sent))
        zc_reactor_sent(r, c, 0);
    else if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error)
        zc_reactor_doom(r, c, ZC_CLOSE_SYSTEM, error);
}

static void attend_output(struct zc_reactor *r, struct zc_connection *c, uint32_t ready) {
    pthread_mutex_lock(&r->lock);
    if (ready & EPOLLERR)
        attend_errors(r, c);
    if (ready & EPOLLOUT && !c->doomed && !zc_outbound_bulky(&c->out))
        zc_reactor_flush(r, c);
    pthread_mutex_unlock(&r->lock);
}

static void attend(struct zc_reactor *r, struct zc_connection *c, uint32_t ready) {
    if (ready & (EPOLLERR | EPOLLOUT)) {
        attend_output(r, c, ready);
        if (c->doomed)
            return;
    }
    if (ready & EPOLLIN) {
        if (c->closing != ZC_OPEN)
            drain(r, c);
        else if (!zc_inbound_bulky(&c->in))
            turn(r, c);
    } else if (ready & EPOLLHUP) { /* not read now, and gone in both directions: nothing could be answered */
        doom(r, c, ZC_CLOSE_EOF, 0);
    }
}

static void find_bulk(struct zc_reactor *r, struct bulk *bulk, const struct epoll_event *ready, int n) {
    bulk->count = 0;
    for (int i = 0; i < n; i++) {
        struct zc_connection *c = ready[i].data.ptr;
        if (!c || c->doomed)
            continue;
        bool in = ready[i].events & EPOLLIN && zc_inbound_bulky(&c->in) && c->closing == ZC_OPEN && !c->waits_for_memory;
        bool out = ready[i].events & EPOLLOUT && bulky_out(r, c);
        if (in || out)
            bulk->turns[bulk->count++] = (struct bulk_turn){c, in, out};
    }
}

static void send_bulk(struct zc_reactor *r, struct zc_connection *c) {
    pthread_mutex_lock(&r->lock);
    uint64_t before = r->sent.bytes;
    zc_reactor_flush(r, c);
    r->intake.bulk += r->sent.bytes - before;
    pthread_mutex_unlock(&r->lock);
}

/* Gives a turn to the one that has waited longest. */
static void attend_bulk(struct zc_reactor *r, struct bulk *bulk) {
    uint32_t first = 0;
    for (uint32_t i = 1; i < bulk->count; i++) {
        if (bulk->turns[i].connection->bulk_turn < bulk->turns[first].connection->bulk_turn)
            first = i;
    }
    struct bulk_turn next = bulk->turns[first];
    bulk->turns[first] = bulk->turns[--bulk->count];
    next.connection->bulk_turn = ++r->bulk_turns;
    if (next.out)
        send_bulk(r, next.connection);
    if (next.in && !next.connection->doomed)
        turn(r, next.connection);
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

/* Whether the reactor was woken. The kernel tells of sockets that stay ready in the same order again and again: so where the round ends
 * before all were attended to, the next begins with the first of those who were left. */
static bool attend_others(struct zc_reactor *r, const struct epoll_event *ready, int n) {
    bool woken = false;
    int begin = r->left < n ? r->left : 0, left = -1;
    for (int k = 0; k < n; k++) {
        int i = begin + k < n ? begin + k : begin + k - n;
        struct zc_connection *c = ready[i].data.ptr;
        if (!c) {
            uint64_t count;
            woken = read(r->wake_fd, &count, sizeof count) > 0;
        } else if (c->doomed) {
            continue;
        } else if (r->intake.events < ENOUGH && zc_intake_room(&r->intake)) {
            attend(r, c, ready[i].events);
        } else if (left < 0) {
            left = i;
        }
    }
    r->left = left < 0 ? 0 : left;
    return woken;
}

static uint64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Ready sockets, as epoll_wait; where a payload is about to end, not before it has or AWAKE_NS are over. */
static int wait_for_sockets(struct zc_reactor *r, struct epoll_event *ready, int timeout_ms) {
    int n = epoll_wait(r->epoll_fd, ready, READY, timeout_ms);
    bool ending = r->ending && n == 0;
    r->ending = false;
    if (!ending || r->asleep) {
        r->asleep -= ending;
        return n;
    }
    uint64_t end = clock_ns() + AWAKE_NS;
    do {
        sched_yield(); /* to the sender, where it has no other core */
        n = epoll_wait(r->epoll_fd, ready, READY, 0);
    } while (n == 0 && clock_ns() < end);
    r->asleep = n ? 0 : ASLEEP;
    return n;
}

/* 0 or a negative errno. */
static int round_of_work(struct zc_reactor *r, int timeout_ms) {
    struct epoll_event ready[READY];
    struct zc_intake *intake = &r->intake;
    intake->bulk = 0;
    int n = wait_for_sockets(r, ready, timeout_ms);
    if (n < 0 && errno != EINTR)
        return -errno;
    r->now_ms = zc_reactor_clock_ms();
    uint64_t bulk_turns = r->bulk_turns;
    struct bulk bulk;
    find_bulk(r, &bulk, ready, n);
    if (r->bulk_waits && bulk.count)
        attend_bulk(r, &bulk);
    bool woken = attend_others(r, ready, n);
    find_bulk(r, &bulk, ready, n);
    while (bulk.count && zc_intake_room(intake) && (intake->bulk < ROUND_BULK || r->bulk_turns == bulk_turns))
        attend_bulk(r, &bulk);
    r->bulk_waits = bulk.count && r->bulk_turns == bulk_turns;
    if (woken && r->starved)
        feed_starved(r);
    return 0;
}

static bool nothing_to_tell(struct zc_reactor *r) {
    pthread_mutex_lock(&r->lock);
    bool nothing = !r->intake.events && !r->done.count && !r->doomed;
    pthread_mutex_unlock(&r->lock);
    return nothing;
}

int64_t zc_reactor_work(struct zc_reactor *r, uint32_t index, int timeout_ms) {
    struct zc_intake *intake = &r->intake;
    intake->batch = &r->batches[index];
    intake->events = 0;
    intake->used = 0;
    uint64_t alone = 0;
    r->ending = false;
    do {
        int failed = round_of_work(r, timeout_ms);
        if (failed)
            return failed;
        alone += intake->bulk;
        timeout_ms = 0;
    } while (intake->bulk && alone < ALONE_BULK && nothing_to_tell(r));
    atomic_store_explicit(&r->bulky, intake->bulk || r->bulk_waits, memory_order_relaxed);
    sweep(r);
    report_ends(r);
    return intake->events;
}
