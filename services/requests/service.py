"""The life of a deletion request, from its receipt to its end. Nothing here commits: the caller's unit of work does."""

import re
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import structlog
from sqlalchemy.orm import Session

from services.audit import log as audit
from services.clock import Clock
from services.db import outbox
from services.db.tables import DeletionRequest
from services.errors import FourEyesRequired, InvalidInput, NotFound, PreconditionFailed, TooLateToCancel
from services.requests import candidates, presentation, progress, repository, timing
from services.requests.forms import Cancellation, Decision, Key, NewRequest, RequestFilters
from services.requests.intake import Intake, insert, prepare, rehearse
from services.requests.states import JOB, REQUEST, TARGET, following
from services.requests.views import DryRun, RequestView, TargetView
from services.tenants.caller import Caller
from services.tenants.keys import KeyRing

log = structlog.get_logger()
AHEAD = timedelta(minutes=5)
_PERSONAL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+|\+?\d[\d\s().-]{7,}\d")


def create(session: Session, body: NewRequest, *, caller: Caller, clock: Clock, keys: KeyRing) -> RequestView:
    """Record a request with its targets, audit events and outbox row; nothing is lost once the caller commits.

    The answer is `duplicate` where another request with the same scope is open, and `replayed` where this external_id and body were seen before.

    Raises:
        UnknownDataset, UnknownModel, RecordsNotFound, EmptyForgetSet, ForgetSetIsEverything: the scope does not hold.
        UnknownComponent, MethodNotApplicable, ParameterOutOfRange: the method does not.
        DuplicateExternalId: the external_id was used with another body.
        InvalidInput: a scope kind, an identity mode or a policy that this deployment does not have.
    """
    _check(body, clock)
    intake = prepare(session, body, caller=caller, clock=clock, keys=keys)
    if intake.seen is not None:
        return replace(read(session, intake.seen, clock=clock), replayed=True)
    written = insert(session, intake, caller=caller, clock=clock)
    _log_received(intake, written.request_id)
    if written.row is not None:
        zone = ZoneInfo(repository.tenant(session, caller.tenant_id).time_zone)
        return presentation.fresh(written.row, written.lines, intake.policy, written.receipt, zone=zone, clock=clock)
    return replace(read(session, written.request_id, clock=clock), replayed=written.replayed)


def dry_run(session: Session, body: NewRequest, *, caller: Caller, clock: Clock, keys: KeyRing) -> DryRun:
    """Say what `create` would do, without a row; what `create` would raise is listed as a problem."""
    return rehearse(session, body, caller=caller, clock=clock, keys=keys, check=_check)


def read(session: Session, request_id: UUID, *, clock: Clock) -> RequestView:
    """Return one request. Raises NotFound."""
    return presentation.views(session, [_request(session, request_id)], clock)[0]


def listing(
    session: Session, filters: RequestFilters, *, clock: Clock, limit: int = 50, after: Key | None = None, newest_first: bool = True
) -> tuple[list[RequestView], Key | None]:
    """Return a page of requests by creation time, and the key to continue after (None on the last page)."""
    rows = repository.page(session, filters, limit + 1, after, newest_first=newest_first)
    key = (rows[limit - 1].created_at, rows[limit - 1].id) if len(rows) > limit else None
    return presentation.views(session, rows[:limit], clock), key


def targets(session: Session, request_id: UUID) -> list[TargetView]:
    """Return the targets of a request with their jobs, newest job first. Raises NotFound."""
    _request(session, request_id)
    lines = repository.target_lines(session, [request_id])[request_id]
    jobs = repository.target_jobs(session, [line.target.id for line in lines])
    return [presentation.target_view(line, jobs[line.target.id]) for line in lines]


def target(session: Session, request_id: UUID, target_id: UUID) -> TargetView:
    """Return one target. Raises NotFound."""
    found = [one for one in targets(session, request_id) if one.id == target_id]
    if not found:
        raise NotFound
    return found[0]


def cancel(session: Session, request_id: UUID, form: Cancellation, *, caller: Caller, clock: Clock) -> RequestView:
    """Take a request back; its running job is asked to stop and shared targets are queued again.

    Raises: NotFound; IllegalTransition; TooLateToCancel once a target is being published or is published.
    """
    held = _request(session, request_id, lock=True)
    state = following(REQUEST, held.state, "cancel", thing="request")
    _withdraw(session, held)
    timing.settle(session, held, caller=caller, clock=clock)
    error = {"code": "cancelled", "detail": f"Cancelled by the {form.by}.", "retryable": False}
    repository.set_request(session, request_id, state=state, resume_state=None, closed_at=clock.now(), error=error, scope_hmac=held.scope_hmac)
    candidates.schedule(session, held, clock.now(), clock=clock)
    facts = {"by": form.by, "principal": caller.principal, "from": held.state, "reason_given": form.reason is not None}
    audit.record(session, tenant_id=held.tenant_id, object_id=request_id, type="request.cancelled", body=facts)
    log.info("request.cancelled", request_id=str(request_id))
    return read(session, request_id, clock=clock)


