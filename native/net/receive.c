#include "net/receive.h"

#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

/* Finds and holds the region of `address`. */
static bool enter(const struct zc_receiver *self, uintptr_t address, struct zc_guard *guard) {
    zc_probe_find(self->probe, self->actor);
    if (self->map->strategy->read_lock(self->map, self->actor, address, guard) < 0)
        return false;
    zc_probe_locked(self->probe);
    return true;
}

static void leave(const struct zc_receiver *self, struct zc_guard *guard) {
    zc_probe_received(self->probe);
    self->map->strategy->read_unlock(self->map, self->actor, guard);
    zc_probe_unlocked(self->probe, self->actor);
}

int zc_receive_map(const struct zc_receiver *self, int fd, uintptr_t address, uint64_t length, struct zc_mapping *out) {
    struct tcp_zerocopy_receive call = {.address = address, .length = (uint32_t)length, .flags = TCP_RECEIVE_ZEROCOPY_FLAG_TLB_CLEAN_HINT};
    socklen_t size = sizeof call;
    struct zc_guard guard;
    if (!enter(self, address, &guard))
        return -EFAULT; /* a leased range always lies in an attached region */
    int failed = getsockopt(fd, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &call, &size) < 0 ? errno : 0;
    leave(self, &guard);
    if (failed)
        return failed == EINVAL || failed == EOPNOTSUPP ? -ENOPROTOOPT : -failed;
    *out = (struct zc_mapping){.mapped = call.length, .skip = call.recv_skip_hint, .queued = call.inq};
    if (call.err)
        return call.err < 0 ? call.err : -call.err;
    return out->mapped || out->skip ? 0 : -EAGAIN;
}

ssize_t zc_receive_copy(const struct zc_receiver *self, int fd, uintptr_t address, struct iovec *vectors, int count) {
    struct msghdr message = {.msg_iov = vectors, .msg_iovlen = (size_t)count};
    struct zc_guard guard;
    if (!enter(self, address, &guard))
        return -EFAULT;
    ssize_t n = recvmsg(fd, &message, MSG_DONTWAIT);
    int failed = n < 0 ? errno : 0;
    leave(self, &guard);
    return failed ? -failed : n;
}

int zc_receive_moved(const struct zc_receiver *self, uintptr_t address, const void *bytes, uint64_t length) {
    struct zc_guard guard;
    if (!enter(self, address, &guard))
        return -EFAULT;
    memcpy((void *)address, bytes, length);
    leave(self, &guard);
    return 0;
}

void zc_receive_low_water(int fd, uint32_t bytes) {
    int low = bytes > INT32_MAX ? INT32_MAX : (int)bytes;
    setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low); /* a hint: a socket that refuses it only wakes us more often */
}
