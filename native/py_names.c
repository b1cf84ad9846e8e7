/* _native.Names: pins and led sockets of one run (names.h), for the DNS server's thread. Argument checking only. */
#include "module.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "names.h"

_Static_assert(sizeof(struct ak_pin_rule) == 12, "akbox/linux/pins.py packs it");

typedef struct {
	PyObject_HEAD
	struct ak_names *names;
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
	static char *words[] = {"udp4", "udp6", "tcp4", "tcp6", NULL};
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	unsigned udp4, udp6, tcp4, tcp6;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "IIII:Names", words, &udp4, &udp6, &tcp4, &tcp6))
		return NULL;
	if ((udp4 | udp6 | tcp4 | tcp6) > UINT16_MAX) {
		PyErr_SetString(PyExc_ValueError, "a port is out of range");
		return NULL;
	}
	NamesObject *self = (NamesObject *)alloc(type, 0);
	if (!self)
		return NULL;
	struct ak_own_server udp = server(udp4, udp6), tcp = server(tcp4, tcp6);
	self->names = ak_names_new(&udp, &tcp);
	if (!self->names) {
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	return (PyObject *)self;
}

static void names_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
	ak_names_free(((NamesObject *)self)->names);
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
	return Py_BuildValue("(iii)", (int)led->tgid, (int)led->tid, (int)led->nr);
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

/* As ak_py_policy_get(): the destructor identifies the type. */
struct ak_names *ak_py_names_get(PyObject *object)
{
	if (PyType_GetSlot(Py_TYPE(object), Py_tp_dealloc) == (void *)names_dealloc)
		return ((NamesObject *)object)->names;
	PyErr_SetString(PyExc_TypeError, "expected a _native.Names");
	return NULL;
}

int ak_py_names_init(PyObject *module)
{
	PyObject *type = PyType_FromModuleAndSpec(module, &names_spec, NULL);
	if (!type)
		return -1;
	int failed = PyModule_AddType(module, (PyTypeObject *)type);
	Py_DECREF(type);
	return failed;
}
