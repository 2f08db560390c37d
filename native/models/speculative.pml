/* "speculative": peek and confirm of native/lock/speculative.c, readers that only look. Those that hold are "per-region" (per_region.pml) and
 * left out here, and with them the draining of readers: nothing that a writer waits for.
 *
 *   here                           there
 *   changes[]                      region_lock.changes, modulo 8 instead of 2^32
 *   changed[]                      whether the region is in map_lock.changed
 *   peek, confirm                  speculative_peek, speculative_confirm: a step for each load
 *   first[], second[]              what a reader reads of a region between the two, which a writer changes one after the other
 *   region_map.inc, region_writer.inc  the map around it and its writers
 *
 * Assumption: fewer than 8 changes of a region within one peek (`passed`; 2^32 there). Fault ABA is what happens without it.
 *
 * Properties: what was confirmed belongs together, and is of the region that has the address in the map; no deadlock.
 * size: READERS=1
 * size: READERS=2 MAPS=1 ADDRESSES=1
 * reach: confirmed odd elsewhere unconfirmed wrap moved
 * fault ABA: as many changes as the count can tell apart, within one peek
 * fault NO_REFUSAL: a region that is being changed is not refused
 * fault NO_CONFIRM: what was read is believed
 * fault LATE_COUNT: a writer counts after it changed
 * fault EARLY: a region is even again before it was changed
 * fault FORGOTTEN: detaching leaves a region in the list of the section that made it odd
 */
#define CONTENT
#include "region_map.inc"

#define MODULUS 8
#define ROOM(reader, by) (!peeking[reader] || passed[reader] + by < MODULUS)

byte changes[STRUCTS] = 1;
byte first[STRUCTS], second[STRUCTS];
bool changed[STRUCTS];
bool peeking[READERS];
byte passed[READERS];

inline peek_ends() {
    peeking[_pid] = false;
    passed[_pid] = 0
}

active [READERS] proctype reader() {
    byte m, a, r, c, one, two;
    do
    :: choose();
        choose_address();
        r = found[m * ADDRESSES + a];
        if
        :: r == NOWHERE -> goto done
        :: else
        fi;
        d_step { c = changes[r]; peeking[_pid] = true };
#ifndef FAULT_NO_REFUSAL
        if
        :: d_step { c & 1 -> c_code { reach("odd"); } }; goto done
        :: !(c & 1)
        fi;
#endif
        if
        :: of_map[r] == m
        :: d_step { of_map[r] != m -> c_code { reach("elsewhere"); } }; goto done
        fi;
        if
        :: place[r] == a
        :: d_step { place[r] != a -> c_code { reach("elsewhere"); } }; goto done
        fi;
        one = first[r];
        two = second[r];
        if
#ifndef FAULT_NO_CONFIRM
        :: d_step { changes[r] != c -> c_code { reach("unconfirmed"); } }
        :: d_step { changes[r] == c -> c_code { reach("confirmed"); }; assert(one == two && of_map[r] == m && place[r] == a) }
#else
        :: d_step { assert(one == two && of_map[r] == m && place[r] == a) }
#endif
        fi;
done:   atomic { peek_ends(); r = 0; c = 0; one = 0; two = 0 }
    :: break
    od
}

inline count(r, by) {
    atomic {
#ifndef FAULT_ABA
        ROOM(0, by) && ROOM(READERS - 1, by) ->
#endif
        d_step {
            seen = 0;
            do
            :: seen < READERS -> passed[seen] = (peeking[seen] -> (passed[seen] + by) % MODULUS : 0); seen++
            :: else -> seen = 0; break
            od;
            changes[r] = changes[r] + by;
            if
            :: changes[r] >= MODULUS -> changes[r] = changes[r] - MODULUS; c_code { reach("wrap"); }
            :: else
            fi
        }
    }
}

inline region_write_lock(r) {
#ifndef FAULT_LATE_COUNT
    count(r, 1);
#endif
#ifdef FAULT_EARLY
    count(r, 1);
    locked[r] = true
#else
    d_step { changed[r] = true; locked[r] = true }
#endif
}

inline change_content(r) {
    first[r] = (first[r] + 1) & 3;
    second[r] = (second[r] + 1) & 3;
#ifdef FAULT_LATE_COUNT
    count(r, 1)
#else
    skip
#endif
}

inline attach(r) {
    d_step { assert(changes[r] & 1); changed[r] = true; locked[r] = true }
}

/* Always after region_write_lock, so it is odd already. */
inline detach(r) {
#ifdef FAULT_EARLY
    count(r, 1)
#elif defined(FAULT_FORGOTTEN)
    skip
#else
    changed[r] = false
#endif
}

inline write_lock() {
    map_write_lock(m)
}

/* Who changes the region that was found; no other is in the list. */
inline write_unlock() {
    d_step { unlock_regions() };
    if
    :: d_step { r != NOWHERE && changed[r] -> changed[r] = false }; count(r, 1)
    :: else
    fi;
    map_write_unlock(m)
}

#include "region_writer.inc"
