"""A host program as in a Kubernetes pod: many threads, and a filter like the runtime's default over all of them.

Installs the filter, starts threads, and from four of them at once runs a command in a sandbox. Prints what they said.
"""

from __future__ import annotations

import errno
import threading

import pyseccomp

import akbox

# What the runtimes' default profiles refuse to a container without capabilities, as far as akbox could miss it.
REFUSED_EPERM = (
    "unshare",
    "setns",
    "mount",
    "chroot",
    "pidfd_getfd",
    "userfaultfd",
    "kcmp",
    "keyctl",
    "bpf",
    "add_key",
)
REFUSED_ENOSYS = ("clone3",)
UNKNOWN_NUMBERS = range(1024, 1101)


def confine() -> None:
    runtime = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for name in REFUSED_EPERM:
        runtime.add_rule(pyseccomp.ERRNO(errno.EPERM), name)
    for name in REFUSED_ENOSYS:
        runtime.add_rule(pyseccomp.ERRNO(errno.ENOSYS), name)
    for number in UNKNOWN_NUMBERS:
        runtime.add_rule(pyseccomp.ERRNO(errno.ENOSYS), number)
    runtime.load()


def main() -> None:
    confine()
    done = threading.Event()
    idle = [threading.Thread(target=done.wait) for _ in range(8)]
    said: list[str] = []

    def run() -> None:
        result = akbox.Sandbox("default").run(["echo", "from a thread"])
        said.append(result.stdout.decode().strip() if result.exit_code == 0 else f"{result.exit_code} {result.reason}")

    runs = [threading.Thread(target=run) for _ in range(4)]
    for thread in (*idle, *runs):
        thread.start()
    for thread in runs:
        thread.join()
    done.set()
    for thread in idle:
        thread.join()
    print(f"{len(said)} runs: {sorted(set(said))}")


if __name__ == "__main__":
    main()
