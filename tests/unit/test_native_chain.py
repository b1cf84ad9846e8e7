"""The audit chain's hot path in C (native/chain.c, merkle.c, sha256.c) against its twins: hashlib, the Python renderer
and the Python tree. What a reader of the log sees may not depend on which of them wrote it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kernel_kit import EPOCH_NS, Box, event

from akbox import _native
from akbox.kernel.audit import AuditError, AuditLog
from akbox.kernel.batch import BatchRenderer, admit, scan
from akbox.kernel.entry import render
from akbox.kernel.event_lines import EventRenderer, event_draft
from akbox.kernel.events import ALLOW, HEADER_BYTES, NO_RULE, Event, EventError, pack_event, parse_events
from akbox.kernel.flood import FloodFilter
from akbox.kernel.merkle import MerkleTree
from akbox.kernel.ops import NAMES
from akbox.kernel.verify import verify

RUN, AGENT = bytes(range(16)), bytes(range(16, 32))
RULES = ("fs.read /app/**", 'fs.write "ä\\\n"', "net.connect é")
SECOND = 1_000_000_000

# FIPS 180-4's own examples (one block, two blocks) and the empty message.
FIPS = {
    b"": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    b"abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq":
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
}  # fmt: skip


@pytest.mark.parametrize("portable", [False, True])
def test_sha256_vectors(portable: bool) -> None:
    for message, digest in FIPS.items():
        assert _native.sha256(message, portable=portable).hex() == digest
    million = hashlib.sha256(b"a" * 1_000_000).digest()
    assert _native.sha256(b"a" * 1_000_000, portable=portable) == million


@pytest.mark.parametrize("portable", [False, True])
def test_sha256_at_every_length_around_the_blocks(portable: bool) -> None:
    data = os.urandom(400)
    for length in range(len(data)):
        assert _native.sha256(data[:length], portable=portable) == hashlib.sha256(data[:length]).digest(), length


@given(st.integers(0, 300), st.lists(st.integers(0, 90), max_size=5))
def test_the_tree_in_c_is_the_tree_in_python(start: int, more: list[int]) -> None:
    leaves = [hashlib.sha256(bytes([n & 255, n >> 8])).digest() for n in range(start + sum(more))]
    plain, fast = MerkleTree(), MerkleTree()
    at = 0
    for count in (start, *more):
        for leaf in leaves[at : at + count]:
            plain.append(leaf)
        fast.extend(b"".join(leaves[at : at + count]))
        at += count
        assert (fast.size, fast.root()) == (plain.size, plain.root())


@pytest.mark.parametrize(
    "args", [(b"", 1, b""), (bytes(32), 0, b""), (bytes(32), 1, bytes(31)), (bytes(31), 1, bytes(32)),
             (bytes(32 * 64), 2**64 - 1, bytes(32))],
)  # fmt: skip
def test_an_edge_that_is_none_is_refused(args: tuple[bytes, int, bytes]) -> None:
    with pytest.raises(ValueError):
        _native.merkle_extend(*args)


# ---- lines -----------------------------------------------------------------------------------------------------------

ASTRAY = [
    b"", b"/", b'/"', b"/\\", b"/\x7f", bytes(range(1, 32)), b"\0", b"/\xff", b"/\xc0\x80", b"/\xed\xa0\x80",
    b"\xe2\x82",
    b"\xf0\x9f\x98\x80", b"\xf4\x90\x80\x80", b"\xf0\x80\x80\x80", b"\xe0\x9f\xbf", b"a\x80b", "/é€😀".encode(),
    "/\u2028\u2029\ufeff\uffff".encode(), b"/" + b"x" * 4094, b"\xff" * 4095, b"\x01" * 4095, b"\x80" * 65535,
    b"\xed\x9f\xbf\xee\x80\x80", b"\xf0\x9f\x98/", b"\xe2\x82/\xc3",
]  # fmt: skip
TEXTS = st.one_of(st.binary(max_size=60), st.text(max_size=30).map(lambda t: t.encode("utf-8", "surrogatepass")))
INT32 = st.integers(-(2**31), 2**31 - 1)


def events_of(names: st.SearchStrategy[bytes], decisions: st.SearchStrategy[int]) -> st.SearchStrategy[Event]:
    return st.builds(
        Event,
        op=st.one_of(st.sampled_from(sorted(NAMES)), st.integers(1, 0xFFFF)),
        decision=decisions,
        need=st.integers(0, 7),
        ts_ns=st.one_of(st.integers(EPOCH_NS, EPOCH_NS + 2 * SECOND), st.integers(0, 2**64 - 1)),
        tgid=INT32,
        tid=INT32,
        nr=INT32,
        error=st.one_of(st.integers(0, 133), INT32),
        rule=st.sampled_from([0, 1, 2, 3, 77, NO_RULE - 1, NO_RULE]),
        missing=st.integers(0, 7),
        arg=st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 2**53 - 1, 2**53])),
        target=names,
        target2=st.one_of(st.just(b""), names),
    )


EVENTS = events_of(TEXTS, st.integers(0, 2))


def in_python(events: list[Event], seq: int, prev: bytes, rules: tuple[str, ...] = RULES) -> tuple[bytes, bytes]:
    lines, hashes = EventRenderer(RUN, rules).render(events, agent=AGENT, seq=seq, prev=prev)
    return "".join(lines).encode(), b"".join(hashes)


def in_c(records: bytes, seq: int, prev: bytes, rules: tuple[str, ...] = RULES) -> tuple[bytes, bytes]:
    return BatchRenderer(RUN, rules).render([records], agent=AGENT, seq=seq, prev=prev)


@given(
    st.lists(EVENTS, max_size=6),
    st.one_of(st.integers(1, 2000), st.integers(1, 2**63)),
    st.binary(min_size=32, max_size=32),
)
def test_c_writes_what_python_writes(events: list[Event], seq: int, prev: bytes) -> None:
    assert in_c(b"".join(map(pack_event, events)), seq, prev) == in_python(events, seq, prev)


@pytest.mark.parametrize("name", ASTRAY, ids=lambda name: name[:12].hex())
@pytest.mark.parametrize("second", [b"", b"/plain", b"\xff\n"])
def test_strange_names(name: bytes, second: bytes) -> None:
    events = [event(name, target2=second), event(b"/after"), event(second, target2=name, allow=False)]
    lines, hashes = in_c(b"".join(map(pack_event, events)), 1, bytes(32))
    assert (lines, hashes) == in_python(events, 1, bytes(32))
    prev = bytes(32)
    for seq, (one, line) in enumerate(zip(events, lines.splitlines(keepends=True), strict=True), 1):
        plain, prev = render(event_draft(one, AGENT, RULES), seq=seq, run=RUN, prev=prev)
        assert line == plain
        assert json.loads(line)["target"] == one.target.decode("utf-8", "backslashreplace")


def test_times_at_the_edges_of_days_and_years() -> None:
    days = [0, 1, 58, 59, 60, 364, 365, 789, 10956, 11015, 11016, 11017, 20513, 47540, 47541, 47542, 213502]
    stamps = [day * 86400 * SECOND + offset for day in days for offset in (0, 86400 * SECOND - 1)] + [2**64 - 1]
    events = [event(b"/t", ts=ts - EPOCH_NS) for ts in stamps]
    assert in_c(b"".join(map(pack_event, events)), 1, bytes(32)) == in_python(events, 1, bytes(32))


def test_every_rule_number_and_no_rules() -> None:
    events = [event(b"/r", rule=rule) for rule in (0, 1, 2, 3, NO_RULE - 1, NO_RULE)]
    records = b"".join(map(pack_event, events))
    for rules in (RULES, RULES[:1], ()):
        assert in_c(records, 1, bytes(32), rules) == in_python(events, 1, bytes(32), rules)


@pytest.mark.parametrize(
    ("names", "rules"),
    [(((2, b"x"), (1, b"y")), ()), (((1, b"x"), (1, b"y")), ()), (((1, "x"),), ()), ((1,), ()), ((), ("x",))],
)
def test_tables_that_are_none_are_refused(names: Any, rules: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        _native.Chain(RUN, names, rules)


@pytest.mark.parametrize(
    ("agent", "seq", "prev"), [(b"", 1, bytes(32)), (AGENT, 0, bytes(32)), (AGENT, 1, bytes(31)), (AGENT, 1, b"")]
)
def test_a_chain_begins_somewhere(agent: bytes, seq: int, prev: bytes) -> None:
    with pytest.raises(ValueError):
        _native.Chain(RUN, (), ()).render(pack_event(event()), agent, seq, prev)


# ---- hostile records -------------------------------------------------------------------------------------------------


def verdicts(data: bytes) -> list[object]:
    """What Python, the scan and the renderer say: the events' number, or that it is damaged."""
    out: list[object] = []
    for count in (
        lambda: len(list(parse_events(data))),
        lambda: sum(1 for _ in parse_events(data)) if scan(data) is not None else -1,
        lambda: len(in_c(data, 1, bytes(32))[1]) // 32,
    ):
        try:
            out.append(count())
        except EventError:
            out.append("damaged")
    return out


