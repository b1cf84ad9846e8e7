"""Streams are split where they are to be split, however their bytes come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akbox.inference.sse import MAX_EVENT_BYTES, Splitter
from akbox.inference.wire import WireError

LINE = st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"n").replace(b"\r", b"r"))
EVENT = st.tuples(st.sampled_from((b"", b"message_start")), st.lists(LINE, min_size=1, max_size=3))


@given(st.lists(EVENT, max_size=6), st.sampled_from((b"\n", b"\r\n")), st.lists(st.integers(1, 9), max_size=80))
def test_any_cut_gives_the_same_events(made: list[tuple[bytes, list[bytes]]], end: bytes, cuts: list[int]) -> None:
    stream = b""
    for name, lines in made:
        stream += (b"event: " + name + end if name else b"") + b"".join(b"data: " + x + end for x in lines) + end
    splitter, seen, rest = Splitter(), [], stream
    for size in cuts:
        seen += splitter.feed(rest[:size])
        rest = rest[size:]
    seen += splitter.feed(rest)
    assert b"".join(raw for _, _, raw in seen) == stream
    assert [(name, data) for name, data, _ in seen] == [(name, b"\n".join(lines)) for name, lines in made]
    assert splitter.rest == b""


def test_comments_and_fields_without_a_blank() -> None:
    assert [e[:2] for e in Splitter().feed(b": ping\n\ndata:x\nid: 7\n\n")] == [(b"", b""), (b"", b"x")]


def test_an_event_without_an_end_is_refused() -> None:
    splitter = Splitter()

    def feed() -> None:
        for _ in range(MAX_EVENT_BYTES // (1 << 20) + 2):
            list(splitter.feed(b"x" * (1 << 20)))

    with pytest.raises(WireError):
        feed()
