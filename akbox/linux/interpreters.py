"""Where the known interpreters keep themselves: python, node, ruby, perl, java and the shells.

An interpreter in a prefix of its own (a venv, ~/.pyenv/versions/3.12.1, /opt/node) gets that prefix. In a prefix that
it shares with others (/usr, ~/.local) it gets only its own directories there. A home directory is never a prefix.
"""

import os
import re
from collections.abc import Iterable

_FAMILIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    # (name of the executable, a regular expression; its own directories in a shared prefix)
    (
        r"(python|pypy)\d*(\.\d+)*t?",
        ("lib/python3*", "lib64/python3*", "lib/pypy*", "lib/libpython*", "share/python3", "include/python3*"),
    ),
    (r"node(js)?", ("lib/node_modules", "share/nodejs", "share/node_modules", "share/npm", "include/node")),
    (
        r"ruby\d*(\.\d+)*",
        ("lib/ruby", "lib64/ruby", "share/ruby*", "share/rubygems-integration", "lib/*/ruby"),
    ),
    (r"perl\d*(\.\d+)*", ("lib/perl*", "lib64/perl*", "share/perl*", "lib/*/perl*", "lib/*/perl-base")),
    (r"java", ("share/java", "lib/jvm")),
    (r"sh|bash|dash|zsh|ksh|mksh|busybox|fish", ("share/zsh", "share/fish")),
)
# Configuration that belongs to an interpreter and lies outside its prefix.
_CONFIGURATION = {
    "python": ("/etc/python3*",),
    "perl": ("/etc/perl", "/var/lib/perl"),
    "ruby": ("/var/lib/gems", "/etc/gemrc"),
    "java": ("/etc/java*", "/var/lib/ca-certificates-java"),
    "bash": ("/etc/bash.bashrc", "/etc/profile", "/etc/profile.d"),
}
_SHARED = ("/", "/usr", "/usr/local", "/opt", "/snap", "/var", "/tmp", "/home", "/srv", "/mnt")
_SHIMS = "shims"  # pyenv, rbenv, asdf: a script of that name finds the version to run below the directory above


def installation(found: str, real: str, home: str) -> tuple[str, ...] | None:
    """Patterns of the installation that an executable belongs to; None when it is no known interpreter.

    found: the name by which it was run (a venv is known by it), real: its canonical path, home: the user's directory.
    """
    if os.path.basename(os.path.dirname(found)) == _SHIMS:
        return tuple(_whole(os.path.dirname(os.path.dirname(found)), home))
    name = os.path.basename(real)
    own = next((own for pattern, own in _FAMILIES if re.fullmatch(pattern, name)), None)
    if own is None:
        return None
    patterns: dict[str, None] = {}
    for prefix in _prefixes(found, real):
        whole = _whole(prefix, home)
        patterns.update(dict.fromkeys(whole or _existing(os.path.join(prefix, part) for part in own)))
    for family, places in _CONFIGURATION.items():
        if name.startswith(family):
            patterns.update(dict.fromkeys(_existing(places)))
    return tuple(patterns)


def prefix_of(found: str, real: str) -> str | None:
    """The prefix of an interpreter, for a venv its own: what `${prefix}` is; None for any other executable."""
    if os.path.basename(os.path.dirname(found)) == _SHIMS:
        return os.path.realpath(os.path.dirname(os.path.dirname(found)))
    if not any(re.fullmatch(pattern, os.path.basename(real)) for pattern, _ in _FAMILIES):
        return None
    venv = os.path.realpath(os.path.dirname(os.path.dirname(found)))
    return venv if _pyvenv(venv) is not None else os.path.dirname(os.path.dirname(real))


def _prefixes(found: str, real: str) -> list[str]:
    """The directories above `bin`: of the canonical executable, and for a venv its own and its base's."""
    result = [os.path.dirname(os.path.dirname(real))]
    venv = os.path.realpath(os.path.dirname(os.path.dirname(found)))
    settings = _pyvenv(venv)
    if settings is not None:
        result.append(venv)
        base_bin = settings.get("home", "")
        if os.path.isabs(base_bin):
            result.append(os.path.dirname(os.path.realpath(base_bin)))
    return list(dict.fromkeys(result))


def _pyvenv(prefix: str) -> dict[str, str] | None:
    """The keys of pyvenv.cfg (https://docs.python.org/3/library/venv.html); None when `prefix` is not a venv."""
    try:
        with open(os.path.join(prefix, "pyvenv.cfg"), encoding="utf-8", errors="replace") as file:
            lines = file.read(1 << 16).splitlines()
    except OSError:
        return None
    pairs = (line.partition("=") for line in lines)
    return {key.strip().lower(): value.strip() for key, sep, value in pairs if sep}


def _whole(prefix: str, home: str) -> list[str]:
    """The prefix as one pattern, if it is the interpreter's own: not a shared place, a home or anything above one."""
    prefix = os.path.realpath(prefix)
    homes = {os.path.realpath(home), "/root"}
    shared = {*_SHARED, *(os.path.join(h, ".local") for h in homes)}
    above_home = any(os.path.commonpath([prefix, h]) == prefix for h in homes)
    somebodys_home = os.path.dirname(prefix) == "/home"
    return [] if prefix in shared or above_home or somebodys_home else [prefix + "/**"]


def _existing(patterns: Iterable[str]) -> list[str]:
    """Canonical names of what is there, directories with everything below."""
    from glob import glob

    places = (os.path.realpath(place) for pattern in patterns for place in glob(pattern))
    return [place + "/**" if os.path.isdir(place) else place for place in places]
