"""Datasets, their versions, the subject index, and erasure from a dataset. Nothing here commits."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.audit import log as audit
from services.clock import Clock, uuid7
from services.datasets import purge, repository
from services.datasets.forms import (
    DatasetVersionView,
    DatasetView,
    FileForm,
    Indexed,
    Key,
    NewDataset,
    SubjectRow,
    TrainedModel,
    Upload,
    UploadChecks,
)
from services.datasets.identifiers import RULE, record_digest, subject_digest
from services.db import holds, outbox
from services.db.tables import Dataset, DatasetVersion
from services.errors import (
    DatasetSuperseded,
    DuplicateName,
    ForgottenFile,
    InvalidInput,
    NotFound,
    ParentMoved,
    RecordsNotFound,
    UnknownComponent,
    VersionNotReady,
)
from services.series import Windowed
from services.tenants.caller import Caller
from services.tenants.keys import KeyRing, tenant_key

log = structlog.get_logger()
CHUNK = 50_000
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9][A-Za-z0-9._-]{0,99}){0,4}")


def create_dataset(session: Session, form: NewDataset, *, caller: Caller, clock: Clock) -> DatasetView:
    """Register a dataset. Raises UnknownComponent for the adapter, DuplicateName."""
    known = repository.adapters(session)
    if form.adapter not in known:
        raise UnknownComponent(kind="dataset adapter", name=form.adapter, known=", ".join(sorted(known)) or "none yet")
    facts = known[form.adapter].facts
    dataset_id = uuid7(clock)
    values = {
        "id": dataset_id,
        "tenant_id": caller.tenant_id,
        "name": form.name,
        "adapter": form.adapter,
        "adapter_params": dict(form.adapter_params),
        "label_column": form.label_column or form.adapter_params.get("label_column") or facts.get("label_column"),
        "subject_types": list(form.subject_types),
    }
    try:
        with session.begin_nested():
            repository.add(session, Dataset, **values)
    except IntegrityError as error:
        raise DuplicateName(name=form.name) from error
    audit.record(session, tenant_id=caller.tenant_id, object_id=dataset_id, type="dataset.created", body={"by": caller.principal})
    return read_dataset(session, dataset_id)


def read_dataset(session: Session, dataset: str | UUID) -> DatasetView:
    """Return a dataset by id or name. Raises NotFound."""
    return _views(session, [_dataset(session, dataset)])[0]


def upload_checks(session: Session, dataset_id: UUID) -> UploadChecks:
    """Return what every file of a version of the dataset must hold. Raises NotFound."""
    found = _dataset(session, dataset_id)
    sides = [found.adapter_params.get(name) for name in ("height", "width", "channels")] if found.adapter == "image" else []
    whole = [int(side) for side in sides if isinstance(side, int)]
    series = _windowed(found) if found.adapter == "series" else None
    label = found.label_column if series is None or series.horizon == 1 else None
    return UploadChecks(label, repository.has_numbers(session, found.id), math.prod(whole) if len(whole) == 3 else None, series)


def _windowed(found: Dataset) -> Windowed:
    """Return how the records of a dataset of series hold their windows."""
    given = found.adapter_params
    sizes = (int(given["length"]), int(given.get("channels", 1)), int(given.get("horizon", 1)))
    return Windowed(*sizes, given.get("past_column", "past"), given.get("label_column", "target"), given.get("time_column"))


def list_datasets(session: Session, *, limit: int = 50, after: Key | None = None) -> tuple[list[DatasetView], Key | None]:
    """Return a page of datasets, newest first, and the key to continue after."""
    rows = repository.page(session, limit + 1, after)
    key = (rows[limit - 1].created_at, rows[limit - 1].id) if len(rows) > limit else None
    return _views(session, rows[:limit]), key


def create_version(
    session: Session, dataset: str | UUID, files: Sequence[FileForm], *, caller: Caller, clock: Clock, parent: int | None = None
) -> DatasetVersionView:
    """Open version number max+1, `pending`, with one upload per file.

    Raises: NotFound; InvalidInput for bad or double paths; ForgottenFile for the bytes of a superseded version of another dataset.
    """
    check_files(files)
    found = _dataset(session, dataset, lock=True)
    _refuse_forgotten_files(session, found, files)
    version_id = uuid7(clock)
    above = _version(session, found.id, parent).id if parent is not None else None
    _insert_version(session, found, version_id, status="pending", parent_id=above, number=repository.next_number(session, found.id))
    repository.put_files(session, caller.tenant_id, version_id, files)
    audit.record(session, tenant_id=caller.tenant_id, object_id=version_id, type="dataset_version.created", body={"by": caller.principal})
    return read_version_by_id(session, version_id)


def complete_version(session: Session, dataset: str | UUID, number: int, *, caller: Caller, clock: Clock) -> DatasetVersionView:
    """Say that every file was uploaded: the version becomes `checking` and control ingests it. Raises NotFound, VersionNotReady."""
    found = _dataset(session, dataset)
    version = _version(session, found.id, number, lock=True)
    if version.status == "checking":
        return read_version_by_id(session, version.id)
    if version.status != "pending":
        raise VersionNotReady(version=number, status=version.status)
    repository.set_version(session, version.id, status="checking")
    outbox.ring(session, tenant_id=caller.tenant_id, topic="dataset.ingest", ref=version.id)
    audit.record(session, tenant_id=caller.tenant_id, object_id=version.id, type="dataset_version.completed", body={"at": clock.now().isoformat()})
    return read_version_by_id(session, version.id)


def read_version(session: Session, dataset: str | UUID, number: int) -> DatasetVersionView:
    """Return one version. Raises NotFound."""
    found = _dataset(session, dataset)
    return _version_views(session, found, [_version(session, found.id, number)])[0]


def read_version_by_id(session: Session, version_id: UUID) -> DatasetVersionView:
    """Return one version by its id. Raises NotFound."""
    version = repository.version_by_id(session, version_id)
    if version is None:
        raise NotFound
    return _version_views(session, _dataset(session, version.dataset_id), [version])[0]


def list_versions(session: Session, dataset: str | UUID, *, limit: int = 50, after: int | None = None) -> tuple[list[DatasetVersionView], int | None]:
    """Return versions with numbers under `after`, newest first, and the number to continue after. Raises NotFound."""
    found = _dataset(session, dataset)
    rows = repository.versions(session, found.id, limit + 1, after)
    return _version_views(session, found, rows[:limit]), rows[limit - 1].number if len(rows) > limit else None


def models_of_version(session: Session, dataset: str | UUID, number: int) -> list[TrainedModel]:
    """Return the model versions that learned from a dataset version. Raises NotFound."""
    return repository.trained_on(session, _version(session, _dataset(session, dataset).id, number).id)


def index_subjects(session: Session, dataset: str | UUID, number: int, rows: Sequence[SubjectRow], *, caller: Caller, keys: KeyRing) -> Indexed:
    """Put persons' keyed digests into the subject index (upsert).

    Raises: NotFound; DatasetSuperseded; VersionNotReady; RecordsNotFound; InvalidInput.
    """
    found = _dataset(session, dataset)
    version = _version(session, found.id, number)
    if version.status in {"retired", "purged"}:
        raise DatasetSuperseded(version=number, dataset=found.name, status=version.status)
    if version.status != "ready":
        raise VersionNotReady(version=number, status=version.status)
    if found.subject_types and any(one.type not in found.subject_types for row in rows for one in row.identifiers):
        raise InvalidInput(detail=f"an identifier's type is not among the dataset's subject types ({', '.join(found.subject_types)}).")
    named = {row.record_id for row in rows}
    missing = len(named) - repository.held(session, found.id, number, sorted(named))
    if missing:
        raise RecordsNotFound(count=missing, dataset=f"{found.name} version {number}")
    key = tenant_key(session, caller.tenant_id, keys.kek)
    pairs = [(subject_digest(key, one), row.record_id) for row in rows for one in row.identifiers]
    if pairs:
        repository.upsert_subjects(session, found, [digest for digest, _ in pairs], [record for _, record in pairs], RULE)
        for hold_id, person in holds.of_persons(session, {digest for digest, _ in pairs}):
            kept = [(found.id, record_digest(key, found.id, record)) for digest, record in pairs if digest == person]
            holds.add_records(session, caller.tenant_id, hold_id, kept)
    return Indexed(indexed=len(pairs), total=repository.subjects(session, found.id))


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

    A record that the version before held stays one row; one that is absent now ends there, and its id is not used again.

    Raises: NotFound; VersionNotReady; InvalidInput for double, empty or ended record ids, or when a later version is ready already; ForgottenFile;
    StoreDown when a blob was deleted meanwhile: put it again.
    """
    found = repository.version_by_id(session, version_id)
    if found is None:
        raise NotFound
    _dataset(session, found.dataset_id, lock=True)
    if found.status != "checking":
        raise VersionNotReady(version=found.number, status=found.status)
    if repository.later_ready(session, found.dataset_id, found.number):
        raise InvalidInput(detail="a later version of this dataset is ready already; upload the records as a new version.")
    _refuse_forgotten_files(session, _dataset(session, found.dataset_id), files)
    rows = list(records)
    ids = [record for record, _ in rows]
    _check_ids(ids)
    written = 0
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        written += repository.upsert_records(session, found, [record for record, _ in part], [label for _, label in part])
    if written != len(rows):
        raise InvalidInput(detail=f"{len(rows) - written} record ids were in an earlier version and ended there; a record id is used once.")
    absent = repository.open_before(session, found).difference(ids)
    repository.end_records(session, found.dataset_id, found.number, sorted(absent))
    repository.put_files(session, found.tenant_id, found.id, files)
    repository.reference_objects(session, found.tenant_id, found.id, {file.sha256: file.size_bytes for file in files})
    repository.set_version(session, found.id, status="ready", records=len(rows), manifest_digest=manifest_digest)
    body = {"records": len(rows), "manifest": manifest_digest, "at": clock.now().isoformat()}
    audit.record(session, tenant_id=found.tenant_id, object_id=found.id, type="dataset_version.ready", body=body)
    log.info("dataset_version.ready", version_id=str(found.id), records=len(rows))
    return len(rows)


