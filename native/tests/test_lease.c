/* Placing and releasing: which pages a payload gets, when they may be used again, and what happens when both go on at once. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "lock/registry.h"
#include "region/nursery.h"
#include "tests/check.h"

#define MIB (1ull << 20)
#define KIB 1024u

struct fixture {
    struct zc_map *map;
    struct zc_nursery *nursery;
};

static struct fixture make(uint64_t budget, uint64_t retain) {
    struct fixture f;
    CHECK_EQUAL(zc_map_create(&zc_strategy_per_region, &(struct zc_map_options){.budget = budget, .retain = retain}, &f.map), 0);
    f.nursery = zc_nursery_create(f.map);
    return f;
}

static void unmake(struct fixture *f) {
    zc_nursery_drop(f->nursery);
    zc_map_drop(f->map);
}

static struct zc_map_stats stats_of(struct fixture *f) {
    struct zc_map_stats stats;
    zc_map_stats(f->map, &stats);
    return stats;
}

static struct zc_lease *reserve(struct fixture *f, enum zc_memory memory, uint64_t length) {
    struct zc_lease *lease;
    CHECK_EQUAL(zc_lease_reserve(f->nursery, memory, length, false, &lease), 0);
    CHECK_EQUAL(lease->length, length);
    CHECK_EQUAL(lease->address % ZC_PAGE, 0);
    CHECK(lease->address >= lease->region->start && lease->address + length <= lease->region->end);
    CHECK_EQUAL(zc_region_memory(lease->region), memory);
    return lease;
}

static void leases_do_not_overlap(enum zc_memory memory) {
    static const uint64_t lengths[] = {1, 4095, 4096, 4097, 64 * KIB, MIB, MIB + 1, 2 * MIB, 2 * MIB + 1, 5 * MIB};
    enum { COUNT = 40 };
    struct fixture f = make(256 * MIB, 0);
    struct zc_lease *leases[COUNT];
    uint64_t pages = 0;
    for (int i = 0; i < COUNT; i++) {
        leases[i] = reserve(&f, memory, lengths[i % 10]);
        pages += (leases[i]->length + ZC_PAGE - 1) / ZC_PAGE;
        CHECK_EQUAL(leases[i]->nursery == NULL, leases[i]->length > MIB); /* over half a unit: a region of its own */
        for (int k = 0; k < i; k++)
            CHECK(leases[i]->address >= (leases[k]->address + leases[k]->length + ZC_PAGE - 1) / ZC_PAGE * ZC_PAGE ||
                  leases[k]->address >= (leases[i]->address + leases[i]->length + ZC_PAGE - 1) / ZC_PAGE * ZC_PAGE);
    }
    CHECK_EQUAL(stats_of(&f).leases, COUNT);
    CHECK_EQUAL(stats_of(&f).leased_bytes, pages * ZC_PAGE);
    for (int i = 0; i < COUNT; i++)
        zc_lease_release(leases[(i * 7) % COUNT]);
    CHECK_EQUAL(stats_of(&f).leases, 0);
    CHECK_EQUAL(stats_of(&f).leased_bytes, 0);
    CHECK(stats_of(&f).arena_bytes <= 2 * MIB); /* the nursery's spare */
    unmake(&f);
}

static void copied_pages_are_reused_at_once(void) {
    struct fixture f = make(64 * MIB, 0);
    struct zc_lease *keep = reserve(&f, ZC_COPIED, 64 * KIB), *first = reserve(&f, ZC_COPIED, 64 * KIB);
    uintptr_t address = first->address;
    zc_lease_release(first);
    for (int round = 0; round < 10000; round++) {
        struct zc_lease *lease = reserve(&f, ZC_COPIED, 64 * KIB);
        CHECK_EQUAL(lease->address, address);
        zc_lease_release(lease);
    }
    CHECK_EQUAL(stats_of(&f).attaches, 1);
    CHECK_EQUAL(stats_of(&f).recycles, 0);
    zc_lease_release(keep);
    unmake(&f);
}

static void a_region_fills_to_the_last_page(enum zc_memory memory) {
    struct fixture f = make(8 * MIB, 0);
    struct zc_lease *leases[512 + 1];
    for (int i = 0; i < 512; i++)
        leases[i] = reserve(&f, memory, ZC_PAGE);
    CHECK_EQUAL(stats_of(&f).arena_bytes, 2 * MIB);
    leases[512] = reserve(&f, memory, ZC_PAGE);
    CHECK_EQUAL(stats_of(&f).arena_bytes, 4 * MIB);
    uintptr_t address = leases[300]->address;
    zc_lease_release(leases[300]);
    zc_lease_release(leases[512]);
    leases[300] = reserve(&f, memory, ZC_PAGE);
    if (memory == ZC_MAPPED)
        CHECK(leases[300]->address != address); /* stale */
    else
        CHECK_EQUAL(leases[300]->address, address); /* a full region was found again */
    for (int i = 0; i < 512; i++)
        zc_lease_release(leases[i]);
    unmake(&f);
}

