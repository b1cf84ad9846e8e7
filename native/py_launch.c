/* Python's view of launch.c, tracer.c and the few system calls that the standard library lacks. */
#include "module.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "launch.h"
#include "tracer.h"

#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#endif

static PyObject *launch_error;  /* set once by module initialisation */

static PyObject *raise_step(int error, enum ak_launch_step step)
{
	PyObject *args = Py_BuildValue("(iss)", error, strerror(error), ak_launch_step_name(step));
	if (args) {
		PyErr_SetObject(launch_error, args);
		Py_DECREF(args);
	}
	return NULL;
}

static PyObject *raise_errno(int error)
{
	errno = error;
	return PyErr_SetFromErrno(PyExc_OSError);
}

/* ---- Child ----------------------------------------------------------------------------------------------------- */

struct child_object {
	PyObject_HEAD
	pid_t pid;
	struct ak_launch_status *status;
};

static void child_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
	ak_launch_release(((struct child_object *)self)->status);
	release(self);
	Py_DECREF(type);
}

static PyObject *child_pid(PyObject *self, void *closure)
{
	(void)closure;
	return PyLong_FromLong(((struct child_object *)self)->pid);
}

static PyObject *child_ready(PyObject *self, PyObject *unused)
{
	struct child_object *c = (struct child_object *)self;
	enum ak_launch_step step;
	int error;
	(void)unused;
	Py_BEGIN_ALLOW_THREADS
	error = ak_launch_ready(c->status, c->pid, &step);
	Py_END_ALLOW_THREADS
	if (error)
		return raise_step(-error, step);
	Py_RETURN_NONE;
}

static PyObject *child_go(PyObject *self, PyObject *unused)
{
	struct child_object *c = (struct child_object *)self;
	enum ak_launch_step step;
	int error, listener;
	(void)unused;
	Py_BEGIN_ALLOW_THREADS
	error = ak_launch_go(c->status, c->pid, &listener, &step);
	Py_END_ALLOW_THREADS
	if (error)
		return raise_step(-error, step);
	return PyLong_FromLong(listener);
}

static PyObject *child_failure(PyObject *self, PyObject *unused)
{
	enum ak_launch_step step;
	int error = ak_launch_failure(((struct child_object *)self)->status, &step);
	(void)unused;
	if (!error)
		Py_RETURN_NONE;
	return Py_BuildValue("(is)", error, ak_launch_step_name(step));
}

static PyMethodDef child_methods[] = {
	{"ready", child_ready, METH_NOARGS, "Waits until the child can be seized. Raises LaunchError."},
	{"go", child_go, METH_NOARGS, "Lets the child confine itself and go on to execve; the listener or -1. Raises LaunchError."},
	{"failure", child_failure, METH_NOARGS, "(errno, step) of a child that did not get to its program, or None."},
	{NULL, NULL, 0, NULL},
};

