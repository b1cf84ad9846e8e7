"""`akbox run`: chooses the policy, starts the agent, attends it, reports. Standard streams belong to the agent."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from akbox.cli.choose import Choice, Extra, choose, merge
from akbox.cli.flags import Flag, UsageError, Values, parse
from akbox.cli.output import EXIT_CANNOT, EXIT_USAGE, Failure
from akbox.cli.session import Session

if TYPE_CHECKING:
    from akbox.linux.result import RunResult
    from akbox.linux.resume import Resumed
    from akbox.linux.terminal import Terminal
    from akbox.policy.model import Policy

NAME_LENGTH_MAX = 64


class Options(Struct, frozen=True):
    """How the run is made, beside its policy."""

    command: tuple[str, ...]
    interposer: str
    allow_degraded: tuple[str, ...]
    state_dir: str | None
    name: str | None
    anchor: tuple[str, ...]
    keep_fd: tuple[int, ...]
    json_file: str | None
    quiet: bool
    verbose: bool
    gateway: bool
    resume: str | None = None
    record: str | None = None


FLAGS = (
    Flag("--policy", "A policy file, or a preset such as `default`.", "FILE|PRESET", short="-p"),
    Flag("--read", "May also be read. Repeatable, as the next five.", "PATH", many=True),
    Flag("--write", "May also be written.", "PATH", many=True),
    Flag("--connect", "May also be connected to.", "HOST:PORT", many=True),
    Flag("--env", "Passed through, or set.", "NAME[=VALUE]", many=True),
    Flag("--budget", "What may be spent (wall_time_ms=60000).", "NAME=N", many=True),
    Flag("--limit", "A resource limit (memory=2G).", "NAME=N", many=True),
    Flag("--resume", "Continue this run: its heap, ledgers, log. COMMAND: by default its own.", "RUN"),
    Flag("--no-gateway", "No model gateway, although the policy has upstreams.", switch=True),
    Flag("--record", "Allow all that the policy does not deny, and write the policy that was needed.", "FILE"),
    Flag("--audit", "What the log holds.", "full|writes", choices=("full", "writes")),
    Flag("--anchor", "Where checkpoints go: file:PATH, https://… or exec:COMMAND.", "ANCHOR", many=True),
    Flag(
        "--interposer",
        "How calls are trapped.",
        "auto|ptrace|notify",
        choices=("auto", "ptrace", "notify"),
        default="auto",
    ),
    Flag("--allow-degraded", "Run although this layer is missing.", "LAYER", many=True),
    Flag("--target", "Where it runs; this version has `linux`.", "TARGET", default="linux"),
    Flag("--state-dir", "Instead of $XDG_STATE_HOME/akbox.", "DIR"),
    Flag("--name", "A name for the run, for people.", "NAME"),
    Flag("--keep-fd", "Leave this descriptor open.", "N", many=True, least=3),
    Flag("--json", "Write the report as JSON, too.", "FILE", key="json_file"),
    Flag("--quiet", "No report.", short="-q", switch=True),
    Flag("--verbose", "A report even when nothing was refused.", short="-v", switch=True),
)
HELP = Flag("--help", "Show this message and exit.", short="-h", switch=True)
USAGE = "akbox run [OPTIONS] -- COMMAND [ARG]..."


def main(args: list[str]) -> int:
    """`akbox run` without click: parses and runs. Raises Failure."""
    values, command = parse((*FLAGS, HELP), args)
    if values["help"]:
        from akbox.cli.group import call

        return call()
    gc.disable()  # start-up makes many objects and no garbage: looking for it is all in vain until the agent runs
    try:
        return execute(values, tuple(command))
    finally:
        gc.enable()


def execute(values: Values, command: tuple[str, ...]) -> int:
    """Runs the command; returns the exit code. `values` by the names of FLAGS. Raises Failure."""
    _refuse_later_flags(str(values["target"]))
    if not command and values["resume"] is None:
        raise UsageError(f"there is no command to run: {USAGE}")
    if values["quiet"] and values["verbose"]:
        raise UsageError("-q and -v exclude each other")
    name = _text(values["name"])
    if name is not None and (not name.isprintable() or not 0 < len(name) <= NAME_LENGTH_MAX):
        raise UsageError(f"--name has 1 to {NAME_LENGTH_MAX} printable characters")
    extra = Extra(
        read=_texts(values["read"]),
        write=_texts(values["write"]),
        connect=_texts(values["connect"]),
        env=_texts(values["env"]),
        budget=_texts(values["budget"]),
        limit=_texts(values["limit"]),
        audit=_text(values["audit"]),
    )
    options = Options(
        command=command,
        interposer=str(values["interposer"]),
        allow_degraded=_texts(values["allow_degraded"]),
        state_dir=_text(values["state_dir"]),
        name=name,
        anchor=_texts(values["anchor"]),
        keep_fd=tuple(int(fd) for fd in _texts(values["keep_fd"])),
        json_file=_text(values["json_file"]),
        quiet=bool(values["quiet"]),
        verbose=bool(values["verbose"]),
        resume=_text(values["resume"]),
        gateway=not values["no_gateway"],
        record=_text(values["record"]),
    )
    if options.resume is not None and (values["policy"] is not None or options.record or not extra.is_empty()):
        raise UsageError("--resume goes on under the policy that the run has")
    return _run(_text(values["policy"]), extra, options)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _texts(value: object) -> tuple[str, ...]:
    assert isinstance(value, tuple)
    return tuple(str(item) for item in value)


def _refuse_later_flags(target: str) -> None:
    if target in ("nanos", "microvm"):
        raise UsageError(f"--target {target} is not in this version of akbox; it has the target linux")
    if target != "linux":
        raise UsageError(f'there is no target "{target}"; this version has the target linux')


def _run(named: str | None, extra: Extra, options: Options) -> int:
    from akbox.linux.errors import CannotRun
    from akbox.linux.shipped import recall_shipped
    from akbox.rundir import StateError, state_root

    json_fd = _open_json(options.json_file)
    origin = named or ""
    try:
        cwd = _working_directory()
        recall_shipped(state_root(options.state_dir))
        resumed = _take_up(options)
        choice = choose(named, cwd, options.state_dir) if resumed is None else _resumed_choice(resumed)
        origin = choice.origin
        if resumed is not None:
            cwd = Path(resumed.cwd)
        return _start_and_report(choice, extra, options, cwd, json_fd, resumed)
    except StateError as error:
        failure = _or_nested(Failure(error.message, fix=error.hint, exit_code=EXIT_CANNOT))
        _report_failure(json_fd, failure, origin)
        raise failure from error
    except Failure as error:
        failure = _or_nested(error) if isinstance(error.__cause__, CannotRun) else error
        _report_failure(json_fd, failure, origin)
        raise failure from error.__cause__


def _or_nested(failure: Failure) -> Failure:
    """Inside another run a directory for the state or for TMPDIR may be missing first; it is not what is in the way."""
    from akbox.linux.hostcheck import nested, under_akbox

    if failure.exit_code != EXIT_CANNOT or not under_akbox():
        return failure
    why = nested()
    return Failure(why.message, fix=why.hint, exit_code=EXIT_CANNOT)


def _take_up(options: Options) -> Resumed | None:
    """What `--resume` names. Raises Failure."""
    if options.resume is None:
        return None
    from akbox.kernel.signing import SigningKeyError
    from akbox.linux.errors import CannotRun
    from akbox.linux.resume import take_up
    from akbox.policy.check import PolicyError
    from akbox.rundir import find_run, state_root

    root = state_root(options.state_dir)
    try:
        return take_up(find_run(options.resume, root), root / "keys")
    except CannotRun as error:
        raise Failure(error.message, fix=error.hint, exit_code=error.exit_code) from error
    except (PolicyError, SigningKeyError) as error:
        raise Failure(f"the run cannot be taken up: {error}", exit_code=EXIT_CANNOT) from error


def _resumed_choice(resumed: Resumed) -> Choice:
    return Choice(resumed.policy, f"run {resumed.run_dir.name[:8]}")


def _start_and_report(
    choice: Choice, extra: Extra, options: Options, cwd: Path, json_fd: int | None, resumed: Resumed | None
) -> int:
    from akbox.cli.report import print_report, report_document, write_json

    policy = merge(choice.policy, extra, cwd)
    recording = None
    if options.record is not None:
        from akbox.cli.record import Recording

        recording = Recording.begin(options.record, policy, choice.origin)
    try:
        result, run_dir = _attended(policy if recording is None else recording.allowed, options, cwd, resumed)
    except Failure:
        if recording is not None:
            recording.abandon()
        raise
    if recording is not None:
        recording.write(Path(run_dir), options.state_dir)
    if json_fd is not None:
        write_json(json_fd, report_document(result, choice.origin, run_dir))
    if not options.quiet:
        print_report(result, choice, options.verbose)
    if result.not_anchored:
        from akbox.cli.output import note

        note(f"the last checkpoint of the log is not anchored: {result.not_anchored}")
    return result.exit_code


def _attended(policy: Policy, options: Options, cwd: Path, resumed: Resumed | None) -> tuple[RunResult, str]:
    from akbox.cli.asking import Asker
    from akbox.linux.errors import CannotRun
    from akbox.linux.sandbox import Sandbox
    from akbox.policy.check import PolicyError

    try:
        sandbox = Sandbox(
            policy,
            cwd=cwd,
            state_dir=options.state_dir,
            interposer=options.interposer,
            allow_degraded=options.allow_degraded,
            name=options.name,
            keep_fds=options.keep_fd,
            gateway=options.gateway,
            anchors=options.anchor,
        )
        with Session() as session:
            terminal = _terminal()
            asker = Asker(terminal, quiet=options.quiet)
            try:
                run = sandbox.start(
                    list(options.command) or list(resumed.argv if resumed is not None else ()),
                    terminal=terminal,
                    on_stopped=session.agent_stopped,
                    on_request=asker.told,
                    resume=resumed,
                )
                gc.freeze()
                gc.enable()
                asker.run = run
                if terminal is not None:
                    terminal.start()
                return session.attend(run, terminal), str(run.run_dir)
            finally:
                if terminal is not None:
                    terminal.close()
    except CannotRun as error:
        raise Failure(error.message, fix=error.hint, exit_code=error.exit_code) from error
    except PolicyError as error:
        from akbox.cli.choose import policy_failure

        raise policy_failure(error) from error


def _terminal() -> Terminal | None:
    if not any(os.isatty(fd) for fd in range(3)):  # a closed descriptor is no terminal either
        return None
    from akbox.linux.terminal import Terminal

    return Terminal.open()


def _working_directory() -> Path:
    try:
        return Path(os.getcwd())
    except OSError as error:
        message = f"the working directory cannot be used: {error.strerror}"
        raise Failure(message, fix="change to another one", exit_code=EXIT_CANNOT) from error


def _open_json(path: str | None) -> int | None:
    if path is None:
        return None
    from akbox.cli.report import open_json

    try:
        return open_json(path)
    except OSError as error:
        raise Failure(f"--json {path}: {error.strerror}", exit_code=EXIT_USAGE) from error


def _report_failure(json_fd: int | None, failure: Failure, origin: str) -> None:
    if json_fd is not None:
        from akbox.cli.report import failure_document, write_json

        write_json(json_fd, failure_document(failure.message, failure.fix, failure.exit_code, origin))
