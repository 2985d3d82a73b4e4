"""The frames between supervisor and runner: one JSON object a line, each naming its type; and the folder of a job.

```
supervisor -> runner   job (the folder), step (run this one), cancel; end of file means: exit
runner -> supervisor   ready (what it can run), progress, done (a step), failed (a step)
```
The runner touches nothing but the folder, so that a compromised checkpoint finds no credential and no server to talk to.
"""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

JSON = dict[str, Any]

SPEC_FILE = "job.json"
RECORDS_FILE = "records.parquet"
BASE_FILE = "base.safetensors"
CANDIDATE_FILE = "candidate.safetensors"
REFERENCE_FILE = "reference.safetensors"
TWIN_FILE = "reference_twin.safetensors"
READINGS_FILE = "readings.json"
FIGURES_FILE = "figures.json"
VERDICT_FILE = "verdict.json"
RUN_FILE = "run.json"
NEXT_RECORDS_FILE = "next_records.parquet"
NAMES_FILE = "names.json"

COMPUTE_STEPS = {"train": ("train", "measure"), "unlearn": ("unlearn", "evaluate", "verify"), "reference": ("reference",)}


class Frame(BaseModel):
    """What every frame has in common: no unknown member passes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)


class JobFrame(Frame):
    """Take the job that lies in `folder`; with more than one rank its weights are dealt to so many processes, each with a device of its own."""

    type: Literal["job"] = "job"
    folder: str
    ranks: int = 1


class StepFrame(Frame):
    """Run one compute step of the job."""

    type: Literal["step"] = "step"
    name: str


class CancelFrame(Frame):
    """Stop at the next report."""

    type: Literal["cancel"] = "cancel"


class CatalogueItem(Frame):
    """One plug-in that this runner can run, or could not import (`error`)."""

    kind: Literal["method", "metric", "attack", "task", "architecture", "dataset_adapter"]
    name: str
    version: str = "1"
    guarantee: str | None = None
    parameters: JSON = Field(default_factory=dict)
    needs: list[str] = Field(default_factory=list)
    facts: JSON = Field(default_factory=dict)
    error: str | None = None


class ReadyFrame(Frame):
    """The runner is warm: torch is imported, plug-ins are loaded, the device was touched."""

    type: Literal["ready"] = "ready"
    catalogue: list[CatalogueItem]
    device: JSON
    versions: dict[str, str]


class ProgressFrame(Frame):
    """`step` of `of` steps of a stage are done. `name` is the pipeline's step."""

    type: Literal["progress"] = "progress"
    name: str
    stage: str
    step: int
    of: int
    values: dict[str, float | None] = Field(default_factory=dict)


class DoneFrame(Frame):
    """A step is finished; its files lie in the folder."""

    type: Literal["done"] = "done"
    name: str
    seconds: float


class FailedFrame(Frame):
    """A step raised. `retry_class` is that of the error tree; `detail` holds no identifier of a person."""

    type: Literal["failed"] = "failed"
    name: str
    code: str
    retry_class: Literal["permanent", "transient", "resource", "crash", "cancel", "race"]
    detail: str


ToRunner = Annotated[JobFrame | StepFrame | CancelFrame, Field(discriminator="type")]
FromRunner = Annotated[ReadyFrame | ProgressFrame | DoneFrame | FailedFrame, Field(discriminator="type")]

_TO_RUNNER: TypeAdapter[ToRunner] = TypeAdapter(ToRunner)
_FROM_RUNNER: TypeAdapter[FromRunner] = TypeAdapter(FromRunner)


class GarbledFrame(Exception):
    """A line on the pipe is not a frame."""


def encode(frame: Frame) -> bytes:
    """Return the frame as one line."""
    return frame.model_dump_json().encode() + b"\n"


def read_command(line: bytes) -> ToRunner:
    """Return the frame that a supervisor wrote. Raises GarbledFrame."""
    try:
        return _TO_RUNNER.validate_json(line)
    except ValidationError as error:
        raise GarbledFrame(str(error.error_count())) from error


def read_answer(line: bytes) -> FromRunner:
    """Return the frame that a runner wrote. Raises GarbledFrame."""
    try:
        return _FROM_RUNNER.validate_json(line)
    except ValidationError as error:
        raise GarbledFrame(str(error.error_count())) from error


class Seeds(BaseModel):
    """Seeds, one for each purpose, so that no stream is used twice.

    `reference` is that of the retrained references, `shadows` that of models trained on random halves; without them they take theirs from `evaluate`.
    """

    model_config = ConfigDict(frozen=True)

    train: int = 0
    unlearn: int = 1
    evaluate: int = 2
    reference: int | None = None
    shadows: int | None = None


class CacheSpec(BaseModel):
    """Where the runner keeps what it derives from the job's dataset: the folder of this tenant and this dataset, its size limit and time to live."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    size_bytes: int
    ttl_s: float


JobKind = Literal["train", "unlearn", "reference"]


class JobSpec(BaseModel):
    """What the runner is told about a job; written to `job.json` in its folder.

    `recipe`, `params` and `plan` are checked again in the runner by the classes they belong to. `halved` asks for half the batch, after the
    device ran out of memory once. `weights_bytes` (of the base version), `copies`, `batch_bytes` and `sharded` are what the job was admitted by
    (services/memory.py). `spans` are the bounds above and below of ranges of targets; `mixed` says that records are named beside them.
    `inherited` is what the method that made the base version left for the next, its ledger; without a `cache` everything is computed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: UUID
    kind: JobKind
    round: int
    task: str
    architecture: str
    architecture_params: JSON
    adapter: str
    adapter_params: JSON
    recipe: JSON | None
    method: str | None
    params: JSON
    request_kind: Literal["class", "records"]
    spans: tuple[tuple[float | None, float | None], ...] = ()
    mixed: bool = False
    plan: JSON
    seeds: Seeds
    device: str
    deadline_s: int
    halved: bool = False
    weights_bytes: int = 0
    copies: float = 8.0
    batch_bytes: int = 0
    sharded: bool = False
    inherited: JSON = Field(default_factory=dict)
    cache: CacheSpec | None = None
