"""What protected names lead to when a run starts, so that the run can refuse to write that as well.

A policy judges the canonical path of an object. Where `.git/hooks` is a symbolic link to `tools/hooks`, a rule on
`**/.git/hooks/**` covers the link and not the hooks; and a repository may name its hooks' directory itself. Only names
at the top of the working directory and of the writable trees are looked at, never what lies below: a start costs one
lstat for each, and some more for those that are there.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Mapping

from msgspec import structs

from akbox.policy.inuse import names_on_the_way
from akbox.policy.model import Policy
from akbox.policy.patterns import LITERAL, STAR, PatternError, Segment, parse_path, show
from akbox.policy.rules import Context, compose

_GIT, _HOOKS = ".git", ".git/hooks"
_GIT_FILE_BYTES, _CONFIG_BYTES = 4096, 1 << 18  # of .git and commondir; of a repository's config
# githooks(5); asked for one by one only where the hooks lie beside everything else.
_HOOK_NAMES = (
    *("applypatch-msg", "pre-applypatch", "post-applypatch", "pre-commit", "pre-merge-commit", "prepare-commit-msg"),
    *("commit-msg", "post-commit", "pre-rebase", "post-checkout", "post-merge", "pre-push", "pre-receive", "update"),
    *("proc-receive", "post-receive", "post-update", "reference-transaction", "push-to-checkout", "pre-auto-gc"),
    *("post-rewrite", "sendemail-validate", "fsmonitor-watchman", "post-index-change"),
)


def with_links(policy: Policy, context: Context) -> Context:
    """The context of a run that starts now."""
    return structs.replace(context, protected=protected_links(policy, context.variables()))


def protected_links(policy: Policy, variables: Mapping[str, str]) -> tuple[str, ...]:
    """Canonical paths, with `/**` behind them where all below is meant; names that need not exist yet are among them.

    variables: as Context.variables() gives them; the paths are those of this moment.
    """
    parts = [part for _, part in compose(policy)]
    names, roots = _protected_names(parts, variables), _roots(parts, variables)
    firsts = {name.partition("/")[0] for name in names}
    found: dict[str, None] = {}
    for root in roots:
        there = {first for first in firsts if os.path.lexists(os.path.join(root, first))}
        git = _git_folders(root) if _GIT in there else []
        for name, tree in names.items():
            first, _, rest = name.partition("/")
            if first in there:
                found.update(dict.fromkeys(_led_to(os.path.join(root, name), tree, always=False)))
            for folder in git if first == _GIT and rest else ():
                found.update(dict.fromkeys(_led_to(os.path.join(folder, rest), tree, always=True)))
        if names.get(_HOOKS) and _GIT in there:
            found.update(dict.fromkeys(_configured_hooks(root, git, roots)))
    return tuple(found)


def _protected_names(parts: list[Policy], variables: Mapping[str, str]) -> dict[str, bool]:
    """Names that fs.protect holds at any depth (relative) or in one place (absolute), and whether with all below."""
    names: dict[str, bool] = {}
    for part in parts:
        for segments in _expanded(part.fs.protect, variables):
            anywhere = segments[:1] == ((STAR, b""),)
            tree = len(segments) > anywhere and segments[-1] == (STAR, b"")
            inner = segments[anywhere : len(segments) - tree]
            if inner and all(kind == LITERAL for kind, _ in inner):
                name = show(inner)[anywhere:]
                names[name] = names.get(name, False) or tree
    return names


def _roots(parts: list[Policy], variables: Mapping[str, str]) -> list[str]:
    """The working directory and every writable tree, by their real names."""
    roots = {os.path.realpath(variables["workdir"]): None}
    for part in parts:
        for segments in _expanded(part.fs.write, variables):
            if segments[-1:] == ((STAR, b""),) and all(kind == LITERAL for kind, _ in segments[:-1]):
                roots[os.path.realpath(show(segments[:-1]))] = None
    roots.pop(os.path.realpath(variables["tmp"]), None)  # made for this run: empty
    return list(roots)


def _expanded(patterns: tuple[str, ...], variables: Mapping[str, str]) -> Iterator[tuple[Segment, ...]]:
    for text in patterns:
        with contextlib.suppress(PatternError):  # compile_policy() is who says so
            yield parse_path(text).expand(variables)


def _led_to(place: str, tree: bool, *, always: bool) -> Iterator[str]:
    """What the look-up of `place` goes through and ends at, if it goes through a link, or `always`."""
    *links, end = names_on_the_way(place)
    if links or always:
        yield from links
        yield f"{end.rstrip('/')}/**" if tree else end


# ---- git -------------------------------------------------------------------------------------------------------------


def _git_folders(root: str) -> list[str]:
    """The directories that a .git *file* stands for (gitrepository-layout(5)): its own, and the one it shares."""
    text = _text(os.path.join(root, _GIT), _GIT_FILE_BYTES)
    if not text.startswith("gitdir:"):
        return []
    own = os.path.join(root, text.removeprefix("gitdir:").strip())
    shared = _text(os.path.join(own, "commondir"), _GIT_FILE_BYTES).strip()
    return [own, os.path.join(own, shared)] if shared else [own]


def _configured_hooks(root: str, git: list[str], roots: list[str]) -> Iterator[str]:
    """core.hooksPath of the repository at `root`, if it lies in a writable tree (git-config(1))."""
    for folder in (os.path.join(root, _GIT), *git):
        for value in _hooks_paths(_text(os.path.join(folder, "config"), _CONFIG_BYTES)):
            place = os.path.join(root, os.path.expanduser(value))
            *links, end = names_on_the_way(place)
            if not any(_is_below(end, tree) for tree in roots):
                continue
            yield from links
            if any(_is_below(tree, end) for tree in roots):  # beside the work: all of that cannot be protected
                yield from (f"{end.rstrip('/')}/{name}" for name in _HOOK_NAMES)
            else:
                yield f"{end}/**"


def _hooks_paths(config: str) -> list[str]:
    """Values of core.hooksPath in a git config; every one that is there, though only the last counts."""
    values, section = [], ""
    for line in config.replace("\\\n", "").splitlines():
        header = re.match(r"\s*\[\s*([^\]\s\"]*)[^\]]*\]", line)
        if header:
            section, line = header[1].lower(), line[header.end() :]
        found = re.match(r"\s*hookspath\s*=\s*(.*)", line, re.IGNORECASE)
        if found and section == "core":
            value = found[1].strip()
            quoted = re.match(r'"((?:[^"\\]|\\.)*)"', value)
            values.append(re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else re.split(r"\s*[#;]", value)[0])
    return [value for value in values if value]


def _is_below(path: str, tree: str) -> bool:
    return path == tree or path.startswith(tree.rstrip("/") + "/")


def _text(path: str, most: int) -> str:
    """The start of a regular file, "" for anything else; never waits."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        text = os.fsdecode(os.read(fd, most)) if stat.S_ISREG(os.fstat(fd).st_mode) else ""
    finally:
        os.close(fd)
    return "" if "\0" in text else text  # no file of git's
