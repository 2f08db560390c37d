/* What wraps in the strategies, where it starts so that it does so soon, and how often it did.
 *
 * The words are private to their strategies and the counts are ours; so whatever a word holds in the end is checked against the locks that
 * were counted. Tickets of a fair lock are two: 16 bits of writers, and of readers above them, with the carry between the two. */
#include "lab/torture_check.h"
#include "lab/torture_run.h"
#include "lock/fair_rwlock.h"
#include "lock/global_phase_fair.h"
#include "lock/per_region.h"
#include "lock/per_region_6_4.h"
#include "lock/registry.h"

#define TICKETS (-100u) /* where a fair lock's two words start */
#define SECTIONS (-400u)
#define SECTIONS_6_4 (-200u)
#define PHASE_READERS (-100u << 8) /* in the high 24 bits */
#define PHASE_WRITERS (-100u)

enum family { OUTSIDE, NOTHING_WRAPS, FAIR, FAIR_FOR_WRITERS, PER_REGION, PER_REGION_6_4, PHASE_FAIR };

static enum family family_of(const struct zc_strategy *strategy) {
    static const struct {
        const struct zc_strategy *strategy;
        enum family family;
    } known[] = {
        {&zc_strategy_global, FAIR},
        {&zc_strategy_per_region, PER_REGION},
        {&zc_strategy_per_region_convert, PER_REGION},
        {&zc_strategy_speculative, PER_REGION},
        {&zc_strategy_per_region_6_4, PER_REGION_6_4},
        {&zc_strategy_per_region_6_4_convert, PER_REGION_6_4},
        {&zc_strategy_region_rwlock, FAIR},
        {&zc_strategy_range, FAIR_FOR_WRITERS},
        {&zc_strategy_global_mutex, NOTHING_WRAPS},
        {&zc_strategy_global_pthread, NOTHING_WRAPS},
        {&zc_strategy_global_phase_fair, PHASE_FAIR},
        {&zc_strategy_global_bravo, FAIR_FOR_WRITERS},
        {&zc_strategy_global_big_reader, FAIR_FOR_WRITERS},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].strategy == strategy)
            return known[i].family;
    return OUTSIDE;
}

void torture_start_before_wrap(struct zc_map *map) {
    switch (family_of(map->strategy)) {
    case PER_REGION:
        zc_per_region_start(map, SECTIONS, TICKETS);
        break;
    case PER_REGION_6_4:
        zc_per_region_6_4_start(map, SECTIONS_6_4, TICKETS);
        break;
    case PHASE_FAIR:
        zc_phase_fair_start(map, PHASE_READERS, PHASE_WRITERS);
        break;
    case FAIR:
    case FAIR_FOR_WRITERS: /* their state begins with a fair lock */
        zc_fair_init(map->lock, TICKETS);
        break;
    case OUTSIDE:
    case NOTHING_WRAPS:
        break;
    }
}

/* How often a word of so many bits has passed its end, `steps` after `start`. */
static int64_t passes(uint32_t word, uint32_t start, uint64_t steps, int bits) {
    uint64_t mask = (1ull << bits) - 1, sum = (start & mask) + steps;
    CHECK_EQUAL(word & mask, sum & mask);
    return (int64_t)(sum >> bits);
}

static int64_t writers_passes(uint32_t tickets, uint64_t writers) {
    return passes(tickets, TICKETS, writers, 16);
}

static int64_t fair_passes(uint32_t tickets, uint64_t writers, uint64_t readers) {
    return writers_passes(tickets, writers) + passes(tickets, TICKETS, writers + (readers << 16), 32);
}

/* Sections count two; readers have a ticket only where they fell back. */
static int64_t per_region_passes(struct zc_per_region_map *m, uint64_t writers, uint64_t readers) {
    return passes(atomic_load(&m->seq), SECTIONS, 2 * writers, 32) + fair_passes(atomic_load(&m->lock.completions), writers, readers);
}

static int64_t per_region_6_4_passes(struct zc_map *map, uint64_t writers, uint64_t readers) {
    uint32_t seq, tickets;
    zc_per_region_6_4_words(map, &seq, &tickets);
    uint64_t left_out = writers >= -SECTIONS_6_4; /* 0 */
    return passes(seq, SECTIONS_6_4, writers + left_out, 32) + fair_passes(tickets, writers, readers);
}

static int64_t phase_fair_passes(struct zc_map *map, uint64_t writers, uint64_t readers) {
    uint32_t left, served;
    zc_phase_fair_words(map, &left, &served);
    return passes(left >> 8, PHASE_READERS >> 8, readers, 24) + passes(served, PHASE_WRITERS, writers, 32);
}

int64_t torture_wraps(struct zc_map *map, const struct zc_lock_counters *counted) {
    uint64_t writers = counted->write_locks, readers = counted->read_locks + counted->misses;
    uint64_t under_map_lock = counted->fallbacks + counted->misses;
    struct zc_fair_rwlock *fair = map->lock;
    switch (family_of(map->strategy)) {
    case PER_REGION:
        return per_region_passes(map->lock, writers, under_map_lock);
    case PER_REGION_6_4:
        return per_region_6_4_passes(map, writers, under_map_lock);
    case PHASE_FAIR:
        return phase_fair_passes(map, writers, readers);
    case FAIR:
        return fair_passes(atomic_load(&fair->completions), writers, readers);
    case FAIR_FOR_WRITERS: /* not every reader takes a ticket */
        return writers_passes(atomic_load(&fair->completions), writers);
    case NOTHING_WRAPS:
        return 0;
    case OUTSIDE:
        break;
    }
    return -1;
}
