/* The hot loops of reading JSON of annotations, which run without the GIL. The module is rayds.formats._jsonscan.
 *
 * scan.c: where the records are in a window of a file; formats/_records.py has the same in NumPy, and all that goes with it.
 *
 * annotations.c, images.c: plain COCO records as columns. All that is not plain (escapes, wrong types, broken JSON, ...) is left
 * to the caller, so there are no errors to tell; formats/coco says what becomes of it.
 */

#ifndef RAYDS_JSONSCAN_H
#define RAYDS_JSONSCAN_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Call parse with arguments of Python: data, starts, ends (int64), and their number. */
typedef PyObject *(*Parse)(const char *data, const int64_t *starts, const int64_t *ends, Py_ssize_t n);

PyObject *with_records(PyObject *args, Parse parse);
/* A tuple of n bytearrays, each of counts[i] times sizes[i] bytes. */
PyObject *rooms(const Py_ssize_t *counts, const size_t *sizes, int n);

PyObject *scan(PyObject *self, PyObject *args);
PyObject *annotations(PyObject *self, PyObject *args);
PyObject *images(PyObject *self, PyObject *args);
extern const char scan_doc[], annotations_doc[], images_doc[];

#endif
