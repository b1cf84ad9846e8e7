"""The Merkle tree and its proofs: against the RFC's vectors, its own words, and an implementation that is not ours."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tlog_packages import package

from akbox.kernel.merkle import (
    MerkleTree,
    RangeRoots,
    consistency_ranges,
    consistent,
    inclusion_ranges,
    root_from_path,
)


def leaf(n: int) -> bytes:
    return hashlib.sha256(n.to_bytes(4, "big")).digest()


LEAVES = [leaf(n) for n in range(300)]


def root_of(leaves: list[bytes]) -> bytes:
    tree = MerkleTree()
    for one in leaves:
        tree.append(one)
    return tree.root()


def roots(ranges: list[tuple[int, int]], size: int, step: int) -> list[bytes]:
    """Through the one pass that `akbox audit prove` makes, in pieces of `step` leaves."""
    finder = RangeRoots(ranges)
    for start in range(0, size, step):
        finder.feed(b"".join(LEAVES[start : min(start + step, size)]))
    return [finder.roots[one] for one in ranges]


def test_merkle_tree_against_rfc_6962_vectors() -> None:
    """Leaves and roots that the Certificate Transparency projects test with."""
    leaves = [bytes.fromhex(x) for x in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")]  # fmt: skip  # noqa: E501
    roots = {
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    for size, root in roots.items():
        assert root_of(leaves[:size]).hex() == root
    assert MerkleTree().root() == hashlib.sha256(b"").digest()


@given(st.integers(1, 300), st.integers(1, 99), st.data())
def test_one_entry_is_proved_by_log2_n_hashes(size: int, step: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    path = roots(inclusion_ranges(index, size), size, step)
    assert len(path) <= (size - 1).bit_length()
    assert root_from_path(LEAVES[index], index, size, path) == root_of(LEAVES[:size])
    assert root_from_path(b"other", index, size, path) != root_of(LEAVES[:size])
    assert root_from_path(LEAVES[index], index, size, [*path, bytes(32)]) is None


@given(st.integers(0, 300), st.integers(1, 99), st.data())
def test_an_older_tree_is_proved_a_prefix(new: int, step: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(0, new))
    path = roots(consistency_ranges(old, new), new, step)
    before, after = root_of(LEAVES[:old]), root_of(LEAVES[:new])
    assert consistent(old, new, before, after, path)
    assert not consistent(old, new, before, bytes(32), path) or old == 0
    assert not consistent(old, new, bytes(32), after, path)
    assert not consistent(old, new, before, after, [*path, bytes(32)])
    if path:
        assert not consistent(old, new, before, after, path[:-1])


def test_proofs_are_those_of_another_implementation() -> None:
    """aics-tlog: its tree gives the same proofs, and its verifier, which is apart from that, accepts ours."""
    tlog = package("aics_tlog")
    theirs = tlog.MerkleTree(LEAVES)
    for size in (1, 2, 3, 7, 8, 64, 65, 200, 300):
        root = root_of(LEAVES[:size])
        assert root == theirs.root(size)
        for index in {0, 1, size // 2, size - 1} & set(range(size)):
            path = roots(inclusion_ranges(index, size), size, 50)
            assert path == theirs.inclusion_proof(index, size)
            assert tlog.verify_leaf_inclusion(LEAVES[index], index, size, path, root)
        for old in {1, size // 3 or 1, size}:
            path = roots(consistency_ranges(old, size), size, 50)
            assert path == theirs.consistency_proof(old, size)
            assert tlog.verify_consistency(old, size, theirs.root(old), root, path)


def test_a_path_that_is_none() -> None:
    with pytest.raises(IndexError):
        inclusion_ranges(3, 3)
    with pytest.raises(IndexError):
        consistency_ranges(4, 3)
    assert inclusion_ranges(0, 1) == []
