"""Policies out of runs: what a run needed (`akbox run --record FILE`), what it was refused (`akbox policy suggest`)."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from akbox.cli.output import EXIT_CANNOT, EXIT_FAILED, EXIT_USAGE, Failure, emit_json, note, printable

if TYPE_CHECKING:
    from akbox.policy.learn import Learned
    from akbox.policy.model import Policy


class Recording(Struct, frozen=True):
    """inside: the policy that was chosen; allowed: the one that the recording runs under."""

    file: str
    fd: int
    inside: Policy
    allowed: Policy
    origin: str

    @staticmethod
    def begin(file: str, policy: Policy, origin: str) -> Recording:
        """Opens the file before anything runs: afterwards the name may lead wherever the agent wanted it to. Raises
        Failure."""
        from akbox.policy.learn import widened

        try:
            fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except FileExistsError as error:
            fix = "remove it first, or name another file"
            raise Failure(f"--record {file}: it exists", fix=fix, exit_code=EXIT_USAGE) from error
        except OSError as error:
            raise Failure(f"--record {file}: {error.strerror}", exit_code=EXIT_USAGE) from error
        note(f"recording: everything is allowed but what {origin} denies or protects")
        return Recording(os.path.abspath(file), fd, policy, widened(policy), origin)

    def abandon(self) -> None:
        """Nothing ran: the file that was made for it goes, if the name still means it."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self.fd), os.lstat(self.file)):
                os.unlink(self.file)
        os.close(self.fd)

    def write(self, run_dir: Path, state_dir: str | None) -> None:
        """Writes the policy and says what to do with it. Raises Failure."""
        from akbox.linux.recorded import learned
        from akbox.rundir import state_root

        with _reading("no policy was learned", EXIT_CANNOT):
            found = learned(run_dir, self.inside, state_root(state_dir))
            text = self._text(found, run_dir)
        with open(self.fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        name = os.path.relpath(self.file)
        rules = sum(len(items) for items in _lists(found.policy))
        note(f"recorded {rules} rules in {name}; read them, then: akbox run -p ./{name} -- …")
        for line in found.left_out:
            note(f"left out: {line}")

    def _text(self, found: Learned, run_dir: Path) -> str:
        import json

        from akbox.policy.write import as_toml

        argv = json.loads((run_dir / "audit.jsonl").open(encoding="utf-8").readline())["req"]["argv"]
        head = (
            f"Recorded from: {printable(shlex.join(argv))}",
            f"by run {run_dir.name[:8]}, inside {self.origin}. It allows what that did; read it before you use it.",
        )
        tail = [f"Left out: {printable(line)}" for line in found.left_out]
        return as_toml(found.policy, head=head, notes=found.notes, tail=tail)


def print_suggestions(run: str, as_json: bool, state_dir: str | None) -> int:
    """Lines on standard output, what has no line on standard error. Raises Failure."""
    import json

    from akbox.cli.audit import log_of
    from akbox.linux.recorded import suggested
    from akbox.policy.write import list_lines
    from akbox.rundir import state_root

    folder = log_of(run, state_dir).parent
    with _reading("cannot say", EXIT_FAILED):
        found = suggested(folder, state_root(state_dir))
    if as_json:
        emit_json({"run": folder.name, "lines": {k: list(v) for k, v in found.lines.items()}, "others": found.others})
        return 0
    for key, values in found.lines.items():
        items = [(json.dumps(value, ensure_ascii=False), who) for value, who in values.items()]
        print("\n".join(list_lines(key, items)))
    for target, why in found.others.items():
        note(f"no line for {target}: {why}")
    if not found.lines:
        note("nothing was refused that a line would allow")
    return 0


@contextlib.contextmanager
def _reading(what: str, exit_code: int) -> Iterator[None]:
    """What can be wrong with a run's log and policy, as a Failure."""
    from akbox.linux.errors import CannotRun
    from akbox.linux.replay import ReplayError
    from akbox.policy.check import PolicyError

    try:
        yield
    except CannotRun as error:
        raise Failure(f"{what}: {error.message}", fix=error.hint, exit_code=exit_code) from error
    except (ReplayError, PolicyError, OSError, ValueError) as error:
        raise Failure(f"{what}: {error}", exit_code=exit_code) from error


def _lists(policy: Policy) -> list[tuple[str, ...]]:
    fs, net = policy.fs, policy.net
    return [fs.read, fs.write, fs.exec or (), net.dns, net.connect, net.bind, net.listen, net.unix, policy.tools.allow]
