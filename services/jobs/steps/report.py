"""Building a request's audit report: gather the rows, make the statement, store it as the next revision."""

import hashlib
import hmac
from collections.abc import Mapping
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
        digest = newest.digest
    else:
        digest = report.digest(statement)
        revision = audit.insert_report(
            session, report_id=uuid7(clock), tenant_id=tenant_id, request_id=request_id, digest=digest, statement=statement
        )
        log.record(session, tenant_id=tenant_id, object_id=request_id, type="report.stored", body={"revision": revision, "digest": digest})
    outbox.ring(session, tenant_id=tenant_id, topic="request.advance", ref=request_id)
    return digest


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Say whether two statements differ in nothing but revision, link and time."""
    passing = {"revision", "supersedes", "clock"}

    def bare(statement: Mapping[str, Any]) -> dict[str, Any]:
        return {**statement, "predicate": {name: part for name, part in statement["predicate"].items() if name not in passing}}

    return bare(one) == bare(other)
