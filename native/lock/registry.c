#include "lock/registry.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static const struct zc_strategy *const strategies[] = {
    &zc_strategy_global,
    &zc_strategy_per_region,
    &zc_strategy_per_region_convert,
    &zc_strategy_speculative,
    &zc_strategy_per_region_6_4,
    &zc_strategy_per_region_6_4_convert,
    &zc_strategy_region_rwlock,
    &zc_strategy_range,
    &zc_strategy_global_mutex,
    &zc_strategy_global_pthread,
    &zc_strategy_global_phase_fair,
    &zc_strategy_global_bravo,
    &zc_strategy_global_big_reader,
};
#define BUILT_IN (sizeof strategies / sizeof *strategies)

/* Plugins: for the life of the process, since maps point at their tables. Appended under the mutex, read without it. */
static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;
static _Atomic(const struct zc_strategy *) plugins[ZC_STRATEGY_PLUGINS];

const struct zc_strategy *zc_strategy_at(size_t index) {
    if (index < BUILT_IN)
        return strategies[index];
    index -= BUILT_IN;
    return index < ZC_STRATEGY_PLUGINS ? atomic_load_explicit(&plugins[index], memory_order_acquire) : NULL;
}

const struct zc_strategy *zc_strategy_find(const char *name) {
    const struct zc_strategy *strategy;
    for (size_t index = 0; (strategy = zc_strategy_at(index)) != NULL; index++)
        if (strcmp(strategy->name, name) == 0)
            return strategy;
    return NULL;
}

/* ---- plugins ---- */

struct complaint {
    char *text;
    size_t size;
};

__attribute__((format(printf, 3, 4))) static int complain(struct complaint *complaint, int error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(complaint->text, complaint->size, format, arguments);
    va_end(arguments);
    return error;
}

/* The first function of the table that must be there and is not. */
static const char *missing(const struct zc_strategy *s) {
    const struct {
        const char *name;
        bool there;
    } needed[] = {
        {"name", s->name != NULL},
        {"summary", s->summary != NULL},
        {"map_init", s->map_init != NULL},
        {"map_destroy", s->map_destroy != NULL},
        {"region_init", s->region_init != NULL},
        {"read_lock", s->read_lock != NULL},
        {"read_unlock", s->read_unlock != NULL},
        {"write_lock", s->write_lock != NULL},
        {"region_write_lock", s->region_write_lock != NULL},
        {"write_unlock", s->write_unlock != NULL},
        {"attach", s->attach != NULL},
        {"detach", s->detach != NULL},
        {"peek", s->peek != NULL || s->confirm == NULL},
        {"confirm", s->confirm != NULL || s->peek == NULL},
    };
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        if (!needed[i].there)
            return needed[i].name;
    return NULL;
}

/* Names end up in commands and in lists separated by commas. */
static bool is_name(const char *name) {
    size_t length = strlen(name);
    return length > 0 && length <= 40 && strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-._") == length;
}

static int examine(const struct zc_strategy *strategy, struct complaint *complaint) {
    if (strategy->abi != ZC_STRATEGY_ABI)
        return complain(complaint, -EPROTO, "it was built for version %u of the strategy ABI; this is version %u", strategy->abi,
                        ZC_STRATEGY_ABI);
    if (strategy->size != sizeof *strategy)
        return complain(complaint, -EPROTO, "its table has %u bytes, not %zu: it was built against another strategy.h", strategy->size,
                        sizeof *strategy);
    const char *absent = missing(strategy);
    if (absent != NULL)
        return complain(complaint, -EINVAL, "its table lacks %s", absent);
    if (!is_name(strategy->name))
        return complain(complaint, -EINVAL, "its name must be 1 to 40 of a-z, 0-9, '-', '.' and '_', not \"%.60s\"", strategy->name);
    if (strategy->map_size > ZC_STRATEGY_MOST_STATE || strategy->region_size > ZC_STRATEGY_MOST_STATE)
        return complain(complaint, -EINVAL, "its lock state of %zu bytes in a map and %zu in a region is over %u", strategy->map_size,
                        strategy->region_size, ZC_STRATEGY_MOST_STATE);
    return 0;
}

/* With `loading` held. */
static int enter(const struct zc_strategy *strategy, struct complaint *complaint) {
    const struct zc_strategy *same = zc_strategy_find(strategy->name);
    if (same == strategy)
        return 0; /* loaded before */
    if (same != NULL || strcmp(strategy->name, zc_strategy_none.name) == 0)
        return complain(complaint, -EEXIST, "there is a strategy named \"%s\" already", strategy->name);
    for (size_t index = 0; index < ZC_STRATEGY_PLUGINS; index++)
        if (atomic_load_explicit(&plugins[index], memory_order_relaxed) == NULL) {
            atomic_store_explicit(&plugins[index], strategy, memory_order_release);
            return 0;
        }
    return complain(complaint, -ENOSPC, "%d plugins are loaded already", ZC_STRATEGY_PLUGINS);
}

int zc_strategy_load(const char *path, const struct zc_strategy **out, char *text, size_t size) {
    struct complaint complaint = {.text = text, .size = size};
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (object == NULL) {
        const char *why = dlerror();
        return complain(&complaint, -ELIBBAD, "%s", why != NULL ? why : "it cannot be loaded");
    }
    const struct zc_strategy *strategy = dlsym(object, ZC_STRATEGY_SYMBOL);
    int error = strategy != NULL
                    ? examine(strategy, &complaint)
                    : complain(&complaint, -ENOSYS, "it exports no symbol \"%s\", so it is no lock strategy", ZC_STRATEGY_SYMBOL);
    if (error == 0) {
        pthread_mutex_lock(&loading);
        error = enter(strategy, &complaint);
        pthread_mutex_unlock(&loading);
    }
    if (error == 0)
        *out = strategy;
    else
        dlclose(object);
    return error;
}
