/* The module, and what its functions share. */

#include "jsonscan.h"
#include "json.h"

locale_t c_locale;

/* Whether all ranges lie in the data, which is so small that 32 bits count all that is in it. */
static int in_bounds(Py_ssize_t size, const int64_t *starts, const int64_t *ends, Py_ssize_t n) {
    if (size > INT32_MAX / 2) return 0;
    for (Py_ssize_t i = 0; i < n; i++)
        if (starts[i] < 0 || ends[i] < starts[i] || ends[i] > size) return 0;
    return 1;
}

PyObject *rooms(const Py_ssize_t *counts, const size_t *sizes, int n) {
    PyObject *made = PyTuple_New(n);
    for (int i = 0; made != NULL && i < n; i++) {
        PyObject *room = PyByteArray_FromStringAndSize(NULL, counts[i] * (Py_ssize_t)sizes[i]);
        if (room != NULL)
            PyTuple_SET_ITEM(made, i, room);
        else
            Py_CLEAR(made);
    }
    return made;
}

PyObject *with_records(PyObject *args, Parse parse) {
    Py_buffer data, starts, ends;
    if (!PyArg_ParseTuple(args, "y*y*y*", &data, &starts, &ends)) return NULL;
    PyObject *result = NULL;
    Py_ssize_t n = starts.len / (Py_ssize_t)sizeof(int64_t);
    if (starts.len != ends.len || starts.len % (Py_ssize_t)sizeof(int64_t))
        PyErr_SetString(PyExc_ValueError, "starts and ends must be as many int64");
    else if (!in_bounds(data.len, starts.buf, ends.buf, n))
        PyErr_SetString(PyExc_ValueError, "records that are not in the data, or data of 1 GiB and more");
    else
        result = parse(data.buf, starts.buf, ends.buf, n);
    PyBuffer_Release(&data);
    PyBuffer_Release(&starts);
    PyBuffer_Release(&ends);
    return result;
}

static PyMethodDef methods[] = {{"scan", scan, METH_VARARGS, scan_doc},
                                {"annotations", annotations, METH_VARARGS, annotations_doc},
                                {"images", images, METH_VARARGS, images_doc},
                                {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "_jsonscan", .m_doc = "Hot loops of reading JSON.", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__jsonscan(void) {
    c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (c_locale == (locale_t)0) return PyErr_SetFromErrno(PyExc_OSError);
    return PyModule_Create(&module);
}
