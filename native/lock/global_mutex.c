/* "global-mutex": one mutex around the whole map. The floor: readers keep each other out as well.
 *
 *   read_lock, write_lock    lock the mutex (first a try, so that a wait is counted)
 *
 * Invariants. One thread is in the map at a time. Memory orders. POSIX's: unlocking a mutex happens before the next locking of it.
 *
 * Fairness. glibc's mutex goes to whoever comes first after an unlock, which a waiter that has to wake up rarely is: nobody is promised a
 * turn (guarantee 5 of strategy.h holds only in practice, where a holder is busy elsewhere between two sections).
 */
#include <pthread.h>
#include <stdbool.h>

#include "zcrpc/strategy.h"

typedef pthread_mutex_t lock_type;

static int init_lock(lock_type *lock) {
    return -pthread_mutex_init(lock, NULL);
}

static void destroy_lock(lock_type *lock) {
    pthread_mutex_destroy(lock);
}

static inline bool lock_to_write(lock_type *lock) {
    if (pthread_mutex_trylock(lock) == 0)
        return false;
    pthread_mutex_lock(lock);
    return true;
}

static inline void unlock_after_write(lock_type *lock) {
    pthread_mutex_unlock(lock);
}

static inline bool lock_to_read(lock_type *lock, struct zc_actor *self, uintptr_t *mode) {
    (void)self, (void)mode;
    return lock_to_write(lock);
}

static inline void unlock_after_read(lock_type *lock, struct zc_actor *self, uintptr_t mode) {
    (void)self, (void)mode;
    unlock_after_write(lock);
}

#define STRATEGY zc_strategy_global_mutex
#define STRATEGY_NAME "global-mutex"
#define STRATEGY_SUMMARY "one mutex around the whole map: readers lock each other out, too"
#include "lock/around_map.h"
