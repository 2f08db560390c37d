/* "global-phase-fair": readers and writers take turns: a reader waits for one writer at most, however many there are. The ticket form of
 * Brandenburg and Anderson (PF-T, ECRTS '09), with waiters that sleep.
 *
 *   arrived, left    each counts readers in its high 24 bits; arrived's low bits: PRESENT, a writer is or wants to be inside, and PHASE
 *   turn, served     tickets of writers
 *
 *   read_lock     w = low bits of arrived, arrived += 1 reader;   w has PRESENT → wait until the low bits of arrived are no longer w
 *   read_unlock   left += 1 reader
 *   write_lock    ticket = turn, turn += 1;                       wait until served == ticket
 *                 r = arrived, arrived += PRESENT + ticket's PHASE;  wait until left == r
 *   write_unlock  arrived's low bits = 0;  served += 1
 *
 * Invariants. Only the writer whose turn it is sets and clears the low bits. Two writers in a row have different PHASEs, so the readers that
 * came while the first was inside see a change even if the second has announced itself before they looked: they go in, and the second waits
 * for them, since they are in its r. A reader that comes after the second's announcement waits for it. Counts wrap alike on both sides, as
 * fewer than 2^24 readers are about at a time.
 *
 * Memory orders. A writer's end is the release on arrived, which readers acquire on the same word, and on served, which the next writer
 * acquires. A reader's end is the release on left, which the writer acquires; only read-modify-writes change it, so it sees all of them.
 * The announcement and a reader's arrival are in one word: coherence orders them.
 *
 * Sleeping. As in fair_rwlock.h: a sleeper counts itself, then looks again; who changes a word then reads the count; all of it sequentially
 * consistent.
 *
 * Cost. Two read-modify-writes on one shared line per reader, as "global"; under many writers a reader's wait is bounded by one section.
 */
#include "lock/global_phase_fair.h"

#include <stdbool.h>

#include "lock/atomics.h"

#define READER 0x100u
#define PRESENT 2u
#define PHASE 1u
#define LOW (PRESENT | PHASE)

typedef struct {
    alignas(ZC_CACHE_LINE) _Atomic uint32_t arrived;
    _Atomic uint32_t left, turn, served;
    _Atomic uint32_t sleepers;
} lock_type;

static bool is_equal(uint32_t word, uint32_t wanted) {
    return word == wanted;
}

static bool has_other_phase(uint32_t word, uint32_t phase) {
    return (word & LOW) != phase;
}

/* Whether there was any waiting. */
static bool wait_until(lock_type *lock, _Atomic uint32_t *word, bool (*ready)(uint32_t, uint32_t), uint32_t compared) {
    if (ready(atomic_load_explicit(word, ZC_ACQUIRE), compared))
        return false;
    for (int spin = 0; spin < ZC_SPINS; spin++) {
        if (ready(atomic_load_explicit(word, ZC_ACQUIRE), compared))
            return true;
        zc_relax();
    }
    atomic_fetch_add_explicit(&lock->sleepers, 1, ZC_SEQ_CST);
    for (uint32_t now; !ready(now = atomic_load_explicit(word, ZC_SEQ_CST), compared);)
        zc_futex_wait(word, now, FUTEX_BITSET_MATCH_ANY);
    atomic_fetch_sub_explicit(&lock->sleepers, 1, ZC_RELAXED);
    return true;
}

static void wake(lock_type *lock, _Atomic uint32_t *one, _Atomic uint32_t *other) {
    if (atomic_load_explicit(&lock->sleepers, ZC_SEQ_CST) == 0)
        return;
    zc_futex_wake(one, FUTEX_BITSET_MATCH_ANY);
    if (other != NULL)
        zc_futex_wake(other, FUTEX_BITSET_MATCH_ANY);
}

static int init_lock(lock_type *lock) {
    (void)lock;
    return 0;
}

static void destroy_lock(lock_type *lock) {
    (void)lock;
}

static inline bool lock_to_read(lock_type *lock, struct zc_actor *self, uintptr_t *mode) {
    (void)self, (void)mode;
    uint32_t writer = atomic_fetch_add_explicit(&lock->arrived, READER, ZC_ACQUIRE) & LOW;
    return writer != 0 && wait_until(lock, &lock->arrived, has_other_phase, writer);
}

static inline void unlock_after_read(lock_type *lock, struct zc_actor *self, uintptr_t mode) {
    (void)self, (void)mode;
    atomic_fetch_add_explicit(&lock->left, READER, ZC_SEQ_CST);
    wake(lock, &lock->left, NULL);
}

static inline bool lock_to_write(lock_type *lock) {
    uint32_t ticket = atomic_fetch_add_explicit(&lock->turn, 1, ZC_RELAXED);
    bool waited = wait_until(lock, &lock->served, is_equal, ticket);
    uint32_t readers = atomic_fetch_add_explicit(&lock->arrived, PRESENT | (ticket & PHASE), ZC_ACQUIRE);
    return wait_until(lock, &lock->left, is_equal, readers) || waited;
}

static inline void unlock_after_write(lock_type *lock) {
    atomic_fetch_and_explicit(&lock->arrived, ~LOW, ZC_SEQ_CST);
    atomic_fetch_add_explicit(&lock->served, 1, ZC_SEQ_CST);
    wake(lock, &lock->arrived, &lock->served);
}

void zc_phase_fair_start(struct zc_map *map, uint32_t readers, uint32_t writers) {
    lock_type *lock = map->lock;
    atomic_init(&lock->arrived, readers & ~(READER - 1));
    atomic_init(&lock->left, readers & ~(READER - 1));
    atomic_init(&lock->turn, writers);
    atomic_init(&lock->served, writers);
}

void zc_phase_fair_words(struct zc_map *map, uint32_t *left, uint32_t *served) {
    lock_type *lock = map->lock;
    *left = atomic_load_explicit(&lock->left, ZC_RELAXED);
    *served = atomic_load_explicit(&lock->served, ZC_RELAXED);
}

#define STRATEGY zc_strategy_global_phase_fair
#define STRATEGY_NAME "global-phase-fair"
#define STRATEGY_SUMMARY "one lock around the map in which readers and writers take turns: a reader waits for one writer at most"
#include "lock/around_map.h"
