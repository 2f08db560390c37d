#include "net/outbound.h"

#include <errno.h>
#include <time.h>

#include <linux/errqueue.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdalign.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* A send of payload names at most this many buffers (the kernel's limit is 1024); more go in the next send. */
#define VECTORS 64
/* What a packet holds at most: MAX_SKB_FRAGS. Memory of n pieces that covers so many pages needs up to n more fragments than that. */
#define FRAGMENTS 17
#define FRAGMENT_PAGES(n) ((n) < FRAGMENTS ? (uint64_t)(FRAGMENTS - (n)) : 1)
/* An emptied buffer for small frames is kept up to this size, so that a connection that is used does not allocate for each frame, and
 * freed above it, so that one that was slow once does not hold memory for ever. */
#define SMALL_KEPT 16384u

static const unsigned char zeros[ZC_PAGE];

void zc_outbound_init(struct zc_outbound *out) {
    *out = (struct zc_outbound){.peer = {.chunk = 1u << 20}};
    out->last = &out->first;
    out->last_short = &out->shorts;
}

static void free_items(struct zc_item *item) {
    while (item) {
        struct zc_item *next = item->next;
        free(item);
        item = next;
    }
}

void zc_outbound_free(struct zc_outbound *out) {
    free_items(out->first);
    free_items(out->shorts);
    free_items(out->unreported);
    free(out->small);
    zc_outbound_init(out);
}

uint32_t zc_whole_pages(int fd) {
    int segment = 0;
    socklen_t size = sizeof segment;
    if (getsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &segment, &size) || segment < 0)
        return 0;
    return (uint32_t)segment / ZC_PAGE * ZC_PAGE;
}

bool zc_is_local(int fd) {
    struct sockaddr_storage own, peer;
    socklen_t own_size = sizeof own, peer_size = sizeof peer;
    if (getsockname(fd, (struct sockaddr *)&own, &own_size) || getpeername(fd, (struct sockaddr *)&peer, &peer_size) ||
        own.ss_family != peer.ss_family)
        return false;
    if (own.ss_family == AF_INET)
        return ((struct sockaddr_in *)&own)->sin_addr.s_addr == ((struct sockaddr_in *)&peer)->sin_addr.s_addr;
    return own.ss_family == AF_INET6 &&
           memcmp(&((struct sockaddr_in6 *)&own)->sin6_addr, &((struct sockaddr_in6 *)&peer)->sin6_addr, sizeof(struct in6_addr)) == 0;
}

void zc_unpace(int fd) {
    char name[16] = ""; /* TCP_CA_NAME_MAX */
    socklen_t size = sizeof name;
    if (getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &size) == 0 && strncmp(name, "bbr", 3) == 0)
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4); /* every kernel has it, and lets everybody have it */
}

bool zc_outbound_empty(const struct zc_outbound *out) {
    return out->small_begin == out->small_end && !out->first;
}

bool zc_outbound_bulky(const struct zc_outbound *out) {
    return out->first && out->first->chunk_left + out->first->left >= ZC_BULK_FROM;
}

uint64_t zc_outbound_queued(const struct zc_outbound *out) {
    return out->small_end - out->small_begin;
}

/* ---- queueing ---- */

int zc_outbound_append(struct zc_outbound *out, const void *bytes, uint64_t length) {
    uint64_t waiting = out->small_end - out->small_begin;
    if (waiting + length > UINT32_MAX / 2)
        return -ENOMEM;
    if (out->small_end + length > out->small_capacity) {
        if (out->small_begin) {
            memmove(out->small, out->small + out->small_begin, waiting);
            out->small_begin = 0;
            out->small_end = (uint32_t)waiting;
        }
        if (waiting + length > out->small_capacity) {
            uint64_t capacity = out->small_capacity ? out->small_capacity : 1024;
            while (capacity < waiting + length)
                capacity *= 2;
            unsigned char *grown = realloc(out->small, capacity);
            if (!grown)
                return -ENOMEM;
            out->small = grown;
            out->small_capacity = (uint32_t)capacity;
        }
    }
    memcpy(out->small + out->small_end, bytes, length);
    out->small_end += (uint32_t)length;
    return 0;
}

