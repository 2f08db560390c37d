/* As much of io_uring as uring_echo.c needs, over the bare system calls: one ring, one ring of provided buffers. Linux 6.1 and later. */
#ifndef ZCRPC_BENCHMARKS_URING_H
#define ZCRPC_BENCHMARKS_URING_H

#include <errno.h>
#include <linux/io_uring.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct uring {
    int fd;         /* pollable */
    int registered; /* the same ring by its registered number, which saves a look-up in each enter */
    struct io_uring_sqe *sqes;
    _Atomic uint32_t *sq_tail, *cq_head, *cq_tail;
    uint32_t sq_mask, cq_mask, queued, unsubmitted; /* queued: the tail, the kernel told or not */
    struct io_uring_cqe *cqes;
};

struct uring_buffers {
    struct io_uring_buf_ring *ring;
    unsigned char *bytes;
    uint32_t count, size;
    uint16_t tail;
};

static inline bool uring_register(struct uring *ring, unsigned operation, void *argument, unsigned count) {
    return syscall(__NR_io_uring_register, ring->fd, operation, argument, count) >= 0;
}

static inline void *uring_map(int fd, size_t length, off_t offset) {
    return mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset);
}

/* False with errno: this kernel has no such ring, or does not allow it. */
static inline bool uring_open(struct uring *ring, uint32_t entries, uint32_t flags) {
    struct io_uring_params params = {.flags = flags | IORING_SETUP_CQSIZE, .cq_entries = 4 * entries};
    ring->fd = (int)syscall(__NR_io_uring_setup, entries, &params);
    if (ring->fd < 0)
        return false;
    size_t submissions = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
    size_t completions = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    unsigned char *at = uring_map(ring->fd, submissions > completions ? submissions : completions, IORING_OFF_SQ_RING);
    ring->sqes = uring_map(ring->fd, params.sq_entries * sizeof *ring->sqes, IORING_OFF_SQES);
    if (at == MAP_FAILED || ring->sqes == MAP_FAILED)
        return false;
    for (uint32_t i = 0; i < params.sq_entries; i++)
        ((uint32_t *)(at + params.sq_off.array))[i] = i;
    ring->sq_tail = (_Atomic uint32_t *)(at + params.sq_off.tail);
    ring->cq_head = (_Atomic uint32_t *)(at + params.cq_off.head);
    ring->cq_tail = (_Atomic uint32_t *)(at + params.cq_off.tail);
    ring->cqes = (struct io_uring_cqe *)(at + params.cq_off.cqes);
    ring->sq_mask = params.sq_entries - 1;
    ring->cq_mask = params.cq_entries - 1;
    ring->queued = ring->unsubmitted = 0;
    struct io_uring_rsrc_update self = {.offset = -1U, .data = (uint64_t)ring->fd};
    if (!uring_register(ring, IORING_REGISTER_RING_FDS, &self, 1))
        return false;
    ring->registered = (int)self.offset;
    return true;
}

/* Submits what is queued, lets the ring work, and waits until `wait` completions are there. */
static inline bool uring_enter(struct uring *ring, uint32_t wait, bool work) {
    atomic_store_explicit(ring->sq_tail, ring->queued, memory_order_release);
    unsigned flags = IORING_ENTER_REGISTERED_RING | (work ? IORING_ENTER_GETEVENTS : 0);
    long taken = syscall(__NR_io_uring_enter, ring->registered, ring->unsubmitted, wait, flags, NULL, 0);
    if (taken < 0)
        return errno == EINTR;
    ring->unsubmitted -= (uint32_t)taken;
    return true;
}

/* An entry to be filled in; the ring is entered if it has no room. */
static inline struct io_uring_sqe *uring_entry(struct uring *ring, uint8_t operation, int fd, uint64_t data) {
    if (ring->unsubmitted > ring->sq_mask)
        uring_enter(ring, 0, false);
    struct io_uring_sqe *entry = &ring->sqes[ring->queued++ & ring->sq_mask];
    ring->unsubmitted++;
    memset(entry, 0, sizeof *entry);
    entry->opcode = operation;
    entry->fd = fd;
    entry->user_data = data;
    return entry;
}

static inline bool uring_next(struct uring *ring, struct io_uring_cqe *completion) {
    uint32_t head = atomic_load_explicit(ring->cq_head, memory_order_relaxed);
    if (head == atomic_load_explicit(ring->cq_tail, memory_order_acquire))
        return false;
    *completion = ring->cqes[head & ring->cq_mask];
    atomic_store_explicit(ring->cq_head, head + 1, memory_order_release);
    return true;
}

/* Gives a buffer to the kernel, as soon as uring_publish says so. */
static inline void uring_provide(struct uring_buffers *buffers, uint16_t index) {
    struct io_uring_buf *entry = &buffers->ring->bufs[buffers->tail++ & (buffers->count - 1)];
    entry->addr = (uint64_t)(uintptr_t)(buffers->bytes + (size_t)index * buffers->size);
    entry->len = buffers->size;
    entry->bid = index;
}

static inline void uring_publish(struct uring_buffers *buffers) {
    atomic_store_explicit((_Atomic uint16_t *)&buffers->ring->tail, buffers->tail, memory_order_release);
}

/* `count`: a power of two. They are group 0. */
static inline bool uring_open_buffers(struct uring *ring, struct uring_buffers *buffers, uint32_t count, uint32_t size) {
    size_t entries = count * sizeof(struct io_uring_buf);
    unsigned char *at =
        mmap(NULL, entries + (size_t)count * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (at == MAP_FAILED)
        return false;
    *buffers = (struct uring_buffers){(struct io_uring_buf_ring *)at, at + entries, count, size, 0};
    struct io_uring_buf_reg registration = {.ring_addr = (uint64_t)(uintptr_t)at, .ring_entries = count};
    if (!uring_register(ring, IORING_REGISTER_PBUF_RING, &registration, 1))
        return false;
    for (uint32_t i = 0; i < count; i++)
        uring_provide(buffers, (uint16_t)i);
    uring_publish(buffers);
    return true;
}

#endif
