"""The findings are true: they agree with what a test sees for itself, and with a host made worse on purpose."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from akbox import _native
from akbox.linux import probe as probe_module
from akbox.linux.probe import HostReport, ProbeError, probe, run_report
from akbox.linux.syscalls import number_of

CHILD = Path(probe_module.__file__).with_name("probe_child.py")
NUMBERS = json.dumps({name: number_of(os.uname().machine, name) for name in probe_module._CALLS})

# Runs the probing program under a filter that answers one call with an errno, as a container's profile would.
WORSE = """
import ctypes, os, struct, sys
nr, number, *command = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
rules = ((0x20, 0, 0, 0), (0x15, 0, 1, nr), (6, 0, 0, 0x50000 | number), (6, 0, 0, 0x7FFF0000))
code = b"".join(struct.pack("=HBBI", *rule) for rule in rules)
class Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(code) // 8, code)), 0, 0) == 0
os.execv(command[0], command)
"""


def worse(call: str | int, number: int) -> dict[str, list[object]]:
    nr = call if isinstance(call, int) else number_of(os.uname().machine, call)
    command = [sys.executable, "-I", "-S", str(CHILD), NUMBERS]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", WORSE, str(nr), str(number), *command], capture_output=True, check=True
    )
    found: dict[str, list[object]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def report() -> HostReport:
    return probe()


def test_every_layer_was_tried(report: HostReport) -> None:
    names = [layer.name for layer in report.layers]
    assert len(names) == len(set(names)) > 15
    assert {"seccomp", "listener", "ptrace", "trap", "landlock", "openat2", "libseccomp"} <= set(names)
    for layer in report.layers:
        assert layer.works or (layer.detail and layer.remedy), layer
    assert report.landlock_abi == _native.landlock_abi()
    with pytest.raises(KeyError):
        report.layer("no such layer")


def test_this_host_can_hold_the_default_policy(report: HostReport) -> None:
    """The tests of confinement mean nothing on a host where this fails."""
    assert report.missing_for_default == ()


def test_the_same_without_privileges() -> None:
    found = json.loads(subprocess.run(unprivileged(), capture_output=True, check=True).stdout)
    assert [name for name, (works, _) in found.items() if not works] == [
        layer.name for layer in probe().layers if not layer.works and layer.name in found
    ]


def unprivileged() -> list[str]:
    become = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"] if os.geteuid() == 0 else []
    source = CHILD.read_text()  # read here: the tree may be closed to others
    program = f"import sys; sys.argv[1:] = [{NUMBERS!r}]; exec(compile({source!r}, 'probe_child.py', 'exec'))"
    return [*become, "/usr/bin/python3" if become else sys.executable, "-I", "-S", "-c", program]


@pytest.mark.parametrize(
    ("call", "layers"),
    [
        ("ptrace", {"ptrace", "trap", "trace"}),
        ("process_vm_readv", {"process_vm_readv"}),
        ("pidfd_getfd", {"pidfd_getfd"}),
        ("landlock_restrict_self", {"landlock", "landlock-scope"}),
        ("openat2", {"openat2"}),
        ("close_range", {"close_range"}),
        ("unshare", {"unshare-fs"}),
    ],
)
def test_what_a_container_refuses_is_found_missing(call: str, layers: set[str]) -> None:
    base = worse(600, 38)
    found = worse(call, 1)
    gone = {name for name, (works, _) in found.items() if not works and base[name][0]}
    assert gone == layers


def test_a_host_filter_that_answers_the_authority_numbers_does_not_hide_them_from_trap() -> None:
    """runc answers unknown numbers ENOSYS; TRAP is stronger than ERRNO (design 03)."""
    assert worse(1024, 38)["trap"][0] is True


def test_remembered_by_situation(tmp_path: Path, report: HostReport, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def count() -> HostReport:
        calls.append(1)
        return report

    monkeypatch.setattr(probe_module, "probe", count)
    path = tmp_path / "host.json"
    assert run_report(tmp_path) == run_report(tmp_path) == report
    assert path.stat().st_mode & 0o777 == 0o600
    forget = probe_module._remembered.cache_clear
    forget()
    assert run_report(tmp_path) == report
    assert len(calls) == 1
    for damage in (lambda: path.write_text("{"), lambda: path.chmod(0o644), lambda: path.unlink()):
        damage()
        forget()
        assert run_report(tmp_path) == report
        path.chmod(0o600)
    assert len(calls) == 4
    monkeypatch.setattr(probe_module, "_identity", lambda path: "another binary")
    assert run_report(tmp_path) == report
    assert len(calls) == 5
    assert os.listdir(tmp_path) == ["host.json"]
    forget()


def test_a_report_that_says_more_than_true_is_not_believed(tmp_path: Path, report: HostReport) -> None:
    """`works` must be the JSON value true; anything else is no."""
    probe_module._store(tmp_path / "host.json", "s", report)
    data = json.loads((tmp_path / "host.json").read_text())
    data["layers"][0][1] = "yes"
    (tmp_path / "host.json").write_text(json.dumps(data))
    loaded = probe_module._load(tmp_path / "host.json", "s")
    assert loaded is not None
    assert not loaded.layers[0].works


def test_a_probe_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probe_module, "_CHILD", tmp_path / "absent.py")
    with pytest.raises(ProbeError, match="failed"):
        probe()
    monkeypatch.setattr(probe_module.os, "uname", lambda: os.uname_result(("Linux", "h", "6", "v", "riscv64")))
    with pytest.raises(ProbeError, match="riscv64"):
        probe()


def test_what_is_missing_for_the_default_policy_is_named(report: HostReport) -> None:
    def without(*names: str) -> tuple[str, ...]:
        layers = tuple(
            probe_module.Layer(x.name, x.works and x.name not in names, x.detail, x.remedy) for x in report.layers
        )
        return tuple(x.name for x in HostReport(layers, 7, "6").missing_for_default)

    assert without("listener") == without("process_vm_readv") == without("pidfd_getfd") == ()
    assert without("listener", "trace") == ("listener",)
    assert without("landlock", "openat2") == ("landlock", "openat2")
    assert without("process_vm_readv", "proc-mem") == ("process_vm_readv",)
