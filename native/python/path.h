/* The path of a small call, in C: the bases of two classes of Python's, and what callers hold.
 *
 *   zcrpc.reactor.Reactor         ← struct reactor      goes through a batch of events; gathers frames, and submits them
 *   zcrpc.connection.Connection   ← struct connection   what is looked at for each call
 *   (used as they are)              struct pending      a call that waits for its answer, as a future
 *                                   struct call         what a caller awaits: a coroutine that makes one call, over a pending
 *                                   struct verb         a method of a typed client, which makes such a coroutine
 *
 * What is here deals with the commonest shapes alone: calls and answers that are one buffer, or a few numbers and strings. For everything
 * else it calls methods that the classes in Python have, and those could do the commonest shapes too, with the same outcome. So a rule of
 * the protocol, a limit or an error is written down in Python; what is here, is here because it would be done a hundred thousand times a
 * second.
 *
 *   serving    reactor.c a batch → serve.c a call comes in, its handler is begun → shape.c its result goes out → outbox.c with others
 *   calling    verb.c a method → call.c awaited → connection.c begun → shape.c, outbox.c sent → pending.c the answer wakes who waits
 *
 * Written against the limited API of Python 3.11, so one build serves all later ones. The core is not linked in: its three functions that
 * are needed come as addresses, from the module that has it. All of it runs with the GIL held, but for
 * receiving and sending. */
#ifndef ZCRPC_PATH_H
#define ZCRPC_PATH_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>
#include <structmember.h>
#include <time.h>

#include "net/reactor.h"

/* What zcrpc.codec calls INLINE_BELOW and BYTES. */
#define INLINE_BELOW 512
#define BUFFERS_ARE_BYTES 0

/* Frames that wait to be submitted are, without waiting for the rest, when they are so many: so a peer that waits for them works at the same
 * time as we do, on the next ones. */
#define SUBMIT_FROM 32

/* Frames that wait to be submitted, as the records of zc_reactor_submit. */
struct outbox {
    unsigned char *records;
    size_t used, capacity;
    uint32_t frames;
};

struct reactor {
    PyObject_HEAD struct outbox out;
    struct zc_reactor *core;
    struct {
        int64_t (*poll)(struct zc_reactor *, int);
        const struct zc_batch *(*batch)(struct zc_reactor *, uint32_t);
        int (*submit)(struct zc_reactor *, const void *, uint64_t);
    } calls;                      /* into the core */
    const struct zc_batch *batch; /* what is gone through */
    uint32_t next, count;         /* events of it */
    double came;                  /* when, in seconds of the monotonic clock */
    char submits;                 /* the outbox will be submitted without anybody waking us */
    char dispatching;
    PyObject *connections; /* dict: number → Connection */
    PyObject *loop, *codec, *deadlines;
    PyObject *runner;   /* of handlers: zcrpc.eager.WorkerRunner; None: each has a task of its own */
    PyObject *template; /* the context that a handler must leave as it was */
    PyObject *unsent;   /* list of Sender: streams whose items are to be sent with the next frames */
    PyObject *begun;    /* the connection whose handler has suspended, or is to be started */
    PyObject *answered; /* list of struct pending: done, and to be told when the batch is */
};

struct connection {
    PyObject_HEAD struct reactor *reactor;
    uint64_t number;
    uint64_t plain_below; /* shorter payloads are copied, and go as they are */
    uint64_t requests;
    uint32_t header_limit; /* of the peer's */
    PyObject *begun;       /* what surrounds the call that was begun last: context.py's Served */
    PyObject *ended;       /* str: why, once it is closed or being closed */
    PyObject *streams;     /* Streams, once there are some */
    /* The serving end. */
    char careful; /* whether a call may begin must be asked */
    PyObject *server, *handlers, *caller;
    /* The calling end. */
    PyObject *pending; /* dict: stream → struct pending */
    PyObject *methods; /* dict: name → number */
    PyObject *draining, *waiting;
    uint32_t in_flight, granted, last_stream;
};

struct pending {
    PyObject_HEAD struct connection *connection;
    PyObject *reader; /* is told what comes with the answer */
    PyObject *sink;   /* what is told of the end instead of an awaiting task */
    PyObject *value;  /* the result, or the exception */
    PyObject *callback, *context, *message;
    uint64_t tick, token; /* of its deadline; of what is sent by reference */
    uint32_t stream, buffers;
    char state, blocking, awaited;
};
enum { PENDING, DONE, FAILED, CANCELLED };

extern PyTypeObject *zc_reactor_type, *zc_connection_type, *zc_pending_type, *zc_call_type, *zc_bound_type;

/* Attributes that are asked for again and again. */
#define ZC_ATTRIBUTES(what)                                                                                                                \
    what(add) what(call_soon) what(cancelled) what(_channel) what(_client) what(context) what(discard) what(doomed) what(exact)            \
        what(expired) what(flush) what(full) what(only) what(_proceed) what(retries) what(parked) what(release_rest) what(run) what(sole)  \
            what(timeout) what(until) what(views) what(wake) what(work_through)
#define ZC_POINTER(name) PyObject *name;

extern struct names {
    ZC_ATTRIBUTES(ZC_POINTER)
    PyObject *nothing;                                                   /* zcrpc.metadata.NOTHING */
    PyObject *get_scope, *set_scope, *reset_scope;                       /* of zcrpc.context.SCOPE */
    PyObject *coroutine, *cancelled_error, *invalid_state, *zcrpc_error; /* types */
    PyObject *plain_encode;                                              /* of values that hold no buffers */
} zc_names;

