/* The Python side of the event ring and the enforcer: types Ring and Enforcer of akbox._native. Argument checking and the
 * GIL only; what happens is in ring.c, enforce.c, notify.c and upcall.c. */
#include "module.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "notify.h"

struct ring_object {
	PyObject_HEAD
	struct ak_ring *ring;           /* NULL once closed */
	unsigned users;                 /* Enforcers that write to it; closing is refused meanwhile */
};

struct enforcer_object {
	PyObject_HEAD
	struct ak_enforcer *enforcer;
	PyObject *policy;
	PyObject *names;                /* Names, or NULL */
	struct ring_object *ring;
	bool started;
	bool stopped;
};

static PyObject *os_error(int error)
{
	errno = error;
	return PyErr_SetFromErrno(PyExc_OSError);
}

static void free_object(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
	Py_DECREF(type);
}

/* ---- Ring -------------------------------------------------------------------------------------------------------- */

static PyTypeObject *ring_type;         /* for the Enforcer's argument check; set once when the module is made */

static struct ak_ring *ring_of(PyObject *self)
{
	struct ak_ring *ring = ((struct ring_object *)self)->ring;
	if (!ring)
		PyErr_SetString(PyExc_ValueError, "the ring is closed");
	return ring;
}

static int ring_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"fd", "size", "run", NULL};
	struct ring_object *r = (struct ring_object *)self;
	int fd;
	Py_ssize_t size, run_len;
	const char *run;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iny#", names, &fd, &size, &run, &run_len))
		return -1;
	if (r->ring || run_len != 16 || size <= 0) {
		PyErr_SetString(PyExc_ValueError, "Ring: made once, of a positive size, with a run id of 16 bytes");
		return -1;
	}
	r->ring = ak_ring_open(fd, (size_t)size, (const uint8_t *)run);
	return r->ring ? 0 : (os_error(errno), -1);
}

static PyObject *ring_read(PyObject *self, PyObject *arg)
{
	struct ak_ring *ring = ring_of(self);
	Py_ssize_t cap = PyLong_AsSsize_t(arg);
	if (!ring || (cap == -1 && PyErr_Occurred()))
		return NULL;
	if (cap < (Py_ssize_t)AK_EVENT_MAX)
		return PyErr_Format(PyExc_ValueError, "max_bytes must be at least %u, the longest record", AK_EVENT_MAX);
	if (!ak_ring_waiting(ring))
		return PyBytes_FromStringAndSize(NULL, 0);
	char *buf = malloc((size_t)cap);
	if (!buf)
		return PyErr_NoMemory();
	size_t n = ak_ring_peek(ring, buf, (size_t)cap);
	PyObject *result = PyBytes_FromStringAndSize(buf, (Py_ssize_t)n);
	free(buf);
	return result;
}

static PyObject *ring_consume(PyObject *self, PyObject *arg)
{
	struct ak_ring *ring = ring_of(self);
	Py_ssize_t n = PyLong_AsSsize_t(arg);
	if (!ring || (n == -1 && PyErr_Occurred()))
		return NULL;
	if (n < 0 || ak_ring_consume(ring, (size_t)n) < 0) {
		PyErr_SetString(PyExc_ValueError, "n_bytes is not the end of a record that was read");
		return NULL;
	}
	Py_RETURN_NONE;
}

static PyObject *ring_wait(PyObject *self, PyObject *arg)
{
	struct ak_ring *ring = ring_of(self);
	int ms = (int)PyLong_AsLong(arg);
	bool any;
	if (!ring || (ms == -1 && PyErr_Occurred()))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	any = ak_ring_wait(ring, ms < 0 ? 0 : ms);
	Py_END_ALLOW_THREADS
	return PyBool_FromLong(any);
}

