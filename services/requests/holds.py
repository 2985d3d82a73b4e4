"""Legal holds: a duty to keep, placed over a person, a model, a data set or a request, until it is released.

Open requests that a hold covers wait; a job that works for one is stopped at its next check, and what it did for others is queued again. Versions under
a hold are not destroyed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

import structlog
from sqlalchemy.orm import Session

from services.audit import log as audit
from services.clock import Clock, uuid7
from services.datasets import repository as datasets
from services.datasets.identifiers import Identifier, record_digest, subject_digest
from services.db import destruction, outbox
from services.db import holds as rows
from services.db.tables import DeletionRequest, Job, LegalHold
from services.errors import Conflict, InvalidInput, NotFound, PreconditionFailed, UnknownDataset, UnknownModel
from services.model_versions import repository as models
from services.requests import repository
from services.requests.states import JOB, REQUEST, TARGET, following
from services.tenants.caller import Caller
from services.tenants.keys import KeyRing, tenant_key

log = structlog.get_logger()

Scope = Literal["subject", "model", "request", "dataset"]
STANDING, RELEASED = 1, 2
"""The two versions of a hold."""
FROM_THE_START = frozenset({"in_progress", "awaiting_release"})
"""States whose jobs are stopped, so that the request goes on from its queue."""


@dataclass(frozen=True, slots=True)
class NewHold:
    """A hold as it is asked for: `over` is the name or id of a model or data set, or a request's id; `identifier` names a person."""

    scope: Scope
    reason: str
    over: str | UUID | None = None
    identifier: Identifier | None = None


@dataclass(frozen=True, slots=True)
class HoldView:
    """A hold. `over` is an id, None for a person, of whom only the number of `records` is told; `requests` are the open ones that it covers."""

    id: UUID
    scope: Scope
    over: UUID | None
    records: int | None
    reason: str
    placed_by: str
    placed_at: datetime
    released_at: datetime | None
    released_by: str | None
    release_reason: str | None
    requests: tuple[tuple[UUID, str], ...]

    @property
    def version(self) -> int:
        """1 while it stands, 2 once it is released."""
        return STANDING if self.released_at is None else RELEASED


def place(session: Session, form: NewHold, *, caller: Caller, clock: Clock, keys: KeyRing) -> HoldView:
    """Place a hold and put every open request that it covers on hold; one whose new version is published already goes on.

    Raises: UnknownModel, UnknownDataset, NotFound for what it is over; InvalidInput for a person without an identifier.
    """
    hold_id = uuid7(clock)
    reference, records = _reference(session, form, caller, keys)
    values = {"id": hold_id, "tenant_id": caller.tenant_id, "scope": form.scope, "scope_ref": reference, "reason": form.reason}
    rows.insert_hold(session, {**values, "placed_by": caller.principal}, records)
    facts = {"scope": form.scope, "by": caller.principal, "records": len(records)}
    audit.record(session, tenant_id=caller.tenant_id, object_id=hold_id, type="hold.placed", body=facts)
    for request_id in rows.covered(session, hold_id):
        _hold_back(session, request_id, hold_id)
    log.info("hold.placed", hold_id=str(hold_id), kind=form.scope)
    return read(session, hold_id)


def release(session: Session, hold_id: UUID, reason: str, *, expected_version: int, caller: Caller) -> HoldView:
    """Release a hold: requests that no other hold covers go on, and purges that waited are due at once.

    Raises: NotFound; PreconditionFailed; Conflict for one that is released.
    """
    held = _hold(session, hold_id, lock=True)
    if held.released_at is not None:
        raise Conflict(detail="the hold is released already.")
    if expected_version != STANDING:
        raise PreconditionFailed
    rows.release(session, hold_id, by=caller.principal, reason=reason)
    audit.record(session, tenant_id=held.tenant_id, object_id=hold_id, type="hold.released", body={"scope": held.scope, "by": caller.principal})
    for request_id in rows.covered(session, hold_id):
        if not rows.over_requests(session, [request_id]):
            _let_go(session, request_id, hold_id)
    destruction.wake(session)
    log.info("hold.released", hold_id=str(hold_id), kind=held.scope)
    return read(session, hold_id)


def read(session: Session, hold_id: UUID) -> HoldView:
    """Return a hold. Raises NotFound."""
    return _view(session, _hold(session, hold_id))


def listing(
    session: Session, *, standing: bool | None, limit: int, after: tuple[datetime, UUID] | None
) -> tuple[list[HoldView], tuple[datetime, UUID] | None]:
    """Return a page of holds, newest first, and the key to continue after; `standing` keeps those that are, or are not, in force."""
    found = rows.page(session, standing=standing, limit=limit + 1, after=after)
    key = (found[limit - 1].created_at, found[limit - 1].id) if len(found) > limit else None
    return [_view(session, row) for row in found[:limit]], key


