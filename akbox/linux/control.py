"""A run's control socket: `$XDG_RUNTIME_DIR/akbox/<run id>.sock`, or `control.sock` in the run's directory.

Only processes of our own uid are answered (SO_PEERCRED, unix(7)); the agent has that uid too, so every policy denies it
both places (akbox/policy/compile.py). One request and one answer a connection, each a line of JSON. The modules behind
the requests are imported when the first comes.
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
from akbox.rundir import own_directory

REQUEST_MAX = 1 << 16
ANSWER_MAX = 1 << 24
_TIMEOUT_S = 5.0
_CRED = struct.Struct("3i")
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
        self._on_failure = on_failure
        self._socket: _socket.socket | None = None
        self._directory = -1
        self._name = NAME
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="akbox-control", daemon=True)

    def start(self) -> bool:
        """False when there is no socket."""
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            self._directory = self._open_directory()
            listener.bind(f"/proc/self/fd/{self._directory}/{self._name}")  # sun_path has 108 bytes, paths have more
            os.chmod(self._name, 0o600, dir_fd=self._directory)
            listener.listen(8)
        except OSError:
            listener.close()
            return False
        self._socket = listener
        self._thread.start()
        return True

    def close(self) -> None:
        self._closing = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(_socket.SHUT_RDWR)  # ends accept()
            self._thread.join()
            self._socket.close()
            with contextlib.suppress(OSError):
                os.unlink(self._name, dir_fd=self._directory)
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _open_directory(self) -> int:
        runtime = control_dir()
        if runtime is not None:
            with contextlib.suppress(OSError):
                directory = own_directory(runtime, None)
                self._name = f"{self._kernel.run_id.hex()}.sock"
                return directory
        return own_directory(self._run_dir, None)

    def _serve(self) -> None:
        assert self._socket is not None
        while not self._closing:
            try:
                fd, _ = self._socket._accept()  # type: ignore[attr-defined]  # what socket.accept() is made of
            except OSError:
                if self._closing:
                    return
                continue
            threading.Thread(target=self._attend, args=(fd,), name="akbox-control-1", daemon=True).start()

    def _attend(self, fd: int) -> None:
        """The connection's edge: whatever goes wrong in here ends the connection only."""
        peer = _socket.socket(fileno=fd)
        try:
            peer.settimeout(_TIMEOUT_S)
            if _CRED.unpack(peer.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CRED.size))[1] != os.geteuid():
                return
            request = _read_line(peer, REQUEST_MAX)
            from akbox.kernel.control import answer

            peer.sendall(answer(self._kernel, request) + b"\n")
        except OSError:
            return
        except Exception as error:
            self._on_failure(f"internal error in a control request: {error!r}")
        finally:
            peer.close()


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