def ingest_failed(session: Session, version_id: UUID, error: dict[str, Any]) -> None:
    """Mark a version under check `failed` with a problem document."""
    found = repository.version_by_id(session, version_id, lock=True)
    if found is None or found.status != "checking":
        return
    repository.set_version(session, version_id, status="failed", error=error)
    audit.record(session, tenant_id=found.tenant_id, object_id=version_id, type="dataset_version.failed", body={"code": error.get("code")})


def erase(
    session: Session,
    dataset_id: UUID,
    record_ids: Sequence[str],
    *,
    files: Sequence[FileForm],
    manifest_digest: str,
    job_id: UUID,
    clock: Clock,
) -> DatasetVersionView:
    """Open the next version without the records, `ready` at once, end the records' presence there, and retire the versions that hold them.

    `files` were written from the job's dataset version without the records and are in the store. Where no named record is present any more,
    nothing is written and the newest ready version is returned.

    Raises:
        NotFound: there is no such dataset.
        ParentMoved: the newest ready version is not the job's dataset version any more; write the files again from it.
    """
    found = _dataset(session, dataset_id, lock=True)
    latest = repository.latest_ready(session, [dataset_id]).get(dataset_id)
    if latest is None:
        raise NotFound
    gone = repository.present_now(session, dataset_id, record_ids)
    if gone == 0:
        return read_version_by_id(session, latest.id)
    job = repository.job(session, job_id)
    if latest.id != job.dataset_version_id:
        raise ParentMoved(job=job_id)
    version_id = uuid7(clock)
    number = repository.next_number(session, dataset_id)
    left = (latest.records or 0) - gone
    _insert_version(
        session, found, version_id, status="ready", parent_id=latest.id, number=number,
        records=left, manifest_digest=manifest_digest, produced_by_job_id=job_id,
    )  # fmt: skip
    repository.end_records(session, dataset_id, number, record_ids)
    repository.put_files(session, found.tenant_id, version_id, files)
    repository.reference_objects(session, found.tenant_id, version_id, {file.sha256: file.size_bytes for file in files})
    retired = purge.retire(session, dataset_id, number, job, clock=clock)
    body = {"dataset": str(dataset_id), "erased": gone, "left": left, "job": str(job_id), "retired": [str(one) for one in retired]}
    audit.record(session, tenant_id=found.tenant_id, object_id=version_id, type="dataset_version.erased", body=body)
    return read_version_by_id(session, version_id)


