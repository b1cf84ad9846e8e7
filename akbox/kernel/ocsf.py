"""Entries of a log as events of the Open Cybersecurity Schema Framework, 1.6.0 (https://schema.ocsf.io), with the
profiles `host` and `security_control`: the classes and numbers below are that schema's."""

from __future__ import annotations

from calendar import timegm
from time import strptime
from typing import Any

from akbox.kernel.ops import Op

VERSION = "1.6.0"
JSON = dict[str, Any]

FILE, KERNEL, PROCESS, NETWORK, DNS, LIFECYCLE, API = 1001, 1003, 1007, 4001, 4003, 6002, 6003
OTHER = 99

# What an op is: (class, activity). A class's hundreds are its category. What is not here is API activity.
ACTIVITIES: dict[int, tuple[int, int]] = {
    Op.FS_OPEN: (FILE, 14),
    Op.FS_UNLINK: (FILE, 4),
    Op.FS_RENAME: (FILE, 5),
    Op.FS_MKDIR: (FILE, 1),
    Op.FS_RMDIR: (FILE, 4),
    Op.FS_STAT: (FILE, 8),
    Op.FS_METADATA: (FILE, 6),
    Op.FS_LINK: (FILE, 1),
    Op.FS_TRUNCATE: (FILE, 3),
    Op.EXEC: (PROCESS, 1),
    Op.SIGNAL: (PROCESS, OTHER),
    Op.SYS_REFUSED: (KERNEL, 4),
    Op.NET_CONNECT: (NETWORK, 1),
    Op.NET_BIND: (NETWORK, OTHER),
    Op.NET_LISTEN: (NETWORK, 7),
    Op.NET_ACCEPT: (NETWORK, 1),
    Op.NET_SEND: (NETWORK, 6),
    Op.NET_DNS: (DNS, 1),
    Op.READ: (API, 2),
    Op.ALLOC: (API, 1),
    Op.WRITE: (API, 3),
    Op.DELETE: (API, 4),
    Op.QUERY: (API, 2),
}
_CAPTIONS = {
    (FILE, 1): "Create", (FILE, 3): "Update", (FILE, 4): "Delete", (FILE, 5): "Rename", (FILE, 6): "Set Attributes",
    (FILE, 8): "Get Attributes", (FILE, 14): "Open", (KERNEL, 4): "Invoke", (PROCESS, 1): "Launch",
    (NETWORK, 1): "Open", (NETWORK, 6): "Traffic", (NETWORK, 7): "Listen", (DNS, 1): "Query",
    (LIFECYCLE, 3): "Start", (LIFECYCLE, 4): "Stop", (API, 1): "Create", (API, 2): "Read", (API, 3): "Update",
    (API, 4): "Delete",
}  # fmt: skip


def event(entry: JSON, product_version: str) -> JSON:
    """One entry as an event. `entry` is a line of the log, parsed."""
    kind, activity = _kind(entry)
    allowed = entry["decision"] == "allow"
    out: JSON = {
        "activity_id": activity,
        "activity_name": _CAPTIONS.get((kind, activity), entry["name"]),
        "category_uid": kind // 1000,
        "class_uid": kind,
        "type_uid": kind * 100 + activity,
        "time": _milliseconds(entry["ts"]),
        "severity_id": 1 if allowed else 2,
        "action_id": 1 if allowed else 2,
        "disposition_id": 1 if allowed else 2,
        "status_id": 1 if allowed else 2,
        "metadata": {
            "version": VERSION,
            "product": {"name": "akbox", "vendor_name": "akbox", "version": product_version},
            "profiles": ["host", "security_control"],
            "uid": entry["trace"],
            "correlation_uid": entry["run"],
            "sequence": entry["seq"],
            "original_time": entry["ts"],
            "log_name": "audit.jsonl",
        },
        "device": {"type_id": 0, "uid": f"run:{entry['run']}", "name": "akbox sandbox"},
        "actor": {"app_uid": entry["agent"], "app_name": "agent", "process": {"pid": entry["pid"]}},
        "unmapped": {k: entry[k] for k in ("name", "target", "decision", "stage", "rule", "req", "res", "this_hash")},
    }
    if not allowed:
        out["status_detail"] = entry["stage"] or "POLICY"
    if entry["res"].get("errno"):
        out["status_code"] = str(entry["res"]["errno"])
    if entry["rule"]:
        out["firewall_rule"] = {"name": entry["rule"]}
    return out | _object(kind, entry)


def _kind(entry: JSON) -> tuple[int, int]:
    op = entry["op"]
    if op >= Op.LIFECYCLE:
        return LIFECYCLE, {"run:start": 3, "run:finish": 4}.get(entry["target"], OTHER)
    if op in ACTIVITIES:
        return ACTIVITIES[op]
    return API, OTHER


def _object(kind: int, entry: JSON) -> JSON:
    """What the class asks for: the file, process, kernel service, endpoint, application or API call it is about."""
    target, second = entry["target"], entry["req"].get("target2")
    match kind:
        case 1001:
            out = {"file": _file(target)}
            return out | {"file_result": _file(second)} if isinstance(second, str) else out
        case 1007:
            return {
                "process": {"name": target.rpartition("/")[2] or target, "pid": entry["pid"], "file": _file(target)}
            }
        case 1003:
            return {"kernel": {"name": target.removeprefix("syscall:"), "type_id": 2}}
        case 4001:
            return {"dst_endpoint": _endpoint(target)}
        case 4003:
            endpoint = _endpoint(target)
            return {"dst_endpoint": endpoint, "query": {"hostname": endpoint.get("hostname", target)}}
        case 6002:
            return {"app": {"name": "akbox", "uid": entry["run"]}}
    return {
        "api": {"operation": entry["name"], "service": {"name": "akbox authority kernel"}},
        "src_endpoint": {"uid": entry["agent"], "name": "agent"},
        "resources": [{"name": target or entry["name"], "type": "akbox"}],
    }


def _file(path: str) -> JSON:
    return {"path": path, "name": path.rstrip("/").rpartition("/")[2] or path, "type_id": 0}


def _endpoint(target: str) -> JSON:
    """`ip:1.2.3.4:443`, `ip:[v6]:443`, `dns:host:443`, `udp+…`, `unix:/path`."""
    scheme, _, rest = target.rpartition("+")[2].partition(":")
    host, _, port = rest.rpartition(":")
    out: JSON = {"name": target}
    if scheme == "ip" and host:
        out["ip"] = host.strip("[]")
    elif scheme == "dns" and host:
        out["hostname"] = host
    if scheme in ("ip", "dns") and port.isdecimal() and int(port) < 65536:
        out["port"] = int(port)
    return out


def _milliseconds(ts: str) -> int:
    return timegm(strptime(ts[:19], "%Y-%m-%dT%H:%M:%S")) * 1000 + int(ts[20:23])
