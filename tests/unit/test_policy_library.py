"""The policy as a library: `akbox.Policy.load`, `parse`, `check` and `explain`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import akbox

TEXT = 'version = "1.0"\nfs.read = ["${workdir}/**"]\nfs.deny = ["**/.env"]\nnet.connect = ["ip:10.0.0.1:443"]\n'


def test_loaded_and_parsed_are_the_same_policy(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(TEXT)
    (tmp_path / "p.json").write_text(json.dumps({"version": "1.0", "fs": {"read": ["/a/**"]}}))
    loaded = akbox.Policy.load(tmp_path / "p.toml")
    assert isinstance(loaded, akbox.Policy)
    assert loaded.fs == akbox.Policy.parse(TEXT).fs
    assert akbox.Policy.load(str(tmp_path / "p.json")).fs.read == ("/a/**",)
    assert akbox.Policy.parse('{"version": "1.0"}', syntax="json").version == "1.0"
    assert loaded.source is not None
    assert loaded.source.file == str(tmp_path / "p.toml")


def test_check_returns_the_problems_and_load_raises_them(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text('version = "1.0"\n[fs]\nraed = ["/a"]\nwrite = "/b"\n')
    problems = akbox.Policy.check(bad)
    assert [(p.line, p.key) for p in problems] == [(3, "fs.raed"), (4, "fs.write")]
    assert all(isinstance(p, akbox.Problem) and p.hint for p in problems)
    with pytest.raises(akbox.PolicyError) as caught:
        akbox.Policy.load(bad)
    assert caught.value.problems == problems
    with pytest.raises(akbox.PolicyError, match="mine:1"):
        akbox.Policy.parse("fs.read = []", name="mine")
    bad.write_text(TEXT)
    assert akbox.Policy.check(bad) == []
    with pytest.raises(FileNotFoundError):
        akbox.Policy.check(tmp_path / "none.toml")


def test_explain_says_which_rule_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "link").symlink_to("/etc/hosts")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    policy, work = akbox.Policy.parse(TEXT), tmp_path / "work"
    found = policy.explain("fs.read", "a", cwd=work)
    assert isinstance(found, akbox.Explanation)
    assert (found.decision, found.rule, found.target) == ("allowed", "fs.read ${workdir}/**", str(work / "a"))
    assert policy.explain("fs.read", "sub/.env", cwd=work).rule == "fs.deny **/.env"
    assert policy.explain("fs.read", "link", cwd=work).target == os.path.realpath("/etc/hosts")
    assert policy.explain("fs.write", "a", cwd=work).suggested_fix.startswith("fs.write = [")
    assert policy.explain("net.connect", "ip:10.0.0.1:443").decision == "allowed"
    assert policy.explain("net.connect", "ip:10.0.0.1:80").decision == "denied"
    monkeypatch.chdir(work)
    assert policy.explain("fs.read", "a").decision == "allowed"
    with pytest.raises(ValueError, match="no effect"):
        policy.explain("fs.raed", "/a")


def test_the_model_loads_no_reader() -> None:
    code = "import sys, akbox.policy.model; print(*(m for m in sys.modules if m.startswith('akbox.policy')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"akbox.policy", "akbox.policy.model", "akbox.policy.source"}
