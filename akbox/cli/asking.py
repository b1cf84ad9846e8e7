"""Who is told when an effect waits for a person: the one at the terminal, by a question; else a line says it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from akbox.kernel.approvals import Request
    from akbox.linux.run import Run
    from akbox.linux.terminal import Terminal

BY = "the terminal"


class Asker:
    """`told` hears of each request of the run, from any thread; questions are shown once `run` is set and the terminal
    copies."""

    def __init__(self, terminal: Terminal | None, *, quiet: bool) -> None:
        self._terminal = terminal
        self._quiet = quiet
        self.run: Run | None = None

    def told(self, request: Request) -> None:
        if self._terminal is not None and self._terminal.ask(_Question(self, request)):
            return
        if not self._quiet:  # the one thing that is said while the agent runs: nobody would know what it waits for
            from akbox.cli.output import note

            who = "" if request.agent_name == "root" else f" ({request.agent_name})"
            note(f"{request.op} {request.target}{who} waits for you: akbox approve last {request.id}  (or --deny)")


class _Question:
    def __init__(self, asker: Asker, request: Request) -> None:
        from akbox.cli.output import printable

        self._asker = asker
        self._request = request
        what = f"{request.op} {request.target}"
        if request.target2 is not None:
            what += f" -> {request.target2}"
        seconds = (request.deadline_ns - request.asked_ns) // 1_000_000_000
        self.lines = tuple(
            printable(line)
            for line in (
                f"akbox: {what}",
                f"  wanted by agent {request.agent_name}; rule: {request.rule}",
                f"  refused in {seconds} s; from elsewhere: akbox approve last {request.id}",
                "  Allow it? (y)es, (n)o, (a)lways in this run:",
            )
        )

    def settled(self) -> str | None:
        state, by = self._request.state, self._request.by
        if state == "waiting":
            return None
        return f"akbox: {state}" if by == BY else f"akbox: {state} ({by})"

    def answer(self, word: str) -> None:
        from akbox.kernel.codes import CallError

        assert self._asker.run is not None
        approvals = self._asker.run.kernel.approvals
        assert approvals is not None
        with contextlib.suppress(CallError):  # decided a moment ago by another: settled() says how
            approvals.decide(self._request.id, word != "no", BY, always=word == "always")
