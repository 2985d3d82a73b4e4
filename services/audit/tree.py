"""The Merkle tree of the audit log: hashes, and which stored nodes a root or a proof is made of.

A node (level, index) is the root of the full subtree over the leaves [index * 2**level, (index + 1) * 2**level). Nodes of level 0 are the leaves.
Every root and proof is a fold of full subtrees, so it is read from few nodes, whatever the size. Nothing here reads or writes anything.

Source: RFC 6962 section 2.1; the two verifications follow RFC 9162 sections 2.1.3.2 and 2.1.4.2.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

Node = tuple[int, int]
Range = tuple[int, int]

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf, 32 bytes."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node, 32 bytes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def full_subtrees(start: int, end: int) -> list[Node]:
    """Return the full subtrees that make up the leaves [start, end), left to right. `start` begins a subtree of the whole tree, as in every proof."""
    nodes: list[Node] = []
    while start < end:
        widest = (end - start).bit_length() - 1
        level = min((start & -start).bit_length() - 1, widest) if start else widest
        nodes.append((level, start >> level))
        start += 1 << level
    return nodes


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """Return the ranges of leaves whose hashes are the inclusion proof of leaf `index` in the tree of `size` leaves, the leaf's sibling first."""
    if not 0 <= index < size:
        raise ValueError("the index is not in the tree")
    start, end, path = 0, size, list[Range]()
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start = middle
    return path[::-1]


def consistency_ranges(first: int, second: int) -> list[Range]:
    """Return the ranges of leaves whose hashes prove that the tree of `second` leaves begins with that of `first`; none for equal or empty trees."""
    if not 0 <= first <= second:
        raise ValueError("the first tree is larger than the second")
    if first in {0, second}:
        return []
    start, end, path, whole = 0, second, list[Range](), True
    while first != end:
        middle = start + _split(end - start)
        if first <= middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start, whole = middle, False
    return [*([] if whole else [(start, end)]), *path[::-1]]


def nodes_of(ranges: Iterable[Range]) -> list[Node]:
    """Return every stored node that the hashes of these ranges are folded from."""
    return [node for start, end in ranges for node in full_subtrees(start, end)]


def fold(start: int, end: int, hashes: Mapping[Node, bytes]) -> bytes:
    """Return the hash of the leaves [start, end) from the hashes of its full subtrees. Raises KeyError where one is missing."""
    parts = [hashes[node] for node in full_subtrees(start, end)]
    if not parts:
        return EMPTY_ROOT
    folded = parts.pop()
    while parts:
        folded = node_hash(parts.pop(), folded)
    return folded


def extend(start: int, leaves: Sequence[bytes], edge: Sequence[tuple[Node, bytes]]) -> dict[Node, bytes]:
    """Return the nodes above level 0 that become full when leaf hashes are appended behind leaf `start` - 1.

    Args:
        start: how many leaves there are.
        leaves: hashes of the new leaves.
        edge: the full subtrees of the first `start` leaves with their hashes, left to right; those left of an aligned start may be left out.
    """
    made: dict[Node, bytes] = {}
    stack = list(edge)
    for position, leaf in enumerate(leaves):
        stack.append(((0, start + position), leaf))
        while len(stack) > 1 and stack[-1][0][0] == stack[-2][0][0] and stack[-2][0][1] % 2 == 0:
            (_, right), ((level, index), left) = stack.pop(), stack.pop()
            joined = ((level + 1, index // 2), node_hash(left, right))
            stack.append(joined)
            made[joined[0]] = joined[1]
    return made


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Say whether `path` proves that the leaf with hash `leaf` is number `index` of the tree of `size` leaves with this root."""
    if not 0 <= index < size:
        return False
    at, last, held = index, size - 1, leaf
    for other in path:
        if last == 0:
            return False
        if at & 1 or at == last:
            held = node_hash(other, held)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            held = node_hash(held, other)
        at, last = at >> 1, last >> 1
    return last == 0 and held == root


def verify_consistency(first: int, second: int, path: Sequence[bytes], first_root: bytes, second_root: bytes) -> bool:
    """Say whether `path` proves that the tree of `second` leaves begins with the tree of `first`."""
    if first == second:
        return not path and first_root == second_root
    if first == 0:
        return not path and first_root == EMPTY_ROOT
    if not 0 < first < second or not path:
        return False
    steps = [first_root, *path] if first & (first - 1) == 0 else list(path)
    at, last = first - 1, second - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old = new = steps[0]
    for other in steps[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            old, new = node_hash(other, old), node_hash(other, new)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            new = node_hash(new, other)
        at, last = at >> 1, last >> 1
    return last == 0 and old == first_root and new == second_root


def _split(size: int) -> int:
    """Return the largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)
