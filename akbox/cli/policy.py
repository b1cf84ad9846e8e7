"""`akbox policy`: is it valid, what does it mean, a first one, what is missing in it, and which found ones count."""

from __future__ import annotations

import os
from pathlib import Path

import click

from akbox.cli.output import EXIT_FAILED, EXIT_USAGE, Failure, columns, did_you_mean, emit_json, note


@click.group(short_help="Check, explain, start and trust policies.")
def policy() -> None:
    """Policies are TOML or JSON files; docs/policy.md has the schema. Presets are policies that ship with akbox."""


@policy.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def check(files: tuple[str, ...], as_json: bool) -> int:
    """Say whether policies are valid: exit 0 when all are, 1 when one is not, 2 when one cannot be read."""
    from akbox.policy.check import PolicyError

    results: list[dict[str, object]] = []
    worst = 0
    for file in files:
        try:
            _load(file)
            problems = []
        except PolicyError as error:
            problems = error.problems
            worst = worst or EXIT_FAILED
        except OSError as error:
            raise Failure(f"cannot read {file}: {error.strerror}", exit_code=EXIT_USAGE) from error
        if as_json:
            found = [
                {"file": p.file, "line": p.line, "column": p.column, "key": p.key, "message": p.message, "hint": p.hint}
                for p in problems
            ]
            results.append({"file": file, "valid": not problems, "problems": found})
        else:
            for problem in problems:
                print(problem)
            if not problems:
                print(f"{file}: ok")
    if as_json:
        emit_json(results)
    return worst


@policy.command()
@click.argument("file", required=False)
@click.option("--op", metavar="OP", help="Only the answer for one effect: fs.read, fs.write, fs.exec, net.connect …")
@click.option("--target", metavar="TARGET", help="What the effect is on: /a/path, ip:1.2.3.4:443, dns:host:443 …")
@click.option("--command", metavar="COMMAND", help='The program whose needs `runtime = "auto"` grants.')
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--state-dir", metavar="DIR", help="Instead of $XDG_STATE_HOME/akbox.")
def explain(
    file: str | None, op: str | None, target: str | None, command: str | None, as_json: bool, state_dir: str | None
) -> int:
    """Show what a policy comes to here: its rules, budgets, Landlock and filter plan.

    FILE may be a preset; without one it is what `akbox run` would use. With --op and --target: the verdict and the rule
    that decides (exit 1: refused).
    """
    from akbox.cli.explain import explain_policy

    if (op is None) != (target is None):
        raise click.UsageError("--op and --target go together")
    return explain_policy(file, op, target, command, as_json, state_dir)


@policy.command()
@click.option("--preset", default="default", metavar="NAME", help="Start from this one.")
@click.option("-o", "--output", default="akbox.toml", metavar="FILE", help="Write to this file (default: akbox.toml).")
@click.option("--list", "list_presets", is_flag=True, help="List the presets.")
@click.option("--json", "as_json", is_flag=True, help="The list as JSON.")
def init(preset: str, output: str, list_presets: bool, as_json: bool) -> int:
    """Write a policy to start from: a copy of a preset, comments included. Never overwrites a file."""
    from akbox.policy.presets import preset_names, preset_path, summary

    names = preset_names()
    if list_presets:
        lines = [(name, summary(path)) for name in names if (path := preset_path(name)) is not None]
        if as_json:
            emit_json([{"name": name, "summary": text} for name, text in lines])
        else:
            print("\n".join(columns(lines)))
        return 0
    source = preset_path(preset)
    if source is None:
        message = f'there is no preset "{preset}"{did_you_mean(preset, names)}'
        raise Failure(message, fix=f"use one of {', '.join(names)}", exit_code=EXIT_USAGE)
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError as error:
        raise Failure(f"{output} exists", fix="remove it first, or name another file with -o") from error
    except OSError as error:
        raise Failure(f"cannot write {output}: {error.strerror}") from error
    with open(fd, "wb") as file:
        file.write(source.read_bytes())
    note(f"wrote {output} from the preset {preset}; when you have read it: akbox policy trust {output}")
    return 0


@policy.command()
@click.argument("one")
@click.argument("two")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--state-dir", metavar="DIR", help="Instead of $XDG_STATE_HOME/akbox.")
def diff(one: str, two: str, as_json: bool, state_dir: str | None) -> int:
    """Show what policy TWO newly allows or refuses compared with ONE, each with an example.

    Files or presets; `git show HEAD:akbox.toml > old.toml` gives the one before. Exit 0: the same; 1: it differs.
    """
    from akbox.cli.compare import print_diff

    return print_diff(one, two, as_json, state_dir)


@policy.command()
@click.argument("file")
@click.argument("cases")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--state-dir", metavar="DIR", help="Instead of $XDG_STATE_HOME/akbox.")
def test(file: str, cases: str, as_json: bool, state_dir: str | None) -> int:
    """Hold a policy against a table of what it has to allow and refuse. Exit 0: it does; 1: a case fails.

    CASES has a case on each line: `allow|deny|ask EFFECT TARGET`, for example `deny fs.write ~/.bashrc`; # begins a
    comment.
    """
    from akbox.cli.compare import run_cases

    return run_cases(file, cases, as_json, state_dir)


@policy.command()
@click.argument("run", required=False, default="last", metavar="[RUN]")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--state-dir", metavar="DIR", help="Instead of $XDG_STATE_HOME/akbox.")
def suggest(run: str, as_json: bool, state_dir: str | None) -> int:
    """Print the lines that would have allowed what a run was refused, each exactly.

    Never a whole home, a system directory or a credential: for those it says why. Read the lines before they go into
    the policy; a refusal may be what you want.
    """
    from akbox.cli.record import print_suggestions

    return print_suggestions(run, as_json, state_dir)


@policy.command()
@click.argument("file")
@click.option("--state-dir", metavar="DIR", help="Instead of $XDG_STATE_HOME/akbox.")
def trust(file: str, state_dir: str | None) -> int:
    """Let `akbox run` use this akbox.toml or akbox.json when it finds it.

    Holds for exactly this content in this place; a file that changed has to be trusted again.
    """
    from akbox.cli.choose import parse_policy, read_policy
    from akbox.cli.trust import NAMES
    from akbox.cli.trust import trust as remember
    from akbox.rundir import StateError, state_root

    path = Path(os.path.realpath(file))
    content = read_policy(path)
    parse_policy(content, path)
    try:
        remember(path, content, state_root(state_dir))
    except StateError as error:
        raise Failure(error.message, fix=error.hint) from error
    note(f"trusted as it is now: {path}")
    if path.name not in NAMES:
        note(f"`akbox run` only finds {' and '.join(NAMES)}; this one has to be named: -p {file}")
    return 0


def _load(name: str) -> object:
    from akbox.policy.load import load
    from akbox.policy.presets import load_preset, preset_path

    return load_preset(name) if preset_path(name) is not None and not os.path.exists(name) else load(name)
