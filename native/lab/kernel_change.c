/* The thread that changes the address space of the process that it shares with the receivers. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "lab/kernel_parts.h"

#define TABLE_BYTES (2u << 20) /* of address space under one page of page table */

/* Flips the protection of the whole area: every entry of its page tables is rewritten under the lock. */
static int flip(struct kernel_writer *writer) {
    int protection = writer->flips++ % 2 ? PROT_READ | PROT_WRITE : PROT_READ;
    return mprotect(writer->area, writer->kernel->options->area_bytes, protection) < 0 ? -errno : 0;
}

static int map_and_unmap(const struct kernel_writer *writer) {
    uint64_t size = writer->kernel->options->area_bytes;
    volatile unsigned char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        return -errno;
    madvise((void *)area, size, MADV_NOHUGEPAGE); /* else a touch is mostly 2 MiB of zeros, outside the lock */
    for (uint64_t at = 0; at < size; at += TABLE_BYTES)
        area[at] = 1;
    return munmap((void *)area, size) < 0 ? -errno : 0;
}

static void change_during(struct kernel_writer *writer, enum kernel_phase phase) {
    bool flips = writer->kernel->options->writer == ZC_KERNEL_MPROTECT;
    while (writer->failed == 0 && kernel_during(writer->kernel, phase)) {
        uint64_t began = zc_cycles();
        writer->failed = flips ? flip(writer) : map_and_unmap(writer);
        zc_histogram_record(&writer->latency, zc_cycles() - began);
    }
}

void *kernel_change(void *argument) {
    struct kernel_writer *writer = argument;
    change_during(writer, KERNEL_WARM_UP);
    kernel_arrive(writer->kernel, KERNEL_COUNT);
    change_during(writer, KERNEL_COUNT);
    kernel_arrive(writer->kernel, KERNEL_MEASURE);
    memset(&writer->latency, 0, sizeof writer->latency);
    change_during(writer, KERNEL_MEASURE);
    return NULL;
}
