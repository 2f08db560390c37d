#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/reactor.h"

int zc_mapping_supported(void) {
    struct tcp_zerocopy_receive call = {0};
    socklen_t size = sizeof call;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    /* An unconnected socket answers ENOTCONN or, asked for nothing, success, where there is such an option. Before 5.11 it is shorter
     * than the flags that we need. */
    int failed = getsockopt(fd, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &call, &size) ? errno : 0;
    close(fd);
    if (failed && failed != ENOTCONN && failed != EIO)
        return -failed;
    return size >= offsetof(struct tcp_zerocopy_receive, flags) + sizeof call.flags ? 0 : -ENOPROTOOPT;
}
