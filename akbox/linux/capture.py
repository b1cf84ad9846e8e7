"""Standard streams of a run that a library caller started: bytes in, bytes out, in bounded memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType

from msgspec.structs import replace

from akbox.linux.result import RunResult
from akbox.linux.run import Run

MAX_CAPTURED_BYTES = 64 << 20
_CHUNK = 1 << 16


class Capture:
    """Pipes (or /dev/null) for one run. `child_ends` go to Sandbox.start(); `finish()` waits and collects."""

    def __init__(self, stdin: bytes | None, capture: bool) -> None:
        self._stdin = stdin
        self._capture = capture
        self._threads: list[threading.Thread] = []
        self._collected: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}

    def __enter__(self) -> Capture:
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._in = os.pipe2(os.O_CLOEXEC) if self._stdin is not None else None
        self._out = os.pipe2(os.O_CLOEXEC) if self._capture else None
        self._err = os.pipe2(os.O_CLOEXEC) if self._capture else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._close_child_ends()
        if not self._threads:  # the run never started: nobody reads or writes our ends
            for fd in (self._in and self._in[1], self._out and self._out[0], self._err and self._err[0]):
                if fd is not None:
                    os.close(fd)
        for thread in self._threads:
            thread.join()

    @property
    def child_ends(self) -> tuple[int, int, int]:
        return (
            self._in[0] if self._in else self._null,
            self._out[1] if self._out else self._null,
            self._err[1] if self._err else self._null,
        )

    def finish(self, run: Run, timeout: float | None) -> RunResult:
        """The result with the captured output. Raises TimeoutError after killing the run."""
        self._start_threads()
        try:
            result = run.wait(timeout)
        except TimeoutError:
            run.kill()
            run.wait()
            raise
        for thread in self._threads:
            thread.join()
        return replace(result, stdout=bytes(self._collected[1]), stderr=bytes(self._collected[2]))

    def _start_threads(self) -> None:
        """Our copies of the child's ends go first: only then is the end of the tree the end of the streams."""
        self._close_child_ends()
        if self._in is not None:
            self._spawn(partial(_feed, self._in[1], self._stdin or b""))
        if self._out is not None and self._err is not None:
            self._spawn(partial(_collect, self._out[0], self._collected[1]))
            self._spawn(partial(_collect, self._err[0], self._collected[2]))

    def _spawn(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="akbox-stream", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _close_child_ends(self) -> None:
        if self._null < 0:
            return
        for fd in {self._null, *self.child_ends}:
            os.close(fd)
        self._null = -1


def _feed(fd: int, data: bytes) -> None:
    """Python ignores SIGPIPE: an agent that does not read its input is a BrokenPipeError, and no error of ours."""
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except BrokenPipeError:
        return
    finally:
        os.close(fd)


def _collect(fd: int, into: bytearray) -> None:
    try:
        while chunk := os.read(fd, _CHUNK):
            into += chunk[: MAX_CAPTURED_BYTES - len(into)]
    finally:
        os.close(fd)
