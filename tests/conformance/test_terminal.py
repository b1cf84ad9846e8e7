"""A terminal works as without akbox: ^C, ^Z and fg, resizing, full-screen programs, background jobs (T03)."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from akbox.conformance.engine import USERS, akbox_command, execute, logs, uid_of, verify
from akbox.conformance.model import BOTH
from akbox.conformance.world import World, Worlds

from .console import CTRL_C, CTRL_D, CTRL_Z, Console

VARIANTS = pytest.mark.parametrize(
    ("user", "interposer"), [(user, interposer) for user in USERS for interposer in BOTH], ids=lambda word: word
)


@contextmanager
def console(worlds: Worlds, user: str) -> Iterator[tuple[World, Console]]:
    with worlds.lend(uid_of(user)) as world:
        with Console(world) as opened:
            yield world, opened
        for log in logs(world):
            verify(world, log)


def line(interposer: str, *command: str) -> str:
    return shlex.join([*akbox_command(), "run", "-q", "-p", "default", "--interposer", interposer, "--", *command])


@VARIANTS
def test_interrupt(worlds: Worlds, user: str, interposer: str) -> None:
    with console(worlds, user) as (_, terminal):
        terminal.type(line(interposer, "sh", "-c", "echo rea''dy; exec sleep 600") + "\n")
        terminal.expect("ready")
        terminal.type(CTRL_C)
        terminal.expect("KIT> ")
        assert terminal.status() == 130


@VARIANTS
def test_interrupt_is_the_programs_to_handle(worlds: Worlds, user: str, interposer: str) -> None:
    # "ready" comes from the foreground child: a ^C before the shell's fork would reach no child.
    script = "trap 'echo cau''ght; exit 7' INT; while :; do sh -c 'echo rea\"\"dy; exec sleep 600'; done"
    with console(worlds, user) as (_, terminal):
        terminal.type(line(interposer, "sh", "-c", script) + "\n")
        terminal.expect("ready")
        terminal.type(CTRL_C)
        terminal.expect("caught")
        terminal.expect("KIT> ")
        assert terminal.status() == 7


@VARIANTS
def test_stop_and_continue(worlds: Worlds, user: str, interposer: str) -> None:
    with console(worlds, user) as (_, terminal):
        terminal.type(line(interposer, "sh", "-c", "echo rea''dy; exec cat") + "\n")
        terminal.expect("ready")
        terminal.type("before\n")
        terminal.expect("before\r\nbefore\r\n")
        terminal.type(CTRL_Z)
        terminal.expect("Stopped")
        terminal.expect("KIT> ")
        assert "Stopped" in terminal.command("jobs")
        terminal.type("fg\n")
        terminal.type("after\n")
        terminal.expect("after\r\n(.*\r\n)?after\r\n")
        terminal.type(CTRL_D)
        terminal.expect("KIT> ")
        assert terminal.status() == 0


@VARIANTS
def test_resize(worlds: Worlds, user: str, interposer: str) -> None:
    script = (
        "import os, signal\n"
        "print('start', *os.get_terminal_size(0), flush=True)\n"
        "r, w = os.pipe(); os.set_blocking(w, False); signal.set_wakeup_fd(w)\n"
        "signal.signal(signal.SIGWINCH, lambda *a: None); print('rea' 'dy', flush=True)\n"
        "os.read(r, 1); print('size', *os.get_terminal_size(0))"
    )
    with console(worlds, user) as (_, terminal):
        terminal.type(line(interposer, "python3", "-c", script) + "\n")
        terminal.expect("start 80 24")
        terminal.expect("ready")
        terminal.resize(50, 132)
        terminal.expect("size 132 50")
        terminal.expect("KIT> ")


@VARIANTS
def test_vim(worlds: Worlds, user: str, interposer: str) -> None:
    with console(worlds, user) as (world, terminal):
        terminal.type(line(interposer, "vim", "-u", "NONE", "-N", "-i", "NONE", "note.txt") + "\n")
        terminal.expect("note.txt")
        terminal.type("ifrom vim\x1b")
        terminal.type(":wq\r")
        terminal.expect("KIT> ")
        assert terminal.status() == 0
        assert (world.W / "note.txt").read_text() == "from vim\n"


@VARIANTS
def test_less(worlds: Worlds, user: str, interposer: str) -> None:
    with console(worlds, user) as (world, terminal):
        (world.W / "long").write_text("".join(f"line-{n}-\n" for n in range(500)))
        terminal.type(line(interposer, "less", "long") + "\n")
        terminal.expect("line-20-")
        terminal.type("G")
        terminal.expect("line-499-")
        terminal.type("q")
        terminal.expect("KIT> ")
        assert terminal.status() == 0


@VARIANTS
def test_the_terminal_is_left_as_it_was(worlds: Worlds, user: str, interposer: str) -> None:
    with console(worlds, user) as (_, terminal):
        before = terminal.command("stty -g").splitlines()[-1]
        terminal.command(line(interposer, "sh", "-c", "stty raw -echo; true"))
        assert terminal.command("stty -g").splitlines()[-1] == before


@VARIANTS
def test_it_is_left_usable_by_a_crash(worlds: Worlds, user: str, interposer: str) -> None:
    """akbox is killed in the middle: the shell has its terminal back, and keys do there what they did (T04)."""
    with console(worlds, user) as (_, terminal):
        before = terminal.command("stty -g").splitlines()[-1]
        terminal.type(line(interposer, "sh", "-c", "echo rea''dy; exec sleep 600") + "\n")
        terminal.expect("ready")
        os.killpg(os.tcgetpgrp(terminal.master), signal.SIGKILL)
        terminal.expect("Killed")
        terminal.expect("KIT> ")
        assert terminal.status() == 137
        assert terminal.command("stty -g").splitlines()[-1] == before
        terminal.type("sh -c \"echo aga''in; exec sleep 600\"\n")
        terminal.expect("again")
        terminal.type(CTRL_C)
        terminal.expect("KIT> ")
        assert terminal.status() == 130


@VARIANTS
def test_a_background_job_is_not_stopped_by_its_output(worlds: Worlds, user: str, interposer: str) -> None:
    with console(worlds, user) as (_, terminal):
        terminal.command("stty tostop")
        terminal.type(line(interposer, "echo", "from the background") + " & wait $!; echo code=$?=\n")
        terminal.expect("\nfrom the background")
        terminal.expect("code=0=")


@VARIANTS
def test_pipes_beside_a_terminal_stay_pipes(worlds: Worlds, user: str, interposer: str) -> None:
    with console(worlds, user) as (_, terminal):
        shown = terminal.command(
            line(interposer, "sh", "-c", "test -t 0 && echo in; test -t 1 || echo piped") + " | cat"
        )
        assert "in\r\n" in shown
        assert "piped\r\n" in shown


def test_no_terminal_at_all(worlds: Worlds) -> None:
    with worlds.lend(uid_of("user")) as world:
        result = execute([*akbox_command(), "run", "-p", "default", "--", "tty"], world, uid=world.uid)
        assert result.exit == 1, str(result)
        assert "not a tty" in result.stdout
