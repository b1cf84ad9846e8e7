"""Which policy a run gets: named, found in the project, or the preset `default`; plus what the command line adds."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct
from msgspec.structs import fields, replace

from akbox.cli.output import EXIT_CANNOT, Failure, did_you_mean, key_values
from akbox.cli.trust import discover, is_trusted
from akbox.rundir import state_root

if TYPE_CHECKING:
    from akbox.policy.check import PolicyError
    from akbox.policy.model import Policy

DEFAULT_PRESET = "default"
COMMAND_LINE = "command line"
_GLOB = frozenset("*?[")


class Choice(Struct, frozen=True):
    """A loaded policy and, in words, where it is from ("preset default", "/src/akbox.toml")."""

    policy: Policy
    origin: str
    found: bool = False


class Extra(Struct, frozen=True):
    """What `akbox run` was given beside the policy; every item widens it or sets a number."""

    read: Sequence[str] = ()
    write: Sequence[str] = ()
    connect: Sequence[str] = ()
    env: Sequence[str] = ()
    budget: Sequence[str] = ()
    limit: Sequence[str] = ()
    audit: str | None = None

    def is_empty(self) -> bool:
        return not (self.read or self.write or self.connect or self.env or self.budget or self.limit or self.audit)


def choose(named: str | None, cwd: Path, state_dir: str | None) -> Choice:
    """The policy by the rules of `akbox run`. Raises Failure (exit 125) with the reason and what to do."""
    if named is not None:
        return load_named(named)
    try:
        found = discover(cwd)
    except ValueError as error:
        raise Failure(str(error), fix="remove one of them, or name a policy with -p", exit_code=EXIT_CANNOT) from error
    if found is None:
        return load_named(DEFAULT_PRESET)
    return _load_found(found, state_root(state_dir))


def load_named(name: str) -> Choice:
    """A preset by its name or a file by its path. Raises Failure (exit 125)."""
    from akbox.policy import presets

    if "/" not in name and not name.endswith((".toml", ".json")):
        known = presets.preset_names()
        if name not in known:
            raise Failure(
                f'there is no preset "{name}"{did_you_mean(name, known)}',
                fix=f"use one of {', '.join(known)}, or a path such as ./{name}.toml",
                exit_code=EXIT_CANNOT,
            )
        return Choice(presets.load_preset(name), f"preset {name}")
    path = Path(name).expanduser()
    return Choice(parse_policy(read_policy(path), path), str(path))


def _load_found(path: Path, root: Path) -> Choice:
    # Read once: what is checked against the trusted hash is what is used.
    content = read_policy(path)
    if not is_trusted(path, content, root):
        raise Failure(
            f"{path} is a policy you have not trusted, or it has changed since",
            fix=f"read it, then `akbox policy trust {path}`; or choose another one with -p (for example -p default)",
            exit_code=EXIT_CANNOT,
        )
    return Choice(parse_policy(content, path), str(path), found=True)


def read_policy(path: Path) -> bytes:
    """The bytes of a policy file. Raises Failure (exit 125)."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Failure(
            f"cannot read the policy {path}: {error.strerror}",
            fix="check the path; presets are named without a dot (`-p default`)",
            exit_code=EXIT_CANNOT,
        ) from error


def parse_policy(content: bytes, path: Path | str) -> Policy:
    """The policy in `content`; the suffix of `path` says the syntax. Raises Failure (exit 125) with every problem."""
    from akbox.policy.check import PolicyError
    from akbox.policy.load import parse

    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise Failure(f"{path} is not UTF-8 (byte {error.start})", exit_code=EXIT_CANNOT) from error
    try:
        return parse(text, syntax="json" if str(path).endswith(".json") else "toml", name=str(path), file=str(path))
    except PolicyError as error:
        raise policy_failure(error) from error


