"""The policy of a run with its profiles joined in, as canonical JSON: what the run directory keeps and the log commits
to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from akbox.policy.rules import RULE_LISTS

if TYPE_CHECKING:
    from akbox.policy.compiled import CompiledPolicy


def canonical_policy(compiled: CompiledPolicy) -> bytes:
    """UTF-8 JSON with sorted keys and no white space; parses again to a policy with the same rules and no profiles."""
    plain: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(compiled.policy, source=None))
    plain.pop("profiles", None)
    for section, name in RULE_LISTS:
        patterns = [r.pattern for r in compiled.rules if r.section == f"{section}.{name}" and not r.ask]
        if patterns or (name == "exec" and not compiled.default_exec):
            plain.setdefault(section, {})[name] = patterns
    effects = [f"{r.section} {r.pattern}" for r in compiled.rules if r.ask]
    if effects:
        plain.setdefault("approve", {})["effects"] = effects
    infer: dict[str, Any] = msgspec.to_builtins(compiled.infer)
    if infer:
        plain.setdefault("infer", {}).update(infer)
    if compiled.secrets:
        plain["secrets"] = msgspec.to_builtins(compiled.secrets)
    if compiled.mcp:
        plain.setdefault("tools", {})["mcp"] = msgspec.to_builtins(compiled.mcp)
    if compiled.signed_by:
        plain.setdefault("wasm", {})["signed_by"] = compiled.signed_by
    plain["budgets"] = compiled.budgets
    plain["audit"] = msgspec.to_builtins(compiled.audit)
    plain["env"] = msgspec.to_builtins(compiled.env)
    plain["limits"] = msgspec.to_builtins(compiled.limits)
    plain["runtime"] = compiled.runtime
    if compiled.sni_enforced:
        plain.setdefault("net", {})["sni"] = "enforce"
    plain.setdefault("fs", {})["metadata"] = compiled.fs_metadata
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
