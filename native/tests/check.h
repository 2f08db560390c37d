/* What a C test needs: CHECK says what failed, where, and with which numbers, and ends the program; RUN names the case that runs. */
#ifndef ZCRPC_CHECK_H
#define ZCRPC_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                                                   \
    do {                                                                                                                                   \
        if (!(condition)) {                                                                                                                \
            fprintf(stderr, "%s:%d: %s: failed: %s\n", __FILE__, __LINE__, __func__, #condition);                                          \
            exit(1);                                                                                                                       \
        }                                                                                                                                  \
    } while (0)

#define CHECK_EQUAL(got, wanted)                                                                                                           \
    do {                                                                                                                                   \
        int64_t got_ = (int64_t)(got), wanted_ = (int64_t)(wanted);                                                                        \
        if (got_ != wanted_) {                                                                                                             \
            fprintf(stderr, "%s:%d: %s: %s is %lld, not %lld\n", __FILE__, __LINE__, __func__, #got, (long long)got_, (long long)wanted_); \
            exit(1);                                                                                                                       \
        }                                                                                                                                  \
    } while (0)

#define RUN(test, ...)                                                                                                                     \
    do {                                                                                                                                   \
        test(__VA_ARGS__);                                                                                                                 \
        printf("ok  %s(%s)\n", #test, #__VA_ARGS__);                                                                                       \
        fflush(stdout);                                                                                                                    \
    } while (0)

#endif
