"""Runs a command inside akbox or outside it, as root or as an ordinary user, and reads what akbox left behind."""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import json
import os
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from akbox.conformance.evidence import disagreements, verify_log
from akbox.conformance.model import Case, Control, Entry, Expect, Failed, exit_fits, require
from akbox.conformance.world import MARK, ORDINARY_UID, World, Worlds

LINGER_S = 5
USERS = ("root", "user") if os.geteuid() == 0 else ("user",)


def akbox_command() -> list[str]:
    """The console script beside this interpreter; without one (`pip install --user`) the module it would start."""
    found = shutil.which("akbox", path=str(Path(sys.executable).parent))
    return [found] if found else [sys.executable, "-c", "from akbox.cli.main import entry; entry()"]


def uid_of(user: str) -> int:
    return ORDINARY_UID if os.geteuid() == 0 and user == "user" else os.geteuid()


@dataclass
class Result:
    argv: list[str]
    exit: int
    stdout: str
    stderr: str
    entries: list[dict[str, object]] = field(default_factory=list)
    log: Path | None = None
    report: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        said = f"$ {' '.join(self.argv)}\nexit {self.exit}\n--- stdout\n{self.stdout[-4000:]}"
        said += f"\n--- stderr\n{self.stderr[-4000:]}"
        refused = [e for e in self.entries if e["decision"] != "allow"]
        return said + "\n--- refusals in the log\n" + "\n".join(f"{e['name']} {e['target']}" for e in refused[:40])


def environment(world: World) -> dict[str, str]:
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(world.HOME),
        "LANG": "C.UTF-8",
        "TERM": "xterm",
        "XDG_STATE_HOME": str(world.STATE),
        "XDG_RUNTIME_DIR": str(world.base / "run"),
        "KIT_API_KEY": "akbox-kit-credential",  # N43: of akbox's own environment, never of the agent's
        **(world.services.environment if world.services is not None else {}),
    }


def as_user(uid: int) -> list[str]:
    if uid == os.geteuid():
        return []
    return ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups"]


