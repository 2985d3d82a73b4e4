"""SQL of legal holds: which of them stand over a version of a model or dataset or a request, and which requests one of them covers."""

from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, select, text, tuple_, update
from sqlalchemy.orm import Session

from services.db.tables import HoldRecord, LegalHold, SubjectRecord

FRESH = {"populate_existing": True}
_OVER_VERSION = text("""
    WITH RECURSIVE up AS (
        SELECT id, parent_id, fresh_start FROM model_version WHERE id = :version
        UNION SELECT p.id, p.parent_id, p.fresh_start FROM model_version p JOIN up ON p.id = up.parent_id WHERE NOT up.fresh_start),
    learned AS (
        SELECT DISTINCT d.dataset_id, d.number FROM up JOIN training_input t ON t.model_version_id = up.id AND t.role <> 'evaluation'
          JOIN dataset_version d ON d.id = t.dataset_version_id)
    SELECT h.id FROM legal_hold h JOIN model_version v ON v.id = :version WHERE h.released_at IS NULL AND CASE h.scope
        WHEN 'model' THEN h.scope_ref = uuid_send(v.model_id)
        WHEN 'dataset' THEN h.scope_ref IN (SELECT uuid_send(dataset_id) FROM learned)
        WHEN 'request' THEN EXISTS (SELECT 1 FROM deletion_request r WHERE r.tenant_id = h.tenant_id AND uuid_send(r.id) = h.scope_ref
             AND r.details -> 'tainted' -> CAST(v.model_id AS text) @> to_jsonb(CAST(v.id AS text)))
        WHEN 'subject' THEN EXISTS (SELECT 1 FROM subject_record s JOIN dataset_record d USING (tenant_id, dataset_id, record_id)
             JOIN learned l ON l.dataset_id = d.dataset_id AND d.present @> l.number WHERE s.subject_hmac = h.scope_ref) END
     ORDER BY h.created_at, h.id
    """)
_OVER_DATASET_VERSION = text("""
    SELECT h.id FROM legal_hold h JOIN dataset_version v ON v.id = :version WHERE h.released_at IS NULL AND CASE h.scope
        WHEN 'dataset' THEN h.scope_ref = uuid_send(v.dataset_id)
        WHEN 'model' THEN EXISTS (SELECT 1 FROM training_input t JOIN model_version m ON m.id = t.model_version_id
             WHERE t.dataset_version_id = v.id AND t.role <> 'evaluation' AND uuid_send(m.model_id) = h.scope_ref)
        WHEN 'request' THEN EXISTS (SELECT 1 FROM deletion_request r, jsonb_array_elements(r.scope -> 'datasets') d
             WHERE r.tenant_id = h.tenant_id AND uuid_send(r.id) = h.scope_ref AND d ->> 'dataset_id' = CAST(v.dataset_id AS text)
               AND d -> 'versions' @> to_jsonb(v.number))
        WHEN 'subject' THEN EXISTS (SELECT 1 FROM subject_record s JOIN dataset_record d USING (tenant_id, dataset_id, record_id)
             WHERE s.subject_hmac = h.scope_ref AND d.dataset_id = v.dataset_id AND d.present @> v.number) END
     ORDER BY h.created_at, h.id
    """)
_COVERS = """CASE h.scope
        WHEN 'request' THEN h.scope_ref = uuid_send(r.id)
        WHEN 'model' THEN h.scope_ref IN (SELECT uuid_send(t.model_id) FROM target t WHERE t.request_id = r.id AND t.model_id IS NOT NULL)
        WHEN 'dataset' THEN h.scope_ref IN (SELECT uuid_send(CAST(d ->> 'dataset_id' AS uuid)) FROM jsonb_array_elements(r.scope -> 'datasets') d)
        WHEN 'subject' THEN EXISTS (SELECT 1 FROM hold_record x JOIN target_record k ON k.dataset_id = x.dataset_id AND k.record_hmac = x.record_hmac
             AND k.tenant_id = x.tenant_id JOIN target t ON t.id = k.target_id WHERE x.hold_id = h.id AND t.request_id = r.id) END"""
_OVER_REQUESTS = text(f"""
    SELECT DISTINCT h.id, h.created_at FROM legal_hold h JOIN deletion_request r ON r.tenant_id = h.tenant_id
     WHERE h.released_at IS NULL AND r.id = ANY(:requests) AND {_COVERS} ORDER BY h.created_at, h.id
    """)  # noqa: S608  no value is formatted in
