/* What a caller awaits: a coroutine, as everybody sees it, that makes one call. Where nothing is out of the ordinary it makes the call itself:
 * begins it when it is awaited first, waits, returns the result. In every other case it awaits Channel.call, which can do everything; and so
 * it does when the call has failed and may be made again. */
#include "python/path.h"

PyTypeObject *zc_call_type;

struct call {
    PyObject_HEAD PyObject *channel, *name, *arguments, *keywords, *timeout, *metadata, *converter, *reader, *idempotent, *wait_for_ready;
    PyObject *until; /* by the loop's time, once it has begun; None: no deadline */
    struct pending *pending;
    PyObject *inner; /* the coroutine that does it instead */
    char state;
};
enum { NEW, WAITING, WITHIN, OVER };

/* ---- as a coroutine: PYGEN_* of the protocol of PyIter_Send ---- */

static PySendResult forward(struct call *call, PyObject *sent, PyObject **out) {
    PyObject *inner = Py_NewRef(call->inner); /* what runs in it may close the call */
    PySendResult how = PyIter_Send(inner, sent, out);
    Py_DECREF(inner);
    if (how != PYGEN_NEXT) {
        call->state = OVER;
        Py_CLEAR(call->inner);
    }
    return how;
}

/* Channel.call does it. `failed`: connection and error of a first attempt, or None. */
static PySendResult delegate(struct call *call, PyObject *failed, PyObject **out) {
    *out = NULL;
    if (call->keywords == Py_None)
        zc_replace(&call->keywords, PyDict_New());
    if (call->keywords)
        call->inner = PyObject_CallMethod(call->channel, "call", "OOOOOOOOOO", call->name, call->arguments, call->keywords, call->until,
                                          call->converter, call->idempotent, call->wait_for_ready, call->metadata, call->reader, failed);
    call->state = call->inner ? WITHIN : OVER;
    return call->inner ? forward(call, Py_None, out) : PYGEN_ERROR;
}

/* 1: the call is under way; 0: it is not of the commonest kind; -1: an exception. */
static int begin(struct call *call) {
    if ((call->keywords != Py_None && PyDict_Size(call->keywords)) || call->metadata != Py_None || call->reader != Py_None)
        return PyErr_Occurred() ? -1 : 0;
    PyObject *connection = PyObject_GetAttr(call->channel, zc_names.only);
    if (!connection || connection == Py_None) {
        Py_XDECREF(connection);
        return connection ? 0 : -1;
    }
    int views = call->converter == Py_None ? 0 : zc_is_true(call->converter, zc_names.views), begun = -1;
    if (views >= 0 && PyObject_TypeCheck(connection, zc_connection_type))
        begun =
            zc_begin_plain((struct connection *)connection, call->name, call->arguments, (uint32_t)views, call->timeout, &call->pending);
    else if (views >= 0)
        PyErr_SetString(PyExc_TypeError, "a channel has connections");
    Py_DECREF(connection);
    return begun;
}

static PySendResult start(struct call *call, PyObject **out) {
    *out = NULL;
    call->state = OVER; /* should it fail */
    if (call->timeout != Py_None) {
        PyObject *until = PyObject_CallMethodObjArgs(call->channel, zc_names.until, call->timeout, NULL);
        if (!until)
            return PYGEN_ERROR;
        zc_replace(&call->until, until);
    }
    int begun = begin(call);
    if (begun < 0)
        return PYGEN_ERROR;
    if (!begun)
        return delegate(call, Py_None, out);
    call->state = WAITING;
    call->pending->awaited = call->pending->blocking = 1;
    *out = Py_NewRef((PyObject *)call->pending);
    return PYGEN_NEXT;
}

static PySendResult fail(struct call *call, PyObject *error, PyObject **out);

