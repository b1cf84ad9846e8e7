"""From a LandlockPlan to a ruleset descriptor that the launched child restricts itself with.

Every right that the running kernel knows is handled, so what the plan does not grant is refused. What the kernel does
not know yet is a missing layer with a name. Paths are opened as O_PATH descriptors and used at once; no string is kept.
"""

import os
import stat
from collections.abc import Iterable

from msgspec import Struct

from akbox import _native
from akbox.linux.layers import Layer
from akbox.policy.landlock import FILE_RIGHTS, LandlockPlan, PathGrant, handled_bits, rights_bits

_NET_BIND_TCP, _NET_CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_UNIX, _SCOPE_SIGNAL = 1, 2

# (ABI, layer, what the kernel does not hold without it, the Linux release that has it)
_FEATURES: tuple[tuple[int, str, str, str], ...] = (
    (1, "landlock", "files", "5.13"),
    (2, "landlock-refer", "moving files between directories: refused altogether", "5.19"),
    (3, "landlock-truncate", "truncation: held by the enforcer alone", "6.2"),
    (4, "landlock-net", "TCP connect and bind: held by the enforcer alone", "6.7"),
    (5, "landlock-ioctl-dev", "ioctl on devices", "6.10"),
    (6, "landlock-scope", "signals and abstract sockets: held by the enforcer alone", "6.12"),
)


class Ruleset(Struct, frozen=True):
    """fd: close-on-exec, the caller's. skipped: paths of the plan that are not there, or that it must not grant."""

    fd: int
    abi: int
    skipped: tuple[str, ...]


def missing_layers(abi: int) -> tuple[Layer, ...]:
    """What a kernel with this Landlock ABI (0: none) leaves to the enforcer alone."""
    return tuple(
        Layer(name, False, f"Landlock ABI {abi} does not cover {what}", f"Linux {since} or later has it")
        for since_abi, name, what, since in _FEATURES
        if abi < since_abi
    )


def make_ruleset(plan: LandlockPlan) -> int:
    """The descriptor alone, see build_ruleset()."""
    return build_ruleset(plan).fd


def build_ruleset(plan: LandlockPlan, *, connect_ports: Iterable[int] = (), bind_ports: Iterable[int] = ()) -> Ruleset:
    """Raises OSError (EOPNOTSUPP, ENOSYS) on a kernel without Landlock, or when a rule cannot be added.

    Ports are those that the agent may use by its own call; none where the supervisor connects on its behalf.
    """
    abi = _native.landlock_abi()
    net = _NET_BIND_TCP | _NET_CONNECT_TCP if abi >= 4 else 0
    scoped = _SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL if abi >= 6 else 0
    fd = _native.landlock_create_ruleset(handled_bits(abi), net, scoped)
    try:
        skipped = [grant.path for grant in _merged(plan.paths) if not _add_path(fd, grant, abi)]
        if net:
            ports = [(port, _NET_CONNECT_TCP) for port in connect_ports] + [
                (port, _NET_BIND_TCP) for port in bind_ports
            ]
            for port, right in ports:
                _native.landlock_add_port(fd, right, port)
    except BaseException:
        os.close(fd)
        raise
    return Ruleset(fd, abi, tuple(skipped))


def _merged(grants: Iterable[PathGrant]) -> Iterable[PathGrant]:
    """/proc/self is another directory for every process and cannot be named beforehand: its trees become /proc. Which
    files below are the agent's own is the enforcer's to judge, as for every inexact rule."""
    for grant in grants:
        if grant.path.startswith(("/proc/self", "/proc/thread-self")):
            yield PathGrant("/proc", grant.rights, True, grant.rules)
        else:
            yield grant


def _add_path(ruleset: int, grant: PathGrant, abi: int) -> bool:
    """False when there is nothing to grant: the path is not there, is not the canonical name of what is there (the
    policy is asked about canonical names only), or is a directory where one file was meant."""
    try:
        fd = os.open(grant.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISLNK(mode) or (stat.S_ISDIR(mode) and not grant.tree):
            return False
        if os.readlink(f"/proc/self/fd/{fd}") != grant.path:
            return False
        rights = grant.bits(abi)
        if not stat.S_ISDIR(mode):
            rights &= rights_bits(FILE_RIGHTS, abi)
        if rights:  # an empty rule is an error (ENOMSG)
            _native.landlock_add_path(ruleset, rights, fd)
        return bool(rights)
    finally:
        os.close(fd)
