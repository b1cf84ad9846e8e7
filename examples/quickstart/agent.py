"""A small agent: summarises data/sales.csv into report.md, keeps its progress on the heap, and asks for too much once.

Plain files go through plain system calls; the heap is the Authority Kernel's (see docs/cli.md). Run it with
`akbox run -p policy.toml -- python3 agent.py` in this directory.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from authority_nanos import AuthorityKernel

HERE = Path(__file__).resolve().parent


def revenue_by(rows: list[dict[str, str]], column: str) -> dict[str, float]:
    """Revenue for each value of a column, the largest first."""
    totals: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        totals[row[column]] += int(row["units"]) * float(row["price"])
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def table(title: str, totals: dict[str, float]) -> str:
    """A Markdown table."""
    lines = [f"| {title} | revenue |", "| --- | ---: |"]
    return "\n".join(lines + [f"| {name} | {value:,.2f} |" for name, value in totals.items()])


def payroll_note() -> str:
    """What the agent was not meant to see: the policy grants data/, not private/."""
    try:
        lines = (HERE / "private/payroll.csv").read_text().splitlines()
        return f"payroll: {len(lines) - 1} people"
    except PermissionError as error:
        return f"payroll left out: {error.strerror.lower()}"


def main() -> None:
    """The agent's task."""
    with AuthorityKernel() as kernel:
        progress = kernel.alloc("progress", {"step": "reading", "rows": 0})
        with open(HERE / "data/sales.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        kernel.write(progress, [{"op": "set", "path": "/rows", "value": len(rows)}])
        report = [
            "# Sales",
            table("region", revenue_by(rows, "region")),
            table("product", revenue_by(rows, "product")),
            payroll_note(),
        ]
        (HERE / "report.md").write_text("\n\n".join(report) + "\n")
        kernel.write(progress, [{"op": "set", "path": "/step", "value": "done"}])
        print("agent: wrote report.md;", report[-1])
        print("agent: progress is", kernel.read(progress).decode())
        kernel.delete(progress)


if __name__ == "__main__":
    main()
