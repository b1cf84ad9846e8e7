/* Whose abstract unix socket is it? */
#ifndef AK_ABSTRACT_H
#define AK_ABSTRACT_H

#include "call.h"

/* Does every socket bound to this abstract name (with its leading NUL) belong to a process of the run? False when nobody
 * is bound to it. Slow: walks the run's descriptors; meant for the few programs that use such names. */
bool ak_abstract_in_run(struct ak_call *c, const char *name, size_t len);

#endif