_COVERED = text(f"""
    SELECT r.id FROM deletion_request r JOIN legal_hold h ON h.tenant_id = r.tenant_id AND h.id = :hold
     WHERE r.closed_at IS NULL AND {_COVERS} ORDER BY r.id
    """)  # noqa: S608  no value is formatted in


def over_version(session: Session, version_id: UUID) -> list[UUID]:
    """Return the standing holds that keep a version: over its model, a data set or person it learned from, or a request that named it."""
    return list(session.scalars(_OVER_VERSION, {"version": version_id}))


def over_dataset_version(session: Session, version_id: UUID) -> list[UUID]:
    """Return the standing holds that keep a dataset version: over its dataset, a model that learned from it, a person in it, or a request that named it."""
    return list(session.scalars(_OVER_DATASET_VERSION, {"version": version_id}))


def over_requests(session: Session, request_ids: Collection[UUID]) -> list[UUID]:
    """Return the standing holds over any of these requests, or over what they ask to forget, oldest first."""
    return [row.id for row in session.execute(_OVER_REQUESTS, {"requests": list(request_ids)})]


def covered(session: Session, hold_id: UUID) -> list[UUID]:
    """Return the open requests that a hold covers, released or not, by id."""
    return list(session.scalars(_COVERED, {"hold": hold_id}))


def insert_hold(session: Session, values: dict[str, Any], records: Sequence[tuple[UUID, bytes]]) -> None:
    """Insert a hold, and for a person the keyed digests (data set, digest) of their records."""
    session.execute(insert(LegalHold).values(**values))
    add_records(session, values["tenant_id"], values["id"], records)


def add_records(session: Session, tenant_id: UUID, hold_id: UUID, records: Sequence[tuple[UUID, bytes]]) -> None:
    """Put more records of the person under a hold; those that are there already are left."""
    statement = text("""INSERT INTO hold_record (tenant_id, hold_id, dataset_id, record_hmac)
        SELECT CAST(:tenant AS uuid), CAST(:hold AS uuid), x.d, x.h FROM unnest(CAST(:datasets AS uuid[]), CAST(:digests AS bytea[])) AS x(d, h)
        ON CONFLICT DO NOTHING""")
    if records:
        values = {"tenant": tenant_id, "hold": hold_id, "datasets": [one for one, _ in records], "digests": [digest for _, digest in records]}
        session.execute(statement, values)


def hold(session: Session, hold_id: UUID, *, lock: bool = False) -> LegalHold | None:
    """Return a hold."""
    query = select(LegalHold).where(LegalHold.id == hold_id).execution_options(**FRESH)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def page(session: Session, *, standing: bool | None, limit: int, after: tuple[Any, UUID] | None) -> list[LegalHold]:
    """Return at most `limit` holds, newest first; `standing` keeps those that are, or are not, in force."""
    query = select(LegalHold).order_by(LegalHold.created_at.desc(), LegalHold.id.desc()).limit(limit)
    if standing is not None:
        query = query.where(LegalHold.released_at.is_(None) if standing else LegalHold.released_at.is_not(None))
    if after is not None:
        query = query.where(tuple_(LegalHold.created_at, LegalHold.id) < tuple_(*after))
    return list(session.scalars(query))


def release(session: Session, hold_id: UUID, *, by: str, reason: str) -> None:
    """End a hold."""
    values = {"released_at": func.clock_timestamp(), "released_by": by, "release_reason": reason}
    session.execute(update(LegalHold).where(LegalHold.id == hold_id).values(**values), execution_options={"synchronize_session": False})


def of_persons(session: Session, digests: Collection[bytes]) -> list[tuple[UUID, bytes]]:
    """Return the standing holds over persons with these keyed digests, as (hold, digest)."""
    query = select(LegalHold.id, LegalHold.scope_ref).where(LegalHold.scope == "subject", LegalHold.released_at.is_(None))
    return [(row[0], row[1]) for row in session.execute(query.where(LegalHold.scope_ref.in_(digests)))]


def records_of_person(session: Session, digest: bytes) -> list[tuple[UUID, str]]:
    """Return (data set, record id) of every record of a person."""
    query = select(SubjectRecord.dataset_id, SubjectRecord.record_id).where(SubjectRecord.subject_hmac == digest)
    return [(row[0], row[1]) for row in session.execute(query)]


def records_held(session: Session, hold_id: UUID) -> int:
    """Return how many records of a person a hold keeps."""
    return session.scalar(select(func.count()).select_from(HoldRecord).where(HoldRecord.hold_id == hold_id)) or 0