def check_files(files: Sequence[FileForm]) -> None:
    """Raise InvalidInput unless there are files, with distinct safe paths, hexadecimal digests and sizes that are not negative."""
    if not files:
        raise InvalidInput(detail="a version needs at least one file.")
    if len({file.path for file in files}) != len(files):
        raise InvalidInput(detail="two files have the same path.")
    for file in files:
        if not _PATH.fullmatch(file.path):
            raise InvalidInput(detail="a file path has letters, digits, dots, dashes and single slashes only.")
        if not re.fullmatch(r"[0-9a-f]{64}", file.sha256) or file.size_bytes < 0:
            raise InvalidInput(detail="a file needs its SHA-256 (64 lower-case hexadecimal digits) and its size.")


def _refuse_forgotten_files(session: Session, dataset: Dataset, files: Sequence[FileForm]) -> None:
    """Raise ForgottenFile for the bytes of a superseded version of another dataset; within one, an ended record id is refused by itself."""
    for row in repository.forgotten_files(session, dataset.id, [file.sha256 for file in files])[:1]:
        raise ForgottenFile(version=row.number, of=row.dataset)


def _check_ids(ids: list[str]) -> None:
    if not ids:
        raise InvalidInput(detail="the dataset version holds no record.")
    if len(set(ids)) != len(ids):
        raise InvalidInput(detail=f"{len(ids) - len(set(ids))} record ids occur twice; record_id must be unique.")
    if any(not one or "\x00" in one or len(one) > 256 for one in ids):
        raise InvalidInput(detail="a record id is empty, longer than 256 characters, or holds a zero byte.")


