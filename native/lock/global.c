/* "global": one fair reader-writer lock around the whole map. What the kernel did before per-VMA locks.
 *
 *   The lock is fair_rwlock.h's: a ticket to come in, one read-modify-write to leave; what is done under it is around_map.h's.
 *
 * Invariants, memory orders. Those of the two headers.
 *
 * Cost. A reader writes the lock's cache line twice, whichever region it is after: two line transfers per operation under contention. And
 * while a writer is inside, every reader waits.
 */
#include "lock/fair_rwlock.h"

typedef struct zc_fair_rwlock lock_type;

static int init_lock(lock_type *lock) {
    zc_fair_init(lock, 0);
    return 0;
}

static void destroy_lock(lock_type *lock) {
    (void)lock;
}

static inline bool lock_to_read(lock_type *lock, struct zc_actor *self, uintptr_t *mode) {
    (void)self, (void)mode;
    return zc_fair_read_lock(lock);
}

static inline void unlock_after_read(lock_type *lock, struct zc_actor *self, uintptr_t mode) {
    (void)self, (void)mode;
    zc_fair_read_unlock(lock);
}

static inline bool lock_to_write(lock_type *lock) {
    return zc_fair_write_lock(lock);
}

static inline void unlock_after_write(lock_type *lock) {
    zc_fair_write_unlock(lock);
}

#define STRATEGY zc_strategy_global
#define STRATEGY_NAME "global"
#define STRATEGY_SUMMARY "one fair reader-writer lock around the whole map"
#include "lock/around_map.h"
