/* What goes on between the core and the connections of one event loop: a batch of events is gone through, frames are gathered. */
#include "python/path.h"

PyTypeObject *zc_reactor_type;

PyObject *zc_event_header(const struct reactor *r, const struct zc_event *event) {
    return PyBytes_FromStringAndSize((const char *)r->batch->data + event->header, (Py_ssize_t)event->header_length);
}

PyObject *zc_event_payload(const struct reactor *r, const struct zc_event *event) {
    return PyBytes_FromStringAndSize((const char *)r->batch->data + event->payload, (Py_ssize_t)event->payload_length);
}

/* ---- a batch ---- */

/* In whose task and context handlers are begun: a worker of zcrpc.eager. */
struct worker {
    PyObject *context; /* NULL: there is none */
    PyObject *doomed;  /* whether its task is to be cancelled */
    bool seen;         /* nothing ran in it since it was found untouched */
};

/* Whether the next handler could see that there was this one. -1: an exception. */
static int is_touched(struct reactor *r, struct worker *worker) {
    worker->seen = true;
    int differs = PyObject_RichCompareBool(worker->context, r->template, Py_NE);
    if (differs < 0 && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear(); /* values of variables that cannot be compared: no matter of the call's */
        return 1;
    }
    if (differs)
        return differs;
    PyObject *doomed = PyObject_CallFunctionObjArgs(worker->doomed, NULL);
    int result = doomed ? PyObject_IsTrue(doomed) : -1;
    Py_XDECREF(doomed);
    return result;
}

static int reset_scope(PyObject *token) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    int failed = zc_done(PyObject_CallFunctionObjArgs(zc_names.reset_scope, token, NULL));
    if (!failed || type)
        PyErr_Restore(type, value, trace);
    return failed;
}

/* A handler has suspended: what its worker goes on with. `yielded` is taken over. */
static PyObject *suspended(struct connection *c, PyObject *coroutine, PyObject *served, PyObject *token, PyObject *yielded) {
    zc_replace(&c->begun, Py_NewRef(served));
    zc_replace(&c->reactor->begun, Py_NewRef((PyObject *)c));
    PyObject *result = PyTuple_Pack(3, coroutine, yielded, token);
    Py_DECREF(yielded);
    return result;
}

/* Runs a handler's first step. 0, or -1; *stop: the worker is not to be used for the next; NULL in it: it was left as it is not to be. */
static int step(struct reactor *r, struct connection *c, uint32_t stream, struct worker *worker, PyObject *coroutine, PyObject *served,
                bool *stop, PyObject **job) {
    PyObject *result = NULL, *token = PyObject_CallFunctionObjArgs(zc_names.set_scope, served, NULL);
    if (!token)
        return -1;
    PySendResult how = PyIter_Send(coroutine, Py_None, &result);
    if (how == PYGEN_NEXT) {
        *stop = true;
        *job = suspended(c, coroutine, served, token, result);
        Py_DECREF(token);
        return *job ? 0 : -1;
    }
    int failed = reset_scope(token); /* the context equals the template again, if the handler left it alone */
    Py_DECREF(token);
    if (how == PYGEN_ERROR)
        failed = failed ? failed : zc_fail(c, stream, served);
    else if (!failed)
        failed = zc_reply(c, stream, served, result);
    Py_XDECREF(result); /* it may be a payload */
    if (failed)
        return -1;
    int touched = is_touched(r, worker);
    *stop = touched != 0;
    return touched < 0 ? -1 : 0;
}

static int call(struct reactor *r, struct connection *c, const struct zc_event *event, struct worker *worker, bool *stop, PyObject **job) {
    PyObject *coroutine = NULL, *served = NULL;
    int begun = zc_begin(c, event, &coroutine, &served);
    if (begun <= 0)
        return begun;
    int failed;
    if (worker->context)
        failed = step(r, c, event->stream, worker, coroutine, served, stop, job);
    else
        failed = zc_done(PyObject_CallMethod((PyObject *)c, "start_handler", "OOII", coroutine, served, event->stream, event->deadline_ms));
    Py_DECREF(coroutine);
    Py_DECREF(served);
    return failed;
}

