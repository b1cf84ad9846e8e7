"""What strangers and other tools get of a log: proofs, checkpoints, OCSF, OTLP, CSV - each checked by software that
is not ours."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from base64 import b64decode
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from kernel_kit import Box, event
from tlog_packages import package

from akbox.cli.audit_commands import audit
from akbox.cli.output import Failure
from akbox.kernel.checkpoint import verifier_key
from akbox.kernel.merkle import consistent
from akbox.kernel.ops import CALL_FIRST, NAMES
from akbox.kernel.prove import points_of

VERIFY_LOG = Path(__file__).parents[2] / "scripts" / "verify-log"
TARGETS = {
    0x200: "ip:[2001:db8::1]:443", 0x201: "dns:api.example.com:443", 0x202: "ip:127.0.0.1:8080",
    0x203: "udp+ip:0.0.0.0:53", 0x204: "unix:/run/x.sock", 0x3FF: "syscall:mount",
}  # fmt: skip


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    """A log with every op that there is, allowed and refused, several checkpoints, in several files."""
    directory = tmp_path_factory.mktemp("state") / "runs"
    box = Box.__new__(Box)
    directory.mkdir()
    box.__init__(directory, rotate_bytes=20_000)  # type: ignore[misc]
    box.kernel.start({"argv": ["=cmd", "x"], "cwd": "/app"})
    for n, op in enumerate(NAMES):
        if not CALL_FIRST <= op <= 1044:
            for allow in (True, False):
                target = TARGETS.get(op, f"/app/{n}")
                fields: dict[str, Any] = {
                    "op": op,
                    "tid": n,
                    "target2": b"/app/second" if op in (0x102, 0x107) else b"",
                }
                box.kernel.record(box.kernel.root, [event(target, allow=allow, **fields)])
    first = box.call(1025, type="counter", value={"value": 1})
    box.call(1024, ptr=first["ptr"])
    box.fail(1024, ptr=99)
    box.fail(1026, ptr="x")
    box.call(1030)
    for n in range(30):
        box.call(1025, type="t", value={"n": n, "big": 2**60, "f": 1.5})
    box.call(1030)
    box.kernel.record(box.kernel.root, [event("=cmd()", ts=10**10)])
    box.kernel.finish({"exit_code": 0})
    box.close()
    return box


def run(box: Box, *args: str, fails: bool = False) -> str:
    done = CliRunner().invoke(audit, [*args, "--state-dir", str(box.directory.parent)], catch_exceptions=True)
    if fails:
        assert isinstance(done.exception, Failure), done
        return done.exception.message
    assert done.exit_code in (0, None), (done.output, done.exception)
    return done.output


def test_checkpoints_are_notes_for_another_implementation(box: Box) -> None:
    tlog = package("aics_tlog")
    public = (box.directory / "keys/audit-ed25519.pub").read_text().strip()
    key = tlog.parse_vkey(verifier_key(box.run_id.hex(), public))
    points = points_of(box.directory / "checkpoints")
    assert len(points) >= 3
    for point in points:
        note = tlog.parse_note(point.note)
        assert tlog.verify_checkpoint(note, key, [], quorum=0).ok
        theirs = tlog.parse_checkpoint(note.text)
        assert (theirs.origin, theirs.size, theirs.root.hex()) == (key.name, point.seq, point.merkle_root)
        forged = tlog.parse_note(point.note.replace(f"\n{point.seq}\n", f"\n{point.seq + 1}\n", 1))
        assert not tlog.verify_checkpoint(forged, key, [], quorum=0).ok


def test_an_entry_is_proved_to_strangers(box: Box, tmp_path: Path) -> None:
    tlog = package("aics_tlog")
    log = str(box.directory) + "/"
    points = points_of(box.directory / "checkpoints")
    public = (box.directory / "keys/audit-ed25519.pub").read_text().strip()
    lines = all_lines(box)
    assert len(lines) == points[-1].seq
    for seq in (1, 2, len(lines) // 2, len(lines)):
        found = json.loads(run(box, "prove", str(seq), log, "--json"))
        assert found["entry"].encode() == lines[seq - 1]
        point = tlog.parse_checkpoint(tlog.parse_note(found["checkpoint"]).text)
        path = list(map(b64decode, found["path"]))
        this = bytes.fromhex(json.loads(found["entry"])["this_hash"])
        assert tlog.verify_leaf_inclusion(this, seq - 1, point.size, path, point.root)
        proof = tmp_path / "proof"
        proof.write_text(run(box, "prove", str(seq), log))
        assert by_script(proof, public)[0] == 0
        assert by_script(proof, bytes(32).hex())[0] == 1
        text = proof.read_text()
        proof.write_text(text.replace(f"\nindex {seq - 1}\n", f"\nindex {seq}\n"))
        assert by_script(proof, public)[0] == 1
    assert "not among" in run(box, "prove", str(len(lines) + 1), log, fails=True)


def by_script(proof: Path, public: str) -> tuple[int, str]:
    done = subprocess.run([VERIFY_LOG, "--proof", proof, "--key", public], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


def all_lines(box: Box) -> list[bytes]:
    files = [*sorted(box.directory.glob("audit-*.jsonl")), box.directory / "audit.jsonl"]
    assert len(files) > 1
    return b"".join(f.read_bytes() for f in files).splitlines(keepends=True)


def test_an_older_checkpoint_is_proved_a_prefix(box: Box, tmp_path: Path) -> None:
    tlog = package("aics_tlog")
    points = points_of(box.directory / "checkpoints")
    old = tmp_path / "old"
    for point in points:
        old.write_text(point.note)
        found = json.loads(run(box, "prove", "--since", str(old), str(box.directory) + "/"))
        path = list(map(b64decode, found["path"]))
        a, b = bytes.fromhex(point.merkle_root), bytes.fromhex(points[-1].merkle_root)
        assert consistent(point.seq, points[-1].seq, a, b, path)
        assert tlog.verify_consistency(point.seq, points[-1].seq, a, b, path)


def test_ocsf_is_what_its_schema_says(box: Box) -> None:
    ocsf = package("ocsf_json_schema")
    schema = ocsf.OcsfJsonSchemaEmbedded(ocsf.get_ocsf_schema(version="1.6.0"))
    validators: dict[int, Any] = {}
    events = [
        json.loads(line) for line in run(box, "export", str(box.directory) + "/", "--format", "ocsf").splitlines()
    ]
    assert len(events) == len(all_lines(box))
    for one in events:
        kind = one["class_uid"]
        if kind not in validators:
            text = schema.get_class_schema(schema.lookup_class_name_from_uid(kind), one["metadata"]["profiles"])
            validators[kind] = jsonschema.Draft202012Validator(text)
        problems = [f"{'/'.join(map(str, e.path))}: {e.message}" for e in validators[kind].iter_errors(one)]
        assert problems == [], one
    assert set(validators) == {1001, 1003, 1007, 4001, 4003, 6002, 6003}
    broken = events[5] | {"activity_id": 77}
    assert list(validators[broken["class_uid"]].iter_errors(broken))  # it does look


def test_otlp_is_read_by_the_protocol_s_own_code(box: Box) -> None:
    """opentelemetry-proto. Its JSON reader takes ids for base64, OTLP's JSON has them in hex: those are looked at."""
    service = package("opentelemetry.proto.collector.logs.v1.logs_service_pb2")
    from google.protobuf import json_format

    records = []
    for line in run(box, "export", str(box.directory) + "/", "--format", "otlp").splitlines():
        read = json_format.Parse(line, service.ExportLogsServiceRequest())
        plain = json.loads(line)["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
        assert {record["traceId"] for record in plain} == {box.run_id.hex()}
        records += read.resource_logs[0].scope_logs[0].log_records
    entries = [json.loads(line) for line in all_lines(box)]
    assert len(records) == len(entries)
    for record, entry in zip(records, entries, strict=True):
        fields = {a.key: a.value for a in record.attributes}
        assert fields["akbox.seq"].int_value == entry["seq"]
        assert fields["akbox.target"].string_value == entry["target"]
        assert record.severity_number == (9 if entry["decision"] == "allow" else 13)
        assert f".{record.time_unix_nano % 10**9:09d}Z" == entry["ts"][19:]


def test_csv_has_every_entry_and_no_formula(box: Box) -> None:
    rows = list(csv.DictReader(io.StringIO(run(box, "export", str(box.directory) + "/", "--format", "csv"))))
    entries = [json.loads(line) for line in all_lines(box)]
    assert [row["this_hash"] for row in rows] == [e["this_hash"] for e in entries]
    assert [row["target"] for row in rows if "cmd()" in row["target"]] == ["'=cmd()"]


def test_jsonl_is_the_log_to_the_byte(box: Box) -> None:
    assert run(box, "export", str(box.directory) + "/").encode() == b"".join(all_lines(box))
    only = run(box, "export", str(box.directory) + "/", "--op", "COMMIT").splitlines()
    assert [json.loads(line)["name"] for line in only] == ["COMMIT", "COMMIT"]


def test_stats(box: Box) -> None:
    found = json.loads(run(box, "stats", str(box.directory) + "/", "--json"))
    entries = [json.loads(line) for line in all_lines(box)]
    assert found["entries"] == len(entries)
    assert found["decisions"] == {
        d: sum(e["req"].get("count", 1) for e in entries if e["decision"] == d) for d in ("allow", "deny")
    }
    assert found["ops"]["ALLOC"] == 31
    assert "most refused" in run(box, "stats", str(box.directory) + "/")