def policy_failure(error: PolicyError) -> Failure:
    """A PolicyError as what the user sees: each problem a line, `file:line:column: key: what is wrong (fix)`."""
    lines = [str(problem).removeprefix(f"{COMMAND_LINE}:1:1: ") for problem in error.problems]
    return Failure("the policy is not valid, and nothing of it is used", lines=lines, exit_code=EXIT_CANNOT)


# ---- what the command line adds --------------------------------------------------------------------------------------


def extra_document(extra: Extra, cwd: Path) -> dict[str, object]:
    """The flags of `akbox run` as a policy document. Raises Failure (exit 2) for what is not NAME=VALUE."""
    fs = {"read": [_path(p, cwd) for p in extra.read], "write": [_path(p, cwd) for p in extra.write]}
    connect = [_remote(r) for r in extra.connect]
    passed = [item for item in extra.env if "=" not in item]
    assigned = key_values([item for item in extra.env if "=" in item], "--env")
    document: dict[str, object] = {
        "version": "1.0",
        "fs": {k: v for k, v in fs.items() if v},
        "net": {"connect": connect, "dns": _hosts(connect)} if connect else {},
        "env": {"pass": passed, "set": dict(assigned)} if extra.env else {},
        "budgets": {k: _number(v) for k, v in key_values(extra.budget, "--budget").items()},
        "limits": {k: _number(v) for k, v in key_values(extra.limit, "--limit").items()},
        "audit": {"level": extra.audit} if extra.audit else {},
    }
    return {k: v for k, v in document.items() if v}


def merge(policy: Policy, extra: Extra, cwd: Path) -> Policy:
    """The union of the policy and what the command line adds. Raises Failure: 2 for a bad flag, 125 for a bad value."""
    if extra.is_empty():
        return policy
    from akbox.policy.check import PolicyError
    from akbox.policy.load import parse

    text = json.dumps(extra_document(extra, cwd))
    try:
        added = parse(text, syntax="json", name=COMMAND_LINE)
    except PolicyError as error:
        raise policy_failure(error) from error
    return _union(policy, added)


S = TypeVar("S", bound=Struct)


def _union(base: S, added: S) -> S:
    """Lists joined, tables merged, and a single value of the command line before that of the policy."""
    changes: dict[str, object] = {}
    for name in (f.name for f in fields(base)):
        old, new = getattr(base, name), getattr(added, name)
        if name == "source" or new is None:
            continue
        if isinstance(new, Struct):
            changes[name] = _union(old, new)
        elif isinstance(new, tuple):
            changes[name] = tuple(dict.fromkeys((*(old or ()), *new)))
        elif isinstance(new, dict):
            changes[name] = {**old, **new}
        else:
            changes[name] = new
    return replace(base, **changes)


def _path(pattern: str, cwd: Path) -> str:
    """A path as a person types it to the pattern it means: `data` is ./data, and a directory is all that is in it.

    Patterns that match at any depth (`*.txt`, `**/x`) and those with variables stay as they are.
    """
    if pattern.startswith(("~", "${", "*")):
        return pattern
    absolute = os.path.normpath(cwd / pattern)
    if not _GLOB & set(pattern) and os.path.isdir(absolute):
        return "/**" if absolute == "/" else absolute + "/**"
    return absolute


def _remote(text: str) -> str:
    """`HOST:PORT` and `ADDRESS:PORT` as they are commonly written, in the policy's own words."""
    import ipaddress

    kind = text.removeprefix("udp+").partition(":")[0]
    if kind in ("dns", "ip"):
        return text
    prefix, bare = ("udp+", text[4:]) if text.startswith("udp+") else ("", text)
    host = bare.rpartition(":")[0]
    try:
        ipaddress.ip_network(host.strip("[]"), strict=False)
    except ValueError:
        return f"{prefix}dns:{bare}"
    return f"{prefix}ip:{bare}"


def _hosts(connect: list[str]) -> list[str]:
    names = [r.removeprefix("udp+") for r in connect]
    return sorted({n.removeprefix("dns:").rpartition(":")[0] for n in names if n.startswith("dns:")})


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
