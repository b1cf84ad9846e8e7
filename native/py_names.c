/* _native.Names: pins and led sockets of one run (names.h); _native.Pump: what the relay moves bytes with (pump.h). Argument
 * checking only. */
#include "module.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "names.h"
#include "pump.h"

_Static_assert(sizeof(struct ak_pin_rule) == 12, "akbox/linux/pins.py packs it");

typedef struct {
	PyObject_HEAD
	struct ak_names *names;
	PyObject *above;                /* Names that `names` leads to, or NULL */
} NamesObject;

static struct ak_own_server server(unsigned v4_port, unsigned v6_port)
{
	struct ak_own_server s = {.v4_len = 0};
	if (v4_port) {
		struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)v4_port)};
		in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		memcpy(&s.v4, &in, s.v4_len = sizeof in);
	}
	if (v6_port) {
		struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)v6_port)};
		in6.sin6_addr = in6addr_loopback;
		memcpy(&s.v6, &in6, s.v6_len = sizeof in6);
	}
	return s;
}

static PyObject *names_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *words[] = {"udp4", "udp6", "tcp4", "tcp6", "relay4", "relay6", "relayed", "above", NULL};
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	unsigned udp4, udp6, tcp4, tcp6, relay4 = 0, relay6 = 0, relayed = 0;
	PyObject *above = Py_None;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "IIII|IIIO:Names", words, &udp4, &udp6, &tcp4, &tcp6, &relay4, &relay6,
					 &relayed, &above))
		return NULL;
	struct ak_names *others = above == Py_None ? NULL : ak_py_names_get(above);
	if (above != Py_None && !others)
		return NULL;
	if ((udp4 | udp6 | tcp4 | tcp6 | relay4 | relay6) > UINT16_MAX) {
		PyErr_SetString(PyExc_ValueError, "a port is out of range");
		return NULL;
	}
	NamesObject *self = (NamesObject *)alloc(type, 0);
	if (!self)
		return NULL;
	struct ak_own_server udp = server(udp4, udp6), tcp = server(tcp4, tcp6), relay = server(relay4, relay6);
	self->names = ak_names_new(&udp, &tcp, &relay, relayed, others);
	if (!self->names) {
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	if (others) {
		Py_INCREF(above);
		self->above = above;
	}
	return (PyObject *)self;
}

static void names_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
	ak_names_free(((NamesObject *)self)->names);
	Py_XDECREF(((NamesObject *)self)->above);
	release(self);
	Py_DECREF(type);
}