static PyGetSetDef child_getset[] = {
	{"pid", child_pid, NULL, "Process number.", NULL},
	{NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot child_slots[] = {
	{Py_tp_dealloc, child_dealloc},
	{Py_tp_methods, child_methods},
	{Py_tp_getset, child_getset},
	{0, NULL},
};

static PyType_Spec child_spec = {
	.name = "akbox._native.Child",
	.basicsize = sizeof(struct child_object),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = child_slots,
};

/* ---- launch() -------------------------------------------------------------------------------------------------- */

/* A NULL-terminated array of the bytes objects' own buffers; the sequence keeps them alive. */
static char **string_array(PyObject *seq)
{
	Py_ssize_t n = PyTuple_Size(seq);
	char **out;
	if (n < 0 || !(out = calloc((size_t)n + 1, sizeof *out)))
		return n < 0 ? NULL : (char **)PyErr_NoMemory();
	for (Py_ssize_t i = 0; i < n; i++) {
		Py_ssize_t len;
		if (PyBytes_AsStringAndSize(PyTuple_GetItem(seq, i), &out[i], &len) < 0 || strlen(out[i]) != (size_t)len) {
			if (!PyErr_Occurred())
				PyErr_SetString(PyExc_ValueError, "embedded null byte");
			free(out);
			return NULL;
		}
	}
	return out;
}

static int *int_array(PyObject *seq, size_t *n)
{
	Py_ssize_t len = PyTuple_Size(seq);
	int *out;
	if (len < 0 || !(out = calloc((size_t)len + 1, sizeof *out)))
		return len < 0 ? NULL : (int *)PyErr_NoMemory();
	for (Py_ssize_t i = 0; i < len; i++)
		out[i] = (int)PyLong_AsLong(PyTuple_GetItem(seq, i));
	*n = (size_t)len;
	return out;
}

static struct ak_limit *limit_array(PyObject *seq, size_t *n)
{
	Py_ssize_t len = PyTuple_Size(seq);
	struct ak_limit *out;
	if (len < 0 || !(out = calloc((size_t)len + 1, sizeof *out)))
		return len < 0 ? NULL : (struct ak_limit *)PyErr_NoMemory();
	for (Py_ssize_t i = 0; i < len; i++) {
		unsigned long long soft, hard;
		if (!PyArg_ParseTuple(PyTuple_GetItem(seq, i), "iKK", &out[i].resource, &soft, &hard)) {
			free(out);
			return NULL;
		}
		out[i].value = (struct rlimit){.rlim_cur = soft, .rlim_max = hard};
	}
	*n = (size_t)len;
	return out;
}

static PyTypeObject *child_type;

static PyObject *start_child(const struct ak_launch_plan *plan)
{
	allocfunc make = (allocfunc)PyType_GetSlot(child_type, Py_tp_alloc);
	struct child_object *c = (struct child_object *)make(child_type, 0);
	if (!c)
		return NULL;
	c->pid = ak_launch(plan, &c->status);
	if (c->pid < 0) {
		raise_errno(-c->pid);
		Py_DECREF((PyObject *)c);
		return NULL;
	}
	return (PyObject *)c;
}

static PyObject *py_launch(PyObject *module, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"exec_path", "argv", "envp", "cwd_fd", "stdio", "keep_fds", "ruleset_fd", "bpf",
				"filter_flags", "limits", "tty_fd", "drop_ids", "outer_rulesets", NULL};
	struct ak_launch_plan plan = {0};
	PyObject *argv, *envp, *keep, *limits, *ids, *outer, *result = NULL;
	const char *bpf;
	Py_ssize_t bpf_len;
	char **argv_c = NULL, **envp_c = NULL;
	int *keep_c = NULL, *outer_c = NULL;
	struct ak_limit *limits_c = NULL;
	(void)module;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$yO!O!i(iii)O!iy#IO!iOO!", names, &plan.exec_path, &PyTuple_Type, &argv,
					 &PyTuple_Type, &envp, &plan.cwd_fd, &plan.stdio[0], &plan.stdio[1],
					 &plan.stdio[2], &PyTuple_Type, &keep, &plan.ruleset_fd, &bpf, &bpf_len,
					 &plan.filter_flags, &PyTuple_Type, &limits, &plan.tty_fd, &ids,
					 &PyTuple_Type, &outer))
		return NULL;
	if (bpf_len % sizeof(struct sock_filter) || bpf_len / sizeof(struct sock_filter) > BPF_MAXINSNS)
		return PyErr_Format(PyExc_ValueError, "a filter of %zd bytes", bpf_len);
	if (ids != Py_None && !PyArg_ParseTuple(ids, "II", &plan.uid, &plan.gid))
		return NULL;
	plan.drop_ids = ids != Py_None;
	plan.filter = (struct sock_fprog){.len = (unsigned short)(bpf_len / sizeof(struct sock_filter)),
					  .filter = (struct sock_filter *)(uintptr_t)bpf};
	if ((argv_c = string_array(argv)) && (envp_c = string_array(envp)) &&
	    (keep_c = int_array(keep, &plan.n_keep_fds)) && (limits_c = limit_array(limits, &plan.n_limits)) &&
	    (outer_c = int_array(outer, &plan.n_outer_rulesets)) && !PyErr_Occurred()) {
		plan.argv = argv_c;
		plan.envp = envp_c;
		plan.keep_fds = keep_c;
		plan.outer_rulesets = outer_c;
		plan.limits = limits_c;
		result = start_child(&plan);
	}
	free(argv_c);
	free(envp_c);
	free(keep_c);
	free(outer_c);
	free(limits_c);
	return result;
}

/* ---- Tracer ---------------------------------------------------------------------------------------------------- */

struct tracer_object {
	PyObject_HEAD
	struct ak_tracer *tracer;
	PyObject *trapped;      /* bytes: the tracer reads them in place */
	PyObject *above;        /* the tracer of the agent that started this one, or NULL: it must not go before this */
};

