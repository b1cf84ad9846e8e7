"""The C runs clean under ASan and UBSan: its parsers over hostile input, and the extension under its own unit tests.

scripts/fuzz is the long form of the first half. LeakSanitizer is off for the extension: it cannot run in a process
that is traced, and Python itself keeps memory until the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEEDS = ROOT / "tests" / "fuzz" / "seeds.py"
FLAGS = [
    *("-g", "-O1", "-std=gnu11", "-D_GNU_SOURCE", "-DSTANDALONE", "-Wall", "-Wextra", "-Werror"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-I", str(ROOT / "native"), "-pthread"),
]
TARGETS = {
    "policy": ("policy", "policy_net", "policy_parse", "policy_view"),
    "ring": ("ring",),
    "chain": ("chain", "merkle", "sha256"),
}
# Not of the enforcer: Python's side, the launcher's and the tracer's.
OTHERS = ("py_*.c", "module.c", "launch.c", "pump.c", "tracer.c", "taskset.c")
NOBODY = 65534
# The ring, and the enforcer with real confined processes; the log's C is the chain target above.
SUITE = (
    "test_ring.py",
    "test_enforcer_files.py",
    "test_enforcer_waiting.py",
    "test_calls_mutate.py",
    "test_calls_attr.py",
)


@pytest.mark.parametrize("name", TARGETS)
def test_parsers_over_hostile_input(name: str, tmp_path: Path) -> None:
    program = tmp_path / name
    sources = [ROOT / "tests" / "fuzz" / f"{name}.c", *(ROOT / "native" / f"{part}.c" for part in TARGETS[name])]
    subprocess.run(["gcc", *FLAGS, "-o", program, *sources], check=True)
    arguments: list[str | Path] = ["1500"]
    if name == "policy":
        subprocess.run([sys.executable, SEEDS, "policy", tmp_path / "seeds"], check=True)
        arguments = sorted((tmp_path / "seeds").iterdir(), key=lambda path: path.stat().st_size)[:5]
        assert arguments
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "nothing found" in done.stdout


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Which an ordinary user can reach, whoever runs the tests."""
    with tempfile.TemporaryDirectory(prefix="akbox-fuzz-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.mark.parametrize("target", ["calls", "address"])
def test_the_enforcer_over_hostile_calls(target: str, open_folder: Path) -> None:
    """Any arguments, memory and addresses: nothing that the policy keeps is touched (tests/fuzz/agent.h). A policy that
    grants too much is noticed."""
    program, world = open_folder / target, open_folder / "world"
    others = {path for pattern in OTHERS for path in (ROOT / "native").glob(pattern)}
    sources = [ROOT / "tests" / "fuzz" / name for name in (f"{target}.c", "agent.c")]
    sources += sorted(set((ROOT / "native").glob("*.c")) - others)
    subprocess.run(["gcc", *FLAGS, "-I", str(ROOT / "tests" / "fuzz"), "-o", program, *sources], check=True)
    subprocess.run([sys.executable, SEEDS, target, open_folder / "seeds", world], check=True)
    env = {**os.environ, "AKBOX_FUZZ_DIR": str(world)}
    done = _as_nobody([program, "5000", str(os.getpid())], open_folder, env)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "nothing found" in done.stdout
    if target == "calls":
        everything = "import sys, seeds; from pathlib import Path; w = Path(sys.argv[1])\n"
        everything += "seeds.WORLD_POLICY = seeds.WORLD_POLICY.replace('{0}/work/**', '{0}/**'); seeds.make_world(w)"
        subprocess.run([sys.executable, "-c", everything, world], cwd=SEEDS.parent, check=True)
        done = _as_nobody([program, "50000", "1"], open_folder, env)
        assert done.returncode != 0
        assert "was changed" in done.stderr, done.stderr[-4000:]


def _as_nobody(command: list[str | Path], folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What acts on behalf of a hostile process has nothing of root's within reach, and no other process."""
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", folder], check=True)
        ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        command = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "setpriv", *ids, *command]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=env)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and its tests, with the extension built under ASan and UBSan."""
    copy = tmp_path_factory.mktemp("sanitized")
    for name in ("akbox", "native", "policies", "sdk", "scripts", "tests", "setup.py", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(source, copy / name)
    env = {**os.environ, "AKBOX_SANITIZE": "1"}
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"]
    subprocess.run(build, cwd=copy, env=env, check=True, capture_output=True)
    return copy


def test_the_extension_under_its_own_tests(sanitized: Path) -> None:
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
        "LD_PRELOAD": runtime.stdout.strip(),
        # A cancelled thread's stack stays poisoned, which ASan itself trips over when it takes its signal stack away.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:handle_segv=0:use_sigaltstack=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(sanitized),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    loaded = f"import akbox._native as n; assert n.__file__.startswith({str(sanitized)!r}), n.__file__"
    subprocess.run([sys.executable, "-c", loaded], cwd=sanitized, env=env, check=True)
    files = [str(sanitized / "tests" / "unit" / name) for name in SUITE]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    done = subprocess.run(command, cwd=sanitized, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, (done.stdout[-6000:], done.stderr[-4000:])
