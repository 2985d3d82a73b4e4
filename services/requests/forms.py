"""What a caller asks of the request ledger: plain frozen forms, already bounded by the HTTP schemas. Identifiers of persons live only here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from services.datasets.identifiers import Identifier

Key = tuple[datetime, UUID]


@dataclass(frozen=True, slots=True)
class SubjectScope:
    """All records of one person, by identifiers of the kinds that the datasets were indexed with."""

    identifiers: tuple[Identifier, ...] = field(repr=False)
    kind: Literal["subject"] = "subject"


@dataclass(frozen=True, slots=True)
class RecordsScope:
    """Records by id; `dataset` is a name or an id."""

    dataset: str | UUID
    ids: tuple[str, ...] = field(repr=False)
    kind: Literal["records"] = "records"


@dataclass(frozen=True, slots=True)
class ClassScope:
    """Every record of some labels. Exactly one of `dataset` and `model` is set; a model stands for the datasets its current version learned from."""

    labels: tuple[str, ...]
    dataset: str | UUID | None = None
    model: str | UUID | None = None
    kind: Literal["class_labels"] = "class_labels"


@dataclass(frozen=True, slots=True)
class TargetRangeScope:
    """Every record of a dataset whose real-valued target lies above one bound and below the other; at least one of them is set."""

    dataset: str | UUID
    above: float | None = None
    below: float | None = None
    kind: Literal["target_range"] = "target_range"


@dataclass(frozen=True, slots=True)
class EntityScope:
    """Every record that speaks of some named things, as the subject index has it. Exactly one of `dataset` and `model` is set, as for classes."""

    names: tuple[str, ...] = field(repr=False)
    dataset: str | UUID | None = None
    model: str | UUID | None = None
    kind: Literal["entity"] = "entity"


@dataclass(frozen=True, slots=True)
class OtherScope:
    """A kind that this deployment does not have: `manifest`. It is always refused, with the reason."""

    kind: Literal["manifest"]


Scope = SubjectScope | RecordsScope | ClassScope | TargetRangeScope | EntityScope | OtherScope


@dataclass(frozen=True, slots=True)
class IdentityForm:
    """Who vouches for the person's identity. `evidence_ref` is the caller's own reference, never a document."""

    mode: Literal["asserted_by_controller", "one_time_code", "external"] = "asserted_by_controller"
    evidence_ref: str | None = None


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A deletion request as it came in. `models` (names or ids) may only narrow what the service finds, and then needs `note`."""

    scope: Scope
    regulation: Literal["gdpr", "ccpa", "policy"] = "gdpr"
    received_at: datetime | None = None
    manner: str | None = None
    ground: str | None = None
    external_id: str | None = None
    identity: IdentityForm = field(default_factory=IdentityForm)
    models: tuple[str | UUID, ...] | None = None
    note: str | None = None
    policy: str = "gdpr-default"
    method: str = "auto"
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Decision:
    """A person's decision on a request that waits for review; a refusal names its ground or exemption.

    Of a refusal under the GDPR, `note` is the reason that the person was given, and they were told of their right to complain and to go to court.
    """

    outcome: Literal["approve", "deny"]
    ground: str | None = None
    exemption: str | None = None
    note: str | None = None
    complaint_told: bool = False
    court_told: bool = False


@dataclass(frozen=True, slots=True)
class NewNotification:
    """A recipient of a superseded version, and how and when they were told."""

    model: str | UUID
    version: int
    recipient: str
    channel: str
    sent_at: datetime
    outcome: Literal["sent", "confirmed", "failed", "not_possible"]


@dataclass(frozen=True, slots=True)
class Cancellation:
    """Who takes a request back, and why."""

    by: Literal["subject", "operator"]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RequestFilters:
    """Filters of the listing of requests; None means any."""

    state: str | None = None
    model: str | UUID | None = None
    regulation: str | None = None
    due_before: datetime | None = None
    overdue: bool | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None


@dataclass(frozen=True, slots=True)
class JobFilters:
    """Filters of the listing of jobs; None means any."""

    request_id: UUID | None = None
    model: str | UUID | None = None
    kind: str | None = None
    state: str | None = None
