"""Why something of the network was refused that no list of rules is the reason for, in words for the report."""

from __future__ import annotations

import ipaddress
import json

from akbox.policy.ranges import METADATA, kind_of, may_be_private

_TLS = {
    "tls:none": 'it is not TLS, and net.sni = "enforce"',
    "tls:no-name": 'the TLS connection names no host, and net.sni = "enforce"',
    "tls:other-name": 'the TLS connection names a host that no rule allows here, and net.sni = "enforce"',
}
_BYTES = "the budget bytes is spent, or cannot count this: only TCP connections that the agent opens are counted"

Words = tuple[str, str | None, str | None]  # why, the section that would grant it, the line that would


def explain_refusal(target: str, second: str) -> Words | None:
    """`target` and `second` as in the entry; None when the rules are the reason."""
    if "budget:bytes" in (target, second):
        return _BYTES, None, None
    if second in _TLS:
        return _TLS[second], None, None
    if second.startswith("ip:") and ":" not in target:  # a name that was not handed its answer
        return _withheld(target, second.partition(",")[0].removeprefix("ip:"))
    if _metadata(target):
        return "the cloud's metadata service, which hands out this machine's credentials; no rule allows it", None, None
    return None


def _withheld(name: str, address: str) -> Words:
    kind = kind_of(ipaddress.ip_address(address)) or "this machine's network"
    why = f"it leads to {address} ({kind}), where a name may not lead"
    if not may_be_private(kind):
        return f"{why} without an ip: rule for that address", None, None
    return f"{why} unless net.private has it", "net.private", f"net.private = [{json.dumps(name)}]"


def _metadata(target: str) -> bool:
    scheme, _, rest = target.removeprefix("udp+").partition(":")
    try:
        return scheme == "ip" and ipaddress.ip_address(rest.rpartition(":")[0].strip("[]")) in METADATA
    except ValueError:
        return False
