#include <errno.h>
#include <sched.h>
#include <sys/mman.h>

#include "lab/torture_check.h"
#include "lab/torture_run.h"
#include "lock/faults.h"

struct section {
    struct torture_worker *w;
    struct torture_side *side;
    struct zc_map *map;
    struct zc_actor *self;
    uint64_t number; /* of the section, in its map */
};

static struct section begin(struct torture_worker *w, uint32_t which) {
    struct torture_side *side = &w->run->sides[which];
    struct section s = {.w = w, .side = side, .map = side->map, .self = w->actors[which]};
    uint64_t began = zc_cycles();
    s.map->strategy->write_lock(s.map, s.self);
    torture_keep_longest(&w->longest_write, began);
    w->sections[which]++;
    s.number = ++side->sections;
    return s;
}

static void end(struct section *s) {
    CHECK_EQUAL(s->side->sections, s->number);
    s->map->strategy->write_unlock(s->map, s->self);
}

static void lock_region(struct section *s, struct zc_region *region) {
    uint64_t began = zc_cycles();
    s->map->strategy->region_write_lock(s->map, s->self, region);
    torture_keep_longest(&s->w->longest_write, began);
}

/* Writes over what readers of a region have received. None of them is inside, so what is there stays until the section ends. */
static void overwrite(struct section *s, uintptr_t start) {
    uint32_t lanes = s->side->copied[torture_unit(s->map, start)] ? s->w->run->options->readers : 0;
    for (uint32_t reader = 0; reader < lanes; reader++)
        *torture_lane(start, reader) = ~s->number;
    torture_dawdle(s->w);
    for (uint32_t reader = 0; reader < lanes; reader++)
        CHECK_EQUAL(*torture_lane(start, reader), ~s->number);
}

static void change(struct section *s, struct torture_slot *slot) {
    struct zc_region *region = atomic_load(&slot->region);
    lock_region(s, region);
    slot->record.a++;
    atomic_fetch_add(&slot->left, 1);
    overwrite(s, atomic_load(&region->start));
    slot->record.b++;
    atomic_fetch_add(&slot->right, 1);
}

static void place(struct torture_slot *slot, struct zc_region *region, uintptr_t start, uintptr_t length) {
    atomic_store(&region->start, start);
    atomic_store(&region->end, start + length);
    slot->record.start = start;
    slot->record.past = start + length;
}

static void put_at(struct zc_map *map, struct torture_slot *slot, struct zc_region *region, uintptr_t start) {
    place(slot, region, start, ZC_UNIT);
    atomic_store(&map->regions[torture_unit(map, start)], region);
}

/* Whole, or cut off in the middle: then there is nothing at the addresses above. */
static void resize(struct section *s, struct torture_slot *slot) {
    struct zc_region *region = atomic_load(&slot->region);
    lock_region(s, region);
    place(slot, region, atomic_load(&region->start), torture_draw(s->w, 4) ? ZC_UNIT : ZC_UNIT / 2);
}

/* Two regions change places: the reader of either address must not come out with the other. */
static void swap(struct section *s, struct torture_slot *one, struct torture_slot *two) {
    struct zc_region *a = atomic_load(&one->region), *b = atomic_load(&two->region);
    uintptr_t at_a = atomic_load(&a->start), at_b = atomic_load(&b->start);
    lock_region(s, a);
    if (!ZC_FAULT(3))
        lock_region(s, b);
    put_at(s->map, one, a, at_b);
    torture_dawdle(s->w);
    put_at(s->map, two, b, at_a);
}

/* Out and in again within one section, with the fields wrong in between. */
static void bounce(struct section *s, struct torture_slot *slot) {
    struct zc_region *region = atomic_load(&slot->region);
    uintptr_t start = atomic_load(&region->start);
    s->map->strategy->detach(s->map, s->self, region);
    slot->record.a = slot->record.b + 12345;
    atomic_store(&s->map->regions[torture_unit(s->map, start)], NULL);
    atomic_store(&region->map, NULL);
    overwrite(s, start);
    slot->record.b = slot->record.a;
    atomic_store(&region->map, s->map);
    put_at(s->map, slot, region, start);
    s->map->strategy->attach(s->map, s->self, region);
}

int torture_attach(struct torture_side *side, struct zc_actor *self, enum zc_memory memory, struct zc_region **out) {
    int error = zc_region_attach(side->map, self, memory, ZC_UNIT, out);
    if (error != 0)
        return error;
    uintptr_t start = atomic_load(&(*out)->start);
    side->copied[torture_unit(side->map, start)] = memory == ZC_COPIED;
    if (memory == ZC_COPIED) /* the first touch after each recycle would clear a whole huge page */
        madvise((void *)start, ZC_UNIT, MADV_NOHUGEPAGE);
    return 0;
}

void torture_publish(struct torture_slot *slot, struct zc_region *region) {
    uintptr_t start = atomic_load(&region->start);
    slot->record.start = start;
    slot->record.past = atomic_load(&region->end);
    atomic_store(&slot->address, start);
    atomic_store(&slot->region, region);
}

/* Away altogether, its struct and its address free for anybody, and a new one instead. */
static void replace(struct torture_worker *w, uint32_t which, struct torture_slot *slot) {
    struct torture_side *side = &w->run->sides[which];
    struct zc_region *region = atomic_exchange(&slot->region, NULL), *fresh;
    CHECK_EQUAL(zc_region_detach(side->map, w->actors[which], region), 0);
    slot->record.a += 3; /* nobody is inside */
    slot->record.b += 3;
    int error;
    while ((error = torture_attach(side, w->actors[which], torture_draw(w, 2) ? ZC_MAPPED : ZC_COPIED, &fresh)) != 0) {
        CHECK_EQUAL(error, -ENOMEM); /* leases have it all */
        if (atomic_load(&w->run->stop))
            return;
        sched_yield();
    }
    w->sections[which] += 2;
    torture_publish(slot, fresh);
}

static struct torture_slot *draw_slot(struct torture_worker *w, const struct torture_side *side) {
    uint32_t writers = w->run->options->writers;
    return &side->slots[torture_draw(w, w->run->slots / writers) * writers + w->number];
}

static void write_step(struct torture_worker *w) {
    uint32_t which = torture_draw(w, TORTURE_MAPS);
    struct torture_side *side = &w->run->sides[which];
    struct torture_slot *one = draw_slot(w, side), *two = draw_slot(w, side);
    uint32_t action = torture_draw(w, 16);
    if (action == 0) {
        replace(w, which, one);
    } else if (action == 1) {
        CHECK_EQUAL(zc_region_recycle(side->map, w->actors[which], atomic_load(&one->region)), 0);
        w->sections[which]++;
    } else {
        struct section s = begin(w, which);
        change(&s, one);
        if (action < 4)
            swap(&s, one, two);
        else if (action < 6)
            bounce(&s, two);
        else if (action < 8)
            resize(&s, two);
        else if (action < 10)
            change(&s, two); /* perhaps the same again: idempotent */
        end(&s);
    }
    if (w->rough)
        for (uint32_t i = torture_draw(w, 3); i > 0; i--)
            sched_yield();
}

const struct torture_role torture_writer = {.step = write_step, .rough_burst = 64, .calm_burst = 256, .rest_us = 300};
