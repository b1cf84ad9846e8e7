"""Gives a stopped task a descriptor of ours, for `--interposer ptrace`, where no listener can install one.

The task is made to run four harmless calls in place of the one it is stopped in: socket, connect to a socket of the
run, recvmsg, close. The descriptor travels as SCM_RIGHTS, so it is the object that was judged, whatever the task's
other threads do to its memory meanwhile: the worst they can do is to receive nothing, or to tell the task a wrong
number. Man pages: ptrace(2), "Syscall-stops"; unix(7), SCM_RIGHTS. Tracer thread only.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import signal
import socket
import struct
from pathlib import Path

from ptrace.binding import ptrace_syscall

from akbox.linux import syscalls
from akbox.linux.memory import read_memory, thread_group, write_memory
from akbox.linux.registers import NAMES, Registers, asked

_SYSCALL_STOP = signal.SIGTRAP | 0x80  # PTRACE_O_TRACESYSGOOD
_WALL = 0x40000000
_SCRATCH_BELOW_STACK = 1024  # past the red zone of either architecture
_MSG_CMSG_CLOEXEC = 0x40000000
_EVENT_EXEC = 4


class TaskGone(Exception):
    """The task was killed while it ran our calls; its end will be reported as a stop."""


class Injector:
    """One per run. `directory` is one that the agent can reach (its TMPDIR)."""

    def __init__(self, directory: Path, arch: str) -> None:
        self._path = os.fsencode(directory / ".descriptors")
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._server.bind(self._path)
        self._server.listen(64)
        self._server.setblocking(False)  # whom we are to answer has connected by then
        self._numbers = {
            name: number
            for name in ("socket", "connect", "recvmsg", "close")
            if (number := syscalls.number_of(arch, name))
        }

    def close(self) -> None:
        self._server.close()

    def give(self, tid: int, fd: int, cloexec: bool) -> int:
        """Precondition: `tid` is in a seccomp stop. Returns the number it has there, or -errno; the task is then in a
        syscall-exit stop with its registers as they were, ready for `Tracer.answer`. Raises TaskGone."""
        saved = Registers.load(tid)
        self._forget_the_dead()
        scratch = (saved.get("rsp" if NAMES.number == "orig_rax" else "sp") - _SCRATCH_BELOW_STACK) & ~15
        task = _Task(tid)
        try:
            return self._exchange(task, scratch, fd, cloexec)
        except ProcessLookupError:
            task.gone = True
            raise TaskGone from None
        finally:
            if not task.gone:
                saved.store()
            for number in task.postponed:
                os.kill(tid, number)

    def _exchange(self, task: _Task, scratch: int, fd: int, cloexec: bool) -> int:
        numbers = self._numbers
        sock = task.call(numbers["socket"], socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC, 0)
        if sock < 0:
            return sock
        try:
            address = struct.pack("=H", socket.AF_UNIX) + self._path + b"\0"
            write_memory(task.tid, scratch, address)
            result = task.call(numbers["connect"], sock, scratch, len(address))
            if result < 0:
                return result
            self._send(fd, thread_group(task.tid))
            return self._receive(task, sock, scratch, cloexec)
        finally:
            task.call(numbers["close"], sock)

    def _forget_the_dead(self) -> None:
        """Closes what is left of tasks that connected and were killed before they were sent anything."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._server.accept()[0].close()

    def _send(self, fd: int, group: int) -> None:
        """To that process and no other of the run. Raises BlockingIOError when it has not connected."""
        while True:
            peer, _ = self._server.accept()
            with peer:
                if struct.unpack("=iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0] == group:
                    peer.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
                    return

    def _receive(self, task: _Task, sock: int, scratch: int, cloexec: bool) -> int:
        """struct msghdr, iovec, one byte and room for one descriptor, laid out in the scratch space."""
        header, vector, byte, control = scratch, scratch + 64, scratch + 96, scratch + 128
        write_memory(task.tid, header, struct.pack("=QIIQQQQII", 0, 0, 0, vector, 1, control, 24, 0, 0))
        write_memory(task.tid, vector, struct.pack("=QQ", byte, 1))
        flags = socket.MSG_DONTWAIT | (_MSG_CMSG_CLOEXEC if cloexec else 0)  # it has been sent
        result = task.call(self._numbers["recvmsg"], sock, header, flags)
        if result < 0:
            return result
        length, level, kind, number = struct.unpack("=Qiii", read_memory(task.tid, control, 20))
        if (length, level, kind) != (20, socket.SOL_SOCKET, socket.SCM_RIGHTS):
            return -errno.EMFILE  # MSG_CTRUNC: the task's descriptor table is full
        return int(number)


class _Task:
    """A task that runs calls of ours, starting from a seccomp stop."""

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self.gone = False
        self.postponed: list[int] = []  # signals that came meanwhile
        self._entered = True  # a seccomp stop is inside the call already

    def call(self, number: int, *arguments: int) -> int:
        regs = Registers.load(self.tid)
        if self._entered:
            regs.set(NAMES.number, number)
        else:
            regs.set(NAMES.instruction, regs.get(NAMES.instruction) - NAMES.call_bytes)
            regs.set(NAMES.result if NAMES.number == "orig_rax" else NAMES.number, number)
        for name, value in zip(NAMES.arguments, arguments, strict=False):
            regs.set(name, value)
        regs.store()
        if not self._entered:
            self._next_stop()  # syscall-entry
        self._entered = False
        self._next_stop()  # syscall-exit
        return ctypes.c_int64(Registers.load(self.tid).get(NAMES.result)).value

    def _next_stop(self) -> None:
        """To the next syscall stop. connect is trapped by our own filter: that stop is passed through.

        An end, or an exec by another thread of the process, is left for the tracer's own loop to see.
        """
        while True:
            asked(ptrace_syscall, self.tid)
            info = os.waitid(os.P_PID, self.tid, os.WEXITED | os.WSTOPPED | os.WNOWAIT | _WALL)
            if info is None or info.si_code != os.CLD_TRAPPED or info.si_status >> 8 == _EVENT_EXEC:
                self.gone = True
                raise TaskGone
            os.waitpid(self.tid, _WALL)
            if info.si_status == _SYSCALL_STOP:
                return
            if info.si_status >> 8 == 0:
                self.postponed.append(info.si_status)
