/* What each part of the extension gives to module.c: its types, added to `_native`. Returns 0, or -1 with an exception. */
#ifndef AK_MODULE_H
#define AK_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

struct ak_policy;

int ak_py_policy_init(PyObject *module);        /* py_policy.c:  Policy */
const struct ak_policy *ak_py_policy_get(PyObject *policy);     /* py_policy.c:  borrowed; NULL + TypeError */
int ak_py_enforce_init(PyObject *module);       /* py_enforce.c: Ring, Enforcer */
struct ak_names;
int ak_py_names_init(PyObject *module);         /* py_names.c:   Names */
struct ak_names *ak_py_names_get(PyObject *names);              /* py_names.c:   borrowed; NULL + TypeError */
int ak_py_launch_init(PyObject *module);        /* py_launch.c:  launch, wait_stop, landlock and small system calls */
int ak_py_chain_init(PyObject *module);         /* py_chain.c:   Chain, scan_records, check_lines, merkle_extend, sha256 */

#endif