static PyObject *names_pin(PyObject *self, PyObject *args)
{
	const char *addr, *name, *packed;
	Py_ssize_t addr_len, name_len, packed_len;
	unsigned long seconds;
	const size_t size = sizeof(struct ak_pin_rule);
	if (!PyArg_ParseTuple(args, "y#y#ky#:pin", &addr, &addr_len, &name, &name_len, &seconds, &packed, &packed_len))
		return NULL;
	if (addr_len != 16 || packed_len % (Py_ssize_t)size || seconds > UINT32_MAX) {
		PyErr_SetString(PyExc_ValueError, "pin: an address of 16 bytes, seconds below 2^32, rules of 12 bytes each");
		return NULL;
	}
	struct ak_pin_rule *rules = malloc((size_t)packed_len + 1);     /* the bytes need not be aligned */
	if (!rules)
		return PyErr_NoMemory();
	memcpy(rules, packed, (size_t)packed_len);
	int error = ak_pin(((NamesObject *)self)->names, (const uint8_t *)addr, name, (size_t)name_len, (uint32_t)seconds, rules,
			   (size_t)packed_len / size);
	free(rules);
	if (error) {
		errno = -error;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	Py_RETURN_NONE;
}

static PyObject *as_tuple(bool found, const struct ak_led *led)
{
	if (!found)
		Py_RETURN_NONE;
	return Py_BuildValue("(iiiy#N)", (int)led->tgid, (int)led->tid, (int)led->nr, (const char *)&led->meant,
			     (Py_ssize_t)led->meant_len, PyBool_FromLong(led->named));
}

static PyObject *names_spend(PyObject *self, PyObject *unused)
{
	(void)unused;
	ak_names_spend(((NamesObject *)self)->names);
	Py_RETURN_NONE;
}

static PyObject *names_led_udp(PyObject *self, PyObject *arg)
{
	struct ak_led led;
	unsigned long long inode = PyLong_AsUnsignedLongLong(arg);
	if (PyErr_Occurred())
		return NULL;
	return as_tuple(ak_find_led_udp(((NamesObject *)self)->names, inode, &led), &led);
}

static PyObject *names_claim_tcp(PyObject *self, PyObject *arg)
{
	struct ak_led led;
	long port = PyLong_AsLong(arg);
	if (PyErr_Occurred())
		return NULL;
	bool found = port > 0 && port <= UINT16_MAX && ak_claim_tcp(((NamesObject *)self)->names, (uint16_t)port, &led);
	return as_tuple(found, &led);
}

static PyMethodDef names_methods[] = {
	{"pin", names_pin, METH_VARARGS, "An address was handed out for a name."},
	{"led_udp", names_led_udp, METH_O, "Who led the UDP socket with this inode to the DNS server."},
	{"claim_tcp", names_claim_tcp, METH_O, "Who led the TCP connection from this port to the DNS server; once."},
	{"spend", names_spend, METH_NOARGS, "The budget of bytes is spent."},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot names_slots[] = {
	{Py_tp_new, names_new},
	{Py_tp_dealloc, names_dealloc},
	{Py_tp_methods, names_methods},
	{Py_tp_doc, "Pins and led sockets of native/names.h."},
	{0, NULL},
};

static PyType_Spec names_spec = {
	.name = "akbox._native.Names",
	.basicsize = sizeof(NamesObject),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = names_slots,
};

/* ---- Pump -------------------------------------------------------------------------------------------------------- */

typedef struct {
	PyObject_HEAD
	struct ak_pump *pump;           /* NULL once closed */
} PumpObject;

static PyObject *pump_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *words[] = {"limit", "over_fd", NULL};
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	unsigned long long limit;
	int over_fd;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Ki:Pump", words, &limit, &over_fd))
		return NULL;
	PumpObject *self = (PumpObject *)alloc(type, 0);
	if (!self)
		return NULL;
	self->pump = ak_pump_new(limit, over_fd);
	if (!self->pump) {
		Py_DECREF(self);
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	return (PyObject *)self;
}

static PyObject *pump_close(PyObject *self, PyObject *unused)
{
	struct ak_pump *pump = ((PumpObject *)self)->pump;
	(void)unused;
	((PumpObject *)self)->pump = NULL;
	if (pump) {
		Py_BEGIN_ALLOW_THREADS
		ak_pump_free(pump);
		Py_END_ALLOW_THREADS
	}
	Py_RETURN_NONE;
}

static void pump_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
	if (((PumpObject *)self)->pump)
		ak_pump_free(((PumpObject *)self)->pump);
	release(self);
	Py_DECREF(type);
}

static struct ak_pump *pump_of(PyObject *self)
{
	struct ak_pump *pump = ((PumpObject *)self)->pump;
	if (!pump)
		PyErr_SetString(PyExc_ValueError, "the pump is closed");
	return pump;
}

static PyObject *pump_add(PyObject *self, PyObject *args)
{
	struct ak_pump *pump = pump_of(self);
	int a, b;
	if (!pump || !PyArg_ParseTuple(args, "ii:add", &a, &b))
		return NULL;
	int error = ak_pump_add(pump, a, b);
	if (error) {
		errno = -error;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	Py_RETURN_NONE;
}

static PyObject *pump_moved(PyObject *self, PyObject *unused)
{
	struct ak_pump *pump = pump_of(self);
	(void)unused;
	return pump ? PyLong_FromUnsignedLongLong(ak_pump_moved(pump)) : NULL;
}

static PyMethodDef pump_methods[] = {
	{"add", pump_add, METH_VARARGS, "Move bytes between these two sockets from now on; both are the pump's own."},
	{"moved", pump_moved, METH_NOARGS, "Bytes moved so far, both directions of all pairs."},
	{"close", pump_close, METH_NOARGS, "Cut every pair and end the thread."},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot pump_slots[] = {
	{Py_tp_new, pump_new},
	{Py_tp_dealloc, pump_dealloc},
	{Py_tp_methods, pump_methods},
	{Py_tp_doc, "Moves and counts bytes between pairs of sockets (native/pump.h)."},
	{0, NULL},
};

static PyType_Spec pump_spec = {
	.name = "akbox._native.Pump",
	.basicsize = sizeof(PumpObject),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = pump_slots,
};

/* ---- both -------------------------------------------------------------------------------------------------------- */

/* As ak_py_policy_get(): the destructor identifies the type. */
struct ak_names *ak_py_names_get(PyObject *object)
{
	if (PyType_GetSlot(Py_TYPE(object), Py_tp_dealloc) == (void *)names_dealloc)
		return ((NamesObject *)object)->names;
	PyErr_SetString(PyExc_TypeError, "expected a _native.Names");
	return NULL;
}

static int add_type(PyObject *module, PyType_Spec *spec)
{
	PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
	if (!type)
		return -1;
	int failed = PyModule_AddType(module, (PyTypeObject *)type);
	Py_DECREF(type);
	return failed;
}

int ak_py_names_init(PyObject *module)
{
	return add_type(module, &names_spec) < 0 || add_type(module, &pump_spec) < 0 ? -1 : 0;
}
