"""Worlds of the conformance kit for tests that run whole programs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from akbox.conformance.world import Worlds


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    made = Worlds()
    try:
        yield made
    finally:
        made.close()