def execute(
    argv: Sequence[str],
    world: World,
    *,
    uid: int,
    cwd: Path | None = None,
    stdin: int = subprocess.DEVNULL,
    timeout_s: float = 30,
    env: dict[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    terminal: bool = False,
) -> Result:
    """Runs argv to its end; a run that does not end is killed with its process group and fails the test. `terminal`:
    standard input is a new terminal, and the program's controlling one."""
    if terminal:
        master, stdin = os.openpty()
    try:
        process = subprocess.Popen(
            [*as_user(uid), *argv],
            cwd=cwd or world.W,
            env=environment(world) if env is None else env,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=pass_fds,
            preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if terminal else None,
        )
    except OSError as error:  # there is no such program
        return Result(list(argv), 127, "", error.strerror or str(error))
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        try:
            out, err = process.communicate(timeout=LINGER_S)
        except subprocess.TimeoutExpired as error:  # what it started has left the group and holds its streams
            out, err = error.stdout or b"", error.stderr or b""
        said = (out + b"\n" + err).decode(errors="replace")
        raise Failed(f"still running after {timeout_s} s: {' '.join(argv)}\n{said}") from None
    finally:
        if terminal:
            os.close(master)
            os.close(stdin)
    text = out.decode(errors="backslashreplace"), err.decode(errors="backslashreplace")
    return Result(list(argv), process.returncode, *text)


def toml(sections: dict[str, dict[str, object]], top: dict[str, object]) -> str:
    lines = [f"{key} = {inline(value)}" for key, value in top.items()]
    for section, keys in sections.items():
        lines += [f"[{section}]", *(f"{key} = {inline(value)}" for key, value in keys.items())]
    return "\n".join(lines) + "\n"


def inline(value: object) -> str:
    """A value in TOML: as in JSON, but for tables."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {inline(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def policy_text(world: World, extra: dict[str, object]) -> str:
    """The kit's policy, with the case's keys ("fs.write", "limits.pids") added: lists are extended, the rest is set."""
    system = ["/usr/**", "/lib/**", "/lib64/**", "/bin/**"]
    few_of_etc = ["/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/localtime", "/etc/passwd", "/etc/nsswitch.conf"]
    devices = ["/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/tty"]
    sections: dict[str, dict[str, object]] = {
        "fs": {
            "read": [*system, *few_of_etc, *devices, "/proc/self/**", "{R}/**", "{W}/**", "{K}/**"],
            "write": ["{W}/**", "/dev/null", "/dev/full", "/dev/tty"],
            "exec": [*system, "{K}/**"],
            "deny": ["{S}", "{D}"],
        }
    }
    for key, value in extra.items():
        section, _, name = key.partition(".")
        keys = sections.setdefault(section, {})
        old = keys.get(name)
        keys[name] = [*old, *value] if isinstance(old, list) and isinstance(value, list) else value
    return world.fill(toml(sections, {"version": "1.0"}))


def run_inside(
    world: World,
    argv: Sequence[str],
    *,
    interposer: str = "auto",
    policy: dict[str, object] | None = None,
    preset: str | None = None,
    options: Sequence[str] = (),
    timeout_s: float = 30,
    stdin: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    terminal: bool = False,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Result:
    """`akbox run` in a world. The policy file lies outside everything that is granted."""
    source = preset
    if preset is None:
        file = world.base / "policy.toml"
        file.write_text(policy_text(world, policy or {}))
        os.chown(file, world.uid, world.uid)
        source = str(file)
    report = world.STATE / "report.json"
    report.unlink(missing_ok=True)
    command = [*akbox_command(), "run", "-p", str(source), "--interposer", interposer, "--json", str(report), *options]
    filled = [world.fill(word) for word in argv]
    result = execute(
        [*command, "--", *filled],
        world,
        uid=world.uid,
        cwd=cwd,
        timeout_s=timeout_s,
        stdin=stdin,
        pass_fds=pass_fds,
        terminal=terminal,
        env=env,
    )
    if report.exists():
        result.report = json.loads(report.read_text() or "{}")
    read_log(world, result)
    return result


def logs(world: World) -> list[Path]:
    return sorted((world.STATE / "akbox" / "runs").glob("*/audit.jsonl"), key=lambda path: path.stat().st_mtime_ns)


def read_log(world: World, result: Result) -> None:
    found = logs(world)
    if found:
        result.log = found[-1]
        result.entries = [json.loads(line) for line in found[-1].read_text().splitlines()]


def verify(world: World, log: Path) -> None:
    """The log holds together, and lies in this world. Raises Failed."""
    require(log.is_relative_to(world.STATE), f"{log} is not a log of {world.base}")
    verify_log(log)


def run_outside(
    world: World, argv: Sequence[str], how: str, *, timeout_s: float = 30, terminal: bool = False
) -> Result:
    """The same command without akbox: as Control.how says."""
    filled = [world.fill(word) for word in argv]
    if how == "namespace":
        filled = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc", "--", *filled]
    return execute(filled, world, uid=world.uid, timeout_s=timeout_s, terminal=terminal)


def has_entry(result: Result, world: World, wanted: Entry) -> bool:
    ops = (wanted.op,) if isinstance(wanted.op, str) else wanted.op
    target = None if wanted.target is None else world.fill(wanted.target)

    def fits(entry: dict[str, object]) -> bool:
        request = entry["req"]
        number = request.get("nr") if isinstance(request, dict) else None
        return (
            entry["decision"] == wanted.decision
            and (ops is None or entry["name"] in ops)
            and (target is None or fnmatch.fnmatchcase(str(entry["target"]), target))
            and (wanted.nr is None or number == wanted.nr)
        )

    return any(fits(entry) for entry in result.entries)


def names_errno(text: str, names: Sequence[str]) -> bool:
    spelled = [f"errno={name}" for name in names] + [os.strerror(getattr(errno, name)) for name in names]
    return any(word in text for word in spelled)


def judge(result: Result, world: World, expect: Expect | Control) -> None:
    require(exit_fits(result.exit, expect.exit), f"exit {result.exit}, wanted {expect.exit}\n{result}")
    output = result.stdout + result.stderr
    if expect.errnos:
        require(names_errno(output, expect.errnos), f"none of {expect.errnos} in the output\n{result}")
    if expect.stdout is not None:
        require(world.fill(expect.stdout) in result.stdout, f"{expect.stdout!r} is not in the output\n{result}")


def judge_inside(case: Case, world: World, result: Result) -> None:
    """Verdict, host state, secrecy, the entry, and a log that verifies. Raises Failed."""
    judge(result, world, case.expect)
    judge_harmless(case, world, result)
    if case.check is not None:
        case.check(world, result)
    if case.expect.entry is not None:
        require(has_entry(result, world, case.expect.entry), f"no entry {case.expect.entry} in the log\n{result}")


def judge_harmless(case: Case, world: World, result: Result) -> None:
    """What holds whoever refused: nothing secret was read, nothing changed, and the log verifies. Raises Failed."""
    require(MARK not in result.stdout + result.stderr, f"something denied was read\n{result}")
    require(world.changed(case.changes) == [], f"the host changed\n{result}")
    if result.log is not None:
        verify(world, result.log)
    elif case.starts:
        raise Failed(f"the run left no log\n{result}")


def judge_explained(case: Case, world: World, result: Result) -> None:
    """`akbox policy explain` says of every path in the log what enforcement did (A11)."""
    policy = case.preset or str(world.base / "policy.toml")
    command = [world.fill(word) for word in case.command]
    places = {"cwd": world.W, "home": world.HOME, "state": world.STATE / "akbox"}
    wrong = disagreements(policy, command, result.entries, **places)
    require(not wrong, "explain says otherwise: " + "\n".join(wrong) + f"\n{result}")


def parameters(cases: Sequence[Case]) -> list[tuple[Case, str, str]]:
    """Every case with every user and interposer that it names and that this kit's user can be."""
    return [
        (case, user, interposer)
        for case in cases
        for user in case.users
        if user in USERS and (not case.needs_root or "root" in USERS)
        for interposer in case.interposers
    ]


def label(parameter: tuple[Case, str, str]) -> str:
    case, user, interposer = parameter
    return f"{case.id}-{user}-{interposer}"


def controls(cases: Sequence[Case]) -> list[Case]:
    """The cases whose attempt can be made outside by this kit's user."""
    possible = [case for case in cases if case.control is not None]
    return [c for c in possible if "root" in USERS or (c.control and c.control.how != "root" and not c.needs_root)]


def check_case(worlds: Worlds, case: Case, user: str, interposer: str) -> None:
    """One run inside, judged. Raises Failed."""
    with worlds.lend(uid_of(user), case.network) as world:
        result = attempt(world, case, interposer)
        judge_inside(case, world, result)
        # Neither the user nor the interposer has a say in what explain answers: once is enough.
        if not case.beyond and (user, interposer) == (USERS[-1], case.interposers[0]):
            judge_explained(case, world, result)


def attempt(world: World, case: Case, interposer: str) -> Result:
    prepare(world, case)
    return run_inside(
        world,
        case.command,
        interposer=interposer,
        policy=case.policy,
        preset=case.preset,
        timeout_s=case.timeout_s,
        terminal=case.terminal,
    )


def attempt_bare(world: World, case: Case, how: str) -> Result:
    prepare(world, case)
    return run_outside(world, case.command, how, timeout_s=case.timeout_s, terminal=case.terminal)


def check_control(worlds: Worlds, case: Case) -> None:
    """What the case forbids works outside: else the case would pass on a machine where nothing works."""
    assert case.control is not None
    uid = 0 if case.control.how == "root" else ORDINARY_UID if os.geteuid() == 0 else os.geteuid()
    with worlds.lend(uid, case.network) as world:
        result = attempt_bare(world, case, case.control.how)
        judge(result, world, case.control)
        if case.after_control is not None:
            case.after_control(world, result)


def prepare(world: World, case: Case) -> None:
    if case.prepare is not None:
        try:
            case.prepare(world)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Failed(f"{case.id} cannot be prepared here: {error}") from error
    world.remember()


def unreachable(user: str) -> str | None:
    """Why `user` cannot start akbox at all (an installation below /root, for one), or None."""
    try:
        found = subprocess.run(
            [*as_user(uid_of(user)), *akbox_command(), "--version"],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        return f"uid {uid_of(user)} cannot be taken on: {error}"
    if found.returncode == 0:
        return None
    return f"uid {uid_of(user)} cannot run {' '.join(akbox_command())}: {found.stderr.strip()[-300:]}"
