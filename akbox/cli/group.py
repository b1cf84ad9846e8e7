"""The `akbox` command as click sees it. A group's module is imported only when one of its commands is used."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import click

from akbox import __version__
from akbox.cli.flags import Flag, UsageError
from akbox.cli.output import EXIT_USAGE, did_you_mean

COMMANDS = {
    "run": ("akbox.cli.group:run_command", "Run a command under a policy."),
    "policy": ("akbox.cli.policy:policy", "Check, explain, start and trust policies."),
    "audit": ("akbox.cli.audit_commands:audit", "Verify, show, prove and export the logs of runs."),
    "approve": ("akbox.cli.approve:approve", "Answer what waits for a person."),
    "cap": ("akbox.cli.cap:cap", "Mint, inspect, narrow and revoke capabilities."),
    "tool": ("akbox.cli.tool:tool", "Add, list, sign, check and call tools."),
    "mcp": ("akbox.cli.mcp:mcp", "Serve a run's tools to an MCP client (inside a run)."),
    "doctor": ("akbox.cli.doctor:doctor", "Try what this host can hold, and say what to do where it can't."),
    "test": ("akbox.cli.test:test", "Try on this machine what akbox promises."),
}
EPILOG = "Start with: akbox run -- COMMAND. Exit codes and the policy format are in docs/."
RUN_HELP = """Run a command under a policy.

Without -p: akbox.toml or akbox.json here or above, if you have trusted it, else the preset `default`.

The exit code is the command's own; 128+n for signal n, 124 a limit or budget ended it, 125 akbox could not run it, 126
not executable, 127 not found, 2 wrong usage.
"""


class LazyGroup(click.Group):
    """A group that knows its commands by name and one line, and imports one only to run it or to print its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        found = getattr(importlib.import_module(module), attribute)
        command = found if isinstance(found, click.Command) else found()
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


def run_command() -> click.Command:
    """`akbox run`, made of the table that its own parser uses."""
    from akbox.cli.run import FLAGS, execute

    def callback(command: tuple[str, ...], **values: object) -> int:
        return execute(values, command)

    return click.Command(
        "run",
        callback=callback,
        params=[*_options(FLAGS), click.Argument(["command"], nargs=-1, type=click.UNPROCESSED)],
        help=RUN_HELP,
        options_metavar="[OPTIONS] --",
        context_settings={"allow_interspersed_args": False},
    )


def _options(flags: Sequence[Flag]) -> list[click.Option]:
    options = []
    for flag in flags:
        names = [flag.dest, flag.name, *([flag.short] if flag.short else [])]
        if flag.switch:
            options.append(click.Option(names, is_flag=True, help=flag.help))
            continue
        kind = click.IntRange(flag.least) if flag.least is not None else None
        options.append(
            click.Option(
                names,
                type=click.Choice(flag.choices) if flag.choices else kind,
                metavar=flag.metavar,
                multiple=flag.many,
                default=None if flag.many else flag.default,
                help=flag.help,
            )
        )
    return options


def call() -> int:
    """Runs the command line by click and returns the exit code. Raises Failure."""
    try:
        code = cli.main(prog_name="akbox", standalone_mode=False)
    except UsageError:
        raise
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except click.Abort:
        return 130
    return code if isinstance(code, int) else 0
