"""The log: its exact bytes, its chain, its durability and what happens when it can't be written."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_kit import EPOCH_NS, event

from akbox.kernel import audit
from akbox.kernel.audit import AuditError, AuditLog
from akbox.kernel.checkpoint import read_checkpoints
from akbox.kernel.entry import Draft, render
from akbox.kernel.event_lines import EventRenderer, event_draft
from akbox.kernel.events import Event, EventError, pack_event, parse_events
from akbox.kernel.logwriter import PAGE_BYTES, whole_lines
from akbox.kernel.redact import MASK, Redactor
from akbox.kernel.verify import verify

RUN, AGENT = bytes(range(16)), bytes(range(16, 32))
RULES = ("fs.read /app/**",)


def draft(target: str = "/x", **req: Any) -> Draft:
    return Draft(
        ts_ns=EPOCH_NS, agent=AGENT, op=0x100, name="fs.open", target=target, decision="allow", req=req, res={}
    )


def opened(path: Path, **options: Any) -> AuditLog:
    return AuditLog(path / "audit.jsonl", RUN, rules=RULES, **options)


def test_golden_line() -> None:
    """Every byte of the format; the hashes are recomputed here by hand."""
    line, this = render(
        Draft(
            ts_ns=EPOCH_NS + 5, agent=AGENT, op=256, name="fs.open", target="/app/é", decision="allow",
            rule="fs.read /app/**", pid=42, req={"nr": 257}, res={"errno": 0},
        ),
        seq=1, run=RUN, prev=bytes(32),
    )  # fmt: skip
    hashed = (
        '{"decision":"allow","name":"fs.open","nr":257,"pid":42,"rule":"fs.read /app/**","stage":null,'
        '"target":"/app/é","ts":"2026-01-01T00:00:00.000000005Z"}'
    )
    req_hash = hashlib.sha256(hashed.encode()).digest()
    res_hash = hashlib.sha256(b'{"errno":0}').digest()
    packed = (1).to_bytes(8, "little") + AGENT + RUN + (256).to_bytes(2, "little") + req_hash + res_hash
    assert this == hashlib.sha256(bytes(32) + packed).digest()
    assert line.decode() == (
        '{"seq":1,"ts":"2026-01-01T00:00:00.000000005Z","agent":"101112131415161718191a1b1c1d1e1f",'
        '"run":"000102030405060708090a0b0c0d0e0f","op":256,"name":"fs.open","target":"/app/é","decision":"allow",'
        '"stage":null,"rule":"fs.read /app/**","trace":"0001020300000001","pid":42,"req":{"nr":257},"res":{"errno":0},'
        f'"req_hash":"{req_hash.hex()}","res_hash":"{res_hash.hex()}","prev_hash":"{"00" * 32}",'
        f'"this_hash":"{this.hex()}"}}\n'
    )


@pytest.mark.parametrize("key", ["name", "ts", "target", "decision", "stage", "rule", "pid"])
def test_a_request_may_not_hide_a_field_of_the_line(tmp_path: Path, key: str) -> None:
    """Hashed under one name they could not be told apart, and the log would not verify."""
    log = opened(tmp_path)
    with pytest.raises(ValueError, match=key):
        log.append(msgspec.structs.replace(draft(), req={key: "x"}))
    log.append(draft())
    log.close()
    assert verify(tmp_path / "audit.jsonl").entries == 1


EVENTS = st.builds(
    Event,
    op=st.sampled_from([0x100, 0x102, 0x200, 0x300, 0x999]),
    decision=st.integers(0, 2),
    need=st.integers(0, 7),
    ts_ns=st.integers(EPOCH_NS, EPOCH_NS + 3 * 10**9),
    tgid=st.integers(1, 2**22),
    tid=st.integers(1, 2**22),
    nr=st.integers(-1, 500),
    error=st.integers(0, 133),
    rule=st.sampled_from([0, 0xFFFFFFFF, 77]),
    missing=st.integers(0, 7),
    arg=st.integers(0, 2**64 - 1),
    target=st.binary(max_size=40),
    target2=st.binary(max_size=10),
)


@given(st.lists(EVENTS, min_size=1, max_size=5), st.integers(1, 3))
def test_the_fast_renderer_writes_what_the_plain_one_writes(events: list[Event], count: int) -> None:
    events[0].count, events[0].last_ts_ns = count, events[0].ts_ns + 9
    lines, hashes = EventRenderer(RUN, RULES).render(events, agent=AGENT, seq=7, prev=bytes(32))
    prev = bytes(32)
    for index, one in enumerate(events):
        line, this = render(event_draft(one, AGENT, RULES), seq=7 + index, run=RUN, prev=prev)
        assert lines[index].encode() == line
        assert hashes[index] == this
        prev = this


@given(st.lists(EVENTS, max_size=6))
def test_records_are_parsed_as_they_are_packed(events: list[Event]) -> None:
    padding = (16).to_bytes(4, "little") + bytes(12)
    assert list(parse_events(padding.join(map(pack_event, events)))) == events


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d[:60], lambda d: b"\xff" * 4 + d[4:], lambda d: bytes(4) + d[4:],
               lambda d: d[:6] + b"\7" + d[7:], lambda d: d[:48] + b"\xff\xff" + d[50:]],
)  # fmt: skip
def test_damaged_records_are_errors(damage: Any) -> None:
    with pytest.raises(EventError):
        list(parse_events(damage(pack_event(event("/x", allow=False)))))


def test_files_are_private_and_the_log_has_one_writer(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.append(draft())
    for name in ("audit.jsonl", "checkpoints"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    with pytest.raises(AuditError, match="a run is writing it"):
        opened(tmp_path)
    log.close()
    log.close()
    with pytest.raises(AuditError, match="closed"):
        log.append(draft())


@pytest.mark.parametrize("kind", ["link", "directory", "hard link"])
def test_a_log_that_is_no_plain_file_of_ours_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "audit.jsonl"
    other = tmp_path / "other"
    if kind == "link":
        path.symlink_to(other)
    elif kind == "directory":
        path.mkdir()
    else:
        other.touch()
        path.hardlink_to(other)
    with pytest.raises(AuditError):
        opened(tmp_path)
    assert not other.exists() or other.read_bytes() == b""


def test_a_log_is_continued_where_it_ends(tmp_path: Path) -> None:
    for _ in range(3):
        log = opened(tmp_path)
        log.append(draft())
        log.append_events([event(), event("/app/b")], AGENT)
        log.close()
    assert verify(tmp_path / "audit.jsonl", tmp_path / "checkpoints").entries == 9
    log = opened(tmp_path)
    assert [e.seq for e in log.entries(4, 6)] == [4, 5, 6]
    assert [e.seq for e in log.entries(9)] == [9]
    assert list(log.entries(10)) == []
    log.close()
    with pytest.raises(AuditError, match="another run"):
        AuditLog(tmp_path / "audit.jsonl", bytes(16))


def test_a_torn_tail_is_found_when_the_log_is_opened_again(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.append(draft())
    log.append(draft())
    log.close()
    path = tmp_path / "audit.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(AuditError, match="torn"):
        opened(tmp_path)
    found = verify(path)
    assert (found.ok, found.entries, found.first_bad_seq) == (False, 1, 2)
    assert found.torn_tail > 0


def test_a_full_disk_stops_the_run_and_never_the_log(tmp_path: Path) -> None:
    """Really full, by RLIMIT_FSIZE: a write is cut short, then refused. What was whole before stays and verifies."""
    program = f"""
