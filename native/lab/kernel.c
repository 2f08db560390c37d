#include "lab/kernel_parts.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lab/mmap_lock_trace.h"

#define ALIGNMENT (2u << 20) /* bytes: mappings that share a page of page table contend on its lock */
#define LARGEST_PAYLOAD (1u << 20)

static_assert(ZC_KERNEL_RECEIVERS <= ZC_TRACE_THREADS, "all receivers are traced");

static int check_options(const struct zc_kernel_options *options) {
    bool possible = options->receivers > 0 && options->receivers <= ZC_KERNEL_RECEIVERS && options->payload > 0 &&
                    options->payload % KERNEL_PAGE == 0 && options->payload <= LARGEST_PAYLOAD && options->writer <= ZC_KERNEL_MMAP &&
                    (options->writer == ZC_KERNEL_NO_WRITER || (options->area_bytes > 0 && options->area_bytes % KERNEL_PAGE == 0));
    return possible ? 0 : -EINVAL;
}

/* ---- setting up */

/* A TCP mapping for each receiver, all of one socket, each under page tables of its own; and what copied pages go to. */
static int map_targets(struct kernel *kernel) {
    const struct zc_kernel_options *options = kernel->options;
    kernel->space_size = (options->receivers + 1) * (size_t)ALIGNMENT;
    unsigned char *space = mmap(NULL, kernel->space_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (space == MAP_FAILED)
        return -errno;
    kernel->space = space;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), failed = fd < 0 ? -errno : 0;
    if (failed)
        return failed;
    space += -(uintptr_t)space % ALIGNMENT;
    for (uint32_t i = 0; i < options->receivers && failed == 0; i++) {
        struct kernel_receiver *receiver = &kernel->receivers[i];
        receiver->target = mmap(space + i * (size_t)ALIGNMENT, options->payload, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
        if (receiver->target == MAP_FAILED)
            failed = errno == ENODEV || errno == EINVAL ? -EOPNOTSUPP : -errno;
        receiver->scratch = mmap(NULL, options->payload, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (failed == 0 && receiver->scratch == MAP_FAILED)
            failed = -errno;
    }
    close(fd);
    return failed;
}

static int connect_one(int listener, const struct sockaddr_in *at, int *receiver, int *sender) {
    int one = 1, segment = 0;
    *sender = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (*sender < 0 || connect(*sender, (const struct sockaddr *)at, sizeof *at) < 0)
        return -errno;
    *receiver = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (*receiver < 0 || setsockopt(*sender, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) < 0 ||
        setsockopt(*receiver, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) < 0)
        return -errno;
    if (setsockopt(*sender, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one) < 0)
        return -EOPNOTSUPP;
    socklen_t size = sizeof segment;
    if (getsockopt(*sender, IPPROTO_TCP, TCP_MAXSEG, &segment, &size) < 0)
        return -errno;
    return segment < (int)KERNEL_PAGE ? -EOPNOTSUPP : 0; /* no whole page fits */
}

static int connect_all(struct kernel *kernel) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), failed = 0;
    if (listener < 0 || bind(listener, (struct sockaddr *)&at, size) < 0 || listen(listener, ZC_KERNEL_RECEIVERS) < 0 ||
        getsockname(listener, (struct sockaddr *)&at, &size) < 0)
        failed = -errno;
    for (uint32_t i = 0; i < kernel->options->receivers && failed == 0; i++)
        failed = connect_one(listener, &at, &kernel->receivers[i].fd, &kernel->senders[i]);
    if (listener >= 0)
        close(listener);
    return failed;
}

static int start_sender(struct kernel *kernel) {
    kernel->sender = fork();
    if (kernel->sender < 0)
        return -errno;
    if (kernel->sender == 0)
        kernel_send(kernel);
    for (uint32_t i = 0; i < kernel->options->receivers; i++) {
        close(kernel->senders[i]);
        kernel->senders[i] = -1;
    }
    return 0;
}

static int make_area(struct kernel *kernel) {
    if (kernel->options->writer != ZC_KERNEL_MPROTECT)
        return 0;
    uint64_t size = kernel->options->area_bytes;
    unsigned char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        return -errno;
    kernel->writer.area = area;
    madvise(area, size, MADV_NOHUGEPAGE); /* small pages have 512 times as many entries to rewrite */
    for (uint64_t at = 0; at < size; at += KERNEL_PAGE)
        area[at] = 1;
    return 0;
}

