/* The arena: address space reserved once, handed out in units of 2 MiB.
 *
 * Reserved means PROT_NONE: it costs neither memory nor commit charge. There is more of it than the budget allows to be in use, so that a
 * run of units is nearly always found whatever the holes look like. A run is taken, made accessible as one of two kinds of memory, used,
 * and given back, which returns its pages to the system and makes it PROT_NONE again.
 *
 * Mapped memory is a mapping of an unconnected TCP socket, each run one of its own (offset 0, so that the kernel merges no two and each has
 * its own per-VMA lock). The socket's fd is closed at once: a mapping keeps the socket alive, pages of any connection may be mapped into
 * it, and there is no fd to be inherited, closed by a daemon's loop over all fds, or waited for before a FIN goes out.
 */
#ifndef ZCRPC_ARENA_H
#define ZCRPC_ARENA_H

#include <pthread.h>

#include "region/region_map.h"

struct zc_arena {
    uintptr_t base; /* aligned to ZC_UNIT */
    size_t units;
    pthread_mutex_t mutex; /* guards what follows; nothing is called under it */
    unsigned char *taken;  /* one byte per unit, lazily zeroed */
    size_t low;            /* no unit below it is free */
    size_t high;           /* no unit from here on was ever taken */
    void *reservation;
    size_t reserved_bytes;
};

int zc_arena_init(struct zc_arena *arena, uint64_t budget_units);
void zc_arena_destroy(struct zc_arena *arena); /* unmaps all of it, in use or not */

/* The first run of `units` free units: its first unit, or -ENOMEM if there is no such hole. */
int64_t zc_arena_take(struct zc_arena *arena, size_t units);
void zc_arena_free(struct zc_arena *arena, size_t unit, size_t units); /* of a run that was never opened, or is closed */

int zc_arena_open(struct zc_arena *arena, size_t unit, size_t units, enum zc_memory memory);
int zc_arena_close(struct zc_arena *arena, size_t unit, size_t units);

static inline void *zc_arena_at(const struct zc_arena *arena, size_t unit) {
    return (void *)(arena->base + (unit << ZC_REGION_SHIFT));
}

/* Lazily zeroed memory for tables that grow with the arena; NULL without memory. */
void *zc_lazy_alloc(size_t bytes);
void zc_lazy_free(void *at, size_t bytes);

#endif
