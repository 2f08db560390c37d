/* Those who wait for memory. A refusal marks the map, whoever brings memory back after that calls everybody: waiting is rare, and which of
 * them can use what came back is not known here. */
#include <errno.h>

#include "lock/atomics.h"
#include "region/map_core.h"

int zc_map_add_waker(struct zc_map *map, zc_wake_fn wake, void *context) {
    struct zc_core *core = zc_core_of(map);
    int error = -ENOSPC;
    pthread_mutex_lock(&core->wakers_mutex);
    for (size_t i = 0; i < ZC_MAP_WAKERS && error != 0; i++) {
        struct zc_waker *waker = &core->wakers[i];
        if (waker->wake == NULL && waker->running == 0) {
            *waker = (struct zc_waker){.wake = wake, .context = context};
            error = 0;
        }
    }
    pthread_mutex_unlock(&core->wakers_mutex);
    return error;
}

void zc_map_remove_waker(struct zc_map *map, void *context) {
    struct zc_core *core = zc_core_of(map);
    pthread_mutex_lock(&core->wakers_mutex);
    for (size_t i = 0; i < ZC_MAP_WAKERS; i++) {
        struct zc_waker *waker = &core->wakers[i];
        if (waker->wake == NULL || waker->context != context)
            continue;
        waker->wake = NULL;
        while (waker->running > 0)
            pthread_cond_wait(&core->wakers_idle, &core->wakers_mutex);
    }
    pthread_mutex_unlock(&core->wakers_mutex);
}

void zc_wake_refused(struct zc_core *core) {
    if (!atomic_load_explicit(&core->refused, ZC_SEQ_CST) || !atomic_exchange_explicit(&core->refused, false, ZC_SEQ_CST))
        return;
    pthread_mutex_lock(&core->wakers_mutex);
    for (size_t i = 0; i < ZC_MAP_WAKERS; i++) {
        struct zc_waker *waker = &core->wakers[i];
        if (waker->wake == NULL)
            continue;
        zc_wake_fn wake = waker->wake;
        void *context = waker->context;
        waker->running++;
        pthread_mutex_unlock(&core->wakers_mutex);
        wake(context);
        pthread_mutex_lock(&core->wakers_mutex);
        if (--waker->running == 0)
            pthread_cond_broadcast(&core->wakers_idle);
    }
    pthread_mutex_unlock(&core->wakers_mutex);
}
