"""The rows of the benchmark that are whole programs: what each needs, its command, and the bars of the design."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

FILES_IN_REPOSITORY = 4000
PACKAGES = 12
STDLIB = "import asyncio, decimal, email.message, http.client, json, sqlite3, unittest, xml.dom.minidom"
SOURCE = """#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int f%d(const char *s) { return printf("%%s %%zu\\n", s, strlen(s)); }
"""


@dataclass(frozen=True)
class Workload:
    """`bars`: side → the most that it may cost, as a multiple of bare; sides without one are measured all the same.
    Commands are run in a directory that prepare() filled and that every side gets anew."""

    id: str
    command: tuple[str, ...]
    prepare: Callable[[Path], None]
    preset: str = "default"
    bars: dict[str, float] = field(default_factory=dict)


def sh(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script)


def nothing(_folder: Path) -> None:
    pass


def sources(folder: Path) -> None:
    for n in range(24):
        (folder / f"f{n}.c").write_text(SOURCE % n)


def repository(folder: Path) -> None:
    for n in range(FILES_IN_REPOSITORY):
        path = folder / f"d{n % 40}" / f"e{n % 7}" / f"file{n}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content {n}\n")
    quiet = {"cwd": folder, "check": True, "capture_output": True}
    subprocess.run(["git", "init", "-q"], **quiet)
    subprocess.run(["git", "add", "-A"], **quiet)
    who = ["-c", "user.name=Bench", "-c", "user.email=bench@example.org"]
    subprocess.run(["git", *who, "commit", "-qm", "all"], **quiet)


def tree(folder: Path) -> None:
    """A source tree to search: this project's own, several times."""
    root = Path(__file__).resolve().parents[2]
    texts = [p for part in ("akbox", "native", "tests") for p in sorted((root / part).rglob("*.[pch]*")) if p.is_file()]
    for copy in range(6):
        for n, path in enumerate(texts):
            (folder / f"c{copy}" / path.parent.name).mkdir(parents=True, exist_ok=True)
            (folder / f"c{copy}" / path.parent.name / f"{n}{path.suffix}").write_bytes(path.read_bytes())


def venv(folder: Path) -> None:
    """A virtual environment and a wheel of 200 modules, made by pip's own tools."""
    subprocess.run([sys.executable, "-m", "venv", str(folder / "v")], check=True)
    package = folder / "src" / "bench_demo"
    package.mkdir(parents=True)
    for n in range(200):
        (package / f"m{n}.py").write_text(f"VALUE = {n}\n" * 40)
    (package / "__init__.py").write_text("")
    _wheel(folder / "bench_demo-1.0-py3-none-any.whl", package)


def _wheel(target: Path, package: Path) -> None:
    import zipfile

    info = "bench_demo-1.0.dist-info"
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(package.iterdir()):
            archive.write(path, f"bench_demo/{path.name}")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: bench-demo\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def packages(folder: Path) -> None:
    """Local npm packages of fifty files each, and a project that wants them all."""
    wanted = {}
    for n in range(PACKAGES):
        source = folder / "packages" / f"p{n}"
        source.mkdir(parents=True)
        (source / "package.json").write_text(f'{{"name": "p{n}", "version": "1.0.0", "main": "f0.js"}}\n')
        for k in range(50):
            (source / f"f{k}.js").write_text(f"module.exports = {k};\n" * 10)
        done = subprocess.run(
            ["npm", "pack", "--silent", f"./packages/p{n}"], cwd=folder, check=True, capture_output=True
        )
        wanted[f"p{n}"] = f"file:{done.stdout.decode().strip()}"
    lines = ", ".join(f'"{name}": "{place}"' for name, place in wanted.items())
    (folder / "package.json").write_text(f'{{"name": "bench", "version": "1.0.0", "dependencies": {{{lines}}}}}\n')


NPM = "npm install --offline --no-audit --no-fund --cache ./cache --loglevel=error"
WORKLOADS = (
    Workload("true", ("true",), nothing),
    Workload("24 x gcc -c", sh("for f in *.c; do gcc -c $f || exit 1; done"), sources,
             bars={"akbox": 1.15, "akbox writes": 1.03}),
    Workload("find /usr", sh("find /usr -xdev -type f 2>/dev/null | wc -l > count"), nothing, bars={"akbox": 1.10}),
    Workload("ripgrep", sh("rg -c ak_ . > found"), tree, bars={"akbox": 1.6, "akbox writes": 1.05}),
    Workload("python imports", ("/usr/bin/python3", "-c", STDLIB), nothing, preset="python-agent",
             bars={"akbox": 1.20, "akbox writes": 1.05}),
    Workload("git status", ("git", "status", "--short"), repository, bars={"akbox": 1.15}),
    Workload("pip install", sh("v/bin/pip install -q --no-index --no-deps --no-cache-dir ./bench_demo*.whl"), venv,
             preset="python-agent", bars={"akbox": 1.15}),
    Workload("npm install", sh(NPM), packages, preset="node-agent", bars={"akbox": 1.15}),
    Workload("200 x /bin/true", sh("i=0; while [ $i -lt 200 ]; do /bin/true; i=$((i+1)); done"), nothing,
             bars={"akbox": 1.4}),
)  # fmt: skip
