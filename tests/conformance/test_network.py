"""Sockets, names and what is shared between processes. The cases are in cases_network.py and cases_ipc.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import cases_ipc, cases_network
from .engine import check_case, check_control, controls, label, parameters
from .model import Case
from .services import Services
from .world import Worlds

CASES = [*cases_network.CASES, *cases_ipc.CASES]


@pytest.fixture(scope="module", autouse=True)
def services(worlds: Worlds) -> Iterator[Services]:
    with Services() as made:
        worlds.services = made
        yield made
        worlds.services = None


@pytest.mark.parametrize("case", controls(CASES), ids=lambda case: case.id)
def test_control(worlds: Worlds, case: Case) -> None:
    check_control(worlds, case)


@pytest.mark.parametrize("parameter", parameters(CASES), ids=label)
def test_case(worlds: Worlds, parameter: tuple[Case, str, str]) -> None:
    check_case(worlds, *parameter)
