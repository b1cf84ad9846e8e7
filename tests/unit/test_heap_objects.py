"""The typed heap through the calls: versions, patches, batches, budgets, owners."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_kit import POLICY, Box

from akbox.kernel.codes import CallError, Code
from akbox.kernel.patch import MAX_OPERATIONS, apply_patch, check_patch, same_json

READ, ALLOC, WRITE, DELETE, QUERY, BATCH = range(1024, 1030)
BUDGET_STATUS = 1038


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path, POLICY + "[budgets]\nheap_objects = 5\nheap_bytes = 200\n")
    yield made
    made.close()


def used(box: Box) -> tuple[int, int]:
    both = [box.kernel.budgets.status(n) for n in ("heap_objects", "heap_bytes")]
    assert [s.reserved for s in both] == [0, 0]
    return both[0].used, both[1].used


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(exclude_categories=["Cs"])), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3), max_leaves=8))  # fmt: skip  # noqa: E501
def test_what_is_stored_is_read(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    box = Box(tmp_path_factory.mktemp("heap"))
    ptr = box.call(ALLOC, type="t", value=value)["ptr"]
    assert same_json(box.call(READ, ptr=ptr)["value"], value)
    box.close()


def test_pointers_are_never_used_again(box: Box) -> None:
    assert box.call(ALLOC, type="t", value=1)["ptr"] == 1
    box.call(DELETE, ptr=1)
    assert box.call(ALLOC, type="t", value=1)["ptr"] == 2
    assert box.fail(READ, ptr=1)["code"] == Code.NOT_FOUND
    assert box.fail(DELETE, ptr=1)["code"] == Code.NOT_FOUND


def test_versions(box: Box) -> None:
    box.call(ALLOC, type="t", value={"a": 1})
    assert (
        box.call(WRITE, ptr=1, patch=[{"op": "replace", "path": "/a", "value": 2}], expected_version=1)["version"] == 2
    )
    error = box.fail(WRITE, ptr=1, patch=[{"op": "replace", "path": "/a", "value": 3}], version=1)
    assert (error["code"], error["details"]["version"]) == (Code.CONFLICT, 2)
    assert box.fail(DELETE, ptr=1, version=1)["code"] == Code.CONFLICT
    assert box.call(READ, ptr=1)["value"] == {"a": 2}
    assert box.call(WRITE, ptr=1, patch=[], version=0)["version"] == 3
    assert box.call(DELETE, ptr=1, expected_version=3) == {"deleted": True}


def test_compare_and_swap_by_eight_threads(tmp_path: Path) -> None:
    """Each thread adds 5 by read, patch at that version, and try again: not one addition is lost."""
    box = Box(tmp_path)
    box.call(ALLOC, type="counter", value={"value": 0})

    def work() -> None:
        for _ in range(5):
            while True:
                seen = box.call(READ, ptr=1)
                patch = [{"op": "replace", "path": "/value", "value": seen["value"]["value"] + 1}]
                request = json.dumps({"ptr": 1, "patch": patch, "expected_version": seen["version"]}).encode()
                errno, body = box.raw(WRITE, request)
                if errno == 0:
                    break
                assert body["error"]["code"] == Code.CONFLICT

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    final = box.call(READ, ptr=1)
    assert (final["value"]["value"], final["version"]) == (40, 41)
    box.close()


@pytest.mark.parametrize(
    ("before", "patch", "after"),
    [
        ({"a": 1}, [{"op": "set", "path": "/a", "value": 2}], {"a": 2}),
        ({"a": 1}, [{"op": "set", "path": "/b", "value": 2}], {"a": 1, "b": 2}),
        ([1, 2], [{"op": "set", "path": "/0", "value": 9}], [9, 2]),
        ([1, 2], [{"op": "set", "path": "/-", "value": 9}], [1, 2, 9]),
        ([1, 2], [{"op": "set", "path": "/2", "value": 9}], [1, 2, 9]),
        ({"a": 1}, [{"op": "set", "path": "", "value": [1]}], [1]),
        ({"a/b": {"m~n": 1}}, [{"op": "set", "path": "/a~1b/m~0n", "value": 2}], {"a/b": {"m~n": 2}}),
        ([1, 2], [{"op": "add", "path": "/0", "value": 9}], [9, 1, 2]),
        ({"a": 1}, [{"op": "remove", "path": "/a"}], {}),
        ({"a": 1}, [{"op": "move", "from": "/a", "path": "/b"}], {"b": 1}),
        (
            {"a": [1]}, [{"op": "copy", "from": "/a", "path": "/b"}, {"op": "add", "path": "/b/-", "value": 2}],
            {"a": [1], "b": [1, 2]},
        ),
        ({"a": 1}, [{"op": "test", "path": "/a", "value": 1}, {"op": "replace", "path": "/a", "value": 2}], {"a": 2}),
        ({"a": 1}, [{"op": "test", "path": "/a", "value": 1.0}], {"a": 1}),
        ({"a": None}, [{"op": "test", "path": "/a", "value": None}], {"a": None}),
        (5, [{"op": "replace", "path": "", "value": 6}], 6),
    ],
)  # fmt: skip
def test_patches(before: Any, patch: list[dict[str, Any]], after: Any) -> None:
    check_patch(patch)
    assert apply_patch(before, patch) == after


@pytest.mark.parametrize(
    ("before", "patch", "code"),
    [
        ({}, [{"op": "replace", "path": "/a", "value": 1}], Code.NOT_FOUND),
        ({}, [{"op": "remove", "path": "/a"}], Code.NOT_FOUND),
        ({}, [{"op": "set", "path": "/a/b", "value": 1}], Code.NOT_FOUND),
        ({}, [{"op": "copy", "from": "/a", "path": "/b"}], Code.NOT_FOUND),
        ([1], [{"op": "set", "path": "/5", "value": 1}], Code.NOT_FOUND),
        ([1], [{"op": "add", "path": "/x", "value": 1}], Code.NOT_FOUND),
        ([1], [{"op": "set", "path": "/01", "value": 1}], Code.NOT_FOUND),
        ([1], [{"op": "set", "path": "/-1", "value": 1}], Code.NOT_FOUND),
        ({"a": 1}, [{"op": "test", "path": "/a", "value": True}], Code.CONFLICT),
        ({"a": 1}, [{"op": "test", "path": "/a", "value": "1"}], Code.CONFLICT),
        ({"a": 1}, [{"op": "test", "path": "/b", "value": 1}], Code.NOT_FOUND),
        ({"a": "x" * 1000}, [{"op": "copy", "from": "", "path": f"/{n}"} for n in range(40)], Code.SCHEMA_INVALID),
        ({"a": {}}, [{"op": "copy", "from": "", "path": "/a" * n} for n in range(1, 70)], Code.SCHEMA_INVALID),
        (5, [{"op": "add", "path": "/a", "value": 1}], (Code.NOT_FOUND, Code.SCHEMA_INVALID)),
        ("text", [{"op": "set", "path": "/0", "value": 1}], (Code.NOT_FOUND, Code.SCHEMA_INVALID)),
        ("text", [{"op": "remove", "path": "/0"}], (Code.NOT_FOUND, Code.SCHEMA_INVALID)),
        ({"a": {"b": 1}}, [{"op": "move", "from": "/a", "path": "/a/b"}], (Code.NOT_FOUND, Code.SCHEMA_INVALID)),
    ],
)  # fmt: skip
def test_patches_that_fail(before: Any, patch: list[dict[str, Any]], code: Code | tuple[Code, ...]) -> None:
    check_patch(patch)
    with pytest.raises(CallError) as caught:
        apply_patch(before, patch)
    assert caught.value.code in (code if isinstance(code, tuple) else (code,))
    assert caught.value.message.startswith("patch[")


def test_a_failed_patch_changes_nothing(box: Box) -> None:
    box.call(ALLOC, type="counter", value={"value": 1})
    for patch in (
        [{"op": "set", "path": "/value", "value": 2}, {"op": "remove", "path": "/nothing"}],
        [{"op": "set", "path": "/value", "value": "not an integer"}],
        [{"op": "add", "path": "/value", "value": 1}] * (MAX_OPERATIONS + 1),
    ):
        box.fail(WRITE, ptr=1, patch=patch)
        assert box.call(READ, ptr=1) == {"ptr": 1, "type": "counter", "version": 1, "value": {"value": 1}, "taint": 0}


def test_a_batch_is_one_transaction(box: Box) -> None:
    box.call(ALLOC, type="t", value={"n": 1})
    before = used(box)
    error = box.fail(
        BATCH,
        operations=[
            {"op": "alloc", "type": "t", "value": 1},
            {"op": "write", "ptr": 1, "patch": [{"op": "set", "path": "/n", "value": 2}]},
            {"op": "delete", "ptr": 1, "expected_version": 1},
        ],
    )
    assert (error["code"], error["details"]["index"]) == (Code.CONFLICT, 2)
    assert used(box) == before
    assert [o["value"] for o in box.call(QUERY, what="objects")["objects"]] == [{"n": 1}]
    done = box.call(
        BATCH,
        ops=[
            {"op": "ALLOC", "type": "t", "value": "x"},
            {"op": "Write", "ptr": 1, "version": 1, "patch": [{"op": "set", "path": "/n", "value": 22}]},
            {"op": "delete", "ptr": 1, "version": 2},
        ],
    )
    assert done["results"][1:] == [{"version": 2}, {"deleted": True}]
    assert box.call(READ, ptr=done["results"][0]["ptr"])["value"] == "x"
    assert used(box) == (1, 3)
    too_many = [{"op": "alloc", "type": "t", "value": 1}] * 101
    assert box.fail(BATCH, operations=too_many)["code"] == Code.SCHEMA_INVALID


def test_a_batch_may_change_what_it_made(box: Box) -> None:
    box.call(ALLOC, type="t", value=0)
    done = box.call(BATCH, operations=[{"op": "alloc", "type": "t", "value": 1}, {"op": "delete", "ptr": 2}])
    assert done["results"] == [{"ptr": 2, "version": 1}, {"deleted": True}]
    assert used(box) == (1, 1)


def test_budgets_are_kept(box: Box) -> None:
    error = box.fail(ALLOC, type="t", value="x" * 300)
    assert (error["code"], error["missing_cap"]) == (Code.BUDGET_EXCEEDED, "budgets.heap_bytes")
    assert error["details"] == {"budget": "heap_bytes", "limit": 200, "used": 0, "remaining": 200}
    assert box.entries()[-1]["stage"] == "BUDGET"
    box.call(ALLOC, type="t", value={"s": ""})
    assert used(box) == (1, 8)
    grow = [{"op": "set", "path": "/s", "value": "x" * 250}]
    assert box.fail(WRITE, ptr=1, patch=grow)["code"] == Code.BUDGET_EXCEEDED
    assert box.entries()[-1]["stage"] == "BUDGET"
    assert box.call(READ, ptr=1)["version"] == 1
    box.call(WRITE, ptr=1, patch=[{"op": "set", "path": "/s", "value": "x" * 100}])
    assert used(box) == (1, 108)
    box.call(WRITE, ptr=1, patch=[{"op": "set", "path": "/s", "value": ""}])
    assert used(box) == (1, 8)
    for _ in range(4):
        box.call(ALLOC, type="t", value=1)
    assert box.fail(ALLOC, type="t", value=1)["details"]["budget"] == "heap_objects"
    assert box.fail(BATCH, operations=[{"op": "alloc", "type": "t", "value": 1}])["code"] == Code.BUDGET_EXCEEDED
    box.call(DELETE, ptr=2)
    assert box.call(ALLOC, type="t", value=1)["ptr"] == 6
    assert used(box) == (5, 12)
    status = box.call(BUDGET_STATUS, resource="heap_objects")
    assert status == {"resource": "heap_objects", "limit": 5, "used": 5, "reserved": 0, "remaining": 0}
    (first, *_) = box.kernel.denials()
    assert (first.op, first.missing_cap) == ("ALLOC", "budgets.heap_bytes")


def test_budget_status_and_history(box: Box) -> None:
    status = box.call(BUDGET_STATUS)["budgets"]
    assert status["tokens"] == {"limit": 1_000_000, "used": 0, "reserved": 0, "remaining": 1_000_000}
    assert status["cpu_ns"] == {"limit": None, "used": 0, "reserved": 0, "remaining": None}
    box.kernel.budgets.charge("cpu_ns", 77)
    assert box.call(BUDGET_STATUS, name="cpu_time_ns")["used"] == 77
    snapshots = box.call(1039, count=1)["snapshots"]
    assert len(snapshots) == 1
    assert snapshots[0]["cpu_ns"] == 77


def test_only_the_owner_reads_and_writes(box: Box) -> None:
    with box.store.transaction() as tx:
        ptr = tx.insert(owner=bytes(16), type="t", value=b"1", taint=0)
    for nr, args in ((READ, {}), (WRITE, {"patch": []}), (DELETE, {})):
        error = box.fail(nr, ptr=ptr, **args)
        assert (error["code"], error["missing_cap"]) == (Code.CAP_MISSING, "heap")
        assert box.entries()[-1]["stage"] == "CAPABILITY"
    assert box.call(QUERY, what="objects")["objects"] == []


def test_too_large_and_too_deep(box: Box) -> None:
    errno, body = box.raw(ALLOC, b'{"type":"t","value":"' + b"x" * (1 << 20) + b'"}')
    assert body["error"]["code"] == Code.FRAME_TOO_LARGE
    assert errno == 22


@pytest.mark.parametrize(
    "schema",
    ['"$ref" = "http://127.0.0.1:9/x.json"', '"$ref" = "#"', 'type = "frob"', 'type = "string"\npattern = "("'],
)
def test_a_schema_that_cannot_be_applied_refuses(tmp_path: Path, schema: str) -> None:
    """Among them one that would have to be fetched: nothing is."""
    box = Box(tmp_path, POLICY + f"[heap.types.odd]\n{schema}\n")
    error = box.fail(ALLOC, type="odd", value="x")
    assert error["code"] == Code.SCHEMA_INVALID
    assert "can't be applied" in error["message"]
    box.close()
