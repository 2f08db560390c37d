/* The fair reader-writer lock: exclusion, order of arrival, tickets that wrap, sleepers that are woken. */
#include "lock/fair_rwlock.h"

#include <pthread.h>
#include <time.h>

#include "tests/check.h"

static void sleep_ms(long ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* ---- alone ---- */

static void uncontended_locks_wait_for_nobody(uint32_t start) {
    struct zc_fair_rwlock lock;
    zc_fair_init(&lock, start);
    for (int round = 0; round < 200000; round++) { /* past 65,536 of each kind: the carry from writers into readers */
        CHECK(!zc_fair_write_lock(&lock));
        zc_fair_write_unlock(&lock);
        CHECK(!zc_fair_read_lock(&lock));
        CHECK(!zc_fair_read_lock(&lock)); /* readers share */
        zc_fair_read_unlock(&lock);
        zc_fair_read_unlock(&lock);
    }
    CHECK_EQUAL(lock.requests, lock.completions);
    CHECK_EQUAL(lock.sleepers, 0);
}

/* ---- order ---- */

enum kind { READER, WRITER };

struct queue {
    struct zc_fair_rwlock lock;
    _Atomic int inside[2], entered;
};

struct arrival {
    struct queue *queue;
    enum kind kind;
    int position; /* of entering, from 1 */
};

static void *arrive(void *argument) {
    struct arrival *arrival = argument;
    struct queue *queue = arrival->queue;
    if (arrival->kind == WRITER)
        zc_fair_write_lock(&queue->lock);
    else
        zc_fair_read_lock(&queue->lock);
    arrival->position = atomic_fetch_add(&queue->entered, 1) + 1;
    int writers = atomic_fetch_add(&queue->inside[arrival->kind], 1) + (arrival->kind == READER ? atomic_load(&queue->inside[WRITER]) : 0);
    CHECK(arrival->kind == WRITER ? writers == 0 && atomic_load(&queue->inside[READER]) == 0 : atomic_load(&queue->inside[WRITER]) == 0);
    sleep_ms(2);
    atomic_fetch_sub(&queue->inside[arrival->kind], 1);
    if (arrival->kind == WRITER)
        zc_fair_write_unlock(&queue->lock);
    else
        zc_fair_read_unlock(&queue->lock);
    return NULL;
}

/* Everybody queues behind a holder, a few milliseconds apart; they must get in in that order, readers between two writers together. */
static void nobody_is_overtaken(uint32_t start, enum kind holder) {
    static const enum kind kinds[] = {READER, WRITER, READER, READER, WRITER, WRITER, READER};
    enum { COUNT = sizeof kinds / sizeof *kinds };
    struct queue queue = {.entered = 0};
    struct arrival arrivals[COUNT];
    pthread_t threads[COUNT];
    zc_fair_init(&queue.lock, start);
    if (holder == WRITER)
        zc_fair_write_lock(&queue.lock);
    else
        zc_fair_read_lock(&queue.lock);
    for (int i = 0; i < COUNT; i++) {
        uint32_t before = atomic_load(&queue.lock.requests);
        arrivals[i] = (struct arrival){.queue = &queue, .kind = kinds[i]};
        CHECK_EQUAL(pthread_create(&threads[i], NULL, arrive, &arrivals[i]), 0);
        while (atomic_load(&queue.lock.requests) == before)
            sleep_ms(1);
    }
    sleep_ms(5); /* all of them asleep, not spinning */
    CHECK_EQUAL(atomic_load(&queue.entered), holder == READER ? 1 : 0);
    if (holder == WRITER)
        zc_fair_write_unlock(&queue.lock);
    else
        zc_fair_read_unlock(&queue.lock);
    for (int i = 0; i < COUNT; i++)
        pthread_join(threads[i], NULL);
    CHECK_EQUAL(arrivals[0].position, 1);
    CHECK_EQUAL(arrivals[1].position, 2);
    CHECK_EQUAL(arrivals[2].position + arrivals[3].position, 3 + 4);
    CHECK_EQUAL(arrivals[4].position, 5);
    CHECK_EQUAL(arrivals[5].position, 6);
    CHECK_EQUAL(arrivals[6].position, 7);
    CHECK_EQUAL(atomic_load(&queue.lock.sleepers), 0);
}

/* ---- many ---- */

struct shared {
    struct zc_fair_rwlock lock;
    uint64_t a, b; /* equal except inside a writer; not atomic, for ThreadSanitizer to see */
    _Atomic uint64_t writes;
};

static void *hammer(void *argument) {
    struct shared *shared = argument;
    uint32_t random = (uint32_t)(uintptr_t)&random | 1;
    for (int round = 0; round < 20000; round++) {
        random = random * 1664525 + 1013904223;
        if (random >> 29 == 0) {
            zc_fair_write_lock(&shared->lock);
            shared->a++;
            shared->b++;
            zc_fair_write_unlock(&shared->lock);
            atomic_fetch_add(&shared->writes, 1);
        } else {
            zc_fair_read_lock(&shared->lock);
            CHECK_EQUAL(shared->a, shared->b);
            zc_fair_read_unlock(&shared->lock);
        }
    }
    return NULL;
}

static void writers_are_alone(uint32_t start) {
    struct shared shared = {.a = 0};
    pthread_t threads[6];
    zc_fair_init(&shared.lock, start);
    for (int i = 0; i < 6; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, hammer, &shared), 0);
    for (int i = 0; i < 6; i++)
        pthread_join(threads[i], NULL);
    CHECK_EQUAL(shared.a, shared.writes);
    CHECK_EQUAL(shared.lock.requests, shared.lock.completions);
    CHECK_EQUAL(shared.lock.sleepers, 0);
}

int main(void) {
    RUN(uncontended_locks_wait_for_nobody, 0);
    RUN(uncontended_locks_wait_for_nobody, 0xfffffff0);
    for (int holder = READER; holder <= WRITER; holder++) {
        RUN(nobody_is_overtaken, 0, holder);
        RUN(nobody_is_overtaken, 0xfffffffe, holder); /* writers carry into readers, and the whole word wraps */
        RUN(nobody_is_overtaken, 0x0003fffe, holder);
    }
    RUN(writers_are_alone, 0);
    RUN(writers_are_alone, 0xffff0000 - 3);
    return 0;
}
