"""Authority calls from inside a real sandbox: many processes on one counter, and the raw numbers when a call waits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import akbox

from .raw_call import RAW

POLICY = 'version = "1.0"\nprofiles = ["python"]\n[budgets]\nheap_bytes = 100000000\n'

COUNTER = """
import os, sys
from authority_nanos import AuthorityKernel, ConflictError
ak = AuthorityKernel()
h = ak.alloc("counter", {"n": 0})
pids = []
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        for _ in range(15):
            while True:
                seen = ak.read_object(h)
                try:
                    ak.write(h, [{"op": "replace", "path": "/n", "value": seen["value"]["n"] + 1}], seen["version"])
                    break
                except ConflictError as error:
                    assert error.details["version"] > seen["version"]
        os._exit(0)
    pids.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
print(codes, ak.read_object(h)["version"], ak.read(h).decode())
"""


@pytest.mark.parametrize("interposer", ["auto", "ptrace"])
def test_eight_processes_on_one_counter_lose_no_update(tmp_path: Path, interposer: str) -> None:
    policy = akbox.Policy.parse(POLICY)
    sandbox = akbox.Sandbox(policy, cwd=tmp_path, state_dir=tmp_path / "s", interposer=interposer)
    result = sandbox.run(["/usr/bin/python3", "-c", COUNTER], timeout=120)
    assert result.stdout.decode() == f'{[0] * 8} 121 {{"n":120}}\n', result.stderr


CALLS = (
    RAW
    + r"""
import os, threading, time
out = {}
began = time.monotonic()
out["empty"] = json.loads(raw(1034, {"timeout_ms": 300})[1])["result"]["messages"]
out["waited"] = time.monotonic() - began >= 0.3
got = []
def read(): got.append(json.loads(raw(1034, {"timeout_ms": 30000})[1])["result"]["messages"])
reader = threading.Thread(target=read)
reader.start()
out["meanwhile"] = [os.waitstatus_to_exitcode(os.waitpid(os.fork() or os._exit(0), 0)[1]) for _ in range(3)]
raw(1033, {"to": "root", "payload": "hi"})
reader.join(30)
out["got"] = [m["payload"] for m in got[0]]
out["efault"] = [raw(1025, {}, req=16)[0], raw(1025, {"type": "t", "value": 1}, resp=16)[0], raw(1025, {}, agent=16)[0]]
other = ctypes.create_string_buffer(b"x" * 16)
out["eperm"] = raw(1030, {}, agent=ctypes.addressof(other))[0]
out["einval"] = [raw(1030, {}, flags=2)[0], raw(1030, {}, size=(1 << 20) + 1)[0]]
out["enosys"] = [raw(n, {})[0] for n in (1045, 1100, 1023, 1101)]
ptr = json.loads(raw(1025, {"type": "t", "value": "x" * 3000})[1])["result"]["ptr"]
out["emsgsize"] = raw(1024, {"ptr": ptr}, cap=100)[0]
out["fetched"] = raw(1024, {}, flags=1)[0] > 3000
out["once"] = raw(1024, {}, flags=1)[0]
print(json.dumps(out))
"""
)


@pytest.mark.parametrize("interposer", ["auto", "ptrace"])
def test_the_raw_numbers(tmp_path: Path, interposer: str) -> None:
    sandbox = akbox.Sandbox(akbox.Policy.parse(POLICY), cwd=tmp_path, state_dir=tmp_path / "s", interposer=interposer)
    result = sandbox.run(["/usr/bin/python3", "-c", CALLS], timeout=120)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {
        "empty": [], "waited": True, "meanwhile": [0, 0, 0], "got": ["hi"], "efault": [-14, -14, -14], "eperm": -1,
        "einval": [-22, -22], "enosys": [-38] * 4, "emsgsize": -90, "fetched": True, "once": -2,
    }  # fmt: skip


def test_a_false_assertion_ends_the_run(tmp_path: Path) -> None:
    code = (
        "from authority_nanos import AuthorityKernel\nak = AuthorityKernel()\nak.assert_('a', False)\n"
        "print('on', flush=True)\n"
        "ak.assert_('all is well', False, 'it is not', halt=True)\nimport time\ntime.sleep(100)\n"
    )
    sandbox = akbox.Sandbox(akbox.Policy.parse(POLICY), cwd=tmp_path, state_dir=tmp_path / "s")
    result = sandbox.run(["/usr/bin/python3", "-c", code], timeout=60)
    assert (result.exit_code, result.stdout) == (125, b"on\n")
    assert result.reason == "assertion failed: all is well: it is not"


def test_the_fuzzer_for_a_moment(tmp_path: Path) -> None:
    """scripts/fuzz-authority, which runs for minutes by hand."""
    import subprocess

    script = Path(__file__).parents[2] / "scripts/fuzz-authority"
    done = subprocess.run([sys.executable, str(script), "--seconds", "3"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
