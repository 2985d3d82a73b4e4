"""Destroying candidates: what the jobs of a closed request put and did not publish, some days after the request closed, as its policy says.

A candidate is named by its job. Files of a version that the job published, and files that any other version needs, stay.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.orm import Session

from services.audit import destruction as common
from services.audit import log as audit
from services.audit.destruction import Blob, CertificateView, Obstacle, Proven
from services.clock import Clock, uuid7
from services.db import candidates as rows
from services.db import holds, objects
from services.db.objects import Owner
from services.db.tables import DeletionRequest, Job
from services.errors import NotFound
from services.requests import repository
from services.tenants.policies import body_of

log = structlog.get_logger()
WEIGHTS = ".safetensors"


def schedule(session: Session, held: DeletionRequest, closed_at: datetime, *, clock: Clock) -> list[UUID]:
    """Open the purge job of every job of a request that closes, unless nothing is left of it; return the purge jobs' ids."""
    policy = body_of(repository.policies(session, [held.policy_id])[held.policy_id])
    due = closed_at + timedelta(days=policy.retention.candidates_days)
    opened: list[UUID] = []
    for row in rows.left_by(session, held.id):
        values = {"id": uuid7(clock), "tenant_id": held.tenant_id, "model_id": row.model_id, "candidate_job_id": row.id}
        opened.append(common.open_job(session, values, due=due, params={"reason": "not-published", "by": "policy"}, by="control"))
    return opened


def plan(session: Session, thing: UUID) -> list[Blob] | Obstacle:
    """Decide which blobs of a job that has ended go and mark them; none where everything that it put was published.

    Locks the job, then the blobs. Raises NotFound.
    """
    job = _job(session, thing, lock=True)
    if job.finished_at is None:
        return Obstacle("version-in-use", f"job job_{thing.hex} has not ended")
    stands = common.under_hold(holds.over_requests(session, [request_id for request_id, _ in rows.requests_of(session, thing)]))
    if stands is not None:
        return stands
    files = [Blob(row.path, row.digest, row.size_bytes) for row in rows.files_left(session, thing)]
    if job.state == "succeeded" and not any(_is_weights(file) for file in files):
        return []
    return common.choose(session, files, _owner(job))


def bury(session: Session, thing: UUID, blobs: Sequence[Blob], *, reason: str) -> datetime:
    """Record that the bytes are gone, with tombstones for the weights; return when."""
    job = _job(session, thing, lock=True)
    fate = common.release(session, blobs, _owner(job), tombstones=_is_weights, reason=reason)
    at = objects.now(session)
    facts = {**_named(job), "reason": reason, "at": at.isoformat(), **fate}
    audit.record(session, tenant_id=job.tenant_id, object_id=thing, type="candidate.destroyed", body=facts)
    log.info("candidate.destroyed", job_id=str(thing), count=len(fate["destroyed"]))
    return at


def certify(session: Session, thing: UUID, blobs: Sequence[Blob], proven: Proven) -> str:
    """Store the certificate with its event in the log, and let the report of every request that the job served be built again; return the digest."""
    job = _job(session, thing)
    served = rows.requests_of(session, thing)
    model = repository.job_names(session, [job])[0][job.model_id]
    named = {"candidate_of": f"job_{thing.hex}", "model": model, "method": job.method, "rung": job.rung, "state": job.state}
    document = common.body(named, blobs, proven, [request_id for request_id, _ in served])
    return common.store(
        session, document, key={"candidate_job_id": thing}, certificate_id=proven.certificate_id, tenant_id=job.tenant_id,
        event="candidate.destruction_certified", facts=_named(job), concerned=[request_id for request_id, reported in served if reported],
    )  # fmt: skip


def certificate(session: Session, job_id: UUID) -> CertificateView:
    """Return the certificate of what a job put and did not publish. Raises NotFound, CertificateNotReady."""
    return common.view(session, candidate_job_id=_job(session, job_id).id)


def _job(session: Session, job_id: UUID, *, lock: bool = False) -> Job:
    found = repository.job(session, job_id, lock=lock)
    if found is None:
        raise NotFound
    return found


def _is_weights(blob: Blob) -> bool:
    return blob.path.endswith(WEIGHTS)


def _owner(job: Job) -> Owner:
    return Owner("candidate", job.id, job.tenant_id)


def _named(job: Job) -> dict[str, Any]:
    return {"job": str(job.id), "model": str(job.model_id), "rung": job.rung}
