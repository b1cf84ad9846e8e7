/* The Python side of the audit chain's hot path: type Chain and the functions scan_records, check_lines, merkle_extend and
 * sha256 of akbox._native. Argument checking, buffers and the GIL only; what happens is in chain.c, check.c, merkle.c and
 * sha256.c. */
#include "module.h"

#include "crc32c.h"

#include <stdlib.h>
#include <string.h>

#include "chain.h"
#include "check.h"
#include "merkle.h"
#include "ring.h"

#define REFUSED_AT_ONCE 64
/* A line is 5 to 10 times as long as its record; where that is too little, the buffer is doubled. */
#define LINES_PER_RECORD_BYTE 10
#define LINE_BYTES_MIN 400      /* four hashes and two ids alone are 320 */

struct chain_object {
	PyObject_HEAD
	struct ak_chain chain;
	PyObject *names, *rules;        /* tuples of bytes, which `chain` points into */
};

static PyObject *damaged(size_t at)
{
	return PyErr_Format(PyExc_ValueError, "no whole, consistent record at byte %zu", at);
}

/* ---- Chain ------------------------------------------------------------------------------------------------------- */

static int take_text(PyObject *bytes, struct ak_text *text)
{
	char *data;
	Py_ssize_t len;
	if (PyBytes_AsStringAndSize(bytes, &data, &len) < 0)
		return -1;
	*text = (struct ak_text){data, (size_t)len};
	return 0;
}

static struct ak_text *take_rules(PyObject *rules)
{
	size_t count = (size_t)PyTuple_Size(rules);
	struct ak_text *texts = calloc(count + 1, sizeof *texts);
	if (!texts)
		return (void *)PyErr_NoMemory();
	for (size_t i = 0; i < count; i++) {
		if (take_text(PyTuple_GetItem(rules, (Py_ssize_t)i), texts + i) < 0) {
			free(texts);
			return NULL;
		}
	}
	return texts;
}

static struct ak_op_name *take_names(PyObject *names)
{
	size_t count = (size_t)PyTuple_Size(names);
	struct ak_op_name *out = calloc(count + 1, sizeof *out);
	if (!out)
		return (void *)PyErr_NoMemory();
	for (size_t i = 0; i < count; i++) {
		PyObject *pair = PyTuple_GetItem(names, (Py_ssize_t)i), *bytes;
		if (!PyTuple_Check(pair)) {
			PyErr_SetString(PyExc_TypeError, "names are pairs of an op and its name");
			goto fail;
		}
		if (!PyArg_ParseTuple(pair, "HS", &out[i].op, &bytes) || take_text(bytes, &out[i].name) < 0)
			goto fail;
		if (i && out[i].op <= out[i - 1].op) {
			PyErr_SetString(PyExc_ValueError, "names must be in ascending order of their op");
			goto fail;
		}
	}
	return out;
fail:
	free(out);
	return NULL;
}

static int chain_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *keywords[] = {"run", "names", "rules", NULL};
	struct chain_object *o = (struct chain_object *)self;
	const char *run;
	Py_ssize_t run_len;
	PyObject *names, *rules;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y#O!O!", keywords, &run, &run_len, &PyTuple_Type, &names,
					 &PyTuple_Type, &rules))
		return -1;
	if (o->names || run_len != 16) {
		PyErr_SetString(PyExc_ValueError, "Chain: made once, with a run id of 16 bytes");
		return -1;
	}
	o->chain.names = take_names(names);
	if (!o->chain.names)
		return -1;
	o->chain.rules = take_rules(rules);
	if (!o->chain.rules) {
		free((void *)o->chain.names);
		o->chain.names = NULL;
		return -1;
	}
	o->chain.name_count = (size_t)PyTuple_Size(names);
	o->chain.rule_count = (size_t)PyTuple_Size(rules);
	o->chain.blocks = ak_sha256_best();
	memcpy(o->chain.run, run, sizeof o->chain.run);
	o->names = Py_NewRef(names);
	o->rules = Py_NewRef(rules);
	return 0;
}

static void chain_dealloc(PyObject *self)
{
	struct chain_object *o = (struct chain_object *)self;
	PyTypeObject *type = Py_TYPE(self);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
	free((void *)o->chain.names);
	free((void *)o->chain.rules);
	Py_XDECREF(o->names);
	Py_XDECREF(o->rules);
	release(self);
	Py_DECREF(type);
}

