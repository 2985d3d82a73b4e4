"""Building a request's audit report: gather the rows, make the statement, store it as the next revision; then what its pages are made of."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from services.audit import log, report
from services.audit import repository as audit
from services.audit.runs import Chain, Run
from services.clock import Clock, uuid7
from services.db import leaves, outbox
from services.jobs import repository
from services.tenants.keys import KeyRing, derive, tenant_key


def build_report(session: Session, request_id: UUID, *, tenant_id: UUID, keys: KeyRing, clock: Clock) -> str | None:
    """Store the next revision of the report for the signer; return its digest, or None when nothing is to be reported yet.

    A report equal to the newest one but for its time is not written again. The request goes on when the report is signed.
    Raises LogBehind: the plan or the run of a job has no leaf yet.
    """
    gathered = repository.for_report(session, request_id)
    if gathered is None:
        return None
    newest = audit.newest_revision(session, request_id)
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
        chain=_chain(session, request_id, gathered.runs),
        conduct=gathered.conduct,
    )
    if newest is not None and _same(newest.statement, statement):
        if newest.tlog_proof is not None:
            outbox.ring(session, tenant_id=tenant_id, topic="request.advance", ref=request_id)
        outbox.ring(session, tenant_id=tenant_id, topic="report.render", ref=newest.id)
        return newest.digest
    digest, report_id = report.digest(statement), uuid7(clock)
    facts = {"revision": statement["predicate"]["revision"], "digest": digest}
    event = log.record(session, tenant_id=tenant_id, object_id=request_id, type="report.stored", body=facts)
    audit.insert_report(session, report_id=report_id, tenant_id=tenant_id, request_id=request_id, digest=digest, statement=statement, event_id=event)
    outbox.ring(session, tenant_id=tenant_id, topic="report.render", ref=report_id)
    return digest


def _chain(session: Session, request_id: UUID, runs: Sequence[Run]) -> Chain:
    """Return where the request stands in the log."""
    first, last = audit.span(session, [request_id, *(run.job.id for run in runs)])
    head = leaves.newest_head(session)
    if head is None:
        return Chain(first, last)
    return Chain(first, last, head.size, head.root.hex(), witnessed=bool(leaves.cosignatures(session, head.size)))


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
    passing, moving = {"revision", "supersedes", "clock", "chain"}, {"completed", "on_time"}

    def bare(statement: Mapping[str, Any]) -> dict[str, Any]:
        told = statement["predicate"]
        clock = {name: part for name, part in told["clock"].items() if name not in moving}
        return {**statement, "predicate": {**{name: part for name, part in told.items() if name not in passing}, "clock": clock}}

    return bare(one) == bare(other)
