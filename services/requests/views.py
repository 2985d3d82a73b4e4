"""What the request ledger shows: frozen views with everything a client sees. Ids are UUIDs here; the API puts the prefix on."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

JSON = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DatasetHit:
    """A dataset that holds records of the request, and the numbers of the versions that hold at least one."""

    dataset: str
    dataset_id: UUID
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScopeView:
    """What was located; never an identifier. `records_commitment` is a SHA-256 (hex) over the sorted keyed digests of the records."""

    kind: str
    records: int
    records_commitment: str
    datasets: tuple[DatasetHit, ...]
    labels: tuple[str, ...] = ()
    above: float | None = None
    below: float | None = None


@dataclass(frozen=True, slots=True)
class TargetView:
    """One model that a request touches. `model` is None for a subject that was not found (`outcome` = `not_identifiable`)."""

    id: UUID
    request_id: UUID
    model: str | None
    model_id: UUID | None
    base_version: int | None
    state: str
    outcome: str | None
    exemption: str | None
    rung: int
    records: int
    due_at: datetime
    published_version: int | None
    published_version_id: UUID | None
    jobs: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """The audit event of the receipt, its commitment (hex), the number of its leaf in the log, and the signed receipt, once there are any."""

    event: int
    commitment: str
    leaf_seq: int | None = None
    jws: str | None = None


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """An unlearned version; `digest` is the hex digest of its manifest."""

    model: str
    version: int
    digest: str | None


@dataclass(frozen=True, slots=True)
class ErasedDataset:
    """The dataset version without the records."""

    dataset: str
    version: int


@dataclass(frozen=True, slots=True)
class Superseded:
    """A version that had learned from the records; `disposition` is `quarantined` (until `destroy_by`), `purged` or `kept`."""

    model: str
    version: int
    disposition: str
    destroy_by: datetime | None


@dataclass(frozen=True, slots=True)
class ReportRef:
    """The newest stored report; `digest` is hex."""

    revision: int
    digest: str


@dataclass(frozen=True, slots=True)
class ResultView:
    """What a finished request brought about."""

    versions: tuple[PublishedVersion, ...]
    datasets: tuple[ErasedDataset, ...]
    superseded: tuple[Superseded, ...]
    audit_report: ReportRef | None


@dataclass(frozen=True, slots=True)
class PauseView:
    """A time in which the clock stood, or stands, still."""

    id: UUID
    from_at: datetime
    to_at: datetime | None
    reason: str


@dataclass(frozen=True, slots=True)
class RequestView:
    """A deletion request. `replayed` says that `create` found the request by its external_id and wrote nothing."""

    id: UUID
    external_id: str | None
    state: str
    status_drp: str
    status_opendsr: str
    done: bool
    version: int
    allowed: tuple[str, ...]
    regulation: str
    manner: str | None
    ground: str | None
    exemption: str | None
    created_at: datetime
    created_by: str
    received_at: datetime
    due_at: datetime
    original_due_at: datetime
    ack_due_at: datetime | None
    acknowledged_at: datetime | None
    days_left: int
    clock_paused: bool
    pauses: tuple[PauseView, ...]
    extended_at: datetime | None
    extension_reason: str | None
    closed_at: datetime | None
    decided_at: datetime | None
    decided_by: str | None
    scope: ScopeView
    targets: tuple[TargetView, ...]
    policy: str
    policy_version: int
    method: str
    parameters: JSON
    metadata: Mapping[str, str]
    duplicate_of: UUID | None
    attention: JSON | None
    error: JSON | None
    result: ResultView | None
    audit_report: ReportRef | None
    receipt: Receipt | None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """What a request would do to one model. `rungs` are the methods in the order they would be tried."""

    model: str
    base_version: int | None
    method: str
    reason: str
    guarantee: str | None
    rungs: tuple[str, ...]
    queue_position: int
    estimate_s: float
    estimate_basis: str
    memory_bytes: int | None
    gpu_memory_bytes: int | None
    would_purge: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a request; `code` is the slug of its problem document."""

    code: str
    detail: str
    pointer: str | None = None


@dataclass(frozen=True, slots=True)
class DryRun:
    """The answer to a dry run: nothing was written. `duplicate_of` names the open request that a real one would join."""

    would_accept: bool
    problems: tuple[Problem, ...]
    records: int
    datasets: tuple[DatasetHit, ...]
    models: tuple[PlannedModel, ...]
    due_at: datetime | None
    duplicate_of: UUID | None = None
    needs_review: bool = False


@dataclass(frozen=True, slots=True)
class TookView:
    """What an unlearning job took, in seconds as decimal strings: its method, the references, the readings; and one retraining, where it made one.

    `reference_from`: the references were `trained` by this job, as the first on a dataset version does, or came from the `cache`.
    """

    method_seconds: str | None
    reference_seconds: str | None
    evaluation_seconds: str | None
    retrain_seconds: str | None
    reference_from: str | None


@dataclass(frozen=True, slots=True)
class JobView:
    """A job. `result` and `error` exclude each other; both are None until `done`. `candidate_job_id`: whose unpublished files a purge destroys."""

    id: UUID
    kind: str
    state: str
    attention: str | None
    done: bool
    model: str
    model_id: UUID
    base_version: int | None
    dataset_version_id: UUID | None
    method: str | None
    method_version: str | None
    parameters: JSON
    choice: JSON | None
    rung: int
    round: int
    targets: tuple[UUID, ...]
    requests: tuple[UUID, ...]
    attempt: int
    crashes: int
    step: str | None
    run_after: datetime
    due_at: datetime | None
    queue: str
    queue_position: int | None
    progress: JSON | None
    allowed: tuple[str, ...]
    result: JSON | None
    error: JSON | None
    escalated_from: UUID | None
    candidate_job_id: UUID | None
    cancel_requested_at: datetime | None
    created_at: datetime
    finished_at: datetime | None
    lease_until: datetime | None
    took: TookView | None = None


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One claim of a job."""

    attempt: int
    lease_epoch: int
    worker: str
    device: JSON | None
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    error: JSON | None


@dataclass(frozen=True, slots=True)
class StepView:
    """One step of one attempt; digests are hex."""

    name: str
    attempt: int
    state: str
    input_digest: str | None
    output_digest: str | None
    metrics: JSON | None
    started_at: datetime
    ended_at: datetime | None
