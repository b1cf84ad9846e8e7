"""Which rule covers an address and a port, in Python and as tables for native/policy.c.

Rules are grouped by network; within one network the port ranges are cut into pieces that do not overlap, each with the
best rule per operation, protocol and effect. A look-up is one binary search per prefix length and one per network
found.
"""

from __future__ import annotations

import ipaddress
import struct
from bisect import bisect_right

from msgspec import Struct, field

from akbox.policy.matcher import ALLOW, ASK, DENY, E_ALLOW, E_ASK, E_DENY, NO_RULE, Match
from akbox.policy.netpatterns import Address, Network, canonical_address

CONNECT, BIND, LISTEN = 0, 1, 2
TCP, UDP = 0, 1
PORT_END = 65536
LENGTH = struct.Struct("<2B2x2I")  # address bytes, prefix length, first prefix, prefixes
PREFIX = struct.Struct("<16s2I")  # address (IPv4 in the first 4 bytes), first interval, intervals
INTERVAL = struct.Struct("<2H2I")  # lowest and highest port, first entry, entries
ENTRY = struct.Struct("<I4B")  # rule, operation, protocol, effect, 0

Key = tuple[int, int, int]  # operation, protocol, effect


class NetRule(Struct, frozen=True):
    """One rule on addresses: ports low..high of a network, for the pairs of operation and protocol in `uses`."""

    rule: int
    effect: int
    network: Network
    low: int
    high: int
    uses: tuple[tuple[int, int], ...]


class Piece(Struct, frozen=True):
    """Ports low..high and the best rule for each key."""

    low: int
    high: int
    best: dict[Key, int]


class NetTable(Struct):
    """Address rules, ready to look up and as packed records."""

    by_network: dict[Network, list[Piece]] = field(default_factory=dict)
    lengths: list[bytes] = field(default_factory=list)
    prefixes: list[bytes] = field(default_factory=list)
    intervals: list[bytes] = field(default_factory=list)
    entries: list[bytes] = field(default_factory=list)
    rules: list[NetRule] = field(default_factory=list)

    def without(self, rules: frozenset[int]) -> NetTable:
        """The table as if these rules granted nothing."""
        return net_table([r for r in self.rules if r.rule not in rules or r.effect == E_DENY])

    def judge(self, op: int, proto: int, address: Address, port: int) -> Match:
        """ak_policy_net(): deny > approve > allow over every network that holds the address."""
        address = loopback_of(address) if op == CONNECT else canonical_address(address)
        best: dict[int, int] = {}
        for bits in range(address.max_prefixlen + 1):
            pieces = self.by_network.get(ipaddress.ip_network((address, bits), strict=False), [])
            at = bisect_right(pieces, port, key=lambda piece: piece.low) - 1
            if at < 0 or pieces[at].high < port:
                continue
            for (has_op, has_proto, effect), rule in pieces[at].best.items():
                if (has_op, has_proto) == (op, proto):
                    best[effect] = min(best.get(effect, rule), rule)
        for effect, decision in ((E_DENY, DENY), (E_ASK, ASK), (E_ALLOW, ALLOW)):
            if effect in best:
                return Match(decision, best[effect], 0)
        return Match(DENY, NO_RULE, 0)


def loopback_of(address: Address) -> Address:
    """Linux sends a connect to the unspecified address to the loopback address: judge what happens."""
    address = canonical_address(address)
    if not address.is_unspecified:
        return address
    return ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")


def net_table(rules: list[NetRule]) -> NetTable:
    """Build the table; rules may be in any order."""
    table = NetTable(rules=list(rules))
    grouped: dict[Network, list[NetRule]] = {}
    for rule in rules:
        grouped.setdefault(rule.network, []).append(rule)
    ordered = sorted(grouped, key=lambda n: (n.version, n.prefixlen, n.network_address.packed))
    lengths: dict[tuple[int, int], list[int]] = {}
    for network in ordered:
        pieces = table.by_network[network] = _pieces(grouped[network])
        span = lengths.setdefault((network.max_prefixlen // 8, network.prefixlen), [len(table.prefixes), 0])
        span[1] += 1
        address = network.network_address.packed.ljust(16, b"\0")
        table.prefixes.append(PREFIX.pack(address, len(table.intervals), len(pieces)))
        for piece in pieces:
            table.intervals.append(INTERVAL.pack(piece.low, piece.high, len(table.entries), len(piece.best)))
            table.entries += [
                ENTRY.pack(rule, op, proto, effect, 0) for (op, proto, effect), rule in piece.best.items()
            ]
    table.lengths = [LENGTH.pack(size, bits, first, count) for (size, bits), (first, count) in lengths.items()]
    return table


def _pieces(rules: list[NetRule]) -> list[Piece]:
    """Cut overlapping ranges at every end; between two cuts the same rules hold."""
    starts: dict[int, list[NetRule]] = {}
    ends: dict[int, list[NetRule]] = {}
    for rule in rules:
        starts.setdefault(rule.low, []).append(rule)
        ends.setdefault(rule.high + 1, []).append(rule)
    cuts = sorted({*starts, *ends})
    live: dict[int, NetRule] = {}
    pieces: list[Piece] = []
    for low, nxt in zip(cuts, [*cuts[1:], PORT_END], strict=True):
        for rule in ends.get(low, []):
            del live[id(rule)]
        for rule in starts.get(low, []):
            live[id(rule)] = rule
        best: dict[Key, int] = {}
        for rule in live.values():
            for op, proto in rule.uses:
                key = (op, proto, rule.effect)
                best[key] = min(best.get(key, rule.rule), rule.rule)
        if best:
            pieces.append(Piece(low, nxt - 1, best))
    return pieces
