"""The framed channel of an agent that cannot make raw calls (Node.js, a shell): a unix socket in its TMPDIR, named by
AKBOX_CHANNEL; AKBOX_CHANNEL_TOKEN says in HELLO which agent speaks.

SO_PEERCRED cannot tell agents apart: the enforcer connects on their behalf, and all have our uid. It keeps other users
out; the token, which only the agent's environment has, keeps other agents out.
"""

from __future__ import annotations

import _socket
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from akbox.kernel.kernel import Kernel
from akbox.linux.unix_listener import UnixListener

NAME = ".akbox.sock"
_MAX_CONNECTIONS = 64


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

        def failed(error: Exception) -> None:  # on our side: the run ends
            on_failure(f"internal error on the channel: {error!r}")

        self._listener = UnixListener("akbox-channel", self._converse, failed, _MAX_CONNECTIONS)

    def start(self) -> None:
        with contextlib.suppress(OSError):
            directory = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._listener.start(directory, NAME)

    def close(self) -> None:
        """Precondition: the agent's processes are gone."""
        self._listener.close()

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