import resource, sys
sys.path[:0] = {sys.path!r}
from test_audit_log import *
log = opened(Path({str(tmp_path)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
done = 0
try:
    while True:
        log.append(draft())
        done += 1
except AuditError as error:
    assert error.errno == errno.EFBIG, error.errno
attempts = (
    lambda: log.append(draft()), lambda: log.append_events([event()], AGENT), log.wait_durable, log.checkpoint
)
for again in attempts:
    try:
        again()
    except AuditError:
        continue
    raise SystemExit("went on after a failed write")
log.close()
print(done)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr
    found = verify(tmp_path / "audit.jsonl")
    assert found.ok
    assert found.entries == int(done.stdout) > 3


def test_a_failed_sync_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(tmp_path)
    seq = log.append(draft()).seq

    def broken(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(audit.os, "fdatasync", broken)
    with pytest.raises(AuditError, match="sync failed"):
        log.wait_durable(seq)
    monkeypatch.undo()
    with pytest.raises(AuditError):
        log.wait_durable(seq)
    with pytest.raises(AuditError):
        log.append(draft())


@pytest.mark.parametrize(("durability", "syncs"), [("sync", 3), ("group", 1), ("async", 0)])
def test_durability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Any, syncs: int) -> None:
    log = opened(tmp_path, durability=durability)
    calls: list[int] = []
    monkeypatch.setattr(audit.os, "fdatasync", calls.append)
    for _ in range(3):
        log.append(draft())
    log.wait_durable()
    log.wait_durable()
    assert len(calls) == syncs


def test_those_who_wait_share_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(tmp_path)
    entered, go, calls = threading.Event(), threading.Event(), []
    real = os.fdatasync

    def slow(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            entered.set()
            assert go.wait(30)
        real(fd)

    monkeypatch.setattr(audit.os, "fdatasync", slow)
    first = threading.Thread(target=log.wait_durable, args=(log.append(draft()).seq,))
    first.start()
    assert entered.wait(30)
    later = [threading.Thread(target=log.wait_durable, args=(log.append(draft()).seq,)) for _ in range(10)]
    for thread in later:
        thread.start()
    go.set()
    for thread in (first, *later):
        thread.join(30)
        assert not thread.is_alive()
    assert len(calls) == 2  # the ten came after the first sync began, and share the second


def test_eight_threads_write_one_chain(tmp_path: Path) -> None:
    log = opened(tmp_path)

    def work(n: int) -> None:
        for i in range(50):
            log.append(draft(f"/{n}/{i}"))
            log.append_events([event(f"/app/{n}/{i}", tid=n), event(f"/app/{n}/{i}/b", tid=n)], AGENT)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    found = verify(tmp_path / "audit.jsonl", tmp_path / "checkpoints")
    assert (found.ok, found.entries) == (True, 8 * 150)
    assert found.checkpoints >= 1  # at 1,000 or a little later, at the end, and every 10 s


def points_of(directory: Path) -> list[int]:
    with open(directory / "checkpoints", "rb") as file:
        return [point.seq for point in read_checkpoints(file)]


def test_checkpoints_by_time(tmp_path: Path) -> None:
    """By a clock that nobody sets: the other one going back does not keep them away."""
    now, made = [0], threading.Event()
    log = opened(tmp_path, clock_ns=lambda: EPOCH_NS - now[0], monotonic_ns=lambda: now[0])
    log.on_checkpoint(lambda _point: made.set())
    log.append(draft())
    assert points_of(tmp_path) == []
    now[0] += 10_000_000_000
    log.append(draft())
    assert made.wait(30)
    assert points_of(tmp_path) == [2]
    log.close()
    assert points_of(tmp_path) == [2]  # nothing new to sign


SECRETS = ["hunter2secret", "sk-abcdefghijklmnopqrstuv", "ghp_" + "a" * 36, "AKIAABCDEFGHIJKLMNOP"]


@pytest.mark.parametrize(
    "value",
    [
        {"password": "hunter2secret"}, {"headers": {"Authorization": "hunter2secret"}}, {"X-Api-Key": "hunter2secret"},
        {"path": "/db/token", "value": "hunter2secret"}, {"name": "Cookie", "value": "hunter2secret"},
        'x {"Api-Key": "hunter2secret"}', r'{\"password\": \"hunter2secret\"}',
        ["curl", "--token", "hunter2secret"], ["x", "--api-key=hunter2secret"], "token=hunter2secret&x=1",
        ["-H", "Authorization: Bearer hunter2secret"], {"url": "https://user:hunter2secret@example.com/x"},
        {"env": ["DB_PASSWORD=hunter2secret"]},
        {"a": [{"client_secret": "hunter2secret"}]}, "sh -c 'tool --token hunter2secret'", *SECRETS[1:],
        {"mykey": "hunter2secret"}, "-----BEGIN PRIVATE KEY-----\nhunter2secret\n-----END PRIVATE KEY-----",
        {"hunter2secret": {"password": ["hunter2secret"]}}["hunter2secret"], b"password: hunter2secret",
    ],
)  # fmt: skip
def test_secrets_do_not_reach_the_log(tmp_path: Path, value: Any) -> None:
    log = opened(tmp_path, redact=["my-key"])
    entry = draft(str(value) if isinstance(value, str) else "/x", args=value)
    log.append(entry)
    log.close()
    text = (tmp_path / "audit.jsonl").read_text()
    assert not [secret for secret in SECRETS if secret in text]
    assert MASK in text
    assert verify(tmp_path / "audit.jsonl").ok


def test_what_is_no_secret_stays() -> None:
    value = {"max_tokens": 5, "tokens": 7, "path": "/app/token/key.py", "argv": ["ls", "-l", "keys"], "password": None}
    assert Redactor().value(value) == value
    assert Redactor().text("https://example.com/a@b") == "https://example.com/a@b"


def test_throughput_has_not_collapsed(tmp_path: Path) -> None:
    """The target is 60,000 entries a second; a quarter of it in CPU time is what even a busy machine must give."""
    log = opened(tmp_path)
    data = b"".join(pack_event(event(f"/usr/lib/python3.11/site-packages/pkg/{i}.py", ts=i)) for i in range(5000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    log.append_events(parse_events(data), AGENT)
    spent = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
    log.close()
    assert 5000 / max(spent, 1e-6) > 15_000


def test_writes_end_with_a_line_and_do_not_cross_pages() -> None:
    """But for a single line that lies on the border: a killed writer tears no other."""
    choose = random.Random(5)
    for _ in range(500):
        lines = [b"x" * choose.choice([10, 500, 3000, 9000]) + b"\n" for _ in range(choose.randint(0, 12))]
        data, offset = b"".join(lines), choose.randint(0, 3 * PAGE_BYTES)
        pieces = [bytes(piece) for piece in whole_lines(data, offset)]
        assert b"".join(pieces) == data
        for piece in pieces:
            assert piece.endswith(b"\n")
            in_one_page = offset // PAGE_BYTES == (offset + len(piece) - 1) // PAGE_BYTES
            assert in_one_page or piece.count(b"\n") == 1
            offset += len(piece)
