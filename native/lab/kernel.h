/* The kernel's own lock around a receive: threads that receive with TCP_ZEROCOPY_RECEIVE, while another thread of the same process changes its
 * address space. Before Linux 6.4 such a receive took the mmap lock, which the change holds; since then it takes the lock of the mapping alone
 * (commit 7a7f094635349a7d0314364ad50bdeb770b6df4f of the kernel, the one that zcrpc's strategies mirror). Nothing of zcrpc's region map is
 * in here, and nothing but libc is needed: the same source, linked statically, runs in a virtual machine (programs/kernel_ab.c). */
#ifndef ZCRPC_LAB_KERNEL_H
#define ZCRPC_LAB_KERNEL_H

#include "lab/lab.h"

#define ZC_KERNEL_REASON 160
#define ZC_KERNEL_RECEIVERS 64 /* at most */

enum zc_kernel_writer {
    ZC_KERNEL_NO_WRITER,
    ZC_KERNEL_MPROTECT, /* flips the protection of a populated area: the lock is held in write mode nearly always */
    ZC_KERNEL_MMAP,     /* maps an area, touches a page of each of its 2 MiB, unmaps it */
};

struct zc_kernel_options {
    uint32_t receivers; /* threads, each with a connection of its own to one sending process */
    uint32_t payload;   /* bytes, whole pages, at most 1 MiB */
    uint32_t writer;    /* enum zc_kernel_writer */
    uint64_t area_bytes;
    uint32_t counted; /* receives, of all threads, during which acquisitions are counted, before the window; 0: none */
    double warm_up_seconds, seconds;
};

struct zc_kernel_result {
    double elapsed_seconds, receiver_cpu_seconds;
    uint64_t payloads, receives; /* a receive is one call of getsockopt */
    uint64_t bytes_mapped, bytes_copied;
    uint64_t wrong; /* pages that were not what was sent */
    struct zc_latency receive;

    uint64_t counted_receives; /* 0: acquisitions were not counted, and `not_counted` says why */
    uint64_t acquisitions;     /* of the mmap lock in read mode, by the receiving threads during the counted receives */
    double waited_us, longest_wait_us;
    char not_counted[ZC_KERNEL_REASON];

    uint64_t changes; /* of the address space; one mprotect, or one mmap and munmap */
    struct zc_latency change;
};

/* Forks the sending process, so it is to be called while the process has one thread. 0; -EINVAL; -EOPNOTSUPP, this kernel does not map;
 * -ETIMEDOUT; or what the system said. */
int zc_kernel_run(const struct zc_kernel_options *options, struct zc_kernel_result *result);

#endif
