"""Jobs as a client sees them: read, list, cancel."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.orm import Session

from services.audit import log as audit
from services.clock import Clock
from services.db import outbox
from services.db.tables import Job
from services.errors import Conflict, NotFound, TooLateToCancel
from services.requests import repository
from services.requests.forms import JobFilters, Key
from services.requests.states import JOB, TARGET, allowed, following, terminal
from services.requests.views import AttemptView, JobView, StepView, TookView
from services.tenants.caller import Caller

log = structlog.get_logger()
OFFERED = frozenset({"cancel", "retry", "release"})


def read(session: Session, job_id: UUID) -> JobView:
    """Return one job. Raises NotFound."""
    return _views(session, [_job(session, job_id)])[0]


def listing(
    session: Session, filters: JobFilters, *, limit: int = 50, after: Key | None = None, newest_first: bool = True
) -> tuple[list[JobView], Key | None]:
    """Return a page of jobs by creation time, and the key to continue after (None on the last page)."""
    rows = repository.job_page(session, filters, limit + 1, after, newest_first=newest_first)
    key = (rows[limit - 1].created_at, rows[limit - 1].id) if len(rows) > limit else None
    return _views(session, rows[:limit]), key


def attempts(session: Session, job_id: UUID) -> list[AttemptView]:
    """Return the claims of a job, oldest first. Raises NotFound."""
    _job(session, job_id)
    names = ("attempt", "lease_epoch", "worker", "device", "started_at", "ended_at", "outcome", "error")
    return [AttemptView(**{name: getattr(row, name) for name in names}) for row in repository.attempts(session, job_id)]


def steps(session: Session, job_id: UUID) -> list[StepView]:
    """Return the steps of a job, oldest first. Raises NotFound."""
    _job(session, job_id)
    names = ("name", "attempt", "state", "input_digest", "output_digest", "metrics", "started_at", "ended_at")
    return [StepView(**{name: getattr(row, name) for name in names}) for row in repository.steps(session, job_id)]


def cancel(session: Session, job_id: UUID, *, caller: Caller, clock: Clock) -> JobView:
    """Ask a job to stop: a queued one is cancelled at once and its targets are stuck, a running one stops at its next check.

    Raises: NotFound; IllegalTransition on a finished job; TooLateToCancel while it publishes; Conflict for a purge.
    """
    held = _job(session, job_id, lock=True)
    if held.state == "publishing":
        raise TooLateToCancel
    if held.kind == "purge":
        raise Conflict(detail="a purge is not cancelled; a legal hold keeps what must not be destroyed.")
    following(JOB, held.state, "cancel", thing="job")
    if held.lease_owner is None:
        targets = repository.active_targets_of_job(session, job_id)
        repository.cancel_job(session, job_id)
        repository.leave_job(session, job_id, [target.id for target in targets])
        for target in targets:
            if "stuck" in TARGET[target.state]:
                repository.set_targets(session, [target.id], state=following(TARGET, target.state, "stuck", thing="target"))
        for request_id in sorted({target.request_id for target in targets}):
            outbox.ring(session, tenant_id=held.tenant_id, topic="request.advance", ref=request_id)
    else:
        repository.ask_to_stop(session, job_id)
    body = {"by": caller.principal, "at": clock.now().isoformat()}
    audit.record(session, tenant_id=held.tenant_id, object_id=job_id, type="job.cancel_requested", body=body)
    log.info("job.cancel_requested", job_id=str(job_id))
    return read(session, job_id)


def took(state: Mapping[str, Any]) -> TookView | None:
    """Return what the steps of a job took so far, as its stored `state` tells it; None before its method has run."""
    steps: Mapping[str, Any] = state.get("steps") or {}
    made, judged = ((steps.get(name) or {}).get("run") or {} for name in ("unlearn", "evaluate"))
    if made.get("method_seconds") is None:
        return None
    names = ("reference_seconds", "evaluation_seconds", "retrain_seconds")
    return TookView(_decimal(made["method_seconds"]), *(_decimal(judged.get(name)) for name in names), reference_from=judged.get("reference_from"))


def _decimal(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _job(session: Session, job_id: UUID, *, lock: bool = False) -> Job:
    found = repository.job(session, job_id, lock=lock)
    if found is None:
        raise NotFound
    return found


def _views(session: Session, rows: Sequence[Job]) -> list[JobView]:
    models, numbers, served = repository.job_names(session, rows)
    return [
        JobView(
            id=row.id,
            kind=row.kind,
            state=row.state,
            attention=row.attention,
            done=terminal(JOB, row.state),
            model=models[row.model_id],
            model_id=row.model_id,
            base_version=numbers.get(row.base_version_id) if row.base_version_id is not None else None,
            dataset_version_id=row.dataset_version_id,
            method=row.method,
            method_version=row.method_version,
            parameters=row.params,
            choice=row.choice,
            rung=row.rung,
            round=row.round,
            targets=tuple(target for target, _ in served[row.id]),
            requests=tuple(sorted({request for _, request in served[row.id]})),
            attempt=row.attempt,
            crashes=row.crashes,
            step=row.step,
            run_after=row.run_after,
            due_at=row.due_at,
            queue=row.queue,
            queue_position=repository.queue_position(session, row) if row.state == "queued" else None,
            progress=row.progress,
            allowed=tuple(event for event in allowed(JOB, row.state) if event in OFFERED and row.kind != "purge"),
            result=row.result if row.state == "succeeded" else None,
            error=row.error if row.state in {"failed", "cancelled"} else None,
            escalated_from=row.escalated_from,
            candidate_job_id=row.candidate_job_id,
            cancel_requested_at=row.cancel_requested_at,
            created_at=row.created_at,
            finished_at=row.finished_at,
            took=took(row.step_state or {}),
            lease_until=row.lease_until,
        )
        for row in rows
    ]
