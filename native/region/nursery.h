/* A nursery: the one-unit regions that one thread places small payloads into, page by page. See nursery.c. */
#ifndef ZCRPC_NURSERY_H
#define ZCRPC_NURSERY_H

#include "region/map_core.h"

#define ZC_NURSERY_PAGES (ZC_UNIT_PAGES / 2) /* the largest payload that shares a region; a larger one would waste most of what it leaves */

struct zc_nursery {
    struct zc_core *core;
    struct zc_actor *actor; /* of the placing thread */
    struct zc_nursery *next, *previous;
    _Atomic uint64_t holders; /* its creator and its leases */

    pthread_mutex_t mutex;        /* guards what follows, and the spaces */
    struct zc_space_list open[2]; /* by enum zc_memory: regions with a page that is not held */
    uint32_t spares[2];           /* of these: empty, kept for the next payload; at most ZC_NURSERY_SPARES */
    uint64_t leases, leased_pages;
    bool closed;
};

#define ZC_NURSERY_SPARES 1

/* Places 1 … ZC_NURSERY_PAGES pages; returns as zc_lease_reserve does. The address is where they begin. */
int zc_nursery_place(struct zc_nursery *nursery, enum zc_memory memory, uint32_t pages, bool overdraft, struct zc_space **space,
                     uintptr_t *address);
/* Takes them back, by any thread. The nursery and the map may be gone afterwards. */
void zc_nursery_unplace(struct zc_nursery *nursery, struct zc_space *space, uintptr_t address, uint32_t pages);

#endif
