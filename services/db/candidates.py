"""SQL of candidates: what jobs put and did not publish, and what became of it."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from services.db import holds
from services.db.destruction import Fate

_UNPUBLISHED = """NOT EXISTS (SELECT 1 FROM model_file m JOIN model_version v ON v.id = m.version_id WHERE v.job_id = f.job_id AND m.digest = f.digest)
       AND NOT EXISTS (SELECT 1 FROM dataset_file d JOIN dataset_version w ON w.id = d.version_id WHERE w.produced_by_job_id = f.job_id AND d.digest = f.digest)"""
_LEFT = f"""(CASE WHEN j.state = 'succeeded' THEN
       EXISTS (SELECT 1 FROM job_file f WHERE f.job_id = j.id AND f.path LIKE '%.safetensors' AND {_UNPUBLISHED})
       ELSE EXISTS (SELECT 1 FROM job_file f WHERE f.job_id = j.id) END)"""  # noqa: S608  no value is formatted in
_LEFT_BY = text(f"""
    SELECT DISTINCT j.id, j.model_id FROM target t JOIN job_target x ON x.target_id = t.id JOIN job j ON j.id = x.job_id AND j.kind = 'unlearn'
     WHERE t.request_id = :request AND (j.finished_at IS NULL OR {_LEFT})
       AND NOT EXISTS (SELECT 1 FROM destruction_certificate c WHERE c.candidate_job_id = j.id) ORDER BY j.id
    """)  # noqa: S608  no value is formatted in
_FILES = text(f"""
    SELECT f.path, f.digest, f.size_bytes FROM job_file f WHERE f.job_id = :job AND {_UNPUBLISHED} ORDER BY f.path, f.digest
    """)  # noqa: S608  no value is formatted in
_REQUESTS = text("""
    SELECT DISTINCT t.request_id, EXISTS (SELECT 1 FROM audit_report a WHERE a.request_id = t.request_id) AS reported
      FROM job_target x JOIN target t ON t.id = x.target_id WHERE x.job_id = :job ORDER BY t.request_id
    """)
_FATES = text(f"""
    SELECT j.id, t.request_id, j.method, j.rung, p.due_at, c.digest, CAST(c.document ->> 'destroyed_at' AS timestamptz) AS destroyed_at
      FROM target t JOIN job_target x ON x.target_id = t.id JOIN job j ON j.id = x.job_id AND j.kind = 'unlearn'
      LEFT JOIN job p ON p.candidate_job_id = j.id AND p.finished_at IS NULL LEFT JOIN destruction_certificate c ON c.candidate_job_id = j.id
     WHERE t.id = :target AND j.finished_at IS NOT NULL AND {_LEFT} ORDER BY j.rung, j.id
    """)  # noqa: S608  no value is formatted in


def left_by(session: Session, request_id: UUID) -> Sequence[Any]:
    """Return id and model of every job of a request that is open, or that has put files which it did not publish and which are not destroyed."""
    return session.execute(_LEFT_BY, {"request": request_id}).all()


def files_left(session: Session, job_id: UUID) -> Sequence[Any]:
    """Return path, digest and size of what a job put and did not publish."""
    return session.execute(_FILES, {"job": job_id}).all()


def requests_of(session: Session, job_id: UUID) -> list[tuple[UUID, bool]]:
    """Return the requests that a job served, and whether each has a report."""
    return [(row.request_id, bool(row.reported)) for row in session.execute(_REQUESTS, {"job": job_id})]


def of_target(session: Session, target_id: UUID) -> list[Fate]:
    """Return what becomes of the candidates of a target's jobs that were not published; the number is that of the rung."""
    rows = session.execute(_FATES, {"target": target_id}).all()
    standing = holds.over_requests(session, {row.request_id for row in rows}) if rows else []
    return [
        Fate(row.id, row.method, row.rung, "destroyed" if row.digest else "quarantined", row.due_at, row.destroyed_at, row.digest,
             () if row.digest else standing)
        for row in rows
    ]  # fmt: skip
