"""`lacking.py FEATURE... -- COMMAND...`: runs a command on a kernel that lacks something, by a filter that says so.

landlock: its calls do not exist · listener: no seccomp user notification · ptrace: refused, as by Yama or a container.
"""

from __future__ import annotations

import errno
import os
import sys

import pyseccomp

LANDLOCK_CALLS = (444, 445, 446)  # create_ruleset, add_rule, restrict_self, on every architecture
SECCOMP_SET_MODE_FILTER, NEW_LISTENER = 1, 8


def lack(features: list[str]) -> None:
    kernel = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for feature in features:
        if feature == "landlock":
            for number in LANDLOCK_CALLS:
                kernel.add_rule(pyseccomp.ERRNO(errno.ENOSYS), number)
        elif feature == "listener":
            mode = pyseccomp.Arg(0, pyseccomp.EQ, SECCOMP_SET_MODE_FILTER)
            flags = pyseccomp.Arg(1, pyseccomp.MASKED_EQ, NEW_LISTENER, NEW_LISTENER)
            kernel.add_rule(pyseccomp.ERRNO(errno.EINVAL), "seccomp", mode, flags)
        elif feature == "ptrace":
            kernel.add_rule(pyseccomp.ERRNO(errno.EPERM), "ptrace")
        else:
            raise SystemExit(f"lacking.py: no feature {feature}")
    kernel.load()


if __name__ == "__main__":
    split = sys.argv.index("--")
    lack(sys.argv[1:split])
    os.execvp(sys.argv[split + 1], sys.argv[split + 1 :])
