"""CPython's own tests of what a sandbox touches, outside and inside: the same result, or a listed difference.

`python -m integration.cpython_suite [--user root|user] [--interposer auto|ptrace] [TEST...]` (in tests/) runs the
modules below with the system's python3 (Debian: package libpython3.11-testsuite) and prints every test whose outcome
differs. Each is explained in docs/compatibility.md, by name or pattern; exit 1 when one is not. Not part of the test
run: it takes minutes.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from akbox.conformance.engine import akbox_command, execute, uid_of, verify
from akbox.conformance.world import World, Worlds

PYTHON = "/usr/bin/python3"
MODULES = [
    f"test_{name}"
    for name in ("os", "posix", "io", "subprocess", "threading", "socket", "mmap", "shutil", "tempfile", "pathlib")
]
RUNNER = Path(__file__).with_name("cpython_runner.py")
PROJECT = Path(__file__).resolve().parents[2]
EXPLAINED = PROJECT / "docs" / "compatibility.md"
TIMEOUT_S = 1800

# Allows the directories of the tests and the loopback network; everything else is as in any other policy.
POLICY = """
version = "1.0"
profiles = ["base", "workdir", "python"]
[fs]
read = ["/tmp", "/var/tmp", "/proc/self/**", "/dev/**", "/sys/**", "/run/**", "/home", "/root"]
write = ["/dev/pts/*", "/dev/shm/**", "/dev/ptmx"]
[net]
connect = ["ip:127.0.0.0/8:*", "ip:[::1]:*", "udp+ip:127.0.0.0/8:*", "udp+ip:[::1]:*"]
bind = ["ip:127.0.0.0/8:*", "ip:[::1]:*", "ip:0.0.0.0:*", "ip:[::]:*",
        "udp+ip:127.0.0.0/8:*", "udp+ip:[::1]:*", "udp+ip:0.0.0.0:*", "udp+ip:[::]:*"]
listen = ["ip:127.0.0.0/8:*", "ip:[::1]:*", "ip:0.0.0.0:*", "ip:[::]:*"]
unix = ["${workdir}/**", "${tmp}/**"]
[limits]
pids = 4096
open_files = 4096
[budgets]
wall_time_ms = 3600000
"""


def run_module(world: World, module: str, inside: list[str]) -> dict[str, str]:
    """Test id → outcome (cpython_runner.py)."""
    report = world.W / f"{module}.json"
    report.unlink(missing_ok=True)
    command = [*inside, PYTHON, str(world.W / RUNNER.name), module, str(report)]
    result = execute(command, world, uid=world.uid, timeout_s=TIMEOUT_S)
    if not report.exists():
        raise SystemExit(f"{module} wrote no report\n{result}")
    found: dict[str, str] = json.loads(report.read_text())
    return found


def compare(world: World, module: str, interposer: str) -> dict[str, tuple[str, str]]:
    """Test id → (outcome outside, outcome inside) where they differ."""
    file = world.base / "cpython.toml"
    file.write_text(POLICY)
    shutil.copy(RUNNER, world.W)
    world.give()
    bare = run_module(world, module, [])
    akbox = [
        *akbox_command(),
        "run",
        "-p",
        str(file),
        "--interposer",
        interposer,
        "--json",
        str(world.STATE / "r.json"),
    ]
    held = run_module(world, module, [*akbox, "--"])
    for log in sorted((world.STATE / "akbox" / "runs").glob("*/audit.jsonl")):
        verify(world, log)
    different = {
        test: (bare.get(test, "not run"), held.get(test, "not run"))
        for test in sorted(bare.keys() | held.keys())
        if kind(bare.get(test, "not run")) != kind(held.get(test, "not run"))
    }
    print(f"{module}: {len(bare)} tests outside, {len(held)} inside, {len(different)} differ", flush=True)
    return different


def kind(outcome: str) -> str:
    return outcome.partition(":")[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--user", choices=("root", "user"), default="user")
    parser.add_argument("--interposer", choices=("auto", "ptrace"), default="auto")
    parser.add_argument("modules", nargs="*", default=MODULES)
    options = parser.parse_args()
    if subprocess.run([PYTHON, "-c", "import test.test_os"], capture_output=True).returncode != 0:
        raise SystemExit(f"{PYTHON} has no test package: apt-get install libpython3.11-testsuite")
    explained = re.findall(r"`(test\.test_[^`]+)`", EXPLAINED.read_text())
    unexplained = 0
    worlds = Worlds()
    try:
        for module in options.modules:
            with worlds.lend(uid_of(options.user)) as world:
                for test, (outside, inside) in compare(world, module, options.interposer).items():
                    known = any(fnmatch.fnmatchcase(test, pattern) for pattern in explained)
                    unexplained += not known
                    note = "" if known else "   (not explained)"
                    print(f"  {test}\n    outside  {outside}\n    inside   {inside}{note}")
    finally:
        worlds.close()
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
