/* A call that waits for its answer. It is what its caller awaits: a future, as asyncio's tasks see it, that knows its call.
 *
 * A future of asyncio has its task woken by the loop, in the next round. Here answers come in batches, and when one is done the tasks that
 * wait for its answers are woken one after the other: the same order, the same context, and no task is current, as when the loop does it.
 * What is not answered in a batch (cancellation, deadlines, loss) is told through the loop. */
#include "python/path.h"

PyTypeObject *zc_pending_type;

/* ---- waking ---- */

static int run_callback(PyObject *callback, PyObject *context, PyObject *argument) {
    return zc_done(PyObject_CallMethodObjArgs(context, zc_names.run, callback, argument, NULL));
}

/* By the loop, in its next round. */
static int call_soon(struct reactor *r, PyObject *callback, PyObject *context, PyObject *argument) {
    PyObject *call = PyObject_GetAttr(r->loop, zc_names.call_soon), *result = NULL;
    PyObject *arguments = call ? PyTuple_Pack(2, callback, argument) : NULL;
    PyObject *keywords = arguments ? PyDict_New() : NULL;
    if (keywords && !PyDict_SetItem(keywords, zc_names.context, context))
        result = PyObject_Call(call, arguments, keywords);
    Py_XDECREF(call);
    Py_XDECREF(arguments);
    Py_XDECREF(keywords);
    return zc_done(result);
}

/* A call that the garbage collector has taken apart has none: an exception. */
static struct reactor *reactor_of(const struct pending *p) {
    struct reactor *r = p->connection ? p->connection->reactor : NULL;
    if (!r || !r->loop)
        PyErr_SetString(zc_names.invalid_state, "the call's connection is gone");
    return r && r->loop ? r : NULL;
}

static int finish(struct pending *p, char state, PyObject *value) {
    p->state = state;
    p->value = Py_XNewRef(value);
    if (!p->callback)
        return 0;
    struct reactor *r = reactor_of(p);
    if (!r)
        return -1;
    if (r->dispatching && r->answered && PyList_Check(r->answered) && state != CANCELLED)
        return PyList_Append(r->answered, (PyObject *)p);
    PyObject *callback = p->callback, *context = p->context;
    p->callback = p->context = NULL;
    int failed = call_soon(r, callback, context, (PyObject *)p);
    Py_DECREF(callback);
    Py_DECREF(context);
    return failed;
}

/* At once, or by the loop of `later`. */
static int wake(struct pending *p, struct reactor *later) {
    PyObject *callback = p->callback, *context = p->context;
    if (!callback)
        return 0;
    p->callback = p->context = NULL;
    int failed = later ? call_soon(later, callback, context, (PyObject *)p) : run_callback(callback, context, (PyObject *)p);
    Py_DECREF(callback);
    Py_DECREF(context);
    return failed;
}

/* Tells those who wait for what was answered in this batch. On an exception, which ends the loop, the others are left to it. */
int zc_wake_answered(struct reactor *r) {
    PyObject *answered = r->answered, *type = NULL, *value = NULL, *trace = NULL;
    Py_ssize_t count = answered ? PyList_Size(answered) : 0;
    PyObject *fresh = count > 0 ? PyList_New(0) : NULL;
    if (!fresh)
        return count || PyErr_Occurred() ? -1 : 0;
    r->answered = fresh;
    for (Py_ssize_t i = 0; i < PyList_Size(answered); i++) {
        struct pending *p = (struct pending *)PyList_GetItem(answered, i);
        if (Py_TYPE((PyObject *)p) != zc_pending_type)
            continue;
        if (!type && wake(p, NULL))
            PyErr_Fetch(&type, &value, &trace);
        else if (type && wake(p, r))
            PyErr_WriteUnraisable((PyObject *)p);
    }
    Py_DECREF(answered);
    PyErr_Restore(type, value, trace);
    return type ? -1 : 0;
}

/* ---- an answer ---- */

