/*
 * What the code that cffi generates needs of Python's stable ABI (3.11), declared here
 * so that the extension can be built where Python's own headers are not installed
 * (Debian and its kin keep them in python3-dev). setup.py adds this folder only then.
 *
 * All of it is in the list of the stable ABI, docs.python.org/3/c-api/stable.html: these
 * are functions of the interpreter that keep their shape for all of Python 3. If a newer
 * cffi uses one more, the compiler says which (-Werror), and it is to be added here.
 */
#ifndef SANDBOXLIB_STABLE_ABI_H
#define SANDBOXLIB_STABLE_ABI_H

#if !defined(Py_LIMITED_API) || defined(Py_GIL_DISABLED)
#error "these declarations serve the limited API only: install Python's headers"
#endif

#include "pyconfig.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

typedef struct _object PyObject;
typedef struct _ts PyThreadState;
typedef ssize_t Py_ssize_t;

#define PY_VERSION_HEX 0x030b00f0
#define PyAPI_FUNC(type) extern type
#define PyAPI_DATA(type) extern type
#define PyMODINIT_FUNC __attribute__((visibility("default"))) PyObject *

PyAPI_FUNC(int) PyArg_UnpackTuple(PyObject *, const char *, Py_ssize_t, Py_ssize_t, ...);

PyAPI_FUNC(PyObject *) PyBool_FromLong(long);
PyAPI_FUNC(PyObject *) PyFloat_FromDouble(double);
PyAPI_FUNC(double) PyFloat_AsDouble(PyObject *);
PyAPI_FUNC(PyObject *) PyLong_FromLong(long);
PyAPI_FUNC(PyObject *) PyLong_FromLongLong(long long);
PyAPI_FUNC(PyObject *) PyLong_FromUnsignedLong(unsigned long);
PyAPI_FUNC(PyObject *) PyLong_FromUnsignedLongLong(unsigned long long);
PyAPI_FUNC(PyObject *) PyLong_FromVoidPtr(void *);

PyAPI_FUNC(PyObject *) PyErr_Occurred(void);
PyAPI_FUNC(void) Py_FatalError(const char *) __attribute__((noreturn));

PyAPI_FUNC(PyObject *) PyImport_ImportModule(const char *);
PyAPI_FUNC(PyObject *) PyObject_CallMethod(PyObject *, const char *, const char *, ...);

PyAPI_FUNC(void *) PyObject_Malloc(size_t);
PyAPI_FUNC(void) PyObject_Free(void *);

PyAPI_FUNC(PyThreadState *) PyEval_SaveThread(void);
PyAPI_FUNC(void) PyEval_RestoreThread(PyThreadState *);
#define Py_BEGIN_ALLOW_THREADS { PyThreadState *sbx_thread = PyEval_SaveThread();
#define Py_END_ALLOW_THREADS PyEval_RestoreThread(sbx_thread); }

/* The functions, not the macros: how an object counts its references is not part of the ABI. */
PyAPI_FUNC(void) Py_IncRef(PyObject *);
PyAPI_FUNC(void) Py_DecRef(PyObject *);
PyAPI_DATA(PyObject) _Py_NoneStruct;
#define Py_INCREF(object) Py_IncRef((PyObject *)(object))
#define Py_DECREF(object) Py_DecRef((PyObject *)(object))
#define Py_XINCREF(object) Py_IncRef((PyObject *)(object))
#define Py_XDECREF(object) Py_DecRef((PyObject *)(object))
#define Py_None (&_Py_NoneStruct)

#endif
