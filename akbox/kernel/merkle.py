"""The RFC 6962 Merkle tree over the log's entries, built as they come: O(log n) hashes kept, one leaf at a time.

A leaf's data is the entry's 32-byte this_hash, which commits to the entry and to all before it.
"""

from collections.abc import Iterable, Sequence

from akbox.kernel.digest import sha256

EMPTY_ROOT = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")  # of no bytes


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
        if len(hashes) == 32:
            self.append(hashes)
            return
        from akbox._native import merkle_extend

        edge = merkle_extend(b"".join(self._edge), self.size, hashes)
        self._edge = [edge[i : i + 32] for i in range(0, len(edge), 32)]
        self.size += len(hashes) // 32

    def root(self) -> bytes:
        """The tree head of RFC 6962 2.1 for the leaves so far."""
        if not self._edge:
            return EMPTY_ROOT
        node = self._edge[-1]
        for left in reversed(self._edge[:-1]):
            node = sha256(b"\1" + left + node)
        return node


def merkle_root(leaves: Iterable[bytes]) -> bytes:
    """The root over the given leaf data."""
    tree = MerkleTree()
    for leaf in leaves:
        tree.append(leaf)
    return tree.root()


def inclusion_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The audit path of RFC 6962 2.1.1 for leaf `index` (0-based)."""
    if not 0 <= index < len(leaves):
        raise IndexError(index)
    if len(leaves) == 1:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if index < split:
        return [*inclusion_path(leaves[:split], index), merkle_root(leaves[split:])]
    return [*inclusion_path(leaves[split:], index - split), merkle_root(leaves[:split])]


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
