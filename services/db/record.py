"""SQL of the record of processing: counts of a period, and every request of it with clock, decision, outcome, versions and certificates."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from services.db.destruction import HELD_RECORDS

_IN_PERIOD = """r.tenant_id = :tenant AND r.received_at >= :since AND r.received_at < :until
       AND (CAST(:regulation AS text) IS NULL OR r.regulation = :regulation)"""
_COUNTS = text(f"""
    WITH period AS (
        SELECT r.*, extract(epoch FROM r.closed_at - r.received_at) / 86400 AS days FROM deletion_request r WHERE {_IN_PERIOD})
    SELECT count(*) AS received, count(*) FILTER (WHERE state = 'completed') AS complied,
           count(*) FILTER (WHERE state = 'partially_completed') AS complied_in_part, count(*) FILTER (WHERE state = 'denied') AS denied,
           count(*) FILTER (WHERE state IN ('duplicate', 'cancelled', 'expired')) AS otherwise_closed,
           count(*) FILTER (WHERE closed_at IS NULL) AS open,
           count(*) FILTER (WHERE closed_at IS NULL AND due_at < COALESCE(
               (SELECT c.from_at FROM clock_pause c WHERE c.request_id = period.id AND c.to_at IS NULL), clock_timestamp())) AS overdue,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY days) FILTER (WHERE state IN ('completed', 'partially_completed', 'denied')) AS median_days,
           avg(days) FILTER (WHERE state IN ('completed', 'partially_completed', 'denied')) AS mean_days
      FROM period
    """)  # noqa: S608  no value is formatted in
_REQUESTS = text(f"""
    SELECT r.id, r.regulation, r.manner, r.scope ->> 'kind' AS scope, CAST(r.scope ->> 'records' AS int) AS records, r.received_at, r.acknowledged_at,
           r.ack_due_at, r.original_due_at, r.due_at, r.extended_at, r.state AS status, r.ground, r.exemption, r.decided_at, r.decided_by,
           r.decision_note IS NOT NULL AS reason_given, r.complaint_told, r.court_told, r.closed_at, r.closed_at <= r.due_at AS on_time,
           (SELECT COALESCE(sum(extract(epoch FROM c.to_at - c.from_at)), 0) FROM clock_pause c WHERE c.request_id = r.id AND c.to_at IS NOT NULL)
             AS paused_s,
           (SELECT count(*) FROM recipient_notification n WHERE n.request_id = r.id) AS recipients_told
      FROM deletion_request r WHERE {_IN_PERIOD} ORDER BY r.received_at, r.id LIMIT :limit
    """)  # noqa: S608  no value is formatted in
_VERSIONS = text("""
    SELECT DISTINCT r.id AS request_id, m.name AS model, v.number AS version,
           CASE WHEN v.id = t.published_version_id THEN 'published' ELSE v.status END AS disposition, c.digest AS certificate
      FROM deletion_request r JOIN target t ON t.tenant_id = r.tenant_id AND t.request_id = r.id JOIN model m ON m.id = t.model_id
      JOIN model_version v ON v.model_id = m.id LEFT JOIN model_version n ON n.id = t.published_version_id
      LEFT JOIN destruction_certificate c ON c.version_id = v.id
     WHERE r.id = ANY(:requests)
       AND (v.id = t.published_version_id OR v.id = n.parent_id OR r.details -> 'tainted' -> CAST(m.id AS text) @> to_jsonb(CAST(v.id AS text)))
     ORDER BY request_id, model, version
    """)
_DATA = text(f"""
    SELECT r.id AS request_id, s.name AS dataset, v.number AS version, v.status AS disposition, c.digest AS certificate
      FROM deletion_request r JOIN dataset_version v ON v.tenant_id = r.tenant_id AND v.status IN ('retired', 'purged')
      JOIN dataset s ON s.id = v.dataset_id LEFT JOIN destruction_certificate c ON c.dataset_version_id = v.id
     WHERE r.id = ANY(:requests) AND {HELD_RECORDS} ORDER BY request_id, dataset, version
    """)  # noqa: S608  no value is formatted in
_REPORTS = text("""
    SELECT DISTINCT ON (request_id) request_id, revision, digest FROM audit_report
     WHERE request_id = ANY(:requests) AND tlog_proof IS NOT NULL ORDER BY request_id, revision DESC
    """)


def counts(session: Session, tenant_id: UUID, since: datetime, until: datetime, regulation: str | None) -> Any:
    """Return one row: how many requests were received in a period, how they ended, and median and mean days from receipt to the end."""
    return session.execute(_COUNTS, {"tenant": tenant_id, "since": since, "until": until, "regulation": regulation}).mappings().one()


def requests(session: Session, tenant_id: UUID, since: datetime, until: datetime, regulation: str | None, limit: int) -> Sequence[Any]:
    """Return at most `limit` requests received in a period, oldest first; no free text and no name of anybody is read."""
    return (
        session.execute(_REQUESTS, {"tenant": tenant_id, "since": since, "until": until, "regulation": regulation, "limit": limit}).mappings().all()
    )


def versions(session: Session, request_ids: Sequence[UUID]) -> dict[UUID, list[Any]]:
    """Return, per request, the versions that it published or superseded, with the digests of their certificates."""
    found: dict[UUID, list[Any]] = {request_id: [] for request_id in request_ids}
    for row in session.execute(_VERSIONS, {"requests": list(request_ids)}).mappings():
        found[row["request_id"]].append(row)
    return found


def datasets(session: Session, request_ids: Sequence[UUID]) -> dict[UUID, list[Any]]:
    """Return, per request, the superseded dataset versions that held its records, with the digests of their certificates."""
    found: dict[UUID, list[Any]] = {request_id: [] for request_id in request_ids}
    for row in session.execute(_DATA, {"requests": list(request_ids)}).mappings():
        found[row["request_id"]].append(row)
    return found


def reports(session: Session, request_ids: Sequence[UUID]) -> dict[UUID, tuple[int, str]]:
    """Return revision and digest of the newest signed report of each request."""
    return {row.request_id: (row.revision, row.digest) for row in session.execute(_REPORTS, {"requests": list(request_ids)})}