/* The answer is there. */
static PySendResult conclude(struct call *call, PyObject **out) {
    PyObject *value = zc_pending_outcome(call->pending), *exact = NULL;
    if (!value) { /* whoever drives it sends None where a task throws */
        PyObject *error = zc_raised();
        PySendResult how = fail(call, error, out);
        Py_DECREF(error);
        return how;
    }
    if (call->converter != Py_None && !(exact = PyObject_GetAttr(call->converter, zc_names.exact)))
        Py_CLEAR(value);
    if (exact && exact != (PyObject *)Py_TYPE(value))
        zc_replace(&value,
                   PyObject_CallMethod((PyObject *)call->pending->connection, "converted", "OOO", call->name, value, call->converter));
    Py_XDECREF(exact);
    call->state = OVER;
    Py_CLEAR(call->pending);
    *out = value;
    return value ? PYGEN_RETURN : PYGEN_ERROR;
}

/* What the garbage collector has taken apart is over. */
static char state_of(struct call *call) {
    if (!call->channel)
        call->state = OVER;
    return call->state;
}

static PySendResult send(struct call *call, PyObject *sent, PyObject **out) {
    *out = NULL;
    switch (state_of(call)) {
    case NEW:
        if (sent == Py_None)
            return start(call, out);
        PyErr_SetString(PyExc_TypeError, "can't send non-None value to a just-started coroutine");
        return PYGEN_ERROR;
    case WAITING:
        if (call->pending->state != PENDING)
            return conclude(call, out);
        PyErr_SetString(PyExc_RuntimeError, "await wasn't used with future");
        return PYGEN_ERROR;
    case WITHIN:
        return forward(call, sent, out);
    default:
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return PYGEN_ERROR;
    }
}

/* ---- failure ---- */

/* Nobody waits any longer for what was begun. */
static int let_go(struct call *call) {
    struct pending *pending = call->pending;
    call->pending = NULL;
    call->state = OVER;
    int failed = zc_done(PyObject_CallMethod((PyObject *)pending->connection, "failed", "O", pending));
    Py_DECREF((PyObject *)pending);
    return failed;
}

/* Whether the call may be made again, should the channel think so. -1: an exception. */
static int is_repeatable(struct call *call, PyObject *error) {
    int known = PyObject_IsInstance(error, zc_names.zcrpc_error);
    return known == 1 ? zc_is_true(call->channel, zc_names.retries) : known;
}

/* It was thrown `error`, which is what the call failed with, or what its task was cancelled with. */
static PySendResult fail(struct call *call, PyObject *error, PyObject **out) {
    PyObject *connection = (PyObject *)call->pending->connection, *failed = PyTuple_Pack(2, connection ? connection : Py_None, error);
    *out = NULL;
    int again = !failed || let_go(call) ? -1 : is_repeatable(call, error);
    PySendResult how = again > 0 ? delegate(call, failed, out) : PYGEN_ERROR;
    if (!again)
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_XDECREF(failed);
    return how;
}

/* What `throw` was given, as one exception. */
static PyObject *as_exception(PyObject *type, PyObject *value, PyObject *trace) {
    if (PyObject_IsInstance(type, PyExc_BaseException) == 1)
        return Py_NewRef(type);
    Py_INCREF(type);
    Py_XINCREF(value);
    PyErr_NormalizeException(&type, &value, &trace);
    Py_XDECREF(type);
    if (value && trace && trace != Py_None)
        PyException_SetTraceback(value, trace);
    return value;
}

static PySendResult throw_into(struct call *call, PyObject *error, PyObject **out) {
    *out = NULL;
    if (state_of(call) == WAITING)
        return fail(call, error, out);
    if (call->state == WITHIN) {
        *out = PyObject_CallMethod(call->inner, "throw", "O", error);
        if (*out)
            return PYGEN_NEXT;
        call->state = OVER;
        Py_CLEAR(call->inner);
        return PYGEN_ERROR; /* StopIteration has the result, if there is one */
    }
    call->state = OVER;
    PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    return PYGEN_ERROR;
}

static PyObject *throw_method(struct call *call, PyObject *args) {
    PyObject *type, *value = NULL, *trace = NULL, *out;
    if (!PyArg_ParseTuple(args, "O|OO", &type, &value, &trace))
        return NULL;
    PyObject *error = as_exception(type, value == Py_None ? NULL : value, trace);
    if (!error)
        return NULL;
    PySendResult how = throw_into(call, error, &out);
    Py_DECREF(error);
    return zc_as_iterator(how, out);
}

static PyObject *send_method(struct call *call, PyObject *sent) {
    PyObject *out;
    PySendResult how = send(call, sent, &out);
    return zc_as_iterator(how, out);
}

