"""Bodies of jobs."""

from typing import Any, Literal, Self

from pydantic import Field

from api.schemas.base import Moment, Out
from api.schemas.ids import JobId, ModelId, TargetId
from services.requests import views


class TookOut(Out):
    """Seconds of an unlearning job: its method, the models that the tests compare with, the tests; and of one retraining, where it made one.

    `reference_from`: those models were `trained` now, as for the first request on a dataset version, or come from the `cache`.
    """

    method_seconds: str | None
    reference_seconds: str | None
    evaluation_seconds: str | None
    retrain_seconds: str | None
    reference_from: Literal["trained", "cache"] | None


class JobOut(Out):
    """A job. When `done`, exactly one of `result` and `error` is set. A purge may be `candidate_of` a job: of what that put and did not publish.

    `took` stands from the end of the method on, whatever becomes of the job.
    """

    id: JobId
    kind: str
    state: str
    attention: str | None
    done: bool
    model: str
    model_id: ModelId
    base_version: int | None
    method: str | None
    method_version: str | None
    parameters: dict[str, Any]
    choice: dict[str, Any] | None
    rung: int
    round: int
    targets: list[TargetId]
    attempt: int
    crashes: int
    step: str | None
    run_after: Moment
    due_at: Moment | None
    queue: str
    queue_position: int | None
    progress: dict[str, Any] | None
    allowed: list[str]
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    escalated_from: JobId | None
    candidate_of: JobId | None = Field(validation_alias="candidate_job_id")
    cancel_requested_at: Moment | None
    created_at: Moment
    finished_at: Moment | None
    took: TookOut | None = None

    @classmethod
    def of(cls, view: views.JobView) -> Self:
        """Return the body of a view."""
        return cls.model_validate(view)


class AttemptOut(Out):
    """One claim of the job."""

    attempt: int
    lease_epoch: int
    worker: str
    device: dict[str, Any] | None
    started_at: Moment
    ended_at: Moment | None
    outcome: str | None
    error: dict[str, Any] | None


class StepOut(Out):
    """One step of one attempt."""

    name: str
    attempt: int
    state: str
    input_digest: str | None
    output_digest: str | None
    metrics: dict[str, Any] | None
    started_at: Moment
    ended_at: Moment | None


class AttemptList(Out):
    """The claims and steps of a job."""

    items: list[AttemptOut]
    steps: list[StepOut]
