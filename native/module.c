/* The one extension module of akbox, `akbox._native` (stable ABI). Each part registers its own types. */
#include "module.h"

static int native_exec(PyObject *module)
{
	if (ak_py_policy_init(module) < 0 || ak_py_enforce_init(module) < 0 || ak_py_launch_init(module) < 0 ||
	    ak_py_chain_init(module) < 0 || ak_py_names_init(module) < 0)
		return -1;
	return 0;
}

static PyModuleDef_Slot native_slots[] = {
	{Py_mod_exec, native_exec},
	{0, NULL},
};

static struct PyModuleDef native_module = {
	PyModuleDef_HEAD_INIT,
	.m_name = "akbox._native",
	.m_doc = "akbox's C core: policy matcher, event ring, audit chain, enforcer, launcher and tracer loop.",
	.m_size = 0,
	.m_slots = native_slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
	return PyModuleDef_Init(&native_module);
}
