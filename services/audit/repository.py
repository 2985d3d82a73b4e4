"""SQL of audit events and audit reports."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, select, text
from sqlalchemy.orm import Session

from services.db import revocations
from services.db.tables import AuditEvent, AuditPayload, AuditReport, FigureRow, Rendering


@dataclass(frozen=True, slots=True)
class Event:
    """One event with the body it committed to. `number` is the event's id; ids of one object rise in causal order."""

    number: int
    object_id: UUID
    type: str
    at: datetime
    commitment: bytes
    salt: bytes
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NewEvent:
    """One event as it is written. Commitments differ, since each has a salt of its own."""

    type: str
    commitment: bytes
    salt: bytes
    body: Mapping[str, Any]


_INSERT_EVENTS = text("""
    WITH given AS (
        SELECT * FROM unnest(CAST(:types AS text[]), CAST(:commitments AS bytea[]), CAST(:salts AS bytea[]), CAST(:bodies AS text[]))
          WITH ORDINALITY AS x(type, commitment, salt, body, position)),
    event AS (
        INSERT INTO audit_event (tenant_id, type, commitment)
        SELECT CAST(:tenant AS uuid), type, commitment FROM given ORDER BY position RETURNING id, commitment),
    payload AS (
        INSERT INTO audit_payload (event_id, tenant_id, object_id, salt, body)
        SELECT event.id, CAST(:tenant AS uuid), CAST(:object AS uuid), given.salt, CAST(given.body AS jsonb)
          FROM event JOIN given ON given.commitment = event.commitment)
    SELECT id FROM event ORDER BY id
    """)
"""Nothing is returned of a payload: control writes events for every tenant and may read the payloads of none."""


def insert_events(session: Session, *, tenant_id: UUID, object_id: UUID, events: Sequence[NewEvent]) -> list[int]:
    """Insert events and payloads about one object by one statement; return the events' ids, which rise in the order given."""
    values: dict[str, Any] = {
        "tenant": tenant_id,
        "object": object_id,
        "types": [one.type for one in events],
        "commitments": [one.commitment for one in events],
        "salts": [one.salt for one in events],
        "bodies": [json.dumps(dict(one.body)) for one in events],
    }
    return list(session.execute(_INSERT_EVENTS, values).scalars())


def events_of(session: Session, object_ids: Collection[UUID], after_id: int, limit: int) -> list[Event]:
    """Return at most `limit` events about any of the objects with an id above `after_id`, in order. Events whose payload was erased are left out."""
    rows = session.execute(
        select(AuditEvent.id, AuditPayload.object_id, AuditEvent.type, AuditEvent.at, AuditEvent.commitment, AuditPayload.salt, AuditPayload.body)
        .join(AuditPayload, AuditPayload.event_id == AuditEvent.id)
        .where(AuditPayload.object_id.in_(object_ids), AuditPayload.event_id > after_id)
        .order_by(AuditPayload.event_id)
        .limit(limit)
    )
    return [Event(*row) for row in rows]


def newest_event(session: Session, object_ids: Collection[UUID]) -> int:
    """Return the highest event id about any of the objects, 0 where there is none."""
    return session.scalar(select(func.max(AuditPayload.event_id)).where(AuditPayload.object_id.in_(object_ids))) or 0


def numbered(session: Session, object_id: UUID, types: Collection[str]) -> list[tuple[str, Mapping[str, Any], int | None]]:
    """Return type, body and leaf number of the events of these types about an object, in order; the number is None until the sequencer was there."""
    rows = session.execute(
        select(AuditEvent.type, AuditPayload.body, AuditEvent.seq)
        .join(AuditPayload, AuditPayload.event_id == AuditEvent.id)
        .where(AuditPayload.object_id == object_id, AuditEvent.type.in_(types))
        .order_by(AuditEvent.id)
    )
    return [(row[0], row[1], row[2]) for row in rows]


def span(session: Session, object_ids: Collection[UUID]) -> tuple[int | None, int | None]:
    """Return the first and the last leaf number of events about any of the objects, of those that have one."""
    query = select(func.min(AuditEvent.seq), func.max(AuditEvent.seq)).join(AuditPayload, AuditPayload.event_id == AuditEvent.id)
    row = session.execute(query.where(AuditPayload.object_id.in_(object_ids))).one()
    return row[0], row[1]