static PyObject *ring_put(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"op", "decision", "need", "tgid", "tid", "nr", "error", "rule", "arg", "target", "target2", NULL};
	struct ak_ring *ring = ring_of(self);
	unsigned op, decision, need;
	int tgid, tid, nr, error, result;
	long long rule;
	unsigned long long arg;
	const char *target, *target2;
	Py_ssize_t target_len, target2_len;
	if (!ring || !PyArg_ParseTupleAndKeywords(args, kwargs, "IIIiiiiLKy#y#", names, &op, &decision, &need, &tgid, &tid, &nr,
						  &error, &rule, &arg, &target, &target_len, &target2, &target2_len))
		return NULL;
	if (op == AK_EVENT_PAD || op > UINT16_MAX || decision > AK_ASK || memchr(target, 0, (size_t)target_len) ||
	    memchr(target2, 0, (size_t)target2_len)) {
		PyErr_SetString(PyExc_ValueError, "not an event: op 1..65535, decision 0..2, targets without NUL");
		return NULL;
	}
	struct ak_event e = {
		.op = (uint16_t)op, .decision = (uint8_t)decision, .need = (uint8_t)need,
		.tgid = tgid, .tid = tid, .nr = nr, .error = error,
		.rule = rule < 0 ? AK_NO_RULE : (uint32_t)rule, .arg = arg,
	};
	Py_BEGIN_ALLOW_THREADS
	result = ak_ring_put(ring, &e, target, target2);
	Py_END_ALLOW_THREADS
	if (result < 0)
		return os_error(EPIPE);
	Py_RETURN_NONE;
}

static PyObject *ring_shut(PyObject *self, PyObject *unused)
{
	struct ak_ring *ring = ring_of(self);
	(void)unused;
	if (!ring)
		return NULL;
	ak_ring_shut(ring);
	Py_RETURN_NONE;
}

static PyObject *ring_close(PyObject *self, PyObject *unused)
{
	struct ring_object *r = (struct ring_object *)self;
	(void)unused;
	if (r->users) {
		PyErr_SetString(PyExc_RuntimeError, "an Enforcer that was not stopped still writes to this ring");
		return NULL;
	}
	if (r->ring)
		ak_ring_close(r->ring);
	r->ring = NULL;
	Py_RETURN_NONE;
}

static void ring_dealloc(PyObject *self)
{
	struct ring_object *r = (struct ring_object *)self;
	if (r->ring)
		ak_ring_close(r->ring);
	free_object(self);
}

