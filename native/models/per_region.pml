/* "per-region": native/lock/per_region.c, used as native/region/writes.c uses it.
 *
 *   here                          there
 *   refs[], stamp[]               region_lock.refs (EXCLUDE is bit 2 instead of bit 30, so at most 2 readers) and region_lock.seq
 *   step 1 … step 6               try_enter: the steps of the protocol in per_region.c's head
 *   put, drain, sweep, …          the functions of those names; sleeping on refs compares and queues in one step, as futexes do
 *   writer                        zc_write_attach, zc_write_detach, zc_write_recycle; with SWAP: a change that spans two regions
 *   region_map.inc                  the map around it; map_lock.inc: fair_rwlock (global.pml)
 *
 * Steps that only look at what nobody else can change are joined. The bounded number of lookups is any number here, zero included.
 *
 * Properties: whom a writer has locked out is out (`inside`, `locked`), and nobody is inside a detached region; a reader is in the region that
 * has its address in its map; refs is 0 when a struct is attached; no deadlock; no lost wake-up.
 * size: READERS=1
 * size: READERS=2 ADDRESSES=1
 * size: READERS=1 WRITERS=2 ADDRESSES=1
 * size: READERS=1 SWAP MAPS=1 STRUCTS=2
 * size: READERS=3 MAPS=1 ADDRESSES=1
 * size: READERS=2 CONVERT MAPS=1
 * reach: gone miss fall_back locked_seen draining_seen late identity range sleep sleep_refused wake sweep moved swap saturated converted
 * fault M2: the range is looked at before the reference is held, and not again
 * fault M3 (READERS=2 SWAP MAPS=1 STRUCTS=2): swapping two regions write-locks only one of them
 * fault M4: put finds out whom to wake by the region, after the decrement
 * fault M5: no identity check
 * fault M5_RANGE: no range check
 * fault M6 (READERS=3 MAPS=1 ADDRESSES=1): at its limit the reference count lets a reader in without counting it
 * fault M7: stamps are not swept when the sequence wraps
 * fault M9: who is refused waits for the map lock before it puts the reference
 * fault NO_STEP_4: the stamp is not looked at again once the reference is held
 * fault NO_WAKE: put wakes nobody
 * fault EARLY: the flag is taken off before the stamp is on
 * fault NO_DRAIN: detach does not wait for readers
 */
#include "region_map.inc"

#define EXCLUDE 4
#define READERS_LIMIT (EXCLUDE - 1)
#define NEXT(word) ((word + 1) & 3)

byte refs[STRUCTS];
bool written[MAPS];

/* ---- readers ---- */

inline put(readers) {
    d_step {
        refs[r]--;
        inside[r] = inside[r] - readers;
        left = refs[r]
    };
    if
    :: d_step { left != EXCLUDE && left != EXCLUDE + 1 -> left = 0 }
    :: d_step { left == EXCLUDE || left == EXCLUDE + 1 -> left = 0 };
#ifdef FAULT_M4
        assert(of_map[r] != NOWHERE);
#endif
#ifndef FAULT_NO_WAKE
        wake(r, left)
#endif
    fi
}

