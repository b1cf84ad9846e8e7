"""`akbox tool`: what may be added, who has signed it, and that what comes with akbox is what its sources give."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from tool_kit import ECHO, Bench, make_tool, wat

from akbox.kernel.codes import Code
from akbox.tools.registry import BUILTIN

ROOT = Path(__file__).parents[2]
NAMES = ["file_list", "file_read", "file_write", "http_get", "http_post", "json_query", "text_grep"]


def akbox(state: Path, *words: str | Path, code: int = 0) -> str:
    command = Path(sys.executable).with_name("akbox")
    state.mkdir(mode=0o700, exist_ok=True)
    done = subprocess.run(
        [command, "tool", words[0], "--state-dir", state, *words[1:]], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_comes_with_akbox(tmp_path: Path) -> None:
    found = json.loads(akbox(tmp_path / "s", "list", "--json"))
    assert [tool["name"] for tool in found] == NAMES
    assert {tool["from"] for tool in found} == {"akbox"}
    assert akbox(tmp_path / "s", "verify").count("ok ") == len(NAMES)
    for name in NAMES:
        module = (BUILTIN / name / "tool.wasm").read_bytes()
        assert json.loads(akbox(tmp_path / "s", "inspect", name))["sha256"] == sha256(module).hexdigest()


def test_the_modules_are_what_their_sources_give(tmp_path: Path) -> None:
    """With Debian 12's compiler, which scripts/test installs: another one need not give the same bytes."""
    version = subprocess.run(["clang", "--version"], capture_output=True, text=True, check=True).stdout
    if "14.0.6" not in version:
        pytest.skip(f"the modules were built by clang 14.0.6, this is {version.splitlines()[0]}")
    subprocess.run([ROOT / "scripts" / "build-tools", "--check"], check=True, capture_output=True, timeout=120)


def test_add_list_remove(tmp_path: Path) -> None:
    state, source = tmp_path / "s", make_tool(tmp_path, "mine", ECHO, hostcalls=["log"])
    said = akbox(state, "add", source)
    assert 'tools.allow = ["mine"]' in said
    assert 'wasm.hostcalls = ["log"]' in said
    assert (state / "tools").stat().st_mode & 0o77 == 0
    assert "mine" in akbox(state, "list")
    assert "already" in akbox(state, "add", source, code=1)
    akbox(state, "add", "--replace", source)
    copied = state / "tools" / "mine" / "tool.wat"
    copied.write_text(copied.read_text().replace("1024", "2048"))
    assert "SHA-256" in akbox(state, "list", code=1)
    assert "FAILED  mine: hash" in akbox(state, "verify", code=1)
    akbox(state, "remove", "mine")
    assert akbox(state, "list").count("\n") == len(NAMES) + 1
    assert "was added" in akbox(state, "remove", "mine", code=1)
    assert "was added" in akbox(state, "remove", "http_get", code=1)


@pytest.mark.parametrize(
    ("name", "module", "fields", "words"),
    [
        ("nohash", ECHO, {"sha256": None}, "does not say its module's hash"),
        ("badhash", ECHO, {"sha256": "0" * 64}, "SHA-256"),
        ("http_get", ECHO, {}, "comes with akbox"),
        ("imports", wat("", imports='(import "env" "system" (func))'), {}, "env.system"),
        ("nothing", "(module)", {}, "exports no memory"),
        ("escape", ECHO, {"module": "../../x.wasm"}, "module"),
        ("name", ECHO, {"name": "../x"}, "name"),
        ("big", ECHO, {"limits": {"memory_bytes": 1 << 40}}, "limits.memory_bytes"),
    ],
)
def test_what_is_not_added(tmp_path: Path, name: str, module: str, fields: dict[str, object], words: str) -> None:
    assert words in akbox(tmp_path / "s", "add", make_tool(tmp_path, name, module, **fields), code=1)
    assert not list((tmp_path / "s").glob("tools/*"))


def test_signatures(tmp_path: Path) -> None:
    """A policy that says who may have signed: good, unsigned, by another, of other bytes, made up."""
    mine, theirs = tmp_path / "s", tmp_path / "other"
    key = akbox(mine, "key").strip()
    policy = f'[tools]\nallow = ["*"]\n[wasm]\nmodules = ["*"]\nsigned_by = ["{key}"]\n'
    bench = Bench(tmp_path, policy)
    for name in ("good", "unsigned", "stranger", "changed", "fake"):
        make_tool(bench.state / "tools", name, ECHO)
    tools = bench.state / "tools"
    akbox(mine, "sign", tools / "good")
    akbox(theirs, "sign", tools / "stranger")
    akbox(mine, "sign", tools / "changed")
    manifest = tools / "changed" / "tool.json"
    manifest.write_text(manifest.read_text().replace("of a test", "of a text"))
    signature = json.loads((tools / "good" / "tool.sig").read_text())
    (tools / "fake" / "tool.sig").write_text(json.dumps(signature | {"signature": "00" * 64}))
    assert bench.call("good", n=1) == {"n": 1}
    for name, words in (
        ("unsigned", "is not signed"), ("stranger", "does not name"), ("changed", "not of its manifest"),
        ("fake", "not of its manifest"),
    ):  # fmt: skip
        error = bench.fail(name)
        assert (error["code"], error["details"]) == (Code.TOOL_FAIL, {"reason": "signature"})
        assert words in error["message"]
    (tools / "fake" / "tool.sig").write_text("{}")
    assert bench.fail("fake")["details"] == {"reason": "signature"}
    assert bench.call("json_query", value=1, path="") == {"found": True, "value": 1}
    assert bench.used() == (2, 0)
    bench.close()


