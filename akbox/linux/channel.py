"""The framed channel of an agent that cannot make raw calls (Node.js, a shell): a unix socket in its TMPDIR, named by
AKBOX_CHANNEL; AKBOX_CHANNEL_TOKEN says in HELLO which agent speaks.

SO_PEERCRED cannot tell agents apart: the enforcer connects on their behalf, and all have our uid. It keeps other users
out; the token, which only the agent's environment has, keeps other agents out.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from akbox.kernel.kernel import Kernel

NAME = ".akbox.sock"
_MAX_CONNECTIONS = 64
_CRED = struct.Struct("3i")


def new_token() -> str:
    return os.urandom(32).hex()


class Channel:
    """The socket and its threads, from `start` to `close`; the modules behind it are imported with the first
    connection. A socket that cannot be made is no channel: what needs it says so."""

    def __init__(
        self, kernel: Kernel, agent: bytes, token: str, directory: Path, on_failure: Callable[[str], None]
    ) -> None:
        self._kernel = kernel
        self._agent = agent
        self._token = token
        self._directory = directory
        self._on_failure = on_failure
        self._socket: _socket.socket | None = None
        self._lock = threading.Lock()
        self._open: set[int] = set()  # descriptors of connections; guarded by _lock
        self._closing = False
        self._dir_fd = -1
        self._thread = threading.Thread(target=self._serve, name="akbox-channel", daemon=True)

    def start(self) -> None:
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            self._dir_fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            listener.bind(f"/proc/self/fd/{self._dir_fd}/{NAME}")  # sun_path has 108 bytes, paths have more
            listener.listen(16)
        except OSError:
            listener.close()
            return
        self._socket = listener
        self._thread.start()

    def close(self) -> None:
        """Precondition: the agent's processes are gone."""
        self._closing = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(_socket.SHUT_RDWR)
            self._thread.join()
            self._socket.close()
            with contextlib.suppress(OSError):
                os.unlink(NAME, dir_fd=self._dir_fd)
        if self._dir_fd >= 0:
            os.close(self._dir_fd)
        with self._lock:
            for fd in self._open:
                with contextlib.suppress(OSError):
                    peer = _socket.socket(fileno=os.dup(fd))
                    peer.shutdown(_socket.SHUT_RDWR)
                    peer.close()

    def _serve(self) -> None:
        assert self._socket is not None
        while not self._closing:
            try:
                fd, _ = self._socket._accept()  # type: ignore[attr-defined]  # what socket.accept() is made of
            except OSError:
                if self._closing:
                    return
                continue
            with self._lock:
                full = len(self._open) >= _MAX_CONNECTIONS
                if not full:
                    self._open.add(fd)
            if full:
                os.close(fd)
            else:
                threading.Thread(target=self._attend, args=(fd,), name="akbox-channel-1", daemon=True).start()

    def _attend(self, fd: int) -> None:
        """The connection's edge: what goes wrong in here ends the connection, and on our side the run."""
        peer = _socket.socket(fileno=fd)
        try:
            if _CRED.unpack(peer.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CRED.size))[1] == os.geteuid():
                self._converse(peer)
        except OSError:
            return
        except Exception as error:
            self._on_failure(f"internal error on the channel: {error!r}")
        finally:
            with self._lock:
                self._open.discard(fd)
                peer.close()

    def _converse(self, peer: _socket.socket) -> None:
        from akbox.kernel.frames import Conversation, FrameError, error_frame, read_frame

        def read(count: int) -> bytes:
            data = bytearray()
            while len(data) < count and (part := peer.recv(count - len(data))):
                data += part
            return bytes(data)

        talk = Conversation(self._kernel, self._who)
        try:
            while (frame := read_frame(read)) is not None:
                peer.sendall(talk.answer(frame))
        except FrameError as error:
            peer.sendall(error_frame(error))

    def _who(self, token: str) -> bytes | None:
        """Compared in constant time, by its hash."""
        from akbox.kernel.digest import sha256

        given, own = sha256(token.encode("utf-8", "surrogatepass")), sha256(self._token.encode())
        return self._agent if given == own else None
