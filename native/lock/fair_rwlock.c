#include "lock/fair_rwlock.h"

#include "lock/faults.h"

/* Bits to sleep under: 16 for writers, 16 for readers, chosen by how many writers the ticket waits for. Those whose turn it is after an
 * unlock wait for exactly as many writers as have completed. */
static uint32_t writers_bit(uint32_t word) {
    return 1u << (word % 16);
}

static uint32_t readers_bit(uint32_t word) {
    return 0x10000u << (word % 16);
}

static bool may_read(uint32_t completions, uint32_t ticket) {
    return ((completions ^ ticket) & ZC_FAIR_WRITERS) == 0;
}

static bool may_write(uint32_t completions, uint32_t ticket) {
    return completions == ticket;
}

static void wait_until(struct zc_fair_rwlock *lock, uint32_t ticket, bool (*may_enter)(uint32_t, uint32_t), uint32_t bit) {
    for (int spin = 0; spin < ZC_SPINS; spin++) {
        if (may_enter(atomic_load_explicit(&lock->completions, ZC_ACQUIRE), ticket))
            return;
        zc_relax();
    }
    atomic_fetch_add_explicit(&lock->sleepers, 1, ZC_SEQ_CST);
    for (;;) {
        uint32_t completions = atomic_load_explicit(&lock->completions, ZC_SEQ_CST);
        if (may_enter(completions, ticket))
            break;
        zc_futex_wait(&lock->completions, completions, bit);
    }
    if (ZC_FAULT(8)) {
        atomic_store_explicit(&lock->sleepers, 0, ZC_RELAXED);
        return;
    }
    atomic_fetch_sub_explicit(&lock->sleepers, 1, ZC_RELAXED);
}

void zc_fair_init(struct zc_fair_rwlock *lock, uint32_t start) {
    atomic_init(&lock->requests, start);
    atomic_init(&lock->completions, start);
    atomic_init(&lock->sleepers, 0);
}

void zc_fair_wait_to_read(struct zc_fair_rwlock *lock, uint32_t ticket) {
    wait_until(lock, ticket, may_read, readers_bit(ticket));
}

void zc_fair_wait_to_write(struct zc_fair_rwlock *lock, uint32_t ticket) {
    wait_until(lock, ticket, may_write, writers_bit(ticket));
}

/* A reader that leaves makes way for a writer at most. */
void zc_fair_wake_after_reader(struct zc_fair_rwlock *lock, uint32_t completions) {
    zc_futex_wake(&lock->completions, writers_bit(completions));
}

void zc_fair_wake_after_writer(struct zc_fair_rwlock *lock, uint32_t completions) {
    zc_futex_wake(&lock->completions, writers_bit(completions) | readers_bit(completions));
}
