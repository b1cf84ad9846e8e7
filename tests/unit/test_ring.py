"""The event ring (native/ring.c): order, wrapping, what a reader gives back, a full ring, and the file itself."""

import os
import struct
import tempfile
import threading
from collections.abc import Iterator

import pytest
from enforcer_run import EVENT, parse_events

from akbox import _native

SIZE = 1 << 16
HEADER = 4096
RUN = bytes(range(16))


class Rig:
    """A ring and the file it lies in."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by the fixture)
        self.ring = _native.Ring(self.file.fileno(), SIZE, RUN)

    def put(self, target: bytes, target2: bytes = b"", arg: int = 0) -> None:
        self.ring.put(0x100, 1, 3, 10, 11, 257, 13, -1, arg, target, target2)

    def targets(self) -> list[str]:
        data = self.ring.read(SIZE)
        self.ring.consume(len(data))
        return [e.target for e in parse_events(data)]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.ring.shut()
    rig.ring.close()
    rig.file.close()


def test_a_record_comes_out_as_it_went_in(rig: Rig) -> None:
    rig.put("/ä/x".encode(), b"/y", arg=2**63)
    data = rig.ring.read(SIZE)
    (event,) = parse_events(data)
    assert (event.op, event.decision, event.need, event.tgid, event.tid) == (0x100, 1, 3, 10, 11)
    assert (event.nr, event.error, event.rule, event.arg) == (257, 13, 2**32 - 1, 2**63)
    assert (event.target, event.target2) == ("/ä/x", "/y")
    assert len(data) % 8 == 0
    assert data[64 + 5 + 2 :] == bytes(len(data) - 71)


def test_reading_does_not_consume(rig: Rig) -> None:
    rig.put(b"/a")
    rig.put(b"/b")
    first = rig.ring.read(SIZE)
    assert rig.ring.read(SIZE) == first
    rig.ring.consume(len(first) // 2)
    assert [e.target for e in parse_events(rig.ring.read(SIZE))] == ["/b"]


@pytest.mark.parametrize("n", [1, 71, 1 << 20, -1])
def test_half_a_record_cannot_be_consumed(rig: Rig, n: int) -> None:
    rig.put(b"/a")
    with pytest.raises(ValueError, match="end of a record"):
        rig.ring.consume(n)
    assert rig.targets() == ["/a"]


def test_wraps_many_times_without_losing_or_mixing(rig: Rig) -> None:
    sent = [f"/{'x' * (i * 37 % 4000)}/{i}" for i in range(400)]
    seen: list[str] = []
    for start in range(0, 400, 8):
        for target in sent[start : start + 8]:
            rig.put(target.encode())
        seen += rig.targets()
    assert seen == sent


def test_targets_are_cut_at_4095_bytes(rig: Rig) -> None:
    rig.put(b"x" * 5000, b"y" * 5000)
    (event,) = parse_events(rig.ring.read(SIZE))
    assert (len(event.target), len(event.target2)) == (4095, 4095)


def test_a_full_ring_makes_writers_wait_and_loses_nothing(rig: Rig) -> None:
    count = 2000
    writers = [
        threading.Thread(target=lambda w=w: [rig.put(b"/" + b"x" * 200, arg=w * count + i) for i in range(count)])
        for w in range(3)
    ]
    for writer in writers:
        writer.start()
    seen: list[int] = []
    while len(seen) < 3 * count:
        assert rig.ring.wait(5000)
        data = rig.ring.read(1 << 14)
        seen += [e.arg for e in parse_events(data)]
        rig.ring.consume(len(data))
    for writer in writers:
        writer.join()
    assert sorted(seen) == list(range(3 * count))
    for w in range(3):
        mine = [n for n in seen if n // count == w]
        assert mine == sorted(mine)


def test_shut_frees_a_blocked_writer_and_refuses_the_next(rig: Rig) -> None:
    failed = threading.Event()

    def fill() -> None:
        try:
            while True:
                rig.put(b"/" + b"x" * 3000)
        except BrokenPipeError:
            failed.set()

    writer = threading.Thread(target=fill)
    writer.start()
    while len(rig.ring.read(SIZE)) < SIZE - 2 * 3100:
        rig.ring.wait(1)
    rig.ring.shut()
    writer.join(10)
    assert failed.is_set()
    with pytest.raises(BrokenPipeError):
        rig.put(b"/late")
    assert rig.ring.read(SIZE)  # what was written before stays readable


def test_wait_ends_with_the_time_or_a_shut(rig: Rig) -> None:
    assert rig.ring.wait(1) is False
    closer = threading.Thread(target=rig.ring.shut)
    closer.start()
    assert rig.ring.wait(60_000) is False
    closer.join()


def test_the_file_is_what_ring_h_says(rig: Rig) -> None:
    rig.put(b"/a")
    data = os.pread(rig.file.fileno(), HEADER + SIZE, 0)
    magic, size, head, tail, run = struct.unpack_from("<8sQQQ16s", data)
    assert (magic, size, head, tail, run) == (b"AKRING1\0", SIZE, 72, 0, RUN)
    assert len(data) == HEADER + SIZE
    assert EVENT.unpack_from(data, HEADER)[0] == 72


@pytest.mark.parametrize("size", [0, 4096, SIZE + 1])
def test_bad_sizes_are_refused(size: int) -> None:
    with tempfile.TemporaryFile() as file, pytest.raises((OSError, ValueError)):
        _native.Ring(file.fileno(), size, RUN)


def test_a_closed_ring_says_so(rig: Rig) -> None:
    rig.ring.close()
    with pytest.raises(ValueError, match="closed"):
        rig.ring.read(SIZE)
    rig.ring = _native.Ring(rig.file.fileno(), SIZE, RUN)


def test_a_short_read_is_an_error(rig: Rig) -> None:
    with pytest.raises(ValueError, match="longest record"):
        rig.ring.read(100)