/* Everything but small frames of plain calls. */
static int other(struct reactor *r, PyObject *connection, const struct zc_event *event) {
    bool frame = event->kind < ZC_KIND_END;
    PyObject *header = frame ? zc_event_header(r, event) : Py_NewRef(Py_None);
    PyObject *payload = frame && !event->lease ? zc_event_payload(r, event) : Py_NewRef(Py_None);
    PyObject *result = NULL;
    if (header && payload)
        result = PyObject_CallMethod((PyObject *)r, "other", "OIIIIIOOKKK", connection, event->kind, event->flags, event->stream,
                                     event->method, event->deadline_ms, header, payload, (unsigned long long)event->payload,
                                     (unsigned long long)event->payload_length, (unsigned long long)event->lease);
    Py_XDECREF(header);
    Py_XDECREF(payload);
    return zc_done(result);
}

/* One bad event must not keep the others from being dealt with. */
static int give_up(struct reactor *r, PyObject *connection, const struct zc_event *event) {
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return -1;
    PyObject *error = zc_raised();
    int failed = zc_done(PyObject_CallMethod((PyObject *)r, "give_up", "OIO", connection, event->kind, error));
    Py_DECREF(error);
    if (failed && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_WriteUnraisable((PyObject *)r);
        failed = 0;
    }
    return failed;
}

/* What a request's deadline has left, after all that was begun before it. Whether it has passed; then it is a millisecond. */
static bool is_late(const struct reactor *r, struct zc_event *event) {
    if (event->kind != ZC_REQUEST || !event->deadline_ms)
        return false;
    double left = event->deadline_ms - (zc_now() - r->came) * 1000;
    event->deadline_ms = left < 1 ? 1 : left < event->deadline_ms ? (uint32_t)left : event->deadline_ms;
    return left <= 0;
}

static bool may_begin(const struct connection *c, const struct zc_event *event) {
    return !c->careful && event->stream && c->handlers && c->handlers != Py_None;
}

static bool is_ours(const struct reactor *r, PyObject *connection) {
    return PyObject_TypeCheck(connection, zc_connection_type) && ((struct connection *)connection)->reactor == r;
}

static int deal_with(struct reactor *r, struct zc_event *event, struct worker *worker, bool *stop, PyObject **job) {
    PyObject *number = PyLong_FromUnsignedLongLong(event->connection);
    PyObject *connection = number && r->connections ? PyDict_GetItemWithError(r->connections, number) : NULL;
    Py_XDECREF(number);
    if (!connection && PyErr_Occurred())
        return -1;
    Py_INCREF(connection = connection ? connection : Py_None);
    int failed;
    bool late = is_late(r, event), plain = !event->flags && !event->lease && (event->kind == ZC_REQUEST || event->kind == ZC_RESPONSE);
    if (!plain || !is_ours(r, connection))
        failed = event->lease || connection != Py_None ? other(r, connection, event) : 0;
    else if (late && may_begin((struct connection *)connection, event))
        failed = zc_expire((struct connection *)connection, event->stream);
    else if (event->kind == ZC_REQUEST)
        failed = call(r, (struct connection *)connection, event, worker, stop, job);
    else
        failed = zc_answer((struct connection *)connection, event);
    if (failed)
        failed = give_up(r, connection, event);
    Py_DECREF(connection);
    return failed;
}

/* Deals with one event after the other, up to a handler whose worker cannot be used for the next: what that has left to do, or True. None: there
 * are no more, and the worker is as it was. */
static PyObject *go_through(struct reactor *r, struct worker *worker) {
    PyObject *job = NULL;
    bool stop = false;
    while (!stop && r->next < r->count) {
        struct zc_event next = r->batch->events[r->next++];
        if (r->out.frames >= SUBMIT_FROM)
            zc_outbox_submit(r); /* what fails is told by the connections' last events */
        worker->seen = false;
        if (deal_with(r, &next, worker, &stop, &job)) {
            Py_XDECREF(job);
            return NULL;
        }
    }
    if (job)
        return job;
    int touched = stop ? 1 : worker->context && !worker->seen ? is_touched(r, worker) : 0;
    return touched < 0 ? NULL : Py_NewRef(touched ? Py_True : Py_None);
}

