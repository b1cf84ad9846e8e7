"""The figures as Markdown, as data, and as a picture; and the comparison with what was measured before."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Figures
from benchmarks.sides import Side
from benchmarks.workloads import WORKLOADS

NOT_TRAPPED = ("getppid", "stat", "readlink", "read", "write", "mmap+munmap")
NOT_TRAPPED_BAR = 1.05  # as a multiple of bare, for akbox
CLOCK_US = 0.02  # nothing finer than this is told apart
# call → side → the most microseconds that it may cost more than bare
CALL_BARS: dict[str, dict[str, float]] = {
    "open+close": {"akbox": 6, "akbox writes": 0.4},
    "open+close, relative": {"akbox": 6, "akbox writes": 0.4},
    "tcp connect": {"akbox": 40},
}
NOISE = 1.5  # --check: a ratio may be this much worse than in docs/benchmarks.json


def document(
    sides: Sequence[Side], calls: list[Figures], works: list[Figures], rest: list[Any], rounds: int
) -> dict[str, Any]:
    """Everything as plain data: what --json writes and --check reads."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": {
            "kernel": platform.release(),
            "cpus": os.cpu_count(),
            "cpu": _cpu(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "python": platform.python_version(),
        },
        "rounds": rounds,
        "sides": [{"id": s.id, "does": s.does, "version": s.version} for s in sides],
        "calls": {f.name: {s: statistics.median(v) for s, v in f.values.items()} for f in calls},
        "workloads": {f.name: {s: statistics.median(v) for s, v in f.values.items()} for f in works},
        "inside": [list(row) for row in rest],
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def net_ratio(data: dict[str, Any], workload: str, side: str) -> float | None:
    """The workload under this side as a multiple of bare, without what starting the side costs (the row `true`)."""
    rows = data["workloads"]
    values, start = rows[workload], rows.get("true", {})
    if side not in values or "bare" not in values:
        return None
    extra = start.get(side, 0) - start.get("bare", 0) if workload != "true" else 0
    return float((values[side] - extra) / values["bare"])


def markdown(data: dict[str, Any], command: str) -> str:
    ids = [side["id"] for side in data["sides"]]
    machine = data["machine"]
    lines = [
        "# Benchmarks",
        "",
        f"Written by `{command}` on {data['date']}: {machine['cpu']}, {machine['cpus']} CPUs, "
        f"{machine['memory_gib']} GiB, Linux {machine['kernel']}, Python {machine['python']}. Medians of "
        f"{data['rounds']} rounds, all sides interleaved in one run. Machines differ: what carries over is the ratio "
        "within a row.",
        "",
        "| side | what it does | version |",
        "| --- | --- | --- |",
        *(f"| {s['id']} | {s['does']} | {s['version']} |" for s in data["sides"]),
        "",
        "## Whole programs",
        "",
        "Wall time; in brackets the multiple of bare without the side's own start (the first row). **Bold** misses its "
        "bar.",
        "",
        _row(["", *ids, "bar"]),
        _row(["---"] * (len(ids) + 2)),
        *(_workload_row(data, name, ids) for name in data["workloads"]),
        "",
        "## Single calls",
        "",
        "Microseconds. **Bold** misses its bar.",
        "",
        _row(["", *ids, "bar"]),
        _row(["---"] * (len(ids) + 2)),
        *(_call_row(name, values, ids) for name, values in data["calls"].items()),
        "",
        "## Authority calls and the library",
        "",
        _row(["", "figure", "bar"]),
        _row(["---"] * 3),
        *(_row([what, f"{figure:.4g} {unit}", bar]) for what, figure, unit, bar in data["inside"]),
        "",
    ]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _workload_row(data: dict[str, Any], name: str, ids: Sequence[str]) -> str:
    bars = next((w.bars for w in WORKLOADS if w.id == name), {})
    cells = []
    for side in ids:
        value, ratio = data["workloads"][name].get(side), net_ratio(data, name, side)
        if value is None:
            cells.append("fails")
            continue
        text = _seconds(value) if side == "bare" or ratio is None else f"{_seconds(value)} ({ratio:.2f})"
        over = ratio is not None and ratio > bars.get(side, float("inf"))
        cells.append(f"**{text}**" if over else text)
    return _row([name, *cells, ", ".join(f"{side} ≤ {bar}" for side, bar in bars.items())])


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms" if value >= 0.01 else f"{value * 1000:.1f} ms"


def _call_row(name: str, values: dict[str, float], ids: Sequence[str]) -> str:
    bars = CALL_BARS.get(name, {})
    limits = {side: values["bare"] + bar for side, bar in bars.items() if "bare" in values}
    shown = [f"{side} ≤ bare + {bar:g}" for side, bar in bars.items()]
    if name in NOT_TRAPPED and "bare" in values:
        limits = {"akbox": values["bare"] * NOT_TRAPPED_BAR + CLOCK_US}
        shown = [f"akbox ≤ {NOT_TRAPPED_BAR} x bare"]
    cells = []
    for side in ids:
        text = f"{values[side]:.2f}" if side in values else "fails"
        cells.append(f"**{text}**" if values.get(side, 0) > limits.get(side, float("inf")) else text)
    return _row([name, *cells, ", ".join(shown)])


def worse(data: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """What costs more, as a multiple of bare, than it did; with a generous margin, because machines are noisy."""
    found = []
    for name in data["workloads"]:
        for side in ("akbox", "akbox writes"):
            if name not in before["workloads"]:
                continue
            now, then = net_ratio(data, name, side), net_ratio(before, name, side)
            if now is not None and then is not None and now > then * NOISE:
                found.append(f"{name} under {side}: {now:.2f} x bare, was {then:.2f}")
    return found


def picture(data: dict[str, Any]) -> str:
    """An SVG: for each workload a bar per side, as a multiple of bare (cut at 8)."""
    ids = [side["id"] for side in data["sides"] if side["id"] != "bare"]
    colours = ("#2f6f4f", "#6aa84f", "#b6d7a8", "#3d6fb4", "#7aa6dc", "#c27c2c", "#e0b070", "#9a4f8f", "#b0b0b0")
    height, top, label, width, limit = 12, 46, 150, 520, 8.0
    parts, y = [], top
    for index, side in enumerate(ids):
        x = label + (index % 5) * 120
        parts.append(f'<rect x="{x}" y="{6 + 16 * (index // 5)}" width="10" height="10" fill="{colours[index % 9]}"/>')
        parts.append(f'<text x="{x + 14}" y="{15 + 16 * (index // 5)}">{side}</text>')
    for name in data["workloads"]:
        parts.append(f'<text x="{label - 8}" y="{y + 10}" text-anchor="end">{name}</text>')
        for index, side in enumerate(ids):
            ratio = net_ratio(data, name, side)
            if ratio is None:
                continue
            length = min(ratio, limit) / limit * width
            parts.append(
                f'<rect x="{label}" y="{y}" width="{length:.1f}" height="{height - 2}" fill="{colours[index % 9]}"/>'
            )
            parts.append(f'<text x="{label + length + 4:.1f}" y="{y + 9}">{ratio:.2f}</text>')
            y += height
        y += 8
    x = label + width / limit
    parts.append(f'<line x1="{x:.1f}" y1="{top - 4}" x2="{x:.1f}" y2="{y}" stroke="#888" stroke-dasharray="3 3"/>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{y + 10}"'
    return f'{head} style="font: 10px sans-serif; background: #fff">{"".join(parts)}</svg>\n'