static PyMethodDef ring_methods[] = {
	{"read", ring_read, METH_O, "Whole records, without consuming them."},
	{"consume", ring_consume, METH_O, "Give the space of the first n bytes read back."},
	{"wait", ring_wait, METH_O, "Block until there is a record or the time, in ms, is over."},
	{"put", (PyCFunction)(void (*)(void))ring_put, METH_VARARGS | METH_KEYWORDS, "Write one event."},
	{"shut", ring_shut, METH_NOARGS, "Refuse every later event; ends wait()."},
	{"close", ring_close, METH_NOARGS, "Unmap the file."},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot ring_slots[] = {
	{Py_tp_doc, "Ring(fd, size, run): the event ring over an empty file opened for reading and writing."},
	{Py_tp_new, PyType_GenericNew},
	{Py_tp_init, ring_init},
	{Py_tp_dealloc, ring_dealloc},
	{Py_tp_methods, ring_methods},
	{0, NULL},
};

static PyType_Spec ring_spec = {
	.name = "akbox._native.Ring",
	.basicsize = sizeof(struct ring_object),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = ring_slots,
};

/* ---- Enforcer ---------------------------------------------------------------------------------------------------- */

static struct ak_enforcer *enforcer_of(PyObject *self)
{
	struct enforcer_object *o = (struct enforcer_object *)self;
	if (!o->enforcer || o->stopped) {
		PyErr_SetString(PyExc_ValueError, "the enforcer is stopped");
		return NULL;
	}
	return o->enforcer;
}

static int enforcer_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"policy", "ring", "main_pid", "tracer_tid", "flags", "refusals", "names", NULL};
	struct enforcer_object *o = (struct enforcer_object *)self;
	PyObject *policy, *ring;
	int main_pid = 0, tracer_tid = 0;
	unsigned flags = 0;
	const char *pairs = NULL, *cells = "";
	Py_ssize_t pairs_len = 0, cells_len = 0;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO!|$iiIy#y#", names, &policy, ring_type, &ring, &main_pid, &tracer_tid,
					 &flags, &pairs, &pairs_len, &cells, &cells_len))
		return -1;
	struct ak_enforcer_config config = {
		.policy = ak_py_policy_get(policy),
		.main_pid = main_pid,
		.tracer_tid = tracer_tid,
		.supervisor_pid = getpid(),
		.flags = flags,
	};
	config.ring = ring_of(ring);
	if (!config.policy || !config.ring)
		return -1;
	if (o->enforcer || main_pid <= 0 || !pairs || pairs_len % 8 || cells_len % AK_NAME_BYTES) {
		PyErr_SetString(PyExc_ValueError, "Enforcer: made once, with main_pid, refusals as pairs of u32 and names as cells of 32 bytes");
		return -1;
	}
	uint32_t *refusals = malloc((size_t)pairs_len + 1);
	if (!refusals) {
		PyErr_NoMemory();
		return -1;
	}
	memcpy(refusals, pairs, (size_t)pairs_len);
	o->enforcer = ak_enforcer_new(&config, refusals, (size_t)pairs_len / 8);
	int error = errno;
	free(refusals);
	if (o->enforcer && !ak_enforcer_set_names(o->enforcer, cells, (size_t)cells_len / AK_NAME_BYTES)) {
		ak_enforcer_free(o->enforcer);
		o->enforcer = NULL;
		error = ENOMEM;
	}
	if (!o->enforcer) {
		os_error(error);
		return -1;
	}
	Py_INCREF(policy);
	Py_INCREF(ring);
	o->policy = policy;
	o->ring = (struct ring_object *)ring;
	o->ring->users++;
	return 0;
}

static PyObject *enforcer_start(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"listener_fd", "threads", NULL};
	struct ak_enforcer *e = enforcer_of(self);
	int listener, threads, error;
	if (!e || !PyArg_ParseTupleAndKeywords(args, kwargs, "ii", names, &listener, &threads))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	error = ak_notify_start(e, listener, threads < 0 ? 0 : (unsigned)threads);
	Py_END_ALLOW_THREADS
	if (error)
		return os_error(-error);
	Py_RETURN_NONE;
}

/* The tracer holds its tracee in a ptrace stop; nobody else can let it go. */
static bool always_valid(void *ctx)
{
	(void)ctx;
	return true;
}

static PyObject *enforcer_serve(PyObject *self, PyObject *args)
{
	struct ak_enforcer *e = enforcer_of(self);
	struct ak_stop stop = {.still_valid = always_valid};
	struct ak_outcome out = {.fd = -1};
	PyObject *list;
	int error, may_block;
	if (!e || !PyArg_ParseTuple(args, "iIiOp", &stop.tid, &stop.arch, &stop.nr, &list, &may_block))
		return NULL;
	for (int i = 0; i < 6; i++) {
		PyObject *item = PySequence_GetItem(list, i);
		if (!item)
			return NULL;
		stop.args[i] = PyLong_AsUnsignedLongLongMask(item);
		Py_DECREF(item);
	}
	if (PyErr_Occurred())
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	error = ak_enforcer_serve(e, &stop, may_block, &out);
	Py_END_ALLOW_THREADS
	if (error)
		return os_error(-error);
	return Py_BuildValue("(iLiN)", (int)out.kind, (long long)out.value, out.fd, PyBool_FromLong(out.cloexec));
}

static PyObject *enforcer_set_kernel_reads(PyObject *self, PyObject *arg)
{
	struct ak_enforcer *e = enforcer_of(self);
	char *bits;
	Py_ssize_t bytes;
	if (!e || PyBytes_AsStringAndSize(arg, &bits, &bytes) < 0)
		return NULL;
	if (!ak_enforcer_set_kernel_reads(e, (const uint8_t *)bits, (size_t)bytes))
		return PyErr_NoMemory();
	Py_RETURN_NONE;
}

