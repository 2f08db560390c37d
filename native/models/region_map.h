/* Region map, index and slab, as the models of region locks share them. Structs are type-stable and move between maps and addresses.
 *
 *   here               there
 *   of_map[], place[]  zc_region.map and zc_region.start/end: NOWHERE, or a map and the one address the region has
 *   found[]            zc_map.regions, the index
 *   taken[]            the slab, which maps may share (zc_map_create_beside)
 *   seq[]              the map's sequence, modulo 4 instead of 2^32
 *   inside[], locked[] seen by the assertions only: readers whom read_lock has let in; regions that a writer believes to have to itself,
 *                      from the return of region_write_lock or attach until write_unlock begins */
#include "reach.h"

#ifndef READERS
#define READERS 2
#endif
#ifndef WRITERS
#define WRITERS 1
#endif
#ifndef MAPS
#define MAPS 2
#endif
#ifndef ADDRESSES
#define ADDRESSES 2
#endif
#ifndef STRUCTS
#define STRUCTS 1
#endif
#ifndef FIRST_SEQ
#define FIRST_SEQ 0
#endif
#define NOWHERE 7

#include "map_lock.h"

byte of_map[STRUCTS] = NOWHERE, place[STRUCTS] = NOWHERE;
bool taken[STRUCTS];
byte found[MAPS * ADDRESSES] = NOWHERE;
byte seq[MAPS] = FIRST_SEQ, stamp[STRUCTS];
byte asleep[WRITERS]; /* 1 + the struct on whose word a writer sleeps */
byte inside[STRUCTS];
bool locked[STRUCTS];

/* A reader has been let in. */
inline entered() {
    inside[r]++;
    assert(!locked[r] && of_map[r] == m && place[r] == a)
}

/* The futex: comparing and queueing are one step, under the kernel's lock of the bucket. */
inline sleep_on(r, word, seen) {
    d_step {
        if
        :: word == seen -> asleep[w] = r + 1; c_code { reach("sleep"); }
        :: else -> c_code { reach("sleep_refused"); }
        fi;
        seen = 0
    };
    asleep[w] == 0
}

inline wake(r, i) {
    d_step {
        i = 0;
        do
        :: i < WRITERS ->
            if
            :: asleep[i] == r + 1 -> asleep[i] = 0; c_code { reach("wake"); }
            :: else
            fi;
            i++
        :: else -> break
        od;
        i = 0
    }
}

/* The sequence wrapped: every region of the map gets a stamp that no section has. */
inline sweep_stamps() {
    do
    :: a < ADDRESSES ->
        if
        :: found[m * ADDRESSES + a] != NOWHERE -> stamp[found[m * ADDRESSES + a]] = 0
        :: else
        fi;
        a++
    :: else -> break
    od;
    a = 0
}

/* With the step that unlocks them: whoever comes in from now on is welcome. */
inline unlock_regions() {
    a = 0;
    do
    :: a < STRUCTS ->
        if
        :: locked[a] && of_map[a] == m -> assert(inside[a] == 0); locked[a] = false
        :: else
        fi;
        a++
    :: else -> break
    od;
    a = 0
}

inline choose() {
    d_step { m = 0; a = 0; r = NOWHERE };
    if
    :: true
    :: MAPS > 1 -> m = 1
    fi
}

inline choose_address() {
    if
    :: true
    :: ADDRESSES > 1 -> a = 1
    fi
}
