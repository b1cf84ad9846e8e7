"""What this host gives: every layer really tried in a throw-away process, never guessed from a version.

`probe()` is what `doctor` prints. `run_report()` is for a launch: the same findings, kept in the state directory for as
long as the boot, the binaries, and what confines this process stay the same. Whether a policy can be held with what was
found is hostcheck.py's to say.
"""

import json
import os
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from msgspec import Struct

from akbox._native import sha256
from akbox.linux.layers import Layer
from akbox.linux.ruleset import missing_layers

__all__ = ["HostReport", "Layer", "ProbeError", "probe", "run_report"]

_CHILD = Path(__file__).with_name("probe_child.py")
_CACHE_NAME = "host.json"
_CACHE_BYTES_MAX = 1 << 16
_TIMEOUT_S = 20
_PROBE_BYTES = 1 << 24
_CALLS = (
    *("seccomp", "getppid", "pidfd_getfd", "openat2", "close_range", "unshare"),
    *("landlock_create_ruleset", "landlock_restrict_self"),
)

# The default policy needs each of these; of a tuple, one.
_NEEDED: tuple[tuple[str, ...], ...] = (
    ("seccomp",),
    ("libseccomp",),
    ("landlock",),
    ("listener", "trace"),
    ("process_vm_readv", "proc-mem"),
    ("openat2",),
    ("close_range",),
)

_REMEDIES = {
    "seccomp": "a kernel with CONFIG_SECCOMP_FILTER is needed; in a container, allow seccomp(2) in its profile",
    "libseccomp": "install it: apt install libseccomp2, dnf install libseccomp, apk add libseccomp",
    "listener": "Linux 5.14 and no other supervisor above this process; else --interposer ptrace serves alone",
    "listener-addfd": "Linux 5.14 or later; else --interposer ptrace serves alone",
    "listener-continue": "Linux 5.5 or later; else --interposer ptrace serves alone",
    "listener-wait-killable": "Linux 5.19 or later: before, a signal can make a served call start anew",
    "listener-sync-wake-up": "Linux 6.6 or later: before, calls that are served cost more",
    "ptrace": "kernel.yama.ptrace_scope must be 0 or 1, and a container's profile must allow ptrace (containerd 1.6.7)",
    "trap": "needs ptrace; without it the SDK's own door serves the authority calls, raw numbers fail",
    "trace": "needs ptrace; without it --interposer ptrace cannot be used",
    "process_vm_readv": "/proc/PID/mem is used instead; older container runtimes refuse this one",
    "proc-mem": "process_vm_readv is used instead; mount /proc, check kernel.yama.ptrace_scope",
    "pidfd_getfd": "a container's profile must allow it; else sockets reach nothing and no file is watched",
    "landlock": "Linux 5.13 or later with landlock in its lsm= list; a container's profile must allow it",
    "landlock-scope": "Linux 6.12 or later; before, signals to other processes are held by the enforcer alone",
    "openat2": "Linux 5.6 or later; a container's profile must allow it",
    "close_range": "Linux 5.9 or later; a container's profile must allow it",
    "cgroup": "a cgroup (v2) of this user with the memory controller: systemd-run --user --scope -p Delegate=yes",
    "unshare-fs": "a container's profile must allow unshare(CLONE_FS); else new files get the supervisor's umask",
}


class ProbeError(Exception):
    """The probing process itself could not be run: nothing is known about this host, so nothing can be promised."""


class HostReport(Struct, frozen=True):
    """layers: in the order of doctor's table. landlock_abi: 0 when there is no Landlock."""

    layers: tuple[Layer, ...]
    landlock_abi: int
    kernel: str

    def works(self, name: str) -> bool:
        """Was the layer tried, and did it hold? Raises KeyError for a name that is no layer."""
        return self.layer(name).works

    def layer(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    @property
    def missing_for_default(self) -> tuple[Layer, ...]:
        """The layers without which the default policy cannot be held."""
        lacking = (names for names in _NEEDED if not any(self.works(name) for name in names))
        return tuple(self.layer(names[0]) for names in lacking)


def probe() -> HostReport:
    """Tries everything, in 30 to 50 ms. Raises ProbeError."""
    import subprocess  # a launch usually finds the answer in the state directory and needs neither of these

    from akbox.linux.syscalls import ARCHES, number_of

    arch = os.uname().machine
    if arch not in ARCHES:
        raise ProbeError(f"akbox does not know the system calls of {arch}; it knows {', '.join(ARCHES)}")
    numbers = json.dumps({name: number_of(arch, name) for name in _CALLS})
    command = [sys.executable or "python3", "-I", "-S", str(_CHILD), numbers]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, env={}, cwd="/", check=True
        )
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ProbeError(f"the probing process failed: {error}") from error
    return _report(found)


