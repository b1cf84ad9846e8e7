"""Which opens pass the filter untrapped: of directories, and of anything that is only read."""

from __future__ import annotations

from pathlib import Path

import pytest

from akbox.linux.kernel_opens import listings_hold, reads_hold
from akbox.policy.compile import Context, compile_policy
from akbox.policy.landlock import landlock_plan
from akbox.policy.load import parse


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("tree/sub", "other", "writable"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("tree")
    return tmp_path


def holds(place: Path, fs: str) -> tuple[bool, bool]:
    """(reads, listings)"""
    context = Context("/w", "/home/u", "/tmp/run", "/usr", state_dirs=(f"{place}/other/akbox",))
    text = 'version = "1.0"\n[fs]\n' + fs.replace("=[", " = [").replace("@", str(place))
    compiled = compile_policy(parse(text, syntax="toml", name="p.toml"), context)
    plan = landlock_plan(compiled, on_behalf=True)
    return reads_hold(compiled, plan), listings_hold(compiled, plan)


@pytest.mark.parametrize(
    "fs",
    ['read=["@/tree/**"]', 'read=["@/tree/**","@/file"]', 'read=["@/link/**"]', 'read=["@/none/**"]',
     'read=["@/tree/**"]\nwrite=["@/writable/**"]\nexec=["@/tree/sub/**"]'],
)  # fmt: skip
def test_both_hold(place: Path, fs: str) -> None:
    assert holds(place, fs) == (True, True)


@pytest.mark.parametrize(
    ("fs", "why"),
    [
        ('read=["@/tree"]', "a directory alone"),
        ('read=["@/tree"]\nexec=[]', "a directory alone"),
        ('read=["@/tree/**"]\ndeny=["@/tree/sub/**"]', "a refusal inside"),
        ('read=["@/other/**"]', "akbox's own files inside"),
        ('read=["@/tree/*"]', "the pattern is no tree"),
        ('read=["@/tree/**"]\nexec=["@/other/**"]', "Landlock lets be read what may be run"),
    ],
)
def test_neither_holds(place: Path, fs: str, why: str) -> None:
    assert holds(place, fs) == (False, False), why


@pytest.mark.parametrize("name", ["tree/**", "none/**", "none", "file"])
def test_what_the_agent_may_remake_is_listed_by_the_enforcer(place: Path, name: str) -> None:
    """Landlock knows the object that was there at the start, the policy the name."""
    assert holds(place, f'read=["@/{name}"]\nwrite=["@/{name}"]\nexec=[]') == (True, False)
