/* The fair reader-writer lock, native/lock/fair_rwlock.{h,c}, which is all of "global" (native/lock/global.c).
 *
 *   here                     there
 *   requests, completions    the same words; 2 bits of writers and 2 of readers instead of 16 and 16, with the same carry between them
 *   read_unlock() …          zc_fair_read_unlock: add, then look at sleepers, then wake: three steps, as there
 *   wait_until               wait_until: look, count oneself in sleepers, look again, sleep if the word is still that
 *   wake(mask)               zc_futex_wake of all whose bit is in the mask; 2 + 2 bits to sleep under instead of 16 + 16
 *   asleep[]                 the kernel's queue; comparing and queueing are one step, as under the kernel's bucket lock
 *
 * Threads come back as often as they like and may stop at any time, so a sleeper that nobody wakes is an invalid end state.
 *
 * Properties: a writer is alone; readers only with readers; no deadlock; no lost wake-up. Both counters wrap, and carry. With LIVE: under weak
 * fairness, whenever the thread of that number (readers come first) has a ticket, it gets in.
 * size: READERS=2 WRITERS=1
 * size: READERS=1 WRITERS=2
 * size: READERS=0 WRITERS=3
 * size: LIVE=0 READERS=2 WRITERS=1
 * size: LIVE=2 READERS=2 WRITERS=1
 * reach: wrap carry sleep_reader sleep_writer wake sleep_refused shared
 * fault M8 (READERS=2 WRITERS=1): a waiter that leaves takes the marks of the others that sleep with it
 * fault M8_WAKE_ONE (READERS=2 WRITERS=1): an unlock wakes one sleeper, though it may be another one's turn
 * fault M8_LOOK_FIRST (READERS=2 WRITERS=1): an unlocker looks for sleepers before it completes
 * fault M8_WRITERS_ONLY (READERS=2 WRITERS=1): a writer that leaves wakes no readers
 * fault M10 (READERS=2 WRITERS=1): a reader comes in again while it is inside, and a writer waits in between
 * fault UNFAIR (LIVE=0 READERS=2 WRITERS=1): no fairness: some thread may never run again, which a search for starvation must see
 * fault NO_COMPARE (READERS=2 WRITERS=1): the kernel does not compare the word again
 */
#include "reach.inc"

#ifndef READERS
#define READERS 2
#endif
#ifndef WRITERS
#define WRITERS 2
#endif
#define THREADS (READERS + WRITERS)
#define WRITER 1
#define READER 4
#define WRITERS_MASK 3
#define WORD_MASK 15

#define WRITERS_BIT(word) (1 << ((word) % 2))
#define READERS_BIT(word) (4 << ((word) % 2))
#define BIT(kind, word) (kind == WRITER -> WRITERS_BIT(word) : READERS_BIT(word))
#define MAY_ENTER(kind, word, ticket) (kind == WRITER -> (word) == (ticket) : (((word) ^ (ticket)) & WRITERS_MASK) == 0)

byte requests, completions, sleepers;
byte asleep[THREADS]; /* the bits that a sleeper sleeps under; 0: awake */
byte reading, writing;

#ifdef LIVE
bool wants; /* the thread with that number has a ticket and is not inside */
ltl gets_in { [] (wants -> <> !wants) }
#define WANTS(value) if :: me == LIVE -> wants = value :: else fi
#else
#define WANTS(value) skip
#endif

inline take_ticket(add) {
    d_step {
        WANTS(true);
        ticket = requests;
        requests = (requests + add) & WORD_MASK;
        if
        :: requests < ticket -> c_code { reach("wrap"); }
        :: else
        fi;
        if
        :: add == WRITER && (ticket & WRITERS_MASK) == WRITERS_MASK -> c_code { reach("carry"); }
        :: else
        fi
    }
}

inline wait_until(kind) {
    if
    :: MAY_ENTER(kind, completions, ticket)
    :: !MAY_ENTER(kind, completions, ticket) ->
        sleepers++;
        do
        :: d_step { seen = completions };
            if
            :: MAY_ENTER(kind, seen, ticket) -> break
            :: else
            fi;
            d_step {
                if
#ifdef FAULT_NO_COMPARE
                :: true -> asleep[me] = BIT(kind, ticket)
#else
                :: completions == seen -> asleep[me] = BIT(kind, ticket);
                    if
                    :: kind == WRITER -> c_code { reach("sleep_writer"); }
                    :: else -> c_code { reach("sleep_reader"); }
                    fi
                :: else -> c_code { reach("sleep_refused"); }
#endif
                fi
            };
            asleep[me] == 0
        od;
#ifdef FAULT_M8
        sleepers = 0
#else
        sleepers--
#endif
    fi;
    seen = 0
}

/* After a writer the readers and the writer of its turn, after a reader the writer only; seen: what completions has become. */
inline wake(kind) {
    d_step {
        other = 0;
        do
        :: other < THREADS ->
            if
#ifdef FAULT_M8_WRITERS_ONLY
            :: asleep[other] & WRITERS_BIT(seen) ->
#else
            :: asleep[other] & (WRITERS_BIT(seen) | (kind == WRITER -> READERS_BIT(seen) : 0)) ->
#endif
                asleep[other] = 0;
                c_code { reach("wake"); };
#ifdef FAULT_M8_WAKE_ONE
                break
#endif
            :: else
            fi;
            other++
        :: else -> break
        od;
        other = 0;
        seen = 0
    }
}

/* inside: how many of the kind leave the section with the first step. */
inline unlock(kind, inside) {
#ifdef FAULT_M8_LOOK_FIRST
    found = (sleepers != 0);
#else
#define found (sleepers != 0)
#endif
    d_step {
        if
        :: kind == READER -> reading = reading - inside
        :: else -> writing = writing - inside
        fi;
        completions = (completions + kind) & WORD_MASK;
        seen = completions;
        ticket = 0
    };
    if
    :: d_step { !found -> seen = 0 }
    :: found -> wake(kind)
    fi
}

active [READERS] proctype reader() {
    byte me = _pid, ticket, seen, other;
#ifdef FAULT_M8_LOOK_FIRST
    bool found;
#endif
    do
    :: take_ticket(READER);
        wait_until(READER);
        d_step {
            reading++;
            WANTS(false);
            assert(writing == 0);
            if
            :: reading > 1 -> c_code { reach("shared"); }
            :: else
            fi
        };
#ifdef FAULT_M10
        take_ticket(READER);
        wait_until(READER);
        unlock(READER, 0);
#endif
        unlock(READER, 1)
    :: break
    od
}

active [WRITERS] proctype writer() {
    byte me = _pid, ticket, seen, other;
#ifdef FAULT_M8_LOOK_FIRST
    bool found;
#endif
    do
    :: take_ticket(WRITER);
        wait_until(WRITER);
        d_step {
            writing++;
            WANTS(false);
            assert(writing == 1 && reading == 0)
        };
        unlock(WRITER, 1)
    :: break
    od
}