/* The long way, which Python has written down. */
static int answer_any(struct connection *c, const struct zc_event *event) {
    PyObject *header = zc_event_header(c->reactor, event), *payload = zc_event_payload(c->reactor, event), *result = NULL;
    if (header && payload)
        result = PyObject_CallMethod((PyObject *)c, "response", "IOO", event->stream, header, payload);
    Py_XDECREF(header);
    Py_XDECREF(payload);
    return zc_done(result);
}

static int forget_deadline(struct pending *p, struct reactor *r) {
    PyObject *tick = PyLong_FromUnsignedLongLong(p->tick), *done = NULL;
    if (tick)
        done = PyObject_CallMethodObjArgs(r->deadlines, zc_names.discard, tick, (PyObject *)p, NULL);
    Py_XDECREF(tick);
    p->tick = 0;
    return zc_done(done);
}

static int answer_with(struct connection *c, PyObject *stream, struct pending *p, const struct only *only, bool none) {
    bool view = only->how == ZC_SOLE_BUFFER || (only->how == ZC_SOLE_BYTES && p->buffers != BUFFERS_ARE_BYTES);
    PyObject *value = none ? Py_NewRef(Py_None) : zc_only_value(only, view);
    int failed = value ? PyDict_DelItem(c->pending, stream) : -1;
    if (!failed && p->state == PENDING)
        failed = finish(p, DONE, value);
    if (!failed && p->tick) /* last: it is Python, which a signal may interrupt */
        failed = forget_deadline(p, c->reactor);
    Py_XDECREF(value);
    return failed;
}

int zc_answer(struct connection *c, const struct zc_event *event) {
    PyObject *stream = PyLong_FromUnsignedLong(event->stream);
    PyObject *found = stream && c->pending ? PyDict_GetItemWithError(c->pending, stream) : NULL;
    int failed = -1;
    if (!found) {
        failed = PyErr_Occurred() ? -1 : c->pending ? 0 : answer_any(c, event); /* too late, or nonsense: nothing is lost by ignoring it */
    } else {
        const unsigned char *data = c->reactor->batch->data;
        struct only only = zc_only(data + event->header, event->header_length, data + event->payload, event->payload_length, false);
        bool none = !event->header_length && !event->payload_length;
        Py_ssize_t waiting = c->waiting ? PyObject_Size(c->waiting) : 0;
        struct pending *p = (struct pending *)Py_NewRef(found);
        if (waiting >= 0)
            failed =
                (only.how || none) && !waiting && !(c->streams && c->streams != Py_None) && Py_TYPE(found) == zc_pending_type && !p->sink
                    ? answer_with(c, stream, p, &only, none)
                    : answer_any(c, event);
        Py_DECREF((PyObject *)p);
    }
    Py_XDECREF(stream);
    return failed;
}

/* ---- as a future ---- */

PyObject *zc_pending_outcome(struct pending *p) {
    if (p->state == DONE)
        return Py_NewRef(p->value);
    if (p->state == FAILED && p->value) {
        PyObject *error = p->value; /* told once: its traceback will lead to frames that hold this call */
        p->value = NULL;
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
    } else if (p->state == CANCELLED)
        PyErr_SetObject(zc_names.cancelled_error, p->message && p->message != Py_None ? p->message : NULL);
    else
        PyErr_SetString(zc_names.invalid_state, "the call has no answer yet");
    return NULL;
}

static PyObject *result(struct pending *p, PyObject *Py_UNUSED(ignored)) {
    return zc_pending_outcome(p);
}

static PyObject *exception(struct pending *p, PyObject *Py_UNUSED(ignored)) {
    if (p->state == FAILED)
        return Py_NewRef(p->value ? p->value : Py_None);
    PyObject *value = zc_pending_outcome(p);
    Py_XDECREF(value);
    return value ? Py_NewRef(Py_None) : NULL;
}

/* What a sink is asked instead; NULL with an exception. */
static PyObject *ask_sink(struct pending *p, const char *name, PyObject *argument) {
    return argument ? PyObject_CallMethod(p->sink, name, "(O)", argument) : PyObject_CallMethod(p->sink, name, NULL);
}

