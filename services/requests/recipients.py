"""Recipients of versions that a request superseded: each is told, and how and when is recorded (GDPR Art. 19)."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy.orm import Session

from services.audit import log as audit
from services.audit import repository as reports
from services.clock import Clock, uuid7
from services.db import outbox
from services.db import recipients as rows
from services.errors import InvalidInput, NotFound
from services.model_versions import repository as models
from services.requests import repository
from services.requests.forms import NewNotification
from services.tenants.caller import Caller


@dataclass(frozen=True, slots=True)
class NotificationView:
    """A recipient that was told."""

    id: UUID
    model: str
    version: int
    recipient: str
    channel: str
    sent_at: datetime
    outcome: str
    recorded_by: str


@dataclass(frozen=True, slots=True)
class HandedOut:
    """A caller to whom this service gave files of a version that the request superseded."""

    model: str
    version: int
    by: str
    times: int
    last_at: datetime


def tell(session: Session, request_id: UUID, form: NewNotification, *, caller: Caller, clock: Clock) -> NotificationView:
    """Record that a recipient was told; a report that is stored gets a new revision.

    Raises: NotFound; InvalidInput for a version that the request does not supersede, or a moment in the future.
    """
    held = repository.request(session, request_id, lock=True)
    if held is None:
        raise NotFound
    if form.sent_at > clock.now():
        raise InvalidInput(detail="sent_at lies in the future.", pointer="/sent_at")
    model = models.find(session, form.model)
    known = {(row.model, row.number): row.id for row in rows.superseded(session, request_id)}
    version_id = known.get((model.name, form.version)) if model is not None else None
    if version_id is None:
        raise InvalidInput(detail="the request does not supersede this version.", pointer="/version")
    notification_id = uuid7(clock)
    values = {"id": notification_id, "tenant_id": held.tenant_id, "request_id": request_id, "version_id": version_id, "recipient": form.recipient}
    values |= {"channel": form.channel, "sent_at": form.sent_at, "outcome": form.outcome, "recorded_by": caller.principal}
    rows.insert_notification(session, **values)
    facts = {
        "version": str(version_id),
        "channel": form.channel,
        "outcome": form.outcome,
        "sent_at": form.sent_at.isoformat(),
        "by": caller.principal,
    }
    audit.record(session, tenant_id=held.tenant_id, object_id=request_id, type="recipient.told", body=facts)
    if reports.newest_revision(session, request_id) is not None:
        outbox.ring(session, tenant_id=held.tenant_id, topic="report.build", ref=request_id)
    return next(one for one in told(session, request_id) if one.id == notification_id)


def told(session: Session, request_id: UUID) -> list[NotificationView]:
    """Return the recipients that were told, in the order of telling. Raises NotFound."""
    if repository.request(session, request_id) is None:
        raise NotFound
    return [
        NotificationView(row.id, model, number, row.recipient, row.channel, row.sent_at, row.outcome, row.recorded_by)
        for row, model, number in rows.notifications(session, request_id)
    ]


def handed_out(session: Session, request_id: UUID) -> list[HandedOut]:
    """Return to whom this service gave superseded versions: those are to be told, and whoever they passed them on to."""
    known = {row.id: row for row in rows.superseded(session, request_id)}
    found = rows.handed_out(session, list(known))
    return [HandedOut(known[row.version_id].model, known[row.version_id].number, row.by, row.times, row.last_at) for row in found]
