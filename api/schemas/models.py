"""Bodies of models, versions and aliases."""

from typing import Annotated, Any, Self

from pydantic import Field

from api.schemas.base import FileIn, In, Moment, Name, NameOrId, Out, UploadOut, Word
from api.schemas.ids import DatasetId, DatasetVersionId, Digest, EventId, JobId, ModelId, ModelVersionId, reference
from services.audit.destruction import CertificateView
from services.model_versions import forms


class ModelIn(In):
    """A model: one task, one architecture."""

    name: Name
    task: Word
    architecture: Word
    architecture_params: dict[str, Any] = Field(default_factory=dict)

    def form(self) -> forms.NewModel:
        """Return the ledger's form."""
        return forms.NewModel(self.name, self.task, self.architecture, self.architecture_params)


class DatasetRefIn(In):
    """A dataset version."""

    dataset: NameOrId
    version: Annotated[int, Field(ge=1)]


class VersionIn(In):
    """A version to be uploaded. Without `recipe` it cannot be retrained."""

    files: Annotated[list[FileIn], Field(min_length=1, max_length=100)]
    parent: Annotated[int, Field(ge=1)] | None = None
    recipe: dict[str, Any] | None = None
    seeds: dict[str, int] | None = None
    trained_on: Annotated[list[DatasetRefIn], Field(max_length=100)] = Field(default_factory=list)
    evaluated_on: DatasetRefIn | None = Field(default=None, description="A dataset version that the model did not learn from, to judge it on.")
    fresh_start: bool = False

    def form(self) -> forms.NewVersion:
        """Return the ledger's form."""
        return forms.NewVersion(
            files=tuple(forms.FileForm(file.path, file.size_bytes, file.sha256) for file in self.files),
            parent=self.parent,
            recipe=self.recipe,
            seeds=self.seeds,
            trained_on=tuple(forms.DatasetRef(reference("ds", one.dataset), one.version) for one in self.trained_on),
            evaluated_on=forms.DatasetRef(reference("ds", self.evaluated_on.dataset), self.evaluated_on.version) if self.evaluated_on else None,
            fresh_start=self.fresh_start,
        )


class VersionCompleteIn(In):
    """Every file was uploaded; the client's own manifest, if there is one, is kept beside ours."""

    manifest: dict[str, Any] | None = None


class TrainingRunIn(In):
    """A training run of version number max+1."""

    dataset: NameOrId
    dataset_version: Annotated[int, Field(ge=1)]
    recipe: dict[str, Any] = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    def form(self) -> forms.NewTrainingRun:
        """Return the ledger's form."""
        return forms.NewTrainingRun(reference("ds", self.dataset), self.dataset_version, self.recipe, self.seed)


class AliasIn(In):
    """Where the alias shall point."""

    version: Annotated[int, Field(ge=1)]


class ModelOut(Out):
    """A model."""

    id: ModelId
    name: str
    task: str
    architecture: str
    architecture_params: dict[str, Any]
    current_version: int | None
    current_version_id: ModelVersionId | None
    created_at: Moment

    @classmethod
    def of(cls, view: forms.ModelView) -> Self:
        """Return the body of a view."""
        return cls.model_validate(view)


class TrainedOnOut(Out):
    """A dataset version that the model version learned from."""

    dataset: str
    dataset_id: DatasetId
    version: int
    version_id: DatasetVersionId
    role: str


class VersionOut(Out):
    """A version of a model. `contains_forgotten`: it learned from records that were forgotten since."""

    id: ModelVersionId
    model: str
    model_id: ModelId
    number: int
    parent_id: ModelVersionId | None
    job_id: JobId | None
    status: str
    guarantee: str | None
    fresh_start: bool
    recipe: dict[str, Any] | None
    manifest: dict[str, Any] | None
    manifest_digest: Digest | None
    error: dict[str, Any] | None
    destroy_by: Moment | None
    destroyed_at: Moment | None
    created_at: Moment
    current: bool
    aliases: list[str]
    trained_on: list[TrainedOnOut]
    evaluated_on: list[TrainedOnOut]
    contains_forgotten: bool
    uploads: list[UploadOut] = Field(default_factory=list, validation_alias="presigned")

    @classmethod
    def of(cls, view: forms.VersionView, uploads: list[UploadOut] | None = None) -> Self:
        """Return the body of a view. The manifest always lists the files with their digests, also for an upload that brought none."""
        facts = {name: getattr(view, name) for name in type(view).__dataclass_fields__ if name != "uploads"}
        files = [{"path": file.path, "sha256": file.sha256, "size_bytes": file.size_bytes} for file in view.files]
        return cls.model_validate({**facts, "manifest": {**(view.manifest or {}), "files": files}, "presigned": uploads or []})


class AncestorOut(Out):
    """One version of a lineage; `depth` is positive above and negative below."""

    id: ModelVersionId
    model: str
    number: int
    parent_id: ModelVersionId | None
    status: str
    fresh_start: bool
    depth: int
    job_id: JobId | None
    trained_on: list[TrainedOnOut]


class Lineage(Out):
    """The versions above and below one."""

    items: list[AncestorOut]


class AliasOut(Out):
    """A movable name of a version."""

    model: str
    alias: str
    version: int
    version_id: ModelVersionId


class AliasList(Out):
    """The aliases of a model."""

    items: list[AliasOut]


class LogEntryOut(Out):
    """The event that commits to a certificate. Its commitment is SHA-256 of the canonical JSON (RFC 8785) of `opening`; null once that was erased.

    `leaf_seq` is the number of its leaf, for `GET /v1/audit/proof`.
    """

    event: EventId
    commitment: Digest
    leaf_seq: int | None
    opening: dict[str, Any] | None


class CertificateOut(Out):
    """A destruction certificate: `digest` is the SHA-256 of the document's canonical JSON (RFC 8785)."""

    document: dict[str, Any]
    digest: Digest
    created_at: Moment
    log: LogEntryOut

    @classmethod
    def of(cls, view: CertificateView) -> Self:
        """Return the body of a view."""
        entry = LogEntryOut.model_validate(view)
        return cls(document=dict(view.document), digest=view.digest, created_at=view.created_at, log=entry)
