"""What a report is made of: the jobs of a request with what they measured, and the models they were about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from services.db.destruction import Fate
from services.db.tables import (
    ClockPause,
    FigureRow,
    Job,
    JobAttempt,
    Model,
    ModelVersion,
    ReadingRow,
    RecipientNotification,
    Target,
    VerdictRow,
    VerificationPlan,
)
from services.drift import Standing


@dataclass(frozen=True, slots=True)
class Run:
    """One job of the request with what it measured and drew; `batch` is how many requests it served.

    `plan_leaf` and `run_leaf` are the leaves in the log of its plan and of the first start under it.
    """

    job: Job
    attempts: Sequence[JobAttempt]
    plan: VerificationPlan | None
    readings: Sequence[ReadingRow]
    verdict: VerdictRow | None
    batch: int
    figures: Sequence[FigureRow] = ()
    plan_leaf: int | None = None
    run_leaf: int | None = None

    def step(self, name: str) -> Mapping[str, Any]:
        """Return what a step put out; nothing where the run did not come so far."""
        return (self.job.step_state or {}).get("steps", {}).get(name) or {}

    def told(self, name: str) -> Mapping[str, Any]:
        """Return what the runner noted by the end of a step."""
        return self.step(name).get("run") or {}

    @property
    def plan_body(self) -> Mapping[str, Any]:
        """The frozen plan; empty where there is none."""
        return self.plan.body if self.plan is not None else {}

    @property
    def secret(self) -> bool:
        """Whether the method is a certified one, by the plan or by what the run told: then its random term stays unknown."""
        return bool(self.told("unlearn").get("secret_seeds")) or self.plan_body.get("guarantee") == "certified"

    @property
    def guarantee(self) -> str | None:
        """What the run itself claims, where it came so far, else what the plan says of its method: parameters may decide between two."""
        return self.told("unlearn").get("guarantee") or self.plan_body.get("guarantee")


@dataclass(frozen=True, slots=True)
class Chain:
    """Where a request stands in the log: the leaves of its events so far, the newest signed head, and whether a witness has signed that too."""

    first_seq: int | None = None
    last_seq: int | None = None
    head_size: int | None = None
    head_hash: str | None = None
    witnessed: bool = False


@dataclass(frozen=True, slots=True)
class Subject:
    """A target with its model and the versions it touches: the base, the published one, and those superseded."""

    target: Target
    model: Model | None
    base: ModelVersion | None
    published: ModelVersion | None
    superseded: Sequence[ModelVersion]
    certificates: Mapping[UUID, str] = field(default_factory=dict[UUID, str])
    """Digests of the destruction certificates, by version."""
    holds: Mapping[UUID, Sequence[UUID]] = field(default_factory=dict[UUID, Sequence[UUID]])
    """Standing legal holds, by version."""
    ledger: Standing | None = None
    """Where the drift ledger of the published version stands, or of the base where none was published."""
    exact_since: datetime | None = None
    """When the version was made with which that ledger began."""
    data: Sequence[Fate] = ()
    """The superseded dataset versions that the request's records were in."""
    candidates: Sequence[Fate] = ()
    """What the target's jobs put and did not publish, by rung."""


@dataclass(frozen=True, slots=True)
class Told:
    """A recipient of a superseded version that was told, with the names of model and version."""

    row: RecipientNotification
    model: str
    version: int


@dataclass(frozen=True, slots=True)
class Conduct:
    """What was done about the request beside the jobs: pauses of its clock, and recipients that were told."""

    pauses: Sequence[ClockPause] = ()
    told: Sequence[Told] = ()


def deciding(runs: Sequence[Run]) -> list[Run]:
    """Return the last run of each model."""
    newest: dict[Any, Run] = {}
    for run in sorted(runs, key=lambda run: (run.job.rung, run.job.created_at)):
        newest[run.job.model_id] = run
    return list(newest.values())
