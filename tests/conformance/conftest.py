"""The kit's one fixture: worlds, with the helpers built."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from akbox.conformance.world import Worlds, build_helpers


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    made = Worlds()
    try:
        build_helpers(made.helpers)
        yield made
    finally:
        made.close()
