"""A unix socket of akbox's own and the thread that takes its callers: what control.py and channel.py have in common.

Only processes of our own uid get through (SO_PEERCRED, unix(7)); who among them may ask what is not decided here.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import struct
import threading
from collections.abc import Callable

_CRED = struct.Struct("3i")


class UnixListener:
    """From `start` to `close`. `attend` gets each connection, in a thread of the connection's own, and closes it; what
    it raises but OSError, which ends only the connection, goes to `on_error`."""

    def __init__(
        self, name: str, attend: Callable[[_socket.socket], None], on_error: Callable[[Exception], None], most: int
    ) -> None:
        """name: of its threads. most: connections at a time; more are closed at once."""
        self._attend, self._on_error, self._most = attend, on_error, most
        self._socket: _socket.socket | None = None
        self._directory, self._file = -1, ""
        self._lock = threading.Lock()
        self._open: dict[int, _socket.socket] = {}  # connections by their descriptors; guarded by _lock
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    def start(self, directory: int, file: str) -> None:
        """Listens at `file` (0600) of the directory, whose descriptor is the listener's from now on. Raises OSError."""
        self._directory, self._file = directory, file
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            listener.bind(f"/proc/self/fd/{directory}/{file}")  # sun_path has 108 bytes, paths have more
            os.chmod(file, 0o600, dir_fd=directory)
            listener.listen(16)
        except OSError:
            listener.close()
            raise
        self._socket = listener
        self._thread.start()

    def close(self) -> None:
        """The name is gone, and what is asked already is answered as the last thing of a connection."""
        self._closing = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(_socket.SHUT_RDWR)  # ends accept()
            self._thread.join()
            self._socket.close()
            with contextlib.suppress(OSError):
                os.unlink(self._file, dir_fd=self._directory)
            self._socket = None
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1
        with self._lock:
            for peer in self._open.values():
                with contextlib.suppress(OSError):
                    peer.shutdown(_socket.SHUT_RD)

    def _serve(self) -> None:
        assert self._socket is not None
        while not self._closing:
            try:
                fd, _ = self._socket._accept()  # type: ignore[attr-defined]  # what socket.accept() is made of
            except OSError:
                if self._closing:
                    return
                continue
            peer = _socket.socket(fileno=fd)
            with self._lock:
                full = len(self._open) >= self._most
                if not full:
                    self._open[fd] = peer
            if full:
                peer.close()
            else:
                name = f"{self._thread.name}-1"
                threading.Thread(target=self._one, args=(fd, peer), name=name, daemon=True).start()

    def _one(self, fd: int, peer: _socket.socket) -> None:
        """The connection's edge."""
        try:
            if _CRED.unpack(peer.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CRED.size))[1] == os.geteuid():
                self._attend(peer)
        except OSError:
            return
        except Exception as error:
            self._on_error(error)
        finally:
            with self._lock:
                self._open.pop(fd)
                peer.close()
