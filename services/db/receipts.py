"""SQL of signed receipts: which requests wait for theirs, and what was signed."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import insert, text
from sqlalchemy.orm import Session

from services.db.tables import ReceiptRow

_WAITING = text("""
    SELECT e.id, e.tenant_id, e.seq, e.type, e.commitment, p.object_id, p.salt, p.body
      FROM audit_event e JOIN audit_payload p ON p.event_id = e.id
     WHERE e.type = 'request.received' AND e.seq > (SELECT coalesce(max(leaf_seq), -1) FROM receipt) AND e.seq < :size
     ORDER BY e.seq LIMIT :limit
    """)
"""Leaves are numbered in order and heads only grow, so receipts are signed in the order of their leaves: what is above the last one waits."""
_ABOVE = text("SELECT EXISTS (SELECT 1 FROM audit_event WHERE type = 'request.received' AND seq >= :size)")


def waiting(session: Session, size: int, limit: int) -> Sequence[Any]:
    """Return the events of receipts below `size` that have no signed receipt: id, tenant_id, seq, type, commitment, object_id, salt, body."""
    return session.execute(_WAITING, {"size": size, "limit": limit}).all()


def waits_above(session: Session, size: int) -> bool:
    """Say whether the leaf of some request's receipt is not below `size`."""
    return bool(session.scalar(_ABOVE, {"size": size}))


def add(session: Session, *, event_id: int, tenant_id: UUID, leaf_seq: int, head_size: int, jws: str) -> None:
    """Store a signed receipt; there is one for an event, and it stands."""
    session.execute(insert(ReceiptRow).values(event_id=event_id, tenant_id=tenant_id, leaf_seq=leaf_seq, head_size=head_size, jws=jws))