def _dataset(session: Session, dataset: str | UUID, *, lock: bool = False) -> Dataset:
    found = repository.find(session, dataset, lock=lock)
    if found is None:
        raise NotFound
    return found


def _version(session: Session, dataset_id: UUID, number: int, *, lock: bool = False) -> DatasetVersion:
    found = repository.version(session, dataset_id, number, lock=lock)
    if found is None:
        raise NotFound
    return found


def _insert_version(session: Session, found: Dataset, version_id: UUID, **values: Any) -> None:
    repository.add(session, DatasetVersion, id=version_id, tenant_id=found.tenant_id, dataset_id=found.id, **values)


def _views(session: Session, rows: Sequence[Dataset]) -> list[DatasetView]:
    latest = repository.latest_ready(session, [row.id for row in rows])
    return [
        DatasetView(
            id=row.id,
            name=row.name,
            adapter=row.adapter,
            adapter_params=row.adapter_params,
            label_column=row.label_column,
            subject_types=tuple(row.subject_types),
            created_at=row.created_at,
            latest_version=latest[row.id].number if row.id in latest else None,
        )
        for row in rows
    ]


def _version_views(session: Session, dataset: Dataset, rows: Sequence[DatasetVersion]) -> list[DatasetVersionView]:
    files = repository.files(session, [row.id for row in rows])
    parents = repository.numbers(session, [row.parent_id for row in rows if row.parent_id is not None])
    return [
        DatasetVersionView(
            id=row.id,
            dataset=dataset.name,
            dataset_id=dataset.id,
            number=row.number,
            parent=parents.get(row.parent_id) if row.parent_id is not None else None,
            status=row.status,
            records=row.records,
            manifest_digest=row.manifest_digest,
            produced_by_job_id=row.produced_by_job_id,
            error=row.error,
            created_at=row.created_at,
            destroy_by=row.destroy_by,
            purged_at=row.purged_at,
            files=tuple(files[row.id]),
            uploads=tuple(Upload(file.path, f"uploads/{row.id}/{file.path}", file.size_bytes, file.sha256) for file in files[row.id])
            if row.status == "pending"
            else (),
        )
        for row in rows
    ]
