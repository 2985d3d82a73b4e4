"""SQL of destroying versions and candidates: what still uses one, its purge job, the requests that it concerns, and its certificate."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from services.db import holds
from services.db.sources import sources
from services.db.tables import AuditEvent, AuditPayload, DatasetVersion, DestructionCertificate, Job, ModelVersion

QUEUE = "purge"
THINGS = ("base_version_id", "dataset_version_id", "candidate_job_id")
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
_CREATORS = text("""
    SELECT DISTINCT r.created_by FROM model_version v JOIN target t ON t.tenant_id = v.tenant_id AND t.model_id = v.model_id
      JOIN deletion_request r ON r.tenant_id = t.tenant_id AND r.id = t.request_id JOIN policy p ON p.tenant_id = r.tenant_id AND p.id = r.policy_id
      LEFT JOIN model_version n ON n.id = t.published_version_id
     WHERE v.id = :version AND v.quarantined_for = 'forgotten' AND CAST(p.flags ->> 'four_eyes' AS boolean)
       AND (n.parent_id = v.id OR r.details -> 'tainted' -> CAST(v.model_id AS text) @> to_jsonb(CAST(v.id AS text)))
    """)
HELD_RECORDS = """r.scope -> 'datasets' @> jsonb_build_array(jsonb_build_object('dataset_id', v.dataset_id))
       AND (EXISTS (SELECT 1 FROM jsonb_array_elements(r.scope -> 'datasets') d
                     WHERE d ->> 'dataset_id' = CAST(v.dataset_id AS text) AND d -> 'versions' @> to_jsonb(v.number))
         OR EXISTS (SELECT 1 FROM dataset_version n JOIN job_target x ON x.job_id = n.produced_by_job_id JOIN target t ON t.id = x.target_id
                     WHERE n.parent_id = v.id AND t.request_id = r.id))"""
"""That dataset version `v` held records of request `r`: it did when the request came, or a job of the request has superseded it."""
_DATASET_JOBS = text("""
    SELECT 'job job_' || replace(CAST(id AS text), '-', '') || ' works on it' FROM job
     WHERE dataset_version_id = :version AND kind <> 'purge' AND finished_at IS NULL ORDER BY id
    """)
_WAITING = text("""
    SELECT t.id FROM target t JOIN deletion_request r ON r.tenant_id = t.tenant_id AND r.id = t.request_id
     WHERE r.closed_at IS NULL AND t.state IN ('located', 'queued', 'running', 'stuck') AND EXISTS (
           SELECT 1 FROM target_record k JOIN dataset_version v ON v.dataset_id = k.dataset_id WHERE k.target_id = t.id AND v.id = :version)
     ORDER BY t.id
    """)
_DATASET_CONCERNED = text(f"""
    SELECT DISTINCT r.id FROM dataset_version v
      JOIN deletion_request r ON r.tenant_id = v.tenant_id AND {HELD_RECORDS}
     WHERE v.id = :version AND EXISTS (SELECT 1 FROM audit_report a WHERE a.tenant_id = r.tenant_id AND a.request_id = r.id)
     ORDER BY r.id
    """)  # noqa: S608  no value is formatted in
_DATA_OF = text(f"""
    SELECT v.id, s.name AS dataset, v.number, v.status, v.destroy_by, v.purged_at
      FROM deletion_request r JOIN dataset_version v ON v.tenant_id = r.tenant_id AND v.status IN ('retired', 'purged')
      JOIN dataset s ON s.id = v.dataset_id
     WHERE r.id = :request AND {HELD_RECORDS}
     ORDER BY s.name, v.number
    """)  # noqa: S608  no value is formatted in


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of something superseded: its `disposition`, when it is due to be destroyed, or when it was, by which certificate, and what holds it."""

    id: UUID
    name: str
    number: int
    disposition: str
    destroy_by: datetime | None
    destroyed_at: datetime | None
    certificate: str | None
    holds: Sequence[UUID] = ()


