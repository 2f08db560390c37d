/* The kernel experiment: everything is mapped, right and counted; what the tracepoints cannot show is said. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lab/kernel.h"
#include "lab/mmap_lock_trace.h"
#include "tests/check.h"

static const struct zc_kernel_options usual = {
    .receivers = 1, .payload = 4096, .area_bytes = 8u << 20, .counted = 500, .warm_up_seconds = 0.05, .seconds = 0.2};

static void check_result(const struct zc_kernel_options *options, const struct zc_kernel_result *result) {
    CHECK(result->payloads > 10 && result->receives >= result->payloads);
    CHECK(result->wrong == 0 && result->bytes_mapped + result->bytes_copied >= result->payloads * options->payload);
    CHECK(result->bytes_mapped * 100 >= (result->bytes_mapped + result->bytes_copied) * 99);
    CHECK_EQUAL(result->receive.samples, result->receives);
    CHECK(result->receive.p50_us > 0 && result->receive.p50_us <= result->receive.max_us);
    CHECK(options->writer == ZC_KERNEL_NO_WRITER ? result->changes == 0 : result->changes > 5 && result->change.p50_us > 0);
    CHECK((result->counted_receives >= options->counted) != (result->not_counted[0] != '\0'));
}

static void runs(enum zc_kernel_writer writer, uint32_t receivers, uint32_t payload) {
    struct zc_kernel_options options = usual;
    struct zc_kernel_result result;
    options.writer = writer;
    options.receivers = receivers;
    options.payload = payload;
    CHECK_EQUAL(zc_kernel_run(&options, &result), 0);
    check_result(&options, &result);
}

static void counts_only_when_asked(void) {
    struct zc_kernel_options options = usual;
    struct zc_kernel_result result;
    options.counted = 0;
    CHECK_EQUAL(zc_kernel_run(&options, &result), 0);
    CHECK(result.counted_receives == 0 && result.acquisitions == 0 && result.not_counted[0] == '\0');
}

static void refuses(void) {
    struct zc_kernel_result result;
    struct zc_kernel_options options = usual;
    options.receivers = 0;
    CHECK_EQUAL(zc_kernel_run(&options, &result), -EINVAL);
    options.receivers = ZC_KERNEL_RECEIVERS + 1;
    CHECK_EQUAL(zc_kernel_run(&options, &result), -EINVAL);
    options = usual;
    options.payload = 4097;
    CHECK_EQUAL(zc_kernel_run(&options, &result), -EINVAL);
    options = usual;
    options.writer = ZC_KERNEL_MMAP + 1;
    CHECK_EQUAL(zc_kernel_run(&options, &result), -EINVAL);
    options = usual;
    options.writer = ZC_KERNEL_MPROTECT;
    options.area_bytes = 0;
    CHECK_EQUAL(zc_kernel_run(&options, &result), -EINVAL);
}

/* Where the trace can be had, it counts exactly what this thread does, and nothing of it is left behind. */
static void the_trace_counts(void) {
    struct zc_mmap_lock_trace trace;
    struct zc_mmap_lock_counts counts;
    char why[ZC_KERNEL_REASON] = "", directory[ZC_TRACE_PATH];
    const pid_t self = gettid();
    if (zc_mmap_lock_trace_open(&trace, why, sizeof why) < 0) {
        printf("not traced: %s\n", why);
        CHECK(why[0] != '\0' && trace.directory[0] == '\0');
        return;
    }
    strcpy(directory, trace.directory);
    unsigned char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int round = 0; round < 2; round++) {
        CHECK_EQUAL(zc_mmap_lock_trace_start(&trace, &self, 1, why, sizeof why), 0);
        for (int i = 0; i < 100; i++)
            mprotect(page, 4096, i % 2 ? PROT_READ : PROT_NONE);
        CHECK_EQUAL(zc_mmap_lock_trace_stop(&trace, &counts, why, sizeof why), 0);
        CHECK_EQUAL(counts.writes, 100);
        CHECK(counts.lost == 0 && counts.reads < 10 && counts.longest_us <= counts.waited_us);
    }
    munmap(page, 4096);
    zc_mmap_lock_trace_close(&trace);
    CHECK(access(directory, F_OK) < 0);
}

int main(void) {
    RUN(refuses);
    RUN(the_trace_counts);
    RUN(runs, ZC_KERNEL_NO_WRITER, 1, 4096);
    RUN(runs, ZC_KERNEL_MPROTECT, 1, 4096);
    RUN(runs, ZC_KERNEL_MMAP, 2, 4096);
    RUN(runs, ZC_KERNEL_NO_WRITER, 2, 15 * 4096);
    RUN(runs, ZC_KERNEL_MPROTECT, 3, 1u << 20);
    RUN(counts_only_when_asked);
    return 0;
}