static PyObject *enforcer_use_names(PyObject *self, PyObject *arg)
{
	struct enforcer_object *o = (struct enforcer_object *)self;
	struct ak_enforcer *e = enforcer_of(self);
	struct ak_names *names = e ? ak_py_names_get(arg) : NULL;
	if (!names)
		return NULL;
	if (o->names) {
		PyErr_SetString(PyExc_ValueError, "the enforcer has its names already");
		return NULL;
	}
	Py_INCREF(arg);
	o->names = arg;
	e->net_names = names;
	Py_RETURN_NONE;
}

static PyObject *enforcer_may_exec(PyObject *self, PyObject *arg)
{
	struct ak_enforcer *e = enforcer_of(self);
	char *path;
	Py_ssize_t len;
	if (!e || PyBytes_AsStringAndSize(arg, &path, &len) < 0)
		return NULL;
	return PyBool_FromLong(ak_may_exec(e->config.policy, path, (size_t)len) || ak_exec_was_approved(e, path, (size_t)len));
}

static PyObject *enforcer_accepted(PyObject *self, PyObject *args)
{
	struct ak_enforcer *e = enforcer_of(self);
	int tid, nr, fd;
	if (!e || !PyArg_ParseTuple(args, "iii", &tid, &nr, &fd))
		return NULL;
	int error = ak_accepted(e, tid, nr, fd);
	if (error)
		return os_error(-error);
	Py_RETURN_NONE;
}

static PyObject *enforcer_next_upcall(PyObject *self, PyObject *arg)
{
	struct ak_enforcer *e = enforcer_of(self);
	struct ak_upcall u;
	int error, ms = (int)PyLong_AsLong(arg);
	if (ms == -1 && PyErr_Occurred())
		return NULL;
	if (!e) {
		PyErr_SetString(PyExc_EOFError, "the enforcer is stopped");
		return NULL;
	}
	Py_BEGIN_ALLOW_THREADS
	error = ak_upcall_next(e, ms < 0 ? 0 : ms, &u);
	Py_END_ALLOW_THREADS
	if (error == -ETIMEDOUT)
		Py_RETURN_NONE;
	if (error) {
		PyErr_SetString(PyExc_EOFError, "the enforcer is stopped");
		return NULL;
	}
	PyObject *result = Py_BuildValue("(Kiiiy#KI)", (unsigned long long)u.cookie, (int)u.stop.tid, (int)u.tgid, u.nr, u.request,
					 (Py_ssize_t)u.request_len, (unsigned long long)u.resp_cap, u.flags);
	free(u.request);
	return result;
}

static PyObject *enforcer_reply(PyObject *self, PyObject *args)
{
	struct enforcer_object *o = (struct enforcer_object *)self;
	unsigned long long cookie;
	long long value;
	const char *body;
	Py_ssize_t len;
	int error = -ESRCH;
	if (!PyArg_ParseTuple(args, "KLy#", &cookie, &value, &body, &len))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	if (o->enforcer)
		error = ak_upcall_reply(o->enforcer, cookie, value, body, (size_t)len);
	Py_END_ALLOW_THREADS
	return PyBool_FromLong(error == 0);
}

static void stop(struct enforcer_object *o)
{
	if (!o->enforcer || o->stopped)
		return;
	o->stopped = true;
	Py_BEGIN_ALLOW_THREADS
	ak_enforcer_stop(o->enforcer);
	Py_END_ALLOW_THREADS
	o->ring->users--;
}

static PyObject *enforcer_stop(PyObject *self, PyObject *unused)
{
	(void)unused;
	stop((struct enforcer_object *)self);
	Py_RETURN_NONE;
}