static int tracer_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"trapped", "trace_seccomp", "max_processes", "count_io", "above", NULL};
	struct tracer_object *t = (struct tracer_object *)self;
	PyObject *trapped, *above = Py_None;
	char *bits;
	Py_ssize_t len;
	int trace_seccomp, count_io = 0;
	unsigned long long max_processes = 0;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!p|KpO", names, &PyBytes_Type, &trapped, &trace_seccomp, &max_processes,
					 &count_io, &above) || t->tracer)
		return -1;
	if (above != Py_None && Py_TYPE(above) != Py_TYPE(self)) {
		PyErr_SetString(PyExc_TypeError, "above: a Tracer, or None");
		return -1;
	}
	if (PyBytes_AsStringAndSize(trapped, &bits, &len) < 0)
		return -1;
	t->tracer = ak_tracer_new((const uint8_t *)bits, (size_t)len * 8, trace_seccomp, (size_t)max_processes, count_io,
				  above == Py_None ? NULL : ((struct tracer_object *)above)->tracer);
	if (!t->tracer) {
		PyErr_NoMemory();
		return -1;
	}
	t->trapped = trapped;
	Py_INCREF(trapped);
	if (above != Py_None) {
		t->above = above;
		Py_INCREF(above);
	}
	return 0;
}

static void tracer_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
	ak_tracer_free(((struct tracer_object *)self)->tracer);
	Py_XDECREF(((struct tracer_object *)self)->trapped);
	Py_XDECREF(((struct tracer_object *)self)->above);
	release(self);
	Py_DECREF(type);
}

static PyObject *tracer_seize(PyObject *self, PyObject *arg)
{
	long pid = PyLong_AsLong(arg);
	int error;
	if (pid == -1 && PyErr_Occurred())
		return NULL;
	error = ak_tracer_seize(((struct tracer_object *)self)->tracer, (pid_t)pid);
	if (error)
		return raise_errno(-error);
	Py_RETURN_NONE;
}

static PyObject *tracer_wait(PyObject *self, PyObject *args)
{
	struct ak_stop_event event = {0};
	int error, block = 1;
	if (!PyArg_ParseTuple(args, "|p", &block))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	error = ak_tracer_wait(((struct tracer_object *)self)->tracer, &event, block);
	Py_END_ALLOW_THREADS
	if (error)
		return raise_errno(-error);
	return Py_BuildValue("(iiL)", (int)event.kind, (int)event.tid, (long long)event.value);
}

static PyObject *tracer_resume(PyObject *self, PyObject *args)
{
	int tid, sig = 0, error;
	if (!PyArg_ParseTuple(args, "i|i", &tid, &sig))
		return NULL;
	error = ak_tracer_resume(((struct tracer_object *)self)->tracer, tid, sig);
	if (error)
		return raise_errno(-error);
	Py_RETURN_NONE;
}

static PyObject *tracer_answer(PyObject *self, PyObject *args)
{
	int tid, error;
	long long value;
	if (!PyArg_ParseTuple(args, "iL", &tid, &value))
		return NULL;
	error = ak_tracer_answer(((struct tracer_object *)self)->tracer, tid, value);
	if (error)
		return raise_errno(-error);
	Py_RETURN_NONE;
}

static PyObject *tracer_kill(PyObject *self, PyObject *unused)
{
	(void)unused;
	ak_tracer_kill(((struct tracer_object *)self)->tracer);
	Py_RETURN_NONE;
}

static PyObject *tracer_count(PyObject *self, void *closure)
{
	(void)closure;
	return PyLong_FromSize_t(ak_tracer_count(((struct tracer_object *)self)->tracer));
}

static PyObject *tracer_cpu_ns(PyObject *self, PyObject *unused)
{
	(void)unused;
	return PyLong_FromUnsignedLongLong(ak_tracer_cpu_ns(((struct tracer_object *)self)->tracer));
}

#define TASKS_MAX 65536

static PyObject *tracer_tasks(PyObject *self, PyObject *args)
{
	struct ak_tracer *t = ((struct tracer_object *)self)->tracer;
	int processes = 0;
	if (!PyArg_ParseTuple(args, "|p", &processes))
		return NULL;
	pid_t *tids = PyMem_Malloc(TASKS_MAX * sizeof *tids);
	if (!tids)
		return PyErr_NoMemory();
	size_t n = ak_tracer_tasks(t, tids, TASKS_MAX, processes);
	PyObject *list = PyList_New((Py_ssize_t)(n < TASKS_MAX ? n : TASKS_MAX));
	for (Py_ssize_t i = 0; list && i < PyList_Size(list); i++) {
		PyObject *tid = PyLong_FromLong(tids[i]);
		if (!tid || PyList_SetItem(list, i, tid) < 0)
			Py_CLEAR(list);
	}
	PyMem_Free(tids);
	return list;
}

