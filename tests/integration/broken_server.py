"""Holds a run through the library and, when told on standard input, breaks one of its own servers as a bug would:
shuts a socket behind its back, or fails in a query. Says how the run ended on standard error.

usage: broken_server.py relay|dns|query POLICY COMMAND…
"""

import contextlib
import socket
import sys

import akbox
from akbox.linux import answers, net_services

which, policy, *argv = sys.argv[1:]
made = []  # as net_services.py makes them: DNS over UDP, DNS over TCP, the relay
listen = net_services.listen


def remember(kind: socket.SocketKind, undo: contextlib.ExitStack) -> net_services.Pair:
    made.append(listen(kind, undo))
    return made[-1]


def fail(*_: object, **__: object) -> bytes:
    raise RuntimeError("broken by a test")


net_services.listen = remember
run = akbox.Sandbox(policy).start(argv)
sys.stdin.readline()
if which == "query":
    answers.Answerer.answer = fail
else:
    for s in filter(None, made[-1 if which == "relay" else 1]):
        s.shutdown(socket.SHUT_RDWR)
result = run.wait(60)
print(result.exit_code, result.reason, file=sys.stderr)
