"""The legal clock of a request under way: acknowledged, extended once, paused while the person's identity is in question.

The dates come from the pure functions of `clocks.py`; they are stored, and the targets and jobs of the request go by them.
"""

from datetime import datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import structlog
from sqlalchemy.orm import Session

from services.audit import log as audit
from services.clock import Clock, uuid7
from services.db.tables import ClockPause, DeletionRequest
from services.errors import ClockRefused, ExtensionNotAllowed, InvalidInput, NotFound
from services.requests import clocks, repository
from services.tenants.caller import Caller

log = structlog.get_logger()

IN_QUESTION = frozenset({"received", "identity_pending", "pending_review"})
"""States in which nobody has decided yet, so that the identity can be in question."""


def extend(session: Session, request_id: UUID, reason: str, *, caller: Caller, clock: Clock) -> None:
    """Extend the time for the answer, once and before it was first due: by two months (`gdpr`), else to 90 days in all.

    What pauses have added, and what an earlier duplicate took away, stays added and taken away.
    Raises: NotFound; ExtensionNotAllowed.
    """
    held, now = _open(session, request_id, ExtensionNotAllowed), clock.now()
    if held.extended_at is not None:
        raise ExtensionNotAllowed(detail="it was extended once already")
    pauses = repository.pauses(session, [request_id])[request_id]
    taken = [(pause.from_at, pause.to_at or now) for pause in pauses]
    if now >= clocks.paused(held.original_due_at, taken):
        raise ExtensionNotAllowed(detail="its original due date has passed")
    tenant = repository.tenant(session, held.tenant_id)
    whole = clocks.extended(held.regulation, held.received_at, zone=ZoneInfo(tenant.time_zone), free=clocks.free_days(tenant.holiday_calendar))
    due_at = held.due_at + max(whole - held.original_due_at, timedelta())
    repository.set_request(session, request_id, extended_at=now, extended_by=caller.principal, extension_reason=reason)
    before = held.due_at
    _move(session, held, due_at)
    _record(session, held, "clock.extended", caller, **{"from": before.isoformat(), "to": due_at.isoformat()})


def pause(session: Session, request_id: UUID, reason: str, *, caller: Caller, clock: Clock) -> UUID:
    """Stop the clock while an identity query is open, and return the pause's id (GDPR Art. 12(6); no other regulation knows it).

    Raises: NotFound; ClockRefused after the decision, while it stands still already, and under another regulation.
    """
    held = _open(session, request_id, ClockRefused)
    if held.regulation != "gdpr":
        raise ClockRefused(detail=f"under {held.regulation} it is never paused")
    if held.state not in IN_QUESTION:
        raise ClockRefused(detail="the identity was settled when the request was decided")
    if any(one.to_at is None for one in repository.pauses(session, [request_id])[request_id]):
        raise ClockRefused(detail="it is paused already")
    pause_id = uuid7(clock)
    values = {"id": pause_id, "tenant_id": held.tenant_id, "request_id": request_id, "from_at": clock.now(), "reason": reason}
    repository.add(session, ClockPause, **values, opened_by=caller.principal)
    repository.set_request(session, request_id)
    _record(session, held, "clock.paused", caller, pause=pause_id.hex)
    return pause_id


def resume(session: Session, request_id: UUID, pause_id: UUID, *, caller: Caller, clock: Clock) -> None:
    """End a pause: the identity query is answered. What it took is added to the due date. Raises NotFound, ClockRefused for one that has ended."""
    held = _open(session, request_id, ClockRefused)
    found = [one for one in repository.pauses(session, [request_id])[request_id] if one.id == pause_id]
    if not found:
        raise NotFound
    if found[0].to_at is not None:
        raise ClockRefused(detail="this pause has ended")
    _end(session, held, found[0], caller, clock)


def settle(session: Session, held: DeletionRequest, *, caller: Caller, clock: Clock) -> None:
    """End an open pause because the request ends; its row is locked."""
    for one in repository.pauses(session, [held.id])[held.id]:
        if one.to_at is None:
            _end(session, held, one, caller, clock)


def refuse_while_paused(session: Session, held: DeletionRequest) -> None:
    """Raise ClockRefused while an identity query is open: nobody can approve for a person who is in question."""
    if any(one.to_at is None for one in repository.pauses(session, [held.id])[held.id]):
        raise ClockRefused(detail="its identity query is open; end the pause first")


def acknowledge(session: Session, request_id: UUID, at: datetime | None, *, caller: Caller, clock: Clock) -> None:
    """Record that the person was told of the receipt (11 CCR 7021(a)), now or at a moment past.

    Raises: NotFound; ClockRefused where that is recorded; InvalidInput for a moment before the receipt or ahead of now.
    """
    held, now = _open(session, request_id, ClockRefused), clock.now()
    if held.acknowledged_at is not None:
        raise ClockRefused(detail="it was acknowledged already")
    moment = at or now
    if not held.received_at <= moment <= now:
        raise InvalidInput(detail="at lies before the receipt or in the future.", pointer="/at")
    repository.set_request(session, request_id, acknowledged_at=moment)
    _record(session, held, "clock.acknowledged", caller, at=moment.isoformat())


def _open(session: Session, request_id: UUID, refused: type[ClockRefused | ExtensionNotAllowed]) -> DeletionRequest:
    held = repository.request(session, request_id, lock=True)
    if held is None:
        raise NotFound
    if held.closed_at is not None:
        raise refused(detail="the request is closed")
    return held


def _end(session: Session, held: DeletionRequest, one: ClockPause, caller: Caller, clock: Clock) -> None:
    until = max(clock.now(), one.from_at + timedelta(microseconds=1))
    repository.end_pause(session, one.id, until, by=caller.principal)
    due_at = clocks.paused(held.due_at, [(one.from_at, until)])
    repository.set_request(session, held.id)
    _move(session, held, due_at)
    _record(session, held, "clock.resumed", caller, pause=one.id.hex, to=due_at.isoformat())


def _move(session: Session, held: DeletionRequest, due_at: datetime) -> None:
    """Give the request, its targets and the jobs that serve them another due date; a job goes by the earliest of its targets."""
    repository.set_due(session, held.id, due_at)
    session.refresh(held)


def _record(session: Session, held: DeletionRequest, event: str, caller: Caller, **facts: str) -> None:
    audit.record(session, tenant_id=held.tenant_id, object_id=held.id, type=event, body={"by": caller.principal, **facts})
    log.info("request.clock", request_id=str(held.id), event_name=event)
