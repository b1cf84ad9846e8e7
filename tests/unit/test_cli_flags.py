"""The parser of `akbox run`: what is akbox's, what is the agent's, and that click reads the same table the same way."""

from __future__ import annotations

import click
import pytest

from akbox.cli.flags import Flag, UsageError, parse
from akbox.cli.group import run_command
from akbox.cli.run import FLAGS


def test_everything_after_the_dashes_is_the_agents_to_the_byte() -> None:
    agent = ["-x", "--read", "a b", "q\"u'o", "new\nline", "", "--", "-p", "\udcff", "$HOME", "*"]
    values, command = parse(FLAGS, ["--read", "/x", "--", *agent])
    assert command == agent
    assert values["read"] == ("/x",)


def test_the_first_word_that_is_no_option_begins_the_command() -> None:
    for command in (["ls", "-l", "--", "-p"], ["-", "-q"], [""]):
        assert parse(FLAGS, ["-q", *command])[1] == command


@pytest.mark.parametrize(
    "args", [["-p", "x"], ["-px"], ["--policy", "x"], ["--policy=x"], ["-p", "y", "--policy", "x"]]
)
def test_values(args: list[str]) -> None:
    assert parse(FLAGS, args)[0]["policy"] == "x"


def test_odd_values() -> None:
    values, _ = parse(FLAGS, ["--env=A=b=c", "--read", "--", "--write=", "--keep-fd", "5", "--keep-fd=7", "-v"])
    assert values["env"] == ("A=b=c",)
    assert values["read"] == ("--",)
    assert values["write"] == ("",)
    assert values["keep_fd"] == (5, 7)
    assert values["verbose"] is True


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--raed", "x"], r"no option --raed \(did you mean \"--read\"\?\)"),
        (["--policy"], "--policy needs a value: --policy FILE|PRESET"),
        (["-p"], "-p needs a value"),
        (["--quiet=yes"], "--quiet takes no value"),
        (["-qv"], "-q takes no value"),
        (["--audit", "none"], "--audit 'none' is not one of full, writes"),
        (["--keep-fd", "2"], "--keep-fd '2' is not a number of 3 or more"),
        (["--keep-fd", "-3"], "is not a number"),
        (["--keep-fd", "٣"], "is not a number"),
    ],
)
def test_errors(args: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse(FLAGS, args)
    assert caught.value.exit_code == 2


def test_click_reads_the_same_table_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr("akbox.cli.run.execute", lambda values, command: seen.append((values, command)) or 0)
    args = [
        "-pone",
        "--read",
        "/a",
        "--read=/b",
        "--env",
        "X",
        "--keep-fd",
        "4",
        "--json",
        "f",
        "-v",
        "--",
        "cmd",
        "--read",
        "-v",
    ]
    context = click.Context(click.Group("akbox"))
    run_command().main(args, prog_name="run", standalone_mode=False, parent=context)
    values, command = parse(FLAGS, args)
    assert seen == [(values, tuple(command))]


def test_the_name_of_a_value() -> None:
    assert Flag("--state-dir", "").dest == "state_dir"
    assert Flag("--json", "", key="json_file").dest == "json_file"
