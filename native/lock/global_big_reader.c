/* "global-big-reader": every reader marks a cache line of its own, a writer looks at all of them. Linux's brlock, with a queue.
 *
 *   read_lock     mark; no writer → inside.  Else: unmark, and queue = the fair rwlock in read mode
 *   read_unlock   unmark, or leave the queue
 *   write_lock    queue in write mode; writing = 1; wait until no mark is left
 *   write_unlock  writing = 0; leave the queue
 *
 * Invariants. A writer holds the queue's lock and has seen every mark 0 after it raised `writing`: a reader is inside either with a mark,
 * which the writer waits for, or with the queue's lock, which excludes writers. Readers that met a writer queue up behind it, and in front
 * of the next one, so neither starves.
 *
 * Memory orders. marks.h: sequentially consistent on both sides. A reader that finds `writing` 0 has acquired what the last writer
 * released. The rest is the fair lock's.
 *
 * Cost. Readers share no line that anybody writes; a writer reads ZC_MARKS lines, many of them from another processor's cache. Every reader
 * waits for every writer.
 */
#include "lock/fair_rwlock.h"
#include "lock/marks.h"

typedef struct {
    struct zc_fair_rwlock queue; /* first: tests start its tickets before a wrap */
    alignas(ZC_CACHE_LINE) _Atomic uint32_t writing;
    struct zc_marks marks;
} lock_type;

enum how { QUEUED, MARKED }; /* mode */

static int init_lock(lock_type *lock) {
    zc_fair_init(&lock->queue, 0);
    return 0;
}

static void destroy_lock(lock_type *lock) {
    (void)lock;
}

static inline bool lock_to_read(lock_type *lock, struct zc_actor *self, uintptr_t *mode) {
    _Atomic uint32_t *mark = zc_mark_of(&lock->marks, self);
    if (zc_mark(mark)) {
        if (atomic_load_explicit(&lock->writing, ZC_SEQ_CST) == 0) {
            *mode = MARKED;
            return false;
        }
        zc_unmark(mark);
    }
    return zc_fair_read_lock(&lock->queue);
}

static inline void unlock_after_read(lock_type *lock, struct zc_actor *self, uintptr_t mode) {
    if (mode == MARKED)
        zc_unmark(zc_mark_of(&lock->marks, self));
    else
        zc_fair_read_unlock(&lock->queue);
}

static inline bool lock_to_write(lock_type *lock) {
    bool waited = zc_fair_write_lock(&lock->queue);
    atomic_store_explicit(&lock->writing, 1, ZC_SEQ_CST);
    return zc_marks_wait(&lock->marks) || waited;
}

static inline void unlock_after_write(lock_type *lock) {
    atomic_store_explicit(&lock->writing, 0, ZC_RELEASE);
    zc_fair_write_unlock(&lock->queue);
}

#define STRATEGY zc_strategy_global_big_reader
#define STRATEGY_NAME "global-big-reader"
#define STRATEGY_SUMMARY "one lock around the map; readers mark a line of their own, a writer looks at all of them"
#include "lock/around_map.h"
