/* What must hold, or torture ends the process. */
#ifndef ZCRPC_LAB_TORTURE_CHECK_H
#define ZCRPC_LAB_TORTURE_CHECK_H

#include <stdint.h>

/* Says what is wrong and where, and exits with status 1. */
_Noreturn __attribute__((format(printf, 4, 5))) void torture_violation(const char *file, int line, const char *function, const char *format,
                                                                       ...);

#define CHECK(condition) ((condition) ? (void)0 : torture_violation(__FILE__, __LINE__, __func__, "failed: %s", #condition))

#define CHECK_EQUAL(got, wanted)                                                                                                           \
    do {                                                                                                                                   \
        int64_t got_ = (int64_t)(got), wanted_ = (int64_t)(wanted);                                                                        \
        if (got_ != wanted_)                                                                                                               \
            torture_violation(__FILE__, __LINE__, __func__, "%s is %lld, not %lld", #got, (long long)got_, (long long)wanted_);            \
    } while (0)

#endif
