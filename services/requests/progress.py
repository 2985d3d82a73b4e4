"""Moving a request on: start it, hand its targets to the batches, and close it when every target is final and its report is stored."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.orm import Session

from services.audit import log as audit
from services.clock import Clock
from services.db import holds as rows
from services.db import outbox
from services.db.tables import DeletionRequest, Target
from services.errors import NotFound
from services.model_versions import purge
from services.model_versions import repository as models
from services.requests import candidates, holds, repository
from services.requests.states import REQUEST, TARGET, following
from services.tenants.policies import body_of

log = structlog.get_logger()
DAY_S = 86_400.0
WHY_NO_JOB = {
    "dataset-purged": "No version of a dataset is held any more that has all these records.",
    "no-evaluation-set": "Nothing of the model's training data is held, and the version names no evaluation set (evaluated_on) to judge a result by.",
    "method-not-applicable": "No method of the policy can serve the request by what is held of the model and its records now; dry_run says why.",
}
STOPPED = frozenset({"diverged", "method-not-applicable"})
LADDER_SPENT = "Nothing of the model's training data is held, so that no other method follows and the model cannot be retrained; its version stands."


def advance(session: Session, request_id: UUID, clock: Clock) -> str:
    """Move a request on as far as it goes (start, finish, stuck) and return its state; safe to call at any time, any number of times.

    The transaction has entered the request's tenant. When every target is final and no report is stored, the outbox asks for one; whoever stores
    it calls this again. Raises NotFound.
    """
    held = repository.request(session, request_id, lock=True)
    if held is None:
        raise NotFound
    if held.state == "approved" and not _held_back(session, held):
        _start(session, held, clock)
    if held.state in {"in_progress", "approved"}:
        _close(session, held, clock)
    return held.state


def _held_back(session: Session, held: DeletionRequest) -> bool:
    """Put an approved request on hold where a legal hold covers it; say whether one does."""
    standing = rows.over_requests(session, [held.id])
    if standing:
        body = {"holds": [one.hex for one in standing]}
        _move(session, held, "hold_placed", body, resume_state="approved", attention=holds.attention(standing, held.attention))
    return bool(standing)


def _start(session: Session, held: DeletionRequest, clock: Clock) -> None:
    """Put the targets in line; those whose records or classes the model has forgotten already, and those of clean models, are done at once."""
    waiting: list[UUID] = []
    for target in repository.targets(session, held.id, lock=True):
        if target.state != "located":
            continue
        covering = _covering(session, held, target)
        if covering is not None:
            _settle(session, target, "already_forgotten", covering)
        elif not _current_is_tainted(held, target):
            _quarantine(session, held, target, clock)
        else:
            waiting.append(target.id)
    if waiting:
        repository.queue_targets(session, waiting)
        _move(session, held, "start", {"targets": len(waiting)})


def _covering(session: Session, held: DeletionRequest, target: Target) -> UUID | None:
    """Return the version by which the target is done already. With no record held there is none in the ledger, and the classes themselves are asked."""
    if held.details.get("zero_shot"):
        return repository.suppressing_version(session, target.id, held.scope.get("labels", ()))
    return repository.covering_version(session, target.id)


def _current_is_tainted(held: DeletionRequest, target: Target) -> bool:
    if held.details.get("zero_shot"):  # whatever version is current now, nothing says that it did not learn from the class
        return True
    return str(target.base_version_id) in held.details.get("tainted", {}).get(str(target.model_id), [])


def _quarantine(session: Session, held: DeletionRequest, target: Target, clock: Clock) -> None:
    """Put away older versions that learned from the records; the current one has not."""
    days = body_of(repository.policies(session, [held.policy_id])[held.policy_id]).flags.purge_after_days()
    versions = [UUID(one) for one in held.details["tainted"][str(target.model_id)]]
    gone = models.quarantine(session, versions, None if days is None else days * DAY_S)
    purge.schedule(session, gone, clock=clock)
    body = {"model": str(target.model_id), "versions": [one.hex for one in gone]}
    audit.record(session, tenant_id=held.tenant_id, object_id=held.id, type="model_version.quarantined", body=body)
    _settle(session, target, "quarantined", target.base_version_id)


def _settle(session: Session, target: Target, outcome: str, version_id: UUID | None) -> None:
    state = following(TARGET, target.state, "covered", thing="target")
    repository.set_targets(session, [target.id], state=state, outcome=outcome, published_version_id=version_id)


def _close(session: Session, held: DeletionRequest, clock: Clock) -> None:
    """Finish, or hand to a person what is stuck, or ask for the report that finishing needs."""
    targets = repository.targets(session, held.id)
    states = {target.state for target in targets}
    if states <= set(repository.FINAL_TARGET):
        if not repository.reports(session, [held.id]):
            if not repository.report_waits(session, held.id):  # else the signer calls again
                outbox.ring(session, tenant_id=held.tenant_id, topic="report.build", ref=held.id)
            return
        whole, now = states == {"published"}, clock.now()
        _move(session, held, "finish" if whole else "finish_partial", _outcomes(targets), closed_at=now, attention=None)
        candidates.schedule(session, held, now, clock=clock)
    elif held.state == "in_progress" and "stuck" in states and not states & {"located", "queued", "running"}:
        stopped = [target for target in targets if target.state == "stuck"]
        _move(session, held, "stuck", _outcomes(targets), attention=_attention(session, held, stopped))


def _outcomes(targets: Sequence[Target]) -> dict[str, Any]:
    return {"targets": {target.id.hex: target.outcome or target.state for target in targets}}


def _attention(session: Session, held: DeletionRequest, stopped: Sequence[Target]) -> dict[str, Any]:
    """Return what a person needs to know: the code and detail of the last job's error, or why none could be opened.

    A verdict says itself what comes behind it; where a method stopped without one and no training data are held, it is said here.
    """
    found = repository.target_errors(session, [target.id for target in stopped])
    if found is None:
        code = stopped[0].outcome or "no-method"
        return {"code": code, "rung": 1, "detail": WHY_NO_JOB.get(code, "No job could be opened for these records.")}
    error: dict[str, Any] = found["error"] or {}
    code = error.get("code") or found["attention"] or "job-cancelled"
    detail = error.get("detail") or "The job ended without a verdict that allows publishing."
    if held.details.get("zero_shot") and code in STOPPED:
        detail = f"{detail} {LADDER_SPENT}"
    return {"code": code, "rung": found["rung"], "detail": detail}


def _move(session: Session, held: DeletionRequest, event: str, body: dict[str, Any], **values: Any) -> None:
    before = held.state
    state = following(REQUEST, before, event, thing="request", resume=held.resume_state)
    repository.set_request(session, held.id, state=state, **values)
    session.refresh(held)
    audit.record(session, tenant_id=held.tenant_id, object_id=held.id, type=f"request.{state}", body={"from": before, **body})
    log.info("request.moved", request_id=str(held.id), event_name=event, state=state)