def own_leaf(session: Session, seq: int) -> bytes | None:
    """Return the commitment of leaf `seq` if its event is the transaction's tenant's, else None."""
    return session.scalar(select(AuditEvent.commitment).where(AuditEvent.seq == seq))


def insert_report(
    session: Session, *, report_id: UUID, tenant_id: UUID, request_id: UUID, digest: str, statement: Mapping[str, Any], event_id: int | None
) -> int:
    """Insert the next revision of a request's report and return its number, from 1. A race of two writers is a unique violation.

    Args:
        session: in a transaction of the tenant.
        report_id: a new id.
        tenant_id: the transaction's tenant.
        request_id: whose report it is.
        digest: lower-case hex SHA-256 of the statement's canonical JSON.
        statement: the report.
        event_id: the event that commits to the digest; without one the signer never signs the report.
    """
    revision = (session.scalar(select(func.max(AuditReport.revision)).where(AuditReport.request_id == request_id)) or 0) + 1
    session.execute(
        insert(AuditReport).values(
            id=report_id,
            tenant_id=tenant_id,
            request_id=request_id,
            revision=revision,
            digest=digest,
            statement=dict(statement),
            event_id=event_id,
        )
    )
    return revision


def report(session: Session, request_id: UUID, revision: int | None = None) -> AuditReport | None:
    """Return one signed revision of a request's report, by default the newest; what is not signed is shown to nobody."""
    query = select(AuditReport).where(AuditReport.request_id == request_id, AuditReport.tlog_proof.is_not(None))
    query = query.order_by(AuditReport.revision.desc()).limit(1) if revision is None else query.where(AuditReport.revision == revision)
    return session.scalar(query)


def evidence_of(session: Session, row: AuditReport) -> tuple[Mapping[str, Any], str] | None:
    """Return envelope and proof of a revision, those of a later key where the first was revoked; None for one that is not signed."""
    renewed = revocations.newest(session, row.id)
    if renewed is not None:
        return renewed.envelope, renewed.tlog_proof
    return None if row.envelope is None or row.tlog_proof is None else (row.envelope, row.tlog_proof)


def newest_revision(session: Session, request_id: UUID) -> AuditReport | None:
    """Return the newest revision of a request's report, signed or not; for whoever writes the next one."""
    return session.scalar(select(AuditReport).where(AuditReport.request_id == request_id).order_by(AuditReport.revision.desc()).limit(1))


def reports(session: Session, request_id: UUID) -> Sequence[tuple[int, str, datetime]]:
    """Return revision, digest and time of each signed report of a request, oldest first; the statements are not read."""
    columns = select(AuditReport.revision, AuditReport.digest, AuditReport.created_at)
    columns = columns.where(AuditReport.request_id == request_id, AuditReport.tlog_proof.is_not(None))
    return [(revision, digest, at) for revision, digest, at in session.execute(columns.order_by(AuditReport.revision))]


def report_by_id(session: Session, report_id: UUID) -> AuditReport | None:
    """Return a stored revision."""
    return session.scalar(select(AuditReport).where(AuditReport.id == report_id))


def insert_renderings(session: Session, *, tenant_id: UUID, report_id: UUID, forms: Mapping[str, bytes], digests: Mapping[str, str]) -> None:
    """Insert the pages of a revision; `digests` are the SHA-256 (hex) of their bytes."""
    rows = [{"tenant_id": tenant_id, "report_id": report_id, "form": form, "digest": digests[form], "body": body} for form, body in forms.items()]
    session.execute(insert(Rendering), rows)


def renderings(session: Session, report_id: UUID) -> dict[str, str]:
    """Return the digest of each page of a revision by its form; the bytes are not read."""
    rows = session.execute(select(Rendering.form, Rendering.digest).where(Rendering.report_id == report_id))
    return {form: digest for form, digest in rows}  # noqa: C416  a row is no pair to the type checker


def rendering(session: Session, report_id: UUID, form: str) -> bytes | None:
    """Return the bytes of one page, None where it is not made yet."""
    return session.scalar(select(Rendering.body).where(Rendering.report_id == report_id, Rendering.form == form))


def figures(session: Session, named: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the data that runners drew for the figures `named` in a statement, by digest."""
    digests = [entry["data_digest"] for entry in named if entry["data_digest"] is not None]
    rows = session.execute(select(FigureRow.digest, FigureRow.data).where(FigureRow.digest.in_(digests)))
    return {digest: data for digest, data in rows if digest is not None and data is not None}
