"""The one transaction by which a job's version becomes the model's current one."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.orm import Session

from services.audit import log as audit
from services.clock import Clock, uuid7
from services.db import holds, outbox
from services.db.tables import AliasHistory, Job, ModelVersion, Target
from services.errors import Conflict, HeldByLaw, NotFound, ParentMoved, Resurrection
from services.model_versions import purge, repository
from services.model_versions.forms import Publication, Published

log = structlog.get_logger()
DAY_S = 86_400.0


def publish(session: Session, publication: Publication, *, clock: Clock) -> Published:
    """Publish a version. The caller holds the job row, locked on its epoch in state `publishing`, and commits afterwards.

    Locks: targets by id, then the model. Calling it again for a job that has published returns what it published.

    Raises:
        NotFound: there is no such job.
        ParentMoved: the job's base is no longer the model's current version; roll back and rebase.
        Conflict: the job does not publish, its verdict is not `passed` and nobody released it, or a target is no longer running.
        HeldByLaw: a legal hold came to stand over one of its requests; whoever placed it has asked the job to stop.
        Resurrection: a training run learned from records that were forgotten meanwhile.
    """
    job = repository.job(session, publication.job_id)
    if job is None:
        raise NotFound
    done = repository.version_of_job(session, job.id)
    if done is not None:
        return Published(version_id=done.id, number=done.number, superseded=(), requests=())
    targets = repository.job_targets(session, job.id)
    base = _check(session, publication, job, targets)
    superseded = _superseded(session, publication, job, base)
    new, number = uuid7(clock), repository.next_number(session, job.model_id)
    _insert(session, publication, job, new, number, base)
    if not repository.move_current(session, job.model_id, base, new):
        raise ParentMoved(job=job.id)
    _move_aliases(session, job, [base, *superseded] if base else superseded, new, clock)
    repository.enter_ledger(session, job.id, job.model_id, new)
    quarantined = repository.quarantine(session, superseded, _destroy_after(session, job))
    purge.schedule(session, quarantined, clock=clock)
    repository.publish_targets(session, [target.id for target in targets], new)
    repository.close_job(session, job.id, {"version_id": str(new), "version": number} | dict(publication.result))
    requests = sorted({target.request_id for target in targets})
    _tell(session, job, publication, new, number, quarantined, requests)
    log.info("version.published", job_id=str(job.id), version_id=str(new), number=number, superseded=len(quarantined))
    return Published(version_id=new, number=number, superseded=tuple(quarantined), requests=tuple(requests))


def confirm(session: Session, job_id: UUID) -> Published:
    """Close a job whose records no version ever learned from: the current version stands, and the ledger says that it does not know them.

    The caller holds the job row, locked on its epoch in state `publishing`, and commits afterwards. Raises as `publish` does.
    """
    job = repository.job(session, job_id)
    if job is None:
        raise NotFound
    targets = repository.job_targets(session, job.id)
    base = _base(session, job, targets)
    repository.enter_ledger(session, job.id, job.model_id, base.id)
    repository.publish_targets(session, [target.id for target in targets], base.id, outcome="not_learned")
    repository.close_job(session, job.id, {"version_id": str(base.id), "version": base.number, "not_learned": True})
    requests = sorted({target.request_id for target in targets})
    body = {"job": str(job.id), "model": str(job.model_id), "version": str(base.id), "number": base.number, "manifest": base.manifest_digest}
    _announce(session, job, "model_version.confirmed", body, (job.id, base.id), requests)
    log.info("version.confirmed", job_id=str(job.id), version_id=str(base.id), number=base.number)
    return Published(version_id=base.id, number=base.number, superseded=(), requests=tuple(requests))


def _base(session: Session, job: Job, targets: Sequence[Target]) -> ModelVersion:
    """Lock the model and return its current version, from which the job started."""
    model = repository.find(session, job.model_id, lock=True)
    if model is None or job.base_version_id is None:
        raise NotFound
    if job.state != "publishing":
        raise Conflict(detail=f"a job in state {job.state!r} does not publish.")
    if model.current_version_id != job.base_version_id:
        raise ParentMoved(job=job.id)
    _check_targets(session, targets)
    base = repository.version_by_id(session, job.base_version_id)
    if base is None:
        raise NotFound
    return base


def _check_targets(session: Session, targets: Sequence[Target]) -> None:
    standing = holds.over_requests(session, {target.request_id for target in targets})
    if standing:
        raise HeldByLaw(holds=", ".join(f"hold_{one.hex}" for one in standing))
    if not targets or any(target.state not in {"running", "queued"} for target in targets):
        raise Conflict(detail="a target of this job was taken back.")


def _check(session: Session, publication: Publication, job: Job, targets: Sequence[Target]) -> UUID | None:
    """Lock the model and return the version that the new one follows."""
    model = repository.find(session, job.model_id, lock=True)
    if model is None:
        raise NotFound
    if job.state != "publishing":
        raise Conflict(detail=f"a job in state {job.state!r} does not publish.")
    if job.kind == "train":
        for dataset_version_id, _ in publication.trained_on:
            if repository.dataset_holds_erased(session, dataset_version_id):
                raise Resurrection(version="that this run trained")
        return model.current_version_id
    if model.current_version_id != job.base_version_id:
        raise ParentMoved(job=job.id)
    verdict = repository.verdict(session, job.id, job.round)
    if verdict != "passed" and not (verdict == "inconclusive" and repository.released(session, job.id, job.round)):
        raise Conflict(detail=f"the verdict of round {job.round} is {verdict}, not passed.")
    _check_targets(session, targets)
    return job.base_version_id


def _superseded(session: Session, publication: Publication, job: Job, base: UUID | None) -> list[UUID]:
    """Return the versions of the model that learned from the forgotten records; with no data held, the base's whole branch."""
    if job.kind == "train" or base is None:
        return []
    found = {base}
    for dataset_id, record_ids in publication.forgotten.items():
        for row in repository.tainted_by_records(session, dataset_id, record_ids):
            if row.model_id == job.model_id:
                found.update(row.versions)
    if not any(publication.forgotten.values()):
        found.update(repository.versions_of_line(session, base))
    return sorted(found)


