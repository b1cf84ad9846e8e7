"""What a policy comes to in one run, for people and as data: every rule with its origin, budgets, the Landlock plan.

And for one effect the rule that decides, by the same engine that enforces.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import msgspec
from msgspec import Struct

from akbox.policy.compile import compile_policy
from akbox.policy.compiled import CompiledPolicy, Verdict
from akbox.policy.effects import (
    CALL_SPAWN,
    EXEC_OP,
    FS_OPEN,
    INFER,
    NET_BIND,
    NET_CONNECT,
    NET_DNS,
    NET_LISTEN,
    TOOL,
    WASM,
)
from akbox.policy.inuse import policy_names
from akbox.policy.landlock import LandlockPlan, landlock_plan
from akbox.policy.linked import with_links
from akbox.policy.matcher import ALLOW, ASK, DENY, EXEC, READ, WRITE
from akbox.policy.model import Policy
from akbox.policy.patterns import PatternError, did_you_mean, show
from akbox.policy.rules import Context, Grant, Rule
from akbox.rundir import state_root

# What people ask for: the name of a section, as an op and need bits.
EFFECTS: dict[str, tuple[int, int]] = {
    "fs.read": (FS_OPEN, READ),
    "fs.write": (FS_OPEN, WRITE),
    "fs.exec": (EXEC_OP, EXEC),
    "net.connect": (NET_CONNECT, 0),
    "net.dns": (NET_DNS, 0),
    "net.bind": (NET_BIND, 0),
    "net.listen": (NET_LISTEN, 0),
    "net.unix": (NET_CONNECT, 0),
    "tools": (TOOL, 0),
    "wasm": (WASM, 0),
    "infer": (INFER, 0),
    "spawn": (CALL_SPAWN, 0),
}
_PATH_EFFECTS = ("fs.", "spawn", "net.unix")
WORDS = {DENY: "denied", ALLOW: "allowed", ASK: "waits for approval"}
NEED_WORDS = ((READ, "read"), (WRITE, "write"), (EXEC, "exec"))


class Explanation(Struct, frozen=True):
    """The verdict on one effect. `rule` is "" when no rule covers it."""

    effect: str
    target: str
    decision: str
    rule: str
    origin: str
    where: str
    reason: str
    suggested_fix: str

    def __str__(self) -> str:
        by = f"\n  by: {self.rule}  [{self.where or self.origin}]" if self.rule else "\n  by: no rule covers it"
        fix = "\n  to allow it: " if self.suggested_fix.split(" = ")[0] in EFFECTS else "\n  why: "
        lines = self.suggested_fix.replace("\n", "\n               ")
        return f"{self.effect} {self.target}: {self.decision}{by}" + (fix + lines if lines else "")


def explain(compiled: CompiledPolicy, effect: str, target: str) -> Explanation:
    """Which rule decides `effect` ("fs.read", "net.connect", …) on a canonical `target`.

    Raises PatternError for an effect that does not exist.
    """
    if effect not in EFFECTS:
        known = ", ".join(EFFECTS)
        raise PatternError(f'"{effect}" is no effect', did_you_mean(effect, list(EFFECTS)) or f"known: {known}")
    op, need = EFFECTS[effect]
    if effect == "net.unix" and not target.startswith("unix:"):
        target = f"unix:{target}"
    return explanation(effect, target, compiled.decide(op, target, need=need))


def compile_here(
    policy: Policy,
    cwd: str,
    *,
    prefix: str = "/usr",
    runtime_grants: tuple[Grant, ...] = (),
    state_dir: str | os.PathLike[str] | None = None,
) -> CompiledPolicy:
    """As a run that starts in `cwd` (canonical) now would have it; its private TMPDIR, which does not exist yet, has a
    stand-in. Raises PolicyError, StateError."""
    context = Context(
        workdir=cwd,
        home=os.path.expanduser("~"),
        tmp=os.path.join(os.path.realpath(tempfile.gettempdir()), "akbox-RUN"),
        prefix=prefix,
        state_dirs=(str(state_root(state_dir)),),
        policy_files=policy_names(policy),
        runtime_grants=runtime_grants,
    )
    return compile_policy(policy, with_links(policy, context))


def explain_at(compiled: CompiledPolicy, effect: str, target: str, cwd: str) -> Explanation:
    """explain() of a path as people write it: relative to `cwd`, and judged by what it leads to."""
    if effect.startswith(_PATH_EFFECTS) and not target.startswith("unix:"):
        target = os.path.realpath(os.path.join(cwd, target))
    return explain(compiled, effect, target)


def explanation(effect: str, target: str, verdict: Verdict) -> Explanation:
    """A verdict in words."""
    rule = verdict.rule
    return Explanation(
        effect,
        target,
        WORDS[verdict.decision],
        str(rule) if rule else "",
        rule.origin if rule else "",
        rule.where if rule else "",
        rule.reason if rule else "",
        verdict.suggested_fix or "",
    )


def describe(compiled: CompiledPolicy, *, on_behalf: bool = True) -> dict[str, Any]:  # Any: JSON
    """Everything the policy comes to, ready for JSON."""
    plan = landlock_plan(compiled, on_behalf=on_behalf)
    return {
        "rules": [_rule(compiled, i, rule) for i, rule in enumerate(compiled.rules)],
        "default_exec": compiled.default_exec,
        "metadata": compiled.fs_metadata,
        "runtime": compiled.runtime,
        "budgets": compiled.budgets,
        "limits": msgspec.to_builtins(compiled.limits),
        "env": msgspec.to_builtins(compiled.env),
        "audit": msgspec.to_builtins(compiled.audit),
        "infer": msgspec.to_builtins(compiled.infer),
        "secrets": msgspec.to_builtins(compiled.secrets),
        "landlock": [
            {
                "path": g.path,
                "tree": g.tree,
                "rights": list(g.rights),
                "rules": [str(compiled.rules[i]) for i in g.rules],
            }
            for g in plan.paths
        ],
        "trapped": _trapped(compiled, plan),
    }


def _rule(compiled: CompiledPolicy, number: int, rule: Rule) -> dict[str, Any]:
    expanded = show(compiled.segments[number]) if number in compiled.segments else rule.pattern
    return {
        "number": number,
        "rule": str(rule),
        "section": rule.section,
        "pattern": rule.pattern,
        "means": expanded,
        "origin": rule.origin,
        "where": rule.where,
        "needs": [word for bit, word in NEED_WORDS if rule.need & bit],
        "reason": rule.reason,
    }


def _trapped(compiled: CompiledPolicy, plan: LandlockPlan) -> list[dict[str, str]]:
    """The rules that Landlock holds only roughly, so that what they cover is always trapped."""
    words = dict(NEED_WORDS)
    return [
        {"rule": str(compiled.rules[rule]), "need": words[need], "reason": reason}
        for (rule, need), reason in plan.inexact.items()
    ]


def as_text(compiled: CompiledPolicy, *, on_behalf: bool = True) -> str:
    """describe() for people."""
    data = describe(compiled, on_behalf=on_behalf)
    by_origin: dict[str, list[dict[str, Any]]] = {}
    for rule in data["rules"]:
        by_origin.setdefault(rule["origin"], []).append(rule)
    lines: list[str] = []
    for origin, rules in by_origin.items():
        lines.append(_title(origin))
        lines += ["  " + _rule_line(rule) for rule in rules]
    if compiled.default_exec:
        lines.append("  fs.exec is not stated: what fs.read grants may be executed, outside every fs.write pattern")
    lines.append("\nBudgets")
    lines += [f"  {name} = {value}" for name, value in sorted(data["budgets"].items())]
    lines += [f"  limit {name} = {value}" for name, value in sorted(data["limits"].items())]
    if compiled.infer.upstreams:
        lines.append("\nModels (the run has a gateway on 127.0.0.1, and may connect to it)")
        lines += [
            f"  {name}: {up.type}, {up.base_url}, {up.key or 'no key'}; serves {', '.join(up.models) or 'any model'}"
            for name, up in compiled.infer.upstreams.items()
        ]
    lines += [
        f"  secret {name}: from {s.source.partition(':')[0]}, for {', '.join(s.uses) or 'nobody'}"
        for name, s in compiled.secrets.items()
    ]
    lines.append("\nLandlock" + (" (opens and changes are made by the supervisor)" if on_behalf else ""))
    lines += [
        f"  {g['path'].rstrip('/') + '/**' if g['tree'] else g['path']}: {', '.join(g['rights'])}"
        for g in data["landlock"]
    ]
    lines.append("\nAlways trapped, because Landlock cannot hold them exactly")
    lines += [f"  {t['rule']} ({t['need']}): {t['reason']}" for t in data["trapped"]] or ["  nothing"]
    return "\n".join(lines).lstrip("\n") + "\n"


def _title(origin: str) -> str:
    titles = {
        "policy": "\nThe policy",
        "runtime": '\nWhat the command needs to start (runtime = "auto")',
        "builtin": "\nAlways denied, and exact paths only",
    }
    return titles.get(origin, f"\n{origin.capitalize()}")


def _rule_line(rule: dict[str, Any]) -> str:
    means = f"  = {rule['means']}" if rule["pattern"].startswith(("~", "${")) else ""
    needs = f" ({', '.join(rule['needs'])})" if rule["needs"] else ""
    reason = f"  # {rule['reason']}" if rule["reason"] else ""
    return f"{rule['rule']}{needs}{means}{reason}"
