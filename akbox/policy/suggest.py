"""The line that would allow what was refused, or why no line would.

Minimal: one exact path, address or name. Never `/`, never a home directory, never a credential directory: for those
the answer is words, because a line that is pasted without reading must not open them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from akbox.policy.effects import Target
from akbox.policy.matcher import EXEC, READ, WRITE
from akbox.policy.rules import Rule

if TYPE_CHECKING:
    from akbox.policy.compiled import CompiledPolicy

SECTIONS = ((READ, "fs.read"), (WRITE, "fs.write"), (EXEC, "fs.exec"))

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
    if rule is not None and rule.section == "fs.write":
        return _exec_fix(compiled, what, rule)
    if rule is not None and rule.section != "exact path only":
        why = f": {rule.reason}" if rule.reason else ""
        where = f" ({rule.where})" if rule.where else f" ({rule.origin})"
        return f"refused by the rule {rule}{where}{why}"
    if target2 is not None and not missing:
        return f"refused because {target2} has other rights than {what.name}: copy the content instead"
    if what.kind in ("path", "stat"):
        return path_fix(compiled, what, missing)
    if what.kind == "none":
        return f"no rule can grant {what.name}"
    return line(what.section, _text(what))


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
    problem = too_wide(compiled, what.name)
    if problem:
        return f"{what.name} is {problem}: name the files below it that are needed"
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
    if any(path in (f"{home}/{name}", f"/root/{name}") or path.endswith("/" + name) for name in CREDENTIAL_DIRS):
        return "a directory of credentials"
    return ""


def _exec_fix(compiled: CompiledPolicy, what: Target, rule: Rule) -> str:
    """Without fs.exec nothing writable runs. Stating fs.exec ends that default, so the line restates what it
    granted."""
    if too_wide(compiled, what.name):
        return f"refused because {rule} makes it writable and no fs.exec is stated"
    reads = [r.pattern for r in compiled.rules if r.section == "fs.read" and not r.ask]
    return line("fs.exec", *dict.fromkeys([*reads, exact_pattern(what.name)]))
