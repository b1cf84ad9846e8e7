"""The framed channel's format (design 08): a 20-byte header and JSON. Parsing and packing only; who may speak on a
channel is its transport's business (akbox/linux/channel.py).

Little-endian: magic u16 0x414B, version u8 1, flags u8, payload length u32, sequence u64, CRC-32C u32 over the first 16
bytes and the payload.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from akbox.kernel.codes import Code
from akbox.kernel.ops import CALL_FIRST, CALL_LAST, Op
from akbox.kernel.replay import ReplayWindow
from akbox.kernel.strictjson import StrictJSONError, parse

if TYPE_CHECKING:
    from akbox.kernel.kernel import Kernel

HEADER = struct.Struct("<HBBIQI")
MAGIC, VERSION = 0x414B, 1
REQUEST, RESPONSE, ERROR, BATCH = 1, 2, 4, 16
MAX_REQUEST, MAX_REPLY = 1 << 20, 16 << 20
MAX_BATCH = 100
HELLO = "HELLO"
_COVERED = 16


class Frame(msgspec.Struct, frozen=True):
    flags: int
    sequence: int
    payload: bytes


class FrameError(Exception):
    """The bytes are no frame, or one that may not be: it is answered with an error frame, and the channel is closed."""

    def __init__(self, code: Code, message: str, sequence: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.sequence = sequence


def pack(flags: int, sequence: int, payload: bytes) -> bytes:
    from akbox._native import crc32c

    head = HEADER.pack(MAGIC, VERSION, flags, len(payload), sequence, 0)[:_COVERED]
    return head + crc32c(payload, crc32c(head)).to_bytes(4, "little") + payload


def check_header(header: bytes) -> tuple[int, int, int, int]:
    """(flags, payload length, sequence, checksum) of a request's header. Raises FrameError."""
    magic, version, flags, length, sequence, crc = HEADER.unpack(header)
    if magic != MAGIC:
        raise FrameError(Code.IPC_INVALID, f"bad magic {magic:#06x}")
    if version != VERSION:
        raise FrameError(Code.IPC_INVALID, f"version {version} is not {VERSION}", sequence)
    if flags & ~(REQUEST | BATCH) or not flags & REQUEST:
        raise FrameError(Code.IPC_INVALID, f"flags {flags:#04x} are no request's", sequence)
    if length > MAX_REQUEST:
        raise FrameError(Code.FRAME_TOO_LARGE, f"a request has at most {MAX_REQUEST} bytes, not {length}", sequence)
    return flags, length, sequence, crc


def read_frame(read: Callable[[int], bytes]) -> Frame | None:
    """One request; `read(n)` gives n bytes, or fewer at the end. None: the channel was closed between two frames.
    Raises FrameError, FRAME_INCOMPLETE for one that was cut."""
    from akbox._native import crc32c

    header = read(HEADER.size)
    if not header:
        return None
    if len(header) < HEADER.size:
        raise FrameError(Code.FRAME_INCOMPLETE, f"a header of {len(header)} bytes")
    flags, length, sequence, crc = check_header(header)
    payload = read(length) if length else b""
    if len(payload) < length:
        raise FrameError(Code.FRAME_INCOMPLETE, f"{len(payload)} of {length} bytes", sequence)
    if crc32c(payload, crc32c(header[:_COVERED])) != crc:
        raise FrameError(Code.IPC_INVALID, "the checksum is wrong", sequence)
    return Frame(flags, sequence, payload)


def error_frame(error: FrameError) -> bytes:
    body = {"ok": False, "error": {"code": int(error.code), "name": error.code.name, "message": error.message}}
    return pack(RESPONSE | ERROR, error.sequence, msgspec.json.encode(body))


class Conversation:
    """One connection: HELLO, then requests, each sequence number once. `who(token)` is the agent that a HELLO's token
    stands for, or None."""

    def __init__(self, kernel: Kernel, who: Callable[[str], bytes | None]) -> None:
        self._kernel = kernel
        self._who = who
        self._window = ReplayWindow()
        self.agent: bytes | None = None

    def answer(self, frame: Frame) -> bytes:
        """The frame that answers. Raises FrameError."""
        if frame.sequence == 0 or not self._window.admit(frame.sequence):
            raise FrameError(Code.REPLAY, f"sequence {frame.sequence} was used before", frame.sequence)
        if self.agent is None:
            return self._hello(frame)
        if not frame.flags & BATCH:
            failed, body = self._one(frame.payload)
            return self._pack(RESPONSE | (ERROR if failed else 0), frame.sequence, body)
        try:
            requests = parse(frame.payload)
        except StrictJSONError as error:
            raise FrameError(Code.JSON_INVALID, str(error), frame.sequence) from error
        if not isinstance(requests, list) or not 0 < len(requests) <= MAX_BATCH:
            raise FrameError(Code.SCHEMA_INVALID, f"a batch is a list of 1 to {MAX_BATCH}", frame.sequence)
        replies = [self._one(msgspec.json.encode(request))[1] for request in requests]
        return self._pack(RESPONSE | BATCH, frame.sequence, b"[" + b",".join(replies) + b"]")

    def _hello(self, frame: Frame) -> bytes:
        try:
            hello = parse(frame.payload)
        except StrictJSONError as error:
            raise FrameError(Code.JSON_INVALID, str(error), frame.sequence) from error
        if not isinstance(hello, dict) or hello.get("op") != HELLO:
            raise FrameError(Code.IPC_INVALID, f"the first frame is {HELLO}", frame.sequence)
        token = hello.get("token")
        agent = self._who(token) if isinstance(token, str) else None
        if agent is None:
            raise FrameError(Code.CAP_INVALID, "the token is not this channel's", frame.sequence)
        self.agent = agent
        result = {"agent": agent.hex(), "run_id": self._kernel.run_id.hex(), "version": VERSION}
        return pack(RESPONSE, frame.sequence, msgspec.json.encode({"ok": True, "result": result}))

    def _one(self, payload: bytes) -> tuple[bool, bytes]:
        """(has it failed, the reply's JSON) of one request; what names no call is answered like any failed call."""
        assert self.agent is not None
        reply = self._kernel.call(self.agent, _number(payload), payload)
        return bool(reply.errno), reply.body

    @staticmethod
    def _pack(flags: int, sequence: int, body: bytes) -> bytes:
        if len(body) > MAX_REPLY:
            raise FrameError(Code.FRAME_TOO_LARGE, f"the reply has {len(body)} bytes, over {MAX_REPLY}", sequence)
        return pack(flags, sequence, body)


def _number(payload: bytes) -> int:
    """The number of the call that a request's `op` names; 0, which no call has, for anything else (the pipeline says
    what is wrong with it, and logs it)."""
    try:
        value: Any = parse(payload)
    except StrictJSONError:
        return CALL_FIRST  # its PARSE stage fails the same way
    op = value.get("op") if isinstance(value, dict) else None
    if isinstance(op, int) and not isinstance(op, bool):
        return op if CALL_FIRST <= op <= CALL_LAST else 0
    try:
        number = int(Op[str(op).upper()])
    except KeyError:
        return 0
    return number if CALL_FIRST <= number <= CALL_LAST else 0