/* No mapped page is handed out a second time before it was given back to the system, which `recycles` counts. */
static void mapped_pages_are_clean(void) {
    struct fixture f = make(2 * MIB, 0); /* one region is all there is */
    unsigned char used[512] = {0};
    uint64_t recycles = 0;
    for (int round = 0; round < 5000; round++) {
        uint32_t pages = 1 + (uint32_t)(round * 37 % 60);
        struct zc_lease *lease = reserve(&f, ZC_MAPPED, (uint64_t)pages * ZC_PAGE);
        if (stats_of(&f).recycles != recycles)
            memset(used, 0, sizeof used); /* the whole region was empty */
        recycles = stats_of(&f).recycles;
        uint32_t first = (uint32_t)((lease->address - lease->region->start) / ZC_PAGE);
        for (uint32_t page = first; page < first + pages; page++) {
            CHECK(!used[page]);
            used[page] = 1;
        }
        zc_lease_release(lease);
    }
    CHECK(recycles > 100); /* 5000 × 30 pages through 512 … */
    CHECK(recycles < 5000 * 30 / 128 + 1);
    CHECK_EQUAL(stats_of(&f).attaches, 1);
    unmake(&f);
}

static void stale_pages_are_recycled_around_held_ones(void) {
    struct fixture f = make(2 * MIB, 0);
    struct zc_lease *leases[8];
    for (int i = 0; i < 8; i++)
        leases[i] = reserve(&f, ZC_MAPPED, 64 * ZC_PAGE);
    uintptr_t hole = leases[2]->address;
    zc_lease_release(leases[2]);
    zc_lease_release(leases[3]);
    CHECK_EQUAL(stats_of(&f).recycles, 0);
    struct zc_lease *wide = reserve(&f, ZC_MAPPED, 128 * ZC_PAGE);
    CHECK_EQUAL(wide->address, hole);
    CHECK_EQUAL(stats_of(&f).recycles, 1);
    zc_lease_release(leases[7]);
    struct zc_lease *refused;
    CHECK_EQUAL(zc_lease_reserve(f.nursery, ZC_MAPPED, 65 * ZC_PAGE, false, &refused), -EAGAIN);
    leases[7] = reserve(&f, ZC_MAPPED, 3 * ZC_PAGE); /* few stale pages, but no memory for another region */
    CHECK_EQUAL(stats_of(&f).recycles, 2);
    for (int i = 0; i < 8; i++)
        if (i != 2 && i != 3)
            zc_lease_release(leases[i]);
    zc_lease_release(wide);
    CHECK_EQUAL(stats_of(&f).leases, 0);
    unmake(&f);
}

/* What giving back costs is counted by the bytes that were given back, not by those of the run around them. */
static void a_run_gives_back_what_its_payload_had(void) {
    struct fixture f = make(64 * MIB, 64 * MIB);
    uint64_t *bytes = &zc_core_of(f.map)->recycled_bytes;
    zc_lease_release(reserve(&f, ZC_MAPPED, 5 * MIB + 1));
    CHECK_EQUAL(*bytes, 5 * MIB + ZC_PAGE);
    zc_lease_release(reserve(&f, ZC_MAPPED, 100 * ZC_PAGE)); /* stays stale in its nursery */
    CHECK_EQUAL(*bytes, 5 * MIB + ZC_PAGE);
    zc_lease_release(reserve(&f, ZC_COPIED, 5 * MIB));
    CHECK_EQUAL(*bytes, 5 * MIB + ZC_PAGE);
    CHECK(zc_map_recycle_cost(f.map) > 0);
    unmake(&f);
}

static void an_idle_region_with_stale_pages_is_cleaned_for_a_run(void) {
    struct fixture f = make(2 * MIB, 2 * MIB);
    zc_lease_release(reserve(&f, ZC_MAPPED, 100 * ZC_PAGE));
    CHECK_EQUAL(stats_of(&f).recycles, 0);
    struct zc_lease *run = reserve(&f, ZC_MAPPED, 2 * MIB);
    CHECK_EQUAL(stats_of(&f).attaches, 1);
    CHECK_EQUAL(stats_of(&f).recycles, 1);
    zc_lease_release(run);
    CHECK_EQUAL(stats_of(&f).recycles, 2); /* a run is recycled at once */
    zc_lease_release(reserve(&f, ZC_MAPPED, MIB));
    CHECK_EQUAL(stats_of(&f).attaches, 1);
    unmake(&f);
}

