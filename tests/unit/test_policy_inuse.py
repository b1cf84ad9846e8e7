"""Which names lead to the policy files of a run, and that no rule lets an agent write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from akbox.policy.compile import CompiledPolicy, Context, compile_policy
from akbox.policy.inuse import policy_names
from akbox.policy.load import load, parse
from akbox.policy.matcher import ALLOW, DENY, READ, WRITE

TEXT = 'version = "1.0"\nfs.read = ["/**"]\nfs.write = ["/**"]\n'
OPEN, UNLINK, RENAME = 0x100, 0x101, 0x102


def compiled(path: Path | str) -> CompiledPolicy:
    policy = load(path)
    return compile_policy(policy, Context("/w", "/home/u", "/tmp/run", "/usr", policy_files=policy_names(policy)))


def allows(policy: CompiledPolicy, op: int, path: Path, need: int = WRITE, target2: Path | None = None) -> bool:
    verdict = policy.decide(op, str(path), need=need, target2=None if target2 is None else str(target2))
    assert verdict.decision in (ALLOW, DENY)
    return verdict.decision == ALLOW


def test_the_file_and_every_link_to_it_are_read_only(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / "sub").mkdir(parents=True)
    (real / "sub" / "p.toml").write_text(TEXT)
    (real / "sub" / "q.toml").symlink_to("../../dir/p.toml")
    (tmp_path / "dir").symlink_to(real / "sub")
    (real / "sub" / "other").write_text("")
    policy = compiled(tmp_path / "dir" / ".." / "sub" / "q.toml")
    names = [real / "sub" / "p.toml", real / "sub" / "q.toml", tmp_path / "dir"]
    for name in names:
        assert not allows(policy, OPEN, name)
        assert not allows(policy, UNLINK, name)
        assert not allows(policy, RENAME, real / "sub" / "other", target2=name)
        assert allows(policy, OPEN, name, READ)
    assert allows(policy, OPEN, real / "sub" / "other")
    assert not allows(policy, RENAME, real, target2=tmp_path / "away")  # what lies below would lose its protection
    assert "the policy of this run" in policy.suggest(OPEN, str(names[0]), WRITE)


def test_a_relative_path_is_taken_from_where_it_was_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.toml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    policy = load("p.toml")
    monkeypatch.chdir("/")
    assert policy_names(policy) == (os.path.realpath(tmp_path / "p.toml"),)


def test_text_protects_no_file_and_profiles_protect_theirs(tmp_path: Path) -> None:
    assert policy_names(parse(TEXT, syntax="toml", name="p.toml")) == ()
    (tmp_path / "p.toml").write_text('version = "1.0"\nprofiles = ["base"]\n')
    names = policy_names(load(tmp_path / "p.toml"))
    assert [Path(name).name for name in names] == ["p.toml", "base.toml"]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    policy = parse(TEXT, syntax="toml", name="p", file=str(tmp_path / "a"))
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert set(policy_names(policy)) == {str(tmp_path / "a"), str(tmp_path / "b")}