@given(st.lists(EVENTS, min_size=1, max_size=4), st.data())
def test_damaged_records_are_refused_and_never_read_past(events: list[Event], data: Any) -> None:
    padding = (16).to_bytes(4, "little") + bytes(12)
    raw = bytearray(padding.join(map(pack_event, events)))
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for damaged in (bytes(raw), bytes(raw[:cut])):
        python, scanned, rendered = verdicts(damaged)
        assert python == scanned == rendered


@given(st.binary(max_size=300))
@example(b"\x08\0\0\0\0\0\0\0")
@example(b"\x08\0\0\0\1\0\0\0")
@example(b"\x40\0\0\0\0\1\1\0" + bytes(40) + b"\1\0\0\0" + bytes(12))
@example(b"\0" * 8)
@example(b"\xff" * 64)
def test_rubbish_is_refused_by_all_or_none(data: bytes) -> None:
    python, scanned, rendered = verdicts(data)
    assert python == scanned == rendered


def test_rubbish_changes_nothing(tmp_path: Path) -> None:
    box = Box(tmp_path)
    good = pack_event(event("/app/a")) + pack_event(event("/etc/x", allow=False)) * 3
    with pytest.raises(AuditError, match="ring is damaged"):
        box.kernel.record(box.kernel.root, good + b"\xff" * 72)
    assert box.entries() == []
    assert box.log.tick(box.kernel.root, everything=True) == []
    box.kernel.record(box.kernel.root, good)
    assert [e["decision"] for e in box.entries()] == ["allow", "deny"]
    box.close()


