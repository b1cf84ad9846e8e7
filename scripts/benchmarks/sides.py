"""The columns of the benchmark: nothing, akbox in its ways, and each peer that is installed. A side is a way to wrap a
command; what it enforces is said beside it, because a sandbox that records nothing is faster than one that does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Side:
    """wrap(command, directory, preset) is the command under this side; the directory is the one that may be written."""

    id: str
    does: str
    wrap: Callable[[list[str], Path, str], list[str]]
    version: str = ""


def _akbox(*options: str) -> Callable[[list[str], Path, str], list[str]]:
    console = str(Path(sys.executable).with_name("akbox"))

    def wrap(command: list[str], directory: Path, preset: str) -> list[str]:
        connect = ["--connect", "127.0.0.1:*"]
        return [console, "run", "-q", "-p", preset, *connect, *options, "--", *command]

    return wrap


def _bwrap(command: list[str], directory: Path, _preset: str) -> list[str]:
    mounts = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--bind", str(directory), str(directory)]
    return ["bwrap", "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts", *mounts, *command]


def _firejail(command: list[str], directory: Path, _preset: str) -> list[str]:
    return [
        "firejail",
        "--quiet",
        "--noprofile",
        "--keep-var-tmp",
        "--read-only=/",
        f"--read-write={directory}",
        "--",
        *command,
    ]


def _sandlock(command: list[str], directory: Path, _preset: str) -> list[str]:
    reads = [word for path in ("/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/dev") for word in ("-r", path)]
    return ["sandlock", "run", *reads, "-w", str(directory), "-w", "/dev/null", "--", *command]


def _hlyn(command: list[str], directory: Path, _preset: str) -> list[str]:
    return ["hlyn", "run", "--read", "/", "--write", str(directory), "--", *command]


def _runsc(command: list[str], directory: Path, _preset: str) -> list[str]:
    return ["runsc", "--ignore-cgroups", "--network=host", "do", "--cwd", str(directory), "--", *command]


def _strace(command: list[str], _directory: Path, _preset: str) -> list[str]:
    return ["strace", "-f", "-qq", "-o", "/dev/null", *command]


BARE = Side("bare", "nothing", lambda command, _directory, _preset: command)
AKBOX = (
    Side("akbox", "enforces and records every open, exec and socket call", _akbox()),
    Side(
        "akbox writes", "the same, but for read-only opens, which Landlock alone enforces", _akbox("--audit", "writes")
    ),
    Side("akbox ptrace", "as akbox, without user notification", _akbox("--interposer", "ptrace")),
)
_PEERS = (
    Side("bwrap", "mount namespace; records nothing", _bwrap),
    Side("firejail", "mount namespace and a seccomp list; records nothing", _firejail),
    Side("sandlock", "Landlock and user notification; records nothing", _sandlock),
    Side("hlyn", "Landlock and a seccomp list; records refusals", _hlyn),
    Side("runsc", "gVisor: a kernel in user space; records nothing", _runsc),
    Side("strace", "records every call; enforces nothing", _strace),
)


def sides(directory: Path) -> list[Side]:
    """Bare first, akbox, then each peer that is on PATH and can run `true` here, with its version."""
    found = [BARE, *AKBOX]
    for peer in _PEERS:
        if shutil.which(peer.id) and _works(peer, directory):
            found.append(Side(peer.id, peer.does, peer.wrap, _version(peer.id)))
    return found


def _works(side: Side, directory: Path) -> bool:
    try:
        done = subprocess.run(side.wrap(["true"], directory, "default"), capture_output=True, cwd=directory, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    if done.returncode:
        print(f"{side.id} is installed, but does not run here: {done.stderr.decode()[-200:]!r}", file=sys.stderr)
    return done.returncode == 0


def _version(program: str) -> str:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0][:60] if lines else ""
