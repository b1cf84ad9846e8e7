"""`akbox run`: chooses the policy, starts the agent, attends it, reports. Standard streams belong to the agent."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from akbox.cli.choose import Choice, Extra, choose, merge
from akbox.cli.output import EXIT_CANNOT, EXIT_USAGE, Failure
from akbox.cli.session import Session

if TYPE_CHECKING:
    from akbox.linux.result import RunResult
    from akbox.linux.terminal import Terminal
    from akbox.policy.model import Policy

NAME_LENGTH_MAX = 64


@dataclass(frozen=True)
class Options:
    """How the run is made, beside its policy."""

    command: tuple[str, ...]
    interposer: str
    allow_degraded: tuple[str, ...]
    state_dir: str | None
    name: str | None
    keep_fd: tuple[int, ...]
    json_file: str | None
    quiet: bool
    verbose: bool


@click.command(
    context_settings={"allow_interspersed_args": False},
    options_metavar="[OPTIONS] --",
    short_help="Run a command under a policy.",
)
@click.option("-p", "--policy", metavar="FILE|PRESET", help="A policy file, or a preset such as `default`.")
@click.option("--read", multiple=True, metavar="PATH", help="May also be read. Repeatable, as the next five.")
@click.option("--write", multiple=True, metavar="PATH", help="May also be written.")
@click.option("--connect", multiple=True, metavar="HOST:PORT", help="May also be connected to.")
@click.option("--env", multiple=True, metavar="NAME[=VALUE]", help="Passed through, or set.")
@click.option("--budget", multiple=True, metavar="NAME=N", help="What may be spent (wall_time_ms=60000).")
@click.option("--limit", multiple=True, metavar="NAME=N", help="A resource limit (memory=2G).")
@click.option("--record", metavar="FILE", hidden=True)
@click.option("--audit", type=click.Choice(["full", "writes"]), help="What the log holds.")
@click.option(
    "--interposer", type=click.Choice(["auto", "ptrace", "notify"]), default="auto", help="How calls are trapped."
)
@click.option("--allow-degraded", multiple=True, metavar="LAYER", help="Run although this layer is missing.")
@click.option("--target", default="linux", metavar="TARGET", help="Where it runs; this version has `linux`.")
@click.option("--state-dir", metavar="DIR", help="Instead of $XDG_STATE_HOME/akbox.")
@click.option("--name", metavar="NAME", help="A name for the run, for people.")
@click.option("--keep-fd", multiple=True, type=click.IntRange(3), metavar="N", help="Leave this descriptor open.")
@click.option("--json", "json_file", metavar="FILE", help="Write the report as JSON, too.")
@click.option("-q", "--quiet", is_flag=True, help="No report.")
@click.option("-v", "--verbose", is_flag=True, help="A report even when nothing was refused.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND [ARG]...")
def run(
    policy: str | None,
    read: tuple[str, ...],
    write: tuple[str, ...],
    connect: tuple[str, ...],
    env: tuple[str, ...],
    budget: tuple[str, ...],
    limit: tuple[str, ...],
    record: str | None,
    audit: str | None,
    interposer: str,
    allow_degraded: tuple[str, ...],
    target: str,
    state_dir: str | None,
    name: str | None,
    keep_fd: tuple[int, ...],
    json_file: str | None,
    quiet: bool,
    verbose: bool,
    command: tuple[str, ...],
) -> int:
    """Run a command under a policy.

    Without -p: akbox.toml or akbox.json here or above, if you have trusted it, else the preset `default`.

    The exit code is the command's own; 128+n for signal n, 124 a limit or budget ended it, 125 akbox could not run it,
    126 not executable, 127 not found, 2 wrong usage.
    """
    _refuse_later_flags(target, record)
    if not command:
        raise click.UsageError("there is no command to run: akbox run [OPTIONS] -- COMMAND [ARG]...")
    if quiet and verbose:
        raise click.UsageError("-q and -v exclude each other")
    if name is not None and (not name.isprintable() or not 0 < len(name) <= NAME_LENGTH_MAX):
        raise click.UsageError(f"--name has 1 to {NAME_LENGTH_MAX} printable characters")
    extra = Extra(read, write, connect, env, budget, limit, audit)
    options = Options(command, interposer, allow_degraded, state_dir, name, keep_fd, json_file, quiet, verbose)
    return _run(policy, extra, options)


def _refuse_later_flags(target: str, record: str | None) -> None:
    if target in ("nanos", "microvm"):
        raise click.UsageError(f"--target {target} is not in this version of akbox; it has the target linux")
    if target != "linux":
        raise click.UsageError(f'there is no target "{target}"; this version has the target linux')
    if record is not None:
        raise click.UsageError(
            "--record is not in this version of akbox; the report after a run has the line that allows each refusal"
        )


def _run(named: str | None, extra: Extra, options: Options) -> int:
    from akbox.rundir import StateError

    json_fd = _open_json(options.json_file)
    origin = named or ""
    try:
        cwd = _working_directory()
        choice = choose(named, cwd, options.state_dir)
        origin = choice.origin
        return _start_and_report(choice, extra, options, cwd, json_fd)
    except StateError as error:
        failure = Failure(error.message, fix=error.hint, exit_code=EXIT_CANNOT)
        _report_failure(json_fd, failure, origin)
        raise failure from error
    except Failure as failure:
        _report_failure(json_fd, failure, origin)
        raise


def _start_and_report(choice: Choice, extra: Extra, options: Options, cwd: Path, json_fd: int | None) -> int:
    from akbox.cli.report import print_report, report_document, write_json

    policy = merge(choice.policy, extra, cwd)
    result, run_dir = _attended(policy, options, cwd)
    if json_fd is not None:
        write_json(json_fd, report_document(result, choice.origin, run_dir))
    if not options.quiet:
        print_report(result, choice.origin, options.verbose)
    return result.exit_code


def _attended(policy: Policy, options: Options, cwd: Path) -> tuple[RunResult, str]:
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
        )
        with Session() as session:
            terminal = _terminal()
            try:
                run = sandbox.start(list(options.command), terminal=terminal, on_stopped=session.agent_stopped)
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
