"""Real programs, as data: what each needs, how it is started, what it leaves behind. test_programs.py compares a run
under a shipped preset with a bare one."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Program:
    """`leaves`: files and directories, relative to the working directory, that must be equal after both runs.
    `refused`: refusals (op, target prefix) that do not matter, each with its reason where it is listed."""

    id: str
    preset: str
    command: tuple[str, ...]
    prepare: Callable[[Path], None]
    leaves: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    interposers: tuple[str, ...] = ("auto", "ptrace")
    exit: int = 0
    timeout_s: float = 120


def sh(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def git(folder: Path, *words: str) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
        "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
    }
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *identity, *words], cwd=folder, env=environment, check=True, capture_output=True)


def json_file(folder: Path) -> None:
    rows = ",".join(f'{{"n":{n},"é":"{"x" * (n % 50)}"}}' for n in range(5000))
    write(folder / "in.json", f"[{rows}]")


def wheel(folder: Path) -> None:
    """A minimal wheel with a package, a data file and a console script (PEP 427)."""
    files = {
        "kit_demo/__init__.py": 'ANSWER = 42\n\ndef main():\n    print("answer", ANSWER)\n',
        "kit_demo/data.txt": "data\n",
        "kit_demo-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: kit-demo\nVersion: 1.0\n",
        "kit_demo-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "kit_demo-1.0.dist-info/entry_points.txt": "[console_scripts]\nkit-demo = kit_demo:main\n",
    }
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(text)}\n"
    files["kit_demo-1.0.dist-info/RECORD"] = record + "kit_demo-1.0.dist-info/RECORD,,\n"
    with zipfile.ZipFile(folder / "kit_demo-1.0-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)


def repository(folder: Path) -> None:
    origin = folder / "origin"
    origin.mkdir()
    git(origin, "init", "-q", "-b", "main")
    for n in range(30):
        write(origin / f"dir{n % 3}" / f"file{n}.txt", f"content {n}\n" * 20)
    git(origin, "add", "-A")
    git(origin, "commit", "-q", "-m", "first")


def working_repository(folder: Path) -> None:
    git(folder, "init", "-q", "-b", "main")
    for n in range(30):
        write(folder / f"dir{n % 3}" / f"file{n}.txt", f"content {n}\n" * 20)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")


def npm_project(folder: Path) -> None:
    write(
        folder / "package.json",
        '{"name": "kit", "version": "1.0.0", "private": true,\n'
        ' "scripts": {"hello": "node hello.js && node worker.js > worker.txt"}}\n',
    )
    write(
        folder / "hello.js",
        "const fs = require('fs'), path = require('path');\n"
        "fs.mkdirSync('out', { recursive: true });\n"
        "fs.writeFileSync(path.join('out', 'a.json'), JSON.stringify(require('./package.json').scripts));\n"
        "console.log(fs.readdirSync('out').join());\n",
    )
    write(
        folder / "worker.js",
        "const { Worker, isMainThread, parentPort } = require('worker_threads');\n"
        "if (isMainThread) { let sum = 0, left = 4;\n"
        "  for (let i = 0; i < 4; i++) new Worker(__filename).on('message', m => {\n"
        "    sum += m; if (--left === 0) console.log(sum); });\n"
        "} else { parentPort.postMessage(10); }\n",
    )


def c_sources(folder: Path) -> None:
    for name in ("call.h", "kernel.c", "files.c", "try_call.c"):
        write(folder / name, (PROJECT / "akbox" / "conformance" / "helper" / name).read_text())


def pytest_project(folder: Path) -> None:
    write(folder / "stack.py", "class Stack(list):\n    def top(self):\n        return self[-1]\n")
    write(
        folder / "test_stack.py",
        "import subprocess, sys\nimport pytest\nfrom stack import Stack\n\n"
        "@pytest.mark.parametrize('n', range(10))\ndef test_top(n):\n    assert Stack([0, n]).top() == n\n\n"
        "def test_tmp(tmp_path, monkeypatch):\n    monkeypatch.chdir(tmp_path)\n    (tmp_path / 'a').write_text('a')\n"
        "    assert (tmp_path / 'a').read_text() == 'a'\n\n"
        "def test_child(capfd):\n    subprocess.run([sys.executable, '-c', 'print(7)'], check=True)\n"
        "    assert capfd.readouterr().out == '7\\n'\n\n"
        "def test_fails():\n    assert Stack([1]).top() == 2\n",
    )


def many_files(folder: Path) -> None:
    choose = random.Random(7)
    words = ["alpha", "beta", "needle", "gamma", "delta", "épsilon"]
    for n in range(300):
        text = "\n".join(" ".join(choose.choices(words, k=8)) for _ in range(20))
        write(folder / "tree" / f"d{n % 10}" / f"f{n}.txt", text + "\n")
    (folder / "tree" / "link").symlink_to("d0")


def nothing(folder: Path) -> None:
    (folder / "empty").mkdir()


THREADS = (
    "import os, threading\n"
    "def work(n):\n"
    "    for i in range(20):\n"
    "        with open(f't{n}', 'a') as f: f.write(f'{n} {i}\\n')\n"
    "        os.stat('.')\n"
    "t = [threading.Thread(target=work, args=(n,)) for n in range(50)]\n"
    "[x.start() for x in t]; [x.join() for x in t]\n"
    "print(sum(len(open(f't{n}').readlines()) for n in range(50)))\n"
)
PROCESSES = (
    "import multiprocessing as m, os\n"
    "def square(n): return n * n\n"
    "def put(q, n): q.put(n)\n"
    "if __name__ == '__main__':\n"
    "    with m.Pool(4) as p: print(sum(p.map(square, range(1000))))\n"
    "    q = m.Queue(); ps = [m.Process(target=put, args=(q, n)) for n in range(5)]\n"
    "    [p.start() for p in ps]; print(sorted(q.get() for p in ps)); [p.join() for p in ps]\n"
    "    s = m.shared_memory.SharedMemory(create=True, size=64) if hasattr(m, 'shared_memory') else None\n"
    "    v = m.Value('i', 5); print(v.value)\n"
    "    if s: s.close(); s.unlink()\n"
)
PIPELINE = (
    "find tree -type f | sort | xargs cat | tr ' ' '\\n' | sort | uniq -c | sort -rn > counts; "
    "awk '{s+=$1} END {print s}' counts; sed -n 2p counts; head -c 100000 /dev/zero | md5sum; "
    "for i in 1 2 3; do echo $i | (read x; echo got $x); done; wc -l < counts"
)
PIP = "python3 -m venv v && v/bin/pip install -q --no-index ./kit_demo-1.0-py3-none-any.whl && v/bin/kit-demo"
DATES = "export GIT_AUTHOR_DATE=2026-01-02T00:00:00Z GIT_COMMITTER_DATE=2026-01-02T00:00:00Z"
WHO = "git -c user.name=A -c user.email=a@example.org"
CLONE = f"{DATES}; git clone -q origin clone && cd clone && echo more >> dir0/file0.txt && {WHO} commit -qam second"
COMMIT = f"{DATES}; echo more >> dir0/file0.txt && {WHO} add -A && {WHO} commit -qm second && git checkout -q -b side"

# Refused with ENOSYS so that the C libraries take clone(2), whose flags a filter can see: nothing is lost.
FALLBACKS = (("sys.refused", "syscall:clone3"),)
# urllib3 tries once whether IPv6 works by binding a socket to ::1; refused, it goes on with IPv4.
IPV6_TRIAL = (("net.bind", "ip:[::1]:0"),)

PROGRAMS = [
    Program("json.tool", "python-agent", ("python3", "-m", "json.tool", "in.json", "out.json"), json_file,
            ("out.json",)),
    Program("json.tool-readonly", "readonly", ("python3", "-m", "json.tool", "in.json"), json_file),
    Program("pip-install", "python-agent", sh(PIP), wheel,
            ("v/lib/python3.11/site-packages/kit_demo", "v/bin/kit-demo"), refused=IPV6_TRIAL),
    Program("git-clone", "git-agent", sh(f"{CLONE} && git log --format='%H %s' && git status --short && git fsck"),
            repository, ("clone/dir0", "clone/.git/refs", "clone/.git/HEAD", "clone/.git/config")),
    Program("git-commit", "default", sh(f"{COMMIT} && git log --format='%H %s' && git status --short && git gc -q"),
            working_repository, ("dir0", ".git/HEAD")),
    Program("npm-script", "node-agent", ("npm", "run", "hello"), npm_project, ("out", "worker.txt")),
    Program("gcc", "default", sh("gcc -c -O2 -Wall kernel.c files.c && sha256sum *.o"), c_sources,
            ("kernel.o", "files.o")),
    Program("pytest", "python-agent", (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            # A checkout installed in editable mode is on this interpreter's path, outside its prefix.
            pytest_project, exit=1, refused=(("fs.open", str(PROJECT)),)),
    Program("rg", "readonly", ("rg", "--sort", "path", "-n", "needle .*alpha", "tree"), many_files),
    Program("grep", "readonly", ("grep", "-rn", "needle", "tree"), many_files),
    Program("pipeline", "default", sh(PIPELINE), many_files, ("counts",)),
    Program("threads", "python-agent", ("python3", "-c", THREADS), nothing, ("t0", "t49")),
    Program("multiprocessing", "python-agent", ("python3", "main.py"), lambda d: write(d / "main.py", PROCESSES)),
]  # fmt: skip


def contents(path: Path) -> dict[str, bytes | str]:
    """Everything below a path, by relative name; byte code caches, which hold times, left out."""
    if path.is_file() and not path.is_symlink():
        return {".": path.read_bytes()}
    found: dict[str, bytes | str] = {}
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in (*folders, *files):
            item = Path(folder) / name
            key = str(item.relative_to(path))
            if item.is_symlink():
                found[key] = os.readlink(item)
            else:
                found[key] = item.read_bytes() if item.is_file() else "directory"
    return found