def data_of(session: Session, request_id: UUID) -> list[Fate]:
    """Return what becomes of the superseded dataset versions that a request's records were in."""
    rows = session.execute(_DATA_OF, {"request": request_id}).all()
    digests = certificates(session, [row.id for row in rows])
    return [
        Fate(row.id, row.dataset, row.number, row.status, row.destroy_by, row.purged_at, digests.get(row.id),
             holds.over_dataset_version(session, row.id) if row.status == "retired" else ())
        for row in rows
    ]  # fmt: skip


def dataset_uses(session: Session, version_id: UUID) -> list[str]:
    """Return why a dataset version may not be destroyed: a job works on it, or will, since a request waits whose records no later version holds."""
    jobs = list(session.scalars(_DATASET_JOBS, {"version": version_id}))
    waiting = list(session.scalars(_WAITING, {"version": version_id}))
    needing = sum(source == version_id for source in sources(session, waiting).values()) if waiting else 0
    return [*jobs, *([f"{needing} targets of open requests have no other version with their records"] if needing else [])]


def dataset_concerned(session: Session, version_id: UUID) -> list[UUID]:
    """Return the requests that a dataset version was superseded for, or whose records it held, and that have a report."""
    return list(session.scalars(_DATASET_CONCERNED, {"version": version_id}))


def set_purged(session: Session, version_id: UUID) -> datetime:
    """Mark a dataset version purged, once; return when."""
    moment = func.coalesce(DatasetVersion.purged_at, func.clock_timestamp())
    statement = update(DatasetVersion).where(DatasetVersion.id == version_id).values(status="purged", purged_at=moment)
    return session.execute(statement.returning(DatasetVersion.purged_at), execution_options=QUIET).scalar_one()  # pyright: ignore[reportReturnType]


def uses(session: Session, version_id: UUID) -> list[str]:
    """Return why a version may not be destroyed: it is current, has an alias, or an open job starts from it."""
    return list(session.scalars(_USES, {"version": version_id}))


def creators_under_four_eyes(session: Session, version_id: UUID) -> set[str]:
    """Return who created the requests that a superseded version was put away for, where their policy asks for four eyes."""
    return set(session.scalars(_CREATORS, {"version": version_id}))


def open_purge(session: Session, values: Mapping[str, Any]) -> UUID:
    """Insert the purge job of what `values` names, or bring the open one forward; return its id."""
    row = {"kind": "purge", "state": "queued", "queue": QUEUE, "seeds": {}, **values}
    made = upsert(Job.__table__).values(**row).on_conflict_do_nothing().returning(Job.__table__.c.id)  # pyright: ignore[reportArgumentType]
    new = session.execute(made).scalar_one_or_none()
    if new is not None:
        return new
    (thing,) = (name for name in THINGS if values.get(name) is not None)
    held = update(Job).where(getattr(Job, thing) == values[thing], Job.kind == "purge", Job.finished_at.is_(None))
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
    """Store a certificate; what was destroyed has one."""
    session.execute(insert(DestructionCertificate).values(**values))


def certificate(session: Session, **key: UUID) -> DestructionCertificate | None:
    """Return the certificate of what `key` names: one of `version_id`, `dataset_version_id` and `candidate_job_id`."""
    return session.scalars(select(DestructionCertificate).filter_by(**key)).one_or_none()


def certificates(session: Session, things: Collection[UUID]) -> dict[UUID, str]:
    """Return the digests of the certificates that versions, dataset versions and candidates have, by their ids."""
    row = DestructionCertificate
    thing = func.coalesce(row.version_id, row.dataset_version_id, row.candidate_job_id)
    return {found[0]: found[1] for found in session.execute(select(thing, row.digest).where(thing.in_(things)))}


def opening(session: Session, event_id: int) -> tuple[AuditEvent, AuditPayload | None]:
    """Return an event and what it committed to, unless that was erased."""
    event = session.scalars(select(AuditEvent).where(AuditEvent.id == event_id)).one()
    return event, session.scalars(select(AuditPayload).where(AuditPayload.event_id == event_id)).one_or_none()