/* Renders all of pass->records. Called without the GIL; AK_CHAIN_FULL is out of memory here. */
static enum ak_chain_result render_all(const struct ak_chain *chain, const uint8_t *agent, struct ak_chain_head *head,
				       struct ak_chain_pass *pass)
{
	size_t cap = pass->records_len * LINES_PER_RECORD_BYTE;
	enum ak_chain_result result = AK_CHAIN_FULL;
	pass->hashes_cap = pass->records_len / sizeof(struct ak_event) * AK_SHA256_BYTES;
	pass->hashes = malloc(pass->hashes_cap + 1);
	while (pass->hashes && result == AK_CHAIN_FULL) {
		char *more = realloc(pass->lines, cap + 1);
		if (!more)
			break;
		pass->lines = more;
		pass->lines_cap = cap;
		result = ak_chain_render(chain, agent, head, pass);
		cap *= 2;
	}
	return result;
}

static PyObject *chain_render(PyObject *self, PyObject *args)
{
	struct chain_object *o = (struct chain_object *)self;
	const char *records, *agent, *prev;
	Py_ssize_t records_len, agent_len, prev_len;
	unsigned long long seq;
	if (!PyArg_ParseTuple(args, "y#y#Ky#", &records, &records_len, &agent, &agent_len, &seq, &prev, &prev_len))
		return NULL;
	if (!o->names || agent_len != 16 || prev_len != AK_SHA256_BYTES || seq == 0 || records_len > PY_SSIZE_T_MAX / 256)
		return PyErr_Format(PyExc_ValueError, "an agent has 16 bytes, a hash 32, and numbers begin at 1");
	struct ak_chain_head head = {.seq = seq};
	memcpy(head.prev, prev, sizeof head.prev);
	struct ak_chain_pass pass = {.records = (const uint8_t *)records, .records_len = (size_t)records_len};
	enum ak_chain_result result;
	PyObject *found = NULL;
	Py_BEGIN_ALLOW_THREADS
	result = render_all(&o->chain, (const uint8_t *)agent, &head, &pass);
	Py_END_ALLOW_THREADS
	if (result == AK_CHAIN_DONE)
		found = Py_BuildValue("(y#y#)", pass.lines, (Py_ssize_t)pass.lines_len, (const char *)pass.hashes,
				      (Py_ssize_t)pass.hashes_len);
	else if (result == AK_CHAIN_DAMAGED)
		damaged(pass.records_at);
	else
		PyErr_NoMemory();
	free(pass.lines);
	free(pass.hashes);
	return found;
}

static PyMethodDef chain_methods[] = {
	{"render", chain_render, METH_VARARGS, "render(records, agent, seq, prev) -> (lines, this_hashes)"},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot chain_slots[] = {
	{Py_tp_doc, "Chain(run, names, rules): renders ring records as log lines (native/chain.h)."},
	{Py_tp_new, PyType_GenericNew},
	{Py_tp_init, chain_init},
	{Py_tp_dealloc, chain_dealloc},
	{Py_tp_methods, chain_methods},
	{0, NULL},
};

static PyType_Spec chain_spec = {
	.name = "akbox._native.Chain",
	.basicsize = sizeof(struct chain_object),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = chain_slots,
};

/* ---- functions --------------------------------------------------------------------------------------------------- */

static int append_refused(PyObject *list, const struct ak_refused *refused, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		PyObject *one = Py_BuildValue("(nnn)", (Py_ssize_t)refused[i].start, (Py_ssize_t)refused[i].end,
					      (Py_ssize_t)refused[i].index);
		int failed = !one || PyList_Append(list, one) < 0;
		Py_XDECREF(one);
		if (failed)
			return -1;
	}
	return 0;
}

static PyObject *scan_records(PyObject *module, PyObject *records)
{
	struct ak_refused refused[REFUSED_AT_ONCE];
	size_t at = 0, count = 0, n;
	char *data;
	Py_ssize_t len;
	enum ak_chain_result result;
	(void)module;
	if (PyBytes_AsStringAndSize(records, &data, &len) < 0)
		return NULL;
	PyObject *list = PyList_New(0);
	if (!list)
		return NULL;
	do {
		n = 0;
		Py_BEGIN_ALLOW_THREADS
		result = ak_chain_scan((const uint8_t *)data, (size_t)len, &at, &count, refused, REFUSED_AT_ONCE, &n);
		Py_END_ALLOW_THREADS
		if (result == AK_CHAIN_DAMAGED)
			damaged(at);
		if (result == AK_CHAIN_DAMAGED || append_refused(list, refused, n) < 0) {
			Py_DECREF(list);
			return NULL;
		}
	} while (result == AK_CHAIN_FULL);
	return list;
}

