/* One end of a connection: what is looked at for each call, and how the calling end begins one. */
#include "python/path.h"

#include <math.h>

PyTypeObject *zc_connection_type;

/* ---- a call is begun ---- */

static bool is_none(PyObject *value) {
    return !value || value == Py_None;
}

/* Whether a call can be begun at once. -1: an exception. */
static int is_open(struct connection *c) {
    if (!c->reactor || !c->pending || !c->methods || !is_none(c->ended) || !is_none(c->draining))
        return 0;
    Py_ssize_t waiting = c->waiting ? PyObject_Size(c->waiting) : 0, calls = PyDict_Size(c->pending);
    if (waiting < 0 || calls < 0)
        return -1;
    return !waiting && (uint64_t)calls + c->granted < c->in_flight;
}

/* A number that no call in flight has; *key: as an object. 0: an exception. */
static uint32_t next_stream(struct connection *c, PyObject **key) {
    uint32_t stream = c->last_stream;
    do {
        stream = stream < UINT32_MAX ? stream + 1 : 1;
        *key = PyLong_FromUnsignedLong(stream);
        if (!*key)
            return 0;
        if (!PyDict_GetItemWithError(c->pending, *key))
            break;
        Py_CLEAR(*key);
    } while (true);
    if (PyErr_Occurred())
        Py_CLEAR(*key);
    return *key ? stream : 0;
}

/* Milliseconds that are told to the server; 0: none are left, or too many, or it is no number. */
static uint32_t milliseconds(double seconds) {
    double result = ceil(seconds * 1000);
    return result >= 1 && result <= UINT32_MAX ? (uint32_t)result : 0;
}

static int set_deadline(struct pending *p, PyObject *seconds) {
    PyObject *tick = PyObject_CallMethodObjArgs(p->connection->reactor->deadlines, zc_names.add, seconds, (PyObject *)p, NULL);
    if (!tick)
        return -1;
    p->tick = PyLong_AsUnsignedLongLong(tick);
    Py_DECREF(tick);
    return PyErr_Occurred() ? -1 : 0;
}

/* 1: sent; 0: it is another shape; -1: an exception. */
static int send(struct connection *c, struct pending *p, PyObject *key, struct zc_frame *frame, PyObject *arguments, PyObject *seconds) {
    int sent = zc_send_only(c, frame, arguments, true);
    if (sent <= 0)
        return sent;
    c->requests++;
    c->last_stream = p->stream;
    if (PyDict_SetItem(c->pending, key, (PyObject *)p))
        return -1;
    if ((seconds == Py_None || !set_deadline(p, seconds)) && !zc_outbox_filled(c->reactor))
        return 1;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    if (PyDict_DelItem(c->pending, key))
        PyErr_Clear();
    PyErr_Restore(type, value, trace);
    return -1;
}

int zc_begin_plain(struct connection *c, PyObject *name, PyObject *arguments, uint32_t buffers, PyObject *seconds, struct pending **out) {
    struct zc_frame frame = {.kind = ZC_REQUEST};
    if (seconds != Py_None)
        frame.deadline_ms = milliseconds(PyFloat_AsDouble(seconds));
    int open = PyErr_Occurred() ? -1 : is_open(c);
    PyObject *method = open == 1 ? PyDict_GetItemWithError(c->methods, name) : NULL, *key = NULL;
    if (PyErr_Occurred())
        return -1;
    if (!method || (seconds != Py_None && !frame.deadline_ms))
        return 0;
    frame.method = (uint16_t)PyLong_AsUnsignedLong(method);
    frame.stream = next_stream(c, &key);
    if (!frame.stream)
        return -1;
    struct pending *p = zc_pending(zc_pending_type, c, frame.stream, buffers, Py_None);
    int sent = p ? send(c, p, key, &frame, arguments, seconds) : -1;
    Py_DECREF(key);
    if (sent == 1)
        *out = p;
    else
        Py_XDECREF((PyObject *)p);
    return sent;
}

static PyObject *reply_plain(struct connection *c, PyObject *const *args, Py_ssize_t count) {
    struct zc_frame frame = {.kind = ZC_RESPONSE, .stream = count == 2 ? (uint32_t)PyLong_AsUnsignedLong(args[0]) : 0};
    if (PyErr_Occurred())
        return NULL;
    if (count != 2 || !c->reactor)
        return PyErr_Format(PyExc_TypeError, "reply_plain(stream, result)");
    int sent = zc_send_only(c, &frame, args[1], false);
    if (sent < 0 || (sent && zc_outbox_filled(c->reactor)))
        return NULL;
    return PyBool_FromLong(sent);
}

/* The number of a call that Python sends. */
static PyObject *take_stream(struct connection *c, PyObject *Py_UNUSED(ignored)) {
    PyObject *key = NULL;
    if (!c->pending)
        return PyErr_Format(PyExc_ValueError, "the serving end begins no calls");
    uint32_t stream = next_stream(c, &key);
    if (stream)
        c->last_stream = stream;
    return key;
}

/* ---- the type ---- */

#define OBJECTS(what)                                                                                                                      \
    what(reactor) what(begun) what(ended) what(streams) what(server) what(handlers) what(caller) what(pending) what(methods)               \
        what(draining) what(waiting)

ZC_COLLECTED(connection, OBJECTS, (void)0)

static PyObject *get_reactor(struct connection *c, void *Py_UNUSED(closure)) {
    return Py_NewRef(c->reactor ? (PyObject *)c->reactor : Py_None);
}

static int set_reactor(struct connection *c, PyObject *value, void *Py_UNUSED(closure)) {
    if (c->reactor || !value || !PyObject_TypeCheck(value, zc_reactor_type)) {
        PyErr_SetString(PyExc_TypeError, "a connection has one reactor");
        return -1;
    }
    c->reactor = (struct reactor *)Py_NewRef(value);
    return 0;
}

#define OBJECT(name)                                                                                                                       \
    { #name, T_OBJECT, offsetof(struct connection, name), 0, NULL }
#define MEMBER(name, type)                                                                                                                 \
    { #name, type, offsetof(struct connection, name), 0, NULL }
static PyMemberDef members[] = {
    OBJECT(begun),
    OBJECT(ended),
    OBJECT(streams),
    OBJECT(server),
    OBJECT(handlers),
    OBJECT(caller),
    OBJECT(pending),
    OBJECT(methods),
    OBJECT(draining),
    OBJECT(waiting),
    MEMBER(number, T_ULONGLONG),
    MEMBER(plain_below, T_ULONGLONG),
    MEMBER(requests, T_ULONGLONG),
    MEMBER(header_limit, T_UINT),
    MEMBER(careful, T_BOOL),
    MEMBER(in_flight, T_UINT),
    MEMBER(granted, T_UINT),
    MEMBER(last_stream, T_UINT),
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef getters[] = {{"reactor", (getter)get_reactor, (setter)set_reactor, NULL, NULL}, {NULL, NULL, NULL, NULL, NULL}};
static PyMethodDef methods[] = {
    {"reply_plain", (PyCFunction)(void *)reply_plain, METH_FASTCALL, NULL},
    {"take_stream", (PyCFunction)(void *)take_stream, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot slots[] = {
    {Py_tp_traverse, traverse_connection},
    {Py_tp_clear, clear_connection},
    {Py_tp_dealloc, dealloc_connection},
    {Py_tp_members, members},
    {Py_tp_getset, getters},
    {Py_tp_methods, methods},
    {0, NULL},
};
PyType_Spec zc_connection_spec = {
    "zcrpc._path.Connection", sizeof(struct connection), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slots,
};
