/* A method of a typed client, where it is called as most are: with arguments by position, and a timeout at most. In every other case, and
 * where the call is made within another or there are interceptors, the function that Python has written down for it is called. */
#include "python/path.h"

/* The descriptor, in the class. */
struct verb {
    PyObject_HEAD PyObject *function, *name, *converter, *idempotent;
};

/* What is called: the verb of an object. */
struct bound {
    PyObject_HEAD struct verb *verb;
    PyObject *proxy;
};

PyTypeObject *zc_bound_type;

/* ---- a call ---- */

/* The timeout, if that is all there is by keyword; NULL without an exception: there is more. Borrowed. */
static PyObject *only_timeout(PyObject *keywords) {
    Py_ssize_t count = keywords ? PyDict_Size(keywords) : 0;
    return !count ? Py_None : count == 1 ? PyDict_GetItemWithError(keywords, zc_names.timeout) : NULL;
}

/* 1: nothing has to be put around a call; 0: something has; -1: an exception. */
static int is_bare(PyObject *client) {
    PyObject *proceed = PyObject_GetAttr(client, zc_names._proceed);
    PyObject *scope = proceed == Py_None ? PyObject_CallFunctionObjArgs(zc_names.get_scope, NULL) : NULL;
    int result = scope ? scope == Py_None : proceed && proceed != Py_None ? 0 : -1;
    Py_XDECREF(proceed);
    Py_XDECREF(scope);
    return result;
}

static PyObject *call_function(struct bound *bound, PyObject *arguments, PyObject *keywords) {
    PyObject *method = PyObject_CallMethod(bound->verb->function, "__get__", "O", bound->proxy);
    PyObject *result = method ? PyObject_Call(method, arguments, keywords) : NULL;
    Py_XDECREF(method);
    return result;
}

static PyObject *call(struct bound *bound, PyObject *arguments, PyObject *keywords) {
    PyObject *timeout = only_timeout(keywords), *channel = NULL;
    PyObject *client = timeout ? PyObject_GetAttr(bound->proxy, zc_names._client) : NULL;
    int bare = client ? is_bare(client) : PyErr_Occurred() ? -1 : 0;
    if (bare == 1 && !(channel = PyObject_GetAttr(client, zc_names._channel)))
        bare = -1;
    Py_XDECREF(client);
    if (bare < 0)
        return NULL;
    if (!bare)
        return call_function(bound, arguments, keywords);
    PyObject *made = zc_call(channel, bound->verb->name, arguments, timeout, bound->verb->converter, bound->verb->idempotent);
    Py_DECREF(channel);
    return made;
}

/* ---- what is called: as a method, to those who look at it ---- */

static PyObject *wrapped(struct bound *bound, void *Py_UNUSED(closure)) {
    return PyObject_CallMethod(bound->verb->function, "__get__", "O", bound->proxy);
}

static PyObject *of_function(struct bound *bound, void *name) {
    return PyObject_GetAttrString(bound->verb->function, name);
}

static PyGetSetDef bound_getters[] = {
    {"__wrapped__", (getter)wrapped, NULL, NULL, NULL},
    {"__name__", (getter)of_function, NULL, NULL, "__name__"},
    {"__qualname__", (getter)of_function, NULL, NULL, "__qualname__"},
    {"__doc__", (getter)of_function, NULL, NULL, "__doc__"},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMemberDef bound_members[] = {{"__self__", T_OBJECT, offsetof(struct bound, proxy), READONLY, NULL}, {NULL, 0, 0, 0, NULL}};

#define OF_BOUND(what) what(verb) what(proxy)
ZC_COLLECTED(bound, OF_BOUND, (void)0)

static PyType_Slot bound_slots[] = {
    {Py_tp_traverse, traverse_bound},
    {Py_tp_clear, clear_bound},
    {Py_tp_dealloc, dealloc_bound},
    {Py_tp_getset, bound_getters},
    {Py_tp_members, bound_members},
    {Py_tp_call, call},
    {0, NULL},
};
PyType_Spec zc_bound_spec = {"zcrpc._path.BoundVerb", sizeof(struct bound), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, bound_slots};

/* ---- the descriptor ---- */

static PyObject *get(struct verb *verb, PyObject *proxy, PyObject *Py_UNUSED(owner)) {
    if (!proxy)
        return Py_NewRef(verb->function);
    struct bound *bound = (struct bound *)PyType_GenericAlloc(zc_bound_type, 0);
    if (!bound)
        return NULL;
    bound->verb = (struct verb *)Py_NewRef((PyObject *)verb);
    bound->proxy = Py_NewRef(proxy);
    return (PyObject *)bound;
}

static PyObject *create(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(keywords)) {
    PyObject *function, *name, *converter, *idempotent;
    if (!PyArg_ParseTuple(args, "OUOO", &function, &name, &converter, &idempotent))
        return NULL;
    struct verb *verb = (struct verb *)PyType_GenericAlloc(type, 0);
    if (!verb)
        return NULL;
    verb->function = Py_NewRef(function);
    verb->name = Py_NewRef(name);
    verb->converter = Py_NewRef(converter);
    verb->idempotent = Py_NewRef(idempotent);
    return (PyObject *)verb;
}

#define OF_VERB(what) what(function) what(name) what(converter) what(idempotent)
ZC_COLLECTED(verb, OF_VERB, (void)0)

static PyType_Slot verb_slots[] = {
    {Py_tp_new, create},           {Py_tp_traverse, traverse_verb}, {Py_tp_clear, clear_verb},
    {Py_tp_dealloc, dealloc_verb}, {Py_tp_descr_get, get},          {0, NULL},
};
PyType_Spec zc_verb_spec = {"zcrpc._path.Verb", sizeof(struct verb), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, verb_slots};
