"""Bodies of deletion requests."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from api.schemas.base import In, Moment, MomentIn, NameOrId, Note, Out, Sha256, Word
from api.schemas.ids import DatasetId, Digest, EventId, JobId, PauseId, RequestId, TargetId, reference
from services.datasets.identifiers import Identifier
from services.requests import forms, views

MAX_IDS = 10_000
MAX_METADATA_BYTES = 1024
EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
PHONE = re.compile(r"\+?[\d\s().\-/]{7,24}", re.ASCII)
Status = Literal[
    "received", "identity_pending", "pending_review", "approved", "on_hold", "in_progress", "awaiting_release", "needs_attention",
    "completed", "partially_completed", "denied", "duplicate", "cancelled", "expired",
]  # fmt: skip
Regulation = Literal["gdpr", "ccpa", "policy"]


def _metadata(pairs: dict[str, str]) -> dict[str, str]:
    """Refuse metadata that is too large or looks like contact details."""
    if sum(len(name.encode()) + len(value.encode()) for name, value in pairs.items()) > MAX_METADATA_BYTES:
        raise ValueError("Names and values together must not exceed 1024 bytes.")
    for text in (*pairs, *pairs.values()):
        digits = sum(letter.isdigit() for letter in text)
        if EMAIL.search(text) or (PHONE.fullmatch(text.strip()) and 7 <= digits <= 15 and "-" not in text.strip()[:1]):
            raise ValueError("Metadata must not hold contact details of a person.")
    return pairs


Metadata = Annotated[dict[Annotated[str, Field(min_length=1, max_length=64)], str], Field(max_length=16), AfterValidator(_metadata)]
Label = Annotated[str, Field(min_length=1, max_length=256)] | int


class IdentifierIn(In):
    """One identifier of a person. It is hashed before anything is stored and never echoed."""

    type: Word
    value: Annotated[str, Field(min_length=1, max_length=512, repr=False)]

    def form(self) -> Identifier:
        """Return the ledger's form."""
        return Identifier(self.type, self.value)


class SubjectScopeIn(In):
    """All records of one person."""

    kind: Literal["subject"]
    identifiers: Annotated[list[IdentifierIn], Field(min_length=1, max_length=20)]

    def form(self) -> forms.Scope:
        """Return the ledger's form."""
        return forms.SubjectScope(tuple(one.form() for one in self.identifiers))


class RecordsScopeIn(In):
    """Records by id."""

    kind: Literal["records"]
    dataset: NameOrId
    ids: Annotated[list[Annotated[str, Field(min_length=1, max_length=512)]], Field(min_length=1, max_length=MAX_IDS)]

    def form(self) -> forms.Scope:
        """Return the ledger's form; repeated ids count once."""
        return forms.RecordsScope(reference("ds", self.dataset), tuple(dict.fromkeys(self.ids)))


class SomewhereIn(In):
    """What is to be looked for in a dataset, or in the data of a model."""

    dataset: NameOrId | None = None
    model: NameOrId | None = None

    @model_validator(mode="after")
    def one_place(self) -> Self:
        """Refuse both places, and none."""
        if (self.dataset is None) == (self.model is None):
            raise ValueError("Exactly one of dataset and model must be given.")
        return self


class ClassScopeIn(SomewhereIn):
    """Every record of some labels, in a dataset or in the data of a model."""

    kind: Literal["class_labels"]
    labels: Annotated[list[Label], Field(min_length=1, max_length=1000)]

    def form(self) -> forms.Scope:
        """Return the ledger's form; labels are text, repeated ones count once."""
        labels = tuple(dict.fromkeys(str(label) for label in self.labels))
        dataset = None if self.dataset is None else reference("ds", self.dataset)
        return forms.ClassScope(labels=labels, dataset=dataset, model=None if self.model is None else reference("mdl", self.model))


class TargetRangeScopeIn(In):
    """Every record of a dataset whose real-valued target lies below a bound, above one, or between the two; the bounds themselves are outside."""

    kind: Literal["target_range"]
    dataset: NameOrId
    below: Annotated[float, Field(allow_inf_nan=False)] | None = None
    above: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def a_range(self) -> Self:
        """Refuse no bound at all, and bounds with nothing between them."""
        if self.below is None and self.above is None:
            raise ValueError("At least one of below and above must be given.")
        if self.below is not None and self.above is not None and self.above >= self.below:
            raise ValueError("above must be less than below.")
        return self

    def form(self) -> forms.Scope:
        """Return the ledger's form."""
        return forms.TargetRangeScope(reference("ds", self.dataset), above=self.above, below=self.below)


