"""Path races, some rounds of each (AKBOX_RACE_ROUNDS); `races.py` runs the hundred thousand."""

from __future__ import annotations

import os

import pytest

from akbox.conformance.engine import USERS
from akbox.conformance.model import BOTH
from akbox.conformance.world import Worlds

from .races import RACES, Race, check_race_control, run_race

ROUNDS = int(os.environ.get("AKBOX_RACE_ROUNDS", "1500"))


@pytest.mark.parametrize("race", RACES, ids=lambda race: race.id)
def test_control(worlds: Worlds, race: Race) -> None:
    check_race_control(worlds, race)


@pytest.mark.parametrize("interposer", BOTH)
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("race", RACES, ids=lambda race: race.id)
def test_race(worlds: Worlds, race: Race, user: str, interposer: str) -> None:
    run_race(worlds, race, user, interposer, ROUNDS)
