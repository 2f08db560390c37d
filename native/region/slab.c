#include "region/slab.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "region/map_core.h"

#define REGIONS_PER_CHUNK 16 /* about 6 KiB */

struct chunk {
    alignas(ZC_CACHE_LINE) struct chunk *next;
    /* regions follow, `stride` bytes each, on a cache line of their own */
};

struct zc_slab {
    const struct zc_strategy *strategy;
    size_t lock_end; /* offset of the space in a slot: after region and lock state */
    size_t stride;
    pthread_mutex_t mutex; /* guards what follows */
    struct zc_space *free;
    struct chunk *chunks;
    uint32_t holders;
};

static size_t whole_lines(size_t bytes) {
    return (bytes + ZC_CACHE_LINE - 1) / ZC_CACHE_LINE * ZC_CACHE_LINE;
}

struct zc_slab *zc_slab_create(const struct zc_strategy *strategy) {
    struct zc_slab *slab = calloc(1, sizeof *slab);
    if (slab == NULL)
        return NULL;
    slab->strategy = strategy;
    slab->lock_end = whole_lines(sizeof(struct zc_region)) + whole_lines(strategy->region_size);
    slab->stride = slab->lock_end + whole_lines(sizeof(struct zc_space));
    slab->holders = 1;
    pthread_mutex_init(&slab->mutex, NULL);
    return slab;
}

void zc_slab_hold(struct zc_slab *slab) {
    pthread_mutex_lock(&slab->mutex);
    slab->holders++;
    pthread_mutex_unlock(&slab->mutex);
}

void zc_slab_drop(struct zc_slab *slab) {
    pthread_mutex_lock(&slab->mutex);
    uint32_t left = --slab->holders;
    pthread_mutex_unlock(&slab->mutex);
    if (left != 0)
        return;
    for (struct chunk *chunk = slab->chunks, *next; chunk != NULL; chunk = next) {
        next = chunk->next;
        free(chunk);
    }
    pthread_mutex_destroy(&slab->mutex);
    free(slab);
}

const struct zc_strategy *zc_slab_strategy(const struct zc_slab *slab) {
    return slab->strategy;
}

/* With the mutex held. */
static bool grow(struct zc_slab *slab, struct zc_map *map) {
    size_t bytes = sizeof(struct chunk) + REGIONS_PER_CHUNK * slab->stride;
    struct chunk *chunk = aligned_alloc(ZC_CACHE_LINE, bytes);
    if (chunk == NULL)
        return false;
    memset(chunk, 0, bytes);
    chunk->next = slab->chunks;
    slab->chunks = chunk;
    for (size_t index = 0; index < REGIONS_PER_CHUNK; index++) {
        struct zc_region *region = (struct zc_region *)((char *)(chunk + 1) + index * slab->stride);
        struct zc_space *space = (struct zc_space *)((char *)region + slab->lock_end);
        region->owner = space;
        space->region = region;
        slab->strategy->region_init(map, region);
        space->next = slab->free;
        slab->free = space;
    }
    return true;
}

struct zc_region *zc_slab_take(struct zc_slab *slab, struct zc_map *map) {
    pthread_mutex_lock(&slab->mutex);
    struct zc_space *space = slab->free != NULL || grow(slab, map) ? slab->free : NULL;
    if (space != NULL)
        slab->free = space->next;
    pthread_mutex_unlock(&slab->mutex);
    return space != NULL ? space->region : NULL;
}

void zc_slab_give(struct zc_slab *slab, struct zc_region *region) {
    struct zc_space *space = region->owner;
    pthread_mutex_lock(&slab->mutex);
    space->next = slab->free;
    slab->free = space;
    pthread_mutex_unlock(&slab->mutex);
}