/* outbox.c. A frame's record and header, with `rest` bytes of room behind them, which is returned; NULL: MemoryError, ValueError. */
unsigned char *zc_outbox_frame(struct outbox *out, uint64_t connection, const struct zc_frame *frame, size_t rest);
int zc_outbox_submit(struct reactor *r); /* 0, or a negative errno */
int zc_outbox_filled(struct reactor *r); /* after a frame: has it submitted, sooner or later. -1: an exception */
void zc_outbox_drop(struct outbox *out);

/* shape.c: the commonest headers and values. */
struct only {
    const unsigned char *bytes;
    size_t length;
    unsigned how; /* ZC_SOLE_BYTES, ZC_SOLE_BUFFER, or ONLY_INLINE: `bytes` within the header. 0: it is something else */
};
#define ONLY_INLINE 3
struct only zc_only(const unsigned char *header, uint32_t header_length, const unsigned char *payload, uint64_t payload_length, bool call);
PyObject *zc_only_value(const struct only *only, bool view);

/* Sends a frame that carries one value, alone or as the only argument; 1 if it did, 0 if the value is another shape, -1: an exception. */
int zc_send_only(struct connection *c, struct zc_frame *frame, PyObject *value, bool call);

/* serve.c. Begins a call: 1: *coroutine is to be awaited, within *served; 0: the call was dealt with; -1: an exception. */
int zc_begin(struct connection *c, const struct zc_event *event, PyObject **coroutine, PyObject **served);
int zc_expire(struct connection *c, uint32_t stream); /* ends a call that was not begun in time */
int zc_reply(struct connection *c, uint32_t stream, PyObject *served, PyObject *result);
int zc_fail(struct connection *c, uint32_t stream, PyObject *served); /* with the exception that is set, if it is one that handlers raise */

/* pending.c */
int zc_answer(struct connection *c, const struct zc_event *event);
int zc_wake_answered(struct reactor *r);
/* What was sent by the protocol of PyIter_Send, by that of Python, where a result comes as StopIteration. */
PyObject *zc_as_iterator(PySendResult how, PyObject *out);
PyObject *zc_pending_outcome(struct pending *p); /* its result; NULL: raises what it failed with */
struct pending *zc_pending(PyTypeObject *type, struct connection *c, uint32_t stream, uint32_t buffers, PyObject *reader);

/* call.c. What `channel` is to be asked for, with nothing out of the ordinary. NULL: an exception. */
PyObject *zc_call(PyObject *channel, PyObject *name, PyObject *arguments, PyObject *timeout, PyObject *converter, PyObject *idempotent);

/* connection.c. Begins a call whose turn it is; `seconds`: until its deadline, or None. 1: *out is the call; 0: it is not of the commonest
 * shapes, and nothing was done; -1: an exception. */
int zc_begin_plain(struct connection *c, PyObject *name, PyObject *arguments, uint32_t buffers, PyObject *seconds, struct pending **out);

/* Header or payload of an event. */
PyObject *zc_event_header(const struct reactor *r, const struct zc_event *event);
PyObject *zc_event_payload(const struct reactor *r, const struct zc_event *event);

/* An attribute's truth: 1, 0, or -1: an exception. */
static inline int zc_is_true(PyObject *object, PyObject *name) {
    PyObject *value = PyObject_GetAttr(object, name);
    int result = value ? PyObject_IsTrue(value) : -1;
    Py_XDECREF(value);
    return result;
}

/* Puts a reference in the place of another. */
static inline void zc_replace(PyObject **place, PyObject *value) {
    PyObject *before = *place;
    *place = value;
    Py_XDECREF(before);
}

static inline double zc_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Calls that return nothing of interest: 0 or -1. */
static inline int zc_done(PyObject *result) {
    if (!result)
        return -1;
    Py_DECREF(result);
    return 0;
}

/* The exception that is set, which is set no longer. */
static inline PyObject *zc_raised(void) {
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    if (trace)
        PyException_SetTraceback(error, trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
    return error;
}

/* What a type does for the garbage collector, from the list of its members that are objects. `end` is done when one dies. */
#define ZC_VISIT(name) Py_VISIT(self->name);
#define ZC_CLEAR(name) Py_CLEAR(self->name);
#define ZC_COLLECTED(kind, OBJECTS, end)                                                                                                   \
    static int traverse_##kind(struct kind *self, visitproc visit, void *arg) {                                                            \
        OBJECTS(ZC_VISIT)                                                                                                                  \
        Py_VISIT(Py_TYPE((PyObject *)self));                                                                                               \
        return 0;                                                                                                                          \
    }                                                                                                                                      \
    static int clear_##kind(struct kind *self) {                                                                                           \
        OBJECTS(ZC_CLEAR)                                                                                                                  \
        return 0;                                                                                                                          \
    }                                                                                                                                      \
    static void dealloc_##kind(struct kind *self) {                                                                                        \
        PyTypeObject *type = Py_TYPE((PyObject *)self);                                                                                    \
        PyObject_GC_UnTrack(self);                                                                                                         \
        clear_##kind(self);                                                                                                                \
        end;                                                                                                                               \
        PyObject_GC_Del(self);                                                                                                             \
        Py_DECREF(type);                                                                                                                   \
    }

#endif