static int set_up(struct kernel *kernel) {
    uint32_t count = kernel->options->receivers;
    kernel->receivers = calloc(count, sizeof *kernel->receivers);
    kernel->senders = calloc(count, sizeof *kernel->senders);
    if (kernel->receivers == NULL || kernel->senders == NULL)
        return -ENOMEM;
    kernel->writer.kernel = kernel;
    for (uint32_t i = 0; i < count; i++) {
        kernel->receivers[i].kernel = kernel;
        kernel->receivers[i].fd = kernel->senders[i] = -1;
        kernel->receivers[i].target = kernel->receivers[i].scratch = MAP_FAILED;
    }
    int failed = connect_all(kernel);
    failed = failed ? failed : map_targets(kernel);
    failed = failed ? failed : start_sender(kernel);
    return failed ? failed : make_area(kernel); /* after the fork: nothing of it is to be copied on write */
}

/* ---- running */

static void set_phase(struct kernel *kernel, enum kernel_phase phase) {
    atomic_store_explicit(&kernel->phase, phase, memory_order_release);
}

static int start_threads(struct kernel *kernel) {
    int failed = 0;
    for (uint32_t i = 0; i < kernel->options->receivers && failed == 0; i++) {
        failed = -pthread_create(&kernel->receivers[i].thread, NULL, kernel_receive, &kernel->receivers[i]);
        kernel->receivers[i].started = failed == 0;
    }
    if (failed == 0 && kernel->options->writer != ZC_KERNEL_NO_WRITER) {
        failed = -pthread_create(&kernel->writer.thread, NULL, kernel_change, &kernel->writer);
        kernel->writer.started = failed == 0;
    }
    return failed;
}

static int join_threads(struct kernel *kernel) {
    int failed = 0;
    set_phase(kernel, KERNEL_STOP);
    for (uint32_t i = 0; i < kernel->options->receivers && kernel->receivers[i].started; i++) {
        pthread_join(kernel->receivers[i].thread, NULL);
        failed = failed ? failed : kernel->receivers[i].failed;
    }
    if (kernel->writer.started)
        pthread_join(kernel->writer.thread, NULL);
    return failed ? failed : kernel->writer.failed;
}

void kernel_arrive(struct kernel *kernel, enum kernel_phase next) {
    atomic_fetch_add_explicit(&kernel->arrived, 1, memory_order_acq_rel);
    while (atomic_load_explicit(&kernel->phase, memory_order_acquire) < (int)next)
        usleep(200); /* which takes no lock of the process */
}

/* Until so many threads have come to the end of a phase, which each does within its own bounds. */
static void wait_for(struct kernel *kernel, uint32_t arrivals) {
    while (atomic_load_explicit(&kernel->arrived, memory_order_acquire) < arrivals)
        usleep(200);
}

/* Stops everybody. `before`: arrivals of earlier phases. */
static void park(struct kernel *kernel, enum kernel_phase phase, uint32_t before) {
    set_phase(kernel, phase);
    wait_for(kernel, before + kernel->options->receivers + kernel->writer.started);
}

static void note_counts(const struct kernel *kernel, const struct zc_mmap_lock_counts *counts, struct zc_kernel_result *result) {
    uint64_t receives = 0;
    for (uint32_t i = 0; i < kernel->options->receivers; i++)
        receives += kernel->receivers[i].counted;
    if (counts->lost > 0) {
        snprintf(result->not_counted, sizeof result->not_counted, "the trace lost %llu events", (unsigned long long)counts->lost);
        return;
    }
    if (counts->writes < (uint64_t)KERNEL_CONTROLS * kernel->options->receivers) { /* as in a process namespace of its own */
        snprintf(result->not_counted, sizeof result->not_counted,
                 "the tracepoints showed %llu of %llu acquisitions that were made to check them", (unsigned long long)counts->writes,
                 (unsigned long long)KERNEL_CONTROLS * kernel->options->receivers);
        return;
    }
    result->counted_receives = receives;
    result->acquisitions = counts->reads;
    result->waited_us = counts->waited_us;
    result->longest_wait_us = counts->longest_us;
}

