"""The line that would allow what was refused, or why no line would.

Minimal: one exact path, address or name. Never `/`, never a home directory, never a credential directory: for those
the answer is words, because a line that is pasted without reading must not open them.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from akbox.policy.effects import Target
from akbox.policy.matcher import EXEC, READ, WRITE
from akbox.policy.patterns import LITERAL, STAR, Segment
from akbox.policy.rules import Rule
from akbox.resources import data_path

if TYPE_CHECKING:
    from akbox.policy.compiled import CompiledPolicy

SECTIONS = ((READ, "fs.read"), (WRITE, "fs.write"), (EXEC, "fs.exec"))
DENYING = ("fs.deny", "fs.protect", "net.deny", "tools.deny", "spawn.deny")
NO_POLICY = "no policy allows it"

# Directories whose whole content is somebody's authority; relative ones are below a home directory.
CREDENTIAL_DIRS = (
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".kube",
    ".docker",
    ".config/gcloud",
    ".config/gh",
    ".password-store",
)
CREDENTIAL_PLACES = (
    "/etc/ssh",
    "/etc/ssl/private",
    "/root",
    "/home",
    "/etc",
    "/var",
    "/usr",
    "/run",
    "/proc",
    "/sys",
    "/dev",
)


def fix(compiled: CompiledPolicy, what: Target, missing: int, rule: Rule | None, target2: str | None) -> str:
    """The suggestion for a refused effect."""
    if what.kind == "syscall":
        return NO_POLICY
    if rule is not None and rule.section in DENYING:
        return _deny_fix(compiled, what, missing, rule)
    if rule is not None and rule.section == "fs.write":
        return _exec_fix(compiled, what, rule)
    if rule is not None and rule.section != "exact path only":
        return f"{NO_POLICY}: {rule.section} ({rule.reason})" if rule.reason else NO_POLICY
    if target2 is not None and not missing:
        return f"refused because {target2} has other rights than {what.name}: copy the content instead"
    if what.kind in ("path", "stat"):
        return path_fix(compiled, what, missing)
    if what.kind == "none":
        return f"no rule can grant {what.name}"
    return line(what.section, _text(what))


def _deny_fix(compiled: CompiledPolicy, what: Target, missing: int, rule: Rule) -> str:
    """A rule of the user's own is theirs to remove, here is where; a shipped one stands there on purpose."""
    if rule.origin != "policy":
        return f"the {rule.origin} denies this on purpose ({rule.where})"
    if rule.source is not None and _is_shipped(rule.source.name):
        return f"the preset denies this on purpose ({rule.where})"
    where = f" ({rule.where})" if rule.where else ""
    own = f"remove {json.dumps(rule.pattern, ensure_ascii=False)} from {rule.section}{where}, or narrow it"
    if what.kind == "path" and missing:
        return f"{own}\nand: {path_fix(compiled, what, missing)}"
    return own


def _is_shipped(name: str) -> bool:
    return os.path.dirname(os.path.abspath(name)) == str(data_path("policies"))


def _text(what: Target) -> str:
    udp = "udp+" if what.protocol == "udp" else ""
    if what.kind == "ip":
        return f"{udp}ip:[{what.name}]:{what.port}" if ":" in what.name else f"{udp}ip:{what.name}:{what.port}"
    if what.kind == "dns":
        return what.name if what.section == "net.dns" else f"{udp}dns:{what.name}:{what.port}"
    return exact_pattern(what.name) if what.kind == "unix" else what.name


def line(section: str, *values: str) -> str:
    """`fs.read = ["/x"]`: valid TOML and, after the =, valid JSON. Control characters are escaped as both have it."""
    items = ", ".join(json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") for value in values)
    return f"{section} = [{items}]"


def exact_pattern(path: str) -> str:
    """A pattern for one path: characters that a pattern can't hold, or that would match more, become `?`."""
    clean = "".join("?" if c in "*" or ord(c) < 0x20 or c == "\x7f" or 0xD800 <= ord(c) <= 0xDFFF else c for c in path)
    return clean.replace("${", "?{")


def path_fix(compiled: CompiledPolicy, what: Target, missing: int) -> str:
    """Lines for the needs that nothing granted."""
    if what.section == "spawn.allow" and not missing:
        return line("spawn.allow", exact_pattern(what.name))
    if _holds_credentials(os.path.dirname(what.name)):
        return f"{what.name} is in a directory of credentials: no line is suggested for it"
    problem = too_wide(compiled, what.name)
    if problem:
        return f"{what.name} is {problem}: name the files below it that are needed"
    if missing & EXEC and compiled.default_exec:  # an fs.exec list would end what fs.read grants without one
        missing = missing & ~EXEC | READ
    return "\n".join(line(section, exact_pattern(what.name)) for bit, section in SECTIONS if missing & bit)


def too_wide(compiled: CompiledPolicy, path: str) -> str:
    """Why a path is never suggested, "" when it may be."""
    home = compiled.context.home
    if path == "/":
        return "the whole file system"
    if path == home or home.startswith(path + "/"):
        return "a home directory, or holds one"
    if path in CREDENTIAL_PLACES:
        return "a system directory"
    return "a directory of credentials, or in one" if _holds_credentials(path) else ""


def _holds_credentials(path: str) -> bool:
    """A directory of credentials or anything below one, in whosever home."""
    return any(f"/{name}/" in f"{path}/" for name in CREDENTIAL_DIRS)


def _exec_fix(compiled: CompiledPolicy, what: Target, rule: Rule) -> str:
    """Without fs.exec nothing writable runs. Stating fs.exec ends that default, so the line restates what it granted,
    apart from what could cover something writable."""
    if too_wide(compiled, what.name):
        return f"refused because {rule} makes it writable and no fs.exec is stated"
    paths = [(rule, compiled.segments[i]) for i, rule in enumerate(compiled.rules) if i in compiled.segments]
    writes = [segments for rule, segments in paths if rule.section == "fs.write"]
    reads = [
        rule.pattern
        for rule, segments in paths
        if rule.section == "fs.read" and not rule.ask and not any(_may_meet(segments, other) for other in writes)
    ]
    return line("fs.exec", *dict.fromkeys([*reads, exact_pattern(what.name)]))


def _may_meet(one: tuple[Segment, ...], other: tuple[Segment, ...]) -> bool:
    """May both cover one path? Never False when they do: only what is written out before the first wildcard counts."""
    for (kind, name), (other_kind, other_name) in zip(one, other, strict=False):
        if kind != LITERAL or other_kind != LITERAL:
            return True
        if name != other_name:
            return False
    shorter, longer = sorted((one, other), key=len)
    return len(shorter) == len(longer) or longer[len(shorter)][0] == STAR
