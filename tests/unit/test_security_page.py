"""Every file, case and fuzz target that SECURITY.md points at as a proof is there."""

from __future__ import annotations

import fnmatch
import re
from itertools import product
from pathlib import Path

import pytest

from akbox.conformance.suite import all_cases

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
QUOTED = re.findall(r"`([^`\n]+)`", TEXT)
FILES = sorted({word for quoted in QUOTED for word in quoted.split() if word.endswith(".py")})


def _spelled_out(name: str) -> list[str]:
    """`a_{b,c}.py` is two names."""
    parts = re.split(r"\{([^}]*)\}", name)
    choices = [part.split(",") if n % 2 else [part] for n, part in enumerate(parts)]
    return ["".join(words) for words in product(*choices)]


@pytest.mark.parametrize("name", FILES)
def test_named_files_are_there(name: str) -> None:
    for one in _spelled_out(name):
        places = [ROOT] if "/" in one else [*(ROOT / "tests").iterdir(), ROOT / "akbox" / "conformance"]
        assert any(list(place.glob(one)) for place in places if place.is_dir()), one


def test_it_names_files() -> None:
    assert len(FILES) > 25
    assert _spelled_out("a_{b,c}.py") == ["a_b.py", "a_c.py"]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", TEXT))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_named_cases_are_in_the_kit() -> None:
    ids = [case.id for case in all_cases()]
    named = set(re.findall(r"\b([FNPIRLT]\d\d)\b", TEXT))
    assert named
    assert [one for one in named if not fnmatch.filter(ids, f"{one}*")] == []


def test_named_fuzz_targets_are_known() -> None:
    known = re.search(r"known=\(([^)]*)\)", (ROOT / "scripts" / "fuzz").read_text())
    assert known is not None
    named = {word for quoted in QUOTED if quoted.startswith("scripts/fuzz ") for word in quoted.split()[1:]}
    assert named
    assert named <= set(known[1].split())
