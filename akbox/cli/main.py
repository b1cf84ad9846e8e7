"""The `akbox` command. A group's module is imported only when one of its commands is used: start-up is a feature."""

from __future__ import annotations

import importlib
import os
import sys

import click

from akbox import __version__
from akbox.cli.output import EXIT_CANNOT, EXIT_USAGE, Failure, did_you_mean, fail

COMMANDS = {
    "run": ("akbox.cli.run:run", "Run a command under a policy."),
    "policy": ("akbox.cli.policy:policy", "Check, explain, start and trust policies."),
    "audit": ("akbox.cli.audit:audit", "Verify, show and recover the logs of runs."),
    "doctor": ("akbox.cli.doctor:doctor", "Try what this host can hold, and say what to do where it can't."),
}
EPILOG = "Start with: akbox run -- COMMAND. Exit codes and the policy format are in docs/."


class LazyGroup(click.Group):
    """A group that knows its commands by name and one line, and imports one only to run it or to print its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            ctx.fail(f'there is no command "{args[0]}"{did_you_mean(args[0], COMMANDS)}')
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="akbox %(version)s")
def cli() -> None:
    """A sandbox and authority kernel for AI agents: one policy, one kernel, one log that verifies."""


def main() -> int:
    """Runs the command line and returns the exit code (the console script passes it to sys.exit)."""
    try:
        code = cli.main(prog_name="akbox", standalone_mode=False)
        sys.stdout.flush()
    except Failure as failure:
        fail(failure)
        return failure.exit_code
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # Whoever read us has gone (`akbox audit show | head`): not an error, but the interpreter's own flush at exit
        # would complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + 13
    except Exception as error:  # the edge of the process: said in a sentence, and never taken for success
        if os.environ.get("AKBOX_DEBUG"):
            raise
        fail(
            Failure(
                f"internal error: {type(error).__name__}: {error}",
                fix="this is a bug in akbox; AKBOX_DEBUG=1 shows where",
            )
        )
        return EXIT_CANNOT
    return code if isinstance(code, int) else 0
