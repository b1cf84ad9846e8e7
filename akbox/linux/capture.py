"""Standard streams of a run that a library caller started: bytes in, bytes out, in bounded memory."""

from __future__ import annotations

import os
import select
import time
from types import TracebackType

from msgspec.structs import replace

from akbox.linux.errors import CannotRun
from akbox.linux.result import RunResult
from akbox.linux.run import Run

MAX_CAPTURED_BYTES = 64 << 20
_CHUNK = 1 << 16


class Capture:
    """Pipes (or /dev/null) for one run. `child_ends` go to Sandbox.start(); `finish()` waits and collects."""

    def __init__(self, stdin: bytes | None, capture: bool) -> None:
        self._stdin = stdin
        self._unread = memoryview(stdin or b"")
        self._capture = capture
        self._collected = {1: bytearray(), 2: bytearray()}
        self._ours: dict[int, int] = {}  # our ends of the pipes: descriptor -> the event that it is polled for
        self._number: dict[int, int] = {}  # descriptor -> 1 or 2
        self._null = -1
        self._ends: list[int] = []

    def __enter__(self) -> Capture:
        try:
            self._open()
        except OSError as error:
            self.__exit__(None, None, None)
            raise CannotRun(f"the agent's streams cannot be made: {error.strerror}") from error
        return self

    def _open(self) -> None:
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._ends = [self._null] * 3
        if self._stdin is not None:
            self._ends[0], ours = os.pipe2(os.O_CLOEXEC)
            self._ours[ours] = select.POLLOUT
        for number in (1, 2) if self._capture else ():
            ours, self._ends[number] = os.pipe2(os.O_CLOEXEC)
            self._ours[ours] = select.POLLIN
            self._number[ours] = number

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._close_child_ends()
        for fd in list(self._ours):  # the run never started, or was killed
            self._close_ours(fd)

    @property
    def child_ends(self) -> tuple[int, int, int]:
        return self._ends[0], self._ends[1], self._ends[2]

    def finish(self, run: Run, timeout: float | None) -> RunResult:
        """The result with the captured output. Raises TimeoutError after killing the run."""
        self._close_child_ends()  # only then is the end of the tree the end of the streams
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            self._exchange(deadline)
            result = run.wait(_left(deadline))
        except TimeoutError:
            run.kill()
            run.wait()
            raise
        return replace(result, stdout=bytes(self._collected[1]), stderr=bytes(self._collected[2]))

    def _exchange(self, deadline: float | None) -> None:
        """Moves bytes until every stream has ended. On the caller's thread, which has nothing else to do: a thread for
        each stream would take a tenth of a short run. Raises TimeoutError."""
        poll = select.poll()
        for fd, events in self._ours.items():
            os.set_blocking(fd, False)
            poll.register(fd, events)
        while self._ours:
            left = _left(deadline)
            if left == 0:
                raise TimeoutError
            for fd, _ in poll.poll(None if left is None else left * 1000):
                if not (self._feed(fd) if self._ours[fd] == select.POLLOUT else self._collect(fd)):
                    poll.unregister(fd)
                    self._close_ours(fd)

    def _feed(self, fd: int) -> bool:
        """False at the end. Python ignores SIGPIPE: an agent that does not read its input is no error of ours."""
        try:
            self._unread = self._unread[os.write(fd, self._unread) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        return bool(self._unread)

    def _collect(self, fd: int) -> bool:
        try:
            chunk = os.read(fd, _CHUNK)
        except BlockingIOError:
            return True
        into = self._collected[self._number[fd]]
        into += chunk[: MAX_CAPTURED_BYTES - len(into)]
        return bool(chunk)

    def _close_ours(self, fd: int) -> None:
        del self._ours[fd]
        os.close(fd)

    def _close_child_ends(self) -> None:
        if self._null < 0:
            return
        for fd in {self._null, *self._ends}:
            os.close(fd)
        self._null = -1


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
