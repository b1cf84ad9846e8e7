"""The framed channel: every way in which a frame can be wrong, and a conversation that goes well."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_kit import Box

from akbox._native import crc32c
from akbox.kernel.codes import Code
from akbox.kernel.frames import (
    BATCH,
    ERROR,
    HEADER,
    MAX_REQUEST,
    REQUEST,
    RESPONSE,
    Conversation,
    Frame,
    FrameError,
    pack,
    read_frame,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "sdk" / "python"))

from authority_nanos.channel import crc32c as sdk_crc32c
from authority_nanos.channel import pack as sdk_pack

TOKEN = "a" * 64


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.close()


class Talk:
    def __init__(self, box: Box, *, hello: bool = True) -> None:
        self.talk = Conversation(box.kernel, lambda token: box.kernel.root if token == TOKEN else None)
        self.sequence = 0
        if hello:
            assert self.say({"op": "HELLO", "token": TOKEN})[1]["ok"] is True

    def say(self, value: Any, *, sequence: int | None = None, flags: int = REQUEST) -> tuple[int, Any]:
        self.sequence = self.sequence + 1 if sequence is None else sequence
        frame = read_frame(io.BytesIO(pack(flags, self.sequence, json.dumps(value).encode())).read)
        assert frame is not None
        reply = self.talk.answer(frame)
        flags, length, answered = HEADER.unpack(reply[:20])[2:5]
        assert (answered, length) == (self.sequence, len(reply) - 20)
        assert crc32c(reply[20:], crc32c(reply[:16])) == HEADER.unpack(reply[:20])[5]
        return flags, json.loads(reply[20:])


def test_a_conversation(box: Box) -> None:
    talk = Talk(box)
    assert talk.say({"op": "ALLOC", "args": {"type": "t", "value": 1}}) == (
        RESPONSE, {"ok": True, "result": {"ptr": 1, "version": 1}},
    )  # fmt: skip
    assert talk.say({"op": 1024, "args": {"ptr": 1}})[1]["result"]["value"] == 1
    flags, reply = talk.say({"op": "READ", "args": {"ptr": 9}})
    assert (flags, reply["error"]["name"]) == (RESPONSE | ERROR, "NOT_FOUND")
    flags, replies = talk.say(
        [{"op": "READ", "args": {"ptr": 1}}, {"op": "READ", "args": {"ptr": 2}}, {"op": "X"}], flags=17
    )
    assert flags == RESPONSE | BATCH
    assert [r.get("error", {}).get("name") for r in replies] == [None, "NOT_FOUND", "NOT_IMPLEMENTED"]
    for bad in ({}, {"op": "HELLO"}, {"op": True}, {"op": 1023}, {"op": "READ", "args": {"ptr": "x"}}, [], 5):
        flags, reply = talk.say(bad)
        assert flags & ERROR, bad
        assert reply["error"]["code"] <= -4001


def refused(call: Any) -> Code:
    with pytest.raises(FrameError) as caught:
        call()
    return caught.value.code


def test_hello_comes_first(box: Box) -> None:
    for value, code in (
        ({"op": "READ", "args": {"ptr": 1}}, Code.IPC_INVALID), ({"op": "HELLO"}, Code.CAP_INVALID),
        ({"op": "HELLO", "token": "b" * 64}, Code.CAP_INVALID), ({"op": "HELLO", "token": 5}, Code.CAP_INVALID),
        ([], Code.IPC_INVALID),
    ):  # fmt: skip
        talk = Talk(box, hello=False)
        assert refused(lambda t=talk, v=value: t.say(v)) == code
        assert talk.talk.agent is None
    assert box.entries() == []  # nobody was there to have done something


def test_a_replay(box: Box) -> None:
    talk = Talk(box)
    talk.say({"op": "COMMIT"}, sequence=10)
    for again in (10, 1, 0):
        assert refused(lambda n=again: talk.say({"op": "COMMIT"}, sequence=n)) == Code.REPLAY
    talk.say({"op": "COMMIT"}, sequence=5)  # late, but not used yet


def test_batches_are_bounded(box: Box) -> None:
    talk = Talk(box)
    for bad in ([], {}, [1] * 101):
        assert refused(lambda b=bad: talk.say(b, flags=REQUEST | BATCH)) == Code.SCHEMA_INVALID


GOOD = pack(REQUEST, 7, b'{"op":"COMMIT"}')


def read(data: bytes) -> Frame | None:
    return read_frame(io.BytesIO(data).read)


def test_a_torn_frame() -> None:
    assert read(b"") is None
    for length in range(1, len(GOOD)):
        assert refused(lambda n=length: read(GOOD[:n])) == Code.FRAME_INCOMPLETE


def test_every_flipped_bit_is_found() -> None:
    for n in range(len(GOOD)):
        for bit in range(8):
            changed = GOOD[:n] + bytes([GOOD[n] ^ 1 << bit]) + GOOD[n + 1 :]
            assert refused(lambda c=changed: read(c)) in (Code.IPC_INVALID, Code.FRAME_TOO_LARGE, Code.FRAME_INCOMPLETE)


def test_an_oversize_frame_is_refused_by_its_header() -> None:
    head = HEADER.pack(0x414B, 1, REQUEST, MAX_REQUEST + 1, 1, 0)
    assert refused(lambda: read(head)) == Code.FRAME_TOO_LARGE
    for flags in (0, RESPONSE, REQUEST | RESPONSE, REQUEST | ERROR, 0xFF):
        assert refused(lambda f=flags: read(pack(f, 1, b"{}"))) == Code.IPC_INVALID


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_crash_the_parser(data: bytes) -> None:
    for start in (b"", GOOD[:3], GOOD[:16]):
        try:
            read(start + data)
        except FrameError as error:
            assert error.code in (Code.IPC_INVALID, Code.FRAME_TOO_LARGE, Code.FRAME_INCOMPLETE)  # noqa: PT017


@given(st.binary(max_size=300))
def test_both_checksums_agree(data: bytes) -> None:
    assert crc32c(data) == sdk_crc32c(data)
    assert sdk_pack(1, 3, data) == pack(1, 3, data)
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the polynomial
