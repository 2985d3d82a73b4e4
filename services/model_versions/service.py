"""Models, their versions, aliases and lineage, uploads and training runs. Nothing here commits; publishing is in publication.py."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from services.clock import Clock
from services.model_versions.forms import (
    AliasView,
    Ancestor,
    Key,
    ModelView,
    NewModel,
    NewTrainingRun,
    NewVersion,
    VersionView,
)
from services.tenants.caller import Caller


def create_model(session: Session, form: NewModel, *, caller: Caller, clock: Clock) -> ModelView:
    """Register a model. Raises UnknownComponent for task or architecture, UnsupportedTask, DuplicateName."""
    ...


def read_model(session: Session, model: str | UUID) -> ModelView:
    """Return a model by id or name. Raises NotFound."""
    ...


def list_models(session: Session, *, limit: int = 50, after: Key | None = None) -> tuple[list[ModelView], Key | None]:
    """Return a page of models, newest first, and the key to continue after."""
    ...


def create_version(session: Session, model: str | UUID, form: NewVersion, *, caller: Caller, clock: Clock) -> VersionView:
    """Open version number max+1, `pending`, with one upload per file.

    Raises: NotFound; UnknownDataset; VersionNotReady for the parent; Resurrection for a parent or dataset version that holds forgotten records.
    """
    ...


def complete_version(
    session: Session, model: str | UUID, number: int, manifest: Mapping[str, Any] | None, *, caller: Caller, clock: Clock
) -> VersionView:
    """Say that every file was uploaded: the version becomes `checking` and control checks it. Raises NotFound, VersionNotReady."""
    ...


def ingested(
    session: Session, version_id: UUID, *, manifest: Mapping[str, Any], manifest_digest: str, clock: Clock
) -> VersionView:
    """Mark a checked upload `ready`; it becomes current where the model has none or its parent is current. Raises VersionNotReady."""
    ...


def ingest_failed(session: Session, version_id: UUID, error: dict[str, Any]) -> None:
    """Mark a version under check `failed` with a problem document."""
    ...


def training_run(session: Session, model: str | UUID, form: NewTrainingRun, *, caller: Caller, clock: Clock) -> UUID:
    """Insert a job of kind `train`, ring for it and return its id.

    Raises: NotFound; UnknownDataset; VersionNotReady; Resurrection when the dataset version holds records the model has forgotten.
    """
    ...


def read_version(session: Session, model: str | UUID, number: int) -> VersionView:
    """Return one version with files, aliases and what it learned from. Raises NotFound."""
    ...


def read_version_by_id(session: Session, version_id: UUID) -> VersionView:
    """Return one version by its id. Raises NotFound."""
    ...


def list_versions(session: Session, model: str | UUID, *, limit: int = 50, after: int | None = None) -> tuple[list[VersionView], int | None]:
    """Return versions with numbers under `after`, newest first, and the number to continue after. Raises NotFound."""
    ...


def lineage(session: Session, model: str | UUID, number: int) -> list[Ancestor]:
    """Return the version, everything above it up to the first fresh start, and everything below it. Raises NotFound."""
    ...


def set_alias(
    session: Session, model: str | UUID, alias: str, number: int, *, expected_etag: int | None, create: bool, caller: Caller, clock: Clock
) -> AliasView:
    """Point an alias at a version: `create` for `If-None-Match: *`, else `expected_etag` from If-Match.

    Raises: NotFound; AliasInUse; PreconditionRequired; PreconditionFailed; VersionNotReady; Resurrection.
    """
    ...


def read_alias(session: Session, model: str | UUID, alias: str) -> AliasView:
    """Return an alias. Raises NotFound."""
    ...


def list_aliases(session: Session, model: str | UUID) -> list[AliasView]:
    """Return the aliases of a model by name. Raises NotFound."""
    ...


def delete_alias(session: Session, model: str | UUID, alias: str, *, expected_etag: int | None, caller: Caller) -> None:
    """Remove an alias; its history stays. Raises NotFound, PreconditionRequired, PreconditionFailed."""
    ...


def at(session: Session, model: str | UUID, time: datetime, alias: str) -> VersionView:
    """Return the version that an alias named at a moment. Raises NotFound."""
    ...
