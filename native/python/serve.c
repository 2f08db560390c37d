/* The serving end: a call comes in, its handler is begun, its result goes out. */
#include "python/path.h"

/* zcrpc.context.Served. */
static PyObject *surroundings(struct connection *c, const struct zc_event *event, PyObject *plan) {
    PyObject *served = PyList_New(7), *until = PyFloat_FromDouble(event->deadline_ms ? zc_now() + event->deadline_ms / 1000.0 : 0),
             *stream = PyLong_FromUnsignedLong(event->stream);
    if (!served || !until || !stream) {
        Py_XDECREF(served);
        Py_XDECREF(until);
        Py_XDECREF(stream);
        return NULL;
    }
    PyObject *items[] = {c->caller, plan, until, zc_names.nothing, Py_None, Py_False, stream};
    for (Py_ssize_t i = 0; i < 7; i++) {
        if (items[i] != until && items[i] != stream)
            Py_INCREF(items[i]);
        PyList_SetItem(served, i, items[i]);
    }
    return served;
}

/* The long way, which Python has written down. */
static int begin_any(struct connection *c, const struct zc_event *event, PyObject **coroutine, PyObject **served) {
    PyObject *header = zc_event_header(c->reactor, event), *payload = zc_event_payload(c->reactor, event), *result = NULL;
    if (header && payload)
        result = PyObject_CallMethod((PyObject *)c, "begin", "IIIOO", event->stream, event->method, event->deadline_ms, header, payload);
    Py_XDECREF(header);
    Py_XDECREF(payload);
    if (!result)
        return -1;
    if (result == Py_None) {
        Py_DECREF(result);
        return 0;
    }
    *coroutine = result;
    *served = Py_NewRef(c->begun ? c->begun : Py_None);
    return 1;
}

static int called(struct connection *c, uint32_t stream, PyObject *around, PyObject *result, PyObject **coroutine, PyObject **served) {
    if (result && (PyObject *)Py_TYPE(result) == zc_names.coroutine) {
        *coroutine = result;
        *served = around;
        return 1;
    }
    int failed = result ? zc_reply(c, stream, around, result) : zc_fail(c, stream, around);
    Py_XDECREF(result);
    Py_DECREF(around);
    return failed;
}

static int begin_only(struct connection *c, const struct zc_event *event, const struct only *only, PyObject *entry, PyObject **coroutine,
                      PyObject **served) {
    PyObject *plan = PyTuple_GetItem(entry, 0), *handler = PyTuple_GetItem(entry, 1);
    PyObject *take = plan && handler ? PyObject_GetAttr(plan, zc_names.sole) : NULL;
    if (!take)
        return -1;
    Py_DECREF(take); /* a type */
    if (take == Py_None)
        return begin_any(c, event, coroutine, served);
    PyObject *argument = zc_only_value(only, take == (PyObject *)&PyMemoryView_Type);
    PyObject *around = argument ? surroundings(c, event, plan) : NULL;
    if (!around) {
        Py_XDECREF(argument);
        return -1;
    }
    c->requests++;
    Py_INCREF(handler);
    PyObject *result = PyObject_CallFunctionObjArgs(handler, argument, NULL);
    Py_DECREF(handler);
    Py_DECREF(argument);
    return called(c, event->stream, around, result, coroutine, served);
}

int zc_begin(struct connection *c, const struct zc_event *event, PyObject **coroutine, PyObject **served) {
    const unsigned char *data = c->reactor->batch->data;
    struct only only = {0};
    if (!c->careful && event->stream && c->handlers && c->server && c->caller)
        only = zc_only(data + event->header, event->header_length, data + event->payload, event->payload_length, true);
    int full = only.how ? zc_is_true(c->server, zc_names.full) : 0;
    if (full < 0)
        return -1;
    if (!only.how || full)
        return begin_any(c, event, coroutine, served);
    PyObject *method = PyLong_FromUnsignedLong(event->method), *entry = method ? PyDict_GetItemWithError(c->handlers, method) : NULL;
    Py_XDECREF(method);
    if (!entry)
        return PyErr_Occurred() ? -1 : begin_any(c, event, coroutine, served);
    Py_INCREF(entry);
    int begun = begin_only(c, event, &only, entry, coroutine, served);
    Py_DECREF(entry);
    return begun;
}

int zc_expire(struct connection *c, uint32_t stream) {
    c->requests++;
    return zc_done(PyObject_CallMethod((PyObject *)c, "expired", "Is", stream, "the deadline passed before the call was begun"));
}

int zc_reply(struct connection *c, uint32_t stream, PyObject *served, PyObject *result) {
    int sent = 0;
    PyObject *context = PyList_GetItem(served, 4); /* zcrpc.context.CONTEXT: there may be metadata to be sent along */
    if (context == Py_None && c->reactor) {
        struct zc_frame frame = {.kind = ZC_RESPONSE, .stream = stream};
        sent = zc_send_only(c, &frame, result, false);
    }
    if (sent < 0 || !context)
        return -1;
    if (sent)
        return zc_outbox_filled(c->reactor);
    return zc_done(PyObject_CallMethod((PyObject *)c, "reply", "IOO", stream, served, result));
}

int zc_fail(struct connection *c, uint32_t stream, PyObject *served) {
    if (!PyErr_ExceptionMatches(PyExc_Exception) && !PyErr_ExceptionMatches(zc_names.cancelled_error))
        return -1;
    PyObject *error = zc_raised();
    int failed = zc_done(PyObject_CallMethod((PyObject *)c, "fail_with", "IOO", stream, error, served));
    Py_DECREF(error);
    return failed;
}