/* What tells, while a worker is lent, whether its task is to be cancelled. */
static PyObject *doomed(PyObject *worker) {
    PyObject *parked = PyObject_GetAttr(worker, zc_names.parked);
    PyObject *result = !parked             ? NULL
                       : parked == Py_None ? PyObject_CallMethodObjArgs(worker, zc_names.doomed, NULL)
                                           : PyObject_GetAttr(parked, zc_names.cancelled);
    Py_XDECREF(parked);
    return result;
}

static PyObject *work(struct reactor *r, PyObject *by) {
    struct worker worker = {PyObject_GetAttr(by, zc_names.context), NULL, true};
    worker.doomed = worker.context ? doomed(by) : NULL;
    PyObject *result = worker.doomed ? go_through(r, &worker) : NULL;
    Py_XDECREF(worker.context);
    Py_XDECREF(worker.doomed);
    return result;
}

/* ---- a turn ---- */

static int go_through_all(struct reactor *r) {
    struct worker nobody = {NULL, NULL, false};
    if (r->runner && r->runner != Py_None)
        return zc_done(PyObject_CallMethodObjArgs(r->runner, zc_names.work_through, (PyObject *)r, NULL));
    return zc_done(go_through(r, &nobody));
}

static int flush(struct reactor *r) {
    if (!r->unsent || !PyList_Check(r->unsent) || !PyList_Size(r->unsent))
        return zc_outbox_submit(r), 0;
    return zc_done(PyObject_CallMethodObjArgs((PyObject *)r, zc_names.flush, NULL));
}

/* Does one thing more, whatever was raised before: the first exception is kept. */
static void also(int failed, PyObject *raised[3]) {
    if (failed && raised[0])
        PyErr_WriteUnraisable(NULL);
    else if (failed)
        PyErr_Fetch(&raised[0], &raised[1], &raised[2]);
}

/* Goes through a batch. An exception, be it KeyboardInterrupt or SystemExit, ends the loop; but no lease may be lost, and nobody forgotten. */
static int dispatch(struct reactor *r) {
    PyObject *raised[3] = {NULL, NULL, NULL};
    char scheduled = r->submits;
    r->submits = r->dispatching = 1; /* nobody needs to be woken to submit: that is done below */
    also(go_through_all(r), raised);
    if (r->next < r->count)
        also(zc_done(PyObject_CallMethodObjArgs((PyObject *)r, zc_names.release_rest, NULL)), raised);
    r->dispatching = 0;
    also(zc_wake_answered(r), raised); /* what they then send is submitted with the rest */
    r->submits = scheduled;
    if (r->core)
        also(flush(r), raised);
    if (!raised[0])
        return 0;
    PyErr_Restore(raised[0], raised[1], raised[2]);
    return -1;
}

/* Does what is ready. Whether there was anything. */
static PyObject *turn(struct reactor *r, PyObject *Py_UNUSED(ignored)) {
    int64_t code = 0;
    if (r->core && !r->dispatching) {
        Py_BEGIN_ALLOW_THREADS code = r->calls.poll(r->core, 0);
        Py_END_ALLOW_THREADS
    }
    if (code < 0 && zc_done(PyObject_CallMethod((PyObject *)r, "failed", "i", (int)-code)))
        return NULL;
    if (code <= 0)
        Py_RETURN_FALSE;
    r->batch = r->calls.batch(r->core, (uint32_t)(code >> 32));
    r->next = 0;
    r->count = (uint32_t)code;
    r->came = zc_now();
    return dispatch(r) ? NULL : Py_NewRef(Py_True);
}

/* The leases of what was not gone through. */
static PyObject *rest(struct reactor *r, PyObject *Py_UNUSED(ignored)) {
    PyObject *leases = PyList_New(0);
    for (; leases && r->next < r->count; r->next++) {
        uint64_t address = r->batch->events[r->next].lease;
        PyObject *lease = address ? PyLong_FromUnsignedLongLong(address) : NULL;
        if (address && (!lease || PyList_Append(leases, lease)))
            Py_CLEAR(leases);
        Py_XDECREF(lease);
    }
    return leases;
}

/* ---- out ---- */

