"""What protected names lead to when a run starts is protected as well; nothing else is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from akbox.policy.compile import Context, compile_policy
from akbox.policy.linked import with_links
from akbox.policy.load import parse
from akbox.policy.matcher import ALLOW, READ, WRITE

OPEN, RENAME = 0x100, 0x102
POLICY = """version = "1.0"
[fs]
read = ["/**"]
write = ["${workdir}/**", "@/other/**", "${tmp}/**"]
protect = ["**/.git", "**/.git/config", "**/.git/hooks/**", "**/.bashrc", "**/.claude/**", "${workdir}/locked"]
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for name in ("work/.git/hooks", "work/src", "other", "tmp"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path / "work"


class Rights:
    """What the policy says when a run starts in `work` now."""

    def __init__(self, work: Path, text: str = POLICY) -> None:
        policy = parse(text.replace("@", str(work.parent)), syntax="toml", name="p.toml")
        tmp = str(work.parent / "tmp")
        self.context = with_links(policy, Context(str(work), str(work.parent / "home"), tmp, "/usr"))
        self.policy = compile_policy(policy, self.context)

    def writes(self, path: Path) -> bool:
        assert self.policy.decide(OPEN, str(path), need=READ).decision == ALLOW
        return self.policy.decide(OPEN, str(path), need=WRITE).decision == ALLOW


def link(path: Path, target: str) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def test_where_there_is_no_link_nothing_is_added(work: Path) -> None:
    (work / ".bashrc").write_text("")
    assert Rights(work).context.protected == ()


def test_hooks_behind_links(work: Path) -> None:
    (work / "tools/hooks").mkdir(parents=True)
    link(work / "middle", "tools")
    link(work / ".git/hooks", "../middle/hooks")
    rights = Rights(work)
    assert not rights.writes(work / "tools/hooks/pre-commit")
    assert not rights.writes(work / "tools/hooks/deep/er")
    assert not rights.writes(work / "middle")
    assert rights.writes(work / "tools/other")
    assert rights.writes(work / "src/x")
    moved = rights.policy.decide(RENAME, str(work / "tools"), need=WRITE, target2=str(work / "away"))
    assert moved.decision != ALLOW
    assert "a protected name leads to it" in rights.policy.suggest(OPEN, str(work / "tools/hooks/x"), WRITE)


def test_what_a_link_leads_to_need_not_be_there_yet(work: Path) -> None:
    link(work / ".git/hooks", "../later")
    link(work / ".bashrc", "src/rc")
    rights = Rights(work)
    assert not rights.writes(work / "later")
    assert not rights.writes(work / "later/pre-commit")
    assert not rights.writes(work / "src/rc")
    assert rights.writes(work / "src/rc2")


def test_a_repository_elsewhere(work: Path) -> None:
    """.git is a link: its hooks and configuration are protected there, its objects are not."""
    os.rename(work / ".git", work / "store")
    link(work / ".git", "store")
    rights = Rights(work)
    assert not rights.writes(work / "store/hooks/x")
    assert not rights.writes(work / "store/config")
    assert not rights.writes(work / "store")  # replacing it as a whole
    assert rights.writes(work / "store/objects/ab/cd")


def test_a_git_file(work: Path) -> None:
    """As `git init --separate-git-dir` and `git worktree add` leave them."""
    os.rename(work / ".git", work / "store")
    (work / "store/worktrees/w").mkdir(parents=True)
    (work / "store/worktrees/w/commondir").write_text("../..\n")
    (work / ".git").write_text("gitdir: store/worktrees/w\n")
    rights = Rights(work)
    assert not rights.writes(work / "store/hooks/x")
    assert not rights.writes(work / "store/config")
    assert rights.writes(work / "store/index")


def test_every_writable_tree(work: Path) -> None:
    link(work.parent / "other/.claude", "../work/src")
    rights = Rights(work)
    assert not rights.writes(work / "src/settings.json")


def test_a_protected_name_in_one_place(work: Path) -> None:
    link(work / "locked", "src/target")
    assert not Rights(work).writes(work / "src/target")


@pytest.mark.parametrize(
    "config",
    ["[core]\n\thooksPath = tools/h", '[CORE]\nhookspath="tools/h" ; x', "[core] hooksPath=tools/\\\nh\n",
     "[x]\nhooksPath=src\n[core]\nhooksPath = @/work/tools/h # y"],
)  # fmt: skip
def test_a_configured_hooks_directory(work: Path, config: str) -> None:
    (work / ".git/config").write_text(config.replace("@", str(work.parent)))
    rights = Rights(work)
    assert not rights.writes(work / "tools/h/pre-commit")
    assert rights.writes(work / "tools/x")
    assert rights.writes(work / "src/x")


def test_hooks_beside_the_work_leave_the_work_writable(work: Path) -> None:
    (work / ".git/config").write_text("[core]\nhooksPath = .\n")
    rights = Rights(work)
    assert not rights.writes(work / "pre-commit")
    assert rights.writes(work / "src/x")
    assert rights.writes(work / "x")


@pytest.mark.parametrize("value", ["/dev/null", "", "/nowhere/hooks", '"unclosed', "a\0b"])
def test_other_hooks_directories_change_nothing(work: Path, value: str) -> None:
    (work / ".git/config").write_text(f"[core]\nhooksPath = {value}\n")
    rights = Rights(work)
    assert all(name.startswith(str(work)) for name in rights.context.protected)
    assert rights.writes(work / "src/x")


def test_without_protection_nothing_is_looked_at(work: Path) -> None:
    link(work / ".git/hooks", "../src")
    text = 'version = "1.0"\nfs.read = ["/**"]\nfs.write = ["${workdir}/**"]\n'
    assert Rights(work, text).context.protected == ()


def test_links_in_a_circle_and_odd_files_end(work: Path) -> None:
    link(work / ".bashrc", ".claude")
    link(work / ".claude", ".bashrc")
    os.mkfifo(work / ".git/config")
    assert Rights(work).writes(work / "src/x")
