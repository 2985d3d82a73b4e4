"""One job for many requests: queued targets of a model are gathered into a batch when their window closes."""

import secrets
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.orm import Session

from services.audit import log as audit
from services.clock import Clock, uuid7
from services.datasets import repository as datasets
from services.db import outbox
from services.db import sources as origins
from services.db.session import enter_tenant
from services.db.tables import Job, JobTarget, Model, Target
from services.errors import LetheError
from services.model_versions import repository as models
from services.requests import holdings, planning, repository
from services.requests.states import TARGET, following

log = structlog.get_logger()


def coalesce(session: Session, clock: Clock, *, tenant_id: UUID | None = None) -> list[UUID]:
    """Open a job for every batch that is due and return the jobs' ids; the bell of each is in the outbox.

    With `tenant_id` the transaction must have entered that tenant. Without, every tenant with queued targets is entered in turn, which only a role
    with policies across tenants may do. A target is in at most one open job; a model has at most one. Where no method can serve a batch any
    more, its targets are stuck and their requests go on to `needs_attention`.
    """
    opened: list[UUID] = []
    for tenant in [tenant_id] if tenant_id is not None else repository.tenants_waiting(session):
        if tenant_id is None:
            enter_tenant(session, tenant)
        for batch in repository.due_batches(session, tenant):
            job_id = _open(session, batch, clock)
            if job_id is not None:
                opened.append(job_id)
    return opened


def _open(session: Session, batch: Any, clock: Clock) -> UUID | None:
    model = repository.lock_model(session, batch.model_id)
    if repository.model_is_busy(session, batch.model_id):
        return None
    taken = repository.take_targets(session, batch, batch.mx)
    if not taken:
        return None
    zero_shot = repository.zero_shot_targets(session, [target.id for target in taken])
    sources = origins.sources(session, [target.id for target in taken])
    judged = models.judged_on(session, [model.current_version_id])[model.current_version_id] if zero_shot and model.current_version_id else []
    serving = datasets.serving(session, judged[0].version_id) if judged else None
    sources |= {target_id: serving.id for target_id in zero_shot if serving is not None}
    source, without_data = sources.get(taken[0].id), taken[0].id in zero_shot
    targets = [target for target in taken if sources.get(target.id) == source and (target.id in zero_shot) == without_data]
    if source is None:
        _stick(session, targets, {"code": "no-evaluation-set" if without_data else "dataset-purged"})
        return None
    if not without_data and not origins.hold(session, source):  # its destruction has begun since: the next turn finds another, or none
        return None
    try:
        job_id = _insert(session, batch, model, targets, source, clock, zero_shot=without_data)
    except LetheError as error:
        _stick(session, targets, {"code": error.code})
        log.warning("batch.refused", model_id=str(batch.model_id), code=error.code)
        return None
    for target in targets:
        repository.add(session, JobTarget, tenant_id=target.tenant_id, job_id=job_id, target_id=target.id, active=True)
    outbox.ring(session, tenant_id=batch.tenant_id, topic="job.ring", ref=job_id)
    body = {"model": str(batch.model_id), "targets": len(targets)}
    for object_id in (job_id, *sorted({target.request_id for target in targets})):
        audit.record(session, tenant_id=batch.tenant_id, object_id=object_id, type="job.queued", body={**body, "job": str(job_id)})
    log.info("job.queued", job_id=str(job_id), kind="unlearn", targets=len(targets))
    return job_id


def _insert(session: Session, batch: Any, model: Model, targets: list[Target], source: UUID, clock: Clock, *, zero_shot: bool) -> UUID:
    base = repository.base_of(session, batch.model_id)
    if zero_shot:
        held = holdings.without_data(session, base, model.architecture, repository.labels_of(session, [target.id for target in targets]))
    else:
        held = holdings.with_data(session, base, model.architecture, datasets.held_beside(session, source))
    policy = repository.policies(session, [batch.policy_id])[batch.policy_id]
    chosen = planning.plan(
        session,
        task=model.task,
        holdings=held,
        policy=policy,
        granularity="class" if batch.by_class else repository.granularity_of(session, [target.id for target in targets]),
        records=repository.batch_records(session, [target.id for target in targets]),
        class_records=None,
        method=batch.method,
        parameters=batch.params,
    )
    job_id = uuid7(clock)
    values: dict[str, Any] = {
        "kind": "unlearn",
        "state": "queued",
        "model_id": batch.model_id,
        "base_version_id": base.id if base is not None else None,
        "dataset_version_id": source,
        "policy_id": batch.policy_id,
        "method": chosen.method,
        "method_version": chosen.version,
        "params": chosen.parameters,
        "choice": chosen.choice,
        "seeds": {name: secrets.randbits(31) for name in ("train", "unlearn", "evaluate")},
        "queue": chosen.queue,
        "due_at": min(target.due_at for target in targets),
        "created_by": "control",
    }
    repository.add(session, Job, id=job_id, tenant_id=batch.tenant_id, **values)
    if base is not None:
        repository.set_targets(session, [target.id for target in targets], base_version_id=base.id)
    return job_id


def _stick(session: Session, targets: list[Target], detail: dict[str, Any]) -> None:
    for target in targets:
        state = following(TARGET, target.state, "stuck", thing="target")
        repository.set_targets(session, [target.id], state=state, outcome=detail["code"])
        outbox.ring(session, tenant_id=target.tenant_id, topic="request.advance", ref=target.request_id)
