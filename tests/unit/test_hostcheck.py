"""What a refusal to run says about the host, and when."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from akbox.linux import hostcheck
from akbox.linux.errors import CannotRun
from akbox.linux.hostcheck import check_host, under_akbox
from akbox.linux.probe import HostReport, Layer

WORKING = (
    *("seccomp", "libseccomp", "openat2", "close_range", "process_vm_readv", "proc-mem", "ptrace", "trap", "trace"),
    *("listener", "listener-addfd", "listener-continue", "listener-wait-killable", "pidfd_getfd", "landlock"),
)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The layers that this host lacks; tests add to it."""
    missing: set[str] = set()

    def report(state_dir: Path | None) -> HostReport:
        return HostReport(tuple(Layer(n, n not in missing, f"tried {n}", f"mend {n}") for n in WORKING), 7, "6")

    monkeypatch.setattr(hostcheck, "run_report", report)
    return missing


def door(monkeypatch: pytest.MonkeyPatch, answer: int | None) -> list[int]:
    asked: list[int] = []

    def prctl(option: int, *args: int) -> int:
        asked.append(option)
        if answer is not None:
            raise OSError(answer, "")
        return 0

    monkeypatch.setattr(hostcheck._native, "prctl", prctl)
    return asked


def test_nobody_is_asked_when_nothing_is_missing(host: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = door(monkeypatch, errno.ENOSYS)
    assert check_host("auto", (), None).landlock
    assert asked == []


def test_a_missing_layer_is_named(host: set[str]) -> None:
    host.add("ptrace")
    assert not under_akbox()
    with pytest.raises(CannotRun, match="no ptrace") as caught:
        check_host("auto", (), None)
    assert caught.value.hint == "mend ptrace"


@pytest.mark.parametrize("answer", [errno.ENOSYS, errno.EPERM, None])
def test_under_another_akbox_that_is_why(host: set[str], monkeypatch: pytest.MonkeyPatch, answer: int | None) -> None:
    host.add("ptrace")
    assert door(monkeypatch, answer) == []
    with pytest.raises(CannotRun, match="akbox is already running above") as caught:
        check_host("auto", (), None)
    assert "outer run" in caught.value.hint
    assert caught.value.exit_code == 125