static PyObject *frame(struct reactor *r, PyObject *args) {
    unsigned long long connection;
    unsigned int kind, flags, method, stream, deadline_ms;
    Py_buffer header;
    PyObject *buffers;
    if (!PyArg_ParseTuple(args, "KIIIIIy*O!", &connection, &kind, &flags, &method, &stream, &deadline_ms, &header, &PyTuple_Type, &buffers))
        return NULL;
    Py_ssize_t count = PyTuple_Size(buffers), i;
    uint64_t length = 0;
    Py_buffer *pieces = PyMem_Calloc((size_t)count + 1, sizeof *pieces);
    unsigned char *at = NULL;
    if (!pieces)
        PyErr_NoMemory();
    for (i = 0; pieces && i < count; i++) {
        if (PyObject_GetBuffer(PyTuple_GetItem(buffers, i), &pieces[i], PyBUF_SIMPLE))
            break;
        length += (uint64_t)pieces[i].len;
    }
    struct zc_frame head = {(uint8_t)kind, (uint8_t)flags, (uint16_t)method, stream, (uint32_t)header.len, deadline_ms, length};
    if (pieces && i == count)
        at = zc_outbox_frame(&r->out, connection, &head, (size_t)header.len + length);
    if (at && header.len)
        memcpy(at, header.buf, (size_t)header.len);
    if (at)
        at += header.len;
    while (i-- > 0) {
        length -= (uint64_t)pieces[i].len;
        if (at && pieces[i].len)
            memcpy(at + length, pieces[i].buf, (size_t)pieces[i].len);
        PyBuffer_Release(&pieces[i]);
    }
    PyMem_Free(pieces);
    PyBuffer_Release(&header);
    if (!at || zc_outbox_filled(r))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *submit(struct reactor *r, PyObject *Py_UNUSED(ignored)) {
    return PyLong_FromLong(zc_outbox_submit(r));
}

/* drive(core, poll, batch, submit) */
static PyObject *drive(struct reactor *r, PyObject *args) {
    unsigned long long core, poll, batch, submit_;
    if (!PyArg_ParseTuple(args, "KKKK", &core, &poll, &batch, &submit_))
        return NULL;
    r->core = (struct zc_reactor *)(uintptr_t)core;
    r->calls.poll = (int64_t(*)(struct zc_reactor *, int))(uintptr_t)poll;
    r->calls.batch = (const struct zc_batch *(*)(struct zc_reactor *, uint32_t))(uintptr_t)batch;
    r->calls.submit = (int (*)(struct zc_reactor *, const void *, uint64_t))(uintptr_t)submit_;
    if (!core) {
        zc_outbox_drop(&r->out);
        r->batch = NULL;
        r->next = r->count = 0;
    }
    Py_RETURN_NONE;
}

/* ---- the type ---- */

#define OBJECTS(what)                                                                                                                      \
    what(connections) what(loop) what(codec) what(deadlines) what(template) what(runner) what(unsent) what(begun) what(answered)

ZC_COLLECTED(reactor, OBJECTS, zc_outbox_drop(&self->out))

static PyObject *get_frames(struct reactor *r, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLong(r->out.frames);
}

#define OBJECT(name) {#name, T_OBJECT, offsetof(struct reactor, name), 0, NULL},
static PyMemberDef members[] = {
    OBJECTS(OBJECT){"submits", T_BOOL, offsetof(struct reactor, submits), 0, NULL},
    {"dispatching", T_BOOL, offsetof(struct reactor, dispatching), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef getters[] = {{"frames", (getter)get_frames, NULL, NULL, NULL}, {NULL, NULL, NULL, NULL, NULL}};
static PyMethodDef methods[] = {
    {"drive", (PyCFunction)(void *)drive, METH_VARARGS, NULL},
    {"frame", (PyCFunction)(void *)frame, METH_VARARGS, NULL},
    {"submit_frames", (PyCFunction)(void *)submit, METH_NOARGS, NULL},
    {"turn", (PyCFunction)(void *)turn, METH_NOARGS, NULL},
    {"work", (PyCFunction)(void *)work, METH_O, NULL},
    {"rest", (PyCFunction)(void *)rest, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot slots[] = {
    {Py_tp_traverse, traverse_reactor},
    {Py_tp_clear, clear_reactor},
    {Py_tp_dealloc, dealloc_reactor},
    {Py_tp_members, members},
    {Py_tp_getset, getters},
    {Py_tp_methods, methods},
    {0, NULL},
};
PyType_Spec zc_reactor_spec = {
    "zcrpc._path.Reactor", sizeof(struct reactor), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slots,
};