active [READERS] proctype reader() {
    byte m, a, r, s, left;
    do
    :: choose();
        choose_address();
step_1: r = found[m * ADDRESSES + a];
        if
        :: r == NOWHERE -> goto fall_back
        :: else
        fi;
#ifdef FAULT_M2
        if
        :: place[r] == a
        :: else -> goto fall_back
        fi;
#endif
        if /* step 2 */
        :: d_step { stamp[r] == seq[m] -> c_code { reach("locked_seen"); } }; goto fall_back
        :: stamp[r] != seq[m]
        fi;
        if /* step 3 */
        :: d_step { refs[r] == 0 -> c_code { reach("gone"); } }; goto step_1
#ifdef FAULT_M6
        :: d_step { refs[r] > READERS_LIMIT -> skip }; goto fall_back
        :: d_step { refs[r] != 0 && refs[r] <= READERS_LIMIT -> refs[r] = (refs[r] < READERS_LIMIT -> refs[r] + 1 : refs[r]) }
#else
        :: d_step {
                refs[r] >= READERS_LIMIT ->
                if
                :: refs[r] == READERS_LIMIT -> c_code { reach("saturated"); }
                :: else -> c_code { reach("draining_seen"); }
                fi
            };
            goto fall_back
        :: d_step { refs[r] != 0 && refs[r] < READERS_LIMIT -> refs[r]++ }
#endif
        fi;
#ifndef FAULT_NO_STEP_4
        s = seq[m]; /* step 4 */
        if
        :: d_step { stamp[r] != s -> s = 0 }
        :: d_step { stamp[r] == s -> s = 0; c_code { reach("late"); } }; goto refused
        fi;
#endif
#ifndef FAULT_M5
        if /* step 5 */
        :: of_map[r] == m
        :: d_step { of_map[r] != m -> c_code { reach("identity"); } }; goto refused
        fi;
#endif
        if /* step 6 */
#if defined FAULT_M5_RANGE || defined FAULT_M2
        :: d_step { entered() }
#else
        :: d_step { place[r] == a -> entered() }
        :: d_step { place[r] != a -> c_code { reach("range"); } }; goto refused
#endif
        fi;
        put(1);
        goto done;
refused:
#ifdef FAULT_M9
        map_read_lock(m);
        put(0);
        map_read_unlock(m);
#else
        put(0);
#endif
fall_back:
        map_read_lock(m);
        r = found[m * ADDRESSES + a];
        if
        :: d_step { r == NOWHERE -> c_code { reach("miss"); } }
        :: d_step { r != NOWHERE -> c_code { reach("fall_back"); }; entered() };
#ifdef CONVERT
            if
            :: d_step { refs[r] >= READERS_LIMIT -> skip }
            :: d_step { refs[r] < READERS_LIMIT -> assert(refs[r] > 0); refs[r]++; c_code { reach("converted"); } };
                map_read_unlock(m);
                put(1);
                goto done
            fi;
#endif
            inside[r]--
        fi;
        map_read_unlock(m);
done:   atomic { r = 0; s = 0; left = 0 }
    :: break
    od
}

/* ---- writers ---- */

inline drain(r, drained) {
    do
    :: d_step { refs[r] == drained -> seen = 0 }; break
    :: d_step { refs[r] != drained -> seen = refs[r] };
        sleep_on(r, refs[r], seen)
    od
}

inline region_write_lock(r) {
    if
    :: stamp[r] == seq[m] /* already */
    :: stamp[r] != seq[m] ->
        refs[r] = refs[r] + EXCLUDE;
        drain(r, EXCLUDE + 1);
#ifdef FAULT_EARLY
        refs[r] = refs[r] - EXCLUDE;
        stamp[r] = seq[m]
#else
        stamp[r] = seq[m];
        refs[r] = refs[r] - EXCLUDE
#endif
    fi;
    locked[r] = true
}

inline detach(r) {
    d_step {
        refs[r]--;
        last = (refs[r] == 0)
    };
    if
    :: last
    :: else ->
#ifndef FAULT_NO_DRAIN
        refs[r] = refs[r] + EXCLUDE;
        drain(r, EXCLUDE);
#endif
        refs[r] = 0
    fi;
    last = false
}

inline attach(r) {
    assert(refs[r] == 0);
    stamp[r] = seq[m];
    d_step { refs[r] = 1; locked[r] = true }
}

inline write_lock() {
    map_write_lock(m);
    d_step {
        seq[m] = NEXT(seq[m]);
        assert(seq[m] & 1);
        sweep = (seq[m] == 1 && written[m]);
        written[m] = true
    };
#ifndef FAULT_M7
    if
    :: sweep -> sweep_stamps(); c_code { reach("sweep"); }
    :: else
    fi;
#endif
    sweep = false
}

inline write_unlock() {
    d_step {
        unlock_regions();
        seq[m] = NEXT(seq[m])
    };
    map_write_unlock(m)
}

#include "region_writer.inc"
