"""SQL of destroying versions: what still uses one, its purge job, the requests that it concerns, and its certificate."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from services.db.tables import AuditEvent, AuditPayload, DestructionCertificate, Job, ModelVersion

QUEUE = "purge"
QUIET = {"synchronize_session": False}
_USES = text("""
    SELECT 'it is the current version of its model' AS use FROM model WHERE current_version_id = :version
    UNION ALL SELECT 'alias ' || alias || ' points to it' FROM model_alias WHERE version_id = :version
    UNION ALL SELECT 'an open job starts from it' FROM job WHERE base_version_id = :version AND kind <> 'purge' AND finished_at IS NULL
    """)
_CONCERNED = text("""
    SELECT DISTINCT r.id, (r.details -> 'tainted' -> CAST(v.model_id AS text) @> to_jsonb(CAST(v.id AS text)) OR n.parent_id = v.id) AS named
      FROM model_version v JOIN target t ON t.tenant_id = v.tenant_id AND t.model_id = v.model_id
      JOIN deletion_request r ON r.tenant_id = t.tenant_id AND r.id = t.request_id
      LEFT JOIN model_version n ON n.id = t.published_version_id
     WHERE v.id = :version AND EXISTS (SELECT 1 FROM audit_report a WHERE a.tenant_id = r.tenant_id AND a.request_id = r.id)
       AND (n.number > v.number OR r.details -> 'tainted' -> CAST(v.model_id AS text) @> to_jsonb(CAST(v.id AS text)))
     ORDER BY r.id
    """)


def uses(session: Session, version_id: UUID) -> list[str]:
    """Return why a version may not be destroyed: it is current, has an alias, or an open job starts from it."""
    return list(session.scalars(_USES, {"version": version_id}))


def open_purge(session: Session, values: Mapping[str, Any]) -> UUID:
    """Insert a purge job of a version, or bring the open one forward; return its id."""
    row = {"kind": "purge", "state": "queued", "queue": QUEUE, "seeds": {}, **values}
    made = upsert(Job.__table__).values(**row).on_conflict_do_nothing().returning(Job.__table__.c.id)  # pyright: ignore[reportArgumentType]
    new = session.execute(made).scalar_one_or_none()
    if new is not None:
        return new
    held = update(Job).where(Job.base_version_id == values["base_version_id"], Job.kind == "purge", Job.finished_at.is_(None))
    sooner = func.least(Job.run_after, values["run_after"])
    return session.execute(held.values(run_after=sooner, params=row["params"]).returning(Job.id), execution_options=QUIET).scalar_one()


def wake(session: Session) -> None:
    """Make purge jobs of the transaction's tenant that waited for a hold due at once."""
    statement = text("""UPDATE job SET run_after = clock_timestamp() WHERE kind = 'purge' AND state = 'queued' AND error ->> 'code' = 'legal-hold'
        AND tenant_id = CAST(current_setting('app.tenant') AS uuid)""")
    session.execute(statement)


def concerned(session: Session, version_id: UUID) -> list[tuple[UUID, bool]]:
    """Return the requests whose report tells of a version, and whether the version learned from what the request named."""
    return [(row.id, bool(row.named)) for row in session.execute(_CONCERNED, {"version": version_id})]


def set_destroyed(session: Session, version_id: UUID) -> datetime:
    """Mark a version destroyed, once; return when."""
    moment = func.coalesce(ModelVersion.destroyed_at, func.clock_timestamp())
    statement = update(ModelVersion).where(ModelVersion.id == version_id).values(status="destroyed", destroyed_at=moment)
    return session.execute(statement.returning(ModelVersion.destroyed_at), execution_options=QUIET).scalar_one()  # pyright: ignore[reportReturnType]


def insert_certificate(session: Session, values: Mapping[str, Any]) -> None:
    """Store a certificate; a version has one."""
    session.execute(insert(DestructionCertificate).values(**values))


def certificate(session: Session, version_id: UUID) -> DestructionCertificate | None:
    """Return the certificate of a version."""
    return session.scalars(select(DestructionCertificate).where(DestructionCertificate.version_id == version_id)).one_or_none()


def certificates(session: Session, version_ids: list[UUID]) -> dict[UUID, str]:
    """Return the digests of the certificates that versions have."""
    query = select(DestructionCertificate.version_id, DestructionCertificate.digest).where(DestructionCertificate.version_id.in_(version_ids))
    return {row[0]: row[1] for row in session.execute(query)}


def opening(session: Session, event_id: int) -> tuple[AuditEvent, AuditPayload | None]:
    """Return an event and what it committed to, unless that was erased."""
    event = session.scalars(select(AuditEvent).where(AuditEvent.id == event_id)).one()
    return event, session.scalars(select(AuditPayload).where(AuditPayload.event_id == event_id)).one_or_none()
