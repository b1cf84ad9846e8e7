"""Calls the command line in this process, as the console script would."""

from __future__ import annotations

import sys

import pytest

from akbox.cli.main import main


class Cli:
    """`cli("policy", "check", "x")` → (exit code, standard output, standard error)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capfd = capfd

    def __call__(self, *args: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["akbox", *args])
        code = main()
        sys.stderr.flush()
        out, err = self._capfd.readouterr()
        return code, out, err
