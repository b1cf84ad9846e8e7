"""The agent's terminal: a pty of its own between the agent and ours. Not for pipes and files: those are handed through.

The agent never holds a descriptor of the host's terminal, so it cannot push input into it, and it is the leader of its
own session, so ^C, ^Z and job control inside work as they do outside. Bytes are copied by one thread until the run has
ended and the last of its output is out. The host's terminal is in raw mode only while we are in its foreground process
group, and is put back whatever happens.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import stat
import termios
import threading
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from akbox.linux.prompt import Prompt, Question

_CHUNK_BYTES = 65536
_BUFFER_BYTES = 262144  # of output waiting for the host's terminal; more and the agent waits, as it would at a terminal
_INPUT_BYTES = 65536
_BACKGROUND_POLL_MS = 250  # a running background job that is brought forward gets no signal: we have to look
_NOBODY_POLL_MS = 100
_ASKING_POLL_MS = 100  # a question may be decided elsewhere: we have to look
_QUIET_MS = 20  # the line discipline hands output over from a work queue; this long without any is "all out"
_IFLAG, _OFLAG, _CFLAG, _LFLAG, _CC = 0, 1, 2, 3, 6
_DEFAULT_EOF = b"\x04"


class Terminal:
    """A pty for one run. open() → launch with `stdio` and `slave_fd` → start() → finish(); close() at the end, always.

    All methods but ask() belong to the thread that made it; only the copying is in a thread of its own.
    """

    def __init__(self, stdio: tuple[int, int, int]) -> None:
        """Raises OSError when there is no pty to be had. At least one of stdio must be a terminal."""
        tty = [fd for fd in stdio if _is_tty(fd)]
        if not tty:
            raise ValueError("none of the streams is a terminal")
        # In a pipeline (`akbox run … | less`) the terminal is shared with the other end: it stays in line mode.
        self._wants_raw = stdio[1] in tty
        self._wants_input = stdio[0] in tty or stdio[1] in tty
        # The other end of a pipe may be a pager, which reads the same keys: nobody is asked there.
        self._can_ask = self._wants_raw or (self._wants_input and not _is_pipe(stdio[1]))
        self._in = _reopen(tty[0])
        self._out = _reopen(stdio[1] if stdio[1] in tty else tty[-1])
        self._saved = termios.tcgetattr(self._in)
        self._raw = False
        self._suspended = False
        self._modes = threading.Lock()  # guards _raw and _suspended, and with them the modes of the host's terminal
        self.master_fd, self.slave_fd = os.openpty()
        os.set_blocking(self.master_fd, False)
        self._init_slave()
        first, second, third = (self.slave_fd if fd in tty else fd for fd in stdio)
        self.stdio: tuple[int, int, int] = (first, second, third)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._ending = False
        self._abandoned = False
        self._closed = False
        self._quiet_wanted = False
        self._quiet = threading.Event()
        self._questions: deque[Question] = deque()
        self._prompt: Prompt | None = None  # of the thread that copies
        self._show_again = False

    @classmethod
    def open(cls, stdio: tuple[int, int, int] = (0, 1, 2)) -> Terminal | None:
        """A Terminal when one of the streams is a terminal, else None. A closed stream is not a terminal."""
        return cls(stdio) if any(_is_tty(fd) for fd in stdio) else None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    # ---- the life of it ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """After the launch: gives our copy of the slave up (so that its end is seen), goes raw, starts copying."""
        self._close_slave()
        self._enter()
        self._thread = threading.Thread(target=self._copy, name="akbox-terminal", daemon=True)
        self._thread.start()

    def resize(self) -> None:
        """SIGWINCH: the agent's terminal takes the size of the host's (the kernel tells the agent)."""
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(self._in, termios.TIOCGWINSZ, b"\0" * 8)
            fcntl.ioctl(self.master_fd, termios.TIOCSWINSZ, size)

    def ask(self, question: Question) -> bool:
        """Shows a question to the person at the host's terminal, as soon as those before it are decided; the agent's
        output waits meanwhile. From any thread. False when nobody can be asked: in the background, or into a pipe."""
        if not self._can_ask or not self._in_foreground():
            return False
        self._questions.append(question)
        self._poke()
        return True

    def foreground_group(self) -> int | None:
        """The process group of the agent that is in the foreground of its terminal."""
        with contextlib.suppress(OSError):
            return os.tcgetpgrp(self.master_fd) or None
        return None

    def suspend(self) -> None:
        """The agent stopped: lets its last output out and puts the host's terminal back, so that we can stop, too."""
        if self._thread is not None and self._thread.is_alive():
            self._quiet.clear()
            self._quiet_wanted = True
            self._poke()
            self._quiet.wait(1.0)
        with self._modes:
            self._suspended = True
            self._leave()

    def resume(self) -> None:
        """After SIGCONT, perhaps in the background now: raw mode and size again."""
        with self._modes:
            self._show_again = self._show_again or self._suspended
            self._suspended = False
        self._enter()
        self._poke()

    def finish(self, timeout_s: float | None = None) -> bool:
        """The run has ended: True once all its output is on the host's terminal, False when the time is over first.

        May be called again. The terminal is put back when it returns True.
        """
        self._ending = True
        self._close_slave()
        if self._thread is not None:
            self._poke()
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
        with self._modes:
            self._leave()
        return True

    def close(self) -> None:
        """Puts the terminal back and frees everything; output that is not out yet is lost (finish() is for that)."""
        if self._closed:
            return
        self._closed = True
        self._abandoned = True
        self._close_slave()
        if self._thread is not None:
            self._poke()
            self._thread.join()
        with self._modes:
            self._leave()
        for fd in (self.master_fd, self._wake, self._in, self._out):
            os.close(fd)

    # ---- the host's terminal -------------------------------------------------------------------------------------

    def _in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._in) == os.getpgrp()
        except OSError:
            return False  # not our controlling terminal (or gone): never touch its modes, never read it

    def _may_read(self) -> bool:
        return not self._ending and not self._suspended and self._in_foreground()

    def _enter(self) -> None:
        """Raw mode, when it is ours to set now, and the size, which may have changed while we were away."""
        with self._modes:
            if not self._wants_raw or self._raw or self._suspended or not self._in_foreground():
                return
            self._saved = termios.tcgetattr(self._in)
            raw = [*self._saved[:_CC], list(self._saved[_CC])]
            raw[_IFLAG] = 0
            raw[_OFLAG] &= ~termios.OPOST
            raw[_CFLAG] = (raw[_CFLAG] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
            raw[_LFLAG] = 0
            raw[_CC][termios.VMIN], raw[_CC][termios.VTIME] = 1, 0
            self._set(raw)
            self._raw = True
        self.resize()

    def _leave(self) -> None:
        """Preconditions: _modes is held."""
        if self._raw:
            self._raw = False
            self._set(self._saved)

    def _set(self, attributes: list[object]) -> None:
        # From the background the kernel answers tcsetattr with SIGTTOU, which would stop us half way: block it, then
        # the call is simply carried out (termios(3), "tcsetattr").
        with _blocked({signal.SIGTTOU}), contextlib.suppress(termios.error):
            termios.tcsetattr(self._in, termios.TCSANOW, attributes)  # type: ignore[arg-type]

    def _init_slave(self) -> None:
        modes = [*self._saved[:_CC], list(self._saved[_CC])]
        if not self._wants_raw:  # the host's line discipline echoes and ends lines already
            modes[_LFLAG] &= ~termios.ECHO
            modes[_OFLAG] &= ~termios.OPOST
        termios.tcsetattr(self.slave_fd, termios.TCSANOW, modes)
        self.resize()

    def _close_slave(self) -> None:
        if self.slave_fd >= 0:
            os.close(self.slave_fd)
            self.slave_fd = -1

    # ---- copying -------------------------------------------------------------------------------------------------

    def _poke(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake, 1)

    def _copy(self) -> None:
        """The thread: host → agent while in the foreground, agent → host until the end of the last writer."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # every signal is the main thread's
        out, typed = bytearray(), bytearray()
        output_open, input_open = True, self._wants_input
        poll = select.poll()
        while (output_open or out) and not self._abandoned:
            reading = input_open and output_open and self._may_read()
            if reading:
                self._enter()
            self._attend_questions(out, reading)
            for fd, events in self._interest(out, typed, output_open, reading):
                if events:
                    poll.register(fd, events)
                else:
                    with contextlib.suppress(KeyError):
                        poll.unregister(fd)
            ready = dict(poll.poll(self._patience(input_open, reading)))
            if ready.pop(self._wake, 0):
                os.eventfd_read(self._wake)
            if output_open and ready.get(self.master_fd, 0) & ~select.POLLOUT:
                output_open = self._read_into(out)
            if typed and output_open:
                _write_some(self.master_fd, typed)
            if reading and ready.get(self._in, 0):
                input_open = self._type_into(typed, out)
            if out and not _write_some(self._out, out):
                out.clear()  # the host's terminal is gone; the agent's output has nowhere to go
            if self._quiet_wanted and not ready and not out:
                self._quiet_wanted = False
                self._quiet.set()
        self._quiet.set()

    def _interest(
        self, out: bytearray, typed: bytearray, output_open: bool, reading: bool
    ) -> Iterator[tuple[int, int]]:
        master = select.POLLIN if len(out) < _BUFFER_BYTES and self._prompt is None else 0
        yield self._wake, select.POLLIN
        yield self.master_fd, (master | (select.POLLOUT if typed else 0)) if output_open else 0
        yield self._in, select.POLLIN if reading and len(typed) < _INPUT_BYTES else 0
        yield self._out, select.POLLOUT if out else 0

    def _patience(self, input_open: bool, reading: bool) -> int | None:
        if self._quiet_wanted:
            return _QUIET_MS
        if self._prompt is not None:
            return _ASKING_POLL_MS
        return _BACKGROUND_POLL_MS if input_open and not reading and not self._ending else None

    def _read_into(self, out: bytearray) -> bool:
        """False when every slave descriptor is closed and all that was written to them has been read."""
        try:
            data = os.read(self.master_fd, _CHUNK_BYTES)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno == errno.EIO and not self._ending:
                # Nobody holds the terminal at the moment, but the run goes on and /dev/tty can be opened again.
                self._wait_for_reopen()
                return True
            return False
        out += data
        return bool(data)

    def _attend_questions(self, out: bytearray, reading: bool) -> None:
        """Takes the question away that is decided, and shows the next that still waits."""
        if self._prompt is not None:
            end = self._prompt.over() or (b"\r\n" if self._ending else b"")
            if not end:
                if self._show_again and reading:
                    self._show_again = False
                    out += self._prompt.shown()
                return
            out += end
            self._prompt = None
            self._repaint()
        while reading and self._questions and self._prompt is None:
            question = self._questions.popleft()
            if question.settled() is None:
                from akbox.linux.prompt import Prompt

                plain = os.environ.get("TERM", "dumb") == "dumb"
                self._prompt = Prompt(question, raw=self._wants_raw, plain=plain)
                self._show_again = False
                out += self._prompt.shown()

    def _repaint(self) -> None:
        """A program that draws the whole screen draws over the question when the size seems to change."""
        with contextlib.suppress(termios.error, ProcessLookupError, PermissionError):
            group = self.foreground_group()
            if group is not None and not termios.tcgetattr(self.master_fd)[_LFLAG] & termios.ICANON:
                os.killpg(group, signal.SIGWINCH)

    def _wait_for_reopen(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.poll(_NOBODY_POLL_MS)

    def _type_into(self, typed: bytearray, out: bytearray) -> bool:
        """What was typed goes to the agent, or answers a question. False when the host's terminal is gone."""
        try:
            data = os.read(self._in, _CHUNK_BYTES)
        except BlockingIOError:
            return True
        except OSError as error:
            return error.errno == errno.EIO and not self._in_foreground()  # EIO: put into the background in between
        if data:
            if self._prompt is None:
                typed += data
            else:
                shown, handed_on = self._prompt.typed(data)
                out += shown
                typed += handed_on
            return True
        if self._raw:
            return False
        if self._prompt is not None:
            return True
        typed += self._saved[_CC][termios.VEOF] or _DEFAULT_EOF  # ^D in line mode
        return True


def _is_tty(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _is_pipe(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False


def _reopen(fd: int) -> int:
    """Our own open file description of a terminal, so that not blocking is our affair and not the shell's as well."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # someone else's terminal (after su): the inherited descriptor, blocking, has to do
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _write_some(fd: int, buffer: bytearray) -> bool:
    """Writes what the descriptor takes now and removes it from the buffer; False when the other end is gone."""
    try:
        written = os.write(fd, bytes(buffer[:_CHUNK_BYTES]))
    except BlockingIOError:
        return True
    except OSError:
        return False
    del buffer[:written]
    return True


@contextlib.contextmanager
def _blocked(signals: set[signal.Signals]) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
