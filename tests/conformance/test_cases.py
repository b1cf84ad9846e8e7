"""Every case of the kit: its attempt works outside, and inside it comes to what the case says.

The cases are data in akbox/conformance/cases_*.py; `akbox test confinement` runs the same from an installed akbox.
"""

from __future__ import annotations

from collections import Counter

import pytest

from akbox.conformance.engine import check_case, check_control, controls, label, parameters
from akbox.conformance.model import Case
from akbox.conformance.suite import all_cases
from akbox.conformance.world import Worlds

CASES = all_cases()


@pytest.mark.parametrize("case", controls(CASES), ids=lambda case: case.id)
def test_control(worlds: Worlds, case: Case) -> None:
    check_control(worlds, case)


@pytest.mark.parametrize("parameter", parameters(CASES), ids=label)
def test_case(worlds: Worlds, parameter: tuple[Case, str, str]) -> None:
    check_case(worlds, *parameter)


def test_ids_are_unique() -> None:
    assert [name for name, count in Counter(case.id for case in CASES).items() if count > 1] == []
