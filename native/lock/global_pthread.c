/* "global-pthread": the platform's reader-writer lock around the whole map, in the kind that prefers writers.
 *
 *   read_lock     rdlock (first a try, so that a wait is counted): waits while a writer is inside or waits
 *   write_lock    wrlock
 *
 * Why that kind. glibc's default lets readers pass a waiting writer: with receivers that always overlap no writer would ever get in. The
 * kind that prefers writers has the opposite weakness, several writers in turn can keep readers out, but writers of a map are rare. It must
 * not be read-locked recursively (fault M10): nothing here does.
 *
 * Invariants. Readers and writers exclude each other, as POSIX says. Memory orders. POSIX's: an unlock happens before the next lock.
 */
#include <pthread.h>
#include <stdbool.h>

#include "lock/faults.h"
#include "zcrpc/strategy.h"

typedef pthread_rwlock_t lock_type;

static int init_lock(lock_type *lock) {
    pthread_rwlockattr_t kind;
    pthread_rwlockattr_init(&kind);
    pthread_rwlockattr_setkind_np(&kind, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    int error = -pthread_rwlock_init(lock, &kind);
    pthread_rwlockattr_destroy(&kind);
    return error;
}

static void destroy_lock(lock_type *lock) {
    pthread_rwlock_destroy(lock);
}

static inline bool lock_to_read(lock_type *lock, struct zc_actor *self, uintptr_t *mode) {
    (void)self, (void)mode;
    bool waits = pthread_rwlock_tryrdlock(lock) != 0;
    if (waits)
        pthread_rwlock_rdlock(lock);
    if (ZC_FAULT(10)) { /* as if the look-up locked once more by itself */
        zc_preempted_here();
        pthread_rwlock_rdlock(lock);
    }
    return waits;
}

static inline void unlock_after_read(lock_type *lock, struct zc_actor *self, uintptr_t mode) {
    (void)self, (void)mode;
    if (ZC_FAULT(10))
        pthread_rwlock_unlock(lock);
    pthread_rwlock_unlock(lock);
}

static inline bool lock_to_write(lock_type *lock) {
    if (pthread_rwlock_trywrlock(lock) == 0)
        return false;
    pthread_rwlock_wrlock(lock);
    return true;
}

static inline void unlock_after_write(lock_type *lock) {
    pthread_rwlock_unlock(lock);
}

#define STRATEGY zc_strategy_global_pthread
#define STRATEGY_NAME "global-pthread"
#define STRATEGY_SUMMARY "the platform's reader-writer lock, preferring writers, around the whole map"
#include "lock/around_map.h"
