/* What the parts of the kernel experiment share: kernel.c runs it, kernel_send.c is the process that sends, kernel_receive.c and
 * kernel_change.c are its threads. */
#ifndef ZCRPC_LAB_KERNEL_PARTS_H
#define ZCRPC_LAB_KERNEL_PARTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>

#include "lab/clock.h"
#include "lab/kernel.h"

#define KERNEL_PAGE 4096u
#define KERNEL_CONTROLS 16u /* write acquisitions that each receiver makes on purpose, which the tracepoints must show */

/* A receiving thread; what it notes is its own until it has ended. */
struct kernel_receiver {
    struct kernel *kernel;
    pthread_t thread;
    bool started;
    int fd;
    pid_t id;               /* as the kernel names the thread */
    unsigned char *target;  /* TCP mapping of `payload` bytes */
    unsigned char *scratch; /* as much of ordinary memory */
    uint64_t sequence;      /* of the payload that comes next */
    uint64_t payloads, receives, counted, mapped, copied, wrong;
    double elapsed, cpu;
    struct zc_histogram latency;
    int failed; /* a negative errno ended it */
};

struct kernel_writer {
    struct kernel *kernel;
    pthread_t thread;
    bool started;
    unsigned char *area; /* of ZC_KERNEL_MPROTECT */
    uint64_t flips;
    struct zc_histogram latency;
    int failed;
};

/* In this order. While all are parked, counting is switched on, or off and read: nobody runs the code that the kernel rewrites for that. */
enum kernel_phase { KERNEL_WARM_UP, KERNEL_PARKED, KERNEL_COUNT, KERNEL_PARKED_AGAIN, KERNEL_MEASURE, KERNEL_STOP };

struct kernel {
    const struct zc_kernel_options *options;
    _Atomic int phase;        /* enum kernel_phase */
    _Atomic uint32_t arrived; /* threads that have come to the end of a phase, all phases added up */
    uint32_t quota;           /* receives of each thread that are counted; 0: none */
    struct kernel_receiver *receivers;
    struct kernel_writer writer;
    unsigned char *space; /* where the targets lie */
    size_t space_size;
    int *senders; /* the other ends of the receivers' connections */
    pid_t sender;
};

void *kernel_receive(void *receiver); /* thread functions */
void *kernel_change(void *writer);

static inline bool kernel_during(const struct kernel *kernel, enum kernel_phase phase) {
    return atomic_load_explicit(&kernel->phase, memory_order_acquire) == (int)phase;
}

/* A thread has come to the end of a phase, and waits for a later one. */
void kernel_arrive(struct kernel *kernel, enum kernel_phase next);

/* Stamps the page number `page` of a connection's payload number `sequence`: what the receiver expects there. */
static inline uint64_t kernel_stamp(uint64_t sequence, uint64_t page) {
    return (sequence << 16 | page) * 0x9e3779b97f4a7c15ull;
}

/* The sending process: a payload for every byte that arrives, until the receivers have closed. Never returns. */
_Noreturn void kernel_send(const struct kernel *kernel);

#endif
