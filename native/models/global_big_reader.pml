/* "global-big-reader": native/lock/global_big_reader.c over native/lock/marks.h. Linux's brlock, with a queue.
 *
 *   here             there
 *   raised, mark[]   writing, marks; 2 lines instead of 64, so that readers fall on the same one
 *   marks_wait       zc_marks_wait: line after line
 *   map_lock.inc       the queue: fair_rwlock (global.pml)
 *
 * Sequentially consistent: fault M11 is invisible here, see the weak-memory explorer.
 *
 * Properties: a writer is alone; readers only with readers; no deadlock.
 * size: READERS=3 WRITERS=1
 * size: READERS=2 WRITERS=2
 * size: READERS=3 WRITERS=2
 * reach: fast slow late collision waited
 * fault NO_RECHECK: a reader does not look at the writer's flag after marking
 * fault NO_WAIT: a writer does not wait for marks
 * fault FLAG_FIRST (WRITERS=2): the flag is raised before the queue's lock is held: the writer before it lowers it
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

bool raised, mark[LINES];
byte reading, writing;

inline enter_to_read() {
    reading++;
    assert(writing == 0)
}

active [READERS] proctype reader() {
    byte line = _pid % LINES;
    do
    :: if /* exchange */
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
        :: d_step { !raised -> enter_to_read(); c_code { reach("fast"); } }
        :: d_step { raised -> c_code { reach("late"); } };
            mark[line] = false;
            goto slow
#endif
        fi;
        atomic { reading--; mark[line] = false };
        goto done;
slow:   map_read_lock(0);
        d_step { enter_to_read(); c_code { reach("slow"); } };
        reading--;
        map_read_unlock(0);
done:   skip
    :: break
    od
}

active [WRITERS] proctype writer() {
    byte i;
    do
#ifdef FAULT_FLAG_FIRST
    :: raised = true;
        map_write_lock(0);
#else
    :: map_write_lock(0);
        raised = true;
#endif
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
        od;
#endif
        atomic { writing++; assert(writing == 1 && reading == 0) };
        writing--;
        raised = false;
        map_write_unlock(0)
    :: break
    od
}
