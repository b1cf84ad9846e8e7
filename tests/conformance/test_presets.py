"""The shipped presets protect what runs later. The cases are in cases_presets.py."""

from __future__ import annotations

import pytest

from .cases_presets import CASES
from .engine import check_case, check_control, controls, label, parameters
from .model import Case
from .world import Worlds


@pytest.mark.parametrize("case", controls(CASES), ids=lambda case: case.id)
def test_control(worlds: Worlds, case: Case) -> None:
    check_control(worlds, case)


@pytest.mark.parametrize("parameter", parameters(CASES), ids=label)
def test_case(worlds: Worlds, parameter: tuple[Case, str, str]) -> None:
    check_case(worlds, *parameter)