/* Runs the counted receives, between two stops of all receivers. */
static void count(struct kernel *kernel, struct zc_mmap_lock_trace *trace, struct zc_kernel_result *result) {
    uint32_t receivers = kernel->options->receivers, all = receivers + kernel->writer.started;
    pid_t threads[ZC_KERNEL_RECEIVERS];
    struct zc_mmap_lock_counts counts;
    for (uint32_t i = 0; i < receivers; i++)
        threads[i] = kernel->receivers[i].id;
    bool tracing = trace->directory[0] != '\0' &&
                   zc_mmap_lock_trace_start(trace, threads, receivers, result->not_counted, sizeof result->not_counted) == 0;
    kernel->quota = tracing ? (kernel->options->counted + receivers - 1) / receivers : 0;
    set_phase(kernel, KERNEL_COUNT);
    wait_for(kernel, all + receivers); /* the writer goes on until it is stopped */
    park(kernel, KERNEL_PARKED_AGAIN, all);
    if (tracing && zc_mmap_lock_trace_stop(trace, &counts, result->not_counted, sizeof result->not_counted) == 0)
        note_counts(kernel, &counts, result);
}

static int run_threads(struct kernel *kernel, struct zc_mmap_lock_trace *trace, struct zc_kernel_result *result) {
    int failed = start_threads(kernel);
    if (failed == 0) {
        zc_lab_sleep(kernel->options->warm_up_seconds);
        park(kernel, KERNEL_PARKED, 0);
        count(kernel, trace, result);
        set_phase(kernel, KERNEL_MEASURE);
        zc_lab_sleep(kernel->options->seconds);
    }
    int ended = join_threads(kernel);
    return failed ? failed : ended;
}

static void add_up(const struct kernel *kernel, struct zc_kernel_result *result, struct zc_histogram *latency) {
    double per_second = zc_lab_cycles_per_second(ZC_LAB_CALIBRATION);
    for (uint32_t i = 0; i < kernel->options->receivers; i++) {
        const struct kernel_receiver *receiver = &kernel->receivers[i];
        zc_histogram_merge(latency, &receiver->latency);
        result->elapsed_seconds += receiver->elapsed / kernel->options->receivers;
        result->receiver_cpu_seconds += receiver->cpu;
        result->payloads += receiver->payloads;
        result->receives += receiver->receives;
        result->bytes_mapped += receiver->mapped;
        result->bytes_copied += receiver->copied;
        result->wrong += receiver->wrong;
    }
    zc_lab_latency(latency, per_second, &result->receive);
    if (kernel->writer.started) {
        result->changes = kernel->writer.latency.count;
        zc_lab_latency(&kernel->writer.latency, per_second, &result->change);
    }
}

static void tear_down(struct kernel *kernel) {
    for (uint32_t i = 0; kernel->receivers != NULL && kernel->senders != NULL && i < kernel->options->receivers; i++) {
        if (kernel->receivers[i].fd >= 0)
            close(kernel->receivers[i].fd); /* the end of the sender */
        if (kernel->senders[i] >= 0)
            close(kernel->senders[i]);
        if (kernel->receivers[i].scratch != MAP_FAILED)
            munmap(kernel->receivers[i].scratch, kernel->options->payload);
    }
    if (kernel->sender > 0)
        waitpid(kernel->sender, NULL, 0);
    if (kernel->space != NULL)
        munmap(kernel->space, kernel->space_size);
    if (kernel->writer.area != NULL)
        munmap(kernel->writer.area, kernel->options->area_bytes);
    free(kernel->receivers);
    free(kernel->senders);
    free(kernel);
}

int zc_kernel_run(const struct zc_kernel_options *options, struct zc_kernel_result *result) {
    *result = (struct zc_kernel_result){0};
    if (check_options(options) < 0)
        return -EINVAL;
    struct kernel *kernel = calloc(1, sizeof *kernel);
    struct zc_histogram *latency = calloc(1, sizeof *latency);
    if (kernel == NULL || latency == NULL) {
        free(kernel);
        free(latency);
        return -ENOMEM;
    }
    struct zc_mmap_lock_trace trace = {.directory = ""};
    kernel->options = options;
    int ran = set_up(kernel);
    if (ran == 0 && options->counted > 0)
        zc_mmap_lock_trace_open(&trace, result->not_counted, sizeof result->not_counted);
    if (ran == 0)
        ran = run_threads(kernel, &trace, result);
    if (ran == 0)
        add_up(kernel, result, latency);
    zc_mmap_lock_trace_close(&trace);
    tear_down(kernel);
    free(latency);
    return ran;
}
