#include "net/reactor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "net/reactor_state.h"

/* Connection ids: a serial number that never repeats above the slot. A million connections at once, 17 million millions in all. */
#define SLOT_BITS 20
#define SLOT_MASK ((1u << SLOT_BITS) - 1)

uint64_t zc_reactor_clock_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

void zc_reactor_wake(struct zc_reactor *reactor) {
    uint64_t one = 1;
    ssize_t written = write(reactor->wake_fd, &one, sizeof one); /* fails only when it is at its limit, and then it is readable anyway */
    (void)written;
}

static void wake_from_map(void *context) {
    zc_reactor_wake(context);
}

/* ---- life ---- */

static void leave_cradle(struct zc_cradle *cradle) {
    if (!cradle || --cradle->connections)
        return;
    zc_nursery_drop(cradle->nursery);
    free(cradle);
}

static bool options_valid(const struct zc_reactor_options *o) {
    return o->receive <= ZC_RECEIVE_AUTO && o->place_from >= 1 && o->place_from <= 65536 && o->map_from >= o->place_from &&
           o->header_limit >= 64 && o->header_limit <= 131072 && o->payload_limit >= o->place_from;
}

static int make_batch(struct zc_batch *batch) {
    size_t events = ZC_BATCH_EVENTS * sizeof(struct zc_event);
    void *at = mmap(NULL, events + ZC_BATCH_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        return -ENOMEM;
    *batch = (struct zc_batch){at, (unsigned char *)at + events, ZC_BATCH_BYTES};
    return 0;
}

static int open_fds(struct zc_reactor *r) {
    r->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    r->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct epoll_event wake = {.events = EPOLLIN, .data.ptr = NULL};
    if (r->epoll_fd < 0 || r->wake_fd < 0 || epoll_ctl(r->epoll_fd, EPOLL_CTL_ADD, r->wake_fd, &wake))
        return -errno;
    return 0;
}

int zc_reactor_create(struct zc_map *map, const struct zc_reactor_options *options, struct zc_reactor **out) {
    if (!options_valid(options))
        return -EINVAL;
    struct zc_reactor *r = calloc(1, sizeof *r);
    if (!r)
        return -ENOMEM;
    zc_map_hold(map);
    r->map = map;
    r->options = *options;
    r->epoll_fd = r->wake_fd = r->handover.ready_fd = -1;
    pthread_mutex_init(&r->lock, NULL);
    int failed = open_fds(r);
    for (int i = 0; !failed && i < (options->threaded ? ZC_BATCHES : 1); i++)
        failed = make_batch(&r->batches[i]);
    struct zc_actor *actor = zc_actor_create(map);
    if (!failed && !actor)
        failed = -ENOMEM;
    r->intake =
        (struct zc_intake){.options = &r->options, .receiver = {.map = map, .actor = actor}, .policy = &r->policy, .stats = &r->received};
    if (!failed)
        failed = zc_map_add_waker(map, wake_from_map, r);
    if (!failed && options->threaded)
        failed = zc_handover_start(r);
    if (failed) {
        zc_reactor_destroy(r);
        return failed;
    }
    *out = r;
    return 0;
}

void zc_reactor_destroy(struct zc_reactor *r) {
    zc_handover_stop(r);
    zc_map_remove_waker(r->map, r);
    for (uint32_t i = 0; i < r->slot_count; i++) {
        if (r->slots[i])
            zc_reactor_remove(r, r->slots[i]);
    }
    for (int i = 0; i < ZC_BATCHES; i++) {
        if (r->batches[i].events)
            munmap(r->batches[i].events, ZC_BATCH_EVENTS * sizeof(struct zc_event) + ZC_BATCH_BYTES);
    }
    leave_cradle(r->cradle);
    if (r->epoll_fd >= 0)
        close(r->epoll_fd);
    if (r->wake_fd >= 0)
        close(r->wake_fd);
    if (r->intake.receiver.actor)
        zc_actor_destroy(r->map, r->intake.receiver.actor);
    free(r->slots);
    free(r->free_slots);
    free(r->done.at);
    free(r->finishing.at);
    pthread_mutex_destroy(&r->lock);
    zc_map_drop(r->map);
    free(r);
}

static void close_copy(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void zc_reactor_abandon(struct zc_reactor *r) {
    close_copy(&r->epoll_fd);
    close_copy(&r->wake_fd);
    close_copy(&r->handover.ready_fd);
    if (pthread_mutex_trylock(&r->lock) != 0)
        return; /* some thread was changing the table when the process was forked */
    for (uint32_t i = 0; i < r->slot_count; i++) {
        if (r->slots[i])
            close_copy(&r->slots[i]->fd);
    }
}

int zc_reactor_fd(struct zc_reactor *r) {
    return r->options.threaded ? r->handover.ready_fd : r->epoll_fd;
}

const struct zc_batch *zc_reactor_batch(struct zc_reactor *r, uint32_t index) {
    return index < ZC_BATCHES && r->batches[index].events ? &r->batches[index] : NULL;
}

void zc_reactor_set_probe(struct zc_reactor *r, struct zc_receive_probe *probe) {
    r->intake.receiver.probe = probe;
}

int64_t zc_reactor_poll(struct zc_reactor *r, int timeout_ms) {
    return r->options.threaded ? zc_handover_collect(r) : zc_reactor_work(r, 0, timeout_ms);
}

/* ---- connections ---- */

struct zc_connection *zc_reactor_find(struct zc_reactor *r, uint64_t id) {
    uint32_t slot = (uint32_t)id & SLOT_MASK;
    struct zc_connection *c = slot < r->slot_count ? r->slots[slot] : NULL;
    return c && c->id == id && !c->doomed ? c : NULL;
}

static int take_slot(struct zc_reactor *r, struct zc_connection *c) {
    uint32_t slot;
    if (r->free_count) {
        slot = r->free_slots[--r->free_count];
    } else {
        if (r->slot_count == r->slot_capacity) {
            uint32_t capacity = r->slot_capacity ? r->slot_capacity * 2 : 64;
            if (capacity > SLOT_MASK + 1)
                return -EMFILE;
            void *slots = realloc(r->slots, capacity * sizeof *r->slots);
            if (slots)
                r->slots = slots;
            void *free_slots = realloc(r->free_slots, capacity * sizeof *r->free_slots);
            if (free_slots)
                r->free_slots = free_slots;
            if (!slots || !free_slots)
                return -ENOMEM;
            r->slot_capacity = capacity;
        }
        slot = r->slot_count++;
    }
    c->id = ++r->serial << SLOT_BITS | slot;
    r->slots[slot] = c;
    r->connections++;
    return 0;
}

/* The cradle for one more connection: the last one, unless as many as may share it do (the reactor itself is counted too). */
static struct zc_cradle *join_cradle(struct zc_reactor *r) {
    uint32_t most = r->options.connections_per_nursery;
    if (!r->cradle || (most && r->cradle->connections > most)) {
        struct zc_cradle *fresh = calloc(1, sizeof *fresh);
        if (!fresh)
            return NULL;
        fresh->nursery = zc_nursery_create(r->map);
        if (!fresh->nursery) {
            free(fresh);
            return NULL;
        }
        fresh->connections = 1;
        leave_cradle(r->cradle);
        r->cradle = fresh;
    }
    r->cradle->connections++;
    return r->cradle;
}

int64_t zc_reactor_add(struct zc_reactor *r, int fd, int mapping) {
    int on = 1, flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -errno;
    struct zc_connection *c = calloc(1, sizeof *c);
    if (!c)
        return -ENOMEM;
    c->fd = fd;
    bool tcp = setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0;
    c->mapping = mapping && tcp && r->options.receive != ZC_RECEIVE_COPY;
    zc_outbound_init(&c->out);
    c->in.local = zc_is_local(fd);
    if (c->in.local)
        zc_unpace(fd);
    if (tcp && setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on) == 0)
        c->out.segment = zc_whole_pages(fd);
    c->out.progress_ms = zc_reactor_clock_ms();
    atomic_init(&c->in.progress_ms, c->out.progress_ms);

    pthread_mutex_lock(&r->lock);
    c->interest = EPOLLIN;
    c->cradle = join_cradle(r);
    struct epoll_event event = {.events = c->interest, .data.ptr = c};
    int failed = c->cradle ? take_slot(r, c) : -ENOMEM;
    if (!failed)
        failed = zc_outbound_append(&c->out, ZC_PREFACE, ZC_PREFACE_SIZE);
    if (!failed && epoll_ctl(r->epoll_fd, EPOLL_CTL_ADD, fd, &event))
        failed = -errno;
    int64_t id = failed ? failed : (int64_t)c->id;
    if (failed) {
        c->fd = -1; /* stays the caller's */
        zc_reactor_remove(r, c);
    } else {
        zc_reactor_flush(r, c);
    }
    pthread_mutex_unlock(&r->lock);
    return id;
}

void zc_reactor_remove(struct zc_reactor *r, struct zc_connection *c) {
    if (c->id) {
        uint32_t slot = (uint32_t)c->id & SLOT_MASK;
        r->slots[slot] = NULL;
        r->free_slots[r->free_count++] = slot;
        r->connections--;
    }
    if (c->fd >= 0)
        close(c->fd);
    zc_inbound_free(&c->in);
    zc_outbound_free(&c->out);
    leave_cradle(c->cradle);
    free(c);
}

void zc_reactor_doom(struct zc_reactor *r, struct zc_connection *c, enum zc_close reason, int error) {
    if (c->doomed)
        return;
    c->doomed = true;
    c->reason = (uint8_t)reason;
    c->error = error;
    c->next_doomed = r->doomed;
    r->doomed = c;
}

int zc_reactor_set_peer(struct zc_reactor *r, uint64_t connection, const struct zc_peer *peer) {
    if (peer->chunk < ZC_PAGE || peer->chunk % ZC_PAGE)
        return -EINVAL;
    pthread_mutex_lock(&r->lock);
    struct zc_connection *c = zc_reactor_find(r, connection);
    if (c)
        c->out.peer = *peer;
    pthread_mutex_unlock(&r->lock);
    return c ? 0 : -ENOTCONN;
}

int64_t zc_reactor_silence(struct zc_reactor *r, uint64_t connection) {
    pthread_mutex_lock(&r->lock);
    struct zc_connection *c = zc_reactor_find(r, connection);
    uint64_t now = zc_reactor_clock_ms(), heard = c ? zc_connection_heard_ms(c) : now;
    int64_t silence = c && c->interest & EPOLLIN && now > heard ? (int64_t)(now - heard) : 0;
    pthread_mutex_unlock(&r->lock);
    return c ? silence : -ENOTCONN;
}

int zc_reactor_disconnect(struct zc_reactor *r, uint64_t connection, int flush) {
    pthread_mutex_lock(&r->lock);
    struct zc_connection *c = zc_reactor_find(r, connection);
    if (c && flush && c->closing == ZC_OPEN) {
        c->closing = ZC_FLUSHING;
        zc_reactor_flush(r, c);
    } else if (c && !flush) {
        zc_reactor_doom(r, c, ZC_CLOSE_LOCAL, 0);
        zc_reactor_wake(r);
    }
    pthread_mutex_unlock(&r->lock);
    return c ? 0 : -ENOTCONN;
}

void zc_reactor_stats(struct zc_reactor *r, struct zc_reactor_stats *out) {
    pthread_mutex_lock(&r->lock);
    *out = r->published;
    out->connections = r->connections;
    out->frames_out = r->sent.frames;
    out->bytes_out = r->sent.bytes;
    out->sends_zerocopy = r->sent.zerocopy;
    out->sends_zerocopy_copied = r->sent.zerocopy_copied;
    for (uint32_t i = 0; i < r->slot_count; i++) {
        struct zc_connection *c = r->slots[i];
        if (!c)
            continue;
        out->outbound_bytes += zc_outbound_queued(&c->out);
        out->paused += !(c->interest & EPOLLIN);
    }
    pthread_mutex_unlock(&r->lock);
}