class EntityScopeIn(SomewhereIn):
    """Every record that speaks of a named thing, in a dataset or in the data of a model; the subject index says which these are (type `entity`).

    The names are hashed to find the records, kept encrypted while the request is open, and never echoed.
    """

    kind: Literal["entity"]
    names: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(min_length=1, max_length=100, repr=False)]

    def form(self) -> forms.Scope:
        """Return the ledger's form; repeated names count once."""
        dataset = None if self.dataset is None else reference("ds", self.dataset)
        names = tuple(dict.fromkeys(self.names))
        return forms.EntityScope(names=names, dataset=dataset, model=None if self.model is None else reference("mdl", self.model))


class ManifestScopeIn(In):
    """A larger set of records, in an uploaded file."""

    kind: Literal["manifest"]
    upload_id: Annotated[str, Field(min_length=1, max_length=64)]
    sha256: Sha256

    def form(self) -> forms.Scope:
        """Return the ledger's form."""
        return forms.OtherScope(self.kind)


ScopeIn = Annotated[
    SubjectScopeIn | RecordsScopeIn | ClassScopeIn | TargetRangeScopeIn | EntityScopeIn | ManifestScopeIn, Field(discriminator="kind")
]


class IdentityIn(In):
    """Who vouches for the person's identity."""

    mode: Literal["asserted_by_controller", "one_time_code", "external"] = "asserted_by_controller"
    evidence_ref: Annotated[str, Field(min_length=1, max_length=128)] | None = None


class RequestIn(In):
    """A deletion request."""

    external_id: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,128}$")] | None = None
    regulation: Regulation = "gdpr"
    received_at: MomentIn | None = None
    manner: Word | None = None
    ground: Word | None = None
    scope: ScopeIn
    identity: IdentityIn = Field(default_factory=IdentityIn)
    models: Annotated[list[NameOrId], Field(min_length=1, max_length=1000)] | None = None
    note: Note | None = None
    policy: NameOrId = "gdpr-default"
    method: Word = "auto"
    parameters: dict[str, Any] = Field(default_factory=dict)
    metadata: Metadata = Field(default_factory=dict)

    @model_validator(mode="after")
    def reasons(self) -> Self:
        """Refuse narrowing without a reason."""
        if self.models is not None and self.note is None:
            raise ValueError("Narrowing to models needs a note that says why.")
        return self

    def form(self) -> forms.NewRequest:
        """Return the ledger's form."""
        return forms.NewRequest(
            scope=self.scope.form(),
            regulation=self.regulation,
            received_at=self.received_at,
            manner=self.manner,
            ground=self.ground,
            external_id=self.external_id,
            identity=forms.IdentityForm(self.identity.mode, self.identity.evidence_ref),
            models=None if self.models is None else tuple(reference("mdl", name) for name in dict.fromkeys(self.models)),
            note=self.note,
            policy=self.policy,
            method=self.method,
            parameters=self.parameters,
            metadata=self.metadata,
        )


class DecisionIn(In):
    """A person's decision; a refusal names its ground or exemption."""

    outcome: Literal["approve", "deny"]
    ground: Word | None = None
    exemption: Word | None = None
    note: Note | None = None
    complaint_told: bool = Field(default=False, description="The person was told of their right to complain to a supervisory authority.")
    court_told: bool = Field(default=False, description="The person was told of their right to a judicial remedy.")

    @model_validator(mode="after")
    def grounds(self) -> Self:
        """Refuse a refusal without a ground."""
        if self.outcome == "deny" and self.ground is None and self.exemption is None:
            raise ValueError("A refusal needs a ground or an exemption.")
        return self


class ExtensionIn(In):
    """Why the answer takes longer; the person is told the same."""

    reason: Note


class PauseIn(In):
    """What was asked of the person to be sure of their identity."""

    reason: Note


class AcknowledgementIn(In):
    """When the person was told that the request came in; without it, now."""

    at: MomentIn | None = None


class CancellationIn(In):
    """Who takes the request back, and why."""

    by: Literal["subject", "operator"]
    reason: Note | None = None


class DatasetHitOut(Out):
    """A dataset that holds records of the request, with the versions that do."""

    dataset: str
    dataset_id: DatasetId
    versions: list[int]


class ScopeOut(Out):
    """What was located; never an identifier."""

    kind: str
    records: int
    records_commitment: Digest
    datasets: list[DatasetHitOut]
    labels: list[str] = Field(default_factory=list)
    above: float | None = None
    below: float | None = None


class TargetOut(Out):
    """One model that the request touches."""

    id: TargetId
    model: str | None
    base_version: int | None
    status: str = Field(validation_alias="state")
    outcome: str | None
    exemption: str | None
    rung: int
    records: int
    due_at: Moment
    published_version: int | None
    jobs: list[JobId]


