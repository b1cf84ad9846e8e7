"""The scoreboard's judge: a sandbox that holds nothing scores nothing, one that runs nothing breaks every neighbour."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from akbox.conformance.engine import uid_of
from akbox.conformance.model import Case
from akbox.conformance.suite import all_cases
from akbox.conformance.world import Worlds

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from scoreboard import peers, report, score

CASES = {case.id: case for case in all_cases()}
ATTACKS = ["F02", "F04", "F07", "F13", "F16", "F21", "F36-link", "F37-tmpfile", "F38-chmod", "F39-chown", "F70", "P16",
           "P10-signal", "P24", "R01-environ"]  # fmt: skip
NEIGHBOURS = ["F01", "F03", "F19-neighbour", "P20"]
NOTHING = peers.Peer("nothing", "", lambda wish: wish.command, "true", ("true",), "")
WALL = peers.Peer("wall", "", lambda wish: ["false"], "false", ("false",), "")


@pytest.mark.parametrize("name", [*ATTACKS, *NEIGHBOURS])
def test_what_holds_nothing_and_what_runs_nothing(worlds: Worlds, name: str) -> None:
    case: Case = CASES[name]
    path, uid = os.environ["PATH"], uid_of("user")
    verdicts = [score.score_peer(worlds, case, uid, peer, path).verdict for peer in (NOTHING, WALL)]
    wanted = [score.OPEN, score.REFUSED] if name in ATTACKS else [score.WORKS, score.BREAKS]
    assert verdicts == wanted


def test_a_policy_in_other_words(worlds: Worlds) -> None:
    with worlds.lend(uid_of("user")) as world:
        denied = score.wish_of(world, CASES["F05-denied"])
        assert str(world.R) in denied.read
        assert str(world.S) in denied.deny
        assert f"--ro-bind /dev/null {world.S}" in " ".join(peers.bwrap(denied))
        with pytest.raises(peers.Cannot, match="deny inside"):
            peers.hlyn(denied)
        assert peers.hlyn(score.wish_of(world, CASES["F02"]))
        with pytest.raises(peers.Cannot, match="patterns"):
            peers.bwrap(score.wish_of(world, CASES["F21"]))


def test_the_document_says_what_was_found(worlds: Worlds) -> None:
    uid = uid_of("user")
    rows = [score.score_bare(worlds, CASES["F02"], uid), score.score_akbox(worlds, CASES["F02"], uid, "auto")]
    rows.append(score.score_peer(worlds, CASES["F02"], uid, NOTHING, os.environ["PATH"]))
    peer = {"id": "nothing", "what": "nothing", "version": "1", "install": "true"}
    found = {**report.about(), "peers": [peer], "left_out": {}, "scores": [vars(row) for row in rows]}
    text = report.document(found)
    assert "| F02 | read a host file | yes | **no** |" in text
    assert "- F02: read a host file" in text
