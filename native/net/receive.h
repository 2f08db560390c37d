/* Receiving payload bytes into a region, under the region map's lock: the one place where sockets and regions meet.
 *
 * Each function finds the region of `address` under the map's lock strategy, writes to it, and lets it go; none waits for data. */
#ifndef ZCRPC_RECEIVE_H
#define ZCRPC_RECEIVE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "net/receive_probe.h"
#include "region/region_map.h"

/* Who receives: the map, the calling thread's actor, and where its time is noted (NULL: nowhere). */
struct zc_receiver {
    struct zc_map *map;
    struct zc_actor *actor;
    struct zc_receive_probe *probe;
};

/* What one TCP_ZEROCOPY_RECEIVE did. */
struct zc_mapping {
    uint32_t mapped; /* bytes, whole pages */
    uint32_t skip;   /* bytes that come next and can only be copied; 0: none known */
    uint32_t queued; /* bytes still in the socket, copied or mapped; 0 with a kernel that does not tell */
};

/* Maps up to `length` bytes (whole pages) at `address`, which no page is mapped at. 0; -EAGAIN: nothing is there; -EIO: the peer has
 * closed; -ENOPROTOOPT: not with this socket or kernel; or another negative errno. */
int zc_receive_map(const struct zc_receiver *self, int fd, uintptr_t address, uint64_t length, struct zc_mapping *out);

/* recvmsg into vectors of which the first lies in the region of `address`. Bytes received, 0 at the end of the stream, or -errno. */
ssize_t zc_receive_copy(const struct zc_receiver *self, int fd, uintptr_t address, struct iovec *vectors, int count);

/* Puts bytes that were received elsewhere at `address`, under the same lock. 0 or -EFAULT. */
int zc_receive_moved(const struct zc_receiver *self, uintptr_t address, const void *bytes, uint64_t length);

/* Lets readiness wait until `bytes` are queued (1: any). */
void zc_receive_low_water(int fd, uint32_t bytes);

#endif
