"""Floods of equal denials: one entry and a count a second, and none of them lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_kit import EPOCH_NS, Box, event

from akbox.kernel.events import Event, EventError
from akbox.kernel.flood import MAX_KEYS, FloodFilter, read_pending

SECOND = 1_000_000_000


def test_a_flood_is_an_entry_and_a_count_each_second(tmp_path: Path) -> None:
    box = Box(tmp_path)
    for start in range(0, 3 * SECOND, SECOND // 1000):  # 3,000 equal refusals over three seconds, in batches of ten
        if start % (SECOND // 100) == 0:
            box.kernel.record(
                box.kernel.root, [event("/etc/passwd", allow=False, ts=start + i * SECOND // 1000) for i in range(10)]
            )
    box.kernel.flush_events()
    entries = box.entries()
    assert [e["req"].get("count", 1) for e in entries] == [1, 999] * 3
    assert entries[1]["ts"] == "2026-01-01T00:00:00.001000000Z"
    assert entries[1]["req"]["last_ts"] == "2026-01-01T00:00:00.999000000Z"
    (denial,) = box.kernel.denials()
    assert (denial.count, denial.trace_id) == (3000, entries[4]["trace"])
    assert denial.suggested_fix
    assert (denial.op, denial.errno, denial.missing_cap) == ("fs.open", 13, "fs.read")
    box.close()


def test_only_equal_denials_are_merged(tmp_path: Path) -> None:
    box = Box(tmp_path)
    different = [
        event("/a", allow=False), event("/b", allow=False), event("/a", allow=False, tid=8),
        event("/a", allow=False, need=2),
        event("/a", allow=False, error=1), event("/a", allow=False, target2=b"/c"), event("/a", allow=False, op=0x101),
        event("/a"), event("/a"),
    ]  # fmt: skip
    box.kernel.record(box.kernel.root, different)
    assert len(box.entries()) == len(different)
    box.close()
    assert len(box.entries()) == len(different)


def test_pending_counts_are_on_disk_before_record_returns(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.kernel.record(box.kernel.root, [event("/a", allow=False, ts=i) for i in range(5)])
    (held,) = read_pending((tmp_path / "pending").read_bytes())
    assert (held.count, held.ts_ns, held.last_ts_ns) == (4, EPOCH_NS + 1, EPOCH_NS + 4)
    box.kernel.record(box.kernel.root, b"")  # a second has passed long since, by the real clock
    assert list(read_pending((tmp_path / "pending").read_bytes())) == []
    assert [e["req"].get("count") for e in box.entries()] == [None, 4]
    box.close()
    assert not (tmp_path / "pending").exists()


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d[:10], lambda d: b"X" + d[1:], lambda d: d[:-3] + b"zzz"]
)
def test_a_damaged_pending_file_is_an_error(tmp_path: Path, damage: object) -> None:
    flood = FloodFilter(tmp_path / "pending")
    flood.admit([event("/a", allow=False, ts=i) for i in range(3)])
    flood.persist()
    flood.close()
    data = (tmp_path / "pending").read_bytes()
    assert len(read_pending(data)) == 1
    with pytest.raises(EventError):
        read_pending(damage(data))  # type: ignore[operator]


def test_memory_is_bounded() -> None:
    flood = FloodFilter()
    twice = [event(f"/{i}", allow=False) for i in range(MAX_KEYS + 100) for _ in range(2)]
    out = flood.admit(twice)
    assert len(flood._windows) == MAX_KEYS
    assert len(out) == MAX_KEYS + 100 + 100  # what had to make room was written, not forgotten
    assert sum(e.count for e in out) + sum(e.count for e in flood.due()) == len(twice)
    assert flood.idle


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 2 * 10**9)), max_size=60))
def test_every_event_is_counted_once(plan: list[tuple[int, bool, int]]) -> None:
    flood = FloodFilter()
    events: list[Event] = [event(f"/{n}", allow=allow, ts=ts) for n, allow, ts in sorted(plan, key=lambda p: p[2])]
    out = flood.admit(events) + flood.due()
    assert sum(e.count for e in out) == len(events)
    assert [e for e in out if e.decision] == [e for e in events if e.decision]