/* ---- both at once ---- */

#define RING 64

struct churn {
    struct fixture f;
    _Atomic(struct zc_lease *) ring[RING];
    _Atomic bool stop;
    _Atomic uint64_t placed, released, refused, woken, wrong;
    enum zc_memory memory;
    const uint64_t *lengths;
};

static void fill(struct zc_lease *lease, unsigned char with) {
    memset((void *)lease->address, with, lease->length);
}

static void *release_all(void *argument) {
    struct churn *churn = argument;
    for (uint32_t slot = 0; !atomic_load(&churn->stop); slot = (slot + 1) % RING) {
        struct zc_lease *lease = atomic_exchange(&churn->ring[slot], NULL);
        if (lease == NULL) {
            sched_yield();
            continue;
        }
        if (churn->memory == ZC_COPIED)
            for (uint64_t at = 0; at < lease->length; at += 512)
                if (((unsigned char *)lease->address)[at] != (unsigned char)(lease->length * 7 + slot))
                    atomic_fetch_add(&churn->wrong, 1);
        zc_lease_release(lease);
        atomic_fetch_add(&churn->released, 1);
    }
    return NULL;
}

static void wake(void *context) {
    atomic_fetch_add(&((struct churn *)context)->woken, 1);
}

/* One thread places into slots of a ring, three release from it; whoever is refused waits for the waker and nothing else. */
static void placing_and_releasing_at_once(enum zc_memory memory, uint64_t budget, int rounds) {
    static const uint64_t lengths[] = {1, 5000, 40 * KIB, 300 * KIB, MIB, MIB + 1, 3 * MIB, 64 * KIB};
    static struct churn churn;
    memset(&churn, 0, sizeof churn);
    churn.f = make(budget, 4 * MIB);
    churn.memory = memory;
    pthread_t threads[3];
    CHECK_EQUAL(zc_map_add_waker(churn.f.map, wake, &churn), 0);
    for (int i = 0; i < 3; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, release_all, &churn), 0);
    for (int round = 0; round < rounds; round++) {
        uint32_t slot = (uint32_t)round % RING;
        while (atomic_load(&churn.ring[slot]) != NULL)
            sched_yield();
        struct zc_lease *lease;
        uint64_t length = lengths[(uint32_t)round * 2654435761u >> 29];
        for (int error;;) {
            uint64_t woken = atomic_load(&churn.woken);
            error = zc_lease_reserve(churn.f.nursery, memory, length, false, &lease);
            if (error == 0)
                break;
            CHECK_EQUAL(error, -EAGAIN);
            atomic_fetch_add(&churn.refused, 1);
            while (atomic_load(&churn.woken) == woken) /* a lost wake hangs here */
                sched_yield();
        }
        if (memory == ZC_COPIED)
            fill(lease, (unsigned char)(length * 7 + slot));
        atomic_store(&churn.ring[slot], lease);
        churn.placed++;
    }
    while (atomic_load(&churn.released) < churn.placed)
        sched_yield();
    atomic_store(&churn.stop, true);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    CHECK_EQUAL(churn.wrong, 0);
    struct zc_map_stats stats = stats_of(&churn.f);
    CHECK_EQUAL(stats.leases, 0);
    CHECK_EQUAL(stats.leased_bytes, 0);
    CHECK(stats.arena_bytes <= budget && stats.idle_bytes <= 4 * MIB);
    CHECK_EQUAL(stats.regions, stats.attaches - stats.detaches);
    CHECK_EQUAL(stats.budget_refusals, churn.refused);
    printf("    %llu refused, %llu attached, %llu recycled\n", (unsigned long long)churn.refused, (unsigned long long)stats.attaches,
           (unsigned long long)stats.recycles);
    zc_map_remove_waker(churn.f.map, &churn);
    unmake(&churn.f);
}

int main(void) {
    for (int memory = ZC_COPIED; memory <= ZC_MAPPED; memory++) {
        RUN(leases_do_not_overlap, memory);
        RUN(a_region_fills_to_the_last_page, memory);
    }
    RUN(copied_pages_are_reused_at_once);
    RUN(mapped_pages_are_clean);
    RUN(stale_pages_are_recycled_around_held_ones);
    RUN(a_run_gives_back_what_its_payload_had);
    RUN(an_idle_region_with_stale_pages_is_cleaned_for_a_run);
    RUN(placing_and_releasing_at_once, ZC_COPIED, 8 * MIB, 1500);
    RUN(placing_and_releasing_at_once, ZC_MAPPED, 8 * MIB, 2500);
    RUN(placing_and_releasing_at_once, ZC_MAPPED, 256 * MIB, 2500);
    return 0;
}
