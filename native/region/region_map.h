/* The region map: an arena of reserved address space, the regions in it, and the leases that payloads hold on ranges of them.
 *
 * Memory is of two kinds. *Mapped* regions are mappings of one unconnected TCP socket: receive zerocopy of any connection may map pages
 * into them; they are read-only, and a page that was never mapped is SIGBUS to touch. *Copied* regions are ordinary memory, kept warm.
 *
 * Each thread that places payloads has a *nursery* of its own: the regions that it currently places into. Placing and releasing take only
 * the nursery's mutex; attaching, recycling and detaching a region are writes to the map and go through its lock strategy.
 *
 * Lifetime: a map is counted. Its creator, each nursery and each lease hold it; so a lease outlives server, reactor and connection.
 *
 * Reserving and releasing may be writes to the map, so neither may be called between a read_lock and its read_unlock.
 */
#ifndef ZCRPC_REGION_MAP_H
#define ZCRPC_REGION_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "zcrpc/strategy.h"

#define ZC_PAGE 4096u

enum zc_memory { ZC_COPIED, ZC_MAPPED };

struct zc_map_options {
    uint64_t budget; /* bytes of regions at most, in use or idle; rounded up to units */
    uint64_t retain; /* bytes of idle regions kept warm for the next payload; more is given back to the system */
};

struct zc_map_stats {
    uint64_t regions;      /* attached */
    uint64_t arena_bytes;  /* of these: in use and idle */
    uint64_t idle_bytes;   /* of these: idle, kept warm */
    uint64_t leases;       /* live */
    uint64_t leased_bytes; /* held by live leases, in whole pages */
    uint64_t recycles;     /* regions emptied under their write lock */
    uint64_t attaches, detaches;
    uint64_t budget_refusals;     /* reservations that had to wait for memory */
    struct zc_lock_counters lock; /* summed over all actors, living and gone */
};

/* A payload's hold on [address, address + length). Freed by zc_lease_release, by any thread, once. */
struct zc_lease {
    struct zc_region *region;
    struct zc_nursery *nursery; /* NULL: the lease has the region to itself */
    struct zc_map *map;
    uintptr_t address; /* page-aligned */
    uint64_t length;   /* as asked for; the range held is in whole pages */
};

int zc_map_create(const struct zc_strategy *strategy, const struct zc_map_options *options, struct zc_map **out);
void zc_map_hold(struct zc_map *map);
void zc_map_drop(struct zc_map *map); /* the last drop unmaps everything */
/* In a process that was forked: the map is the parent's, and threads that held its locks may not be here. Payloads stay readable; what is
 * released or dropped from now on is not. */
void zc_map_abandon(struct zc_map *map);
void zc_map_stats(struct zc_map *map, struct zc_map_stats *out);

/* Called, under no lock, after memory came back while a reservation had been refused for the budget: the refused may try again. At most
 * ZC_MAP_WAKERS per map; remove returns when the callback is not running. */
typedef void (*zc_wake_fn)(void *context);
#define ZC_MAP_WAKERS 64
int zc_map_add_waker(struct zc_map *map, zc_wake_fn wake, void *context); /* 0 or -ENOSPC */
void zc_map_remove_waker(struct zc_map *map, void *context);

/* An actor for the calling thread's use; its counters live on in zc_map_stats after it is gone. NULL without memory. */
struct zc_actor *zc_actor_create(struct zc_map *map);
void zc_actor_destroy(struct zc_map *map, struct zc_actor *actor);

/* Regions by hand (the lab, tests, zcrpc.RegionMap). Both are writes to the map. attach: length in bytes, rounded up to units; -ENOMEM
 * where the budget does not allow it. detach: -EBUSY while leases are alive. recycle: gives its pages back to the system, keeps it. */
int zc_region_attach(struct zc_map *map, struct zc_actor *self, enum zc_memory memory, uint64_t length, struct zc_region **out);
int zc_region_detach(struct zc_map *map, struct zc_actor *self, struct zc_region *region);
int zc_region_recycle(struct zc_map *map, struct zc_actor *self, struct zc_region *region);
/* What giving mapped pages back has cost so far, in cycles per byte: a price of mapping that is paid after the receive. 0: not known. */
double zc_map_recycle_cost(struct zc_map *map);
enum zc_memory zc_region_memory(const struct zc_region *region);
uintptr_t zc_region_start(const struct zc_region *region); /* first byte */
uintptr_t zc_region_end(const struct zc_region *region);   /* one past the last */

/* The map's strategy, called by name: see strategy.h. */
static inline int zc_map_read_lock(struct zc_map *map, struct zc_actor *self, uintptr_t address, struct zc_guard *guard) {
    return map->strategy->read_lock(map, self, address, guard);
}

static inline void zc_map_read_unlock(struct zc_map *map, struct zc_actor *self, struct zc_guard *guard) {
    map->strategy->read_unlock(map, self, guard);
}

static inline void zc_map_write_lock(struct zc_map *map, struct zc_actor *self) {
    map->strategy->write_lock(map, self);
}

static inline void zc_map_write_lock_region(struct zc_map *map, struct zc_actor *self, struct zc_region *region) {
    map->strategy->region_write_lock(map, self, region);
}

static inline void zc_map_write_unlock(struct zc_map *map, struct zc_actor *self) {
    map->strategy->write_unlock(map, self);
}

struct zc_nursery *zc_nursery_create(struct zc_map *map); /* NULL without memory */
void zc_nursery_drop(struct zc_nursery *nursery);         /* lives on until its last lease is released */

/* Reserves a place of `length` > 0 bytes, contiguous and page-aligned. Mapped places are clean: none of their pages is mapped, so the TLB
 * promise holds. overdraft: go over the budget rather than be refused. Returns 0, -EAGAIN (the budget is used up now; wakers will be
 * called), -EMSGSIZE (can never fit the budget) or -ENOMEM (the system refused). */
int zc_lease_reserve(struct zc_nursery *nursery, enum zc_memory memory, uint64_t length, bool overdraft, struct zc_lease **out);
void zc_lease_release(struct zc_lease *lease);

#endif
