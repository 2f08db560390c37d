/* "none": no lock at all, and so no strategy: what everything else costs, to subtract it in a benchmark. It is in no list and no map that
 * has writers may use it; the registry does not find it, only those that ask for zc_strategy_none do.
 *
 *   read_lock      look the region up
 *
 * Invariants, memory orders. None, beyond those of the address index.
 */
#include <stdbool.h>

#include "zcrpc/strategy.h"

typedef uint32_t lock_type; /* a C object needs a size */

static int init_lock(lock_type *lock) {
    (void)lock;
    return 0;
}

static void destroy_lock(lock_type *lock) {
    (void)lock;
}

static inline bool lock_to_read(lock_type *lock, struct zc_actor *self, uintptr_t *mode) {
    (void)lock, (void)self, (void)mode;
    return false;
}

static inline void unlock_after_read(lock_type *lock, struct zc_actor *self, uintptr_t mode) {
    (void)lock, (void)self, (void)mode;
}

static inline bool lock_to_write(lock_type *lock) {
    (void)lock;
    return false;
}

static inline void unlock_after_write(lock_type *lock) {
    (void)lock;
}

#define STRATEGY zc_strategy_none
#define STRATEGY_NAME "none"
#define STRATEGY_SUMMARY "no lock: for benchmarks, where nothing is written"
#include "lock/around_map.h"
