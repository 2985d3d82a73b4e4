"""The outbox: work that follows a commit, written in the same transaction as what it follows."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from services.db.tables import Outbox


def ring(session: Session, *, tenant_id: UUID, topic: str, ref: UUID, delay_s: float = 0.0) -> None:
    """Ask control to do `topic` for the thing `ref`, once this transaction has committed and `delay_s` has passed."""
    session.execute(
        insert(Outbox).values(tenant_id=tenant_id, topic=topic, ref=ref, available_at=func.clock_timestamp() + timedelta(seconds=delay_s))
    )


def take(session: Session, limit: int) -> Sequence[Outbox]:
    """Return at most `limit` open rows that are due, oldest first, locked to the end of the transaction; rows of another taker are skipped."""
    return session.scalars(
        select(Outbox)
        .where(Outbox.done_at.is_(None), Outbox.available_at <= func.clock_timestamp())
        .order_by(Outbox.available_at, Outbox.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()


def done(session: Session, row_id: int) -> None:
    """Close a row."""
    session.execute(update(Outbox).where(Outbox.id == row_id).values(done_at=func.clock_timestamp(), attempts=Outbox.attempts + 1))


def postpone(session: Session, row_id: int, delay_s: float) -> None:
    """Leave a row open and due again in `delay_s`; its attempts are counted."""
    later = func.clock_timestamp() + timedelta(seconds=delay_s)
    session.execute(update(Outbox).where(Outbox.id == row_id).values(available_at=later, attempts=Outbox.attempts + 1))
