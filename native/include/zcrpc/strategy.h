/* The plugin ABI of a lock strategy: the one header that a strategy, ours or an outsider's, is compiled against.
 *
 * A *region map* knows which region lies at which address of the arena. Two kinds of threads use it:
 *
 *   readers   find the region at an address, hold it while they receive into it, let it go;
 *   writers   take the map lock in write mode, write-lock the regions that they change, change them, and unlock everything at once.
 *
 * A *strategy* is how these two are kept apart: a table of functions over (map, region). The map, the regions and the address index
 * belong to the core; a strategy owns only the lock state inside them, whose sizes it states in its table. Nothing here is specific to
 * sockets or to Python.
 *
 * What every strategy must guarantee (region-lock protocol of Linux 6.15, mm/mmap_lock.c, in zcrpc's words):
 *
 *   1. Between a read_lock that returned 0 and its read_unlock, no writer has that region write-locked, and it is not detached.
 *   2. The region that read_lock returns contains the address *at that time*: identity and range are checked after the lock is held, since
 *      region structs are type-stable and recycled.
 *   3. region_write_lock is called only with the map write-locked. It is idempotent until write_unlock, which releases every region.
 *   4. detach returns when no reader is inside and none can get in until attach.
 *   5. Every waiter gets in: neither readers nor writers starve.
 *
 * Lock order is map before region. A reader must not call any function of the table again, on the same map, before its read_unlock.
 */
#ifndef ZCRPC_STRATEGY_H
#define ZCRPC_STRATEGY_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define ZC_STRATEGY_ABI 1u
#define ZC_CACHE_LINE 64
#define ZC_REGION_SHIFT 21 /* regions are runs of 2 MiB units: one page-table page each, so two regions never contend on its lock */
#define ZC_UNIT (1ul << ZC_REGION_SHIFT)

struct zc_map;
struct zc_region;

/* What a strategy counts. Each actor has its own, on its own cache lines, so that counting never makes two threads share one. */
struct zc_lock_counters {
    uint64_t read_locks;  /* read_lock that returned 0 */
    uint64_t fallbacks;   /* of these, held through the map lock because the region lock did not do */
    uint64_t retries;     /* looked up again because the region changed underneath */
    uint64_t misses;      /* read_lock that returned -ENOENT */
    uint64_t write_locks; /* map write locks */
    uint64_t waits;       /* times that a reader or a writer had to wait for another thread */
};

/* A thread that uses a map: passed to every call, used by one thread at a time. `id` is unique among the map's live actors and small. */
struct zc_actor {
    alignas(ZC_CACHE_LINE) struct zc_lock_counters counters;
    uint32_t id;
};

/* What the strategy sees of a region. Written only while the region is detached, or map and region are write-locked. The strategy's own
 * state of region_size bytes follows the struct's end, on a cache line of its own: zc_region_lock(). */
struct zc_region {
    _Atomic(struct zc_map *) map; /* the map that it is attached to; NULL while it is on a free list */
    _Atomic uintptr_t start;      /* first byte */
    _Atomic uintptr_t end;        /* one past the last byte */
    void *owner;                  /* the core's own part */
};

/* What the strategy sees of a map. The strategy's own state of map_size bytes lies at `lock`, on cache lines of its own. */
struct zc_map {
    const struct zc_strategy *strategy;
    uintptr_t base;                       /* the arena's first byte, aligned to ZC_UNIT */
    size_t units;                         /* its length in units */
    _Atomic(struct zc_region *) *regions; /* unit index → region; NULL where there is none */
    void *lock;
};

/* How a reader holds a region: filled by read_lock, handed back to read_unlock. */
struct zc_guard {
    struct zc_region *region;
    uintptr_t mode; /* the strategy's own: which of its locks are held */
};

struct zc_strategy {
    uint32_t abi;  /* ZC_STRATEGY_ABI */
    uint32_t size; /* sizeof(struct zc_strategy) */
    const char *name;
    const char *summary;
    size_t map_size;    /* bytes of lock state in a map, zeroed before map_init */
    size_t region_size; /* bytes of lock state in a region, zeroed before region_init */

    int (*map_init)(struct zc_map *map); /* 0 or a negative errno */
    void (*map_destroy)(struct zc_map *map);
    /* Once in a struct's life, not once per attach: lock state survives recycling, as the kernel's type-stable VMAs do. */
    void (*region_init)(struct zc_map *map, struct zc_region *region);

    /* 0, or -ENOENT if no region contains the address. */
    int (*read_lock)(struct zc_map *map, struct zc_actor *self, uintptr_t address, struct zc_guard *guard);
    void (*read_unlock)(struct zc_map *map, struct zc_actor *self, struct zc_guard *guard);

    void (*write_lock)(struct zc_map *map, struct zc_actor *self);
    void (*region_write_lock)(struct zc_map *map, struct zc_actor *self, struct zc_region *region);
    void (*write_unlock)(struct zc_map *map, struct zc_actor *self);

    /* With the map write-locked. attach: the region's fields are written and it is in the index, readers may come in from now on (they
     * find it unlocked, or write-locked until write_unlock). detach: afterwards nobody is inside; the core then clears index and fields. */
    void (*attach)(struct zc_map *map, struct zc_actor *self, struct zc_region *region);
    void (*detach)(struct zc_map *map, struct zc_actor *self, struct zc_region *region);

    /* Both or neither (NULL): looking without holding, for readers whose work can be thrown away, which a receive cannot. peek: 0, with
     * guard filled, or -EAGAIN: look again or read_lock. confirm: 0 if everything that was read of the region since peek belongs together,
     * or -EAGAIN. What is read in between is loaded with acquire; writers store it with release. There is nothing to unlock. */
    int (*peek)(struct zc_map *map, uintptr_t address, struct zc_guard *guard);
    int (*confirm)(struct zc_map *map, const struct zc_guard *guard);
};

/* A plugin is a shared object that exports this one symbol. */
#define ZC_STRATEGY_SYMBOL "zcrpc_strategy"

/* Adds one to a counter of the calling actor. Atomic only towards zc_map_stats, which may read it meanwhile: no locked instruction. */
static inline void zc_count(uint64_t *counter) {
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED);
}

static inline void *zc_region_lock(struct zc_region *region) {
    return (char *)region + (sizeof *region + ZC_CACHE_LINE - 1) / ZC_CACHE_LINE * ZC_CACHE_LINE;
}

/* The region that the index has for an address, or NULL. Says nothing about whether it is still there: see guarantee 2. */
static inline struct zc_region *zc_map_find(const struct zc_map *map, uintptr_t address) {
    size_t unit = (address - map->base) >> ZC_REGION_SHIFT; /* below base: wraps to a huge number */
    return unit < map->units ? atomic_load_explicit(&map->regions[unit], memory_order_acquire) : NULL;
}

static inline int zc_region_contains(struct zc_region *region, uintptr_t address) {
    return address >= atomic_load_explicit(&region->start, memory_order_relaxed) &&
           address < atomic_load_explicit(&region->end, memory_order_relaxed);
}

#endif
