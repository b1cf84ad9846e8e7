"""Every way a tool can go wrong: its code, its reason, its budget free again, the next call as good as ever."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tool_kit import CALL, ECHO, Bench, make_tool, says, wat

from akbox.kernel.codes import ERRNO, Code
from akbox.kernel.verify import verify

POLICY = """
[tools]
allow = ["*"]
deny = ["denied"]
[wasm]
modules = ["*"]
hostcalls = ["fs_read"]
[budgets]
tool_calls = 5
"""
SMALL = {"timeout_ms": 1000, "memory_bytes": 1 << 20, "output_bytes": 4096}
LOOP = "(loop $l (br $l))"
GROW = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable"
FLOOD = f"(loop $l {says('x' * 64)} (br $l))"
HOST = '(import "ak" "{}" (func $host (param i32 i32) (result i32)))'
SCHEMA = {
    "type": "object", "required": ["list"], "additionalProperties": False,
    "properties": {"list": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}}},
}  # fmt: skip

# name, module, manifest fields, code, reason in the details, words of the message
FAILURES = [
    ("trap", wat("unreachable"), {}, Code.TOOL_FAIL, "trap", "unreachable"),
    ("out_of_bounds", wat("(drop (i32.load (i32.const -1)))"), {}, Code.TOOL_FAIL, "trap", "out of bounds"),
    ("stack", wat("(call $f)").replace("(func (export", "(func $f (call $f)) (func (export"), {}, Code.TOOL_FAIL,
     "trap", "stack"),
    ("exits", wat("(call $exit (i32.const 3))"), {}, Code.TOOL_FAIL, "exit", "ended with 3"),
    ("endless", wat(LOOP), {}, Code.TOOL_TIMEOUT, "timeout", "1000 ms"),
    ("endless_calls", wat("(loop $l (drop (call $write (i32.const 9) (i32.const 0) (i32.const 0) (i32.const 0))) "
     "(br $l))"), {}, Code.TOOL_TIMEOUT, "timeout", "1000 ms"),
    ("fuel", wat(LOOP), {"limits": SMALL | {"fuel": 1000}}, Code.TOOL_FAIL, "fuel", "1000"),
    ("bomb", wat(GROW), {}, Code.TOOL_FAIL, "memory", "1048576 bytes of memory"),
    ("big_from_the_start", wat("", memory="100"), {}, Code.TOOL_FAIL, "memory", "memory"),
    ("flood", wat(FLOOD, data="x" * 64), {}, Code.TOOL_FAIL, "output_size", "4096"),
    ("no_json", wat(says("hello"), data="hello"), {}, Code.TOOL_FAIL, "output_json", "no JSON"),
    ("twice", wat(says('{}{}'), data="{}{}"), {}, Code.TOOL_FAIL, "output_json", "no JSON"),
    ("silent", wat(""), {}, Code.TOOL_FAIL, "output_json", "no JSON"),
    ("odd", wat(says('[1]'), data="[1]"), {"output_schema": {"type": "object"}}, Code.TOOL_FAIL, "output_schema",
     "'object'"),
    ("imports", wat("", imports='(import "env" "system" (func (param i32) (result i32)))'), {}, Code.TOOL_FAIL,
     "import", "env.system"),
    ("imports_memory", '(module (import "env" "memory" (memory 1)) (func (export "_start")))', {}, Code.TOOL_FAIL,
     "import", "no function"),
    ("imports_nothing_known", wat("", imports='(import "ak" "exec" (func (param i32 i32) (result i32)))'), {},
     Code.TOOL_FAIL, "import", "ak.exec"),
    ("wrong_type", wat("", imports='(import "wasi_snapshot_preview1" "fd_close" (func (param i64) (result i32)))'), {},
     Code.TOOL_FAIL, "import", "fd_close"),
    ("not_in_manifest", wat("", imports=HOST.format("http_request")), {}, Code.TOOL_FAIL, "hostcall_not_in_manifest",
     "http_request"),
    ("no_module", "(module (this is none))", {}, Code.TOOL_FAIL, "module", "not a WebAssembly module"),
    ("no_start", '(module (memory (export "memory") 1))', {}, Code.TOOL_FAIL, "module", "_start"),
    ("no_memory", '(module (func (export "_start")))', {}, Code.TOOL_FAIL, "module", "memory"),
    ("threads", '(module (memory (export "memory") 1 1 shared) (func (export "_start")))', {}, Code.TOOL_FAIL, "module",
     "not a WebAssembly module"),
    ("bad_hash", ECHO, {"sha256": "0" * 64}, Code.TOOL_FAIL, "hash", "SHA-256"),
    ("bad_manifest", ECHO, {"colour": 1}, Code.TOOL_FAIL, "manifest", "colour"),
    ("odd_hostcall", ECHO, {"hostcalls": ["exec"]}, Code.TOOL_FAIL, "manifest", "hostcalls[0]"),
    ("bad_schema", ECHO, {"input_schema": {"type": 7}}, Code.TOOL_FAIL, "manifest", "input_schema.type"),
]  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    directory = tmp_path_factory.mktemp("tools")
    made = Bench(directory, POLICY.replace("tool_calls = 5", "tool_calls = 100000"))
    made.add("echo", ECHO)
    made.add("strict", ECHO, input_schema=SCHEMA)
    made.add("denied", ECHO)
    for name, module, fields, *_ in FAILURES:
        made.add(name, module, **{"limits": SMALL, **fields})
    yield made
    made.close()
    found = verify(directory / "run" / "audit.jsonl", directory / "run" / "checkpoints")
    assert found.ok, found


@pytest.mark.parametrize(
    ("tool", "code", "reason", "words"), [(n, c, r, w) for n, _, _, c, r, w in FAILURES], ids=[f[0] for f in FAILURES]
)
def test_a_failure_has_its_code_and_harms_nothing(bench: Bench, tool: str, code: Code, reason: str, words: str) -> None:
    before = bench.used()
    error = bench.fail(tool)
    assert (error["code"], error["errno"], error["details"]["reason"]) == (code, ERRNO[code], reason), error
    assert words in error["message"]
    assert bench.used() == before
    entry = bench.box.entries()[-2]  # the last is BUDGET_STATUS
    assert (entry["target"], entry["decision"], entry["stage"]) == (f"tool:{tool}", "deny", "EXECUTE")
    assert bench.call("echo", n=1) == {"n": 1}


def test_what_the_policy_denies(bench: Bench) -> None:
    error = bench.fail("denied")
    assert (error["code"], error["missing_cap"]) == (Code.POLICY_DENY, "tools.allow")
    assert bench.box.entries()[-1]["stage"] == "POLICY"


def test_a_tool_that_is_not_there(bench: Bench) -> None:
    for name in ("nobody", "../echo", "echo/../echo", ".", "a" * 128):
        error = bench.fail(name)
        assert (error["code"], error["details"]["reason"]) == (Code.TOOL_NOT_FOUND, "unknown")
    assert bench.fail("a" * 129)["code"] == Code.SCHEMA_INVALID


@pytest.mark.parametrize(
    ("params", "path"),
    [({}, "params"), ({"list": 1}, "params.list"), ({"list": [{"n": 1}, {"n": "x"}]}, "params.list[1].n"),
     ({"list": [], "x": 1}, "params")],
)  # fmt: skip
def test_bad_parameters_are_named_by_their_path(bench: Bench, params: dict[str, object], path: str) -> None:
    error = bench.fail("strict", **params)
    assert (error["code"], error["details"]["path"]) == (Code.SCHEMA_INVALID, path)
    assert error["message"].startswith(f"{path}: ")
    assert bench.box.entries()[-1]["stage"] == "SCHEMA"


def test_the_call_itself(bench: Bench) -> None:
    errno, reply = bench.box.raw(CALL, b'{"tool":"echo","args":{"a":[1,"\xc3\xa9"]}}')
    assert (errno, reply["result"]) == (0, {"a": [1, "é"]})
    usage = reply["usage"]
    assert usage["tool_calls"] == 1
    assert usage["fuel"] > 0
    assert (usage["taint"], usage["label"]) == (100, "UNTRUSTED")
    assert bench.box.fail(CALL, tool="echo", params=[1])["code"] == Code.SCHEMA_INVALID
    assert bench.box.fail(CALL, tool="echo", colour=1)["code"] == Code.SCHEMA_UNKNOWN
    assert bench.box.kernel.budget_breakdown(bench.box.kernel.root)["tool:echo"]["tool_calls"] >= 1


def test_a_module_that_was_added_must_be_allowed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, '[tools]\nallow = ["*"]\n[wasm]\nmodules = ["trusted_*"]\n')
    bench.add("trusted_echo", ECHO)
    bench.add("echo", ECHO)
    assert bench.call("trusted_echo", n=1) == {"n": 1}
    error = bench.fail("echo")
    assert (error["code"], error["missing_cap"]) == (Code.POLICY_DENY, "wasm.modules")
    assert error["suggested_fix"] == 'wasm.modules = ["echo"]'
    assert bench.call("json_query", value={"a": [1, 2]}, path="a[1]") == {"found": True, "value": 2}
    bench.close()


def test_of_ten_parallel_calls_a_budget_of_five_runs_five(tmp_path: Path) -> None:
    bench = Bench(tmp_path, POLICY)
    # Each takes long enough that all ten are under way: none has failed and given back what others then take.
    slow = "(local $n i32) (loop $l (local.set $n (i32.add (local.get $n) (i32.const 1))) "
    slow += "(br_if $l (i32.lt_u (local.get $n) (i32.const 30000000)))) " + says("{}")
    bench.add("slow", wat(slow, data="{}"))
    start = threading.Barrier(10)
    errors: list[int] = []

    def call() -> None:
        start.wait()
        _, reply = bench.box.raw(CALL, b'{"tool":"slow"}')
        errors.append(0 if reply["ok"] else reply["error"]["code"])

    threads = [threading.Thread(target=call) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(errors) == [Code.BUDGET_EXCEEDED] * 5 + [0] * 5
    assert bench.used() == (5, 0)
    assert bench.fail("slow")["code"] == Code.BUDGET_EXCEEDED
    bench.close()


def test_what_runs_is_ended_with_the_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, POLICY)
    bench.add("endless", wat(f"{says('')} {LOOP}"), limits={"timeout_ms": 600_000})
    errors: list[dict[str, object]] = []
    thread = threading.Thread(target=lambda: errors.append(bench.fail("endless")))
    thread.start()
    while not bench.used()[1]:
        pass
    bench.tools.close()
    thread.join(20)
    assert [error["details"] for error in errors] == [{"reason": "ending"}]
    assert bench.fail("json_query", path="")["details"] == {"reason": "ending"}
    bench.box.close()


def test_runtimes_come_and_go(tmp_path: Path) -> None:
    """Each has address space for its pool; where that is not given back, the three hundredth ends the process."""
    program = """
import resource, sys
from pathlib import Path
from akbox.tools.registry import Registry
from akbox.tools.runtime import Runtime

tool = Registry(Path(sys.argv[1])).load("json_query")
def once():
    runtime = Runtime(Path(sys.argv[1]))
    result = runtime.run(tool, b'{"value":1,"path":""}', lambda *_: (False, b""), float("1e9")).stdout
    runtime.close()
    return result
def size():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
assert {once() for _ in range(3)} == {b'{"found":true,"value":1}'}
before = size()
assert {once() for _ in range(20)} == {b'{"found":true,"value":1}'}
assert size() - before < 1 << 30, size() - before
resource.setrlimit(resource.RLIMIT_AS, (before + (64 << 30), resource.RLIM_INFINITY))
assert once() == b'{"found":true,"value":1}', "without a pool"
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_bad_name_in_the_state_directory_is_no_tool(tmp_path: Path) -> None:
    bench = Bench(tmp_path, POLICY)
    make_tool(bench.state / "tools", "other", ECHO).rename(bench.state / "tools" / "echo")
    assert bench.fail("echo")["details"] == {"reason": "manifest"}
    bench.close()