class ReceiptOut(Out):
    """The audit event of the receipt. `leaf_seq` is the number of its leaf, there within seconds.

    `jws` is the signed receipt, there within ten: a compact JWS (EdDSA, key by `kid` in `/.well-known/jwks.json`) of request, event, commitment, leaf,
    the head of the log that covers it (origin, size, root in base64), and the time of receipt.
    """

    event: EventId
    commitment: Digest
    leaf_seq: int | None = None
    jws: str | None = None


class PublishedOut(Out):
    """An unlearned version."""

    model: str
    version: int
    digest: Digest | None


class ErasedOut(Out):
    """The dataset version without the records."""

    dataset: str
    version: int


class SupersededOut(Out):
    """A version that had learned from the records, and what becomes of it."""

    model: str
    version: int
    disposition: str
    destroy_by: Moment | None


class ReportRefOut(Out):
    """The newest report."""

    revision: int
    digest: Digest


class ResultOut(Out):
    """What the finished request brought about."""

    versions: list[PublishedOut]
    datasets: list[ErasedOut]
    superseded: list[SupersededOut]
    audit_report: ReportRefOut | None


class PauseOut(Out):
    """A time in which the legal clock stood, or stands, still."""

    id: PauseId
    from_at: Moment
    to_at: Moment | None
    reason: str


class ClockOut(Out):
    """The legal clock: whether it stands still, when it did, and its one extension."""

    paused: bool = Field(validation_alias="clock_paused")
    pauses: list[PauseOut] = Field(default_factory=list)
    extended_at: Moment | None = None
    extension_reason: str | None = None


class RequestLinks(Out):
    """Where to go from here."""

    self: str
    events: str
    targets: str
    jobs: str
    audit_report: str | None
    cancellation: str | None


class RequestOut(Out):
    """A deletion request."""

    id: RequestId
    external_id: str | None
    status: Status
    status_drp: str
    status_opendsr: str
    done: bool
    version: int
    allowed: list[str]
    regulation: str
    manner: str | None
    ground: str | None
    exemption: str | None
    created_at: Moment
    received_at: Moment
    due_at: Moment
    original_due_at: Moment
    ack_due_at: Moment | None
    acknowledged_at: Moment | None
    days_left: int
    clock: ClockOut
    closed_at: Moment | None
    decided_at: Moment | None
    decided_by: str | None
    scope: ScopeOut
    targets: list[TargetOut]
    policy: str
    policy_version: int
    method: str
    parameters: dict[str, Any]
    metadata: dict[str, str]
    duplicate_of: RequestId | None
    attention: dict[str, Any] | None
    error: dict[str, Any] | None
    result: ResultOut | None
    receipt: ReceiptOut | None
    links: RequestLinks

    @classmethod
    def of(cls, view: views.RequestView) -> Self:
        """Return the body of a view."""
        facts = {name: getattr(view, name) for name in cls.model_fields if hasattr(view, name)}
        path = f"/v1/deletion-requests/dr_{view.id.hex}"
        links = RequestLinks(
            self=path,
            events=f"{path}/events",
            targets=f"{path}/targets",
            jobs=f"/v1/jobs?request=dr_{view.id.hex}",
            audit_report=f"{path}/audit-report" if view.audit_report else None,
            cancellation=f"{path}/cancellation" if "cancel" in view.allowed else None,
        )
        return cls.model_validate({**facts, "status": view.state, "clock": ClockOut.model_validate(view), "links": links})


class ProblemOut(Out):
    """One thing that is wrong with the request."""

    code: str
    detail: str
    pointer: str | None


class PlannedModelOut(Out):
    """What the request would do to one model."""

    model: str
    base_version: int | None
    method: str
    reason: str
    guarantee: str | None
    rungs: list[str]
    queue_position: int
    estimate_s: float = Field(description="Seconds of the first rung with its verdict.")
    estimate_basis: str = Field(description="`past runs`, `cost model` (beside the last training here) or `default`.")
    memory_bytes: int | None = Field(
        description="Memory that the job takes on one device, as estimated; null where the version does not say its size."
    )
    gpu_memory_bytes: int | None = Field(description="The same where a live worker has a GPU, else null.")
    would_purge: list[int]


class DryRunOut(Out):
    """What the request would do; nothing was recorded."""

    would_accept: bool
    problems: list[ProblemOut]
    records: int
    datasets: list[DatasetHitOut]
    models: list[PlannedModelOut]
    due_at: Moment | None
    duplicate_of: RequestId | None
    needs_review: bool


class TargetList(Out):
    """The targets of a request."""

    items: list[TargetOut]


class EventOut(Out):
    """One event of a request or job; `event` is `state`, `step`, `progress`, `clock` or `report`."""

    id: int | None
    event: str
    type: str
    at: Moment | None
    data: dict[str, Any]


class EventList(Out):
    """Events in order; ask again with `after` set to the last id."""

    items: list[EventOut]
    next_after: int | None
