/* _native.Policy: the compiled matcher for Python (tests, and the enforcer's way to hold a policy). */
#include "module.h"

#include "policy.h"

typedef struct {
	PyObject_HEAD
	struct ak_policy *policy;
	PyObject *base, *parent;        /* of a view: what its policy lives in */
} PolicyObject;

static const struct ak_policy *held(PyObject *self)
{
	return ((PolicyObject *)self)->policy;
}

static PyObject *policy_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"blob", NULL};
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	const char *blob, *why;
	Py_ssize_t len;
	PolicyObject *self;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y#:Policy", names, &blob, &len))
		return NULL;
	self = (PolicyObject *)alloc(type, 0);
	if (!self)
		return NULL;
	self->policy = ak_policy_parse(blob, (size_t)len, &why);
	if (!self->policy) {
		PyErr_Format(PyExc_ValueError, "bad compiled policy: %s", why);
		Py_DECREF(self);
		return NULL;
	}
	return (PyObject *)self;
}

static void policy_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	ak_policy_free(((PolicyObject *)self)->policy);
	Py_XDECREF(((PolicyObject *)self)->base);
	Py_XDECREF(((PolicyObject *)self)->parent);
	release(self);
	Py_DECREF(type);
}

static long rule_number(uint32_t rule)
{
	return rule == AK_NO_RULE ? -1 : (long)rule;
}

static PyObject *policy_fs(PyObject *self, PyObject *args)
{
	unsigned need;
	const char *path;
	Py_ssize_t len;
	struct ak_verdict v;

	if (!PyArg_ParseTuple(args, "Iy#:fs", &need, &path, &len))
		return NULL;
	v = ak_policy_fs(held(self), need, path, (size_t)len);
	return Py_BuildValue("(ili)", v.decision, rule_number(v.rule), v.missing);
}

static PyObject *policy_rights(PyObject *self, PyObject *args)
{
	const char *path;
	Py_ssize_t len;

	if (!PyArg_ParseTuple(args, "y#:rights", &path, &len))
		return NULL;
	return PyLong_FromUnsignedLong(ak_policy_rights(held(self), path, (size_t)len));
}

static PyObject *policy_visible(PyObject *self, PyObject *args)
{
	const char *path;
	Py_ssize_t len;

	if (!PyArg_ParseTuple(args, "y#:visible", &path, &len))
		return NULL;
	return PyBool_FromLong(ak_policy_visible(held(self), path, (size_t)len));
}

static PyObject *policy_exec_exact(PyObject *self, PyObject *args)
{
	const char *path;
	Py_ssize_t len;

	if (!PyArg_ParseTuple(args, "y#:exec_exact", &path, &len))
		return NULL;
	return PyBool_FromLong(ak_policy_exec_exact(held(self), path, (size_t)len));
}

static PyObject *policy_move(PyObject *self, PyObject *args)
{
	const char *from, *to;
	Py_ssize_t from_len, to_len;
	int is_dir;

	if (!PyArg_ParseTuple(args, "y#y#p:move_keeps_rights", &from, &from_len, &to, &to_len, &is_dir))
		return NULL;
	return PyBool_FromLong(ak_policy_move_keeps_rights(held(self), from, (size_t)from_len, to, (size_t)to_len, is_dir));
}

static PyObject *policy_net(PyObject *self, PyObject *args)
{
	int op, proto;
	const char *addr;
	Py_ssize_t len;
	unsigned port;
	struct ak_verdict v;

	if (!PyArg_ParseTuple(args, "iiy#I:net", &op, &proto, &addr, &len, &port))
		return NULL;
	if (op < AK_NET_CONNECT || op > AK_NET_LISTEN || proto < AK_TCP || proto > AK_UDP || port > UINT16_MAX ||
	    (len != 4 && len != 16))
		return PyErr_Format(PyExc_ValueError, "op 0-2, proto 0-1, an address of 4 or 16 bytes, port 0-65535");
	v = ak_policy_net(held(self), (enum ak_net_op)op, (enum ak_net_proto)proto, (const uint8_t *)addr,
			  (size_t)len, (uint16_t)port);
	return Py_BuildValue("(il)", v.decision, rule_number(v.rule));
}

