/* A fair reader-writer lock: first come, first served; one read-modify-write in, one out.
 *
 * The reader-writer ticket lock of Mellor-Crummey and Scott (PPoPP '91), with waiters that sleep:
 *
 *   requests, completions   each counts writers in its low and readers in its high 16 bits
 *
 *   read_lock     ticket = requests, requests += 1 reader      wait until completions' writers  == ticket's writers
 *   write_lock    ticket = requests, requests += 1 writer      wait until completions           == ticket
 *   unlock        completions += 1 reader or 1 writer
 *
 * A reader waits for the writers that came before it, a writer for everybody that did: nobody is overtaken, nobody starves.
 *
 * Invariants. Completions never get ahead of requests, and nobody that came after a waiter can complete what the waiter compares with. The
 * carry from writers into readers after 65,536 of them is the same in both words, since both are sums of the same terms; and two words
 * that differ by fewer than 65,536 of each kind are equal only if nothing is missing. So fewer than 65,536 threads may queue at a time.
 *
 * Memory orders. completions carries all of it: unlocking adds with release, the waiter that sees the sum loads with acquire, and since only
 * read-modify-writes change the word, it synchronises with every earlier unlock at once. `requests` only hands out tickets: relaxed.
 *
 * Sleeping. After a short spin a waiter counts itself in `sleepers`, then reads completions again, then sleeps on it; an unlocker changes
 * completions, then reads sleepers. Both are sequentially consistent, so one of the two sees the other (Dekker): without sleepers no unlock
 * calls the kernel, and no wake is lost, since the kernel compares completions once more. A waiter sleeps under a bit that its kind and its
 * ticket choose, so an unlock wakes those whose turn it may be and not the rest of the queue.
 */
#ifndef ZCRPC_FAIR_RWLOCK_H
#define ZCRPC_FAIR_RWLOCK_H

#include <stdbool.h>

#include "lock/atomics.h"
#include "zcrpc/strategy.h"

/* On one cache line: whoever takes a ticket looks at completions next. */
struct zc_fair_rwlock {
    alignas(ZC_CACHE_LINE) _Atomic uint32_t requests;
    _Atomic uint32_t completions;
    _Atomic uint32_t sleepers;
};

#define ZC_FAIR_WRITER 1u
#define ZC_FAIR_READER 0x10000u
#define ZC_FAIR_WRITERS 0xffffu

/* `start` is what both words begin with: 0, or something close to a wrap for a test. */
void zc_fair_init(struct zc_fair_rwlock *lock, uint32_t start);

void zc_fair_wait_to_read(struct zc_fair_rwlock *lock, uint32_t ticket);
void zc_fair_wait_to_write(struct zc_fair_rwlock *lock, uint32_t ticket);
void zc_fair_wake_after_reader(struct zc_fair_rwlock *lock, uint32_t completions);
void zc_fair_wake_after_writer(struct zc_fair_rwlock *lock, uint32_t completions);

/* The locks return whether they had to wait. */
static inline bool zc_fair_read_lock(struct zc_fair_rwlock *lock) {
    uint32_t ticket = atomic_fetch_add_explicit(&lock->requests, ZC_FAIR_READER, ZC_RELAXED);
    if (((atomic_load_explicit(&lock->completions, ZC_ACQUIRE) ^ ticket) & ZC_FAIR_WRITERS) == 0)
        return false;
    zc_fair_wait_to_read(lock, ticket);
    return true;
}

static inline void zc_fair_read_unlock(struct zc_fair_rwlock *lock) {
    uint32_t completions = atomic_fetch_add_explicit(&lock->completions, ZC_FAIR_READER, ZC_SEQ_CST) + ZC_FAIR_READER;
    if (atomic_load_explicit(&lock->sleepers, ZC_SEQ_CST) != 0)
        zc_fair_wake_after_reader(lock, completions);
}

static inline bool zc_fair_write_lock(struct zc_fair_rwlock *lock) {
    uint32_t ticket = atomic_fetch_add_explicit(&lock->requests, ZC_FAIR_WRITER, ZC_RELAXED);
    if (atomic_load_explicit(&lock->completions, ZC_ACQUIRE) == ticket)
        return false;
    zc_fair_wait_to_write(lock, ticket);
    return true;
}

static inline void zc_fair_write_unlock(struct zc_fair_rwlock *lock) {
    uint32_t completions = atomic_fetch_add_explicit(&lock->completions, ZC_FAIR_WRITER, ZC_SEQ_CST) + ZC_FAIR_WRITER;
    if (atomic_load_explicit(&lock->sleepers, ZC_SEQ_CST) != 0)
        zc_fair_wake_after_writer(lock, completions);
}

#endif
