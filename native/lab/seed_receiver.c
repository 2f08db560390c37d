#include <string.h>

#include "lab/seed.h"

#define POLL_MS 10 /* how soon a change of phase is noticed by a thread that has nothing to do */

static void begin_window(struct seed_receiver *receiver) {
    uint64_t preempted_from = receiver->probe.preempted_from;
    memset(&receiver->probe, 0, sizeof receiver->probe);
    receiver->probe.preempted_from = preempted_from;
    receiver->requests = 0;
    zc_reactor_stats(receiver->reactor, &receiver->before);
    receiver->started = zc_lab_seconds(CLOCK_MONOTONIC);
    receiver->cpu_started = zc_lab_seconds(CLOCK_THREAD_CPUTIME_ID);
}

static void end_window(struct seed_receiver *receiver) {
    receiver->elapsed = zc_lab_seconds(CLOCK_MONOTONIC) - receiver->started;
    receiver->cpu = zc_lab_seconds(CLOCK_THREAD_CPUTIME_ID) - receiver->cpu_started;
    zc_reactor_stats(receiver->reactor, &receiver->after);
}

/* What the application does with a payload: reads a byte of every page of it. */
static uint64_t page_sum(const unsigned char *payload, uint64_t length) {
    uint64_t sum = 0;
    for (uint64_t at = 0; at < length; at += ZC_PAGE)
        sum += payload[at];
    return sum;
}

/* A response whose msgpack header is [bin of 8 bytes: the page sum]. */
static void write_reply(unsigned char *at, uint64_t connection, uint32_t stream, uint64_t sum) {
    const uint32_t length[2] = {SEED_RECORD - ZC_RECORD_SIZE, 0};
    const struct zc_frame frame = {.kind = ZC_RESPONSE, .stream = stream, .header_length = 11};
    memcpy(at, &connection, sizeof connection);
    memcpy(at + 8, length, sizeof length);
    at += ZC_RECORD_SIZE;
    zc_frame_encode(&frame, at);
    memcpy(at + ZC_FRAME_SIZE, "\x91\xc4\x08", 3);
    sum = htole64(sum);
    memcpy(at + ZC_FRAME_SIZE + 3, &sum, sizeof sum);
}

/* Answers a batch's requests. */
static int answer(struct seed_receiver *receiver, const struct zc_batch *batch, uint32_t count) {
    uint64_t replies = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct zc_event *event = &batch->events[i];
        const unsigned char *payload =
            event->lease ? (const unsigned char *)(uintptr_t)event->payload : batch->data + event->payload; /* NOLINT */
        if (event->kind == ZC_REQUEST)
            write_reply(receiver->records + replies++ * SEED_RECORD, event->connection, event->stream,
                        page_sum(payload, event->payload_length));
        if (event->kind == ZC_EVENT_CLOSED)
            receiver->closed++;
        if (event->lease)
            zc_lease_release((struct zc_lease *)(uintptr_t)event->lease);
    }
    receiver->requests += replies;
    return replies ? zc_reactor_submit(receiver->reactor, receiver->records, replies * SEED_RECORD) : 0;
}

void *seed_receive(void *argument) {
    struct seed_receiver *receiver = argument;
    int phase = SEED_WARM_UP;
    while (phase != SEED_STOP && receiver->failed >= 0) {
        int64_t batch = zc_reactor_poll(receiver->reactor, POLL_MS);
        if (batch < 0)
            receiver->failed = (int)batch;
        else
            receiver->failed = answer(receiver, zc_reactor_batch(receiver->reactor, (uint32_t)(batch >> 32)), (uint32_t)batch);
        int now = atomic_load_explicit(&receiver->seed->phase, memory_order_acquire);
        if (now == phase)
            continue;
        if (now == SEED_MEASURE)
            begin_window(receiver);
        else
            end_window(receiver);
        phase = now;
    }
    return NULL;
}
