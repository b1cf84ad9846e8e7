"""Every authority call from inside a real sandbox by its raw number: bad pointers, another's id, sizes, and a reply
that does not fit and is fetched, without the call being made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from inference.upstream import FakeUpstream

import akbox

from .raw_call import RAW

POLICY = """version = "1.0"
profiles = ["python"]
[fs]
read = ["/usr/bin/true"]
[spawn]
allow = ["/usr/bin/true"]
[infer]
models = ["gpt-*"]
[infer.upstreams.gpt]
type = "openai"
base_url = "{url}/v1"
key = "secret:K"
[secrets.K]
from = "exec:echo a-key-of-the-provider"
for = ["infer:gpt"]
"""
AGENT = (
    RAW
    + r"""
def ask(nr, args): return json.loads(raw(nr, args)[1])["result"]
def entries(nr): return len(ask(1028, {"what": "audit", "op": nr, "limit": 1000})["entries"])
ptrs = iter([ask(1025, {"type": "t", "value": 1})["ptr"] for _ in range(40)])
try: open("/etc/shadow")
except OSError: pass
heap = next(c for c in ask(1028, {"what": "capabilities"})["capabilities"] if c["type"] == "HEAP")["tid"]
GOOD = {
    1024: lambda: {"ptr": next(ptrs)}, 1025: lambda: {"type": "t", "value": 1},
    1026: lambda: {"ptr": next(ptrs), "patch": []}, 1027: lambda: {"ptr": next(ptrs)}, 1028: lambda: {"what": "agents"},
    1029: lambda: {"operations": [{"op": "delete", "ptr": next(ptrs)}]}, 1030: dict,
    1032: lambda: {"program": "/usr/bin/true", "stdio": "null"}, 1033: lambda: {"to": "root", "payload": 1}, 1034: dict,
    1035: lambda: {"content": 1}, 1036: lambda: {"name": "x"},
    1037: lambda: {"model": "gpt-test", "prompt": "reply 2", "max_tokens": 9}, 1038: dict, 1039: dict, 1040: dict,
    1041: lambda: {"limit": 5}, 1042: dict, 1043: lambda: {"op": "derive", "cap": heap}, 1044: dict,
}
other = ctypes.create_string_buffer(b"x" * 16)
FAR = [16, 1 << 47, (1 << 64) - 16]
out = {}
for nr, good in GOOD.items():
    counted = nr not in (1028,)  # asking how often it was made is one more of these
    was = entries(nr)
    out[nr] = {
        "bad request": [raw(nr, {}, req=p, size=9)[0] for p in FAR],
        "bad agent": [raw(nr, {}, agent=p)[0] for p in FAR],
        "another agent": raw(nr, {}, agent=ctypes.addressof(other))[0],
        "flags": raw(nr, {}, flags=2)[0],
        "oversize": [raw(nr, {}, size=n)[0] for n in ((1 << 20) + 1, 1 << 40)],
        "schema": json.loads(raw(nr, {"args": {"love": 1}})[1])["error"]["name"],
        "nothing kept": raw(nr, {}, flags=1)[0],
    }
    made = entries(nr)
    args = good()
    out[nr]["does not fit"] = raw(nr, args, cap=5)[0]
    again = entries(nr)
    n, fetched = raw(nr, {}, flags=1)
    reply = json.loads(fetched) if n > 0 else None
    out[nr] |= {"fetched": n == len(fetched) and reply and reply["ok"], "once": raw(nr, {}, flags=1)[0]}
    out[nr]["bad reply"] = [raw(nr, good(), resp=p)[0] for p in FAR[:1]]
    if counted:
        out[nr]["made"] = again - made
        out[nr]["entries"] = entries(nr) - again  # of the bad reply alone, not of FETCH
print(json.dumps(out))
"""
)


@pytest.mark.parametrize("interposer", ["auto", "ptrace"])
def test_every_call(tmp_path: Path, interposer: str) -> None:
    with FakeUpstream() as upstream:
        policy = akbox.Policy.parse(POLICY.format(url=upstream.url))
        sandbox = akbox.Sandbox(policy, cwd=tmp_path, state_dir=tmp_path / "s", interposer=interposer)
        result = sandbox.run(["/usr/bin/python3", "-c", AGENT], timeout=120)
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)
        assert upstream.counters.requests == 2  # the one that did not fit, and the one to a bad address: none twice
    assert sorted(map(int, found)) == [n for n in range(1024, 1045) if n != 1031]
    for nr, seen in found.items():
        assert seen["schema"].startswith("SCHEMA_"), nr
        del seen["schema"]
        assert seen == {
            "bad request": [-14] * 3, "bad agent": [-14] * 3, "another agent": -1, "flags": -22, "oversize": [-22, -22],
            "nothing kept": -2, "does not fit": -90, "fetched": True, "once": -2, "bad reply": [-14],
            **({} if nr == "1028" else {"made": 1, "entries": 1}),
        }, nr  # fmt: skip