static PyObject *done(struct pending *p, PyObject *Py_UNUSED(ignored)) {
    return p->sink ? ask_sink(p, "done", NULL) : PyBool_FromLong(p->state != PENDING);
}

static PyObject *cancelled(struct pending *p, PyObject *Py_UNUSED(ignored)) {
    return PyBool_FromLong(p->state == CANCELLED);
}

static PyObject *end(struct pending *p, char state, const char *name, PyObject *value) {
    if (p->sink)
        return ask_sink(p, name, value);
    if (p->state != PENDING) {
        PyErr_SetString(zc_names.invalid_state, "the call is over");
        return NULL;
    }
    return finish(p, state, value) ? NULL : Py_NewRef(Py_None);
}

static PyObject *set_result(struct pending *p, PyObject *value) {
    return end(p, DONE, "set_result", value);
}

static PyObject *set_exception(struct pending *p, PyObject *value) {
    if (PyObject_IsInstance(value, PyExc_BaseException) == 1)
        return end(p, FAILED, "set_exception", value);
    return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "an exception is wanted, not %R", value);
}

static PyObject *cancel(struct pending *p, PyObject *args, PyObject *keywords) {
    static char *names[] = {"msg", NULL};
    PyObject *message = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|O", names, &message))
        return NULL;
    if (p->sink || p->state != PENDING)
        Py_RETURN_FALSE;
    p->message = Py_NewRef(message);
    return finish(p, CANCELLED, NULL) ? NULL : Py_NewRef(Py_True);
}

/* add_done_callback(callback, *, context) */
static PyObject *add_done_callback(struct pending *p, PyObject *const *args, Py_ssize_t count, PyObject *names) {
    bool given = names && PyTuple_Size(names) == 1 && PyUnicode_Compare(PyTuple_GetItem(names, 0), zc_names.context) == 0;
    if (count != 1 || (names && PyTuple_Size(names) && !given))
        return PyErr_Format(PyExc_TypeError, "add_done_callback(callback, *, context)");
    PyObject *callback = args[0], *context = given ? args[1] : NULL;
    if (p->callback || !context) {
        PyErr_SetString(PyExc_RuntimeError, "a call is awaited by one task");
        return NULL;
    }
    struct reactor *r = reactor_of(p);
    if (!r)
        return NULL;
    if (p->state != PENDING)
        return call_soon(r, callback, context, (PyObject *)p) ? NULL : Py_NewRef(Py_None);
    p->callback = Py_NewRef(callback);
    p->context = Py_NewRef(context);
    Py_RETURN_NONE;
}

static PyObject *remove_done_callback(struct pending *p, PyObject *callback) {
    int same = p->callback ? PyObject_RichCompareBool(p->callback, callback, Py_EQ) : 0;
    if (same < 0)
        return NULL;
    if (same) {
        Py_CLEAR(p->callback);
        Py_CLEAR(p->context);
    }
    return PyLong_FromLong(same);
}

static PyObject *get_loop(struct pending *p, PyObject *Py_UNUSED(ignored)) {
    struct reactor *r = reactor_of(p);
    return r ? Py_NewRef(r->loop) : NULL;
}

/* The deadline has passed: the connection knows what that means. */
static PyObject *expire(struct pending *p, PyObject *Py_UNUSED(ignored)) {
    p->tick = 0;
    return !reactor_of(p) ? NULL : PyObject_CallMethodObjArgs((PyObject *)p->connection, zc_names.expired, (PyObject *)p, NULL);
}

/* ---- as an awaitable ---- */

static PyObject *await(PyObject *p) {
    return Py_NewRef(p);
}

static PySendResult send(struct pending *p, PyObject *Py_UNUSED(sent), PyObject **out) {
    if (p->state == PENDING && p->awaited) {
        PyErr_SetString(PyExc_RuntimeError, "await wasn't used with future");
        *out = NULL;
        return PYGEN_ERROR;
    }
    if (p->state == PENDING) {
        p->awaited = p->blocking = 1;
        *out = Py_NewRef((PyObject *)p);
        return PYGEN_NEXT;
    }
    *out = zc_pending_outcome(p);
    return *out ? PYGEN_RETURN : PYGEN_ERROR;
}

