"""Tampering is found, by both verifiers, at the first bad entry."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from kernel_kit import EPOCH_NS, event

from akbox.kernel.audit import AuditLog
from akbox.kernel.checkpoint import read_checkpoints
from akbox.kernel.entry import Draft, render
from akbox.kernel.signing import Signer, SigningKeyError, verify_signature
from akbox.kernel.verify import verify

VERIFY_LOG = Path(__file__).parents[2] / "scripts" / "verify-log"
RUN, AGENT = bytes(range(16)), bytes(range(16, 32))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 12 entries with checkpoints at 6 and 12."""
    directory = tmp_path_factory.mktemp("log")
    signer = Signer.of_user(directory / "keys")
    log = AuditLog(directory / "audit.jsonl", RUN, signer=signer, rules=("fs.read /app/**",))
    for index in range(12):
        if index == 6:
            log.checkpoint()
        if index % 2:
            log.append_events([event(f"/app/{index}", allow=index % 3 > 0, ts=index)], AGENT)
        else:
            req = {"args": {"value": [1.5, 1e21, 1e20, "é", "\u2028", None, {"b": 1, "a": 2**60}]}}
            log.append(
                Draft(
                    ts_ns=EPOCH_NS + index, agent=AGENT, op=1025, name="ALLOC", target="heap:x", decision="allow",
                    req=req, res={"errno": 0},
                )
            )  # fmt: skip
    log.close()
    return directory


def both(directory: Path, data: bytes, tmp_path: Path, *, checkpoints: bool = True) -> tuple[bool, int | None, str]:
    """The verdict of akbox on a log with these bytes; the independent one must be the same."""
    path = tmp_path / "audit.jsonl"
    path.write_bytes(data)
    points = [directory / "checkpoints"] if checkpoints else []
    found = verify(path, *points)
    other = subprocess.run([VERIFY_LOG, path, *points], capture_output=True, text=True, check=False)
    assert other.stderr == ""
    assert other.returncode == (0 if found.ok else 1), (found, other.stdout)
    if found.ok:
        assert other.stdout == f"ok: {found.entries} entries\n"
    else:
        assert re.match(rf"bad: entry {found.first_bad_seq}: ", other.stdout), (found, other.stdout)
    return found.ok, found.first_bad_seq, found.reason or ""


def lines_of(directory: Path) -> list[bytes]:
    return (directory / "audit.jsonl").read_bytes().splitlines(keepends=True)


def test_a_good_log(made: Path, tmp_path: Path) -> None:
    data = (made / "audit.jsonl").read_bytes()
    assert both(made, data, tmp_path) == (True, None, "")
    assert both(made, b"", tmp_path, checkpoints=False) == (True, None, "")


@pytest.mark.parametrize("other", [b" ", b"x", b"A"])
def test_an_identity_that_is_no_hexadecimal_number(made: Path, tmp_path: Path, other: bytes) -> None:
    """Found by scripts/fuzz logs: it was an error of the verifier instead of the log."""
    data = (made / "audit.jsonl").read_bytes()
    at = data.index(b'"run":"') + len(b'"run":"') + 3
    assert both(made, data[:at] + other + data[at + 1 :], tmp_path)[:2] == (False, 1)


DAMAGE: list[tuple[str, Callable[[list[bytes]], list[bytes]], int, str]] = [
    ("swap", lambda x: [*x[:4], x[5], x[4], *x[6:]], 5, "missing"),
    ("delete", lambda x: [*x[:4], *x[5:]], 5, "missing"),
    ("delete first", lambda x: x[1:], 1, "missing"),
    ("duplicate", lambda x: [*x[:5], x[4], *x[5:]], 6, "repeated"),
    ("insert", lambda x: [*x[:5], x[2], *x[5:]], 6, "repeated"),
    ("reverse", lambda x: x[::-1], 1, "missing"),
    ("cut the tail", lambda x: x[:9], 10, "cut tail"),
    ("cut to the checkpoint", lambda x: x[:6], 7, "cut tail"),
    ("cut all", lambda _: [], 1, "cut tail"),
    ("tear", lambda x: [*x[:11], x[11][:-30]], 12, "torn"),
    ("lose the last newline", lambda x: [*x[:11], x[11][:-1]], 12, "torn"),
    ("blank line", lambda x: [*x[:3], b"\n", *x[3:]], 4, "not an entry"),
    ("other json", lambda x: [*x[:3], b"[]\n", *x[3:]], 4, "not an entry"),
    ("extra field", lambda x: [*x[:3], x[3][:-2] + b',"note":1}\n', *x[4:]], 4, "not an entry"),
    ("a blank", lambda x: [*x[:3], x[3].replace(b'"seq":', b'"seq": '), *x[4:]], 4, "changed"),
    ("carriage return", lambda x: [*x[:3], x[3][:-1] + b"\r\n", *x[4:]], 4, "changed"),
    ("duplicate key", lambda x: [*x[:3], x[3].replace(b'"seq":4,', b'"seq":4,"seq":4,'), *x[4:]], 4, "not an entry"),
    ("upper-case hex", lambda x: [*x[:3], x[3].replace(b"1c1d1e1f", b"1C1D1E1F"), *x[4:]], 4, "changed"),
    ("target", lambda x: [*x[:3], x[3].replace(b"/app/3", b"/app/4"), *x[4:]], 4, "changed"),
    ("decision", lambda x: [*x[:3], x[3].replace(b'"deny"', b'"allow"'), *x[4:]], 4, "changed"),
    ("trace", lambda x: [*x[:3], x[3].replace(b'"trace":"0', b'"trace":"1'), *x[4:]], 4, "changed"),
    ("time", lambda x: [*x[:3], x[3].replace(b"2026-01-01", b"2026-01-02"), *x[4:]], 4, "changed"),
    ("no time", lambda x: [*x[:3], x[3].replace(b"2026-01-01", b"2026-13-01"), *x[4:]], 4, ""),
    ("run", lambda x: [*x[:3], x[3].replace(RUN.hex().encode(), AGENT.hex().encode()), *x[4:]], 4, "another run"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "damage", "seq", "why"), DAMAGE, ids=[d[0] for d in DAMAGE])