static PyObject *policy_unix(PyObject *self, PyObject *args)
{
	const char *path;
	Py_ssize_t len;
	struct ak_verdict v;

	if (!PyArg_ParseTuple(args, "y#:unix", &path, &len))
		return NULL;
	v = ak_policy_unix(held(self), path, (size_t)len);
	return Py_BuildValue("(il)", v.decision, rule_number(v.rule));
}

static PyObject *policy_view(PyObject *self, PyObject *arg)
{
	PyTypeObject *type = Py_TYPE(self);
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	const struct ak_policy *parent = NULL;
	PolicyObject *view;

	if (arg != Py_None && !(parent = ak_py_policy_get(arg)))
		return NULL;
	view = (PolicyObject *)alloc(type, 0);
	if (!view)
		return NULL;
	view->policy = ak_policy_view(held(self), parent);
	if (!view->policy) {
		Py_DECREF(view);
		return PyErr_NoMemory();
	}
	Py_INCREF(self);
	view->base = self;
	if (parent) {
		Py_INCREF(arg);
		view->parent = arg;
	}
	return (PyObject *)view;
}

static PyObject *policy_end(PyObject *self, PyObject *args)
{
	unsigned rule;
	unsigned long long at_ns;

	if (!PyArg_ParseTuple(args, "IK:end", &rule, &at_ns))
		return NULL;
	if (!ak_policy_end(((PolicyObject *)self)->policy, rule, at_ns))
		return PyErr_Format(PyExc_ValueError, "not a view, no rule %u, or out of memory", rule);
	Py_RETURN_NONE;
}

static PyMethodDef policy_methods[] = {
	{"view", policy_view, METH_O, "view(parent or None) -> the same rules, with ends of their own, within the parent's"},
	{"end", policy_end, METH_VARARGS, "end(rule, at_ns): from CLOCK_BOOTTIME at_ns on (1: now) the rule grants nothing"},
	{"fs", policy_fs, METH_VARARGS, "fs(need, path) -> (decision, rule, missing)"},
	{"rights", policy_rights, METH_VARARGS, "rights(path) -> need bits that are allowed"},
	{"visible", policy_visible, METH_VARARGS, "visible(path) -> does the name exist under strict metadata"},
	{"move_keeps_rights", policy_move, METH_VARARGS, "move_keeps_rights(source, target, is_dir) -> bool"},
	{"net", policy_net, METH_VARARGS, "net(op, proto, addr, port) -> (decision, rule)"},
	{"unix", policy_unix, METH_VARARGS, "unix(path) -> (decision, rule)"},
	{"exec_exact", policy_exec_exact, METH_VARARGS, "exec_exact(path) -> bool"},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot policy_slots[] = {
	{Py_tp_new, policy_new},
	{Py_tp_dealloc, policy_dealloc},
	{Py_tp_methods, policy_methods},
	{Py_tp_doc, "The compiled matcher of native/policy.h."},
	{0, NULL},
};

static PyType_Spec policy_spec = {
	.name = "akbox._native.Policy",
	.basicsize = sizeof(PolicyObject),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = policy_slots,
};

/* The type has no global name in the stable ABI; it cannot be subclassed, so its destructor identifies it. */
const struct ak_policy *ak_py_policy_get(PyObject *object)
{
	if (PyType_GetSlot(Py_TYPE(object), Py_tp_dealloc) == (void *)policy_dealloc)
		return held(object);
	PyErr_SetString(PyExc_TypeError, "expected a _native.Policy");
	return NULL;
}

int ak_py_policy_init(PyObject *module)
{
	PyObject *type = PyType_FromModuleAndSpec(module, &policy_spec, NULL);
	int failed;

	if (!type)
		return -1;
	failed = PyModule_AddType(module, (PyTypeObject *)type);
	Py_DECREF(type);
	return failed;
}
