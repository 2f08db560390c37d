/* The thin layer that every strategy stands on: waiting on a word, spinning politely, reading a cycle counter, asserting an invariant.
 *
 * Everything else about atomics is C11's own. No stand-alone fences anywhere: ThreadSanitizer does not understand them, and ordered
 * read-modify-writes and loads say which access the order belongs to.
 */
#ifndef ZCRPC_ATOMICS_H
#define ZCRPC_ATOMICS_H

#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define ZC_RELAXED memory_order_relaxed
#define ZC_ACQUIRE memory_order_acquire
#define ZC_RELEASE memory_order_release
#define ZC_SEQ_CST memory_order_seq_cst

/* Rounds of zc_relax before a waiter goes to sleep: 10–25 µs, about what going to sleep and being woken costs in a virtual machine, so that a
 * wait never costs more than twice what it must. Measured with a writer that is inside 5 µs at a time and a reader, on two cores: 64 rounds,
 * a fair lock handed from sleeper to sleeper at 45 µs per turn; 256, mostly 5 µs; 1024, 5.2 µs. */
#define ZC_SPINS 512

/* Sleeps while *word == expected, until a wake whose mask shares a bit with `mask`; may return for no reason. */
static inline void zc_futex_wait(_Atomic uint32_t *word, uint32_t expected, uint32_t mask) {
    syscall(SYS_futex, word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, expected, NULL, NULL, mask);
}

/* Uses the address only, never what is there: harmless where the word is gone or is something else by now. */
static inline void zc_futex_wake(_Atomic uint32_t *word, uint32_t mask) {
    syscall(SYS_futex, word, FUTEX_WAKE_BITSET | FUTEX_PRIVATE_FLAG, INT_MAX, NULL, NULL, mask);
}

static inline void zc_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* yield is a no-op on most cores; isb waits about as long as x86's pause */
#endif
}

/* Ticks of the processor's constant-rate counter, or nanoseconds where we know of none. Neither ordered nor serialised. */
static inline uint64_t zc_cycles(void) {
#if defined(__x86_64__) || defined(__i386__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t ticks;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
#endif
}

#ifdef ZCRPC_DEBUG
#define ZC_ASSERT(condition) ((condition) ? (void)0 : zc_assert_failed(#condition, __FILE__, __LINE__))
static inline _Noreturn void zc_assert_failed(const char *condition, const char *file, int line) {
    fprintf(stderr, "%s:%d: invariant violated: %s\n", file, line, condition);
    abort();
}
#else
#define ZC_ASSERT(condition) ((void)sizeof(condition))
#endif

#endif