static PyObject *check_lines(PyObject *module, PyObject *args)
{
	const char *data, *prev, *run;
	Py_ssize_t len, at, prev_len, run_len;
	unsigned long long seq;
	(void)module;
	if (!PyArg_ParseTuple(args, "y#nKy#y#:check_lines", &data, &len, &at, &seq, &prev, &prev_len, &run, &run_len))
		return NULL;
	struct ak_check c = {.blocks = ak_sha256_best(), .seq = seq};
	if (at < 0 || at > len || prev_len != sizeof c.prev || run_len != sizeof c.run)
		return PyErr_Format(PyExc_ValueError, "a place in the data, a hash of 32 bytes and a run of 16");
	memcpy(c.prev, prev, sizeof c.prev);
	memcpy(c.run, run, sizeof c.run);
	size_t cap = (size_t)(len - at) / LINE_BYTES_MIN + 1, done = (size_t)at, count;
	uint8_t *hashes = malloc(cap * AK_SHA256_BYTES);
	if (!hashes)
		return PyErr_NoMemory();
	Py_BEGIN_ALLOW_THREADS
	count = ak_check_lines(&c, (const uint8_t *)data, (size_t)len, &done, hashes, cap);
	Py_END_ALLOW_THREADS
	PyObject *found = Py_BuildValue("(ny#)", (Py_ssize_t)done, (const char *)hashes,
					(Py_ssize_t)(count * AK_SHA256_BYTES));
	free(hashes);
	return found;
}

static PyObject *merkle_extend(PyObject *module, PyObject *args)
{
	struct ak_merkle tree;
	const char *edge, *hashes;
	Py_ssize_t edge_len, hashes_len;
	unsigned long long size;
	(void)module;
	if (!PyArg_ParseTuple(args, "y#Ky#:merkle_extend", &edge, &edge_len, &size, &hashes, &hashes_len))
		return NULL;
	tree.size = size;
	tree.edge_count = (size_t)__builtin_popcountll(size);
	size_t count = (size_t)hashes_len / AK_SHA256_BYTES;
	if ((size_t)edge_len != tree.edge_count * AK_SHA256_BYTES || hashes_len % AK_SHA256_BYTES || count > UINT64_MAX - size)
		return PyErr_Format(PyExc_ValueError, "an edge has 32 bytes for each complete subtree, a hash has 32");
	memcpy(tree.edge, edge, (size_t)edge_len);
	Py_BEGIN_ALLOW_THREADS
	ak_merkle_extend(&tree, ak_sha256_best(), (const uint8_t *)hashes, count);
	Py_END_ALLOW_THREADS
	return PyBytes_FromStringAndSize((const char *)tree.edge, (Py_ssize_t)(tree.edge_count * AK_SHA256_BYTES));
}

static PyObject *py_crc32c(PyObject *module, PyObject *args)
{
	const char *data;
	Py_ssize_t len;
	unsigned crc = 0;

	(void)module;
	if (!PyArg_ParseTuple(args, "y#|I:crc32c", &data, &len, &crc))
		return NULL;
	return PyLong_FromUnsignedLong(ak_crc32c(crc, data, (size_t)len));
}

static PyObject *sha256(PyObject *module, PyObject *args, PyObject *kwargs)
{
	static char *keywords[] = {"data", "portable", NULL};
	const char *data;
	Py_ssize_t len;
	int portable = 0;
	uint8_t digest[AK_SHA256_BYTES];
	(void)module;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y#|$p:sha256", keywords, &data, &len, &portable))
		return NULL;
	ak_sha256(portable ? ak_sha256_portable : ak_sha256_best(), data, (size_t)len, digest);
	return PyBytes_FromStringAndSize((const char *)digest, sizeof digest);
}

static PyMethodDef functions[] = {
	{"crc32c", py_crc32c, METH_VARARGS, "crc32c(data, crc=0) -> the CRC-32C of data, continuing crc"},
	{"scan_records", scan_records, METH_O, "scan_records(records) -> [(start, end, index) of what was refused]"},
	{"check_lines", check_lines, METH_VARARGS, "check_lines(data, at, seq, prev, run) -> (at, this_hashes)"},
	{"merkle_extend", merkle_extend, METH_VARARGS, "merkle_extend(edge, size, hashes) -> edge"},
	{"sha256", (PyCFunction)(void (*)(void))sha256, METH_VARARGS | METH_KEYWORDS, "sha256(data, *, portable) -> digest"},
	{NULL, NULL, 0, NULL},
};

int ak_py_chain_init(PyObject *module)
{
	PyObject *type = PyType_FromModuleAndSpec(module, &chain_spec, NULL);
	if (!type)
		return -1;
	int failed = PyModule_AddType(module, (PyTypeObject *)type) < 0 || PyModule_AddFunctions(module, functions) < 0;
	Py_DECREF(type);
	return failed ? -1 : 0;
}
