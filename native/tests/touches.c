#include "tests/touches.h"

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define LINES 1024
#define CALLS 256
#define STACK 65536u

static struct line {
    uintptr_t number; /* address / 64 */
    bool touched[2], written[2];
    uint8_t calls[CALLS]; /* 1: touched in this call */
} lines[LINES];
static unsigned line_count, call_count;
static int thread = -1; /* nobody */

void zc_touches_begin(int by) {
    if (call_count == CALLS)
        abort();
    thread = by;
}

void zc_touches_end(void) {
    thread = -1;
    call_count++;
}

void zc_touches_clear(void) {
    for (unsigned i = 0; i < line_count; i++)
        lines[i] = (struct line){0};
    line_count = call_count = 0;
}

unsigned zc_touches_shared(void) {
    unsigned shared = 0;
    for (struct line *line = lines; line < lines + line_count; line++)
        if ((line->written[0] && line->touched[1]) || (line->written[1] && line->touched[0]))
            for (unsigned call = 0; call < call_count; call++)
                shared += line->calls[call];
    return shared;
}

/* The stack is the thread's own, though here both have the same. */
static bool is_on_stack(const volatile void *address) {
    uintptr_t distance = (uintptr_t)address - (uintptr_t)__builtin_frame_address(0) + STACK;
    return distance < 2 * STACK;
}

static void note(const volatile void *address, size_t size, bool write) {
    if (thread < 0 || size == 0 || is_on_stack(address))
        return;
    for (uintptr_t number = (uintptr_t)address / 64; number <= ((uintptr_t)address + size - 1) / 64; number++) {
        unsigned i = 0;
        while (i < line_count && lines[i].number != number)
            i++;
        if (i == LINES)
            abort();
        if (i == line_count)
            lines[line_count++].number = number;
        lines[i].touched[thread] = true;
        lines[i].written[thread] |= write;
        lines[i].calls[call_count] = 1;
    }
}

/* ---- what the compiler calls; declared nowhere, but known to it ---- */

#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#pragma GCC diagnostic ignored "-Wbuiltin-declaration-mismatch"

void __tsan_init(void) {}

void __tsan_func_entry(void *caller) {
    (void)caller;
}

void __tsan_func_exit(void) {}

#define PLAIN(size)                                                                                                                        \
    void __tsan_read##size(void *address) {                                                                                                \
        note(address, size, false);                                                                                                        \
    }                                                                                                                                      \
    void __tsan_write##size(void *address) {                                                                                               \
        note(address, size, true);                                                                                                         \
    }                                                                                                                                      \
    void __tsan_unaligned_read##size(void *address) {                                                                                      \
        note(address, size, false);                                                                                                        \
    }                                                                                                                                      \
    void __tsan_unaligned_write##size(void *address) {                                                                                     \
        note(address, size, true);                                                                                                         \
    }
PLAIN(1)
PLAIN(2)
PLAIN(4)
PLAIN(8)
PLAIN(16)

void __tsan_read_range(void *address, size_t size) {
    note(address, size, false);
}

void __tsan_write_range(void *address, size_t size) {
    note(address, size, true);
}

#define MODIFY(bits, name)                                                                                                                 \
    uint##bits##_t __tsan_atomic##bits##_##name(volatile uint##bits##_t *address, uint##bits##_t value, int order) {                       \
        (void)order;                                                                                                                       \
        note(address, bits / 8, true);                                                                                                     \
        return __atomic_##name(address, value, __ATOMIC_SEQ_CST);                                                                          \
    }
#define COMPARE(bits, name)                                                                                                                \
    int __tsan_atomic##bits##_compare_exchange_##name(volatile uint##bits##_t *address, uint##bits##_t *expected, uint##bits##_t value,    \
                                                      int order, int failed) {                                                             \
        (void)order, (void)failed;                                                                                                         \
        note(address, bits / 8, true);                                                                                                     \
        return __atomic_compare_exchange_n(address, expected, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                               \
    }
#define ATOMIC(bits)                                                                                                                       \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t *address, int order) {                                         \
        (void)order;                                                                                                                       \
        note(address, bits / 8, false);                                                                                                    \
        return __atomic_load_n(address, __ATOMIC_SEQ_CST);                                                                                 \
    }                                                                                                                                      \
    void __tsan_atomic##bits##_store(volatile uint##bits##_t *address, uint##bits##_t value, int order) {                                  \
        (void)order;                                                                                                                       \
        note(address, bits / 8, true);                                                                                                     \
        __atomic_store_n(address, value, __ATOMIC_SEQ_CST);                                                                                \
    }                                                                                                                                      \
    uint##bits##_t __tsan_atomic##bits##_exchange(volatile uint##bits##_t *address, uint##bits##_t value, int order) {                     \
        (void)order;                                                                                                                       \
        note(address, bits / 8, true);                                                                                                     \
        return __atomic_exchange_n(address, value, __ATOMIC_SEQ_CST);                                                                      \
    }                                                                                                                                      \
    MODIFY(bits, fetch_add)                                                                                                                \
    MODIFY(bits, fetch_sub)                                                                                                                \
    MODIFY(bits, fetch_and)                                                                                                                \
    MODIFY(bits, fetch_or)                                                                                                                 \
    COMPARE(bits, strong)                                                                                                                  \
    COMPARE(bits, weak)
ATOMIC(8)
ATOMIC(32)
ATOMIC(64)

/* ---- libc's locks: -Wl,--wrap ---- */

#define WRAP(function, type)                                                                                                               \
    int __real_##function(type *lock);                                                                                                     \
    int __wrap_##function(type *lock) {                                                                                                    \
        note(lock, 1, true);                                                                                                               \
        return __real_##function(lock);                                                                                                    \
    }
WRAP(pthread_mutex_lock, pthread_mutex_t)
WRAP(pthread_mutex_trylock, pthread_mutex_t)
WRAP(pthread_mutex_unlock, pthread_mutex_t)
WRAP(pthread_rwlock_tryrdlock, pthread_rwlock_t)
WRAP(pthread_rwlock_unlock, pthread_rwlock_t)
