/* What the parts of torture share: torture.c runs it, torture_readers.c, torture_writers.c and torture_leases.c are its threads,
 * torture_wraps.c knows what wraps.
 *
 * What is checked. Each slot has a record of plain, non-atomic fields, changed only with the region write-locked (or detached) and read
 * only with it read-locked: a lock that lets both in shows as torn fields, and to ThreadSanitizer as a race even if the timing was lucky.
 * So does the memory of the regions: each reader has a cache line of its own in it, which it writes while it holds the region and finds
 * unchanged before it lets go; writers overwrite all of these lines, find them unchanged in their turn, and recycle the memory. Each map
 * has a plain counter of its write sections, for writers against each other. The region of a lease is always there, and what was written
 * into a lease is still there when it is released. Every thread gets on, or the watchdog ends the run. Each slot has a pair of atomic
 * fields as well, for those that look without holding: what is confirmed must be equal. In the end the strategies' counters are what the
 * threads counted themselves, and sequences and tickets are where so many locks bring them.
 *
 * Threads work in bursts. In a *calm* one they lock, check and unlock as fast as they can, and linger rarely; in a *rough* one they
 * dawdle, lose the processor and sleep with the lock in hand. */
#ifndef ZCRPC_LAB_TORTURE_RUN_H
#define ZCRPC_LAB_TORTURE_RUN_H

#include <pthread.h>
#include <stdbool.h>

#include "lab/torture.h"
#include "lock/atomics.h"
#include "region/region_map.h"

enum { TORTURE_MAPS = 2, TORTURE_RING = 32 };

struct torture_record { /* plain on purpose */
    uint64_t a, b;
    uintptr_t start, past; /* the region's */
};

struct torture_slot {
    alignas(ZC_CACHE_LINE) _Atomic(struct zc_region *) region; /* NULL while it is being replaced */
    _Atomic uintptr_t address;                                 /* where it was last; readers try it whether or not it still is */
    struct torture_record record;
    _Atomic uint64_t left, right; /* equal but in a section */
};

struct torture_side {
    struct zc_map *map;
    struct torture_slot *slots;
    bool *copied;      /* by unit: what lies there is a slot's, and ordinary memory. Plain: published with the slot's region */
    uint64_t sections; /* write sections; plain on purpose */
};

struct torture_run {
    const struct zc_torture_options *options;
    const struct zc_strategy *strategy;
    uint32_t slots; /* of each side; a writer has those whose number is its own modulo the writers' */
    struct torture_side sides[TORTURE_MAPS];
    _Atomic(struct zc_lease *) ring[TORTURE_RING];
    struct zc_nursery *nursery;
    _Atomic bool stop;
};

struct torture_worker;

struct torture_role {
    void (*step)(struct torture_worker *);
    uint32_t rough_burst, calm_burst; /* steps at most */
    uint32_t rest_us;                 /* between bursts, at most */
};

struct torture_worker {
    alignas(ZC_CACHE_LINE) uint64_t steps; /* counted with zc_count: the watchdog reads it */
    struct torture_run *run;
    const struct torture_role *role;
    struct zc_actor *actors[TORTURE_MAPS];
    pthread_t thread;
    uint64_t random;
    uint32_t number; /* among those of its role */
    uint32_t burst;  /* steps that are left of it */
    bool rough;

    uint64_t read_locks[TORTURE_MAPS], misses[TORTURE_MAPS], sections[TORTURE_MAPS]; /* the thread's own count of what the map counts */
    uint64_t looks, confirmed, touches, placed, released, refused, sleeps, preemptions;
    uint64_t longest_read, longest_write; /* cycles from asking for a lock to having it */
};

extern const struct torture_role torture_reader, torture_writer, torture_lessee;

/* Calm or rough, and for how long; sleeps first if the role rests between bursts. */
void torture_begin_burst(struct torture_worker *w);
/* What happens to a thread that has a lock, in a rough burst above all. */
void torture_dawdle(struct torture_worker *w);
/* A region for a slot: attached, then its address published. */
int torture_attach(struct torture_side *side, struct zc_actor *self, enum zc_memory memory, struct zc_region **out);
void torture_publish(struct torture_slot *slot, struct zc_region *region);
/* Releases one lease of the ring; false if there was none where it looked. */
bool torture_release_one(struct torture_worker *w);

/* Only while the map is new. */
void torture_start_before_wrap(struct zc_map *map);
/* How often what wraps has done so since, going by what was counted; -1 for a strategy from outside. Checks that the words are where the
 * counts say. Only while nobody uses the map. */
int64_t torture_wraps(struct zc_map *map, const struct zc_lock_counters *counted);

/* Where a thread's draws start: far apart for any two seeds, rounds or threads (splitmix64's last step). */
static inline uint64_t torture_seed(uint64_t seed, uint32_t round, uint32_t thread) {
    uint64_t mixed = seed + 0x9e3779b97f4a7c15u * (1 + ((uint64_t)round << 32 | thread));
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
    return mixed ^ mixed >> 31;
}

static inline uint32_t torture_draw(struct torture_worker *w, uint32_t below) {
    w->random = w->random * 6364136223846793005u + 1442695040888963407u; /* Knuth's; the high bits are good */
    return (uint32_t)((w->random >> 32) * below >> 32);
}

static inline void torture_keep_longest(uint64_t *longest, uint64_t began) {
    uint64_t took = zc_cycles() - began;
    if (took > *longest)
        *longest = took;
}

static inline size_t torture_unit(const struct zc_map *map, uintptr_t address) {
    return (address - map->base) >> ZC_REGION_SHIFT;
}

/* A reader's own line in the memory at an address. */
static inline uint64_t *torture_lane(uintptr_t address, uint32_t reader) {
    return (uint64_t *)((address & ~(ZC_UNIT - 1)) + (uintptr_t)reader * ZC_CACHE_LINE);
}

#endif
