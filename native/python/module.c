/* zcrpc._path: see path.h. */
#include "python/path.h"

struct names zc_names;

extern PyType_Spec zc_reactor_spec, zc_connection_spec, zc_pending_spec, zc_call_spec, zc_verb_spec, zc_bound_spec;

/* attribute of a module, or of one of its attributes */
static PyObject *find(const char *module, const char *name, const char *attribute) {
    PyObject *imported = PyImport_ImportModule(module), *found = imported ? PyObject_GetAttrString(imported, name) : NULL;
    Py_XDECREF(imported);
    if (!found || !attribute)
        return found;
    PyObject *result = PyObject_GetAttrString(found, attribute);
    Py_DECREF(found);
    return result;
}

static bool find_names(void) {
#define INTERN(name)                                                                                                                       \
    if (!(zc_names.name = PyUnicode_InternFromString(#name)))                                                                              \
        return false;
    ZC_ATTRIBUTES(INTERN)
    PyObject *encoder_type = find("msgspec.msgpack", "Encoder", NULL), *encoder = encoder_type ? PyObject_CallNoArgs(encoder_type) : NULL;
    Py_XDECREF(encoder_type);
    zc_names.plain_encode = encoder ? PyObject_GetAttrString(encoder, "encode") : NULL;
    Py_XDECREF(encoder);
    return zc_names.plain_encode && (zc_names.nothing = find("zcrpc.metadata", "NOTHING", NULL)) &&
           (zc_names.get_scope = find("zcrpc.context", "SCOPE", "get")) && (zc_names.set_scope = find("zcrpc.context", "SCOPE", "set")) &&
           (zc_names.reset_scope = find("zcrpc.context", "SCOPE", "reset")) &&
           (zc_names.zcrpc_error = find("zcrpc.errors", "ZcrpcError", NULL)) &&
           (zc_names.coroutine = find("types", "CoroutineType", NULL)) &&
           (zc_names.cancelled_error = find("asyncio", "CancelledError", NULL)) &&
           (zc_names.invalid_state = find("asyncio", "InvalidStateError", NULL));
}

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec) {
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type && PyModule_AddType(module, (PyTypeObject *)type))
        Py_CLEAR(type);
    return (PyTypeObject *)type;
}

static int execute(PyObject *module) {
    if (!find_names())
        return -1;
    zc_reactor_type = add_type(module, &zc_reactor_spec);
    zc_connection_type = zc_reactor_type ? add_type(module, &zc_connection_spec) : NULL;
    zc_pending_type = zc_connection_type ? add_type(module, &zc_pending_spec) : NULL;
    zc_call_type = zc_pending_type ? add_type(module, &zc_call_spec) : NULL;
    PyTypeObject *verb = zc_call_type ? add_type(module, &zc_verb_spec) : NULL;
    zc_bound_type = verb ? add_type(module, &zc_bound_spec) : NULL;
    return zc_bound_type && !PyModule_AddIntMacro(module, SUBMIT_FROM) && !PyModule_AddIntMacro(module, INLINE_BELOW) ? 0 : -1;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "zcrpc._path", "The path of a small call.", 0, NULL, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__path(void);
PyMODINIT_FUNC PyInit__path(void) {
    return PyModuleDef_Init(&definition);
}