def _insert(session: Session, publication: Publication, job: Job, new: UUID, number: int, base: UUID | None) -> None:
    values: dict[str, Any] = {
        "id": new,
        "tenant_id": job.tenant_id,
        "model_id": job.model_id,
        "number": number,
        "parent_id": base if job.kind == "unlearn" else None,
        "job_id": job.id,
        "status": "ready",
        "guarantee": publication.guarantee,
        "fresh_start": publication.fresh_start or job.kind == "train",
        "recipe": dict(publication.recipe) if publication.recipe is not None else None,
        "manifest": dict(publication.manifest),
        "manifest_digest": publication.manifest_digest,
        "code_digest": publication.code_digest,
        "image_digest": publication.image_digest,
        "seeds": dict(publication.seeds),
    }
    repository.add(session, ModelVersion, **values)
    repository.add_files(session, job.tenant_id, new, publication.files)
    repository.reference_objects(session, job.tenant_id, new, {file.digest: file.size_bytes for file in publication.files})
    repository.add_inputs(session, job.tenant_id, new, publication.trained_on)


def _move_aliases(session: Session, job: Job, left: Sequence[UUID], new: UUID, clock: Clock) -> None:
    """Move every alias that points at a version this one supersedes; of a training run, those of the version that was current."""
    for name in repository.aliases_on(session, job.model_id, left):
        repository.move_alias(session, job.model_id, name, new)
        repository.close_history(session, job.model_id, name)
        line = {"model_id": job.model_id, "alias": name, "version_id": new, "by": f"job:{job.id}"}
        repository.add(session, AliasHistory, id=uuid7(clock), tenant_id=job.tenant_id, **line)


def _destroy_after(session: Session, job: Job) -> float | None:
    """Return the seconds that a superseded version stays in quarantine, by the policy; None keeps it there."""
    if job.policy_id is None:
        return 0.0
    rule = str(repository.policy(session, job.policy_id).flags.get("purge_superseded", "now"))
    if rule == "never":
        return None
    return float(rule.removeprefix("after:")) * DAY_S if rule.startswith("after:") else 0.0


def _tell(
    session: Session, job: Job, publication: Publication, new: UUID, number: int, quarantined: Sequence[UUID], requests: Sequence[UUID]
) -> None:
    body = {
        "job": str(job.id),
        "model": str(job.model_id),
        "version": str(new),
        "number": number,
        "manifest": publication.manifest_digest,
        "superseded": [str(one) for one in quarantined],
    }
    _announce(session, job, "model_version.published", body, (job.id, new), requests)


def _announce(session: Session, job: Job, what: str, body: dict[str, Any], about: Sequence[UUID], requests: Sequence[UUID]) -> None:
    """Write the audit event, and let control report and move on the requests."""
    for object_id in (*about, *requests):
        audit.record(session, tenant_id=job.tenant_id, object_id=object_id, type=what, body=body)
    finished = set(repository.finished_requests(session, requests))
    for request_id in requests:
        if request_id in finished:
            outbox.ring(session, tenant_id=job.tenant_id, topic="report.build", ref=request_id)
        outbox.ring(session, tenant_id=job.tenant_id, topic="request.advance", ref=request_id)
