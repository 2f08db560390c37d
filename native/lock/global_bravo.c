/* "global-bravo": the fair lock, biased towards readers as long as writers are rare (BRAVO, Dice and Kogan, USENIX ATC '19).
 *
 *   read_lock     biased: mark; still biased → inside, else unmark.  Otherwise: the fair rwlock in read mode, and if the bias has been off
 *                 for long enough, bias = 1
 *   read_unlock   unmark, or the fair lock's
 *   write_lock    the fair lock in write mode; if biased: bias = 0, wait until no mark is left, and keep the bias off for PENANCE times as
 *                 long as that took
 *   write_unlock  the fair lock's
 *
 * Invariants. The bias is set only with the fair lock held in read mode and taken back only with it held in write mode, so it does not
 * change from off to on while a writer is inside. A reader is inside either with a mark, which a writer that takes the bias back waits for,
 * or with the fair lock. A writer that finds no bias has no marks to wait for: whoever took the last one away waited for all of them, and a
 * reader that marks without bias sees that and unmarks.
 *
 * Memory orders. marks.h, with bias as the flag. Setting the bias releases, so a reader that comes in by it has seen all earlier writers.
 *
 * Cost. While biased, readers share no line that anybody writes. Revoking costs a writer ZC_MARKS lines, and PENANCE bounds the slowdown of
 * writers that this causes to about 1 / PENANCE (the paper's N = 9).
 */
#include "lock/fair_rwlock.h"
#include "lock/marks.h"

#define PENANCE 9

typedef struct {
    struct zc_fair_rwlock lock; /* first: tests start its tickets before a wrap */
    alignas(ZC_CACHE_LINE) _Atomic uint32_t bias;
    uint64_t unbiased_until; /* zc_cycles(); guarded by lock */
    struct zc_marks marks;
} lock_type;

enum how { LOCKED, MARKED }; /* mode */

static int init_lock(lock_type *lock) {
    zc_fair_init(&lock->lock, 0);
    return 0;
}

static void destroy_lock(lock_type *lock) {
    (void)lock;
}

static inline bool lock_to_read(lock_type *lock, struct zc_actor *self, uintptr_t *mode) {
    if (atomic_load_explicit(&lock->bias, ZC_RELAXED)) {
        _Atomic uint32_t *mark = zc_mark_of(&lock->marks, self);
        if (zc_mark(mark)) {
            if (atomic_load_explicit(&lock->bias, ZC_SEQ_CST)) {
                *mode = MARKED;
                return false;
            }
            zc_unmark(mark);
        }
    }
    bool waited = zc_fair_read_lock(&lock->lock);
    if (!atomic_load_explicit(&lock->bias, ZC_RELAXED) && zc_cycles() >= lock->unbiased_until)
        atomic_store_explicit(&lock->bias, 1, ZC_RELEASE);
    return waited;
}

static inline void unlock_after_read(lock_type *lock, struct zc_actor *self, uintptr_t mode) {
    if (mode == MARKED)
        zc_unmark(zc_mark_of(&lock->marks, self));
    else
        zc_fair_read_unlock(&lock->lock);
}

static inline bool lock_to_write(lock_type *lock) {
    bool waited = zc_fair_write_lock(&lock->lock);
    if (!atomic_load_explicit(&lock->bias, ZC_RELAXED))
        return waited;
    atomic_store_explicit(&lock->bias, 0, ZC_SEQ_CST);
    uint64_t began = zc_cycles();
    waited = zc_marks_wait(&lock->marks) || waited;
    uint64_t now = zc_cycles();
    lock->unbiased_until = now + PENANCE * (now - began);
    return waited;
}

static inline void unlock_after_write(lock_type *lock) {
    zc_fair_write_unlock(&lock->lock);
}

#define STRATEGY zc_strategy_global_bravo
#define STRATEGY_NAME "global-bravo"
#define STRATEGY_SUMMARY "the fair lock around the map, biased towards readers while writers are rare (BRAVO)"
#include "lock/around_map.h"
