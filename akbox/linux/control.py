"""A run's control socket: `$XDG_RUNTIME_DIR/akbox/<run id>.sock`, or `control.sock` in the run's directory.

Only processes of our own uid are answered; the agent has that uid too, so every policy denies it both places
(akbox/policy/compile.py). One request and one answer a connection, each a line of JSON. The modules behind the requests
are imported when the first comes.
"""

from __future__ import annotations

import _socket
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from akbox.kernel.kernel import Kernel
from akbox.linux.unix_listener import UnixListener
from akbox.rundir import own_directory

REQUEST_MAX = 1 << 16
ANSWER_MAX = 1 << 24
_TIMEOUT_S = 5.0
_MAX_CONNECTIONS = 64
NAME = "control.sock"


def control_dir() -> Path | None:
    """Where control sockets of this user's runs are, or None where there is no runtime directory."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(base) / "akbox" if os.path.isabs(base) else None


class Control:
    """The socket and its thread, from `start` to `close`. A host on which it cannot be made has none: what needs it
    says so, and the run goes on."""

    def __init__(self, kernel: Kernel, run_dir: Path, on_failure: Callable[[str], None]) -> None:
        self._kernel = kernel
        self._run_dir = run_dir

        def failed(error: Exception) -> None:
            on_failure(f"internal error in a control request: {error!r}")

        self._listener = UnixListener("akbox-control", self._attend, failed, _MAX_CONNECTIONS)

    def start(self) -> bool:
        """False when there is no socket."""
        try:
            self._listener.start(*self._place())
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._listener.close()

    def _place(self) -> tuple[int, str]:
        """The directory and the name in it."""
        runtime = control_dir()
        if runtime is not None:
            with contextlib.suppress(OSError):
                return own_directory(runtime, None), f"{self._kernel.run_id.hex()}.sock"
        return own_directory(self._run_dir, None), NAME

    def _attend(self, peer: _socket.socket) -> None:
        peer.settimeout(_TIMEOUT_S)
        request = _read_line(peer, REQUEST_MAX)
        from akbox.kernel.control import answer

        peer.sendall(answer(self._kernel, request) + b"\n")


def _read_line(peer: _socket.socket, most: int) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        part = peer.recv(1 << 16)
        if not part or len(data) + len(part) > most:
            raise ConnectionAbortedError
        data += part
    return bytes(data)


def ask(run_dir: Path, request: bytes) -> bytes:
    """Sends one request to a running run and returns the answer. Raises OSError, FileNotFoundError when it does not
    run."""
    runtime = control_dir()
    places = ([runtime / f"{run_dir.name}.sock"] if runtime is not None else []) + [run_dir / NAME]
    for path in places:
        peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        directory = -1
        try:
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            peer.connect(f"/proc/self/fd/{directory}/{path.name}")
            peer.sendall(request + b"\n")
            return _read_line(peer, ANSWER_MAX)
        except (FileNotFoundError, ConnectionRefusedError):
            continue
        finally:
            peer.close()
            if directory >= 0:
                os.close(directory)
    raise FileNotFoundError(2, "the run is not running", str(run_dir))
