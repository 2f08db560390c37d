/* Which cache lines do threads touch, and which of those do they share? A count without hardware: the code that is measured is compiled with
 * -fsanitize=thread, but linked with touches.c instead of that sanitizer's library, so that every load and store of it, atomic or plain, is
 * ours to note. What libc's locks do is noted as one write to the lock.
 *
 * The "threads" take turns on one: only what they would touch matters, so the count is the same each time. */
#ifndef ZCRPC_TOUCHES_H
#define ZCRPC_TOUCHES_H

#include <stdbool.h>

/* From now on, accesses are those of one call made by `thread`, 0 or 1; until zc_touches_end. */
void zc_touches_begin(int thread);
void zc_touches_end(void);

/* Over all calls since the last zc_touches_clear: lines in a call that one thread wrote and the other touched, at any time, summed. Each is
 * a cache line that travels when the threads are on two processors. */
unsigned zc_touches_shared(void);
void zc_touches_clear(void);

#endif
