/* "per-region-6.4": native/lock/per_region_6_4.c, the kernel's per-VMA locks from 6.4 to 6.12, in type-stable structs.
 *
 *   here                           there
 *   word[]                         region_lock.lock: readers, and WRITER, bit 2 instead of bit 31
 *   stamp[], detached[]            region_lock.seq, region_lock.detached
 *   seq[]                          map_lock.seq: 1, 2, 3 and no 0 instead of 2^32 values and no 0
 *   try_to_read … forget_stamps    the steps of those functions; sleeping compares and queues in one step, as futexes do
 *   region_map.inc, region_writer.inc  the map around it and its writers; map_lock.inc: fair_rwlock (global.pml)
 *
 * Properties: as per_region.pml.
 * size: READERS=1
 * size: READERS=2 ADDRESSES=1 MAPS=1
 * size: READERS=1 SWAP MAPS=1 STRUCTS=2
 * size: READERS=2 ADDRESSES=1
 * reach: miss fall_back locked_seen writer_seen late gone identity range sleep sleep_refused wake sweep moved swap
 * fault M2: the range is looked at before the lock is held, and not again
 * fault M3 (SWAP MAPS=1 STRUCTS=2): swapping two regions write-locks only one of them
 * fault M5: no identity check
 * fault M5_RANGE: no range check
 * fault M7: stamps are not forgotten when the sequence wraps
 * fault M9: who is refused waits for the map lock before it unlocks the region
 * fault NO_RECHECK: the stamp is not looked at again once the lock is held
 * fault NO_DRAIN: a writer stamps without waiting for readers
 * fault NO_WAKE: the last reader wakes nobody
 * fault KEEP_ZERO: the sequence does not leave 0 out, which is the stamp of regions that were never locked
 */
#define FIRST_SEQ 1
#include "region_map.inc"

#define WRITER 4
#define READERS_LIMIT 3
#ifdef FAULT_KEEP_ZERO
#define NEXT(s) ((s + 1) & 3)
#else
#define NEXT(s) (s == 3 -> 1 : s + 1)
#endif

byte word[STRUCTS];
bool detached[STRUCTS] = true;

/* ---- readers ---- */

inline unlock_after_read(readers) {
    d_step {
        word[r]--;
        inside[r] = inside[r] - readers;
        left = word[r]
    };
    if
    :: d_step { left != WRITER -> left = 0 }
    :: d_step { left == WRITER -> left = 0 };
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
        r = found[m * ADDRESSES + a]; /* step 1 */
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
        s = seq[m]; /* step 2 */
        if
        :: d_step { stamp[r] == s -> s = 0; c_code { reach("locked_seen"); } }; goto fall_back
        :: d_step { stamp[r] != s -> s = 0 }
        fi;
        if /* step 3 */
        :: d_step { word[r] >= READERS_LIMIT -> c_code { reach("writer_seen"); } }; goto fall_back
        :: d_step { word[r] < READERS_LIMIT -> word[r]++ }
        fi;
#ifndef FAULT_NO_RECHECK
        s = seq[m]; /* step 4 */
        if
        :: d_step { stamp[r] != s -> s = 0 }
        :: d_step { stamp[r] == s -> s = 0; c_code { reach("late"); } }; goto refused
        fi;
#endif
        if
        :: !detached[r]
        :: d_step { detached[r] -> c_code { reach("gone"); } }; goto refused
        fi;
#ifndef FAULT_M5
        if
        :: of_map[r] == m
        :: d_step { of_map[r] != m -> c_code { reach("identity"); } }; goto refused
        fi;
#endif
        if
#if defined FAULT_M5_RANGE || defined FAULT_M2
        :: d_step { entered() }
#else
        :: d_step { place[r] == a -> entered() }
        :: d_step { place[r] != a -> c_code { reach("range"); } }; goto refused
#endif
        fi;
        unlock_after_read(1);
        goto done;
refused:
#ifdef FAULT_M9
        map_read_lock(m);
        unlock_after_read(0);
        map_read_unlock(m);
#else
        unlock_after_read(0);
#endif
fall_back:
        map_read_lock(m);
        r = found[m * ADDRESSES + a];
        if
        :: d_step { r == NOWHERE -> c_code { reach("miss"); } }
        :: d_step { r != NOWHERE -> c_code { reach("fall_back"); }; entered() };
            inside[r]--
        fi;
        map_read_unlock(m);
done:   atomic { r = 0; s = 0; left = 0 }
    :: break
    od
}

/* ---- writers ---- */

inline lock_to_write(r) {
#ifdef FAULT_NO_DRAIN
    skip
#else
    word[r] = word[r] | WRITER;
    do
    :: d_step { word[r] == WRITER -> seen = 0 }; break
    :: d_step { word[r] != WRITER -> seen = word[r] };
        sleep_on(r, word[r], seen)
    od
#endif
}

inline unlock_after_write(r) {
#ifdef FAULT_NO_DRAIN
    skip
#else
    word[r] = 0
#endif
}

inline region_write_lock(r) {
    if
    :: stamp[r] == seq[m] /* already */
    :: stamp[r] != seq[m] ->
        lock_to_write(r);
        stamp[r] = seq[m];
        unlock_after_write(r)
    fi;
    locked[r] = true
}

inline attach(r) {
    lock_to_write(r);
    stamp[r] = seq[m];
    d_step { detached[r] = false; locked[r] = true };
    unlock_after_write(r)
}

inline detach(r) {
    detached[r] = true
}

inline write_lock() {
    map_write_lock(m)
}

inline write_unlock() {
    d_step {
        unlock_regions();
        last = (seq[m] == 3);
        seq[m] = NEXT(seq[m])
    };
#ifndef FAULT_M7
    if
    :: last -> sweep_stamps(); c_code { reach("sweep"); }
    :: else
    fi;
#endif
    last = false;
    map_write_unlock(m)
}

#include "region_writer.inc"
