"""`"runtime": "auto"`: what the launched command itself needs to start, as grants with their reasons.

The executable as execvp would find it, what its shebang line and ELF headers lead to, and for a known interpreter
(interpreters.py) its installation and the system's library, certificate, locale and time-zone files. Paths are
canonical: that is what the policy is asked about. What the program does later is the policy's to say.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from akbox.linux.elf import closure
from akbox.linux.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, CannotRun
from akbox.linux.interpreters import installation, prefix_of
from akbox.policy.rules import Grant

READ, WRITE, EXEC = 1, 2, 4

_DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"  # when PATH is absent; execvp's own default, and where things are now
_SHEBANG_BYTES = 256  # BINPRM_BUF_SIZE
_MAX_SHEBANGS = 5  # the kernel gives up after as many
_MAX_LINKS = 40  # as the kernel's look-up

# Read by the C library, or by nearly every program before it does anything of its own.
_STARTUP_FILES: tuple[tuple[str, str], ...] = (
    ("/etc/ld.so.cache", "where the dynamic linker looks"),
    ("/etc/ld.so.preload", "where the dynamic linker looks"),
    (f"/etc/ld-musl-{os.uname().machine}.path", "where the dynamic linker looks"),
    ("/etc/localtime", "time zone"),
    ("/etc/timezone", "time zone"),
    ("/usr/share/zoneinfo/**", "time zones"),
    ("/etc/locale.alias", "locale"),
    ("/etc/locale.conf", "locale"),
    ("/usr/lib/locale/**", "locale"),
    ("/usr/share/locale/**", "locale"),
    ("/usr/share/i18n/**", "locale"),
    ("/usr/share/terminfo/**", "terminal descriptions"),
    ("/usr/lib/terminfo/**", "terminal descriptions"),
    ("/etc/terminfo/**", "terminal descriptions"),
    ("/etc/inputrc", "terminal input"),
    ("/proc/self/**", "the program's own process"),
    ("/proc/cpuinfo", "the machine"),
    ("/proc/meminfo", "the machine"),
    ("/proc/stat", "the machine"),
    ("/proc/filesystems", "the machine"),
    ("/sys/devices/system/cpu/**", "the machine"),
)

# What an interpreter's standard library opens besides its own files.
_INTERPRETER_FILES: tuple[tuple[str, str], ...] = (
    ("/usr/lib/**", "system libraries"),
    ("/usr/lib64/**", "system libraries"),
    ("/lib/**", "system libraries"),
    ("/lib64/**", "system libraries"),
    ("/usr/local/lib/**", "system libraries"),
    ("/usr/local/lib64/**", "system libraries"),
)

# What looking a name up and speaking TLS to it takes: for those libraries, and for any program that may look names up.
_NETWORK_FILES: tuple[tuple[str, str], ...] = (
    ("/etc/nsswitch.conf", "names of users and hosts"),
    ("/etc/passwd", "names of users"),
    ("/etc/group", "names of users"),
    ("/etc/hosts", "names of hosts"),
    ("/etc/host.conf", "names of hosts"),
    ("/etc/gai.conf", "names of hosts"),
    ("/etc/resolv.conf", "names of hosts"),
    ("/etc/services", "names of ports"),
    ("/etc/protocols", "names of protocols"),
    ("/etc/mime.types", "file types"),
    ("/etc/ssl/openssl.cnf", "certificates"),
    ("/etc/ssl/cert.pem", "certificates"),
    ("/etc/ssl/certs/**", "certificates"),
    ("/etc/pki/tls/certs/**", "certificates"),
    ("/etc/pki/tls/openssl.cnf", "certificates"),
    ("/etc/pki/ca-trust/extracted/**", "certificates"),
    ("/etc/ca-certificates/extracted/**", "certificates"),
    ("/usr/share/ca-certificates/**", "certificates"),
    ("/usr/local/share/ca-certificates/**", "certificates"),
    ("/etc/crypto-policies/**", "certificates"),
    ("/usr/share/crypto-policies/**", "certificates"),
)


class Program(NamedTuple):
    """One executable on the way to the running image. found: absolute, as it was named; real: canonical."""

    found: str
    real: str


class Needs(NamedTuple):
    """What a command comes to. path: of the executable, absolute. prefix: of its interpreter, what `${prefix}` stands
    for; for a program that has none the program itself, so that no rule on `${prefix}` opens anything else."""

    path: str
    prefix: str
    grants: tuple[Grant, ...]


def runtime_needs(
    argv: Sequence[str], cwd: str, env: Mapping[str, str], mode: str | None, *, names: bool = False
) -> Needs:
    """What a command needs to start; no grants when mode is "none". names: its policy lets it look names up.

    `cwd` is absolute, `env` is the caller's. Raises CannotRun with exit code 127 (no such command) or 126 (a directory,
    not executable, unreadable), as a shell would.
    """
    program = find_program(argv[0] if argv else "", cwd, env.get("PATH", _DEFAULT_PATH))
    chain = list(_chain(program, cwd, env.get("PATH", _DEFAULT_PATH)))
    prefix = next(filter(None, (prefix_of(step.found, step.real) for step in chain)), program.real)
    if mode == "none":
        return Needs(program.found, prefix, ())
    grants: dict[str, Grant] = {}
    known = False
    for step in chain:
        _add(grants, _executable(step, "the command" if step is program else "interpreter of the command"))
        places = installation(step.found, step.real, os.path.expanduser("~"))
        known = known or places is not None
        _add(grants, (_grant(p, READ | EXEC, f"installation of {os.path.basename(step.real)}") for p in places or ()))
    _add(grants, _system(_STARTUP_FILES))
    if known:
        _add(grants, _system(_INTERPRETER_FILES))
    if known or names:
        _add(grants, _system(_NETWORK_FILES))
    return Needs(program.found, prefix, tuple(grants.values()))


def find_program(name: str, cwd: str, path: str) -> Program:
    """As execvp(3): a name with a slash is a path, any other is looked for along PATH, and one that may not be executed
    is passed over and remembered."""
    if not name:
        raise CannotRun("the command is empty", exit_code=EXIT_NOT_FOUND)
    if "/" in name:
        candidates = [name]
    else:
        candidates = [os.path.join(directory or ".", name) for directory in path.split(":")]
    refused = ""
    for candidate in candidates:
        found = os.path.join(cwd, candidate.removeprefix("./"))
        why = _not_executable(found)
        if why == "":
            return Program(found, os.path.realpath(found))
        refused = refused or (f"{found}: {why}" if why else "")
    if refused:
        raise CannotRun(refused, exit_code=EXIT_NOT_EXECUTABLE)
    if "/" in name:
        raise CannotRun(f"{name}: no such file", exit_code=EXIT_NOT_FOUND)
    raise CannotRun(f"{name}: command not found", "is it on PATH?", EXIT_NOT_FOUND)


def _not_executable(path: str) -> str | None:
    """ "" when it can be executed, None when it does not exist, else why not."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        return error.strerror or "not usable" if isinstance(error, OSError) else "not a file name"
    if stat.S_ISDIR(mode):
        return "is a directory"
    if not stat.S_ISREG(mode):
        return "not a regular file"
    return "" if os.access(path, os.X_OK, effective_ids=True) else "permission denied"


