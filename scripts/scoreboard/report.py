"""docs/conformance.md, made of the outcomes of scripts/conformance."""

from __future__ import annotations

import os
import platform
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from akbox import __version__

ATTACK = {"refused": "yes", "open": "**no**", "cannot": "–"}
NEIGHBOUR = {"works": "works", "breaks": "**breaks**", "cannot": "–"}

HEAD = """# Conformance

Made by `scripts/conformance --write`; do not edit. What akbox refuses, what it lets work, and what other sandboxes do
with the same attempts under the same policy.

- {date}, akbox {akbox}, Linux {kernel}, {machine}, {cpus} CPUs.
- Every attempt is made as an ordinary user (uid 65534), bare first: what does not succeed bare is not counted.
  There are {cases} such attempts and neighbours.
- The policy of each case is translated into each sandbox's own words, as well as it has words for it
  (`scripts/scoreboard/peers.py`). `–` is a policy that it cannot say: neither a failure nor a refusal.
- *Refused* means that nothing came of it: nothing secret was read, nothing on the host changed, the call did not
  succeed. Which error the program got, and whether there is a log of it, is not compared. Whoever finds that a sandbox
  was told the wrong thing is welcome to correct the adapter.
- Cases whose policy grants something of the network are not compared: those rules are not translated.
- A *neighbour* is what looks like an attempt and must work: the file beside the denied one, a child's own `/proc`,
  threads, a FIFO.

## To reproduce

    {install}
    .venv/bin/python scripts/conformance --write    # as root; also --against bwrap,hlyn, --case 'F*', --json FILE

akbox by itself, strictly (exact error, entry in the log, both interposers, as root and as an ordinary user):

    akbox test confinement
    scripts/test tests/conformance                  # and inside a container with a runtime's default filter
"""


def about() -> dict[str, Any]:
    return {
        "akbox": __version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }


def table(rows: list[list[str]]) -> list[str]:
    head, *body = rows
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]


def by_case(found: Mapping[str, Any]) -> dict[str, dict[str, dict[str, str]]]:
    cases: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for score in found["scores"]:
        cases[score["case"]][score["sandbox"]] = score
    return cases


def document(found: Mapping[str, Any]) -> str:
    cases = by_case(found)
    names = ["akbox", *(peer["id"] for peer in found["peers"])]
    counted = {name: row for name, row in cases.items() if "akbox" in row}
    attacks = {name: row for name, row in counted.items() if row["bare"]["verdict"] == "open"}
    neighbours = {name: row for name, row in counted.items() if row["bare"]["verdict"] == "works"}
    installs = "\n    ".join(dict.fromkeys(peer["install"] for peer in found["peers"]))
    lines = [HEAD.format(**found, cases=len(counted), install=installs or "# no other sandbox was there")]
    lines += ["## Totals", "", *totals(found, names, attacks, neighbours), ""]
    lines += [f"{name} is left out: {why}\n" for name, why in found["left_out"].items()]
    lines += ["## Ours that do not hold", "", *ours(attacks, neighbours), ""]
    lines += ["## What only akbox refuses", "", *alone(names, attacks), ""]
    lines += ["## Attempts", "", *table([["case", "attempt", *names], *rows(names, attacks, ATTACK)]), ""]
    lines += ["## Neighbours", "", *table([["case", "what", *names], *rows(names, neighbours, NEIGHBOUR)]), ""]
    untried = [(name, row["bare"]["title"]) for name, row in cases.items() if "akbox" not in row]
    lines += ["## Not counted", "", "These do not succeed bare as an ordinary user, on this machine:", ""]
    lines += [", ".join(f"{name} ({title})" for name, title in untried) or "none", ""]
    return "\n".join(lines)


def totals(found: Mapping[str, Any], names: list[str], attacks: Any, neighbours: Any) -> list[str]:
    what = {peer["id"]: peer for peer in found["peers"]}
    out = [["sandbox", "version", "by", "refused", "**not refused**", "cannot be said", "neighbours work", "**break**"]]
    for name in names:
        a = Counter(row[name]["verdict"] for row in attacks.values())
        n = Counter(row[name]["verdict"] for row in neighbours.values())
        version = found["akbox"] if name == "akbox" else what[name]["version"]
        by = "seccomp, Landlock, user notification, ptrace" if name == "akbox" else what[name]["what"]
        cells = [name, version, by, a["refused"], a["open"], a["cannot"] + n["cannot"], n["works"], n["breaks"]]
        out.append([str(cell) for cell in cells])
    return table(out)


def ours(attacks: Any, neighbours: Any) -> list[str]:
    bad = [(n, r) for n, r in (*attacks.items(), *neighbours.items()) if r["akbox"]["verdict"] in ("open", "breaks")]
    return [f"- {name}: {row['akbox']['title']} ({row['akbox']['verdict']})" for name, row in bad] or ["None."]


def alone(names: list[str], attacks: Any) -> list[str]:
    peers = names[1:]
    mine = [
        (name, row)
        for name, row in attacks.items()
        if row["akbox"]["verdict"] == "refused" and peers and all(row[peer]["verdict"] != "refused" for peer in peers)
    ]
    return [f"- {name}: {row['akbox']['title']}" for name, row in mine] or ["Nothing."]


def rows(names: list[str], cases: Any, words: Mapping[str, str]) -> list[list[str]]:
    return [
        [name, row["akbox"]["title"].replace("|", "\\|"), *(words[row[one]["verdict"]] for one in names)]
        for name, row in cases.items()
    ]


def summary(found: Mapping[str, Any]) -> str:
    cases = by_case(found)
    names = ["akbox", *(peer["id"] for peer in found["peers"])]
    lines = []
    for name in names:
        counts = Counter(row[name]["verdict"] for row in cases.values() if name in row)
        lines.append(f"{name:10} " + ", ".join(f"{verdict} {count}" for verdict, count in sorted(counts.items())))
    for case, row in cases.items():
        if row.get("akbox", {}).get("verdict") in ("open", "breaks"):
            lines.append(f"akbox {case} {row['akbox']['verdict']}: {row['akbox']['detail']}")
    return "\n".join(lines)