static PyObject *enforcer_counters(PyObject *self, PyObject *unused)
{
	struct enforcer_object *o = (struct enforcer_object *)self;
	(void)unused;
	if (!o->enforcer) {
		PyErr_SetString(PyExc_ValueError, "the enforcer was never made");
		return NULL;
	}
	const struct ak_counters *n = &o->enforcer->counters;
	return Py_BuildValue("{sKsKsKsKsKsKsKsK}", "calls", n->calls, "allowed", n->allowed, "denied", n->denied, "continued",
			     n->continued, "installed", n->installed, "blocked", n->blocked, "upcalls", n->upcalls, "gone", n->gone);
}

static void enforcer_dealloc(PyObject *self)
{
	struct enforcer_object *o = (struct enforcer_object *)self;
	stop(o);
	if (o->enforcer)
		ak_enforcer_free(o->enforcer);
	Py_XDECREF(o->policy);
	Py_XDECREF(o->names);
	Py_XDECREF((PyObject *)o->ring);
	free_object(self);
}

static PyMethodDef enforcer_methods[] = {
	{"start", (PyCFunction)(void (*)(void))enforcer_start, METH_VARARGS | METH_KEYWORDS, "Serve a seccomp listener."},
	{"serve", enforcer_serve, METH_VARARGS, "Serve one ptrace stop."},
	{"set_kernel_reads", enforcer_set_kernel_reads, METH_O, "One bit for each rule that Landlock enforces exactly for reading."},
	{"use_names", enforcer_use_names, METH_O, "Judge connects by these names, too, and lead queries to their server."},
	{"may_exec", enforcer_may_exec, METH_O, "May the object with this canonical path be a process's image?"},
	{"accepted", enforcer_accepted, METH_VARARGS, "Record the connection that a stopped task has accepted."},
	{"next_upcall", enforcer_next_upcall, METH_O, "The next call that only Python can answer."},
	{"reply", enforcer_reply, METH_VARARGS, "Answer such a call."},
	{"stop", enforcer_stop, METH_NOARGS, "End the threads and close the listener."},
	{"counters", enforcer_counters, METH_NOARGS, "What was served so far."},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot enforcer_slots[] = {
	{Py_tp_doc, "Enforcer(policy, ring, *, main_pid, tracer_tid, flags, refusals): serves the trapped calls of one run."},
	{Py_tp_new, PyType_GenericNew},
	{Py_tp_init, enforcer_init},
	{Py_tp_dealloc, enforcer_dealloc},
	{Py_tp_methods, enforcer_methods},
	{0, NULL},
};

static PyType_Spec enforcer_spec = {
	.name = "akbox._native.Enforcer",
	.basicsize = sizeof(struct enforcer_object),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = enforcer_slots,
};

int ak_py_enforce_init(PyObject *module)
{
	PyObject *ring = PyType_FromSpec(&ring_spec), *enforcer = PyType_FromSpec(&enforcer_spec);
	if (!ring || !enforcer || PyModule_AddType(module, (PyTypeObject *)ring) < 0 ||
	    PyModule_AddType(module, (PyTypeObject *)enforcer) < 0) {
		Py_XDECREF(ring);
		Py_XDECREF(enforcer);
		return -1;
	}
	ring_type = (PyTypeObject *)ring;       /* keeps its reference */
	Py_DECREF(enforcer);
	if (PyModule_AddIntConstant(module, "FLAG_STRICT_METADATA", AK_FLAG_STRICT_METADATA) < 0 ||
	    PyModule_AddIntConstant(module, "FLAG_EXEC_CONTINUE", AK_FLAG_EXEC_CONTINUE) < 0 ||
	    PyModule_AddIntConstant(module, "OUTCOME_RESULT", AK_RESULT) < 0 ||
	    PyModule_AddIntConstant(module, "OUTCOME_CONTINUE", AK_CONTINUE) < 0 ||
	    PyModule_AddIntConstant(module, "OUTCOME_INSTALL_FD", AK_INSTALL_FD) < 0 ||
	    PyModule_AddIntConstant(module, "OUTCOME_LATER", AK_LATER) < 0 ||
	    PyModule_AddIntConstant(module, "FLAG_FDS_BY_PIDFD", AK_FLAG_FDS_BY_PIDFD) < 0)
		return -1;
	return 0;
}