static PyObject *tracer_io_bytes(PyObject *self, PyObject *unused)
{
	struct ak_tracer *t = ((struct tracer_object *)self)->tracer;
	uint64_t sum = 0;
	bool known;
	(void)unused;
	Py_BEGIN_ALLOW_THREADS
	known = ak_tracer_io_bytes(t, &sum);
	Py_END_ALLOW_THREADS
	if (!known)
		Py_RETURN_NONE;
	return PyLong_FromUnsignedLongLong(sum);
}

static PyMethodDef tracer_methods[] = {
	{"tasks", tracer_tasks, METH_VARARGS, "tasks(processes=False): the numbers of the tasks, or processes, that live."},
	{"io_bytes", tracer_io_bytes, METH_NOARGS, "What all tasks read and wrote, ended ones included (count_io)."},
	{"seize", tracer_seize, METH_O, "PTRACE_SEIZE the main process, on the calling thread."},
	{"wait", tracer_wait, METH_VARARGS, "wait(block=True): (kind STOP_*, tid, value) of the next stop that needs a decision."},
	{"resume", tracer_resume, METH_VARARGS, "resume(tid, signal=0): PTRACE_CONT; a task that is gone is no error."},
	{"answer", tracer_answer, METH_VARARGS, "answer(tid, value): the stopped call is not made and returns value; resumes."},
	{"cpu_ns", tracer_cpu_ns, METH_NOARGS, "CPU time of every process of the tree, ended ones included."},
	{"kill", tracer_kill, METH_NOARGS, "SIGKILL to every task, present and to come."},
	{NULL, NULL, 0, NULL},
};

