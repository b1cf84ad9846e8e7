"""Labels follow values through the heap, to other agents and into answers; a sink takes only what is fit for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_kit import Box, compiled

from akbox.kernel.calls.spawn import SINKS, SpawnArgs
from akbox.kernel.codes import Code
from akbox.kernel.taint import (
    LABELS,
    NAMES,
    TAINT_CMD,
    TAINT_HTML,
    TAINT_PATH,
    TAINT_TRUSTED,
    TAINT_UNTRUSTED,
    combined,
)

READ, ALLOC, WRITE, DELETE, QUERY, BATCH = range(1024, 1030)
SPAWN, SEND, RECV, RESPOND, CAP = 1032, 1033, 1034, 1035, 1043
POLICY = """
version = "1.0"
[fs]
read = ["/usr/bin/**"]
[spawn]
allow = ["/usr/bin/true"]
"""
TEXTS = {"url": "https://example.org/a", "path": "/usr/bin/true", "sql": "o'clock", "cmd": "a b", "html": "<b>"}
FITS = {"program": "path", "cwd": "path", "argv": "cmd", "env": "cmd", "policy": None}


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path, POLICY)
    yield made
    made.close()


def objects(box: Box) -> dict[str, int]:
    """An object of each label, by its sanitizer's name; "" is trusted, "raw" is not."""
    found = {"": box.call(ALLOC, type="t", value="mine")["ptr"]}
    found["raw"] = box.call(ALLOC, type="t", value="theirs", taint="UNTRUSTED")["ptr"]
    for name, text in TEXTS.items():
        raw = box.call(ALLOC, type="t", value=text, taint="UNTRUSTED")["ptr"]
        found[name] = box.call(ALLOC, type="t", sanitize=name, **{"from": [raw]})["ptr"]
    return found


labels = st.sampled_from(sorted(NAMES))


@given(st.lists(labels))
def test_a_label_is_never_lowered_by_what_is_added(found: list[int]) -> None:
    whole = combined(*found)
    for label in found:
        assert whole in (label, TAINT_UNTRUSTED) or label == TAINT_TRUSTED
    assert combined(*found, *found[::-1]) == whole  # in any order, any number of times
    assert all(combined(combined(*found[:n]), combined(*found[n:])) == whole for n in range(len(found)))


def test_spawn_takes_what_is_fit_for_each_place(box: Box) -> None:
    found = objects(box)
    assert set(SINKS) == set(FITS)
    for place, fit in FITS.items():
        for name, ptr in found.items():
            error = box.fail(SPAWN, program="/usr/bin/true", **{"from": {place: [ptr]}})
            if name in ("", fit):
                assert error["code"] == Code.NOT_IMPLEMENTED  # came through to EXECUTE: here nothing starts agents
            else:
                assert (error["code"], error["errno"]) == (Code.TAINT, 1)
                assert error["message"].startswith(f"{place}: ")
                assert error["details"] == {"taint": LABELS[f"SANITIZED_{name.upper()}"] if name != "raw" else 100}
                assert error["suggested_fix"]
                entry = box.entries()[-1]
                assert (entry["decision"], entry["stage"]) == ("deny", "TAINT")
                assert entry["res"]["stages"]["POLICY"] == "pass"
                assert "EXECUTE" not in entry["res"]["stages"]
    mixed = {"argv": [found["cmd"], found["path"]]}
    assert box.fail(SPAWN, program="/usr/bin/true", **{"from": mixed})["code"] == Code.TAINT
    both = {"argv": [found["cmd"], found[""]], "cwd": [found["path"]]}
    assert box.fail(SPAWN, program="/usr/bin/true", **{"from": both})["code"] == Code.NOT_IMPLEMENTED


@pytest.mark.parametrize(
    ("sources", "code", "word"),
    [
        ({"argv": [9999]}, Code.NOT_FOUND, "9999"), ({"stdio": [1]}, Code.SCHEMA_INVALID, "from"),
        ({"argv": ["1"]}, Code.SCHEMA_INVALID, "from"), ({"argv": [1] * 101}, Code.SCHEMA_INVALID, "from.argv"),
        ([1], Code.SCHEMA_INVALID, "from"),
    ],
)  # fmt: skip
def test_sources_that_cannot_be(box: Box, sources: Any, code: Code, word: str) -> None:
    objects(box)
    error = box.fail(SPAWN, program="/usr/bin/true", **{"from": sources})
    assert error["code"] == code
    assert word in error["message"]


