"""Which layers this host gives a run, and whether they are enough: a missing one refuses the run, unless it is waived.

What the host gives is tried by probe.py. Layers that only make a run slower, or whose work the enforcer does instead,
are used where they are and need no waiver.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from akbox import _native
from akbox.linux.errors import CannotRun
from akbox.linux.probe import HostReport, Layer, ProbeError, run_report

FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5

_DOOR = 0x414B_0000  # native/upcall.c

# A run cannot be held at all without these; of a tuple, one is enough.
_ALWAYS: tuple[tuple[str, ...], ...] = (
    ("seccomp",),
    ("libseccomp",),
    ("openat2",),
    ("close_range",),
    ("process_vm_readv", "proc-mem"),
    ("ptrace",),
)
_LISTENER = ("listener", "listener-addfd", "listener-continue")
_TRACE = ("trace",)
# Second fences: a run is held without them, by one fence instead of two. Only these may be waived.
WAIVABLE = ("landlock",)


class Host(Struct, frozen=True):
    """What a run may build on. degraded: layers that are missing and were waived.

    authority_numbers: the raw numbers 1024-1044 can be served (RET_TRAP and a tracer). signals_scoped: Landlock keeps
    signals inside the run; else the enforcer does. accepts: a tracer can see what an accept returned.
    """

    authority_numbers: bool
    notify: bool
    landlock: bool
    signals_scoped: bool
    fds_by_pidfd: bool
    listener_flags: int
    degraded: tuple[str, ...]
    accepts: bool = False


def check_host(interposer: str, allow_degraded: Sequence[str], state_dir: Path | None) -> Host:
    """interposer: "auto", "notify" or "ptrace". Raises CannotRun naming every layer that is missing and not waived."""
    unknown = [name for name in allow_degraded if name not in WAIVABLE]
    if unknown:
        raise CannotRun(
            f"--allow-degraded {unknown[0]}: not a layer that may be missing", f"it can name {', '.join(WAIVABLE)}"
        )
    try:
        report = run_report(state_dir)
    except ProbeError as error:
        raise CannotRun(f"this host could not be examined: {error}", "run `akbox doctor`") from error
    has_listener = all(report.works(name) for name in _LISTENER)
    notify = interposer != "ptrace" and (has_listener or interposer == "notify")
    missing = _missing(report, (*_ALWAYS, *((name,) for name in (_LISTENER if notify else _TRACE))))
    absent = [report.layer(name) for name in WAIVABLE if not report.works(name)]
    missing += [layer for layer in absent if layer.name not in allow_degraded]
    if missing:
        raise nested() if under_akbox() else _refusal(missing)
    return Host(
        authority_numbers=interposer != "notify" and report.works("trap"),
        notify=notify,
        landlock=report.works("landlock"),
        signals_scoped=report.landlock_abi >= 6,
        fds_by_pidfd=report.works("pidfd_getfd"),
        listener_flags=FILTER_FLAG_WAIT_KILLABLE_RECV if report.works("listener-wait-killable") else 0,
        degraded=tuple(layer.name for layer in absent),
        accepts=report.works("trace"),
    )


def under_akbox() -> bool:
    """Does another akbox answer for this process? Its door serves prctl options that no kernel has: a number that is no
    authority call is ENOSYS there, and EINVAL where nobody listens."""
    try:
        _native.prctl(_DOOR)
    except OSError as error:
        return error.errno != errno.EINVAL
    return True


def nested() -> CannotRun:
    """Why there is no run inside a run."""
    return CannotRun(
        "akbox is already running above this process, and one run cannot hold another",
        "leave the inner `akbox run` out: what it would start is held by the outer run's policy; or start it outside",
    )


def _missing(report: HostReport, needed: Sequence[tuple[str, ...]]) -> list[Layer]:
    return [report.layer(names[0]) for names in needed if not any(report.works(name) for name in names)]


def _refusal(missing: Sequence[Layer]) -> CannotRun:
    names = ", ".join(layer.name for layer in missing)
    message = f"this host cannot hold the policy: no {names} ({missing[0].detail})"
    waivable = [layer.name for layer in missing if layer.name in WAIVABLE]
    if len(waivable) == len(missing):
        options = " ".join(f"--allow-degraded {name}" for name in waivable)
        return CannotRun(message, f"{missing[0].remedy}; or run with one fence less: {options}")
    return CannotRun(message, missing[0].remedy or "run `akbox doctor`")
