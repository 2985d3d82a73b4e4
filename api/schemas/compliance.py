"""Bodies of legal holds, recipients, compliance metrics and the record of processing."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from api.schemas.base import In, Moment, MomentIn, NameOrId, Note, Out, Word
from api.schemas.ids import Digest, HoldId, NotificationId, RequestId, parse, reference, wire
from api.schemas.requests import EMAIL, PHONE, IdentifierIn, Status
from services.requests import forms
from services.requests.holds import HoldView, NewHold


def _organisation(text: str) -> str:
    if EMAIL.search(text) or PHONE.fullmatch(text.strip()):
        raise ValueError("Name an organisation, not contact details of a person.")
    return text


class HoldIn(In):
    """A legal hold over exactly one person, model, data set or request; the identifier of a person is hashed and never echoed."""

    scope: Literal["subject", "model", "request", "dataset"]
    identifier: IdentifierIn | None = None
    model: NameOrId | None = None
    dataset: NameOrId | None = None
    request: Annotated[str, Field(pattern=r"^dr_[0-9a-f]{32}$")] | None = None
    reason: Note

    @model_validator(mode="after")
    def one_thing(self) -> Self:
        """Refuse anything but the one thing that the scope names."""
        given = {"subject": self.identifier, "model": self.model, "dataset": self.dataset, "request": self.request}
        if [name for name, value in given.items() if value is not None] != [self.scope]:
            raise ValueError("Exactly the member that the scope names must be given: identifier, model, dataset or request.")
        return self

    def form(self) -> NewHold:
        """Return the ledger's form."""
        over = None
        if self.model is not None:
            over = reference("mdl", self.model)
        elif self.dataset is not None:
            over = reference("ds", self.dataset)
        elif self.request is not None:
            over = parse("dr", self.request)
        return NewHold(self.scope, self.reason, over, self.identifier.form() if self.identifier is not None else None)


class HoldReleaseIn(In):
    """Why the duty to keep has ended."""

    reason: Note


class HeldRequestOut(Out):
    """An open request that the hold covers; one that is not `on_hold` was too far, or is covered only since it was released."""

    id: RequestId
    status: Status


PREFIX = {"model": "mdl", "dataset": "ds", "request": "dr"}


class HoldOut(Out):
    """A legal hold."""

    id: HoldId
    scope: str
    over: str | None = Field(description="Id of the model, data set or request; null for a person.")
    records: int | None = Field(description="Of a person: how many records are kept.")
    reason: str
    status: Literal["standing", "released"]
    placed_by: str
    placed_at: Moment
    released_at: Moment | None
    released_by: str | None
    release_reason: str | None
    requests: list[HeldRequestOut]

    @classmethod
    def of(cls, view: HoldView) -> Self:
        """Return the body of a view."""
        facts = {name: getattr(view, name) for name in cls.model_fields if hasattr(view, name)}
        over = None if view.over is None else wire(PREFIX[view.scope], view.over)
        requests = [HeldRequestOut.model_validate({"id": number, "status": state}) for number, state in view.requests]
        status = "standing" if view.released_at is None else "released"
        return cls.model_validate({**facts, "over": over, "requests": requests, "status": status})


class RecipientIn(In):
    """A recipient of a version that the request superseded, and how and when they were told."""

    model: NameOrId
    version: Annotated[int, Field(ge=1)]
    recipient: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_organisation)]
    channel: Word
    sent_at: MomentIn
    outcome: Literal["sent", "confirmed", "failed", "not_possible"] = "sent"

    def form(self) -> forms.NewNotification:
        """Return the ledger's form."""
        return forms.NewNotification(reference("mdl", self.model), self.version, self.recipient, self.channel, self.sent_at, self.outcome)


class RecipientOut(Out):
    """A recipient that was told."""

    id: NotificationId
    model: str
    version: int
    recipient: str
    channel: str
    sent_at: Moment
    outcome: str
    recorded_by: str


class HandedOutOut(Out):
    """A caller to whom this service gave files of a superseded version."""

    model: str
    version: int
    by: str
    times: int
    last_at: Moment


class RecipientList(Out):
    """Who was told, and who is known to have had a superseded version."""

    items: list[RecipientOut]
    handed_out: list[HandedOutOut]


class MetricsOut(Out):
    """Requests received in a period, and how they ended (11 CCR 7102). Days are from receipt to the end, null where none has ended."""

    from_: Moment = Field(serialization_alias="from", validation_alias="since")
    to: Moment = Field(validation_alias="until")
    regulation: str | None
    received: int
    complied: int
    complied_in_part: int
    denied: int
    otherwise_closed: int
    open: int
    overdue: int
    median_days: str | None
    mean_days: str | None


class RecordVersionOut(Out):
    """A version that a request touched: `published`, or what became of one that had learned."""

    model: str
    version: int
    disposition: str
    certificate: Digest | None


class RecordDatasetOut(Out):
    """A superseded dataset version that held the records of a request: `retired`, or `purged` by its certificate."""

    dataset: str
    version: int
    disposition: str
    certificate: Digest | None


class RecordOut(Out):
    """One request in the record of processing; no identifier of a person."""

    request: RequestId
    regulation: str
    manner: str | None
    scope: str
    records: int
    received_at: Moment
    acknowledged_at: Moment | None
    ack_due_at: Moment | None
    original_due_at: Moment
    due_at: Moment
    extended_at: Moment | None
    paused_s: int
    status: str
    ground: str | None
    exemption: str | None
    decided_at: Moment | None
    decided_by: str | None
    reason_given: bool
    complaint_told: bool | None
    court_told: bool | None
    closed_at: Moment | None
    on_time: bool | None
    versions: list[RecordVersionOut]
    datasets: list[RecordDatasetOut]
    recipients_told: int
    audit_report: Digest | None
    audit_report_revision: int | None


class ProcessingRecord(Out):
    """Every request received in a period, oldest first."""

    from_: Moment = Field(serialization_alias="from", validation_alias="since")
    to: Moment = Field(validation_alias="until")
    regulation: str | None
    made_at: Moment
    items: list[RecordOut]


def plain(body: Any) -> Any:
    """Return a body as it is sent, by the names of the wire."""
    return body.model_dump(mode="json", by_alias=True)
