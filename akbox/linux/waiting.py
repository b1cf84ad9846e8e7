"""Waiting for a socket until a time, or until the run ends."""

from __future__ import annotations

import select
import socket
import time

READ, WRITE = select.POLLIN, select.POLLOUT


class Stopped(OSError):
    """The run is over; nobody waits for the answer any more."""


def wait(s: socket.socket, event: int, end: float, stop: int) -> None:
    """Until `s` is ready, or has an error. end: time.monotonic(). stop: a descriptor that is readable once everything
    shall end. Raises TimeoutError or Stopped."""
    poll = select.poll()
    poll.register(s, event)
    poll.register(stop, READ)
    ready = [fd for fd, _ in poll.poll(max(end - time.monotonic(), 0) * 1000)]
    if stop in ready:
        raise Stopped("the run is over")
    if not ready:
        raise TimeoutError("no answer in time")


def read_message(s: socket.socket, end: float, stop: int) -> bytes:
    """One DNS message of a non-blocking TCP connection (RFC 1035, 4.2.2). Raises EOFError at its end, OSError when it
    is cut or late."""
    size = int.from_bytes(_exactly(s, 2, end, stop), "big")
    return _exactly(s, size, end, stop)


def write_message(s: socket.socket, wire: bytes, end: float, stop: int) -> None:
    """Its counterpart."""
    left = memoryview(len(wire).to_bytes(2, "big") + wire)
    while left:
        wait(s, WRITE, end, stop)
        left = left[s.send(left) :]


def _exactly(s: socket.socket, count: int, end: float, stop: int) -> bytes:
    data = b""
    while len(data) < count:
        wait(s, READ, end, stop)
        part = s.recv(count - len(data))
        if not part:
            raise EOFError("the connection ended") if not data else OSError("a message was cut")
        data += part
    return data
