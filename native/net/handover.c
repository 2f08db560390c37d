/* The reactor's own thread, and how its batches reach the event loop.
 *
 *   reactor's thread    unused → filled by a round of work → ready, eventfd
 *   event loop          ready → taken, until the next collect → unused
 *
 * When the loop is slow the thread runs out of unused batches and waits, and with it TCP: that is the back-pressure. */
#include <errno.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "net/reactor_state.h"

/* A round waits this long at most, so that stalled connections are swept. */
#define ROUND_MS 500

/* The next unused batch, or -1 when the thread is to stop. */
static int64_t take_unused(struct zc_handover *h) {
    pthread_mutex_lock(&h->lock);
    while (!h->unused_count && !h->stop)
        pthread_cond_wait(&h->freed, &h->lock);
    int64_t index = h->stop ? -1 : (int64_t)h->unused[--h->unused_count];
    pthread_mutex_unlock(&h->lock);
    return index;
}

static void put_ready(struct zc_handover *h, uint32_t index, int64_t events) {
    uint64_t one = 1;
    pthread_mutex_lock(&h->lock);
    if (events > 0) {
        h->ready_events[h->ready_count] = (uint32_t)events;
        h->ready[h->ready_count++] = index;
    } else {
        h->unused[h->unused_count++] = index;
        h->failed = (int)events;
    }
    pthread_mutex_unlock(&h->lock);
    if (events == 0)
        return;
    ssize_t written = write(h->ready_fd, &one, sizeof one);
    (void)written;
}

static void *run(void *argument) {
    struct zc_reactor *r = argument;
    int64_t events = 0, index;
    while (events >= 0 && (index = take_unused(&r->handover)) >= 0) {
        events = zc_reactor_work(r, (uint32_t)index, ROUND_MS);
        put_ready(&r->handover, (uint32_t)index, events);
    }
    return NULL;
}

int zc_handover_start(struct zc_reactor *r) {
    struct zc_handover *h = &r->handover;
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->freed, NULL);
    h->taken = -1;
    for (uint32_t i = 0; i < ZC_BATCHES; i++)
        h->unused[h->unused_count++] = i;
    h->ready_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (h->ready_fd < 0)
        return -errno;
    sigset_t all, before; /* signals are for the threads of the program that embeds us */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&h->thread, NULL, run, r);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    h->running = !failed;
    return -failed;
}

void zc_handover_stop(struct zc_reactor *r) {
    struct zc_handover *h = &r->handover;
    if (h->running) {
        pthread_mutex_lock(&h->lock);
        h->stop = true;
        pthread_cond_signal(&h->freed);
        pthread_mutex_unlock(&h->lock);
        zc_reactor_wake(r);
        pthread_join(h->thread, NULL);
        for (uint32_t i = 0; i < h->ready_count; i++) { /* nobody will take these */
            for (uint32_t e = 0; e < h->ready_events[i]; e++) {
                struct zc_lease *lease = (struct zc_lease *)(uintptr_t)r->batches[h->ready[i]].events[e].lease;
                if (lease)
                    zc_lease_release(lease);
            }
        }
        pthread_cond_destroy(&h->freed);
        pthread_mutex_destroy(&h->lock);
    }
    if (h->ready_fd >= 0)
        close(h->ready_fd);
}

int64_t zc_handover_collect(struct zc_reactor *r) {
    struct zc_handover *h = &r->handover;
    pthread_mutex_lock(&h->lock);
    if (h->taken >= 0) {
        h->unused[h->unused_count++] = (uint32_t)h->taken;
        pthread_cond_signal(&h->freed);
        h->taken = -1;
    }
    int64_t result = h->failed;
    if (h->ready_count) {
        result = (int64_t)h->ready[0] << 32 | h->ready_events[0];
        h->taken = h->ready[0];
        h->ready_count--;
        for (uint32_t i = 0; i < h->ready_count; i++) {
            h->ready[i] = h->ready[i + 1];
            h->ready_events[i] = h->ready_events[i + 1];
        }
    }
    if (!h->ready_count && !h->failed) { /* nothing is left to be readable for */
        uint64_t count;
        ssize_t n = read(h->ready_fd, &count, sizeof count);
        (void)n;
    }
    pthread_mutex_unlock(&h->lock);
    return result;
}