static void small_sent(struct zc_outbound *out, uint64_t n) {
    out->small_begin += (uint32_t)n;
    if (out->small_begin < out->small_end)
        return;
    out->small_begin = out->small_end = 0;
    if (out->small_capacity > SMALL_KEPT) {
        free(out->small);
        out->small = NULL;
        out->small_capacity = 0;
    }
}

/* Makes the next chunk of what is left the current one. */
static void begin_chunk(struct zc_item *item, uint32_t chunk) {
    item->chunk_left = item->left < chunk ? item->left : chunk;
    item->left -= item->chunk_left;
    item->pad_left = item->padded ? (uint32_t)(-item->chunk_left % ZC_PAGE) : 0;
}

int zc_outbound_queue(struct zc_outbound *out, const void *head, uint64_t head_length, const struct zc_buffer *buffers, uint32_t count,
                      uint64_t token) {
    struct zc_frame frame;
    uint64_t total = 0;
    if (head_length < ZC_FRAME_SIZE || head_length > UINT32_MAX)
        return -EINVAL;
    zc_frame_decode(head, &frame);
    for (uint32_t i = 0; i < count; i++)
        total += buffers[i].length;
    if (total != frame.payload_length || frame.header_length != head_length - ZC_FRAME_SIZE)
        return -EINVAL;

    size_t described = sizeof(struct zc_item) + count * sizeof *buffers;
    struct zc_item *item = malloc(described + head_length);
    if (!item)
        return -ENOMEM;
    *item = (struct zc_item){.token = token, .stream = frame.stream, .left = total, .count = count};
    item->padded = out->peer.map_from && total >= out->peer.map_from && out->segment;
    if (item->padded)
        frame.flags |= ZC_FLAG_PADDED;
    memcpy(item->buffers, buffers, count * sizeof *buffers);
    item->head = (unsigned char *)item + described;
    item->head_length = (uint32_t)head_length;
    memcpy(item->head, head, head_length);
    zc_frame_encode(&frame, item->head);
    item->is_long = total > out->peer.chunk;
    begin_chunk(item, out->peer.chunk);
    out->longs += item->is_long;
    struct zc_item ***last = out->longs && !item->is_long && !item->padded ? &out->last_short : &out->last;
    **last = item;
    *last = &item->next;
    return 0;
}

/* ---- finishing ---- */

void zc_tokens_add(struct zc_tokens *done, uint64_t token) {
    if (done->count == done->capacity) {
        uint32_t capacity = done->capacity ? done->capacity * 2 : 16;
        uint64_t *grown = realloc(done->at, capacity * sizeof *grown);
        if (!grown)
            return; /* the buffers stay referenced until the connection closes: late, not lost */
        done->at = grown;
        done->capacity = capacity;
    }
    done->at[done->count++] = token;
}

static bool reported(const struct zc_item *item) {
    return item->zerocopy_done == item->zerocopy_sends;
}

/* Between two items, or two chunks of one: puts a short item before a long one, if there is one and it is its turn. */
static void let_short_pass(struct zc_outbound *out) {
    struct zc_item *item = out->shorts;
    if (!item || (out->first && (!out->first->is_long || out->passed >= out->peer.chunk)))
        return;
    out->shorts = item->next;
    if (!out->shorts)
        out->last_short = &out->shorts;
    item->next = out->first;
    out->first = item;
    if (!item->next)
        out->last = &item->next;
    out->passed += item->chunk_left;
}

/* The first item has been sent to its last byte. */
static void finish_first(struct zc_outbound *out, struct zc_tokens *done) {
    struct zc_item *item = out->first;
    out->first = item->next;
    if (!out->first)
        out->last = &out->first;
    out->longs -= item->is_long;
    if (item->is_long)
        out->passed = 0;
    let_short_pass(out);
    if (reported(item)) {
        zc_tokens_add(done, item->token);
        free(item);
    } else {
        item->next = out->unreported;
        out->unreported = item;
    }
}

/* How many of the numbers [low, low + count) lie in the item's range; all arithmetic wraps as the kernel's numbers do. */
static uint32_t overlap(const struct zc_item *item, uint32_t low, uint32_t count) {
    uint32_t hits = 0;
    uint32_t skipped = low - item->zerocopy_first; /* where the reported range begins, seen from the item */
    if (skipped < item->zerocopy_sends) {
        hits = item->zerocopy_sends - skipped;
    } else if (-skipped < count) { /* it begins before the item */
        count -= -skipped;
        hits = item->zerocopy_sends;
    }
    return hits < count ? hits : count;
}

