"""A log in the formats of others: CSV, OCSF events, OTLP log records. Entries are parsed lines; output is lines of
text, made as the entries come, so that a log of any length can be exported."""

from __future__ import annotations

import csv
import io
from calendar import timegm
from collections.abc import Callable, Iterable, Iterator
from time import strptime
from typing import Any

import msgspec

from akbox import __version__
from akbox.kernel import ocsf

Entry = dict[str, Any]
_encode = msgspec.json.Encoder().encode

COLUMNS = (
    "seq", "ts", "run", "agent", "pid", "op", "name", "target", "target2", "decision", "stage", "rule", "errno",
    "count", "trace", "this_hash",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_OTLP_BATCH = 256
_INFO, _WARN = 9, 13  # opentelemetry.proto.logs.v1.SeverityNumber


def as_jsonl(entries: Iterable[Entry]) -> Iterator[str]:
    for entry in entries:
        yield _encode(entry).decode() + "\n"


def as_csv(entries: Iterable[Entry]) -> Iterator[str]:
    """RFC 4180. A cell that a spreadsheet would take for a formula gets an apostrophe in front: names of files are the
    agent's to choose."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for entry in entries:
        flat = (
            entry | {key: entry["req"].get(key) for key in ("target2", "count")} | {"errno": entry["res"].get("errno")}
        )
        writer.writerow([_cell(flat[key]) for key in COLUMNS])
        yield out.getvalue()
        out.seek(0)
        out.truncate()
    if rest := out.getvalue():
        yield rest


def _cell(value: object) -> object:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return "" if value is None else value


def as_ocsf(entries: Iterable[Entry]) -> Iterator[str]:
    for entry in entries:
        yield _encode(ocsf.event(entry, __version__)).decode() + "\n"


def as_otlp(entries: Iterable[Entry]) -> Iterator[str]:
    """A line for some hundred entries, each an ExportLogsServiceRequest in OTLP's JSON encoding (ids in hex)."""
    batch: list[Entry] = []
    for entry in entries:
        if batch and (len(batch) == _OTLP_BATCH or batch[0]["run"] != entry["run"]):
            yield _request(batch)
            batch = []
        batch.append(entry)
    if batch:
        yield _request(batch)


def _request(batch: list[Entry]) -> str:
    resource = {"service.name": "akbox", "service.version": __version__, "service.instance.id": batch[0]["run"]}
    scope = {"scope": {"name": "akbox.audit", "version": __version__}, "logRecords": [_record(e) for e in batch]}
    logs = {"resource": {"attributes": _attributes(resource)}, "scopeLogs": [scope]}
    return _encode({"resourceLogs": [logs]}).decode() + "\n"


def _record(e: Entry) -> dict[str, Any]:
    allowed = e["decision"] == "allow"
    nanoseconds = str(timegm(strptime(e["ts"][:19], "%Y-%m-%dT%H:%M:%S")) * 1_000_000_000 + int(e["ts"][20:29]))
    fields = {
        f"akbox.{key}": e[key] for key in ("seq", "op", "name", "target", "decision", "stage", "rule", "this_hash")
    }
    fields |= {
        "event.name": f"akbox.{e['name']}",
        "akbox.agent": e["agent"],
        "akbox.trace": e["trace"],
        "process.pid": e["pid"],
    }
    fields |= {f"akbox.req.{key}": value for key, value in e["req"].items()}
    fields |= {f"akbox.res.{key}": value for key, value in e["res"].items()}
    return {
        "timeUnixNano": nanoseconds,
        "observedTimeUnixNano": nanoseconds,
        "severityNumber": _INFO if allowed else _WARN,
        "severityText": "INFO" if allowed else "WARN",
        "body": {"stringValue": f"{e['decision']} {e['name']} {e['target']}"},
        "attributes": _attributes({key: value for key, value in fields.items() if value is not None}),
        "traceId": e["run"],
    }


def _attributes(fields: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _any_value(value)} for key, value in fields.items()]


def _any_value(value: object) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, str):
        return {"stringValue": value}
    return {"stringValue": _encode(value).decode()}


FORMATS: dict[str, Callable[[Iterable[Entry]], Iterator[str]]] = {
    "jsonl": as_jsonl,
    "csv": as_csv,
    "ocsf": as_ocsf,
    "otlp": as_otlp,
}