def _chain(program: Program, cwd: str, path: str) -> Iterator[Program]:
    """The program, and while it is a script, what its first line names; for `env` that and the program it runs."""
    for _ in range(_MAX_SHEBANGS):
        yield program
        words = _shebang(program.real)
        if not words:
            return
        try:
            program = find_program(os.path.join(cwd, words[0]), cwd, path)
            if os.path.basename(program.found) == "env" and len(words) > 1:
                yield program
                program = find_program(_program_of_env(words[1]), cwd, path)
        except CannotRun:
            return  # the kernel, or env, will say so when it gets there


def _shebang(path: str) -> list[str]:
    """[interpreter, argument?] of a script: Linux passes the rest of the line as one argument."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        head = os.read(fd, _SHEBANG_BYTES)
    finally:
        os.close(fd)
    if not head.startswith(b"#!"):
        return []
    return [os.fsdecode(word) for word in head[2:].split(b"\n", 1)[0].strip(b" \t").split(None, 1)]


def _program_of_env(argument: str) -> str:
    """`env -S python3 -u` and `env python3` name python3; assignments and options before it are passed over."""
    for word in argument.split():
        if not word.startswith("-") and "=" not in word:
            return word
    return ""


def _executable(program: Program, reason: str) -> Iterator[Grant | None]:
    name = os.path.basename(program.real)
    yield _grant(program.real, READ | EXEC, reason)
    for link in _links(program.found):
        yield _grant(link, READ, f"leads to {program.real}")
    interpreter, libraries = closure(program.real)
    if interpreter:
        yield _grant(interpreter, READ | EXEC, f"dynamic linker of {name}")
    for library in libraries:
        yield _grant(library, READ, f"library of {name}")


def _links(path: str) -> Iterator[str]:
    """The symlinks that the last component of `path` goes through, each with its directory made canonical."""
    for _ in range(_MAX_LINKS):
        directory, name = os.path.split(path)
        path = os.path.join(os.path.realpath(directory), name)
        try:
            target = os.readlink(path)
        except OSError:
            return
        yield path
        path = os.path.join(os.path.dirname(path), target)


@lru_cache(maxsize=4)
def _system(files: tuple[tuple[str, str], ...]) -> tuple[Grant, ...]:
    """The ones that exist here, by canonical name (/lib is /usr/lib, resolv.conf may be in /run)."""
    grants: dict[str, Grant] = {}
    for pattern, reason in files:
        below = pattern.endswith("/**")
        place = pattern.removesuffix("/**")
        if not os.path.exists(place):
            continue
        # /proc/self is the agent's own directory there, not ours
        real = place if place.startswith("/proc/self") else os.path.realpath(place)
        grant = Grant(real + "/**" if below else real, READ, reason)
        grants.setdefault(grant.pattern, grant)
    return tuple(grants.values())


def _grant(path: str, need: int, reason: str) -> Grant | None:
    """None for a name that would not be taken literally as a pattern: it needs a rule of the policy."""
    literal = path.removesuffix("/**")
    return None if any(c in literal for c in "*?[]{}$\n") else Grant(path, need, reason)


def _add(grants: dict[str, Grant], more: Iterable[Grant | None]) -> None:
    for grant in more:
        if grant is None:
            continue
        old = grants.get(grant.pattern)
        if old is None:
            grants[grant.pattern] = grant
        elif old.need | grant.need != old.need:
            grants[grant.pattern] = Grant(grant.pattern, old.need | grant.need, old.reason)
