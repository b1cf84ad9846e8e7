"""`cpython_runner.py MODULE REPORT`: runs the interpreter's own test.MODULE, writes {test id: outcome} as JSON.

Outcomes: "passed", "skipped: why", "failed: last line". regrtest's own report is not used: its collector ends at the
first test whose helper thread fails. Imports nothing of this project, so that it also runs inside a sandbox.
"""

import json
import sys
import unittest

from test import support
from test.support import os_helper


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


def main() -> None:
    module, report = sys.argv[1:]
    support.use_resources = []
    suite = unittest.defaultTestLoader.loadTestsFromName(f"test.{module}")
    result = Outcomes()
    with os_helper.temp_cwd():
        suite.run(result)
    with open(report, "w") as file:
        json.dump(result.found, file)


if __name__ == "__main__":
    main()
