"""Why a run could not be held or begun, as one type that carries its exit code."""

from __future__ import annotations

EXIT_BUDGET = 124  # a limit or a budget ended the run
EXIT_CANNOT = 125  # akbox could not run it: policy, host or internal error; fail closed
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127


class CannotRun(Exception):
    """The command was not started, or not held to its policy. exit_code is 125, 126 or 127; `hint` says what to do."""

    def __init__(self, message: str, hint: str = "", exit_code: int = EXIT_CANNOT) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


class TooManyProcesses(CannotRun):
    """There is no room for the first process of a child agent."""

    def __init__(self) -> None:
        super().__init__("there are as many processes as there may be", "raise limits.pids")
