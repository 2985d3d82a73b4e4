"""Forms and views of datasets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from services.datasets.identifiers import Identifier
from services.series import Windowed

Key = tuple[datetime, UUID]


@dataclass(frozen=True, slots=True)
class FileForm:
    """A file that a client will upload; `sha256` is hex."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class NewDataset:
    """A dataset. `label_column` overrides the adapter's; `subject_types` are the identifier types its subject index will hold."""

    name: str
    adapter: str
    adapter_params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    label_column: str | None = None
    subject_types: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SubjectRow:
    """The persons behind one record: several identifiers of one person, or of several persons."""

    record_id: str = field(repr=False)
    identifiers: tuple[Identifier, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Indexed:
    """How many identifier rows were given to the index, and how many it holds for the dataset now."""

    indexed: int
    total: int


@dataclass(frozen=True, slots=True)
class Upload:
    """Where a declared file goes: the object key to presign a PUT for."""

    path: str
    key: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class DatasetView:
    """A dataset and the number of its newest ready version."""

    id: UUID
    name: str
    adapter: str
    adapter_params: Mapping[str, Any]
    label_column: str | None
    subject_types: tuple[str, ...]
    created_at: datetime
    latest_version: int | None


@dataclass(frozen=True, slots=True)
class DatasetVersionView:
    """A version of a dataset; digests are hex, `records` is None until it was checked.

    One that is `retired` is to be destroyed at `destroy_by` (None: kept), one that is `purged` was destroyed at `purged_at`.
    """

    id: UUID
    dataset: str
    dataset_id: UUID
    number: int
    parent: int | None
    status: str
    records: int | None
    manifest_digest: str | None
    produced_by_job_id: UUID | None
    error: Mapping[str, Any] | None
    created_at: datetime
    files: tuple[FileForm, ...]
    uploads: tuple[Upload, ...] = ()
    destroy_by: datetime | None = None
    purged_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class UploadChecks:
    """What an upload must hold: labels in `label_column`, with `numbers` finite targets there, with `pixels` images of that many bytes.

    With `series` it holds windows without gaps. Targets of several steps are no labels: nothing is told apart by them, and the ledger keeps none.
    """

    label_column: str | None
    numbers: bool
    pixels: int | None
    series: Windowed | None = None


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model version that learned from a dataset version, in that role."""

    model: str
    model_id: UUID
    version: int
    version_id: UUID
    role: str
    status: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A located record and the range of version numbers, [`first`, `end`) with None for open, that hold it."""

    dataset_id: UUID
    record_id: str = field(repr=False)
    label: str | None
    first: int
    end: int | None
