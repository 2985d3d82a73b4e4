"""The sequencer: committed events become gapless leaves of the tree, in the order of their ids.

It runs alone (an advisory lock of the transaction), so no transaction of the service waits for another one's number. A number is never given
twice: leaf, node and event change in one transaction, and a leaf's number is its primary key.
"""

from sqlalchemy.orm import Session

from services.audit import tree
from services.db import leaves

BATCH = 1000


def integrate(session: Session, *, limit: int = BATCH) -> int:
    """Give the next numbers to at most `limit` waiting events and return how many; 0 as well where another sequencer is at work.

    Raises KeyError where a node of the tree is missing: somebody deleted it, and nothing is appended to such a tree.
    """
    if not leaves.alone(session):
        return 0
    found = leaves.waiting(session, limit)
    if not found:
        return 0
    start = leaves.size(session)
    edge = tree.full_subtrees(0, start)
    held = leaves.nodes(session, edge)
    hashes = [tree.leaf_hash(commitment) for _, commitment in found]
    made = tree.extend(start, hashes, [(node, held[node]) for node in edge])
    leaves.append(session, start, [event_id for event_id, _ in found], hashes, made)
    return len(found)


def root(session: Session, size: int) -> bytes:
    """Return the root of the first `size` leaves. Raises KeyError where a node is missing."""
    return tree.fold(0, size, leaves.nodes(session, tree.full_subtrees(0, size)))


def inclusion(session: Session, seq: int, size: int) -> list[bytes]:
    """Return the path of leaf `seq` in the tree of `size` leaves, from its sibling up."""
    return _folded(session, tree.inclusion_ranges(seq, size))


def consistency(session: Session, first: int, second: int) -> list[bytes]:
    """Return the proof that the tree of `second` leaves begins with that of `first`."""
    return _folded(session, tree.consistency_ranges(first, second))


def _folded(session: Session, ranges: list[tree.Range]) -> list[bytes]:
    held = leaves.nodes(session, tree.nodes_of(ranges))
    return [tree.fold(start, end, held) for start, end in ranges]