static void note_report(struct zc_outbound *out, uint32_t low, uint32_t high, struct zc_tokens *done) {
    uint32_t count = high - low + 1;
    for (struct zc_item *item = out->first; item; item = item->is_long ? NULL : item->next) /* a short one may have passed a long one */
        item->zerocopy_done += overlap(item, low, count);
    for (struct zc_item **link = &out->unreported, *item; (item = *link);) {
        item->zerocopy_done += overlap(item, low, count);
        if (reported(item)) {
            *link = item->next;
            zc_tokens_add(done, item->token);
            free(item);
        } else {
            link = &item->next;
        }
    }
}

int zc_outbound_reports(struct zc_outbound *out, int fd, struct zc_tokens *done, struct zc_send_counters *counters) {
    int reports = 0;
    while (true) {
        alignas(struct cmsghdr) char control[128];
        struct msghdr message = {.msg_control = control, .msg_controllen = sizeof control};
        if (recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
            return reports;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
            bool ip =
                (c->cmsg_level == SOL_IP && c->cmsg_type == IP_RECVERR) || (c->cmsg_level == SOL_IPV6 && c->cmsg_type == IPV6_RECVERR);
            struct sock_extended_err error;
            if (!ip || c->cmsg_len < CMSG_LEN(sizeof error))
                continue;
            memcpy(&error, CMSG_DATA(c), sizeof error);
            if (error.ee_origin != SO_EE_ORIGIN_ZEROCOPY)
                continue;
            if (error.ee_code & SO_EE_CODE_ZEROCOPY_COPIED)
                counters->zerocopy_copied += error.ee_data - error.ee_info + 1;
            note_report(out, error.ee_info, error.ee_data, done);
            reports++;
        }
    }
}

/* ---- sending ---- */

static bool between_chunks(const struct zc_item *item) {
    return item->head_sent == 0; /* end_chunk puts the next head up at once */
}

/* Names the next `most` bytes of the current chunk's payload and padding, or what `room` pieces hold of them. */
static int payload_vectors(const struct zc_item *item, uint64_t most, struct iovec *vectors, int room) {
    uint64_t left = item->chunk_left < most ? item->chunk_left : most, offset = item->offset;
    uint64_t pad = item->pad_left < most - left ? item->pad_left : most - left;
    int n = 0;
    for (uint32_t i = item->index; left && n < room; i++, offset = 0) {
        uint64_t length = item->buffers[i].length - offset;
        if (length > left)
            length = left;
        if (!length)
            continue;
        vectors[n++] = (struct iovec){(char *)item->buffers[i].address + offset, length};
        left -= length;
    }
    if (!left && pad && n < room)
        vectors[n++] = (struct iovec){(void *)zeros, pad};
    return n;
}

/* `n` bytes of the current chunk's payload and padding were taken. */
static void payload_sent(struct zc_item *item, uint64_t n) {
    uint64_t taken = n < item->chunk_left ? n : item->chunk_left;
    item->chunk_left -= taken;
    item->pad_left -= (uint32_t)(n - taken);
    while (taken) {
        uint64_t length = item->buffers[item->index].length - item->offset;
        if (taken < length) {
            item->offset += taken;
            return;
        }
        taken -= length;
        item->offset = 0;
        item->index++;
    }
}

/* The current chunk is through: puts up the next one's header, or ends the item. */
static void end_chunk(struct zc_outbound *out, struct zc_tokens *done, struct zc_send_counters *counters) {
    struct zc_item *item = out->first;
    counters->frames++;
    if (!item->left) {
        finish_first(out, done);
        return;
    }
    begin_chunk(item, out->peer.chunk);
    struct zc_frame frame = {.kind = ZC_CHUNK, .stream = item->stream, .payload_length = item->chunk_left};
    zc_frame_encode(&frame, item->head); /* the first chunk's head was at least as long */
    item->head_length = ZC_FRAME_SIZE;
    item->head_sent = 0;
    out->passed = 0;
    let_short_pass(out);
}

ssize_t zc_send_vectors(int fd, struct iovec *vectors, int count, int flags) {
    struct msghdr message = {.msg_iov = vectors, .msg_iovlen = (size_t)count};
    ssize_t sent;
    flags |= MSG_DONTWAIT | MSG_NOSIGNAL;
    do /* send is the cheaper call, and most replies are one piece */
        sent = count == 1 ? send(fd, vectors->iov_base, vectors->iov_len, flags) : sendmsg(fd, &message, flags);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : sent;
}

