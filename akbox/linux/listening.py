"""Sockets of the supervisor's own servers: on loopback, on ports that the kernel chooses."""

from __future__ import annotations

import contextlib
import socket
import struct

Pair = tuple[socket.socket, socket.socket | None]
_RESET = struct.pack("ii", 1, 0)


def listen(kind: socket.SocketKind, undo: contextlib.ExitStack) -> Pair:
    """On 127.0.0.1 and on ::1; no second one where there is no IPv6. Raises OSError."""
    v4 = _bound(socket.AF_INET, kind, "127.0.0.1", undo)
    v6 = None
    with contextlib.suppress(OSError):
        v6 = _bound(socket.AF_INET6, kind, "::1", undo)
    return v4, v6


def ports(pair: Pair | None) -> tuple[int, int]:
    """Their numbers; 0 for one that is not there."""
    v4, v6 = pair or (None, None)
    return v4.getsockname()[1] if v4 else 0, v6.getsockname()[1] if v6 else 0


def reset(s: socket.socket) -> None:
    """Ends a connection so that the other side sees an error, not an orderly end."""
    with contextlib.suppress(OSError):
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    s.close()


def _bound(
    family: socket.AddressFamily, kind: socket.SocketKind, address: str, undo: contextlib.ExitStack
) -> socket.socket:
    s = socket.socket(family, kind)
    try:
        s.bind((address, 0))
        if kind == socket.SOCK_STREAM:
            s.listen(1024)
        s.setblocking(False)
    except OSError:
        s.close()
        raise
    undo.callback(s.close)
    return s
