"""SQL of revoked keys, and of reports whose evidence is signed anew after one."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from services.db.tables import AuditLeaf, KeyRevocation, ReportRenewal

_STALE = text("""
    SELECT r.id, r.tenant_id, r.digest, r.statement, r.envelope, e.seq, e.type, p.salt, p.body
      FROM audit_report r JOIN audit_event e ON e.id = r.event_id JOIN audit_payload p ON p.event_id = e.id
      JOIN key_revocation k ON k.key_id = r.envelope -> 'signatures' -> 0 ->> 'keyid' JOIN audit_event v ON v.id = k.event_id
     WHERE e.seq < v.seq AND v.seq < :size
       AND NOT EXISTS (SELECT 1 FROM report_renewal n WHERE n.report_id = r.id AND n.key_id NOT IN (SELECT key_id FROM key_revocation))
     ORDER BY e.seq LIMIT :limit
    """)


def revoked(session: Session) -> dict[str, int | None]:
    """Return the leaf of each revocation by the id of its key; None until the sequencer was there."""
    query = select(KeyRevocation.key_id, AuditLeaf.seq).outerjoin(AuditLeaf, AuditLeaf.event_id == KeyRevocation.event_id)
    return {key_id: seq for key_id, seq in session.execute(query)}  # noqa: C416  a row is no pair to the type checker


def add(session: Session, **columns: Any) -> None:
    """Store a revocation."""
    session.execute(insert(KeyRevocation).values(**columns))


def stale_reports(session: Session, size: int, limit: int) -> Sequence[Any]:
    """Return signed reports that a revoked key signed before its revocation, whose leaf is below `size`, without newer evidence."""
    return session.execute(_STALE, {"size": size, "limit": limit}).all()


def renew(session: Session, *, report_id: UUID, tenant_id: UUID, key_id: str, envelope: dict[str, Any], tlog_proof: str) -> None:
    """Store the newer evidence of a report."""
    session.execute(insert(ReportRenewal).values(report_id=report_id, tenant_id=tenant_id, key_id=key_id, envelope=envelope, tlog_proof=tlog_proof))


def newest(session: Session, report_id: UUID) -> ReportRenewal | None:
    """Return the newest evidence of a report beyond its first."""
    query = select(ReportRenewal).where(ReportRenewal.report_id == report_id).order_by(ReportRenewal.signed_at.desc()).limit(1)
    return session.scalar(query)
