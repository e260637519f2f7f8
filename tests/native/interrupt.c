/*
 * Makes the interpreter run a signal's handler wherever it would run one at all.
 *
 * CPython runs handlers only between instructions, and only after some of them. While this traces, a signal
 * is always waiting: so its handler, which is written in C here, is called at every such place, once for
 * each time that it is passed. It counts, and raises at the one that is to be tried. No signal is sent:
 * PyErr_SetInterruptEx does what the C handler of one does.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

static int number;
static PyObject *raised, *seen, *at_code;
static long at_lasti, at_visit;

static int trace(PyObject *self, PyFrameObject *frame, int what, PyObject *arg)
{
	(void)self;
	(void)arg;
	if (what == PyTrace_CALL)
		return PyObject_SetAttrString((PyObject *)frame, "f_trace_opcodes", Py_True);
	if (what == PyTrace_OPCODE)
		PyErr_SetInterruptEx(number);
	return 0;
}

/* handler(number, frame), for signal.signal. */
static PyObject *handler(PyObject *module, PyObject *args)
{
	PyObject *frame, *code, *site;
	int n, hit, lasti;

	(void)module;
	if (!PyArg_ParseTuple(args, "iO", &n, &frame))
		return NULL;
	if (frame == Py_None || !(seen || at_code))
		Py_RETURN_NONE;
	code = (PyObject *)PyFrame_GetCode((PyFrameObject *)frame);
	lasti = PyFrame_GetLasti((PyFrameObject *)frame);
	if (seen) {
		site = Py_BuildValue("(Oi)", code, lasti);
		if (!site || PyList_Append(seen, site) < 0) {
			Py_XDECREF(site);
			Py_DECREF(code);
			return NULL;
		}
		Py_DECREF(site);
	}
	hit = code == at_code && lasti == at_lasti && --at_visit == 0;
	Py_DECREF(code);
	if (!hit)
		Py_RETURN_NONE;
	PyEval_SetTrace(NULL, NULL);
	Py_CLEAR(at_code);
	PyErr_SetObject((PyObject *)Py_TYPE(raised), raised);
	return NULL;
}

/* watch(number): every place where the handler runs from now on is known to end(). */
static PyObject *watch(PyObject *module, PyObject *arg)
{
	(void)module;
	number = (int)PyLong_AsLong(arg);
	if (number == -1 && PyErr_Occurred())
		return NULL;
	seen = PyList_New(0);
	if (!seen)
		return NULL;
	PyEval_SetTrace(trace, NULL);
	Py_RETURN_NONE;
}

/* strike(number, exception, code, lasti, visit): raise it the visit-th time that this place is passed. */
static PyObject *strike(PyObject *module, PyObject *args)
{
	PyObject *exception, *code;

	(void)module;
	if (!PyArg_ParseTuple(args, "iOOll", &number, &exception, &code, &at_lasti, &at_visit))
		return NULL;
	Py_INCREF(exception);
	Py_XSETREF(raised, exception);
	Py_INCREF(code);
	Py_XSETREF(at_code, code);
	PyEval_SetTrace(trace, NULL);
	Py_RETURN_NONE;
}

/* end(): no longer; the places that were seen, each as (code, offset), or None. */
static PyObject *end(PyObject *module, PyObject *unused)
{
	PyObject *found = seen ? seen : Py_NewRef(Py_None);

	(void)module;
	(void)unused;
	PyEval_SetTrace(NULL, NULL);
	seen = NULL;
	Py_CLEAR(at_code);
	return found;
}

static PyMethodDef methods[] = {
	{ "handler", handler, METH_VARARGS, NULL },
	{ "watch", watch, METH_O, NULL },
	{ "strike", strike, METH_VARARGS, NULL },
	{ "end", end, METH_NOARGS, NULL },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT, "interrupt", "Interruptions at every place.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_interrupt(void);

PyMODINIT_FUNC PyInit_interrupt(void)
{
	return PyModule_Create(&definition);
}
