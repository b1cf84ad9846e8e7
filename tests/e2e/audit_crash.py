"""SIGKILL of the supervisor at random moments under load (issue 6): afterwards the log verifies, every decision that
the agent saw is in it, and at most the one in flight is extra.

scripts/crash-audit runs this for many rounds, tests/e2e/test_audit_crash.py for a few.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AKBOX = [sys.executable, "-c", "import sys; from akbox.cli.main import main; sys.exit(main())"]
PROCESSES = 3

# Says what it saw, a line each, only after it saw it: an open that is allowed, one that is refused, the same refused
# again and again (these are counted in one entry), an authority call.
AGENT = """
import os, sys
sys.path.insert(0, os.environ["AKBOX_TEST_SDK"])
import authority_nanos
who = next(n for n in range({processes}) if n == {processes} - 1 or os.fork() == 0)
kernel = authority_nanos.AuthorityKernel()
def opens(path, flags=os.O_RDONLY):
    try:
        os.close(os.open(path, flags, 0o600))
    except PermissionError:
        return
    except OSError:  # ENOSYS: nobody is there any more to decide, and so nothing was decided
        os._exit(1)
def call(value):
    kernel.alloc("t", {{"v": value}})
for n in range(1_000_000):
    for kind, act in (
        ("open", lambda: opens(f"{{who}}-{{n}}", os.O_CREAT | os.O_WRONLY)),
        ("deny", lambda: opens(f"../shadow-{{who}}-{{n}}", os.O_CREAT | os.O_WRONLY)),
        ("flood", lambda: opens(f"../shadow-{{who}}", os.O_CREAT | os.O_WRONLY)),
        ("call", lambda: call(f"{{who}}-{{n}}")),
    ):
        act()
        os.write(1, f"{{kind}} {{who}} {{n}}\\n".encode())
"""


def crash_once(directory: Path, seed: int) -> dict[str, int]:
    """One round in an empty directory. Returns what was seen; raises AssertionError."""
    chosen = random.Random(seed)
    work, state = directory / "work", directory / "state"
    work.mkdir()
    env = {"PATH": "/usr/bin:/bin", "HOME": str(directory), "PYTHONPATH": str(ROOT), "AKBOX_TEST_SDK": str(SDK)}
    options = ["-q", "--state-dir", str(state), "--read", str(SDK), "--env", "AKBOX_TEST_SDK"]
    argv = [*AKBOX, "run", *options, "--", "/usr/bin/python3", "-c", AGENT.format(processes=PROCESSES)]
    with subprocess.Popen(argv, cwd=work, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stderr is not None
        told = [supervisor.stdout.readline() for _ in range(chosen.randrange(1, 1200))]
        for _ in range(chosen.randrange(20_000)):
            pass
        os.kill(supervisor.pid, signal.SIGKILL)
        told += supervisor.stdout.readlines()
        errors = supervisor.stderr.read().decode()
    assert all(told), errors
    if seed % 2:  # by the command, or by the next run
        audit(state, "recover", "last", env=env)
        run = audit(state, "verify", "last", "--json", env=env)
    else:
        (crashed,) = (state / "runs").iterdir()
        done = subprocess.run(
            [*AKBOX, "run", "-q", "--state-dir", str(state), "--", "/bin/true"], cwd=work, env=env, check=False
        )
        assert done.returncode == 0
        run = audit(state, "verify", str(crashed) + "/", "--json", env=env)
        assert os.listdir(state / "live") == []
    verdict = json.loads(run)
    assert verdict["ok"], verdict
    return compare(Path(verdict["log"]), [line.split() for line in told if line.endswith(b"\n")])


SDK = ROOT / "sdk" / "python"


def compare(log: Path, told: list[list[bytes]]) -> dict[str, int]:
    seen = Counter((kind.decode(), int(who), int(n)) for kind, who, n in told)
    logged: Counter[tuple[str, int, int]] = Counter()
    floods: Counter[int] = Counter()
    for line in log.read_bytes().splitlines():
        e = json.loads(line)
        name = e["target"].rpartition("/")[2]
        if e["op"] == 0x100 and name.startswith("shadow-"):
            who, _, n = name.removeprefix("shadow-").partition("-")
            assert e["decision"] == "deny"
            if n:
                logged["deny", int(who), int(n)] += 1
            else:
                floods[int(who)] += e["req"].get("count", 1)
        elif e["op"] == 0x100 and "-" in name and name.replace("-", "").isdigit():
            who, _, n = name.partition("-")
            logged["open", int(who), int(n)] += 1
        elif e["op"] == 1025:
            who, _, n = e["req"]["args"]["value"]["v"].partition("-")
            logged["call", int(who), int(n)] += 1
    for key in seen:
        if key[0] != "flood":
            assert logged[key] == 1, (key, logged[key])
    extra = [key for key in logged if key not in seen]
    for who in range(PROCESSES):
        flood = sum(1 for kind, process, _ in seen if kind == "flood" and process == who)
        more = floods[who] - flood
        assert 0 <= more <= 1, (who, floods[who], flood)
        assert len([key for key in extra if key[1] == who]) + more <= 1, (who, extra, more)
    return {"seen": len(told), "extra": len(extra)}


def audit(state: Path, *args: str, env: dict[str, str]) -> str:
    command = [*AKBOX, "audit", args[0], "--state-dir", str(state), *args[1:]]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, (args, done.stdout, done.stderr)
    return done.stdout


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    first = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30)
    seen = extra = 0
    for seed in range(first, first + rounds):
        with tempfile.TemporaryDirectory() as directory:
            try:
                found = crash_once(Path(directory), seed)
            except AssertionError:
                print(f"seed {seed} failed (scripts/crash-audit 1 {seed})", file=sys.stderr)
                raise
        seen, extra = seen + found["seen"], extra + found["extra"]
    print(f"{rounds} kills, {seen} decisions that the agent saw, all in the logs; {extra} in flight besides")


if __name__ == "__main__":
    main()