static PyObject *next(struct call *call) {
    return send_method(call, Py_None);
}

static PyObject *close_method(struct call *call, PyObject *Py_UNUSED(ignored)) {
    if (state_of(call) == WAITING && let_go(call))
        return NULL;
    PyObject *inner = call->inner;
    call->state = OVER;
    call->inner = NULL;
    int failed = inner ? zc_done(PyObject_CallMethod(inner, "close", NULL)) : 0;
    Py_XDECREF(inner);
    return failed ? NULL : Py_NewRef(Py_None);
}

static PyObject *await(PyObject *call) {
    return Py_NewRef(call);
}

/* ---- the type ---- */

#define OBJECTS(what)                                                                                                                      \
    what(channel) what(name) what(arguments) what(keywords) what(timeout) what(metadata) what(converter) what(reader) what(idempotent)     \
        what(wait_for_ready) what(until) what(pending) what(inner)

/* It dies before it is over. */
static void abandon(struct call *call) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    int failed =
        call->state == WAITING ? let_go(call) : PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "the call of %S() was never awaited", call->name);
    if (failed)
        PyErr_WriteUnraisable(call->name);
    PyErr_Restore(type, value, trace);
}

ZC_COLLECTED(call, OBJECTS, (void)0)

static void end_call(struct call *call) {
    PyObject_GC_UnTrack(call); /* `abandon` runs Python, and so perhaps the garbage collector, which must not meet it half dead */
    if (call->name && (call->state == NEW || call->state == WAITING))
        abandon(call);
    dealloc_call(call);
}

static struct call *allocate(PyTypeObject *type, PyObject *const values[10]) {
    struct call *call = (struct call *)PyType_GenericAlloc(type, 0);
    if (!call)
        return NULL;
    PyObject **into[] = {&call->channel,   &call->name,   &call->arguments,  &call->keywords,       &call->timeout,
                         &call->converter, &call->reader, &call->idempotent, &call->wait_for_ready, &call->metadata};
    for (int i = 0; i < 10; i++)
        *into[i] = Py_NewRef(values[i]);
    call->until = Py_NewRef(Py_None);
    return call;
}

PyObject *zc_call(PyObject *channel, PyObject *name, PyObject *arguments, PyObject *timeout, PyObject *converter, PyObject *idempotent) {
    PyObject *values[10] = {channel, name, arguments, Py_None, timeout, converter, Py_None, idempotent, Py_None, Py_None};
    return (PyObject *)allocate(zc_call_type, values);
}

/* Call(channel, name, arguments, keywords, timeout, result, reader, idempotent, wait_for_ready, metadata) */
static PyObject *create(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(keywords)) {
    if (PyTuple_Size(args) != 10 || !PyTuple_Check(PyTuple_GetItem(args, 2)) || !PyDict_Check(PyTuple_GetItem(args, 3)))
        return PyErr_Format(PyExc_TypeError, "Call() takes what zcrpc/_path.pyi says");
    PyObject *values[10];
    for (int i = 0; i < 10; i++)
        values[i] = PyTuple_GetItem(args, i);
    return (PyObject *)allocate(type, values);
}

static PyMemberDef members[] = {
    {"__name__", T_OBJECT, offsetof(struct call, name), READONLY, NULL},
    {"__qualname__", T_OBJECT, offsetof(struct call, name), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyMethodDef methods[] = {
    {"send", (PyCFunction)(void *)send_method, METH_O, NULL},
    {"throw", (PyCFunction)(void *)throw_method, METH_VARARGS, NULL},
    {"close", (PyCFunction)(void *)close_method, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot slots[] = {
    {Py_tp_new, create},
    {Py_tp_traverse, traverse_call},
    {Py_tp_clear, clear_call},
    {Py_tp_dealloc, end_call},
    {Py_tp_members, members},
    {Py_tp_methods, methods},
    {Py_am_await, await},
    {Py_am_send, send},
    {Py_tp_iter, await},
    {Py_tp_iternext, next},
    {0, NULL},
};
PyType_Spec zc_call_spec = {"zcrpc._path.Call", sizeof(struct call), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots};
