"""`akbox policy diff`: every planted widening is found as one, with an example that the two policies differ on."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from cli_call import Cli

from akbox.policy.compile import compile_policy
from akbox.policy.compiled import CompiledPolicy
from akbox.policy.diff import Change, diff
from akbox.policy.explain import EFFECTS, WORDS
from akbox.policy.load import parse
from akbox.policy.rules import Context

BASE: dict[str, Any] = {
    "version": "1.0",
    "profiles": ["base"],
    "runtime": "none",
    "fs": {
        "read": ["${workdir}/**", "/data/*/public/**", "/srv/logs/*.log", "/mnt/tool"],
        "write": ["${workdir}/out/**", "/srv/db/a?.db"],
        "exec": ["/usr/bin/git", "/usr/bin/python3*"],
        "deny": ["**/.env", "${workdir}/secret/**", "/data/x/public/keys/**"],
        "protect": ["**/Makefile"],
        "metadata": "strict",
    },
    "net": {
        "dns": ["example.org"],
        "connect": ["dns:*.example.org:443", "ip:10.1.0.0/16:8000-8010", "udp+ip:192.0.2.5:53"],
        "bind": ["ip:127.0.0.1:8080"],
        "listen": ["ip:127.0.0.1:8080"],
        "unix": ["/run/app.sock"],
        "deny": ["ip:10.1.2.0/24:*", "dns:bad.example.org:*"],
        "private": ["intern.example.org"],
        "sni": "enforce",
    },
    "tools": {"allow": ["http_get", "file_*"], "deny": ["file_delete"]},
    "wasm": {"modules": ["trusted_*"], "hostcalls": ["fs_read"]},
    "infer": {"models": ["claude-*"], "max_tokens": 1000, "detect": "block"},
    "spawn": {"allow": ["/usr/bin/python3*"], "deny": ["/usr/bin/python3.9"], "max_agents": 2},
    "secrets": {"A": {"from": "env:A", "for": []}},
    "env": {"pass": ["LANG"], "set": {"B": "1"}},
    "limits": {"pids": 10, "memory": 1000},
    "budgets": {"tokens": 100, "usd": 1.0, "wall_time_ms": 1000, "bytes": 5},
    "approve": {"effects": ["fs.write /srv/db/ab.db", "net.connect dns:pay.example.org:443"]},
    "audit": {"level": "full"},
}  # fmt: skip

Edit = tuple[str, Any, Any]  # key, what is taken out of the list (or None), what is put there
ADDED: list[Edit] = [
    *(
        ("fs.read", None, text)
        for text in ("/data/y/private/**", "/srv/logs/*", "/mnt/tool2", "/mnt/tool/**", "**/notes")
    ),
    *(("fs.read", None, text) for text in ("/data/**", "/srv/logs/?", "~/x", "/srv/logs/old/*.log", "/data/*/public2")),
    *(("fs.write", None, text) for text in ("${workdir}/src/**", "${workdir}/*", "/srv/db/**", "/srv/db/b?.db")),
    *(("fs.exec", None, text) for text in ("/usr/bin/*", "/usr/bin/gi?", "${workdir}/**", "/usr/bin/p*")),
    *(("net.dns", None, text) for text in ("*.example.net", "example.net", "*")),
    *(("net.connect", None, text) for text in ("dns:*.example.org:80", "dns:**.example.org:443", "ip:10.0.0.0/8:8000")),
    *(("net.connect", None, text) for text in ("ip:10.1.0.0/16:8000-8011", "udp+ip:192.0.2.4/31:53", "dns:a.b.c:*")),
    *(("net.bind", None, text) for text in ("ip:0.0.0.0:8080", "ip:127.0.0.1:8081")),
    ("net.listen", None, "ip:[::1]:8080"),
    *(("net.unix", None, text) for text in ("/run/other.sock", "/run/*")),
    ("net.private", None, "example.org"),
    *(("tools.allow", None, text) for text in ("http_post", "*")),
    ("infer.models", None, "gpt-*"),
    ("spawn.allow", None, "/usr/bin/git"),
    ("env.pass", None, "FOO"),
]
REMOVED: list[Edit] = [
    *(("fs.deny", text, None) for text in ("**/.env", "${workdir}/secret/**", "/data/x/public/keys/**")),
    ("fs.protect", "**/Makefile", None),
    *(("net.deny", text, None) for text in ("ip:10.1.2.0/24:*", "dns:bad.example.org:*")),
    ("tools.deny", "file_delete", None),
    ("spawn.deny", "/usr/bin/python3.9", None),
    *(("approve.effects", text, None) for text in ("fs.write /srv/db/ab.db",)),
    ("profiles", "base", None),
]
SET: list[Edit] = [
    *(("limits.pids", None, 11), ("limits.memory", None, 2000), ("budgets.tokens", None, 101)),
    *(("budgets.usd", None, 1.5), ("infer.max_tokens", None, 1001), ("spawn.max_agents", None, 3)),
    *(("fs.metadata", None, "open"), ("net.sni", None, "off"), ("infer.detect", None, "off")),
    *(("runtime", None, "auto"), ("audit.level", None, "writes")),
]


def compiled(document: dict[str, Any]) -> CompiledPolicy:
    policy = parse(json.dumps(document), syntax="json", name="test")
    return compile_policy(policy, Context(workdir="/src/app", home="/home/me", tmp="/tmp/run", prefix="/usr"))


def edited(edit: Edit) -> dict[str, Any]:
    document = copy.deepcopy(BASE)
    *sections, name = edit[0].split(".")
    table = document
    for section in sections:
        table = table[section]
    _, out, into = edit
    if isinstance(table.get(name), list):
        table[name] = [item for item in table[name] if item != out] + ([into] if into is not None else [])
    else:
        table[name] = into
    return document


def check_examples(one: CompiledPolicy, two: CompiledPolicy, changes: list[Change]) -> None:
    """Each example is one: the policies themselves say so."""
    for change in changes:
        if change.effect in EFFECTS:
            op, need = EFFECTS[change.effect]
            verdicts = [WORDS[policy.decide(op, change.target, need=need).decision] for policy in (one, two)]
            assert verdicts == [change.before, change.after], change


@pytest.mark.parametrize("edit", [*ADDED, *REMOVED, *SET], ids=lambda edit: f"{edit[0]} {edit[1] or edit[2]}")
def test_a_planted_widening_is_found(edit: Edit) -> None:
    one, two = compiled(BASE), compiled(edited(edit))
    changes = diff(one, two)
    # `base` grants as well as it refuses; runtime = "auto" grants nothing until there is a command
    expected = {"wider", "narrower", "other"} if edit[1] == "base" else {"wider"}
    assert {change.kind for change in changes} >= {"wider"}, changes
    assert {change.kind for change in changes} <= expected, changes
    check_examples(one, two, changes)
    back = diff(two, one)
    assert {change.kind for change in back} >= {"narrower"}, back


def test_there_are_enough_of_them() -> None:
    assert len([*ADDED, *REMOVED, *SET]) >= 50


def test_the_same_policy_in_other_words_does_not_differ() -> None:
    other = copy.deepcopy(BASE)
    other["fs"]["read"] = [*reversed(BASE["fs"]["read"]), "${workdir}/out/x", "${workdir}/src/**"]
    assert diff(compiled(BASE), compiled(other)) == []


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Cli(monkeypatch, capfd)


def test_commands(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.json").write_text(json.dumps(BASE))
    (tmp_path / "two.json").write_text(json.dumps(edited(("fs.deny", "**/.env", None))))
    (tmp_path / "cases").write_text(
        "# what must hold\n\nallow fs.read ./a\ndeny fs.read ./b/.env\nask fs.write /srv/db/ab.db\n"
    )
    code, out, err = cli("policy", "diff", "./one.json", "./two.json")
    assert (code, "+ fs.read" in out, "/.env" in out) == (1, True, True), (out, err)
    assert cli("policy", "diff", "./one.json", "./one.json")[:2] == (0, "")
    code, out, _ = cli("policy", "diff", "./one.json", "./two.json", "--json")
    assert {change["kind"] for change in json.loads(out)} == {"wider"}
    assert cli("policy", "test", "./one.json", "cases")[:2] == (0, "policy test: 3 of 3 cases hold (./one.json)\n")
    code, out, _ = cli("policy", "test", "./two.json", "cases")
    assert (code, out.splitlines()[0]) == (1, "cases:4: fs.read ./b/.env is allowed by fs.read ${workdir}/**")
    (tmp_path / "cases").write_text("allow fs.read\n")
    code, _, err = cli("policy", "test", "./one.json", "cases")
    assert (code, "cases:1: 'allow fs.read' is no case" in err) == (2, True), err