# ---- batches in a log ------------------------------------------------------------------------------------------------

FEW_NAMES = st.sampled_from([b"/a", b"/b", b"/\xff"])


@given(st.lists(st.lists(events_of(FEW_NAMES, st.sampled_from([0, 1, 1, 2])), max_size=12), max_size=4))
def test_mixed_batches_are_admitted_as_the_flood_filter_does(batches: list[list[Event]]) -> None:
    """Against the plain way: the filter over all events, the plain renderer over what it lets through."""
    fast, plain = FloodFilter(), FloodFilter()
    clock = EPOCH_NS
    renderer = BatchRenderer(RUN, RULES)
    seq, prev = 1, bytes(32)
    for batch in batches:
        for one in batch:
            clock += one.ts_ns % (SECOND // 3)
            one.ts_ns = clock
            one.op, one.tid, one.nr, one.need, one.error, one.rule, one.missing = 0x100, 1, 257, 1, 13, 0, 1
        records = b"".join(map(pack_event, batch))
        refused = scan(records)
        admitted = admit(records, refused, fast)
        wanted = plain.admit(batch)
        lines, hashes = renderer.render(admitted.parts, agent=AGENT, seq=seq, prev=prev)
        assert (lines, hashes) == in_python(wanted, seq, prev)
        places = {id(one): place for place, one in enumerate(wanted)}
        assert admitted.refused == [(one, places.get(id(one))) for one in batch if one.decision != ALLOW]
        seq += len(wanted)
        prev = hashes[-32:] or prev


def test_refusals_get_the_trace_of_their_entry(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.kernel.record(box.kernel.root, [event("/etc/flood", allow=False, ts=i) for i in range(4)])
    batch = [
        event("/app/1", ts=SECOND), event("/etc/1", allow=False, ts=2 * SECOND), event("/app/2", ts=2 * SECOND),
        event("/etc/1", allow=False, ts=2 * SECOND + 1), event("/etc/2", allow=False, ts=2 * SECOND + 2),
        event("/app/3", ts=3 * SECOND), event("/etc/3", allow=False, ts=3 * SECOND + 1),
    ]  # fmt: skip
    box.kernel.record(box.kernel.root, batch)
    assert [(e["target"], e["req"].get("count")) for e in box.entries()] == [
        ("/etc/flood", None), ("/app/1", None), ("/etc/flood", 3), ("/etc/1", None), ("/app/2", None), ("/etc/2", None),
        ("/app/3", None), ("/etc/1", None), ("/etc/3", None),
    ]  # fmt: skip
    traces = {e["trace"]: e["target"] for e in box.entries()}
    for denial in box.kernel.denials():
        assert traces[denial.trace_id] == denial.target
    assert {d.target: d.count for d in box.kernel.denials()} == {"/etc/flood": 4, "/etc/1": 2, "/etc/2": 1, "/etc/3": 1}
    box.close()


def test_what_c_wrote_verifies_and_continues(tmp_path: Path) -> None:
    """By akbox's verifier and by the independent one, over batches of all sizes, with authority calls in between."""
    names = [name.replace(b"\0", b"") for name in ASTRAY if len(name) < 5000]
    total = 0
    for _ in range(2):
        log = AuditLog(tmp_path / "audit.jsonl", RUN, rules=RULES)
        for size in (1, 2, 300, 1500, 7):
            batch = [event(names[i % len(names)], allow=i % 5 > 0, ts=total + i, tid=total + i) for i in range(size)]
            log.append_records(b"".join(map(pack_event, batch)), AGENT)
            log.append(event_draft(event("/app/call", ts=total), AGENT, RULES))
            total += size + 1
        log.close(AGENT)
    found = verify(tmp_path / "audit.jsonl", tmp_path / "checkpoints")
    assert (found.ok, found.entries) == (True, total)
    assert found.checkpoints >= 2  # at each end; in between when a thread of their own gets to it
    script = Path(__file__).parents[2] / "scripts/verify-log"
    files = [str(tmp_path / "audit.jsonl"), str(tmp_path / "checkpoints")]
    done = subprocess.run([sys.executable, str(script), *files], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"ok: {total} entries"


def test_entries_are_read_back_from_any_place(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", RUN, rules=RULES)
    for n in range(40):
        log.append_records(b"".join(pack_event(event(f"/app/{n}/{i}")) for i in range(1 + n * 7 % 40)), AGENT)
    last, _ = log.head()
    for first in (1, 2, 255, 256, 257, 258, 400, last - 1, last):
        assert [e.seq for e in log.entries(first)] == list(range(first, last + 1))
    assert len(log._index) <= last // 256 + 1
    log.close()


def test_threads_that_render_at_once_do_not_mix(tmp_path: Path) -> None:
    """The chain's tables are shared and the work is done without the GIL."""
    names = tuple((op, NAMES[op].encode()) for op in sorted(NAMES))
    chain = _native.Chain(RUN, names, tuple(map(msgspec.json.encode, RULES)))
    sets = [[event(f"/{n}/{i}", ts=i * SECOND, op=0x100 + n) for i in range(500)] for n in range(4)]
    wanted = [in_python(events, 1, bytes(32)) for events in sets]
    found: list[list[tuple[bytes, bytes]]] = [[] for _ in sets]

    def work(n: int) -> None:
        records = b"".join(map(pack_event, sets[n]))
        for _ in range(20):
            found[n].append(chain.render(records, AGENT, 1, bytes(32)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(sets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, results in enumerate(found):
        assert results == [wanted[n]] * 20


def test_a_killed_writer_leaves_whole_entries_and_a_torn_tail(tmp_path: Path) -> None:
    """Whatever part of a batch's one write reached the file: the entries before the cut verify."""
    log = AuditLog(tmp_path / "audit.jsonl", RUN, rules=RULES)
    log.append_records(b"".join(pack_event(event(f"/app/{i}")) for i in range(20)), AGENT)
    log.close()
    whole = (tmp_path / "audit.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    cut = tmp_path / "cut.jsonl"
    for end, following in pairwise([0, *ends]):
        for at in (end, end + 1, following - 1):
            cut.write_bytes(whole[:at])
            found = verify(cut)
            assert found.entries == ends.index(end) + 1 if end else found.entries == 0
            assert (found.ok, found.torn_tail) == (at == end, at - end)


def test_a_record_is_never_shorter_than_its_header() -> None:
    for length in range(8, HEADER_BYTES, 8):
        head = length.to_bytes(4, "little") + b"\0\1\1\0"
        assert verdicts(head + bytes(length - 8)) == ["damaged"] * 3
