/* The commonest headers: of one value, or of arguments without buffers. zcrpc/codec.py says what headers are; it would read and write the
 * same. */
#include "python/path.h"

#include <endian.h>

/* As msgpack. */
#define ARRAY_OF_ONE 0x91
#define BIN_8 0xc4
#define BIN_16 0xc5

/* ---- in ---- */

static struct only within(const unsigned char *header, uint32_t length) {
    struct only only = {0};
    if (length >= 3 && header[1] == BIN_8 && length == 3u + header[2])
        only = (struct only){header + 3, header[2], ONLY_INLINE};
    else if (length >= 4 && header[1] == BIN_16 && length == 4u + (((uint32_t)header[2] << 8) | header[3]))
        only = (struct only){header + 4, length - 4, ONLY_INLINE};
    return only;
}

struct only zc_only(const unsigned char *header, uint32_t header_length, const unsigned char *payload, uint64_t payload_length, bool call) {
    if (call) {
        if (!header_length || *header != ARRAY_OF_ONE)
            return (struct only){0};
        header++;
        header_length--;
    }
    unsigned how = zc_sole_decode(header, header_length, payload_length);
    if (how)
        return (struct only){payload, payload_length, how};
    if (payload_length || !header_length || *header != ARRAY_OF_ONE)
        return (struct only){0};
    return within(header, header_length);
}

PyObject *zc_only_value(const struct only *only, bool view) {
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)only->bytes, (Py_ssize_t)only->length);
    if (!view || !bytes)
        return bytes;
    PyObject *result = PyMemoryView_FromObject(bytes);
    Py_DECREF(bytes);
    return result;
}

/* ---- out ---- */

static int send_inline(struct connection *c, struct zc_frame *frame, const char *bytes, size_t length, bool call) {
    size_t head = (call ? 1 : 0) + (length < 256 ? 3 : 4);
    frame->header_length = (uint32_t)(head + length);
    unsigned char *at = zc_outbox_frame(&c->reactor->out, c->number, frame, head + length);
    if (!at)
        return -1;
    if (call)
        *at++ = ARRAY_OF_ONE;
    *at++ = ARRAY_OF_ONE;
    if (length < 256) {
        *at++ = BIN_8;
    } else {
        *at++ = BIN_16;
        *at++ = (unsigned char)(length >> 8);
    }
    *at++ = (unsigned char)length;
    memcpy(at, bytes, length);
    return 1;
}

static int send_sole(struct connection *c, struct zc_frame *frame, const void *bytes, size_t length, unsigned char how, bool call) {
    if (length >= c->plain_below)
        return 0;
    frame->header_length = ZC_SOLE_SIZE + call;
    frame->payload_length = length;
    unsigned char *at = zc_outbox_frame(&c->reactor->out, c->number, frame, frame->header_length + length);
    if (!at)
        return -1;
    if (call)
        *at++ = ARRAY_OF_ONE;
    zc_sole_encode(at, how, length);
    if (length)
        memcpy(at + ZC_SOLE_SIZE, bytes, length);
    return 1;
}

static int send_view(struct connection *c, struct zc_frame *frame, PyObject *view, bool call) {
    Py_buffer buffer;
    if (PyObject_GetBuffer(view, &buffer, PyBUF_SIMPLE)) {
        PyErr_Clear(); /* not contiguous, or released */
        return 0;
    }
    int sent = send_sole(c, frame, buffer.buf, (size_t)buffer.len, ZC_SOLE_BUFFER, call);
    PyBuffer_Release(&buffer);
    return sent;
}

static bool is_plain(PyObject *value) {
    PyTypeObject *type = Py_TYPE(value);
    return type == &PyLong_Type || type == &PyUnicode_Type || type == &PyFloat_Type || type == &PyBool_Type || value == Py_None ||
           (type == &PyBytes_Type && PyBytes_Size(value) < INLINE_BELOW);
}

/* `values`: what the header is an array of; a reference to it is taken over. */
static int send_encoded(struct connection *c, struct zc_frame *frame, PyObject *values) {
    PyObject *header = values ? PyObject_CallFunctionObjArgs(zc_names.plain_encode, values, NULL) : NULL;
    Py_XDECREF(values);
    char *bytes;
    Py_ssize_t length;
    if (!header || PyBytes_AsStringAndSize(header, &bytes, &length)) {
        Py_XDECREF(header);
        PyErr_Clear(); /* the way that deals with everything will say what is wrong */
        return 0;
    }
    int sent = 0;
    if (length <= (Py_ssize_t)c->header_limit) {
        frame->header_length = (uint32_t)length;
        unsigned char *at = zc_outbox_frame(&c->reactor->out, c->number, frame, (size_t)length);
        if (at)
            memcpy(at, bytes, (size_t)length);
        sent = at ? 1 : -1;
    }
    Py_DECREF(header);
    return sent;
}

static int send_arguments(struct connection *c, struct zc_frame *frame, PyObject *arguments, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++)
        if (!is_plain(PyTuple_GetItem(arguments, i)))
            return 0;
    if (!count)
        return zc_outbox_frame(&c->reactor->out, c->number, frame, 0) ? 1 : -1;
    return send_encoded(c, frame, PyTuple_Pack(1, arguments));
}

int zc_send_only(struct connection *c, struct zc_frame *frame, PyObject *value, bool call) {
    PyObject *only = value;
    if (call) {
        Py_ssize_t count = PyTuple_Size(value);
        only = count == 1 ? PyTuple_GetItem(value, 0) : NULL;
        if (count < 0 || (count == 1 && !only))
            return -1;
        if (!only)
            return send_arguments(c, frame, value, count);
    }
    if (Py_TYPE(only) == &PyBytes_Type) {
        size_t length = (size_t)PyBytes_Size(only);
        const char *bytes = PyBytes_AsString(only);
        return length < INLINE_BELOW ? send_inline(c, frame, bytes, length, call) : send_sole(c, frame, bytes, length, ZC_SOLE_BYTES, call);
    }
    if (Py_TYPE(only) == &PyMemoryView_Type)
        return send_view(c, frame, only, call);
    if (only == Py_None && !call)
        return zc_outbox_frame(&c->reactor->out, c->number, frame, 0) ? 1 : -1;
    if (!is_plain(only))
        return 0;
    return send_encoded(c, frame, PyTuple_Pack(1, value));
}
