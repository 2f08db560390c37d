#include "region/arena.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define SLACK 4u                            /* address space per budget, against fragmentation */
#define LEAST_UNITS ((1ul << 30) / ZC_UNIT) /* 1 GiB: nothing on a 64-bit machine */
#define MOST_UNITS ((1ul << 44) / ZC_UNIT)  /* 16 TiB of the 128 TiB that a process has */

static void *reserve(void *at, size_t bytes, int flags) {
    return mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
}

void *zc_lazy_alloc(size_t bytes) {
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

void zc_lazy_free(void *at, size_t bytes) {
    if (at != NULL)
        munmap(at, bytes);
}

int zc_arena_init(struct zc_arena *arena, uint64_t budget_units) {
    if (budget_units > MOST_UNITS)
        return -ENOMEM;
    size_t units = SLACK * budget_units;
    units = units < LEAST_UNITS ? LEAST_UNITS : units > MOST_UNITS ? MOST_UNITS : units;
    size_t bytes = (units + 1) << ZC_REGION_SHIFT; /* one more to align in */
    void *reservation = reserve(NULL, bytes, 0);
    while (reservation == MAP_FAILED && units / 2 >= budget_units) { /* a limit on address space: do with less slack */
        units /= 2;
        bytes = (units + 1) << ZC_REGION_SHIFT;
        reservation = reserve(NULL, bytes, 0);
    }
    if (reservation == MAP_FAILED)
        return -ENOMEM;
    *arena = (struct zc_arena){
        .base = ((uintptr_t)reservation + ZC_UNIT - 1) & ~(ZC_UNIT - 1),
        .units = units,
        .taken = zc_lazy_alloc(units),
        .reservation = reservation,
        .reserved_bytes = bytes,
    };
    if (arena->taken == NULL) {
        munmap(reservation, bytes);
        return -ENOMEM;
    }
    pthread_mutex_init(&arena->mutex, NULL);
    return 0;
}

void zc_arena_destroy(struct zc_arena *arena) {
    pthread_mutex_destroy(&arena->mutex);
    zc_lazy_free(arena->taken, arena->units);
    munmap(arena->reservation, arena->reserved_bytes);
}

/* First fit: keeps what is in use together, in few page-table pages. */
int64_t zc_arena_take(struct zc_arena *arena, size_t units) {
    int64_t found = -ENOMEM;
    pthread_mutex_lock(&arena->mutex);
    for (size_t unit = arena->low, run = 0; unit < arena->units; unit++) {
        run = arena->taken[unit] ? 0 : run + 1;
        if (run < units)
            continue;
        size_t first = unit + 1 - units;
        memset(arena->taken + first, 1, units);
        if (first == arena->low)
            arena->low = unit + 1;
        if (unit >= arena->high)
            arena->high = unit + 1;
        found = (int64_t)first;
        break;
    }
    pthread_mutex_unlock(&arena->mutex);
    return found;
}

void zc_arena_free(struct zc_arena *arena, size_t unit, size_t units) {
    pthread_mutex_lock(&arena->mutex);
    memset(arena->taken + unit, 0, units);
    if (unit < arena->low)
        arena->low = unit;
    pthread_mutex_unlock(&arena->mutex);
}

/* A failed mmap over a reservation may leave a hole in it (before Linux 6.12), which some other mmap of the process could land in. Fills
 * the hole if there is one; if there is none, MAP_FIXED_NOREPLACE changes nothing. */
static int refused(void *at, size_t bytes) {
    int error = -errno;
    (void)!reserve(at, bytes, MAP_FIXED_NOREPLACE);
    return error;
}

static int open_mapped(void *at, size_t bytes) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    int error = 0;
    if (mmap(at, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
        error = refused(at, bytes);
    close(fd);
    return error;
}

static int open_copied(void *at, size_t bytes) {
    if (mprotect(at, bytes, PROT_READ | PROT_WRITE) != 0)
        return -errno;
    madvise(at, bytes, MADV_HUGEPAGE); /* where there are none, small pages do */
    return 0;
}

int zc_arena_open(struct zc_arena *arena, size_t unit, size_t units, enum zc_memory memory) {
    void *at = zc_arena_at(arena, unit);
    size_t bytes = units << ZC_REGION_SHIFT;
    return memory == ZC_MAPPED ? open_mapped(at, bytes) : open_copied(at, bytes);
}

int zc_arena_close(struct zc_arena *arena, size_t unit, size_t units) {
    void *at = zc_arena_at(arena, unit);
    size_t bytes = units << ZC_REGION_SHIFT;
    if (reserve(at, bytes, MAP_FIXED) != MAP_FAILED)
        return 0;
    int error = refused(at, bytes);
    madvise(at, bytes, MADV_DONTNEED); /* the range stays accessible, but its memory must not stay */
    return error;
}
