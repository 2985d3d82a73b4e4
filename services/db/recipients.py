"""SQL of recipients: who was told of a superseded version, and to whom the service itself has handed one out."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from services.db.tables import Model, ModelVersion, RecipientNotification

_SUPERSEDED = text("""
    SELECT m.name AS model, v.number, v.id FROM deletion_request r JOIN target t ON t.tenant_id = r.tenant_id AND t.request_id = r.id
      JOIN model m ON m.id = t.model_id JOIN model_version v ON v.model_id = m.id LEFT JOIN model_version n ON n.id = t.published_version_id
     WHERE r.id = :request AND (r.details -> 'tainted' -> CAST(m.id AS text) @> to_jsonb(CAST(v.id AS text)) OR n.parent_id = v.id)
     ORDER BY m.name, v.number
    """)
_HANDED_OUT = text("""
    SELECT p.object_id AS version_id, p.body ->> 'by' AS by, count(*) AS times, max(e.at) AS last_at
      FROM audit_payload p JOIN audit_event e ON e.id = p.event_id
     WHERE p.object_id = ANY(:versions) AND e.type = 'version.file_issued' GROUP BY 1, 2 ORDER BY 1, 2
    """)


def superseded(session: Session, request_id: UUID) -> Sequence[Any]:
    """Return the versions that learned from what a request named: model, number, id."""
    return session.execute(_SUPERSEDED, {"request": request_id}).all()


def handed_out(session: Session, version_ids: Sequence[UUID]) -> Sequence[Any]:
    """Return which callers got files of versions from this service: version_id, by, times, last_at."""
    return session.execute(_HANDED_OUT, {"versions": list(version_ids)}).all()


def insert_notification(session: Session, **values: Any) -> None:
    """Insert that a recipient was told."""
    session.execute(insert(RecipientNotification).values(**values))


def notifications(session: Session, request_id: UUID) -> Sequence[tuple[RecipientNotification, str, int]]:
    """Return who was told about a request, with the names of model and version, in the order of telling."""
    query = select(RecipientNotification, Model.name, ModelVersion.number).join(ModelVersion, ModelVersion.id == RecipientNotification.version_id)
    query = query.join(Model, Model.id == ModelVersion.model_id).where(RecipientNotification.request_id == request_id)
    rows = session.execute(query.order_by(RecipientNotification.sent_at, RecipientNotification.id))
    return [(row[0], row[1], row[2]) for row in rows]
