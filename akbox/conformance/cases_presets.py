"""Files that run later or steer an agent, protected by the shipped presets (F50-F56). The working directory is W."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace

from akbox.conformance.engine import Result
from akbox.conformance.model import Case, Expect, deny, ok, py, require, sh
from akbox.conformance.world import World

# Each exists or not; each is tried as a file to write, a name to rename onto or link, and by making its directory.
PROTECTED = [
    ".git/hooks/pre-commit",
    ".git/hooks/new-hook",
    ".git/config",
    "sub/.git/hooks/pre-commit",
    "sub/.git/config",
    ".bashrc",
    ".bash_profile",
    ".profile",
    ".zshrc",
    ".gitconfig",
    ".gitmodules",
    ".mcp.json",
    ".vscode/settings.json",
    ".vscode/tasks.json",
    ".idea/workspace.xml",
    ".claude/settings.json",
    ".claude/commands/x.md",
    ".claude/hooks/x",
    ".codex/config.toml",
    "deep/er/.vscode/tasks.json",
    "AGENTS.md",
    "CLAUDE.md",
]
ATTACK = """
import os, sys
bad = []
open('bait', 'w').write('bait')
def attempt(what, path, action):
    try:
        action()
    except (PermissionError, FileExistsError):
        return
    except FileNotFoundError:
        if not os.path.isdir(os.path.dirname(path)):
            return  # its directory could not be made, which is an attempt of its own
    bad.append(f'{what} {path}')
for path in PATHS:
    folder = os.path.dirname(path)
    if folder and not os.path.isdir(folder):
        for i in range(1, folder.count('/') + 2):
            part = '/'.join(folder.split('/')[:i])
            if not os.path.isdir(part):
                try: os.mkdir(part)
                except PermissionError: break
    attempt('write', path, lambda: open(path, 'w').close())
    attempt('append', path, lambda: open(path, 'a').close())
    attempt('rename onto', path, lambda: os.rename('bait', path))
    attempt('symlink', path, lambda: os.symlink('bait', path))
    attempt('link', path, lambda: os.link('bait', path))
    attempt('mkdir', path, lambda: os.mkdir(path))
    if os.path.exists(path):
        attempt('remove', path, lambda: os.unlink(path))
        attempt('chmod', path, lambda: os.chmod(path, 0o777))
        attempt('move away', path, lambda: os.rename(path, 'moved'))
for path in ('.git', 'sub/.git', '.git/hooks', '.claude', '.vscode'):
    attempt('move', path, lambda: os.rename(path, path + '-moved'))
print('\\n'.join(bad) or 'all refused')
""".replace("PATHS", repr(PROTECTED))


def git(world: World, *words: str) -> None:
    environment = {"HOME": str(world.HOME), "PATH": "/usr/bin:/bin", "GIT_CONFIG_NOSYSTEM": "1"}
    identity = ["-c", "user.name=Kit", "-c", "user.email=kit@example.org", "-c", "safe.directory=*"]
    subprocess.run(["git", *identity, *words], cwd=world.W, env=environment, check=True, capture_output=True)


def repositories(world: World) -> None:
    git(world, "init", "-q", ".")
    git(world, "init", "-q", "sub")
    git(world, "commit", "-q", "--allow-empty", "-m", "first")
    (world.W / ".claude").mkdir()
    world.write(world.W / ".claude" / "settings.json", "{}\n")
    world.write(world.W / ".bashrc", "# host\n")
    world.write(world.W / ".git" / "hooks" / "pre-commit", "#!/bin/sh\n", 0o755)
    world.give()


def worktree(world: World) -> None:
    repositories(world)
    git(world, "worktree", "add", "-q", str(world.W / "tree"))
    world.give()


def linked_hooks(world: World) -> None:
    repositories(world)
    hooks = world.W / ".git" / "hooks"
    hooks.rename(world.W / "hooks-elsewhere")
    hooks.symlink_to("../hooks-elsewhere")
    world.give()


def configured_hooks(world: World) -> None:
    repositories(world)
    (world.W / "tools" / "hooks").mkdir(parents=True)
    git(world, "config", "core.hooksPath", "tools/hooks")
    world.give()


def untouched(world: World, result: Result) -> None:
    for path in (world.W / ".bashrc", world.W / ".claude" / "settings.json"):
        require(path.read_text() in ("# host\n", "{}\n"), str(result))
    for name in (".mcp.json", ".vscode/settings.json"):
        require(not os.path.lexists(world.W / name), str(result))


COMMIT = (
    "git -c user.name=A -c user.email=a@example.org add file && "
    "git -c user.name=A -c user.email=a@example.org commit -q -m second && git log --oneline | wc -l"
)

CASES = [
    replace(case, programs=("git",))
    for case in (
    Case("F50-F53", "every way to every protected file", py(ATTACK), ok("all refused"), control=None, preset="default",
         prepare=repositories, check=untouched, timeout_s=120),
    Case("F53-neighbours", "their neighbours are free",
         sh("mkdir -p .github/workflows && echo x > .github/workflows/ci.yml && echo x > bashrc && echo x > s.py"),
         ok(), preset="default", prepare=repositories),
    Case("F54", "git writes objects, index and refs", sh(f"echo new > file && {COMMIT}"), ok("2"), preset="default",
         prepare=repositories),
    Case("F54-worktree", "and in a worktree", sh(f"cd tree && echo new > file && {COMMIT}"), ok("2"), preset="default",
         prepare=worktree),
    Case("F55", "hooks behind a symlink: the run starts, and they are protected by that name",
         sh("echo started; echo x > .git/hooks/pre-commit"), Expect(errnos=("EACCES",), stdout="started"),
         preset="default", prepare=linked_hooks),
    Case("F55-real", "and by their own", sh("echo x > hooks-elsewhere/pre-commit"), deny("fs.open"), preset="default",
         prepare=linked_hooks),
    Case("F55-new", "new ones too", sh("echo x > hooks-elsewhere/post-commit"), deny("fs.open"), preset="default",
         prepare=linked_hooks),
    Case("F55-move", "nor can their directory be replaced", sh("mv hooks-elsewhere away"), deny("fs.rename"),
         preset="default", prepare=linked_hooks),
    Case("F55-path", "hooks where core.hooksPath says", sh("echo x > tools/hooks/pre-commit"), deny("fs.open"),
         preset="default", prepare=configured_hooks),
    Case("F55-commit", "commits go on", sh(f"echo new > file && {COMMIT}"), ok("2"), preset="default",
         prepare=configured_hooks),
    Case("F55-link", "and the symlink itself", sh("rm .git/hooks"), Expect(errnos=("EACCES",)), preset="default",
         prepare=linked_hooks),
    Case("F56", ".git is a file", sh("cd tree && test -f .git && git status --short && echo started"), ok("started"),
         preset="default", prepare=worktree),
    Case("F56-file", "and cannot be redirected", sh("cd tree && echo 'gitdir: /tmp' > .git"),
         Expect(errnos=("EACCES",)), preset="default", prepare=worktree),
)
]  # fmt: skip
