"""SQL of what a job works on: the newest dataset version that is held and still has the records to forget."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

_HELD = """d.status IN ('ready', 'retired') AND NOT EXISTS (SELECT 1 FROM job p WHERE p.tenant_id = d.tenant_id AND p.dataset_version_id = d.id
             AND p.kind = 'purge' AND p.finished_at IS NULL AND jsonb_exists(p.step_state -> 'steps', 'plan'))"""
_SOURCES = text(f"""
    WITH part AS (SELECT r.target_id, r.dataset_id, count(DISTINCT r.record_hmac) AS n, min(e.number) AS erased
          FROM target_record r
          LEFT JOIN forget_ledger f ON f.tenant_id = r.tenant_id AND f.dataset_id = r.dataset_id AND f.record_hmac = r.record_hmac
          LEFT JOIN model_version v ON v.id = f.version_id
          LEFT JOIN dataset_version e ON e.produced_by_job_id = v.job_id AND e.dataset_id = r.dataset_id
         WHERE r.target_id = ANY(:ids) GROUP BY r.target_id, r.dataset_id)
    SELECT DISTINCT ON (p.target_id) p.target_id, d.id
      FROM part p JOIN target t ON t.id = p.target_id JOIN deletion_request q ON q.id = t.request_id
      JOIN dataset_version d ON d.dataset_id = p.dataset_id AND {_HELD}
       AND d.number < COALESCE(p.erased, 2147483647)
       AND d.number < COALESCE((q.details->'ends'->>CAST(p.dataset_id AS text))::int, 2147483647)
     ORDER BY p.target_id, p.n DESC, d.number DESC
    """)  # noqa: S608  no value is formatted in
_LOCKED = text(f"SELECT d.id FROM dataset_version d WHERE d.id = :id AND {_HELD}")  # noqa: S608  no value is formatted in


def sources(session: Session, target_ids: Sequence[UUID]) -> dict[UUID, UUID]:
    """Return, per target, the newest held dataset version that has all its records, of the dataset with most of them.

    A record is gone from the version on that the job which forgot it elsewhere, or an upload, has closed; that is read from the ledger and
    from the request's own note (`details.ends`). A superseded version serves as long as its destruction has not begun.
    """
    return {row.target_id: row.id for row in session.execute(_SOURCES, {"ids": list(target_ids)})}


def hold(session: Session, version_id: UUID) -> bool:
    """Keep a dataset version from being destroyed until this transaction ends, and say whether it is held at all."""
    session.execute(text("SELECT 1 FROM dataset_version WHERE id = :id FOR SHARE"), {"id": version_id})
    return session.execute(_LOCKED, {"id": version_id}).one_or_none() is not None
