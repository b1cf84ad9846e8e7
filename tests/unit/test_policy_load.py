"""Reading policies: what is accepted, and every kind of mistake with its place and a fix (conformance case A01)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from akbox.policy.check import PolicyError, Problem
from akbox.policy.load import load, parse
from akbox.policy.model import Policy

ORIGINAL = """{
  "version": "1.0",
  "profiles": ["python"],
  "fs":   {"read": ["/app/**"], "write": ["/tmp/**"], "exec": ["/usr/bin/*"], "deny": ["**/.env", "~/.ssh/**"],
           "metadata": "open"},
  "net":  {"dns": ["api.example.com"], "connect": ["dns:api.example.com:443"], "bind": ["ip:127.0.0.1:8080"],
           "listen": ["ip:127.0.0.1:8080"], "unix": ["/run/app.sock"], "deny": ["ip:169.254.0.0/16:*"]},
  "tools": {"allow": ["http_get", "file_*"], "deny": ["shell_exec"]},
  "wasm":  {"modules": ["trusted_*"], "hostcalls": ["fs_read", "http_get"]},
  "infer": {"models": ["claude-*", "gpt-4o"], "max_tokens": 4096,
            "upstreams": {"anthropic": {"type": "anthropic",
              "base_url": "https://api.anthropic.com", "key": "secret:K"}}},
  "spawn": {"allow": ["/usr/bin/python3"], "deny": [], "max_agents": 8},
  "secrets": {"K": {"from": "env:K", "for": ["infer:anthropic"]}},
  "runtime": "auto",
  "env":   {"pass": ["LANG", "LC_*"], "set": {"PYTHONDONTWRITEBYTECODE": "1", "CACHE": "${tmp}/c"}},
  "limits": {"memory": "2G", "pids": 128, "open_files": 1024, "file_size": "1G", "core": 0},
  "budgets": {"tokens": 100000, "output_tokens": 20000, "tool_calls": 50, "wall_time_ms": 300000,
              "cpu_time_ns": 60000000000,
              "bytes": 104857600, "heap_objects": 10000, "heap_bytes": 67108864, "usd": 5.0},
  "approve": {"timeout_ms": 300000, "effects": ["net.connect dns:*.example.org:443", "fs.write /app/deploy/**"]},
  "heap":  {"types": {"counter": {"type": "object"}}},
  "audit": {"level": "full", "durability": "group", "redact": ["authorization", "password"]}
}"""


def problems(text: str, syntax: str = "toml") -> list[Problem]:
    with pytest.raises(PolicyError) as caught:
        parse(text, syntax="json" if syntax == "json" else "toml", name="p")
    return caught.value.problems


def one(text: str, syntax: str = "toml") -> Problem:
    found = problems(text, syntax)
    assert len(found) == 1, found
    return found[0]


def test_the_whole_schema_in_both_syntaxes(tmp_path: Path) -> None:
    policy = parse(ORIGINAL, syntax="json", name="p")
    assert policy.fs.read == ("/app/**",)
    assert policy.limits.memory == 2 << 30
    assert policy.budgets.cpu_ns == 60_000_000_000
    assert policy.env.passed == ("LANG", "LC_*")
    assert policy.secrets["K"].uses == ("infer:anthropic",)
    as_toml = tmp_path / "p.toml"
    as_toml.write_text(to_toml(json.loads(ORIGINAL)))
    again = load(as_toml)
    assert [getattr(again, f) == getattr(policy, f) for f in Policy.__struct_fields__ if f != "source"].count(
        False
    ) == 0


def to_toml(document: dict[str, object]) -> str:
    """Only top-level keys as TOML, all below as inline tables: also a test of those."""

    def value(v: object) -> str:
        if isinstance(v, dict):
            return "{ " + ", ".join(f"{json.dumps(k)} = {value(x)}" for k, x in v.items()) + " }"
        return "[" + ", ".join(map(value, v)) + "]" if isinstance(v, list) else json.dumps(v)

    return "\n".join(f"{key} = {value(v)}" for key, v in document.items())


def test_every_problem_at_once_with_its_place() -> None:
    text = (
        'version = "1.0"\n'
        'profils = ["python"]\n'
        "[fs]\n"
        'read = ["/a", "/b/../c",\n'
        '  # a comment, with ] and "\n'
        '  "/a"]\n'
        "exce = []\n"
        "[net]\n"
        'connect = ["ip:10.0.0.1/8:443", "dns:*.com:443", "https://x.example"]\n'
        "[budgets]\n"
        "tokens = -1\n"
    )
    found = [(p.line, p.column, p.key, p.hint) for p in problems(text)]
    assert found == [
        (2, 1, "profils", 'did you mean "profiles"?'),
        (4, 15, "fs.read[1]", "write ${workdir}/b/c"),
        (6, 3, "fs.read[2]", "remove one of the two"),
        (7, 1, "fs.exce", 'did you mean "exec"?'),
        (9, 12, "net.connect[0]", "write 10.0.0.0/8"),
        (9, 33, "net.connect[1]", "name the domain: *.example.com"),
        (9, 50, "net.connect[2]", 'write "dns:x.example:443"'),
        (11, 1, "budgets.tokens", "0 means none may be spent; leave it out for the default"),
    ]


def test_places_in_json() -> None:
    text = '{"version": "1.0",\n  "fs": {"read": ["/a",\n     "b/../c"], "wirte": []},\n "audit": {"level": "ful"}}'
    found = [(p.line, p.column, p.key) for p in problems(text, "json")]
    assert found == [(3, 6, "fs.read[1]"), (3, 17, "fs.wirte"), (4, 12, "audit.level")]


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ('{"version": "1.0", "version": "1.0"}', 1, 20, "given twice"),
        ('{"version": "1.0",\n "fs": {"read": [], "read": []}}', 2, 21, "given twice"),
        ('{"version": "1.0"} x', 1, 20, "follows the end"),
        ('{"version": NaN}', 1, 13, "NaN"),
        ('{"version": -Infinity}', 1, 13, "expected a value"),
        ('{"version": "1.0",}', 1, 19, "double quotes"),
        ('{"version": "1.0" "fs": {}}', 1, 19, "expected ,"),
        ("[]", 1, 1, "an object"),
        ("", 1, 1, "expected a value"),
        ('{"version": "1\n"}', 1, 15, "control character"),
        ('{"a": ' + "[" * 100, 1, 71, "deeper than 64"),
        ('{"a": 01}', 1, 8, "expected ,"),
    ],
)
def test_json_is_strict(text: str, line: int, column: int, message: str) -> None:
    problem = one(text, "json")
    assert message in problem.message
    assert (problem.line, problem.column) == (line, column)


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ('version = "1.0"\n[fs]\nread = [\n', 4, 1),
        ('version = "1.0"\nversion = "1.0"\n', 2, 16),
        ('version = "1.0"\n[fs]\nread = "a\n', 3, 10),
        ("version = 1.0.0\n", 1, 14),
        ("a = " + "[" * 5000, 1, 1),
    ],
)
def test_toml_syntax_errors_have_a_place(text: str, line: int, column: int) -> None:
    problem = one(text)
    assert (problem.line, problem.column) == (line, column), problem


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ('fs.read = "/a"', "fs.read", "expected a list"),
        ("fs.read = [1]", "fs.read[0]", "expected a string"),
        ("fs = 3", "fs", "expected a table"),
        ("budgets.tokens = true", "budgets.tokens", "expected a whole number"),
        ("budgets.tokens = 1.5", "budgets.tokens", "expected a whole number"),
        ("budgets.usd = nan", "budgets.usd", "counted"),
        ("budgets.usd = -0.5", "budgets.usd", "negative"),
        ("budgets.tokens = 9223372036854775808", "budgets.tokens", "over"),
        ("budgets = { cpu_ns = 1, cpu_time_ns = 2 }", "budgets.cpu_time_ns", "another name"),
        ('limits.memory = "2X"', "limits.memory", "not a size"),
        ('limits.memory = "99999999T"', "limits.memory", "not a size"),
        ("limits.pids = -1", "limits.pids", "negative"),
        ('profiles = ["pyhton"]', "profiles[0]", "unknown profile"),
        ('fs.read = ["${foo}/x"]', "fs.read[0]", "unknown variable"),
        ('runtime = "maybe"', "runtime", "expected"),
        ('env.pass = ["A=B"]', "env.pass[0]", "not valid"),
        ('env.set = { A = "${nope}" }', "env.set.A", "not valid"),
        ('net.unix = ["@abstract"]', "net.unix[0]", "abstract"),
        ('net.bind = ["dns:example.com:80"]', "net.bind[0]", "only an address"),
        ('approve.effects = ["fs.rite /x"]', "approve.effects[0]", "unknown effect"),
        ('approve.effects = ["fs.write"]', "approve.effects[0]", "missing"),
        ('tools.allow = ["a*b"]', "tools.allow[0]", "end a name"),
        ('infer.upstreams.x = { type = "openai", base_url = "ftp://x" }', "infer.upstreams.x.base_url", "not valid"),
        ('infer.upstreams.x = { type = "openai", base_url = "vsock:2:80" }', "infer.upstreams.x.base_url", "no virtio"),
        (
            'infer.upstreams.x = { type = "openai", base_url = "https://x", key = "secret:N" }',
            "infer.upstreams.x.key",
            "no secret",
        ),
        ('secrets.K = { from = "env:K", for = ["infer:nope"] }', "secrets.K.for[0]", "no upstream"),
        ("secrets.K = { for = [] }", "secrets.K", '"from" is missing'),
        ("source = {}", "source", "unknown key"),
    ],
)
def test_mistakes(text: str, key: str, message: str) -> None:
    problem = one(f'version = "1.0"\n{text}\n')
    assert problem.key == key
    assert message in problem.message
    assert problem.line == 2
    assert problem.hint or "missing" in message


def test_version_is_required_and_known() -> None:
    assert 'version = "1.0"' in one("fs.read = []").hint
    assert one('version = "2.0"').key == "version"
    assert one("version = 1.0").key == "version"


def test_limits_are_refused_and_named(tmp_path: Path) -> None:
    many = "".join(f'"/r{i}",' for i in range(10_001))
    assert "10000" in one(f'version = "1.0"\nfs.read = [{many}]').message
    big = tmp_path / "big.toml"
    big.write_text('version = "1.0"\n#' + "x" * (1 << 20))
    with pytest.raises(PolicyError, match="1048576"):
        load(big)
    assert "4096" in one(f'version = "1.0"\nfs.read = ["/{"a/" * 2100}b"]').message


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_bytes(b'version = "1.0"\nfs.read = ["\xff"]\n')
    with pytest.raises(PolicyError) as caught:
        load(path)
    assert (caught.value.problems[0].line, caught.value.problems[0].column) == (2, 13)


def test_places_in_odd_toml() -> None:
    text = (
        'version = "1.0"\r\n'
        'approve.effects = ["""fs.write\n /x""", \'fs.reed /y\']\r\n'
        '[infer."upstreams"."a.b"]  # [not a header]\n'
        'type = "opnai"\n'
        "base_url = 'https://x'\n"
    )
    assert [(p.line, p.column, p.key) for p in problems(text)] == [
        (2, 20, "approve.effects[0]"),
        (3, 9, "approve.effects[1]"),
        (5, 1, 'infer.upstreams."a.b".type'),
    ]
