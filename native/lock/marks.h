/* Marks: a cache line for each actor, on which it says that it is inside. Reading costs an actor nothing that another sees; a writer looks at
 * all lines. Used where a writer first raises a flag of its own: see global_big_reader.c and global_bravo.c.
 *
 *   reader    mark = 1; look at the writer's flag; raised → mark = 0, take the slow path
 *   writer    raise the flag; wait until every mark is 0
 *
 * Memory orders. Mark and flag are different words, so this is Dekker's problem: each side writes one and then reads the other, and at least
 * one must see the other's. Both writes and both reads are sequentially consistent; on x86 that is the exchange in zc_mark, which nothing
 * weaker replaces (fault M11). zc_unmark releases, and the writer that sees 0 acquires: what the reader did in there is over.
 *
 * Taking a mark away is a plain store, which is half of what this design is for; so a reader cannot know that a writer sleeps, and a writer
 * that has spun for a while naps and looks again, rather than be woken.
 *
 * There are ZC_MARKS lines. Actors whose ids fall on the same one exclude each other from the fast path, which costs only speed.
 */
#ifndef ZCRPC_MARKS_H
#define ZCRPC_MARKS_H

#include <stdbool.h>

#include "lock/atomics.h"
#include "lock/faults.h"
#include "zcrpc/strategy.h"

#define ZC_MARKS 64
#define ZC_NAP_NS 50000 /* about what the system's timer makes of anything shorter */

struct zc_marks {
    struct {
        alignas(ZC_CACHE_LINE) _Atomic uint32_t inside;
    } of[ZC_MARKS];
};

static inline _Atomic uint32_t *zc_mark_of(struct zc_marks *marks, const struct zc_actor *actor) {
    return &marks->of[actor->id % ZC_MARKS].inside;
}

/* False: another actor has this line's mark. */
static inline bool zc_mark(_Atomic uint32_t *mark) {
    if (ZC_FAULT(11)) {
        atomic_store_explicit(mark, 1, ZC_RELEASE);
        return true;
    }
    return atomic_exchange_explicit(mark, 1, ZC_SEQ_CST) == 0;
}

static inline void zc_unmark(_Atomic uint32_t *mark) {
    atomic_store_explicit(mark, 0, ZC_RELEASE);
}

/* After the flag was raised. Whether anybody had to be waited for. */
static inline bool zc_marks_wait(struct zc_marks *marks) {
    bool waited = false;
    for (int i = 0; i < ZC_MARKS; i++)
        for (int spin = 0; atomic_load_explicit(&marks->of[i].inside, ZC_SEQ_CST) != 0; spin++) {
            waited = true;
            if (spin < ZC_SPINS)
                zc_relax();
            else
                nanosleep(&(struct timespec){.tv_nsec = ZC_NAP_NS}, NULL);
        }
    return waited;
}

#endif
