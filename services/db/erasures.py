"""SQL of the journal of erasures and of the epochs of the log: what the signer reads of erasures, and where the log went on after a restore."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, text, update
from sqlalchemy.orm import Session

from services.db.tables import LogEpoch

_WINDOW = 10_000  # events of one transaction have ids that are near each other, but for those of others that came between
_BETWEEN = text("""
    SELECT e.id, e.seq, e.tenant_id, e.type, p.object_id, p.body FROM audit_event e JOIN audit_payload p ON p.event_id = e.id
     WHERE e.seq >= :first AND e.seq < :last AND (e.type = 'model_version.quarantined'
        OR (e.type IN ('model_version.published', 'model_version.confirmed') AND CAST(p.object_id AS text) = p.body ->> 'job'))
     ORDER BY e.seq
    """)
_REQUESTS = text("""
    SELECT DISTINCT p.object_id FROM audit_event e JOIN audit_payload p ON p.event_id = e.id
     WHERE e.id > :first AND e.id < :last AND e.type IN ('model_version.published', 'model_version.confirmed') AND p.body ->> 'job' = :job
       AND CAST(p.object_id AS text) NOT IN (p.body ->> 'job', p.body ->> 'version')
    """)
_FACTS = text("""
    SELECT p.object_id, e.type, p.body FROM audit_event e JOIN audit_payload p ON p.event_id = e.id
     WHERE p.object_id = ANY(:ids) AND e.type IN ('request.received', 'request.approved') ORDER BY e.id
    """)
_LEDGER = text("""
    SELECT t.request_id, f.dataset_id, f.record_hmac FROM forget_ledger f JOIN target t ON t.tenant_id = f.tenant_id AND t.id = f.target_id
     WHERE f.model_id = :model AND f.version_id = :version ORDER BY f.dataset_id, f.record_hmac
    """)


def between(session: Session, first: int, last: int) -> Sequence[Any]:
    """Return the first event of each erasure with a leaf in [first, last): id, seq, tenant_id, type, object_id, body."""
    return session.execute(_BETWEEN, {"first": first, "last": last}).all()


def requests_of(session: Session, event_id: int, job: str) -> list[UUID]:
    """Return the requests that the publication told of, whose first event this is."""
    return sorted(session.scalars(_REQUESTS, {"first": event_id, "last": event_id + _WINDOW, "job": job}))


def facts_of(session: Session, requests: Sequence[UUID]) -> Sequence[Any]:
    """Return object_id, type and body of the events by which requests were received and approved."""
    return session.execute(_FACTS, {"ids": list(requests)}).all()


def ledger_of(session: Session, model: UUID, version: UUID) -> Sequence[Any]:
    """Return request, dataset and keyed digest of every record that the model has forgotten by the version."""
    return session.execute(_LEDGER, {"model": model, "version": version}).all()


def epoch(session: Session) -> LogEpoch | None:
    """Return where the log last went on after a restore; None where it never was restored."""
    return session.scalar(select(LogEpoch).order_by(LogEpoch.number.desc()).limit(1))


def add_epoch(session: Session, **columns: Any) -> None:
    """Store that the log goes on under another name."""
    session.execute(insert(LogEpoch).values(**columns))


def told(session: Session, number: int, event_id: int) -> None:
    """Set the event by which the log tells of an epoch, once."""
    session.execute(update(LogEpoch).where(LogEpoch.number == number, LogEpoch.told_event.is_(None)).values(told_event=event_id))
