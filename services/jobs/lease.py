"""Claim, heartbeat, fence, release: who may change a job, and how the database checks it.

A job belongs to whoever holds `(lease_owner, lease_epoch)`; every claim raises the epoch, and the first statement of every effect locks the row
on that epoch. A holder that lost its lease is refused by the row it wants to change, not by its own clock.

Source: Kleppmann, "How to do distributed locking", 2016 (fencing tokens).
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.errors import LeaseLost

LEASED = ("running", "verifying", "publishing")

_CLAIM = text("SELECT id, tenant_id, lease_epoch, step, step_state FROM lethe_claim(:queue, :owner, :lease_s, :job)")

_HEARTBEAT = text(
    """UPDATE job SET lease_until = clock_timestamp() + make_interval(secs => :lease_s),
              progress = COALESCE(CAST(:progress AS jsonb), progress)
        WHERE id = :job AND lease_epoch = :epoch AND state IN ('running', 'verifying', 'publishing') AND lease_until > clock_timestamp()
    RETURNING cancel_requested_at"""
)

_FENCE = text("SELECT state FROM job WHERE id = :job AND lease_epoch = :epoch AND lease_until > clock_timestamp() FOR UPDATE")


@dataclass(frozen=True, slots=True)
class Lease:
    """A claimed job: what it is, whose, and the epoch that every effect must show."""

    job_id: UUID
    tenant_id: UUID
    epoch: int
    step: str | None
    step_state: dict[str, Any]


def claim(session: Session, *, queue: str, owner: str, lease_s: float, job_id: UUID | None = None) -> Lease | None:
    """Take `job_id`, or the best due job of the queue; None when there is none, or when another claim of the same model won the race."""
    try:
        row = session.execute(_CLAIM, {"queue": queue, "owner": owner, "lease_s": lease_s, "job": job_id}).mappings().first()
    except IntegrityError:  # the index one_active: another worker took a job of this model in the same instant
        session.rollback()
        return None
    if row is None or row["id"] is None:
        return None
    return Lease(row["id"], row["tenant_id"], row["lease_epoch"], row["step"], dict(row["step_state"] or {}))


def heartbeat(session: Session, *, job_id: UUID, epoch: int, lease_s: float, progress: str | None) -> datetime | None:
    """Prolong the lease, store progress (JSON text), and return when a cancellation was asked for. Raises LeaseLost."""
    row = session.execute(_HEARTBEAT, {"job": job_id, "epoch": epoch, "lease_s": lease_s, "progress": progress}).first()
    if row is None:
        raise LeaseLost(job=job_id, epoch=epoch)
    cancel_requested_at: datetime | None = row[0]
    return cancel_requested_at


def fence(session: Session, job_id: UUID, epoch: int) -> str:
    """Lock the job for the rest of the transaction and return its state; the first statement of every effect. Raises LeaseLost."""
    row = session.execute(_FENCE, {"job": job_id, "epoch": epoch}).first()
    if row is None or row[0] not in LEASED:
        raise LeaseLost(job=job_id, epoch=epoch)
    return str(row[0])
