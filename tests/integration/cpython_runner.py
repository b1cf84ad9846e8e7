"""`cpython_runner.py MODULE REPORT`: runs the interpreter's own test.MODULE, writes {test id: outcome} as JSON.

Outcomes: "passed", "skipped: why", "failed: last line". regrtest's own report is not used: its collector ends at the
first test whose helper thread fails. Imports nothing of this project, so that it also runs inside a sandbox.
"""

import json
import sys
import unittest

from test import support
from test.support import os_helper

# Test cases that this interpreter's suite hangs in, bare, on some machines, and why.
LEFT_OUT = {"ThreadedVSOCKSocketStreamTest": "waits for ever on a virtual machine whose vsock does not reach itself"}


class Outcomes(unittest.TestResult):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def addSuccess(self, test):  # type: ignore[no-untyped-def]
        self.found.setdefault(test.id(), "passed")

    def addSkip(self, test, reason):  # type: ignore[no-untyped-def]
        self.found[test.id()] = f"skipped: {' '.join(reason.split())}"

    def addFailure(self, test, err):  # type: ignore[no-untyped-def]
        self.found[test.id()] = f"failed: {err[0].__name__}: {str(err[1]).strip()[:200]}"

    addError = addFailure

    def addExpectedFailure(self, test, err):  # type: ignore[no-untyped-def]
        self.found.setdefault(test.id(), "passed")

    def addUnexpectedSuccess(self, test):  # type: ignore[no-untyped-def]
        self.found[test.id()] = "failed: unexpected success"

    def addSubTest(self, test, subtest, err):  # type: ignore[no-untyped-def]
        if err is not None:
            self.addFailure(test, err)


def kept(suite: unittest.TestSuite) -> unittest.TestSuite:
    """The suite without the cases that are left out."""
    items = (kept(item) if isinstance(item, unittest.TestSuite) else item for item in suite)
    return unittest.TestSuite(item for item in items if type(item).__name__ not in LEFT_OUT)


def main() -> None:
    module, report = sys.argv[1:]
    support.use_resources = []
    suite = unittest.defaultTestLoader.loadTestsFromName(f"test.{module}")
    result = Outcomes()
    with os_helper.temp_cwd():
        kept(suite).run(result)
    with open(report, "w") as file:
        json.dump(result.found, file)


if __name__ == "__main__":
    main()
