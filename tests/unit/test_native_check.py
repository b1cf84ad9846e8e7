"""The C half of verification vouches for nothing that the Python half refuses, and for what a writer mostly writes."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_kit import EPOCH_NS

from akbox._native import check_lines
from akbox.kernel.entry import Draft, render
from akbox.kernel.verify import _look_at

RUN, AGENT = bytes(range(16)), bytes(range(16, 32))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["a", 'q"\\', "\x7f\u2028", "\n\x1f"]
)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
).filter(lambda v: v not in (float("inf"), float("-inf")))
KEYS = st.sampled_from(["args", "a", "zz", "nr", "n", "pi", "pidx", "t", "ts2", "ru", "na me", "decisio", "decision!"])


def line_of(req: dict[str, Any], res: dict[str, Any], target: str = "/x", seq: int = 7) -> bytes:
    draft = Draft(
        ts_ns=EPOCH_NS, agent=AGENT, op=1025, name="ALLOC", target=target, decision="deny", stage="POLICY", rule=None,
        pid=42, req=req, res=res,
    )  # fmt: skip
    return render(draft, seq=seq, run=RUN, prev=bytes(32))[0]


def by_c(line: bytes, seq: int = 7) -> bytes:
    end, hashes = check_lines(line, 0, seq, bytes(32), RUN)
    assert end == (len(line) if hashes else 0)
    return hashes


def finite(value: Any) -> bool:
    text = json.dumps(value)
    return "Infinity" not in text and "NaN" not in text


@given(
    st.dictionaries(KEYS, VALUE, max_size=5).filter(finite),
    st.dictionaries(TEXT, VALUE, max_size=3).filter(finite),
    TEXT,
)
def test_what_c_vouches_for_python_does_too(req: dict[str, Any], res: dict[str, Any], target: str) -> None:
    line = line_of(req, res, target)
    problem, this, _ = _look_at(line, 7, bytes(32), RUN)
    assert not problem
    assert by_c(line) in (b"", this)


def test_what_a_writer_writes_is_checked_in_c() -> None:
    """Otherwise verification would be right, and slow."""
    for req in (
        {}, {"arg": 0, "need": "read", "nr": 257, "tid": -4}, {"count": 9, "last_ts": "x", "target2": "/é\n"},
        {"args": {"value": [1, {"b": None, "c": [True, False]}], "n": 999_999_999_999_999}}, {"zz": [], "a": {}},
    ):  # fmt: skip
        for target in ("/x", '/"\\\b\f\n\r\t\x00\x1f\x7fé€😀', ""):
            assert by_c(line_of(req, {"errno": 13}, target)), (req, target)


CHANGES = [
    (b'"seq":7', b'"seq":07'), (b'"pid":42', b'"pid":042'), (b'"pid":42', b'"pid":-0'), (b'"pid":42', b'"pid":4.2'),
    (b"2026-01-01", b"2026-02-30"), (b"00:00:00.", b"00:00:60."), (b"00:00:00.", b"24:00:00."), (b"Z\"", b"z\""),
    (b'"deny"', b'"Deny"'), (b'"stage":"POLICY"', b'"stage":"POLICY" '), (b'{"seq"', b' {"seq"'),
    (b'"op":1025', b'"op":66561'), (b'"rule":null', b'"rule":nul'), (b'"a":1', b'"a":1,"a":1'), (b'"a":1', b'"a":01'),
    (b'"a":1', b'"a":1e0'), (b'"a":1', b'"b":1'), (b'"a":1', b'"a":"\\u0041"'), (b'"a":1', b'"a":"\\n'),
    (b'"a":1', b'"a":"\\u000A"'), (b'"a":1', b'"a":"\xff"'), (b'"a":1', b'"a":"\xed\xa0\x80"'), (b'"a":1', b'"ts":1'),
    (b'"a":1', b'"pid":1'), (b'"errno":13', b'"errno":13,"a":1'), (b'"}\n', b'"} \n'), (b"\n", b"\r\n"),
]  # fmt: skip


def test_lines_that_are_written_otherwise() -> None:
    """Their hashes are made to fit, as a forger would, so that only the form is wrong."""
    good = line_of({"a": 1, "z": 2}, {"errno": 13})
    assert by_c(good)
    for old, new in CHANGES:
        assert old in good, old
        line = good.replace(old, new, 1)
        assert not by_c(line), line
        assert _look_at(line, 7, bytes(32), RUN)[0], line


@settings(max_examples=300)
@given(st.data())
def test_a_changed_byte_is_never_vouched_for(data: Any) -> None:
    line = bytearray(line_of({"args": {"x": "é", "y": [1, None]}, "zz": "q"}, {"errno": 0}))
    place, byte = data.draw(st.integers(0, len(line) - 1)), data.draw(st.integers(0, 255))
    same = line[place] == byte
    line[place] = byte
    assert bool(by_c(bytes(line))) == same


@given(st.binary(max_size=200))
@example(b"\n")
@example(b'{"seq":7')
@example(b'{"seq":7,"ts":"\n')
def test_rubbish(data: bytes) -> None:
    assert check_lines(data, 0, 7, bytes(32), RUN) == (0, b"")


def test_deep_nesting_is_left_to_python() -> None:
    deep: Any = 1
    for _ in range(60):
        deep = [deep]
    line = line_of({"a": deep}, {})
    assert not by_c(line)
    assert not _look_at(line, 7, bytes(32), RUN)[0]