def test_call_a_tool_in_development(tmp_path: Path) -> None:
    source = make_tool(tmp_path, "mine", ECHO, sha256=None)
    assert json.loads(akbox(tmp_path / "s", "call", source, '{"n": [1]}')) == {"n": [1]}
    assert "TOOL_FAIL" in akbox(tmp_path / "s", "call", make_tool(tmp_path, "bad", wat("unreachable")), code=1)
    assert "wasm.hostcalls" in akbox(tmp_path / "s", "call", "file_read", '{"path": "/etc/hostname"}', code=1)
    assert "not JSON" in akbox(tmp_path / "s", "call", "file_read", "{", code=2)


def test_the_cache_is_compiled_again_when_it_is_not_whole(tmp_path: Path) -> None:
    for damage in (None, b"", b"x" * 5000):
        bench = Bench(tmp_path, '[tools]\nallow = ["*"]\n')
        assert bench.call("json_query", json='{"a":[true]}', path="/a/0") == {"found": True, "value": True}
        bench.close()
        shutil.rmtree(tmp_path / "run")
        files = list((bench.state / "tools-cache").iterdir())
        assert [file.suffix for file in files] == [".cwasm"]
        assert files[0].stat().st_mode & 0o77 == 0
        if damage is not None:
            files[0].write_bytes(damage)
        else:
            data = bytearray(files[0].read_bytes())
            data[-1] ^= 1
            files[0].write_bytes(data)


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        ({"value": {"a": {"b": [{"c": "é\n"}]}}, "path": "a.b[0].c"}, {"found": True, "value": "é\n"}),
        ({"value": {"a/b": {"~": 1}}, "path": "/a~1b/~0"}, {"found": True, "value": 1}),
        ({"value": [[1, 2], [3]], "path": "[1][0]"}, {"found": True, "value": 3}),
        ({"value": {"a": 1}, "path": "b"}, {"found": False}),
        ({"value": {"a": [1]}, "path": "a[7]"}, {"found": False}),
        ({"value": {"a": [1]}, "path": "a[x]"}, {"found": False}),
        ({"value": {"a\"b": {}, "c": "}]"}, "path": "c"}, {"found": True, "value": "}]"}),
        ({"json": '"\\ud83d\\ude00"', "path": ""}, {"found": True, "value": "😀"}),
        ({"json": '{"k": [1.5e3, null]}', "path": "k[1]"}, {"found": True, "value": None}),
        ({"json": "", "path": "a"}, None),
    ],
)  # fmt: skip
def test_json_query(tmp_path: Path, params: dict[str, object], wanted: dict[str, object] | None) -> None:
    bench = Bench(tmp_path, '[tools]\nallow = ["*"]\n')
    if wanted is None:
        assert bench.fail("json_query", **params)["details"]["reason"] == "exit"
    else:
        assert bench.call("json_query", **params) == wanted
    bench.close()


def test_text_grep(tmp_path: Path) -> None:
    bench = Bench(tmp_path, '[tools]\nallow = ["*"]\n')
    text = "Alpha\nbeta\n\ngamma alpha"
    found = bench.call("text_grep", pattern="alpha", text=text)
    assert found == {"matches": [{"line": 4, "text": "gamma alpha"}], "count": 1}
    assert bench.call("text_grep", pattern="ALPHA", text=text, ignore_case=True)["count"] == 2
    assert bench.call("text_grep", pattern="^[ab]", text=text, regex=True, ignore_case=True)["count"] == 2
    found = bench.call("text_grep", pattern="a", text=text, invert=True, limit=0)
    assert found == {"matches": [], "count": 1}
    assert "pattern" in bench.fail("text_grep", pattern="(", text=text, regex=True)["message"]
    bench.close()


def test_the_template_of_the_guide(tmp_path: Path) -> None:
    source = tmp_path / "shout"
    shutil.copytree(ROOT / "examples" / "tools" / "shout", source)
    subprocess.run([ROOT / "scripts" / "build-tools", source], check=True, capture_output=True, timeout=120)
    assert json.loads(akbox(tmp_path / "s", "call", source, '{"text": "hé\\n"}')) == {"text": "Hé\n"}
    assert "params" in akbox(tmp_path / "s", "call", source, code=1)