def attention(holds: Sequence[UUID], before: object) -> dict[str, object]:
    """Return what a request on hold shows: the holds, and what it showed before, to be shown again."""
    return {"code": "legal-hold", "holds": [f"hold_{one.hex}" for one in holds], "before": before}


def _reference(session: Session, form: NewHold, caller: Caller, keys: KeyRing) -> tuple[bytes, list[tuple[UUID, bytes]]]:
    """Return what a hold is over, and for a person the keyed digests of their records."""
    if form.scope == "subject":
        if form.identifier is None:
            raise InvalidInput(detail="a hold over a person needs their identifier.", pointer="/identifier")
        key = tenant_key(session, caller.tenant_id, keys.kek)
        digest = subject_digest(key, form.identifier)
        return digest, [(dataset, record_digest(key, dataset, record)) for dataset, record in rows.records_of_person(session, digest)]
    if form.over is None:
        raise InvalidInput(detail=f"a hold over a {form.scope} needs its name or id.", pointer=f"/{form.scope}")
    if form.scope == "model":
        model = models.find(session, form.over)
        if model is None:
            raise UnknownModel(model=str(form.over))
        return model.id.bytes, []
    if form.scope == "dataset":
        dataset = datasets.find(session, form.over)
        if dataset is None:
            raise UnknownDataset(dataset=str(form.over))
        return dataset.id.bytes, []
    request = repository.request(session, form.over) if isinstance(form.over, UUID) else None
    if request is None:
        raise NotFound
    return request.id.bytes, []


def _hold_back(session: Session, request_id: UUID, hold_id: UUID) -> None:
    """Put a request on hold. Locks the request, then its jobs, then its targets; publish checks the holds itself under the lock of its job."""
    held = repository.request(session, request_id, lock=True)
    if held is None or held.closed_at is not None or held.state == "on_hold":
        return
    jobs = repository.jobs_of_request(session, request_id)
    targets = repository.targets(session, request_id, lock=True)
    if any(target.state == "published" for target in targets):
        return
    for job in jobs:
        _stop(session, job)
    state = following(REQUEST, held.state, "hold_placed", thing="request")
    resume = "in_progress" if held.state in FROM_THE_START else held.state
    repository.set_request(session, request_id, state=state, resume_state=resume, attention=attention([hold_id], held.attention))
    _record(session, held, "request.on_hold", hold_id)


def _stop(session: Session, job: Job) -> None:
    """Stop a job for a hold: a running one at its next check, another at once; every target goes back to its queue."""
    if job.lease_owner is not None:
        repository.ask_to_stop(session, job.id, attention="legal_hold")
        return
    if "cancel" not in JOB[job.state]:
        return
    targets = repository.active_targets_of_job(session, job.id)
    repository.cancel_job(session, job.id)
    repository.leave_job(session, job.id, [target.id for target in targets])
    for target in targets:
        if "requeue" in TARGET[target.state]:
            repository.set_targets(session, [target.id], state=following(TARGET, target.state, "requeue", thing="target"))
        outbox.ring(session, tenant_id=job.tenant_id, topic="request.advance", ref=target.request_id)


def _let_go(session: Session, request_id: UUID, hold_id: UUID) -> None:
    held = repository.request(session, request_id, lock=True)
    if held is None or held.state != "on_hold":
        return
    state = following(REQUEST, held.state, "hold_released", thing="request", resume=held.resume_state)
    before = (held.attention or {}).get("before")
    repository.set_request(session, request_id, state=state, resume_state=None, attention=before)
    _record(session, held, f"request.{state}", hold_id)
    outbox.ring(session, tenant_id=held.tenant_id, topic="request.advance", ref=request_id)


def _record(session: Session, held: DeletionRequest, event: str, hold_id: UUID) -> None:
    body = {"from": held.state, "hold": hold_id.hex}
    audit.record(session, tenant_id=held.tenant_id, object_id=held.id, type=event, body=body)
    log.info("request.moved", request_id=str(held.id), event_name=event)


def _hold(session: Session, hold_id: UUID, *, lock: bool = False) -> LegalHold:
    found = rows.hold(session, hold_id, lock=lock)
    if found is None:
        raise NotFound
    return found


def _view(session: Session, row: LegalHold) -> HoldView:
    covered = [repository.request(session, request_id) for request_id in rows.covered(session, row.id)]
    personal = row.scope == "subject"
    return HoldView(
        id=row.id,
        scope=row.scope,  # pyright: ignore[reportArgumentType]  the CHECK of the column holds it to the scopes
        over=None if personal else UUID(bytes=row.scope_ref),
        records=rows.records_held(session, row.id) if personal else None,
        reason=row.reason,
        placed_by=row.placed_by,
        placed_at=row.created_at,
        released_at=row.released_at,
        released_by=row.released_by,
        release_reason=row.release_reason,
        requests=tuple((one.id, one.state) for one in covered if one is not None),
    )
