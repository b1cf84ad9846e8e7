"""Ring events straight to log lines: the hot path, by templates instead of walks over dicts.

The bytes are those that `entry.render` gives for `event_draft(event)`; a test holds the two together. What repeats
(names, rules, results with their hashes, the second of the time stamp) is rendered once.
"""

from collections.abc import Sequence

import msgspec

from akbox.kernel.canonical import MAX_SAFE_INT
from akbox.kernel.digest import sha256
from akbox.kernel.entry import PACKED, Draft, timestamp, trace_id
from akbox.kernel.events import ALLOW, DECISION_NAMES, NEED_NAMES, NO_RULE, Event
from akbox.kernel.ops import op_name

DENIED_AT = "POLICY"
"""The stage at which the compiled matcher refuses."""

_encode = msgspec.json.Encoder().encode


def event_draft(event: Event, agent: bytes, rules: Sequence[object]) -> Draft:
    """The event as a log entry: `req` is {arg, need, nr, tid} and, where they apply, {count, last_ts, missing, raw,
    raw2, target2}; `res` is {errno}. A name that is not UTF-8 is shown escaped, with its bytes in hex as `raw`."""
    req: dict[str, object] = {
        "arg": event.arg if event.arg <= MAX_SAFE_INT else str(event.arg),
        "need": NEED_NAMES[event.need],
        "nr": event.nr,
        "tid": event.tid,
    }
    if event.count > 1:
        req["count"] = event.count
        req["last_ts"] = timestamp(event.last_ts_ns)
    if event.missing:
        req["missing"] = NEED_NAMES[event.missing]
    target, raw = text(event.target)
    if raw:
        req["raw"] = raw
    if event.target2:
        req["target2"], raw = text(event.target2)
        if raw:
            req["raw2"] = raw
    return Draft(
        ts_ns=event.ts_ns,
        agent=agent,
        op=event.op,
        name=op_name(event.op),
        target=target,
        decision=DECISION_NAMES[event.decision],
        stage=None if event.decision == ALLOW else DENIED_AT,
        rule=None if event.rule == NO_RULE else rule_text(rules, event.rule),
        pid=event.tgid,
        req=req,
        res={"errno": event.error},
    )


def text(name: bytes) -> tuple[str, str | None]:
    """A name as text; when it is not UTF-8, escaped, and its bytes in hex."""
    try:
        return name.decode(), None
    except UnicodeDecodeError:
        return name.decode("utf-8", "backslashreplace"), name.hex()


def rule_text(rules: Sequence[object], index: int) -> str:
    return str(rules[index]) if 0 <= index < len(rules) else f"rule {index}"


class EventRenderer:
    """Renders batches of events of one run. Not thread-safe: the log's lock is held."""

    def __init__(self, run: bytes, rules: Sequence[object]) -> None:
        self._run = run
        self._rules = rules
        self._rule_json: dict[int, str] = {NO_RULE: "null"}
        self._names: dict[int, str] = {}
        self._results: dict[int, tuple[str, bytes, str]] = {}
        self._second = (-1, "")

    def render(self, events: Sequence[Event], *, agent: bytes, seq: int, prev: bytes) -> tuple[list[str], list[bytes]]:
        """Lines and this_hashes of `events`, the first of which gets number `seq` and follows `prev`."""
        run, pack, encode = self._run, PACKED.pack, _encode
        who = f'"agent":"{agent.hex()}","run":"{run.hex()}","op":'
        lines: list[str] = []
        hashes: list[bytes] = []
        prev_hex = prev.hex()
        second, second_text = self._second
        for e in events:
            now, nanos = divmod(e.ts_ns, 1_000_000_000)
            if now != second:
                second, second_text = now, timestamp(now * 1_000_000_000)[:20]
            ts = f"{second_text}{nanos:09d}Z"
            try:
                target = encode(e.target.decode()).decode()
                raw = ""
            except UnicodeDecodeError:
                shown, hexed = text(e.target)
                target, raw = encode(shown).decode(), f'"raw":"{hexed}",'
            name = self._names.get(e.op) or self._name(e.op)
            rule = self._rule_json.get(e.rule) or self._rule(e.rule)
            res, res_hash, res_hash_hex = self._results.get(e.error) or self._result(e.error)
            decision = "allow" if e.decision == ALLOW else DECISION_NAMES[e.decision]
            stage = "null" if e.decision == ALLOW else f'"{DENIED_AT}"'
            arg = f'"arg":{e.arg},' if e.arg <= MAX_SAFE_INT else f'"arg":"{e.arg}",'
            last = ""
            if e.count > 1:
                arg += f'"count":{e.count},'
                last = f'"last_ts":"{timestamp(e.last_ts_ns)}",'
            if e.missing:
                last += f'"missing":"{NEED_NAMES[e.missing]}",'
            need = f'"need":"{NEED_NAMES[e.need]}","nr":{e.nr},'
            second_name = self._second_name(e.target2) if e.target2 else ("", "")
            raw += second_name[0]
            tail = f'{second_name[1]}"tid":{e.tid}'
            hashed = (
                f'{{{arg}"decision":"{decision}",{last}"name":"{name}",{need}"pid":{e.tgid},{raw}"rule":{rule},'
                f'"stage":{stage},"target":{target},{tail},"ts":"{ts}"}}'
            )
            req_hash = sha256(hashed.encode())
            this = sha256(prev + pack(seq, agent, run, e.op, req_hash, res_hash))
            this_hex = this.hex()
            lines.append(
                f'{{"seq":{seq},"ts":"{ts}",{who}{e.op},"name":"{name}","target":{target},"decision":"{decision}",'
                f'"stage":{stage},"rule":{rule},"trace":"{trace_id(run, seq)}","pid":{e.tgid},'
                f'"req":{{{arg}{last}{need}{raw}{tail}}},"res":{res},"req_hash":"{req_hash.hex()}",'
                f'"res_hash":"{res_hash_hex}","prev_hash":"{prev_hex}","this_hash":"{this_hex}"}}\n'
            )
            hashes.append(this)
            prev, prev_hex = this, this_hex
            seq += 1
        self._second = (second, second_text)
        return lines, hashes

    def _name(self, op: int) -> str:
        return self._names.setdefault(op, op_name(op))

    def _rule(self, index: int) -> str:
        return self._rule_json.setdefault(index, _encode(rule_text(self._rules, index)).decode())

    def _result(self, error: int) -> tuple[str, bytes, str]:
        body = f'{{"errno":{error}}}'
        digest = sha256(body.encode())
        return self._results.setdefault(error, (body, digest, digest.hex()))

    @staticmethod
    def _second_name(name: bytes) -> tuple[str, str]:
        shown, hexed = text(name)
        return f'"raw2":"{hexed}",' if hexed else "", f'"target2":{_encode(shown).decode()},'
