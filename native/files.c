/* Many small files of one folder, written without the GIL. The module is rayds._files; rayds/storage.py has the same in Python. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

typedef struct {
    PyObject *name; /* bytes */
    Py_buffer data;
} File;

/* Write one file whole. Returns 0, with errno, when that fails. */
static int write_file(int folder, const char *name, const char *data, Py_ssize_t left, int mode) {
    int file;
    do file = openat(folder, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    while (file < 0 && errno == EINTR);
    if (file < 0) return 0;
    while (left > 0) {
        ssize_t written = write(file, data, (size_t)left);
        if (written < 0) {
            if (errno == EINTR) continue;
            int error = errno;
            close(file);
            errno = error;
            return 0;
        }
        data += written;
        left -= written;
    }
    return close(file) == 0 || errno == EINTR; /* then it is closed all the same */
}

/* Take name and data of a pair; 0, with an exception, when it is none. */
static int take_pair(PyObject *pair, File *file) {
    PyObject *name, *data;
    if (!PyArg_ParseTuple(pair, "OO", &name, &data)) return 0;
    if (!PyUnicode_FSConverter(name, &file->name)) return 0;
    if (PyObject_GetBuffer(data, &file->data, PyBUF_SIMPLE) < 0) {
        Py_CLEAR(file->name);
        return 0;
    }
    return 1;
}

PyDoc_STRVAR(write_doc,
"write(folder, files, mode)\n--\n\n"
"Write files, pairs of a name below the folder and bytes; folder: its descriptor. What is there is replaced. Raises OSError.");

static PyObject *write_files(PyObject *self, PyObject *args) {
    int folder, mode;
    PyObject *pairs, *result = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "iO!i", &folder, &PyList_Type, &pairs, &mode)) return NULL;
    Py_ssize_t n = PyList_GET_SIZE(pairs), taken = 0, done = 0;
    File *files = PyMem_New(File, n);
    if (files == NULL) return PyErr_NoMemory();
    while (taken < n && take_pair(PyList_GET_ITEM(pairs, taken), &files[taken])) taken++;
    if (taken == n) {
        int error = 0;
        Py_BEGIN_ALLOW_THREADS
        for (; done < n; done++) {
            if (write_file(folder, PyBytes_AS_STRING(files[done].name), files[done].data.buf, files[done].data.len, mode)) continue;
            error = errno;
            break;
        }
        Py_END_ALLOW_THREADS
        errno = error;
        if (done == n)
            result = Py_NewRef(Py_None);
        else
            PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, PyTuple_GET_ITEM(PyList_GET_ITEM(pairs, done), 0));
    }
    for (Py_ssize_t i = 0; i < taken; i++) {
        Py_DECREF(files[i].name);
        PyBuffer_Release(&files[i].data);
    }
    PyMem_Free(files);
    return result;
}

static PyMethodDef methods[] = {{"write", write_files, METH_VARARGS, write_doc}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "_files", .m_doc = "Many small files.", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__files(void) { return PyModule_Create(&module); }
