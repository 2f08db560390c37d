/* What a model must be seen to do: REACH(what) counts, outside the state, how often the search went through it. The verifier prints the
 * counts when it ends, and run.py wants every one of a model's declared events above zero: a model that does nothing verifies nothing. */
c_decl {
\#include <stdio.h>
\#include <stdlib.h>
    static const char *reach_names[16];
    static unsigned long reach_counts[16];
    static int reach_known;
    static inline void reach_print(void) {
        for (int i = 0; i < reach_known; i++)
            printf("reached %s %lu\n", reach_names[i], reach_counts[i]);
    }
    static inline void reach(const char *name) {
        int i = 0;
        while (i < reach_known && reach_names[i] != name)
            i++;
        if (reach_known == 0)
            atexit(reach_print);
        if (i == reach_known)
            reach_names[reach_known++] = name;
        reach_counts[i]++;
    }
}
