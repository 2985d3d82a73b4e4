"""Bodies of datasets."""

from typing import Annotated, Any, Self

from pydantic import Field

from api.schemas.base import FileIn, FileOut, In, Moment, Name, Out, UploadOut, Word
from api.schemas.ids import DatasetId, DatasetVersionId, Digest, JobId, ModelId, ModelVersionId
from api.schemas.requests import IdentifierIn
from services.datasets import forms


class DatasetIn(In):
    """A dataset; its adapter says how columns become tensors."""

    name: Name
    adapter: Word
    adapter_params: dict[str, Any] = Field(default_factory=dict)
    label_column: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    subject_types: Annotated[list[Word], Field(max_length=20)] = Field(default_factory=list)

    def form(self) -> forms.NewDataset:
        """Return the ledger's form."""
        return forms.NewDataset(self.name, self.adapter, self.adapter_params, self.label_column, tuple(self.subject_types))


class DatasetVersionIn(In):
    """The parquet files of a new version."""

    files: Annotated[list[FileIn], Field(min_length=1, max_length=100)]
    parent: Annotated[int, Field(ge=1)] | None = None

    def form(self) -> tuple[forms.FileForm, ...]:
        """Return the ledger's form."""
        return tuple(forms.FileForm(file.path, file.size_bytes, file.sha256) for file in self.files)


class CompleteIn(In):
    """Every file was uploaded."""


class SubjectRowIn(In):
    """The persons behind one record."""

    record_id: Annotated[str, Field(min_length=1, max_length=512)]
    identifiers: Annotated[list[IdentifierIn], Field(min_length=1, max_length=20)]


class SubjectsIn(In):
    """Rows of the subject index; identifiers are hashed at once."""

    rows: Annotated[list[SubjectRowIn], Field(min_length=1, max_length=10_000)]

    def form(self) -> tuple[forms.SubjectRow, ...]:
        """Return the ledger's form."""
        return tuple(forms.SubjectRow(row.record_id, tuple(one.form() for one in row.identifiers)) for row in self.rows)


class SubjectsOut(Out):
    """What the index holds now."""

    indexed: int
    total: int


class DatasetOut(Out):
    """A dataset."""

    id: DatasetId
    name: str
    adapter: str
    adapter_params: dict[str, Any]
    label_column: str | None
    subject_types: list[str]
    created_at: Moment
    latest_version: int | None

    @classmethod
    def of(cls, view: forms.DatasetView) -> Self:
        """Return the body of a view."""
        return cls.model_validate(view)


class DatasetVersionOut(Out):
    """A version of a dataset. `uploads` is filled while it is pending.

    `retired`: records that it holds were forgotten, nothing learns from it, and it is destroyed at `destroy_by` (null: it is kept); then it is `purged`.
    """

    id: DatasetVersionId
    dataset: str
    dataset_id: DatasetId
    version: int = Field(validation_alias="number")
    parent: int | None
    status: str
    records: int | None
    manifest_digest: Digest | None
    produced_by_job: JobId | None = Field(validation_alias="produced_by_job_id")
    error: dict[str, Any] | None
    created_at: Moment
    destroy_by: Moment | None
    purged_at: Moment | None
    files: list[FileOut]
    uploads: list[UploadOut] = Field(default_factory=list, validation_alias="presigned")

    @classmethod
    def of(cls, view: forms.DatasetVersionView, uploads: list[UploadOut] | None = None) -> Self:
        """Return the body of a view, with the upload URLs that were issued for it."""
        facts = {name: getattr(view, name) for name in type(view).__dataclass_fields__ if name != "uploads"}
        return cls.model_validate({**facts, "presigned": uploads or []})


class TrainedModelOut(Out):
    """A model version that learned from the dataset version."""

    model: str
    model_id: ModelId
    version: int
    version_id: ModelVersionId
    role: str
    status: str


class TrainedModelList(Out):
    """The model versions that learned from a dataset version."""

    items: list[TrainedModelOut]