def decide(session: Session, request_id: UUID, form: Decision, *, expected_version: int, caller: Caller, clock: Clock) -> RequestView:
    """Approve or deny a request that waits for review.

    Raises: NotFound; PreconditionFailed when `expected_version` is stale; IllegalTransition; FourEyesRequired; InvalidInput for a refusal
    without ground or exemption; TooLateToCancel.
    """
    held = _request(session, request_id, lock=True)
    if held.version != expected_version:
        raise PreconditionFailed
    state = following(REQUEST, held.state, form.outcome, thing="request")
    policy = repository.policies(session, [held.policy_id])[held.policy_id]
    if policy.flags.get("four_eyes") and held.created_by == caller.principal:
        raise FourEyesRequired
    values: dict[str, Any] = {"state": state, "decided_at": clock.now(), "decided_by": caller.principal, "decision_note": form.note}
    if form.outcome == "deny":
        if not (form.ground or form.exemption):
            raise InvalidInput(detail="a refusal names its ground or exemption.")
        _check_refusal(held, form)
        _withdraw(session, held)
        timing.settle(session, held, caller=caller, clock=clock)
        detail = f"Denied: {form.exemption or form.ground}."
        values |= {"closed_at": clock.now(), "exemption": form.exemption, "resume_state": None}
        values |= {"complaint_told": form.complaint_told, "court_told": form.court_told}
        values |= {"error": {"code": "denied", "detail": detail, "retryable": False}}
    else:
        timing.refuse_while_paused(session, held)
        values |= {"attention": None} | ({"ground": form.ground} if form.ground else {})
        outbox.ring(session, tenant_id=held.tenant_id, topic="request.advance", ref=request_id)
    repository.set_request(session, request_id, **values)
    if form.outcome == "deny":
        candidates.schedule(session, held, values["closed_at"], clock=clock)
    facts = {"by": caller.principal, "ground": form.ground, "exemption": form.exemption, "from": held.state}
    if form.outcome == "deny":
        facts |= {"reason_given": form.note is not None, "complaint_told": form.complaint_told, "court_told": form.court_told}
    audit.record(session, tenant_id=held.tenant_id, object_id=request_id, type=f"request.{state}", body=facts)
    log.info("request.decided", request_id=str(request_id), state=state)
    return read(session, request_id, clock=clock)


def advance(session: Session, request_id: UUID, clock: Clock) -> str:
    """Move a request on as far as it goes (start, finish, stuck) and return its state; safe to call at any time, any number of times.

    The transaction has entered the request's tenant. When every target is final and no report is stored, the outbox asks for one; whoever stores
    it calls this again. Raises NotFound.
    """
    return progress.advance(session, request_id, clock)


def due_soon(session: Session, before: datetime) -> list[UUID]:
    """Return the open requests due before a moment, earliest first."""
    return repository.due_before(session, before)


def _check(body: NewRequest, clock: Clock) -> None:
    """Refuse what needs no database to be seen."""
    if body.received_at is not None and body.received_at > clock.now() + AHEAD:
        raise InvalidInput(detail="received_at lies in the future.")
    if body.identity.mode != "asserted_by_controller":
        raise InvalidInput(detail=f"identity mode {body.identity.mode} is not offered by this deployment; use asserted_by_controller.")
    if len(body.metadata) > 16 or sum(len(name) + len(value) for name, value in body.metadata.items()) > 1024:
        raise InvalidInput(detail="metadata holds at most 16 pairs and 1024 characters.")
    if any(_PERSONAL.search(value) for value in body.metadata.values()):
        raise InvalidInput(detail="a metadata value looks like an e-mail address or a phone number; metadata must not name persons.")


def _check_refusal(held: DeletionRequest, form: Decision) -> None:
    """Raise InvalidInput for a refusal under the GDPR without reason, complaint and court notice (Art. 12(4))."""
    if held.regulation != "gdpr":
        return
    said = {"/note": bool(form.note), "/complaint_told": form.complaint_told, "/court_told": form.court_told}
    missing = [pointer for pointer, told in said.items() if not told]
    if missing:
        told = "a refusal under the GDPR gives the reason, and says that the person was told of the supervisory authority and of the courts."
        raise InvalidInput(detail=told, pointers=missing)


def _request(session: Session, request_id: UUID, *, lock: bool = False) -> DeletionRequest:
    found = repository.request(session, request_id, lock=lock)
    if found is None:
        raise NotFound
    return found


def _withdraw(session: Session, held: DeletionRequest) -> None:
    """Take every target back. Locks the jobs, then the targets. Raises TooLateToCancel."""
    jobs = repository.jobs_of_request(session, held.id)
    rows = repository.targets(session, held.id, lock=True)
    if any(job.state == "publishing" for job in jobs) or any(
        row.state == "published" and row.outcome in {"unlearned", "not_learned"} for row in rows
    ):
        raise TooLateToCancel
    for row in rows:
        if "cancel" in TARGET[row.state]:
            repository.set_targets(session, [row.id], state=following(TARGET, row.state, "cancel", thing="target"))
    for job in jobs:
        if job.lease_owner is not None:
            repository.ask_to_stop(session, job.id)
            continue
        left = repository.leave_job(session, job.id, [row.id for row in rows])
        if left == 0 and "cancel" in JOB[job.state]:
            repository.cancel_job(session, job.id)


def _log_received(intake: Intake, request_id: UUID) -> None:
    log.info("request.received", request_id=str(request_id), kind=intake.located.kind, records=len(intake.located.hits))
