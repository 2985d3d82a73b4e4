"""The tree against the vectors of Certificate Transparency, and against a naive recomputation from the definition."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.audit import tree

LEAVES = [bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")]
ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def naive(leaves: list[bytes]) -> bytes:
    """Return the root as RFC 6962 defines it."""
    if len(leaves) < 2:
        return hashlib.sha256(b"\x00" + leaves[0]).digest() if leaves else hashlib.sha256(b"").digest()
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return hashlib.sha256(b"\x01" + naive(leaves[:half]) + naive(leaves[half:])).digest()


def naive_path(index: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    if index < half:
        return [*naive_path(index, leaves[:half]), naive(leaves[half:])]
    return [*naive_path(index - half, leaves[half:]), naive(leaves[:half])]


def stored(leaves: list[bytes]) -> dict[tree.Node, bytes]:
    hashes = [tree.leaf_hash(leaf) for leaf in leaves]
    return {(0, index): held for index, held in enumerate(hashes)} | tree.extend(0, hashes, [])


def inclusion(index: int, size: int, nodes: dict[tree.Node, bytes]) -> list[bytes]:
    return [tree.fold(start, end, nodes) for start, end in tree.inclusion_ranges(index, size)]


def consistency(first: int, second: int, nodes: dict[tree.Node, bytes]) -> list[bytes]:
    return [tree.fold(start, end, nodes) for start, end in tree.consistency_ranges(first, second)]


@pytest.mark.parametrize(("size", "root"), ROOTS.items())
def test_roots_are_those_of_certificate_transparency(size: int, root: str) -> None:
    assert tree.fold(0, size, stored(LEAVES)).hex() == root


def test_proofs_are_those_of_certificate_transparency() -> None:
    nodes = stored(LEAVES)
    assert [one.hex()[:16] for one in inclusion(5, 8, nodes)] == ["bc1a0643b12e4d2d", "ca854ea128ed050b", "d37ee418976dd957"]
    expected = ["0298d122906dcfc1", "07506a85fd9dd2f1", "fac54203e7cc696c", "837dbb152e9b0790"]
    assert [one.hex()[:16] for one in consistency(3, 7, nodes)] == expected
    assert [len(inclusion(index, 7, nodes)) for index in (0, 3, 4, 6)] == [3, 3, 3, 2]
    assert [len(consistency(first, 7, nodes)) for first in (3, 4, 6)] == [4, 1, 3]


def test_a_proof_that_is_bent_anywhere_proves_nothing() -> None:
    nodes = stored(LEAVES)
    root, path, leaf = tree.fold(0, 8, nodes), inclusion(5, 8, nodes), tree.leaf_hash(LEAVES[5])
    assert tree.verify_inclusion(leaf, 5, 8, path, root)
    wrong = [
        (leaf, 4, 8, path, root), (leaf, 5, 6, path, root), (leaf, 5, 9, path, root), (leaf, 5, 16, path, root), (leaf, 8, 8, path, root),
        (leaf, -1, 8, path, root), (leaf, 5, 8, path[:-1], root), (leaf, 5, 8, [*path, root], root), (leaf, 5, 8, path[::-1], root),
        (tree.node_hash(LEAVES[5], b""), 5, 8, path, root), (leaf, 5, 8, path, tree.fold(0, 7, nodes)),
        (hashlib.sha256(b"\x01" + LEAVES[5]).digest(), 5, 8, path, root),
    ]  # fmt: skip
    assert [tree.verify_inclusion(*case) for case in wrong] == [False] * len(wrong)


def test_a_size_of_the_same_shape_is_told_apart_by_the_root_alone_so_the_checkpoint_signs_both() -> None:
    nodes = stored(LEAVES)
    assert [end - start for start, end in tree.inclusion_ranges(5, 8)] == [1, 2, 4]
    assert [end - start for start, end in tree.inclusion_ranges(5, 7)] == [1, 1, 4]
    assert not tree.verify_inclusion(tree.leaf_hash(LEAVES[5]), 5, 7, inclusion(5, 8, nodes), tree.fold(0, 7, nodes))


def test_a_consistency_proof_is_of_both_sizes_and_both_roots() -> None:
    nodes = stored(LEAVES)
    roots = {size: tree.fold(0, size, nodes) for size in range(9)}
    path = consistency(3, 7, nodes)
    assert tree.verify_consistency(3, 7, path, roots[3], roots[7])
    wrong = [
        (3, 9, path, roots[3], roots[7]), (3, 4, path, roots[3], roots[7]), (4, 7, path, roots[3], roots[7]), (2, 7, path, roots[3], roots[7]),
        (7, 3, path, roots[7], roots[3]), (3, 7, path[:-1], roots[3], roots[7]), (3, 7, [*path, roots[1]], roots[3], roots[7]), (3, 7, [], roots[3], roots[7]),
        (3, 7, path, roots[4], roots[7]), (3, 7, path, roots[3], roots[8]), (0, 7, path, roots[0], roots[7]), (7, 7, path, roots[7], roots[7]),
        (7, 7, [], roots[7], roots[8]),
    ]  # fmt: skip
    assert [tree.verify_consistency(*case) for case in wrong] == [False] * len(wrong)
    assert tree.verify_consistency(0, 7, [], roots[0], roots[7])
    assert tree.verify_consistency(7, 7, [], roots[7], roots[7])


def test_ranges_outside_the_tree_are_refused() -> None:
    for call in (lambda: tree.inclusion_ranges(3, 3), lambda: tree.inclusion_ranges(-1, 3), lambda: tree.consistency_ranges(4, 3)):
        with pytest.raises(ValueError):
            call()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 69), st.data())
def test_roots_and_proofs_equal_the_definition_for_every_size_index_and_cut(size: int, data: st.DataObject) -> None:
    leaves = [bytes([number]) for number in range(size)]
    cut, index, first = data.draw(st.integers(0, size)), data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size))
    hashes = [tree.leaf_hash(leaf) for leaf in leaves]
    nodes = {(0, number): held for number, held in enumerate(hashes)} | tree.extend(0, hashes[:cut], [])
    nodes |= tree.extend(cut, hashes[cut:], [(node, nodes[node]) for node in tree.full_subtrees(0, cut)])

    root = tree.fold(0, size, nodes)
    assert root == naive(leaves)
    path = inclusion(index, size, nodes)
    assert path == naive_path(index, leaves)
    assert tree.verify_inclusion(hashes[index], index, size, path, root)
    proof = consistency(first, size, nodes)
    assert tree.verify_consistency(first, size, proof, naive(leaves[:first]), root)
    if 0 < first < size:
        assert not tree.verify_consistency(first, size, proof[::-1] if len(proof) > 1 else [], naive(leaves[:first]), root)


def test_all_proofs_of_all_trees_up_to_69_leaves_hold() -> None:
    nodes = stored([bytes([number]) for number in range(69)])
    for size in range(1, 70):
        root = tree.fold(0, size, nodes)
        assert all(tree.verify_inclusion(nodes[0, index], index, size, inclusion(index, size, nodes), root) for index in range(size))
        assert all(tree.verify_consistency(m, size, consistency(m, size, nodes), tree.fold(0, m, nodes), root) for m in range(size + 1))
