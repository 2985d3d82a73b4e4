"""Datasets, their versions, the subject index, and erasure from a dataset. Nothing here commits."""

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from services.clock import Clock
from services.datasets.forms import (
    DatasetVersionView,
    DatasetView,
    FileForm,
    Indexed,
    Key,
    NewDataset,
    SubjectRow,
    TrainedModel,
)
from services.tenants.caller import Caller
from services.tenants.keys import KeyRing


def create_dataset(session: Session, form: NewDataset, *, caller: Caller, clock: Clock) -> DatasetView:
    """Register a dataset. Raises UnknownComponent for the adapter, DuplicateName."""
    ...


def read_dataset(session: Session, dataset: str | UUID) -> DatasetView:
    """Return a dataset by id or name. Raises NotFound."""
    ...


def list_datasets(session: Session, *, limit: int = 50, after: Key | None = None) -> tuple[list[DatasetView], Key | None]:
    """Return a page of datasets, newest first, and the key to continue after."""
    ...


def create_version(
    session: Session, dataset: str | UUID, files: Sequence[FileForm], *, caller: Caller, clock: Clock, parent: int | None = None
) -> DatasetVersionView:
    """Open version number max+1, `pending`, with one upload per file. Raises NotFound, InvalidInput for bad or double paths."""
    ...


def complete_version(session: Session, dataset: str | UUID, number: int, *, caller: Caller, clock: Clock) -> DatasetVersionView:
    """Say that every file was uploaded: the version becomes `checking` and control ingests it. Raises NotFound, VersionNotReady."""
    ...


def read_version(session: Session, dataset: str | UUID, number: int) -> DatasetVersionView:
    """Return one version. Raises NotFound."""
    ...


def read_version_by_id(session: Session, version_id: UUID) -> DatasetVersionView:
    """Return one version by its id. Raises NotFound."""
    ...


def list_versions(session: Session, dataset: str | UUID, *, limit: int = 50, after: int | None = None) -> tuple[list[DatasetVersionView], int | None]:
    """Return versions with numbers under `after`, newest first, and the number to continue after. Raises NotFound."""
    ...


def models_of_version(session: Session, dataset: str | UUID, number: int) -> list[TrainedModel]:
    """Return the model versions that learned from a dataset version. Raises NotFound."""
    ...


def index_subjects(
    session: Session, dataset: str | UUID, number: int, rows: Sequence[SubjectRow], *, caller: Caller, keys: KeyRing
) -> Indexed:
    """Put persons' keyed digests into the subject index (upsert). Raises NotFound, VersionNotReady, RecordsNotFound, InvalidInput."""
    ...


def ingested(
    session: Session,
    version_id: UUID,
    records: Iterable[tuple[str, str | None]],
    *,
    manifest_digest: str,
    files: Sequence[FileForm],
    clock: Clock,
) -> int:
    """Mark a checked version `ready` and record its records (id, label); return how many.

    A record that the version before held stays one row; one that is absent now ends there. Raises VersionNotReady, InvalidInput for double ids.
    """
    ...


def ingest_failed(session: Session, version_id: UUID, error: dict[str, Any]) -> None:
    """Mark a version under check `failed` with a problem document."""
    ...


def erase(
    session: Session,
    dataset_id: UUID,
    record_ids: Sequence[str],
    *,
    files: Sequence[FileForm],
    manifest_digest: str,
    job_id: UUID | None,
    clock: Clock,
) -> DatasetVersionView:
    """Open the next version without the records, `ready` at once, and end the records' presence there; the objects are already in the store."""
    ...
