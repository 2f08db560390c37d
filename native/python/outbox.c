/* Frames gathered in one piece of memory, which the core sends from. */
#include "python/path.h"

#include <stdlib.h>

/* What is kept from one submit to the next. */
#define KEPT (1u << 20)
#define FIRST (64u << 10)
/* A record's length has 32 bits; headers are as long as the peer allows. */
#define LONGEST (UINT32_MAX / 2)

static bool make_room(struct outbox *out, size_t bytes) {
    size_t capacity = out->capacity ? out->capacity : FIRST;
    while (capacity - out->used < bytes)
        capacity *= 2;
    unsigned char *records = realloc(out->records, capacity);
    if (!records) {
        PyErr_NoMemory();
        return false;
    }
    out->records = records;
    out->capacity = capacity;
    return true;
}

unsigned char *zc_outbox_frame(struct outbox *out, uint64_t connection, const struct zc_frame *frame, size_t rest) {
    size_t bytes = ZC_RECORD_SIZE + ZC_FRAME_SIZE + rest;
    if (rest > LONGEST) {
        PyErr_SetString(PyExc_ValueError, "too large for a frame that is copied");
        return NULL;
    }
    if (out->capacity - out->used < bytes && !make_room(out, bytes))
        return NULL;
    unsigned char *at = out->records + out->used;
    uint32_t length[2] = {(uint32_t)(ZC_FRAME_SIZE + rest), 0};
    memcpy(at, &connection, sizeof connection);
    memcpy(at + sizeof connection, length, sizeof length);
    zc_frame_encode(frame, at + ZC_RECORD_SIZE);
    out->used += bytes;
    out->frames++;
    return at + ZC_RECORD_SIZE + ZC_FRAME_SIZE;
}

int zc_outbox_submit(struct reactor *r) {
    struct outbox taken = r->out; /* while the GIL is not held, what is in `out` may grow and move */
    if (!taken.used)
        return 0;
    r->out = (struct outbox){0};
    int failed = 0;
    if (r->core) {
        Py_BEGIN_ALLOW_THREADS failed = r->submit(r->core, taken.records, taken.used);
        Py_END_ALLOW_THREADS
    }
    if (r->out.records || taken.capacity > KEPT) {
        free(taken.records);
    } else {
        taken.used = taken.frames = 0;
        r->out = taken;
    }
    return failed;
}

int zc_outbox_filled(struct reactor *r) {
    if (!r->core) /* closed: nobody submits any more, and its loop may be closed too */
        zc_outbox_drop(&r->out);
    else if (r->submits && r->out.frames >= SUBMIT_FROM)
        zc_outbox_submit(r); /* what fails is told by the connections' last events */
    else if (!r->submits)
        return zc_done(PyObject_CallMethodObjArgs((PyObject *)r, zc_names.wake, NULL));
    return 0;
}

void zc_outbox_drop(struct outbox *out) {
    free(out->records);
    *out = (struct outbox){0};
}