static PyGetSetDef tracer_getset[] = {
	{"count", tracer_count, NULL, "How many tasks are traced.", NULL},
	{NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot tracer_slots[] = {
	{Py_tp_init, tracer_init},
	{Py_tp_dealloc, tracer_dealloc},
	{Py_tp_methods, tracer_methods},
	{Py_tp_getset, tracer_getset},
	{0, NULL},
};

static PyType_Spec tracer_spec = {
	.name = "akbox._native.Tracer",
	.basicsize = sizeof(struct tracer_object),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = tracer_slots,
};

/* ---- small system calls ---------------------------------------------------------------------------------------- */

static PyObject *py_landlock_abi(PyObject *module, PyObject *unused)
{
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
	(void)module;
	(void)unused;
	return PyLong_FromLong(abi < 0 ? 0 : abi);
}

static PyObject *py_landlock_create_ruleset(PyObject *module, PyObject *args)
{
	/* The three fields of struct landlock_ruleset_attr up to ABI 7; older kernels take a prefix (E2BIG otherwise). */
	unsigned long long attr[3];
	size_t size = sizeof attr;
	long fd;
	(void)module;
	if (!PyArg_ParseTuple(args, "KKK", &attr[0], &attr[1], &attr[2]))
		return NULL;
	if (!attr[2])
		size = attr[1] ? 16 : 8;
	fd = syscall(SYS_landlock_create_ruleset, attr, size, 0);
	return fd < 0 ? raise_errno(errno) : PyLong_FromLong(fd);
}

static PyObject *py_landlock_add_path(PyObject *module, PyObject *args)
{
	struct landlock_path_beneath_attr rule = {0};
	unsigned long long rights;
	int ruleset, path;
	(void)module;
	if (!PyArg_ParseTuple(args, "iKi", &ruleset, &rights, &path))
		return NULL;
	rule.allowed_access = rights;
	rule.parent_fd = path;
	if (syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0)
		return raise_errno(errno);
	Py_RETURN_NONE;
}

static PyObject *py_landlock_add_port(PyObject *module, PyObject *args)
{
	unsigned long long rule[2];     /* struct landlock_net_port_attr: allowed_access, port */
	int ruleset;
	(void)module;
	if (!PyArg_ParseTuple(args, "iKK", &ruleset, &rule[0], &rule[1]))
		return NULL;
	if (syscall(SYS_landlock_add_rule, ruleset, 2 /* LANDLOCK_RULE_NET_PORT */, rule, 0) < 0)
		return raise_errno(errno);
	Py_RETURN_NONE;
}

/* process_vm_writev keeps to what the task itself could write; where it is refused (older container runtimes), its mem file. */
static ssize_t write_process(pid_t tid, unsigned long long address, const char *data, size_t len)
{
	struct iovec local = {(void *)(uintptr_t)data, len}, remote = {(void *)(uintptr_t)address, len};
	char path[32];
	ssize_t n = process_vm_writev(tid, &local, 1, &remote, 1, 0);
	int fd;
	if (n >= 0 || (errno != EPERM && errno != ENOSYS))
		return n;
	snprintf(path, sizeof path, "/proc/%d/mem", tid);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = pwrite(fd, data, len, (off_t)address);
	close(fd);
	return n;
}

static PyObject *py_process_write(PyObject *module, PyObject *args)
{
	unsigned long long address;
	const char *data;
	Py_ssize_t len;
	ssize_t n;
	int tid;
	(void)module;
	if (!PyArg_ParseTuple(args, "iKy#", &tid, &address, &data, &len))
		return NULL;
	n = write_process(tid, address, data, (size_t)len);
	return n < 0 ? raise_errno(errno) : PyLong_FromSsize_t(n);
}

static PyObject *py_gettid(PyObject *module, PyObject *unused)
{
	(void)module;
	(void)unused;
	return PyLong_FromLong(syscall(SYS_gettid));
}

static PyObject *py_prctl(PyObject *module, PyObject *args)
{
	unsigned long a[4] = {0};
	int option, result;
	(void)module;
	if (!PyArg_ParseTuple(args, "i|kkkk", &option, &a[0], &a[1], &a[2], &a[3]))
		return NULL;
	result = prctl(option, a[0], a[1], a[2], a[3]);
	return result < 0 ? raise_errno(errno) : PyLong_FromLong(result);
}

static PyMethodDef functions[] = {
	{"launch", (PyCFunction)(void (*)(void))py_launch, METH_VARARGS | METH_KEYWORDS, "Clones a confined child; see Child."},
	{"landlock_abi", py_landlock_abi, METH_NOARGS, "The kernel's Landlock ABI, 0 when there is none."},
	{"landlock_create_ruleset", py_landlock_create_ruleset, METH_VARARGS, "(handled_fs, handled_net, scoped) -> descriptor."},
	{"landlock_add_path", py_landlock_add_path, METH_VARARGS, "(ruleset_fd, rights, path_fd)."},
	{"landlock_add_port", py_landlock_add_port, METH_VARARGS, "(ruleset_fd, rights, port)."},
	{"gettid", py_gettid, METH_NOARGS, "The calling thread's number."},
	{"process_write", py_process_write, METH_VARARGS, "process_write(tid, address, data): bytes written into another process."},
	{"prctl", py_prctl, METH_VARARGS, "prctl(2) for the calling thread."},
	{NULL, NULL, 0, NULL},
};

static int add_error(PyObject *module)
{
	launch_error = PyErr_NewExceptionWithDoc("akbox._native.LaunchError",
		"The child failed before its program: args are (errno, message, step).", PyExc_Exception, NULL);
	return launch_error ? PyModule_AddObjectRef(module, "LaunchError", launch_error) : -1;
}

int ak_py_launch_init(PyObject *module)
{
	static const struct { const char *name; long value; } numbers[] = {
		{"STOP_NOTHING", AK_STOP_NOTHING}, {"STOP_SYSCALL", AK_STOP_SYSCALL}, {"STOP_SECCOMP", AK_STOP_SECCOMP}, {"STOP_EXEC", AK_STOP_EXEC},
		{"STOP_STOPPED", AK_STOP_STOPPED}, {"STOP_MAIN_EXIT", AK_STOP_MAIN_EXIT},
		{"STOP_ALL_GONE", AK_STOP_ALL_GONE}, {"STOP_TOO_MANY", AK_STOP_TOO_MANY},
		{"STOP_ACCEPTED", AK_STOP_ACCEPTED},
	};
	PyObject *tracer = PyType_FromModuleAndSpec(module, &tracer_spec, NULL);
	child_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &child_spec, NULL);
	if (!tracer || !child_type || PyModule_AddObjectRef(module, "Tracer", tracer) < 0 ||
	    PyModule_AddObjectRef(module, "Child", (PyObject *)child_type) < 0 || add_error(module) < 0)
		return -1;
	Py_DECREF(tracer);
	for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
		if (PyModule_AddIntConstant(module, numbers[i].name, numbers[i].value) < 0)
			return -1;
	return PyModule_AddFunctions(module, functions);
}
