"""What is in a log, in numbers. Bounded memory: of the targets only those that come up most are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

MAX_KEYS = 10_000


def stats(entries: Iterable[dict[str, Any]], top: int = 10) -> dict[str, Any]:
    """entries, decisions (refusals that were counted in one entry count as often as they happened), first and last
    time, how often the time went back, by op, by process, by rule, and the most refused and most used targets."""
    count = steps_back = 0
    first = last = ""
    decisions: Counter[str] = Counter()
    by: dict[str, Counter[str]] = {"ops": Counter(), "rules": Counter(), "agents": Counter(), "pids": Counter()}
    allowed: Counter[str] = Counter()
    denied: Counter[str] = Counter()
    for e in entries:
        count += 1
        ts = e["ts"]
        first = first or ts
        steps_back += bool(last) and _second(ts) < _second(last)
        last = ts
        times = e["req"].get("count", 1)
        decisions[e["decision"]] += times
        by["ops"][e["name"]] += times
        for kind, key in (("rules", e["rule"]), ("agents", e["agent"]), ("pids", str(e["pid"]))):
            if key:
                _add(by[kind], key, times)
        _add(allowed if e["decision"] == "allow" else denied, f"{e['name']} {e['target']}", times)
    return {
        "entries": count,
        "decisions": dict(decisions),
        "first": first or None,
        "last": last or None,
        "clock_steps_back": steps_back,
        **{kind: dict(counter.most_common(top)) for kind, counter in by.items()},
        "most_refused": dict(denied.most_common(top)),
        "most_allowed": dict(allowed.most_common(top)),
    }


def _second(ts: str) -> str:
    """Entries of several threads may be out of order by microseconds: only whole seconds are a clock that was set."""
    return ts[:19]


def _add(counter: Counter[str], key: str, times: int) -> None:
    counter[key] += times
    if len(counter) > MAX_KEYS:
        for rare, _ in counter.most_common()[MAX_KEYS // 2 :]:
            del counter[rare]
