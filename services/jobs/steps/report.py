"""Building a request's audit report: gather the rows, make the statement, store it as the next revision; then what its pages are made of."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from services.audit import log, report
from services.audit import repository as audit
from services.clock import Clock, uuid7
from services.db import outbox
from services.jobs import repository
from services.tenants.keys import KeyRing, derive, tenant_key


def build_report(session: Session, request_id: UUID, *, tenant_id: UUID, keys: KeyRing, clock: Clock) -> str | None:
    """Store the next revision of the report and let the request go on; return its digest, or None when nothing is to be reported yet.

    A report equal to the newest one but for its time is not written again.
    """
    gathered = repository.for_report(session, request_id)
    if gathered is None:
        return None
    newest = audit.report(session, request_id)
    key = derive(tenant_key(session, tenant_id, keys.kek), "audit:tenant-ref")
    statement = report.build(
        gathered.request,
        gathered.subjects,
        gathered.runs,
        gathered.policy,
        tenant_ref=hmac.digest(key, tenant_id.bytes, hashlib.sha256).hex(),
        revision=1 if newest is None else newest.revision + 1,
        at=repository.now(session),
        supersedes=None if newest is None else newest.digest,
    )
    if newest is not None and _same(newest.statement, statement):
        digest, report_id = newest.digest, newest.id
    else:
        digest, report_id = report.digest(statement), uuid7(clock)
        revision = audit.insert_report(session, report_id=report_id, tenant_id=tenant_id, request_id=request_id, digest=digest, statement=statement)
        log.record(session, tenant_id=tenant_id, object_id=request_id, type="report.stored", body={"revision": revision, "digest": digest})
    outbox.ring(session, tenant_id=tenant_id, topic="request.advance", ref=request_id)
    outbox.ring(session, tenant_id=tenant_id, topic="report.render", ref=report_id)
    return digest


@dataclass(frozen=True, slots=True)
class Material:
    """What the pages of one revision are made of: the statement, its digest, and the data of its figures by digest."""

    statement: Mapping[str, Any]
    digest: str
    figures: Mapping[str, Any]


def material(session: Session, report_id: UUID) -> Material | None:
    """Return what the pages of a revision are made of; None for an unknown report, and for one that has its pages."""
    held = audit.report_by_id(session, report_id)
    if held is None or audit.renderings(session, report_id):
        return None
    return Material(held.statement, held.digest, report.figure_data(held.statement, audit.figures(session, report.figures_of(held.statement))))


def keep_renderings(session: Session, report_id: UUID, *, tenant_id: UUID, forms: Mapping[str, bytes]) -> None:
    """Store the pages of a revision with their digests, and say so in the log. Pages that are there already stay as they are."""
    held = audit.report_by_id(session, report_id)
    if held is None or audit.renderings(session, report_id):
        return
    digests = {form: hashlib.sha256(body).hexdigest() for form, body in forms.items()}
    audit.insert_renderings(session, tenant_id=tenant_id, report_id=report_id, forms=forms, digests=digests)
    facts = {"revision": held.revision, "digest": held.digest, "renderings": digests}
    log.record(session, tenant_id=tenant_id, object_id=held.request_id, type="report.rendered", body=facts)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Say whether two statements differ in nothing but revision, link and time."""
    passing = {"revision", "supersedes", "clock"}

    def bare(statement: Mapping[str, Any]) -> dict[str, Any]:
        return {**statement, "predicate": {name: part for name, part in statement["predicate"].items() if name not in passing}}

    return bare(one) == bare(other)
