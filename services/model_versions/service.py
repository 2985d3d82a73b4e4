"""Models, their versions, aliases and lineage, uploads and training runs. Nothing here commits; publishing is in publication.py."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.audit import log as audit
from services.clock import Clock, uuid7
from services.db import outbox
from services.db.tables import AliasHistory, CatalogueEntry, DatasetVersion, Job, Model, ModelAlias, ModelVersion
from services.errors import (
    AliasInUse,
    DatasetSuperseded,
    DuplicateName,
    ForgottenBytes,
    InvalidInput,
    MissingLabels,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
    Resurrection,
    UnknownComponent,
    UnknownDataset,
    UnsupportedTask,
    VersionNotReady,
)
from services.model_versions import repository
from services.model_versions.forms import (
    AliasView,
    Ancestor,
    DatasetRef,
    FileForm,
    Key,
    ModelView,
    NewModel,
    NewTrainingRun,
    NewVersion,
    PublishFile,
    Upload,
    VersionView,
)
from services.model_versions.tokenizers import check_alike, check_network
from services.tenants.caller import Caller

log = structlog.get_logger()
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9][A-Za-z0-9._-]{0,99}){0,4}")
WEIGHTS = ".safetensors"
LABELLED = frozenset({"classification", "image_generation"})
_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


# --- models ----------------------------------------------------------------------------------------------------------------------------


def create_model(session: Session, form: NewModel, *, caller: Caller, clock: Clock) -> ModelView:
    """Register a model. Raises UnknownComponent for task or architecture, UnsupportedTask, InvalidInput for a vocabulary that does not fit, DuplicateName."""
    for kind, name in (("task", form.task), ("architecture", form.architecture)):
        known = repository.components(session, kind)
        if name not in known:
            raise UnknownComponent(kind=kind, name=name, known=", ".join(sorted(known)) or "none yet")
    tasks = repository.components(session, "architecture")[form.architecture].facts.get("tasks")
    if tasks and form.task not in tasks:
        raise UnsupportedTask(component=form.architecture, task=form.task, tasks=", ".join(sorted(tasks)))
    check_network(form.architecture, form.architecture_params)
    model_id = uuid7(clock)
    values = {"name": form.name, "task": form.task, "architecture": form.architecture, "architecture_params": dict(form.architecture_params)}
    try:
        with session.begin_nested():
            repository.add(session, Model, id=model_id, tenant_id=caller.tenant_id, **values)
    except IntegrityError as error:
        raise DuplicateName(name=form.name) from error
    audit.record(session, tenant_id=caller.tenant_id, object_id=model_id, type="model.created", body={"by": caller.principal})
    return read_model(session, model_id)


def read_model(session: Session, model: str | UUID) -> ModelView:
    """Return a model by id or name. Raises NotFound."""
    return _model_views(session, [_model(session, model)])[0]


def list_models(session: Session, *, limit: int = 50, after: Key | None = None) -> tuple[list[ModelView], Key | None]:
    """Return a page of models, newest first, and the key to continue after."""
    rows = repository.page(session, limit + 1, after)
    key = (rows[limit - 1].created_at, rows[limit - 1].id) if len(rows) > limit else None
    return _model_views(session, rows[:limit]), key


# --- uploads and training --------------------------------------------------------------------------------------------------------------


def create_version(session: Session, model: str | UUID, form: NewVersion, *, caller: Caller, clock: Clock) -> VersionView:
    """Open version number max+1, `pending`, with one upload per file.

    Raises: NotFound; UnknownDataset; TokenizerMismatch; VersionNotReady for the parent; Resurrection for a parent that holds forgotten records,
    DatasetSuperseded for such a dataset version, ForgottenBytes for weights with the bytes of a version that does, or that was destroyed.
    """
    _check_files(form.files)
    found = _model(session, model, lock=True)
    _refuse_forgotten_bytes(session, form.files)
    parent = _clean(session, _version(session, found.id, form.parent)) if form.parent is not None else None
    inputs = [_input(session, ref) for ref in form.trained_on]
    judged = [_input(session, form.evaluated_on)] if form.evaluated_on is not None else []
    for one in (*inputs, *judged):
        _check_tokens(session, found, one)
    if {one.id for one in inputs} & {one.id for one in judged}:
        raise InvalidInput(detail="a dataset version that the model learned from cannot judge it; evaluated_on names another.")
    version_id, number = uuid7(clock), repository.next_number(session, found.id)
    repository.add(
        session, ModelVersion, id=version_id, tenant_id=found.tenant_id, model_id=found.id, number=number, status="pending",
        parent_id=parent.id if parent else None, fresh_start=form.fresh_start, recipe=dict(form.recipe) if form.recipe is not None else None,
        seeds=dict(form.seeds) if form.seeds is not None else None,
    )  # fmt: skip
    listed = [PublishFile(file.path, file.sha256, file.size_bytes, file.media_type) for file in form.files]
    repository.add_files(session, found.tenant_id, version_id, listed)
    role = "finetune" if parent else "train"
    roles = [*((one.id, role) for one in inputs), *((one.id, repository.EVALUATION) for one in judged)]
    repository.add_inputs(session, found.tenant_id, version_id, roles)
    audit.record(session, tenant_id=found.tenant_id, object_id=version_id, type="model_version.created", body={"by": caller.principal})
    return read_version_by_id(session, version_id)


def complete_version(
    session: Session, model: str | UUID, number: int, manifest: Mapping[str, Any] | None, *, caller: Caller, clock: Clock
) -> VersionView:
    """Say that every file was uploaded: the version becomes `checking` and control checks it. Raises NotFound, VersionNotReady."""
    found = _version(session, _model(session, model).id, number, lock=True)
    if found.status == "checking":
        return read_version_by_id(session, found.id)
    if found.status != "pending":
        raise VersionNotReady(version=number, status=found.status)
    repository.set_version(session, found.id, status="checking", manifest=dict(manifest) if manifest is not None else None)
    outbox.ring(session, tenant_id=caller.tenant_id, topic="version.ingest", ref=found.id)
    audit.record(session, tenant_id=caller.tenant_id, object_id=found.id, type="model_version.completed", body={"at": clock.now().isoformat()})
    return read_version_by_id(session, found.id)


def ingested(session: Session, version_id: UUID, *, manifest: Mapping[str, Any], manifest_digest: str, clock: Clock) -> VersionView:
    """Mark a checked upload `ready`; it becomes current where the model has none or its parent is current.

    Raises: NotFound; VersionNotReady; Resurrection when what it learned from was forgotten while it was checked, or its weights are those of a version
    that was; StoreDown when its blobs were deleted meanwhile: put them again.
    """
    found = repository.version_by_id(session, version_id)
    if found is None:
        raise NotFound
    model = _model(session, found.model_id, lock=True)
    found = _version(session, model.id, found.number, lock=True)
    if found.status != "checking":
        raise VersionNotReady(version=found.number, status=found.status)
    if repository.holding_forgotten(session, [found.id]):  # what it learned from, or its parent
        raise Resurrection(version=found.number)
    files = repository.files(session, [found.id])[found.id]
    _refuse_forgotten_bytes(session, files)
    repository.reference_objects(session, found.tenant_id, found.id, {file.sha256: file.size_bytes for file in files})
    repository.set_version(session, found.id, status="ready", manifest=dict(manifest), manifest_digest=manifest_digest)
    if model.current_version_id is None or model.current_version_id == found.parent_id:
        repository.move_current(session, model.id, model.current_version_id, found.id)
    body = {"manifest": manifest_digest, "at": clock.now().isoformat()}
    audit.record(session, tenant_id=found.tenant_id, object_id=found.id, type="model_version.ready", body=body)
    return read_version_by_id(session, found.id)


def ingest_failed(session: Session, version_id: UUID, error: dict[str, Any]) -> None:
    """Mark a version under check `failed` with a problem document."""
    found = repository.version_by_id(session, version_id, lock=True)
    if found is None or found.status != "checking":
        return
    repository.set_version(session, version_id, status="failed", error=error)
    audit.record(session, tenant_id=found.tenant_id, object_id=version_id, type="model_version.failed", body={"code": error.get("code")})


def training_run(session: Session, model: str | UUID, form: NewTrainingRun, *, caller: Caller, clock: Clock) -> UUID:
    """Insert a job of kind `train`, ring for it and return its id. `params` of the job is `{"recipe": ...}`.

    Raises: NotFound; UnknownDataset; VersionNotReady; UnsupportedTask; TokenizerMismatch; MissingLabels; InvalidInput for records of another size
    than the network takes; DatasetSuperseded when the dataset version holds erased records.
    """
    found = _model(session, model)
    held = _input(session, DatasetRef(form.dataset, form.dataset_version))
    adapter = repository.components(session, "dataset_adapter").get(repository.dataset_adapter(session, held.dataset_id))
    tasks = adapter.facts.get("tasks") if adapter else None
    if adapter and tasks and found.task not in tasks:
        raise UnsupportedTask(component=adapter.name, task=found.task, tasks=", ".join(sorted(tasks)))
    _check_tokens(session, found, held)
    if found.task in LABELLED and repository.unlabelled(session, held.id):
        column = repository.label_column(session, held.dataset_id)
        raise MissingLabels(dataset=held.number, column=column, task=found.task)
    architecture = repository.components(session, "architecture").get(found.architecture)
    _check_records(session, found, architecture, held)
    job_id = uuid7(clock)
    repository.add(
        session, Job, id=job_id, tenant_id=found.tenant_id, kind="train", state="queued", model_id=found.id,
        base_version_id=found.current_version_id, dataset_version_id=held.id, params={"recipe": dict(form.recipe)},
        seeds={"train": form.seed, "unlearn": form.seed + 1, "evaluate": form.seed + 2},
        queue=architecture.queue if architecture else "cpu", created_by=caller.principal,
    )  # fmt: skip
    outbox.ring(session, tenant_id=found.tenant_id, topic="job.ring", ref=job_id)
    body = {"model": str(found.id), "dataset_version": str(held.id), "by": caller.principal}
    audit.record(session, tenant_id=found.tenant_id, object_id=job_id, type="job.queued", body=body)
    log.info("job.queued", job_id=str(job_id), kind="train")
    return job_id


def _check_records(session: Session, model: Model, architecture: CatalogueEntry | None, held: DatasetVersion) -> None:
    """Raise InvalidInput where the dataset says of its records that they are of another size than the network is built for."""
    pairs: Mapping[str, str] = (architecture.facts.get("record_parameters") or {}) if architecture is not None else {}
    theirs, ours = repository.adapter_parameters(session, held.dataset_id), model.architecture_params
    for name, own in sorted(pairs.items()):
        if name in theirs and own in ours and theirs[name] != ours[own]:
            raise InvalidInput(
                detail=f"the dataset has {name} {theirs[name]}, and model {model.name} is built for {own} {ours[own]}: they must be equal."
            )


# --- reading ---------------------------------------------------------------------------------------------------------------------------


def read_version(session: Session, model: str | UUID, number: int) -> VersionView:
    """Return one version with files, aliases and what it learned from. Raises NotFound."""
    found = _model(session, model)
    return _version_views(session, found, [_version(session, found.id, number)])[0]


def read_version_by_id(session: Session, version_id: UUID) -> VersionView:
    """Return one version by its id. Raises NotFound."""
    found = repository.version_by_id(session, version_id)
    if found is None:
        raise NotFound
    return _version_views(session, _model(session, found.model_id), [found])[0]


def list_versions(session: Session, model: str | UUID, *, limit: int = 50, after: int | None = None) -> tuple[list[VersionView], int | None]:
    """Return versions with numbers under `after`, newest first, and the number to continue after. Raises NotFound."""
    found = _model(session, model)
    rows = repository.versions(session, found.id, limit + 1, after)
    return _version_views(session, found, rows[:limit]), rows[limit - 1].number if len(rows) > limit else None


def lineage(session: Session, model: str | UUID, number: int) -> list[Ancestor]:
    """Return the version, everything above it up to the first fresh start, and everything below it. Raises NotFound."""
    rows = repository.branch(session, _version(session, _model(session, model).id, number).id)
    learned = repository.learned_from(session, [row["id"] for row in rows])
    return [Ancestor(**row, trained_on=tuple(learned[row["id"]])) for row in rows]


# --- aliases ---------------------------------------------------------------------------------------------------------------------------


def set_alias(
    session: Session, model: str | UUID, alias: str, number: int, *, expected_etag: int | None, create: bool, caller: Caller, clock: Clock
) -> AliasView:
    """Point an alias at a version: `create` for `If-None-Match: *`, else `expected_etag` from If-Match.

    Raises: NotFound; InvalidInput; AliasInUse; PreconditionRequired; PreconditionFailed; VersionNotReady; Resurrection.
    """
    if not _ALIAS.fullmatch(alias):
        raise InvalidInput(detail="an alias has lower-case letters, digits, dots, dashes and underscores, at most 64.")
    found = _model(session, model, lock=True)
    version = _clean(session, _version(session, found.id, number))
    held = repository.alias(session, found.id, alias, lock=True)
    if held is not None and create:
        raise AliasInUse(alias=alias)
    if held is None and expected_etag is not None:
        raise PreconditionFailed
    if not create:
        _match(held.etag if held else None, expected_etag)
    if held is None:
        repository.add(session, ModelAlias, tenant_id=found.tenant_id, model_id=found.id, alias=alias, version_id=version.id)
    else:
        repository.move_alias(session, found.id, alias, version.id)
        repository.close_history(session, found.id, alias)
    line = {"model_id": found.id, "alias": alias, "version_id": version.id, "by": caller.principal}
    repository.add(session, AliasHistory, id=uuid7(clock), tenant_id=found.tenant_id, **line)
    body = {"model": str(found.id), "alias": alias, "version": str(version.id), "by": caller.principal}
    audit.record(session, tenant_id=found.tenant_id, object_id=found.id, type="alias.set", body=body)
    return read_alias(session, found.id, alias)


def read_alias(session: Session, model: str | UUID, alias: str) -> AliasView:
    """Return an alias. Raises NotFound."""
    views = [view for view in list_aliases(session, model) if view.alias == alias]
    if not views:
        raise NotFound
    return views[0]


def list_aliases(session: Session, model: str | UUID) -> list[AliasView]:
    """Return the aliases of a model by name. Raises NotFound."""
    found = _model(session, model)
    rows = repository.aliases(session, found.id)
    numbers = repository.numbers(session, [row.version_id for row in rows])
    return [AliasView(model=found.name, alias=row.alias, version=numbers[row.version_id], version_id=row.version_id, etag=row.etag) for row in rows]


def delete_alias(session: Session, model: str | UUID, alias: str, *, expected_etag: int | None, caller: Caller) -> None:
    """Remove an alias; its history stays. Raises NotFound, PreconditionRequired, PreconditionFailed."""
    found = _model(session, model, lock=True)
    held = repository.alias(session, found.id, alias, lock=True)
    if held is None:
        raise NotFound
    _match(held.etag, expected_etag)
    repository.drop_alias(session, found.id, alias)
    repository.close_history(session, found.id, alias)
    body = {"model": str(found.id), "alias": alias, "by": caller.principal}
    audit.record(session, tenant_id=found.tenant_id, object_id=found.id, type="alias.deleted", body=body)


def at(session: Session, model: str | UUID, time: datetime, alias: str) -> VersionView:
    """Return the version that an alias named at a moment. Raises NotFound."""
    version_id = repository.named_at(session, _model(session, model).id, alias, time)
    if version_id is None:
        raise NotFound
    return read_version_by_id(session, version_id)


# --- shared steps ----------------------------------------------------------------------------------------------------------------------


def _check_tokens(session: Session, model: Model, version: DatasetVersion) -> None:
    """Raise TokenizerMismatch where a language model would read the records as other tokens."""
    if model.task != "language_model":
        return
    held = repository.dataset_of(session, version.dataset_id)
    check_alike(model=model.name, architecture=model.architecture, network=model.architecture_params, dataset=held.name, adapter=held.adapter_params)


def _match(etag: int | None, expected: int | None) -> None:
    if expected is None:
        raise PreconditionRequired
    if etag != expected:
        raise PreconditionFailed


def _model(session: Session, model: str | UUID, *, lock: bool = False) -> Model:
    found = repository.find(session, model, lock=lock)
    if found is None:
        raise NotFound
    return found


def _version(session: Session, model_id: UUID, number: int, *, lock: bool = False) -> ModelVersion:
    found = repository.version(session, model_id, number, lock=lock)
    if found is None:
        raise NotFound
    return found


def _clean(session: Session, version: ModelVersion) -> ModelVersion:
    """Return a version that something may point to."""
    if repository.holding_forgotten(session, [version.id]):
        raise Resurrection(version=version.number)
    if version.status != "ready":
        raise VersionNotReady(version=version.number, status=version.status)
    return version


def _refuse_forgotten_bytes(session: Session, files: Sequence[FileForm]) -> None:
    """Raise ForgottenBytes for weights that are those of a version which holds forgotten records, is quarantined, or was destroyed."""
    weights = [file.sha256 for file in files if file.path.endswith(WEIGHTS)]
    same = repository.with_bytes_of(session, weights) if weights else []
    bad = repository.holding_forgotten(session, [row.id for row in same]) if same else set()
    for row in same:
        if row.id in bad or row.status != "ready":
            raise ForgottenBytes(version=row.number, of=row.model)


def _input(session: Session, ref: DatasetRef) -> DatasetVersion:
    """Return a dataset version that a model may learn from."""
    found = repository.dataset_version(session, ref.dataset, ref.version)
    if found is None:
        raise UnknownDataset(dataset=f"{ref.dataset} version {ref.version}")
    if found.status in {"retired", "purged"} or repository.dataset_holds_erased(session, found.id):
        raise DatasetSuperseded(version=ref.version, dataset=ref.dataset, status=found.status)
    if found.status != "ready":
        raise VersionNotReady(version=ref.version, status=found.status)
    return found


def _check_files(files: Sequence[FileForm]) -> None:
    if not files:
        raise InvalidInput(detail="a version needs at least one file.")
    if len({file.path for file in files}) != len(files):
        raise InvalidInput(detail="two files have the same path.")
    for file in files:
        if not _PATH.fullmatch(file.path):
            raise InvalidInput(detail="a file path has letters, digits, dots, dashes and single slashes only.")
        if not re.fullmatch(r"[0-9a-f]{64}", file.sha256) or file.size_bytes < 0:
            raise InvalidInput(detail="a file needs its SHA-256 (64 lower-case hexadecimal digits) and its size.")


def _model_views(session: Session, rows: Sequence[Model]) -> list[ModelView]:
    numbers = repository.numbers(session, [row.current_version_id for row in rows if row.current_version_id is not None])
    return [
        ModelView(
            id=row.id,
            name=row.name,
            task=row.task,
            architecture=row.architecture,
            architecture_params=row.architecture_params,
            current_version=numbers.get(row.current_version_id) if row.current_version_id is not None else None,
            current_version_id=row.current_version_id,
            etag=row.etag,
            created_at=row.created_at,
        )
        for row in rows
    ]


def _version_views(session: Session, model: Model, rows: Sequence[ModelVersion]) -> list[VersionView]:
    ids = [row.id for row in rows]
    files, learned, bad = repository.files(session, ids), repository.learned_from(session, ids), repository.holding_forgotten(session, ids)
    judged = repository.judged_on(session, ids)
    names: dict[UUID, list[str]] = {}
    for alias in repository.aliases(session, model.id):
        names.setdefault(alias.version_id, []).append(alias.alias)
    return [
        VersionView(
            id=row.id,
            model=model.name,
            model_id=model.id,
            number=row.number,
            parent_id=row.parent_id,
            job_id=row.job_id,
            status=row.status,
            guarantee=row.guarantee,
            fresh_start=row.fresh_start,
            recipe=row.recipe,
            manifest=row.manifest,
            manifest_digest=row.manifest_digest,
            code_digest=row.code_digest,
            seeds=row.seeds,
            error=row.error,
            destroy_by=row.destroy_by,
            destroyed_at=row.destroyed_at,
            created_at=row.created_at,
            current=row.id == model.current_version_id,
            aliases=tuple(names.get(row.id, ())),
            files=tuple(files[row.id]),
            trained_on=tuple(learned[row.id]),
            evaluated_on=tuple(judged[row.id]),
            contains_forgotten=row.id in bad,
            uploads=_uploads(row, files[row.id]),
        )
        for row in rows
    ]


def _uploads(row: ModelVersion, files: Sequence[FileForm]) -> tuple[Upload, ...]:
    if row.status != "pending":
        return ()
    return tuple(Upload(file.path, f"uploads/{row.id}/{file.path}", file.size_bytes, file.sha256) for file in files)
