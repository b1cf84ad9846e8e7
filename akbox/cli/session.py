"""Attends a run that was started: hands signals on, follows the terminal, stops and continues with the agent.

Signals are collected in a pipe from before the launch on, so none is lost and none interrupts a half-made decision;
only the main thread's loop acts on them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from akbox.linux.sandbox import Run, RunResult
    from akbox.linux.terminal import Terminal

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_OWN = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)
_RUN_ENDED = 0  # not a signal number: what the waiting threads write into the pipe
_AGENT_STOPPED = 255
_DRAIN_SLICE_S = 0.2

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None  # Any: what signal.getsignal() says


class Session:
    """The main thread's part of one `akbox run`. Enter before the launch; one at a time in a process."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before: dict[signal.Signals, Handler] = {}
        self._wakeup_before = -1

    def __enter__(self) -> Session:
        for number in (*FORWARDED, *_OWN):
            # What the caller had ignored (nohup, `&` of a shell without job control) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, lambda *_: None)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def agent_stopped(self, signo: int) -> None:
        """For the run to call, from any thread, when its main process has stopped."""
        self._post(_AGENT_STOPPED)

    def attend(self, run: Run, terminal: Terminal | None) -> RunResult:
        """Returns when the run has ended and the last of its output is on the terminal."""
        results: list[RunResult] = []
        failures: list[BaseException] = []
        ended = threading.Event()

        def wait() -> None:
            try:
                results.append(run.wait())
            except BaseException as failure:  # carried to the main thread, which raises it
                failures.append(failure)
            ended.set()  # before the wake-up: that may be lost, but only in a pipe so full that it wakes us anyway
            self._post(_RUN_ENDED)

        threading.Thread(target=wait, name="akbox-wait", daemon=True).start()
        while not ended.is_set():
            for number in self._next():
                if number != _RUN_ENDED:
                    self._handle(number, run, terminal)
        if terminal is not None:
            self._drain(terminal)
        if failures:
            raise failures[0]
        return results[0]

    def _handle(self, number: int, run: Run, terminal: Terminal | None) -> None:
        if number == _AGENT_STOPPED:
            self._stop_too(run, terminal)
        elif number == signal.SIGWINCH:
            if terminal is not None:
                terminal.resize()
        elif number == signal.SIGTSTP:
            run.signal(signal.SIGTSTP)  # when it stops, we hear of it and stop as well
        elif number == signal.SIGCONT:
            _continue(run, terminal)
        else:
            run.signal(number)

    def _stop_too(self, run: Run, terminal: Terminal | None) -> None:
        """^Z: the terminal put back, then our whole job stops, as it would without us, until the shell continues it."""
        if terminal is not None:
            terminal.suspend()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(0, signal.SIGTSTP)  # an orphaned job is not stopped by this, and then the agent goes on at once
        signal.signal(signal.SIGTSTP, handler)
        _continue(run, terminal)

    def _drain(self, terminal: Terminal) -> None:
        """The run is over; whoever does not want to wait for a terminal that takes nothing sends a signal again."""
        while not terminal.finish(_DRAIN_SLICE_S):
            with contextlib.suppress(BlockingIOError):
                if any(number in _ENDING for number in os.read(self._read, 4096)):
                    return

    def _next(self) -> bytes:
        select.select([self._read], [], [])
        with contextlib.suppress(BlockingIOError):
            return os.read(self._read, 4096)
        return b""

    def _post(self, number: int) -> None:
        with contextlib.suppress(OSError):
            os.write(self._write, bytes((number,)))


def _continue(run: Run, terminal: Terminal | None) -> None:
    if terminal is not None:
        terminal.resume()
        group = terminal.foreground_group()
        if group is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGCONT)
    run.signal(signal.SIGCONT)
