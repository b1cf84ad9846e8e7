"""A host program as in a Kubernetes pod: many threads, and a filter like the runtime's default over all of them.

Installs the filter, starts threads, and from four of them at once runs a command in a sandbox. Prints what they said.
With `sockets`: what became of a connect that the policy allows, and what the report has about it.
"""

from __future__ import annotations

import errno
import socket
import sys
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


CONNECT = "import socket; print(socket.socket().connect_ex(('127.0.0.1', {port})))"


def sockets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        policy = akbox.Policy.parse(f'version = "1.0"\nprofiles = ["python"]\nnet.connect = ["ip:127.0.0.1:{port}"]\n')
        confine()
        result = akbox.Sandbox(policy).run(["/usr/bin/python3", "-I", "-c", CONNECT.format(port=port)])
        print(
            result.stdout.decode().strip(), sorted({d.target for d in result.denials if d.target.startswith("host:")})
        )


if __name__ == "__main__":
    sockets() if sys.argv[1:] == ["sockets"] else main()
