"""The RFC 6962 Merkle tree over the log's entries, and the proofs that it gives.

A leaf's data is the entry's 32-byte this_hash, which commits to the entry and to all before it. The tree is built as
entries come, with O(log n) hashes kept. A proof is a few roots of ranges of leaves: `inclusion_ranges` and
`consistency_ranges` say which, so that one pass over a log of any length finds them in the same little memory.
"""

from collections.abc import Iterable, Sequence

from akbox.kernel.digest import sha256

EMPTY_ROOT = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")  # of no bytes
HASH_BYTES = 32


class MerkleTree:
    """The right edge of a growing tree: the roots of its complete subtrees, largest first."""

    def __init__(self) -> None:
        self.size = 0
        self._edge: list[bytes] = []

    def append(self, data: bytes) -> None:
        node, size = sha256(b"\0" + data), self.size
        edge = self._edge
        while size & 1:
            node = sha256(b"\1" + edge.pop() + node)
            size >>= 1
        edge.append(node)
        self.size += 1

    def extend(self, hashes: bytes) -> None:
        """Appends leaves of 32 bytes each, many of them at once in C (native/merkle.h)."""
        if len(hashes) == HASH_BYTES:
            self.append(hashes)
            return
        from akbox._native import merkle_extend

        edge = merkle_extend(b"".join(self._edge), self.size, hashes)
        self._edge = [edge[i : i + HASH_BYTES] for i in range(0, len(edge), HASH_BYTES)]
        self.size += len(hashes) // HASH_BYTES

    def root(self) -> bytes:
        """The tree head of RFC 6962 2.1 for the leaves so far."""
        if not self._edge:
            return EMPTY_ROOT
        node = self._edge[-1]
        for left in reversed(self._edge[:-1]):
            node = sha256(b"\1" + left + node)
        return node


Range = tuple[int, int]
"""Leaves from the first number (0-based) up to, not including, the second."""


def _split(count: int) -> int:
    """The largest power of two that is smaller than `count` (> 1)."""
    return 1 << (count - 1).bit_length() - 1


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """Whose roots are the audit path of RFC 6962 2.1.1 for leaf `index` of `size`, from the leaf up. Raises
    IndexError."""
    if not 0 <= index < size:
        raise IndexError(index)
    out: list[Range] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            out.append((middle, end))
            end = middle
        else:
            out.append((start, middle))
            start = middle
    return out[::-1]


def consistency_ranges(old: int, new: int) -> list[Range]:
    """Whose roots are the consistency proof of RFC 6962 2.1.2 between trees of `old` and `new` leaves, in its order.
    Raises IndexError."""
    if not 0 <= old <= new:
        raise IndexError(old)
    if old in (0, new):
        return []
    out: list[Range] = []
    start, end, whole = 0, new, True  # whole: what is left of the old tree is a complete subtree that it has a root of
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            out.append((middle, end))
            end = middle
        else:
            out.append((start, middle))
            start, whole = middle, False
    if not whole:
        out.append((start, end))
    return out[::-1]


class RangeRoots:
    """Finds the roots of disjoint ranges of leaves in one pass. Feed it all leaves in order."""

    def __init__(self, ranges: Iterable[Range]) -> None:
        self.roots: dict[Range, bytes] = {}
        self._ranges = sorted(ranges, reverse=True)  # the next one last
        self._tree = MerkleTree()
        self._size = 0

    def feed(self, hashes: bytes) -> None:
        first, self._size = self._size, self._size + len(hashes) // HASH_BYTES
        while self._ranges and self._ranges[-1][0] < self._size:
            start, end = self._ranges[-1]
            from_leaf, to_leaf = max(start, first) - first, min(end, self._size) - first
            self._tree.extend(hashes[from_leaf * HASH_BYTES : to_leaf * HASH_BYTES])
            if end > self._size:
                return
            self.roots[self._ranges.pop()] = self._tree.root()
            self._tree = MerkleTree()


def root_from_path(data: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root that `path` leads to from leaf `index` of `size` (RFC 9162 2.1.3.2), or None when it can't be one."""
    if not 0 <= index < size:
        return None
    node, position, last = sha256(b"\0" + data), index, size - 1
    for sibling in path:
        if last == 0:
            return None
        if position & 1 or position == last:
            node = sha256(b"\1" + sibling + node)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            node = sha256(b"\1" + node + sibling)
        position, last = position >> 1, last >> 1
    return node if last == 0 else None


def consistent(old: int, new: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]) -> bool:
    """Does `path` show that the tree of `new` leaves begins with the one of `old` (RFC 9162 2.1.4.2)?"""
    if not 0 <= old <= new:
        return False
    if old in (0, new):
        return not path and (old_root == new_root if old else old_root == EMPTY_ROOT)
    nodes = list(path) if old & (old - 1) else [old_root, *path]
    if not nodes:
        return False
    position, last = old - 1, new - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    before = after = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            before, after = sha256(b"\1" + node + before), sha256(b"\1" + node + after)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            after = sha256(b"\1" + after + node)
        position, last = position >> 1, last >> 1
    return before == old_root and after == new_root and last == 0