def test_a_refused_sink_starts_nothing(box: Box) -> None:
    started: list[SpawnArgs] = []

    def spawner(_agent: object, args: SpawnArgs) -> dict[str, Any]:
        started.append(args)
        return {"child_id": "x"}

    box.kernel.spawner = spawner
    found = objects(box)
    box.fail(SPAWN, program="/usr/bin/true", **{"from": {"program": [found["raw"]]}})
    assert started == []
    box.call(SPAWN, program="/usr/bin/true", **{"from": {"program": [found["path"]]}})
    assert len(started) == 1


@pytest.mark.parametrize("word", ["any", "trusted", *TEXTS])
def test_answers_are_made_of_what_the_policy_takes(tmp_path: Path, word: str) -> None:
    box = Box(tmp_path, f'version = "1.0"\n[taint]\nrespond = "{word}"\n')
    found = objects(box)
    for name, ptr in found.items():
        if word == "any" or name in ("", word):
            assert box.call(RESPOND, content="x", **{"from": [ptr]})["acknowledged"] is True
            assert box.kernel.answer is not None
            box.kernel.answer = None
        else:
            assert box.fail(RESPOND, content="x", **{"from": [ptr]})["code"] == Code.TAINT
            assert box.kernel.answer is None
    assert box.call(RESPOND, content="x")["taint"] == 0
    if word != "any":
        assert box.fail(RESPOND, content="x", taint="UNTRUSTED")["code"] == Code.TAINT
    box.close()


def test_a_childs_answer_is_held_by_every_policy_above_it(tmp_path: Path) -> None:
    box = Box(tmp_path, 'version = "1.0"\n[taint]\nrespond = "html"\n')
    child = box.kernel.tree.add(box.kernel.root, "child", compiled('version = "1.0"\n'), {}).id
    raw = box.call(ALLOC, by=child, type="t", value="<b>", taint="UNTRUSTED")["ptr"]
    clean = box.call(ALLOC, by=child, type="t", sanitize="html", **{"from": [raw]})["ptr"]
    assert box.fail(RESPOND, by=child, content="x", **{"from": [raw]})["code"] == Code.TAINT
    assert box.call(RESPOND, by=child, content="x", **{"from": [clean]})["taint"] == TAINT_HTML
    box.close()


def test_writing_raises_a_label_and_never_lowers_it(box: Box) -> None:
    found = objects(box)
    patch = [{"op": "set", "path": "", "value": "changed"}]
    box.call(WRITE, ptr=found["cmd"], patch=patch)
    assert box.call(READ, ptr=found["cmd"])["taint"] == TAINT_CMD
    box.call(WRITE, ptr=found["cmd"], patch=patch, taint="UNTRUSTED")
    assert box.call(READ, ptr=found["cmd"])["taint"] == TAINT_UNTRUSTED
    box.call(BATCH, operations=[{"op": "write", "ptr": found["path"], "patch": patch, "taint": 100}])
    assert box.call(READ, ptr=found["path"])["taint"] == TAINT_UNTRUSTED
    box.call(WRITE, ptr=found["raw"], patch=patch, taint="TRUSTED")
    assert box.call(READ, ptr=found["raw"])["taint"] == TAINT_UNTRUSTED
    for label in ("SANITIZED_PATH", TAINT_PATH, 7):  # only a sanitizer gives these
        assert box.fail(ALLOC, type="t", value="/x", taint=label)["code"] == Code.SCHEMA_INVALID


def test_what_comes_from_another_agent_is_untrusted(box: Box) -> None:
    kernel = box.kernel
    child = kernel.tree.add(kernel.root, "child", None, {})
    ptr = box.call(ALLOC, by=child.id, type="t", value="/usr/bin/true")["ptr"]
    assert box.call(READ, by=child.id, ptr=ptr)["taint"] == TAINT_TRUSTED
    grant = box.call(CAP, by=child.id, op="derive", cap=child.heap_tid, resource=f"heap:{ptr}", methods=["read"])
    token = grant["token"]
    assert box.call(READ, token=token, ptr=ptr)["taint"] == TAINT_UNTRUSTED
    box.call(SEND, by=child.id, to="root", payload="hi")
    assert box.call(RECV)["messages"][0]["taint"] == TAINT_UNTRUSTED
    kernel.tree.end(child)
    assert box.call(READ, ptr=ptr)["taint"] == TAINT_UNTRUSTED  # the parent's now, and no better for it
    assert box.fail(SPAWN, program="/usr/bin/true", **{"from": {"program": [ptr]}})["code"] == Code.TAINT
    fit = box.call(ALLOC, type="t", sanitize="path", **{"from": [ptr]})["ptr"]
    assert box.fail(SPAWN, program="/usr/bin/true", **{"from": {"program": [fit]}})["code"] == Code.NOT_IMPLEMENTED
