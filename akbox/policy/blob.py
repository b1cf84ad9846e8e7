"""The flat form of a compiled policy that native/policy.c reads. Everything is little-endian; layout in
native/policy.c.

Nodes are numbered so that a child's number is higher than its parent's. All edges by text (literals, and globs by what
they start or end with) are in one open-addressed hash table, so a step costs the same for ten rules and for ten
thousand.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

from msgspec import Struct, field

from akbox.policy.matcher import Accept, Node
from akbox.policy.netmatcher import NetTable

MAGIC = 0x504B4101
HEADER = struct.Struct("<28I")
NODE = struct.Struct("<4I2HI")  # any, star, first bucket, first accept, buckets, accepts, flags
BUCKET = struct.Struct("<2H")  # kind, length
GROUP = struct.Struct("<3I2B2xH2x2I")  # parent, hash, text, kind, 0, length, first, count
GLOB = struct.Struct("<2I2H")  # child, text, length, digits
ACCEPT = struct.Struct("<I4B")  # rule, effect, needs, exact, domain
FLAG_LOOP, FLAG_LITERALS = 1, 2
K_LITERAL, K_PREFIX, K_SUFFIX = 0, 1, 2


class _Tables(Struct):
    nodes: list[bytes] = field(default_factory=list)
    buckets: list[bytes] = field(default_factory=list)
    groups: list[tuple[int, int, int, int, int, int, int]] = field(default_factory=list)
    globs: list[bytes] = field(default_factory=list)
    accepts: list[bytes] = field(default_factory=list)
    strings: bytearray = field(default_factory=bytearray)
    offsets: dict[bytes, int] = field(default_factory=dict)

    def text(self, raw: bytes) -> int:
        if raw not in self.offsets:
            self.offsets[raw] = len(self.strings)
            self.strings += raw
        return self.offsets[raw]


def serialize(root: Node, net: NetTable, rule_count: int) -> bytes:
    """The blob for ak_policy_parse()."""
    order = [root]
    number = {id(root): 0}
    loops: set[int] = set()
    for node in order:
        for child in node.children():
            number[id(child)] = len(order)
            order.append(child)
        if node.star is not None:
            loops.add(id(node.star))
    tables = _Tables()
    for node in order:
        _node(tables, node, number, id(node) in loops)
    tables.strings += bytes(-len(tables.strings) % 4)
    slots = _hash_table(tables.groups)
    sections = (
        (tables.nodes, NODE.size),
        (tables.buckets, BUCKET.size),
        ([GROUP.pack(g[0], g[1], g[2], g[3], 0, g[4], g[5], g[6]) for g in tables.groups], GROUP.size),
        (tables.globs, GLOB.size),
        (tables.accepts, ACCEPT.size),
        ([struct.pack("<I", slot) for slot in slots], 4),
        ([bytes(tables.strings)], 1),
        (net.lengths, 12),
        (net.prefixes, 24),
        (net.intervals, 12),
        (net.entries, 8),
    )
    offset = HEADER.size
    header = [MAGIC, 0, rule_count, 0, 0, 0]
    body: list[bytes] = []
    for records, size in sections:
        data = b"".join(records)
        header += [offset, len(data) // size]
        body.append(data)
        offset += len(data)
    header[1] = offset
    return HEADER.pack(*header) + b"".join(body)


def _node(tables: _Tables, node: Node, number: dict[int, int], loop: bool) -> None:
    me = number[id(node)]
    first_accept, first_bucket = len(tables.accepts), len(tables.buckets)
    for a in _strongest(node.accepts):
        tables.accepts.append(ACCEPT.pack(a.rule, a.effect, a.needs, a.exact, a.domain))
    for name, child in node.literals.items():
        tables.groups.append((me, zlib.crc32(name), tables.text(name), K_LITERAL, len(name), number[id(child)], 1))
    by_key: dict[tuple[int, bytes], list[tuple[bytes, Node, int]]] = {}
    for pattern, child in node.globs.items():
        by_key.setdefault(_glob_key(pattern), []).append((pattern, child, 0))
    if node.digits is not None:
        by_key.setdefault((K_PREFIX, b""), []).append((b"", node.digits, 1))
    for (kind, text), members in by_key.items():
        first = len(tables.globs)
        for pattern, child, digits in members:
            tables.globs.append(GLOB.pack(number[id(child)], tables.text(pattern), len(pattern), digits))
        tables.groups.append((me, zlib.crc32(text), tables.text(text), kind, len(text), first, len(members)))
    for kind, length in sorted({(kind, len(text)) for kind, text in by_key}):
        tables.buckets.append(BUCKET.pack(kind, length))
    flags = (FLAG_LOOP if loop else 0) | (FLAG_LITERALS if node.literals else 0)
    child_any = number[id(node.any)] if node.any is not None else 0
    child_star = number[id(node.star)] if node.star is not None else 0
    counts = len(tables.buckets) - first_bucket, len(tables.accepts) - first_accept
    tables.nodes.append(NODE.pack(child_any, child_star, first_bucket, first_accept, *counts, flags))


def _strongest(accepts: Iterable[Accept]) -> list[Accept]:
    """Of equal accepts only the one that would be named: keeps a node's list short however many profiles repeat a
    rule."""
    best: dict[tuple[int, int, bool, int], Accept] = {}
    for a in accepts:
        key = (a.effect, a.needs, a.exact, a.domain)
        if key not in best or a.rule < best[key].rule:
            best[key] = a
    return list(best.values())


def _glob_key(pattern: bytes) -> tuple[int, bytes]:
    """The longer of the texts that a glob must start or end with."""
    head = pattern[: min(i for i in (pattern.find(b"*"), pattern.find(b"?")) if i >= 0)]
    tail = pattern[max(pattern.rfind(b"*"), pattern.rfind(b"?")) + 1 :]
    return (K_SUFFIX, tail) if len(tail) > len(head) else (K_PREFIX, head)


def _hash_table(groups: list[tuple[int, int, int, int, int, int, int]]) -> list[int]:
    """Open addressing, at most half full; a slot holds a group's number + 1."""
    size = 4
    while size < 2 * len(groups) + 2:
        size *= 2
    slots = [0] * size
    for i, group in enumerate(groups):
        at = slot_hash(group[0], group[3], group[4], group[1]) & (size - 1)
        while slots[at]:
            at = (at + 1) & (size - 1)
        slots[at] = i + 1
    return slots


def slot_hash(parent: int, kind: int, length: int, crc: int) -> int:
    """The same in native/policy.c."""
    h = (crc ^ parent * 0x9E3779B1 ^ (kind * 256 + length) * 0x85EBCA6B) & 0xFFFFFFFF
    h ^= h >> 15
    h = h * 0x2C1B3C6D & 0xFFFFFFFF
    return h ^ h >> 13
