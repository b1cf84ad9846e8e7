"""The other sandboxes: how each one says what a case's policy says, as data and one function each.

A function gets a Wish and returns the command to start, or raises Cannot with what it has no words for. Nothing here is
tuned to a case; where a sandbox has several ways, the one that its own documentation shows is taken.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

OWN = ("/dev", "/proc")  # a sandbox with namespaces makes its own
CODE = Path(__file__).resolve().parent


class Cannot(Exception):
    """This sandbox has no way to say it."""


@dataclass
class Wish:
    """A case's policy in the terms that most sandboxes have: trees and files, absolute and canonical.

    `hidden`: what no rule grants and cases try to reach, for sandboxes that read everything unless told otherwise.
    `about_…`: the case is about that part of the policy, so that it cannot be left out.
    """

    command: list[str]
    cwd: str
    home: str
    scratch: Path
    read: list[str] = field(default_factory=list)
    write: list[str] = field(default_factory=list)
    execute: list[str] = field(default_factory=list)
    deny: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    patterns: bool = False  # a rule that only a pattern says, or a name that need not exist yet
    about_deny: bool = False
    about_exec: bool = False
    about_hidden: bool = False
    strict: bool = False  # names that are not granted do not exist
    limits: dict[str, int] = field(default_factory=dict)
    wall_ms: int = 0

    def refuse(self, *names: str) -> None:
        """Cannot, for each of these that the case asks for."""
        said = {
            "patterns": (self.patterns, "patterns, and names that are not there yet"),
            "deny": (self.about_deny, "a deny inside what is granted"),
            "hidden": (self.about_hidden, "reading only what is granted"),
            "execute": (self.about_exec and not _below(self.cwd, self.execute), "writable and not executable"),
            "strict": (self.strict, "hiding names"),
            "limits": (bool(self.limits), "limits: " + ", ".join(self.limits)),
            "wall": (bool(self.wall_ms), "a budget of time"),
        }
        for name in names:
            asked, what = said[name]
            if asked:
                raise Cannot(what)


def _below(path: str, trees: Sequence[str]) -> bool:
    return any(path == tree or path.startswith(tree.rstrip("/") + "/") for tree in trees)


def bwrap(wish: Wish) -> list[str]:
    wish.refuse("patterns", "execute", "limits", "wall")
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for path in wish.read:
        words += ["--ro-bind-try", path, path] if not path.startswith(OWN) else []
    words += ["--proc", "/proc", "--dev", "/dev"]
    for path in wish.write:
        words += ["--bind-try", path, path] if not path.startswith(OWN) else []
    for path in wish.read:  # what lies below something writable and is read-only itself
        if _below(path, wish.write) and path not in wish.write:
            words += ["--ro-bind-try", path, path]
    for path in wish.deny:
        words += ["--tmpfs", path] if os.path.isdir(path) else ["--ro-bind", "/dev/null", path]
    return [*words, "--chdir", wish.cwd, "--", *wish.command]


def firejail(wish: Wish) -> list[str]:
    wish.refuse("patterns", "wall")
    words = ["firejail", "--quiet", "--noprofile", "--caps.drop=all", "--nonewprivs", "--seccomp", "--net=none"]
    trees = [path for path in (*wish.read, *wish.write) if path.startswith("/tmp/")]
    words += [f"--whitelist={path}" for path in dict.fromkeys(trees)]
    words += [f"--read-only={path}" for path in wish.read if path.startswith("/tmp/") and path not in wish.write]
    words += [f"--noexec={path}" for path in wish.write if path.startswith("/tmp/") and not _below(path, wish.execute)]
    words += [f"--blacklist={path}" for path in wish.deny]
    flags = {"open_files": "--rlimit-nofile", "file_size": "--rlimit-fsize", "pids": "--rlimit-nproc"}
    for name, value in wish.limits.items():
        if name not in flags:
            raise Cannot(f"limits: {name}")
        words.append(f"{flags[name]}={value}")
    return [*words, "--", *wish.command]


def hlyn(wish: Wish) -> list[str]:
    wish.refuse("patterns", "deny", "strict", "limits", "wall")
    words = ["hlyn", "run", "--no-log", "--no-report"]
    for flag, paths in (("--read", wish.read), ("--write", wish.write), ("--exec", wish.execute)):
        for path in paths:
            if os.path.exists(path):
                words += [flag, path]
    return [*words, "--", *wish.command]


def sandlock(wish: Wish) -> list[str]:
    wish.refuse("patterns", "execute", "strict", "wall")
    if "file_size" in wish.limits:
        raise Cannot("limits: file_size")
    return _by_library("sandlock", wish)


def nono(wish: Wish) -> list[str]:
    wish.refuse("patterns", "deny", "execute", "strict", "wall")
    if "memory" in wish.limits:
        raise Cannot("limits: memory, without a cgroup of its own")
    return _by_library("nono", wish)


def _by_library(name: str, wish: Wish) -> list[str]:
    """Sandboxes that are libraries are started by a few lines of Python with the library's own interpreter."""
    told = {
        "read": [path for path in wish.read if os.path.exists(path)],
        "write": [path for path in wish.write if os.path.exists(path)],
        "deny": wish.deny,
        "limits": wish.limits,
        "cwd": wish.cwd,
        "command": wish.command,
    }
    python = shutil.which(f"{name}-python")
    assert python is not None
    return [python, str(CODE / "libraries.py"), name, json.dumps(told)]


