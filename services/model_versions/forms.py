"""Forms and views of models and their versions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

Key = tuple[datetime, UUID]
JSON = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NewModel:
    """A model: one task, one architecture."""

    name: str
    task: str
    architecture: str
    architecture_params: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class FileForm:
    """A file of a version; `sha256` is hex."""

    path: str
    size_bytes: int
    sha256: str
    media_type: str = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """A dataset version by dataset (name or id) and number."""

    dataset: str | UUID
    version: int


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version to be uploaded. `trained_on` is what it learned from; without `recipe` it cannot be retrained.

    `evaluated_on` is what it did not learn from and is judged on where none of its training data is held.
    """

    files: tuple[FileForm, ...]
    parent: int | None = None
    recipe: Mapping[str, Any] | None = None
    seeds: Mapping[str, int] | None = None
    trained_on: tuple[DatasetRef, ...] = ()
    evaluated_on: DatasetRef | None = None
    fresh_start: bool = False


@dataclass(frozen=True, slots=True)
class NewTrainingRun:
    """A training run; the seeds of the job are derived from `seed`."""

    dataset: str | UUID
    dataset_version: int
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Upload:
    """Where a declared file goes: the object key to presign a PUT for."""

    path: str
    key: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model and its current version. `etag` rises with every change."""

    id: UUID
    name: str
    task: str
    architecture: str
    architecture_params: JSON
    current_version: int | None
    current_version_id: UUID | None
    etag: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """A dataset version that a model version learned from."""

    dataset: str
    dataset_id: UUID
    version: int
    version_id: UUID
    role: str


@dataclass(frozen=True, slots=True)
class VersionView:
    """A version of a model. `contains_forgotten` says that it learned from records some version has forgotten since."""

    id: UUID
    model: str
    model_id: UUID
    number: int
    parent_id: UUID | None
    job_id: UUID | None
    status: str
    guarantee: str | None
    fresh_start: bool
    recipe: JSON | None
    manifest: JSON | None
    manifest_digest: str | None
    code_digest: str | None
    seeds: JSON | None
    error: JSON | None
    destroy_by: datetime | None
    destroyed_at: datetime | None
    created_at: datetime
    current: bool
    aliases: tuple[str, ...]
    files: tuple[FileForm, ...]
    trained_on: tuple[TrainedOn, ...]
    evaluated_on: tuple[TrainedOn, ...]
    contains_forgotten: bool
    uploads: tuple[Upload, ...] = ()


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One version of a lineage, and how far above (positive) or below (negative) it stands."""

    id: UUID
    model: str
    number: int
    parent_id: UUID | None
    status: str
    fresh_start: bool
    depth: int
    job_id: UUID | None
    trained_on: tuple[TrainedOn, ...]


@dataclass(frozen=True, slots=True)
class AliasView:
    """A movable name of a version."""

    model: str
    alias: str
    version: int
    version_id: UUID
    etag: int


@dataclass(frozen=True, slots=True)
class PublishFile:
    """A file already in the object store; `digest` is hex."""

    path: str
    digest: str
    size_bytes: int
    media_type: str = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Publication:
    """What a job publishes. The caller has locked the job row on its epoch and has put every object.

    `forgotten` names, per dataset, the records that this version no longer knows (empty for a training run).
    `trained_on` are pairs (dataset version, role). How long superseded versions stay in quarantine is the policy's to say.
    """

    job_id: UUID
    files: tuple[PublishFile, ...]
    manifest: Mapping[str, Any]
    manifest_digest: str
    trained_on: tuple[tuple[UUID, str], ...]
    fresh_start: bool
    guarantee: str | None
    recipe: Mapping[str, Any] | None
    seeds: Mapping[str, Any]
    code_digest: str | None = None
    image_digest: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict[str, Any])
    forgotten: Mapping[UUID, tuple[str, ...]] = field(default_factory=dict[UUID, tuple[str, ...]])


@dataclass(frozen=True, slots=True)
class Published:
    """The version that a publish made, what it superseded, and the requests that can go on."""

    version_id: UUID
    number: int
    superseded: tuple[UUID, ...]
    requests: tuple[UUID, ...]