def test_damage_is_named(
    made: Path, tmp_path: Path, what: str, damage: Callable[[list[bytes]], list[bytes]], seq: int, why: str
) -> None:
    before = lines_of(made)
    data = b"".join(damage(list(before)))
    assert data != b"".join(before)
    ok, first, reason = both(made, data, tmp_path)
    assert (ok, first) == (False, seq), reason
    assert why in reason


def test_every_flipped_bit_is_found(made: Path, tmp_path: Path) -> None:
    """Each bit of two whole entries, one of either kind, by akbox; a sample of them by the other verifier too."""
    lines = lines_of(made)[:4]
    data = b"".join(lines)
    path = tmp_path / "audit.jsonl"
    chosen = random.Random(1)
    for index in (2, 3):
        start = len(b"".join(lines[:index]))
        for place in range(start, start + len(lines[index])):
            for bit in range(8):
                bad = bytearray(data)
                bad[place] ^= 1 << bit
                path.write_bytes(bad)
                found = verify(path)
                assert not found.ok, (index, place - start, bit)
                assert found.first_bad_seq == index + 1, (place - start, bit, found)
                if chosen.random() < 0.005:
                    both(made, bytes(bad), tmp_path, checkpoints=False)


def test_a_rewritten_log_differs_from_its_checkpoint(made: Path, tmp_path: Path) -> None:
    """Somebody who recomputes the whole chain is found by a checkpoint that was kept elsewhere."""
    prev, out = bytes(32), b""
    for seq, line in enumerate(lines_of(made), 1):
        e = json.loads(line)
        line, prev = render(
            Draft(
                ts_ns=EPOCH_NS + seq - 1, agent=AGENT, op=e["op"], name=e["name"], decision="allow", stage=None,
                target=e["target"], rule=e["rule"], pid=e["pid"], req=e["req"], res=e["res"],
            ),
            seq=seq, run=RUN, prev=prev,
        )  # fmt: skip
        out += line
    assert both(made, out, tmp_path, checkpoints=False)[0]
    ok, first, reason = both(made, out, tmp_path)
    assert (ok, first) == (False, 6)
    assert "checkpoint" in reason


def test_signatures(made: Path, tmp_path: Path) -> None:
    log, points = made / "audit.jsonl", (made / "checkpoints").read_bytes()
    key = (made / "keys" / "audit-ed25519.pub").read_text()
    assert verify(log, made / "checkpoints", public_key=key).checkpoints == 2
    other = Signer(bytes(32)).public_hex()
    assert verify(log, made / "checkpoints", public_key=other).reason == "a checkpoint is signed by another key"
    changed = tmp_path / "checkpoints"
    first, second = (point.note for point in read_checkpoints(BytesIO(points)))

    def verdict(data: bytes, public_key: str | None = None) -> str | None:
        changed.write_bytes(data)
        found = verify(log, changed, public_key=public_key)
        assert not found.ok
        other = subprocess.run(
            [VERIFY_LOG, log, changed, *(["--key", public_key.strip()] if public_key else [])],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (other.returncode, other.stderr) == (1, ""), other
        return found.reason

    lines = first.split("\n")
    for number, start in enumerate(("akbox/run/", "", "", "hash ", "time ")):
        line = lines[number]
        at = len(start) if number != 1 else len(line)  # of the size: a digit more
        changed_line = line[:at] + ("0" if line[at : at + 1] != "0" else "1") + line[at + 1 :]
        bad = "\n".join([*lines[:number], changed_line, *lines[number + 1 :]]) + "\n" + second + "\n"
        assert verdict(bad.encode()) in ("a checkpoint has a bad signature", "a checkpoint is not signed"), changed_line
    bare = first.partition("\n\n")[0] + "\n\n\n"
    assert verdict(bare.encode(), key) == "a checkpoint is not signed"
    assert "damaged" in (verdict(b"{}\n\n{}\n\n") or "")
    changed.write_bytes(points + first[:300].encode())  # one that was being written when the machine died
    assert verify(log, changed).ok
    changed.write_bytes((second + "\n" + first + "\n").encode())
    assert verify(log, changed).reason == "the checkpoints are not in order"


def test_the_signing_key_is_ours_alone(tmp_path: Path) -> None:
    signer = Signer.of_user(tmp_path)
    assert Signer.of_user(tmp_path).public_hex() == signer.public_hex()
    path = tmp_path / "audit-ed25519.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert verify_signature(signer.public_hex(), signer.sign(b"x"), b"x")
    assert not verify_signature(signer.public_hex(), signer.sign(b"x"), b"y")
    assert not verify_signature("zz", signer.sign(b"x"), b"x")
    path.chmod(0o644)
    with pytest.raises(SigningKeyError, match="0600"):
        Signer.of_user(tmp_path)
    path.chmod(0o600)
    path.write_text("no key\n")
    with pytest.raises(SigningKeyError):
        Signer.of_user(tmp_path)
    path.unlink()
    path.symlink_to("/dev/null")
    with pytest.raises(OSError, match="symbolic"):
        Signer.of_user(tmp_path)


def test_an_rfc_8032_signature() -> None:
    """Test 2 of RFC 8032 7.1."""
    signer = Signer(bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
    assert signer.public_hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert signer.sign(b"\x72").hex().startswith("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da")
