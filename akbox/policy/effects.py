"""What an op and a target string of design 02 mean to a policy: which section decides, about what.

The numbers are those of akbox/kernel/ops.py; the policy is below the kernel and does not import it.
"""

from __future__ import annotations

import re

from msgspec import Struct

from akbox.policy.netpatterns import canonical_host, parse_network
from akbox.policy.patterns import PatternError

FS_FIRST, FS_LAST = 0x100, 0x108
FS_OPEN, FS_STAT = 0x100, 0x105
NET_CONNECT, NET_DNS, NET_BIND, NET_LISTEN, NET_ACCEPT, NET_SEND = range(0x200, 0x206)
EXEC_OP, SIGNAL, SYS_REFUSED = 0x300, 0x301, 0x3FF
TOOL, WASM, INFER, SEND, SECRET, HOSTCALL = range(0x500, 0x506)  # 0x400 is 1024: those are the authority calls
CALL_FIRST, CALL_TOOL, CALL_SPAWN, CALL_INFERENCE, CALL_LAST = 1024, 1031, 1032, 1037, 1044

READ, WRITE, EXEC = 1, 2, 4

NET_SECTIONS = {
    NET_CONNECT: "net.connect",
    NET_SEND: "net.connect",
    NET_BIND: "net.bind",
    NET_LISTEN: "net.listen",
    NET_ACCEPT: "net.listen",
}
NAME_SECTIONS = {
    TOOL: ("tool", "tools.allow"),
    CALL_TOOL: ("tool", "tools.allow"),
    WASM: ("wasm", "wasm.modules"),
    HOSTCALL: ("hostcall", "wasm.hostcalls"),
    INFER: ("model", "infer.models"),
    CALL_INFERENCE: ("model", "infer.models"),
}


class Target(Struct, frozen=True):
    """What is judged: `kind` is path, stat, unix, ip, dns, name, own, syscall or none.

    `section` is the one that would have to grant it; "" for paths, where the need bits say so.
    """

    kind: str
    name: str
    section: str = ""
    port: int = 0
    protocol: str = "tcp"


def need_of(op: int) -> int:
    """Need bits of an op on a path that states none: reading for open and stat, exec, and write for every change."""
    if op in (EXEC_OP, CALL_SPAWN):
        return EXEC
    return READ if op in (FS_OPEN, FS_STAT) else WRITE


def parse_target(op: int, target: str) -> Target:
    """Understand a target string; raises PatternError for one that is not canonical or not of this op."""
    if op == FS_STAT:
        return Target("stat", canonical_path(target), "fs.read")
    if FS_FIRST <= op <= FS_LAST or op == EXEC_OP:
        return Target("path", canonical_path(target))
    if op == CALL_SPAWN:
        return Target("path", canonical_path(target), "spawn.allow")
    if op in NET_SECTIONS:
        return parse_net_target(target, NET_SECTIONS[op])
    if op == NET_DNS:
        host = target.removeprefix("udp+").removeprefix("dns:")
        return Target("dns", canonical_host(host.partition(":")[0]), "net.dns")
    if op in NAME_SECTIONS:
        prefix, section = NAME_SECTIONS[op]
        return Target("name", target.removeprefix(prefix + ":"), section)
    if op == SECRET:
        return Target("none", target, "secrets")
    if op == SYS_REFUSED:
        return Target("syscall", target)
    # Signals stay inside the run (the target sees to it); mail, heap, budget and the like are the agent's own.
    if op in (SIGNAL, SEND) or CALL_FIRST <= op <= CALL_LAST:
        return Target("own", target)
    raise PatternError(f"no policy covers op {op:#x}")


def canonical_path(target: str) -> str:
    """An absolute path without `.`, `..`, `//` or a final `/`; raises PatternError for anything else."""
    parts = target.split("/")
    if not target.startswith("/") or "\0" in target or (target != "/" and any(p in ("", ".", "..") for p in parts[1:])):
        raise PatternError(f"not a canonical path: {target!r}")
    return target


def parse_net_target(target: str, section: str) -> Target:
    """`[udp+]ip:ADDR:PORT`, `[udp+]dns:HOST:PORT` or `unix:/path`; raises PatternError."""
    protocol, rest = ("udp", target[4:]) if target.startswith("udp+") else ("tcp", target)
    scheme, _, rest = rest.partition(":")
    if scheme == "unix":
        return Target("unix", canonical_path(rest), "net.unix")
    where, _, port = rest.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise PatternError(f"not an address with a port: {target!r}")
    if scheme == "dns":
        return Target("dns", canonical_host(where), section, int(port), protocol)
    if scheme == "ip":
        network = parse_network(where)
        if network.num_addresses != 1:
            raise PatternError(f"not one address: {target!r}")
        return Target("ip", str(network.network_address), section, int(port), protocol)
    raise PatternError(f"not a network target: {target!r}")
