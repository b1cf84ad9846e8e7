"""Runs a function in a forked child, for what cannot be undone in the process of the tests."""

import os
import traceback
from collections.abc import Callable


def in_child(body: Callable[[], object]) -> int:
    """The child's exit code: 0 when body returned, 1 when it raised (the traceback is on stderr), -n for signal n."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