def run_report(state_dir: Path | None = None) -> HostReport:
    """probe(), remembered in this process and in `state_dir`/host.json (mode 0600). Raises ProbeError.

    Under 3 ms when it is remembered. A file that is not ours alone to write, or is damaged, counts as absent.
    """
    return _remembered(_situation(), state_dir)


@lru_cache(maxsize=4)
def _remembered(situation: str, state_dir: Path | None) -> HostReport:
    path = state_dir / _CACHE_NAME if state_dir is not None else None
    report = _load(path, situation) if path is not None else None
    if report is None:
        report = probe()
        if path is not None:
            with suppress(OSError):  # a state directory that cannot be written costs time, nothing else
                _store(path, situation, report)
    return report


def _report(found: dict[str, tuple[bool, str]]) -> HostReport:
    abi = int(found.pop("landlock-abi", (False, "0"))[1])
    found["libseccomp"] = _libseccomp()
    found["cgroup"] = _cgroup()
    layers = [Layer(n, bool(ok), str(why), "" if ok else _REMEDIES.get(n, "")) for n, (ok, why) in found.items()]
    named = {layer.name for layer in layers}
    layers += [layer for layer in missing_layers(abi) if layer.name not in named]
    if not found["ptrace"][0]:
        layers = [_with_yama(layer) if layer.name == "ptrace" else layer for layer in layers]
    return HostReport(tuple(layers), abi, os.uname().release)


def _libseccomp() -> tuple[bool, str]:
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError) as error:
        return False, str(error)
    return True, f"compiles filters (pyseccomp {pyseccomp.__version__})"


def _cgroup() -> tuple[bool, str]:
    from akbox.linux.cgroup import make_cgroup

    made = make_cgroup(f"akbox-probe-{os.getpid()}", _PROBE_BYTES)
    if made is None:
        return False, "no group with a memory controller can be made: limits.memory is measured"
    made.remove()
    return True, f"limits.memory is the kernel's, below {made.path.parent}"


def _with_yama(layer: Layer) -> Layer:
    scope = _text("/proc/sys/kernel/yama/ptrace_scope").strip()
    detail = f"{layer.detail}; kernel.yama.ptrace_scope is {scope}" if scope else layer.detail
    return Layer(layer.name, layer.works, detail, layer.remedy)


# ---- remembering -----------------------------------------------------------------------------------------------------


def _situation() -> str:
    """A digest of all that the findings depend on: boot, kernel, our binaries, who we are and what confines us."""
    status = _text("/proc/self/status")
    confining = ("CapEff", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Uid")
    parts = [
        _text("/proc/sys/kernel/random/boot_id"),
        *os.uname(),
        *(f"{path}:{_identity(path)}" for path in (sys.executable, str(_CHILD), __file__)),
        *(line for line in status.splitlines() if line.partition(":")[0] in confining),
        _text("/proc/self/attr/current"),
        _text("/proc/sys/kernel/yama/ptrace_scope"),
        *(_link(f"/proc/self/ns/{name}") for name in ("user", "pid", "mnt")),
    ]
    return sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hex()


def _identity(path: str) -> str:
    try:
        info = os.stat(path)
    except OSError:
        return "absent"
    return f"{info.st_dev}:{info.st_ino}:{info.st_mtime_ns}:{info.st_size}"


def _text(path: str) -> str:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _load(path: Path, situation: str) -> HostReport | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    with open(fd, "rb") as file:
        info = os.fstat(fd)
        if info.st_uid != os.geteuid() or info.st_mode & 0o077:
            return None
        try:
            data = json.loads(file.read(_CACHE_BYTES_MAX))
            if data["situation"] != situation:
                return None
            layers = tuple(Layer(str(n), w is True, str(d), str(r)) for n, w, d, r in data["layers"])
            return HostReport(layers, int(data["landlock_abi"]), str(data["kernel"]))
        except (ValueError, TypeError, KeyError):
            return None


def _store(path: Path, situation: str, report: HostReport) -> None:
    """Whole or not at all: a new file, renamed over the old one."""
    data = {
        "situation": situation,
        "layers": [[layer.name, layer.works, layer.detail, layer.remedy] for layer in report.layers],
        "landlock_abi": report.landlock_abi,
        "kernel": report.kernel,
    }
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "w") as file:
            json.dump(data, file)
        os.rename(fresh, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(fresh)
        raise