PyObject *zc_as_iterator(PySendResult how, PyObject *out) {
    if (how != PYGEN_RETURN)
        return out;
    PyObject *stop = PyObject_CallFunctionObjArgs(PyExc_StopIteration, out, NULL);
    if (stop)
        PyErr_SetObject(PyExc_StopIteration, stop);
    Py_XDECREF(stop);
    Py_DECREF(out);
    return NULL;
}

/* `send` once more, for debuggers and tracers, in whose presence Python does not ask it. */
static PyObject *next(struct pending *p) {
    PyObject *out;
    PySendResult how = send(p, Py_None, &out);
    return zc_as_iterator(how, out);
}

/* ---- the type ---- */

#define OBJECTS(what) what(connection) what(reader) what(sink) what(value) what(callback) what(context) what(message)

ZC_COLLECTED(pending, OBJECTS, (void)0)

struct pending *zc_pending(PyTypeObject *type, struct connection *c, uint32_t stream, uint32_t buffers, PyObject *reader) {
    struct pending *p = NULL;
    if (!c->reactor)
        PyErr_SetString(PyExc_ValueError, "a connection without a reactor");
    else
        p = (struct pending *)PyType_GenericAlloc(type, 0);
    if (!p)
        return NULL;
    p->connection = (struct connection *)Py_NewRef((PyObject *)c);
    p->stream = stream;
    p->buffers = buffers;
    p->reader = reader == Py_None ? NULL : Py_NewRef(reader);
    return p;
}

static PyObject *create(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    static char *names[] = {"connection", "stream", "buffers", "reader", NULL};
    PyObject *connection, *reader = Py_None;
    unsigned int stream, buffers;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!II|O", names, zc_connection_type, &connection, &stream, &buffers, &reader))
        return NULL;
    return (PyObject *)zc_pending(type, (struct connection *)connection, stream, buffers, reader);
}

#define MEMBER(name, type, flags)                                                                                                          \
    { #name, type, offsetof(struct pending, name), flags, NULL }
static PyMemberDef members[] = {
    MEMBER(connection, T_OBJECT, READONLY),
    MEMBER(reader, T_OBJECT, READONLY),
    MEMBER(sink, T_OBJECT, 0),
    MEMBER(tick, T_ULONGLONG, 0),
    MEMBER(token, T_ULONGLONG, 0),
    MEMBER(stream, T_UINT, READONLY),
    MEMBER(buffers, T_UINT, READONLY),
    {"_asyncio_future_blocking", T_BOOL, offsetof(struct pending, blocking), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};
#define METHOD(name, flags)                                                                                                                \
    { #name, (PyCFunction)(void *)name, flags, NULL }
static PyMethodDef methods[] = {
    METHOD(done, METH_NOARGS),
    METHOD(cancelled, METH_NOARGS),
    METHOD(result, METH_NOARGS),
    METHOD(exception, METH_NOARGS),
    METHOD(set_result, METH_O),
    METHOD(set_exception, METH_O),
    METHOD(cancel, METH_VARARGS | METH_KEYWORDS),
    METHOD(add_done_callback, METH_FASTCALL | METH_KEYWORDS),
    METHOD(remove_done_callback, METH_O),
    METHOD(get_loop, METH_NOARGS),
    METHOD(expire, METH_NOARGS),
    {NULL, NULL, 0, NULL},
};
static PyType_Slot slots[] = {
    {Py_tp_new, create},
    {Py_tp_traverse, traverse_pending},
    {Py_tp_clear, clear_pending},
    {Py_tp_dealloc, dealloc_pending},
    {Py_tp_members, members},
    {Py_tp_methods, methods},
    {Py_am_await, await},
    {Py_am_send, send},
    {Py_tp_iter, await},
    {Py_tp_iternext, next},
    {0, NULL},
};
PyType_Spec zc_pending_spec = {"zcrpc._path.Pending", sizeof(struct pending), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots};