/* Small frames, then the head of a chunk, then (unless it must travel alone) its payload: one vectored send. Returns bytes sent, 0 if
 * there was nothing, or a negative errno. */
static ssize_t send_ordinary(struct zc_outbound *out, int fd) {
    struct zc_item *item = out->first;
    struct iovec vectors[VECTORS + 2];
    uint64_t small = 0, head = 0;
    uint32_t pages;
    int n = 0, flags = 0;
    if (!item || between_chunks(item)) {
        small = out->small_end - out->small_begin;
        if (small)
            vectors[n++] = (struct iovec){out->small + out->small_begin, small};
    }
    if (item) {
        head = item->head_length - item->head_sent;
        if (head)
            vectors[n++] = (struct iovec){item->head + item->head_sent, head};
        if (!item->padded)
            n += payload_vectors(item, UINT64_MAX, vectors + n, VECTORS);
        else
            flags = MSG_EOR;
    }
    if (!n)
        return 0;
    ssize_t sent = zc_send_vectors(fd, vectors, n, flags);
    if (sent < 0)
        return sent;
    uint64_t rest = (uint64_t)sent, part = rest < small ? rest : small;
    if (small)
        small_sent(out, part);
    rest -= part;
    part = rest < head ? rest : head;
    if (item)
        item->head_sent += (uint32_t)part;
    if (item && item->padded && (pages = zc_whole_pages(fd)))
        out->segment = pages; /* on a young connection it is half of what it will be */
    rest -= part;
    if (rest)
        payload_sent(item, rest);
    return sent;
}

/* One segment of a padded chunk. Falls back to an ordinary send where the kernel has no room to keep track (ENOBUFS): the peer then copies. */
static ssize_t send_pages(struct zc_outbound *out, int fd, struct zc_tokens *done, struct zc_send_counters *counters) {
    struct zc_item *item = out->first;
    struct iovec vectors[FRAGMENTS];
    int n = payload_vectors(item, out->segment, vectors, FRAGMENTS);
    if (n > 1 && out->segment > FRAGMENT_PAGES(n) * ZC_PAGE) /* each piece may begin and end inside a page */
        n = payload_vectors(item, FRAGMENT_PAGES(n) * ZC_PAGE, vectors, FRAGMENTS);
    ssize_t sent = zc_send_vectors(fd, vectors, n, MSG_ZEROCOPY | MSG_EOR);
    if (sent == -ENOBUFS && zc_outbound_reports(out, fd, done, counters))
        sent = zc_send_vectors(fd, vectors, n, MSG_ZEROCOPY | MSG_EOR);
    if (sent > 0) {
        if (!item->zerocopy_sends)
            item->zerocopy_first = out->zerocopy_next;
        item->zerocopy_sends++;
        out->zerocopy_next++;
        counters->zerocopy++;
    } else if (sent == -ENOBUFS) {
        sent = zc_send_vectors(fd, vectors, n, MSG_EOR);
    }
    if (sent > 0)
        payload_sent(item, (uint64_t)sent);
    return sent;
}

int zc_outbound_flush(struct zc_outbound *out, int fd, struct zc_tokens *done, struct zc_send_counters *counters) {
    uint64_t end = counters->bytes + ZC_TURN_SENT;
    out->blocked = false;
    while (!zc_outbound_empty(out)) {
        if (counters->bytes >= end) {
            out->blocked = true;
            break;
        }
        struct zc_item *item = out->first;
        bool pages = item && item->padded && item->head_sent == item->head_length && (item->chunk_left || item->pad_left);
        ssize_t sent = pages ? send_pages(out, fd, done, counters) : send_ordinary(out, fd);
        if (sent == -EAGAIN) {
            out->blocked = true;
            break;
        }
        if (sent < 0)
            return (int)sent;
        counters->bytes += (uint64_t)sent;
        item = out->first;
        if (item && item->head_sent == item->head_length && !item->chunk_left && !item->pad_left)
            end_chunk(out, done, counters);
    }
    if (out->unreported)
        zc_outbound_reports(out, fd, done, counters);
    return 0;
}
