"""All cases of the kit, by family. Imported only by who runs them: the tables are large."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Sequence

from akbox.conformance.model import Case

FAMILIES = ("files", "attributes", "presets", "calls", "proc", "life", "limits", "network", "ipc")


def all_cases() -> list[Case]:
    """In the order of FAMILIES; every id is there once."""
    cases: list[Case] = []
    for family in FAMILIES:
        cases += importlib.import_module(f"akbox.conformance.cases_{family}").CASES
    return cases


def chosen(patterns: Sequence[str]) -> list[Case]:
    """The cases whose id fits one of the patterns (as a shell's; a bare `F18` stands for `F18*`); all for none."""
    wide = [pattern if set(pattern) & set("*?[") else pattern + "*" for pattern in patterns] or ["*"]
    return [case for case in all_cases() if any(fnmatch.fnmatchcase(case.id, pattern) for pattern in wide)]
