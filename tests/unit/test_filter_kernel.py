"""The kernel takes the compiled filter and does with it what the table says (in a child; nothing answers for it)."""

import ctypes
import errno
import os
import signal
import socket
import sys

import pytest

from akbox.linux.filter import FilterError, _link, compile_filter
from akbox.linux.syscalls import FilterPlan
from tests.unit.child import in_child

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
ARCH = os.uname().machine


class Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def confine(plan: FilterPlan) -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    code = compile_filter(plan)
    program = Program(len(code) // 8, code)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0
    return libc


def test_what_goes_to_an_absent_supervisor_fails_closed_and_the_rest_works() -> None:
    """USER_NOTIF and TRACE both answer ENOSYS when nobody is there."""

    def body() -> None:
        libc = confine(FilterPlan(ARCH, traced=False, notify=False))
        assert os.getpid() > 0
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
        for attempt in (
            lambda: os.open("/etc/hostname", os.O_RDONLY),
            lambda: os.listdir("/"),
            lambda: os.mkdir("/tmp/akbox-never-made"),
            lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
            lambda: os.chmod("/", 0o755),
        ):
            with pytest.raises(OSError) as caught:
                attempt()
            assert caught.value.errno == errno.ENOSYS
        assert libc.syscall(600) == -1
        assert ctypes.get_errno() == errno.ENOSYS
        assert os.stat("/").st_ino
        assert os.open("/", os.O_PATH) > 2

    assert in_child(body) == 0


def test_the_authority_numbers_raise_sigsys_when_nobody_traces() -> None:
    status = in_child(lambda: confine(FilterPlan(ARCH)).syscall(1024))
    assert status == -signal.SIGSYS


def test_a_32_bit_entry_reaches_the_supervisor() -> None:
    """int 0x80 with eax = 20 is getpid for i386; without a supervisor it must answer -ENOSYS."""
    if ARCH != "x86_64":
        assert sys.platform == "linux"
        return

    def body() -> None:
        import mmap

        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\x48\x63\xc0\xc3")  # mov eax, 20; int 0x80; movsxd rax, eax; ret
        entry = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
        bare = entry()
        assert bare in (os.getpid(), -errno.ENOSYS)  # -ENOSYS: a kernel without 32-bit entry
        confine(FilterPlan(ARCH, notify=False))
        assert entry() == -errno.ENOSYS

    assert in_child(body) == 0


@pytest.mark.parametrize("value", [0x7FFC_0000, 0x0005_0001, 0x8000_0000])
def test_a_return_that_nobody_asked_for_is_an_error(value: int) -> None:
    with pytest.raises(FilterError, match="nobody asked for"):
        _link([(0x06, 0, 0, value)], [], FilterPlan(ARCH), 0)


def test_a_program_without_its_checks_is_an_error() -> None:
    with pytest.raises(FilterError, match="lacks"):
        _link([(0x06, 0, 0, 0x7FFF_0000)], [], FilterPlan(ARCH), 0)
