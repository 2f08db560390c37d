/* "global-bravo": native/lock/global_bravo.c over native/lock/marks.h (BRAVO, Dice and Kogan, USENIX ATC '19).
 *
 *   here         there
 *   bias, mark[] the same; 2 lines instead of 64, so that readers fall on the same one
 *   marks_wait   zc_marks_wait: line after line
 *   may or may not set the bias        the time that the bias stays off
 *   map_lock.inc   fair_rwlock (global.pml)
 *
 * Sequentially consistent: fault M11 is invisible here, see the weak-memory explorer.
 *
 * Properties: a writer is alone; readers only with readers; no deadlock.
 * size: READERS=3 WRITERS=1
 * size: READERS=2 WRITERS=2
 * size: READERS=3 WRITERS=2
 * reach: fast slow late collision revoked rebiased waited
 * fault NO_RECHECK: a reader does not look at the bias again after marking
 * fault NO_WAIT: a writer does not wait for marks after taking the bias back
 * fault LATE_BIAS: the bias is set after the lock was let go
 * fault SHARED_MARK: two readers share a mark
 */
#include "reach.inc"

#ifndef READERS
#define READERS 3
#endif
#ifndef WRITERS
#define WRITERS 1
#endif
#define MAPS 1
#define LINES 2

#include "map_lock.inc"

bool bias = true, mark[LINES];
byte reading, writing;

inline enter_to_read() {
    reading++;
    assert(writing == 0)
}

active [READERS] proctype reader() {
    byte line = _pid % LINES;
    do
    :: if
        :: !bias -> goto slow
        :: bias
        fi;
        if /* exchange */
#ifndef FAULT_SHARED_MARK
        :: d_step { mark[line] -> c_code { reach("collision"); } }; goto slow
        :: d_step { !mark[line] -> mark[line] = true }
#else
        :: mark[line] = true
#endif
        fi;
        if
#ifdef FAULT_NO_RECHECK
        :: d_step { enter_to_read() }
#else
        :: d_step { bias -> enter_to_read(); c_code { reach("fast"); } }
        :: d_step { !bias -> c_code { reach("late"); } };
            mark[line] = false;
            goto slow
#endif
        fi;
        atomic { reading--; mark[line] = false };
        goto done;
slow:   map_read_lock(0);
        d_step { enter_to_read(); c_code { reach("slow"); } };
#ifndef FAULT_LATE_BIAS
        if
        :: d_step { !bias -> bias = true; c_code { reach("rebiased"); } }
        :: true
        fi;
#endif
        reading--;
        map_read_unlock(0);
#ifdef FAULT_LATE_BIAS
        bias = true;
#endif
done:   skip
    :: break
    od
}

active [WRITERS] proctype writer() {
    byte i;
    do
    :: map_write_lock(0);
        if
        :: !bias
        :: d_step { bias -> bias = false; c_code { reach("revoked"); } };
#ifndef FAULT_NO_WAIT
            do
            :: i < LINES ->
                if
                :: d_step { mark[i] -> c_code { reach("waited"); } };
                    !mark[i]
                :: !mark[i]
                fi;
                i++
            :: else -> i = 0; break
            od
#endif
        fi;
        atomic { writing++; assert(writing == 1 && reading == 0) };
        writing--;
        map_write_unlock(0)
    :: break
    od
}