def srt(wish: Wish) -> list[str]:
    wish.refuse("execute", "strict", "limits", "wall")
    settings = wish.scratch / "srt.json"
    settings.write_text(
        json.dumps(
            {
                "network": {"allowedDomains": [], "deniedDomains": []},
                "filesystem": {
                    "denyRead": [*wish.hidden, *wish.deny],
                    "allowWrite": [path for path in wish.write if not path.startswith("/dev/")],
                    "denyWrite": wish.deny,
                },
            }
        )
    )
    settings.chmod(0o644)
    return ["srt", "--settings", str(settings), "-c", shlex.join(wish.command)]  # plain words it joins with spaces


def codex(wish: Wish) -> list[str]:
    """Its sandbox has modes: read everything, write the workspace."""
    wish.refuse("hidden", "execute", "strict", "limits", "wall", "deny", "patterns")
    return ["codex", "sandbox", "-c", 'sandbox_mode="workspace-write"', "--", *wish.command]


def runsc(wish: Wish) -> list[str]:
    """An OCI bundle with the granted trees as mounts, as root starts it: process and files are the user's."""
    wish.refuse("patterns", "execute", "limits", "wall")
    bundle = wish.scratch / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    (bundle / "rootfs").mkdir(parents=True)
    mounts = [{"destination": "/proc", "type": "proc", "source": "proc"},
              {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}]  # fmt: skip
    binds = [(path, "rw" if path in wish.write else "ro") for path in dict.fromkeys((*wish.read, *wish.write))]
    for path, mode in sorted(binds):
        if not path.startswith(("/dev", "/proc", "/sys")) and os.path.exists(path):
            mounts.append({"destination": path, "type": "bind", "source": path, "options": ["rbind", mode]})  # type: ignore[dict-item]
    for path in wish.deny:
        empty = bundle / ("empty" if os.path.isdir(path) else "nothing")
        empty.mkdir(exist_ok=True) if os.path.isdir(path) else empty.touch()
        mounts.append({"destination": path, "type": "bind", "source": str(empty), "options": ["bind", "ro"]})  # type: ignore[dict-item]
    user = os.stat(wish.cwd).st_uid
    (bundle / "config.json").write_text(
        json.dumps(
            {
                "ociVersion": "1.0.2",
                "process": {
                    "user": {"uid": user, "gid": user},
                    "args": wish.command,
                    "env": [f"HOME={wish.home}", "PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"],
                    "cwd": wish.cwd,
                    "capabilities": {},
                },
                "root": {"path": "rootfs"},
                "mounts": mounts,
                "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]},
            }
        )
    )
    name = f"kit-{os.getpid()}-{abs(hash(str(bundle))):x}"
    words = ["runsc", f"--root={bundle}/state", "--network=none", "--ignore-cgroups", "run", f"--bundle={bundle}", name]
    return words


@dataclass(frozen=True)
class Peer:
    """`as_root`: it is started by root, and gives the command to the user itself. `version`: prints it."""

    id: str
    what: str
    wrap: Callable[[Wish], list[str]]
    program: str
    version: tuple[str, ...]
    install: str
    as_root: bool = False


PEERS = (
    Peer("bwrap", "namespaces, by mounts", bwrap, "bwrap", ("bwrap", "--version"), "apt-get install bubblewrap"),
    Peer("firejail", "set-uid: namespaces, seccomp", firejail, "firejail", ("firejail", "--version"),
         "apt-get install firejail && firecfg --add-users nobody"),
    Peer("runsc", "gVisor: a kernel in user space", runsc, "runsc", ("runsc", "--version"), "apt-get install runsc",
         as_root=True),
    Peer("hlyn", "Landlock, seccomp", hlyn, "hlyn", ("hlyn", "--version"), "pip install hlyn"),
    Peer("sandlock", "Landlock, user notification", sandlock, "sandlock-python",
         ("sandlock-python", "-c", "from importlib.metadata import version; print(version('sandlock'))"),
         "pip install sandlock; its interpreter as sandlock-python on PATH"),
    Peer("nono", "Landlock", nono, "nono-python",
         ("nono-python", "-c", "from importlib.metadata import version; print('nono-py', version('nono-py'))"),
         "pip install nono-py; its interpreter as nono-python on PATH"),
    Peer("srt", "bubblewrap, seccomp, proxies", srt, "srt", ("srt", "--version"),
         "apt-get install socat ripgrep bubblewrap; npm install -g @anthropic-ai/sandbox-runtime"),
    Peer("codex", "bubblewrap, seccomp", codex, "codex", ("codex", "--version"), "npm install -g @openai/codex"),
)  # fmt: skip


def version_of(peer: Peer) -> str:
    found = subprocess.run(list(peer.version), capture_output=True, text=True, check=False, cwd="/")
    lines = (found.stdout or found.stderr).strip().splitlines()
    return lines[0].strip() if lines else "unknown"
