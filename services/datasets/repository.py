"""SQL of datasets, their records and the subject index. Every statement runs inside the caller's transaction and tenant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from services.datasets.forms import FileForm, Hit, Key, TrainedModel
from services.db import objects
from services.db.tables import Base, CatalogueEntry, Dataset, DatasetFile, DatasetVersion, Job, ObjectRef, Policy, SubjectRecord

FRESH = {"populate_existing": True}


def add(session: Session, table: type[Base], **values: Any) -> None:
    """Insert one row."""
    session.execute(insert(table).values(**values))


def adapters(session: Session) -> dict[str, CatalogueEntry]:
    """Return the dataset adapters of the catalogue by name, the newest entry of each."""
    query = select(CatalogueEntry).where(CatalogueEntry.kind == "dataset_adapter").order_by(CatalogueEntry.seen_at)
    return {entry.name: entry for entry in session.scalars(query)}


def find(session: Session, dataset: str | UUID, *, lock: bool = False) -> Dataset | None:
    """Return a dataset by id or name."""
    query = select(Dataset).where(Dataset.id == dataset if isinstance(dataset, UUID) else Dataset.name == dataset).execution_options(**FRESH)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def page(session: Session, limit: int, after: Key | None) -> list[Dataset]:
    """Return at most `limit` datasets older than `after`, newest first."""
    query = select(Dataset).order_by(Dataset.created_at.desc(), Dataset.id.desc()).limit(limit)
    if after is not None:
        query = query.where(tuple_(Dataset.created_at, Dataset.id) < tuple_(*after))
    return list(session.scalars(query))


def latest_ready(session: Session, dataset_ids: Sequence[UUID]) -> dict[UUID, DatasetVersion]:
    """Return the newest ready version of each dataset that has one."""
    query = (
        select(DatasetVersion)
        .where(DatasetVersion.dataset_id.in_(dataset_ids), DatasetVersion.status == "ready")
        .order_by(DatasetVersion.dataset_id, DatasetVersion.number.desc())
        .ext(distinct_on(DatasetVersion.dataset_id))
        .execution_options(**FRESH)
    )
    return {row.dataset_id: row for row in session.scalars(query)}


def next_number(session: Session, dataset_id: UUID) -> int:
    """Return max(number)+1; safe under the lock of the dataset row."""
    return (session.scalar(select(func.max(DatasetVersion.number)).where(DatasetVersion.dataset_id == dataset_id)) or 0) + 1


def version(session: Session, dataset_id: UUID, number: int, *, lock: bool = False) -> DatasetVersion | None:
    """Return a version by number."""
    query = select(DatasetVersion).where(DatasetVersion.dataset_id == dataset_id, DatasetVersion.number == number).execution_options(**FRESH)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def version_by_id(session: Session, version_id: UUID, *, lock: bool = False) -> DatasetVersion | None:
    """Return a version by id."""
    query = select(DatasetVersion).where(DatasetVersion.id == version_id).execution_options(**FRESH)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def versions(session: Session, dataset_id: UUID, limit: int, after: int | None) -> list[DatasetVersion]:
    """Return at most `limit` versions with numbers under `after`, newest first."""
    query = select(DatasetVersion).where(DatasetVersion.dataset_id == dataset_id).order_by(DatasetVersion.number.desc()).limit(limit)
    return list(session.scalars(query if after is None else query.where(DatasetVersion.number < after)))


def numbers(session: Session, version_ids: Sequence[UUID]) -> dict[UUID, int]:
    """Return the numbers of versions by id."""
    rows = session.execute(select(DatasetVersion.id, DatasetVersion.number).where(DatasetVersion.id.in_(version_ids)))
    return {row.id: row.number for row in rows}


def files(session: Session, version_ids: Sequence[UUID]) -> dict[UUID, list[FileForm]]:
    """Return the files of versions, by path."""
    held: dict[UUID, list[FileForm]] = {version_id: [] for version_id in version_ids}
    for row in session.scalars(select(DatasetFile).where(DatasetFile.version_id.in_(version_ids)).order_by(DatasetFile.path)):
        held[row.version_id].append(FileForm(path=row.path, size_bytes=row.size_bytes, sha256=row.digest))
    return held


def put_files(session: Session, tenant_id: UUID, version_id: UUID, listed: Sequence[FileForm]) -> None:
    """Enter the files of a version; a path that is there gets the new digest and size."""
    rows = [{"tenant_id": tenant_id, "version_id": version_id, "path": f.path, "digest": f.sha256, "size_bytes": f.size_bytes} for f in listed]
    statement = upsert(DatasetFile)
    changed = {"digest": statement.excluded.digest, "size_bytes": statement.excluded.size_bytes}
    session.execute(statement.on_conflict_do_update(index_elements=["tenant_id", "version_id", "path"], set_=changed), rows)


def reference_objects(session: Session, tenant_id: UUID, version_id: UUID, listed: Mapping[str, int]) -> None:
    """Say that a version needs these blobs (digest: size), which are in the store; a blob not known yet is entered.

    Raises: StoreDown for a blob that is being deleted, or was deleted since it was put.
    """
    objects.enter(session, listed)
    objects.require_live(session, listed)
    rows = [{"tenant_id": tenant_id, "digest": d, "owner_kind": "dataset_version", "owner_id": version_id} for d in sorted(listed)]
    if rows:
        session.execute(insert(ObjectRef), rows)


def forgotten_files(session: Session, dataset_id: UUID, digests: Sequence[str]) -> Sequence[Any]:
    """Return superseded versions of the tenant's other datasets that have a file with one of these digests, and no version in use has: dataset, number."""
    statement = text("""
        SELECT s.name AS dataset, v.number FROM dataset_file f JOIN dataset_version v ON v.id = f.version_id JOIN dataset s ON s.id = v.dataset_id
         WHERE f.digest = ANY(:digests) AND v.status IN ('retired', 'purged') AND v.dataset_id <> :dataset AND NOT EXISTS (
               SELECT 1 FROM dataset_file g JOIN dataset_version w ON w.id = g.version_id WHERE g.digest = f.digest AND w.status = 'ready')
         ORDER BY s.name, v.number
        """)
    return session.execute(statement, {"digests": list(digests), "dataset": dataset_id}).all()


def retire(session: Session, dataset_id: UUID, number: int, after_s: float | None) -> dict[UUID, datetime | None]:
    """Retire the ready versions that hold a record which version `number` has ended, to be destroyed `after_s` from now (None: kept); return their dates."""
    statement = text("""
        UPDATE dataset_version v SET status = 'retired',
               destroy_by = CASE WHEN CAST(:after AS float) IS NULL THEN NULL ELSE clock_timestamp() + make_interval(secs => CAST(:after AS float)) END
         WHERE v.dataset_id = :dataset AND v.number < :number AND v.status = 'ready' AND EXISTS (SELECT 1 FROM dataset_record r
               WHERE r.tenant_id = v.tenant_id AND r.dataset_id = v.dataset_id AND r.present @> v.number AND upper(r.present) = :number)
         RETURNING v.id, v.number, v.destroy_by
        """)
    rows = session.execute(statement, {"dataset": dataset_id, "number": number, "after": after_s}).all()
    return {row.id: row.destroy_by for row in sorted(rows, key=lambda row: row.number)}


def policy(session: Session, policy_id: UUID) -> Policy:
    """Return a policy version."""
    return session.scalars(select(Policy).where(Policy.id == policy_id)).one()


def upsert_records(session: Session, found: DatasetVersion, ids: list[str], labels: list[str | None]) -> int:
    """Enter the records of a version and return how many rows were written; a record whose presence has ended is left alone."""
    statement = text("""
        INSERT INTO dataset_record AS r (tenant_id, dataset_id, record_id, label, present)
        SELECT :tenant, :dataset, x.id, x.label, int4range(:number, NULL)
          FROM unnest(CAST(:ids AS text[]), CAST(:labels AS text[])) AS x(id, label)
        ON CONFLICT (tenant_id, dataset_id, record_id) DO UPDATE SET label = excluded.label WHERE upper_inf(r.present)
        """)
    values = {"tenant": found.tenant_id, "dataset": found.dataset_id, "number": found.number, "ids": ids, "labels": labels}
    return _count(session.execute(statement, values))


def open_before(session: Session, found: DatasetVersion) -> set[str]:
    """Return the ids of the records that entered before a version and have not ended."""
    statement = text("SELECT record_id FROM dataset_record WHERE dataset_id = :dataset AND upper_inf(present) AND lower(present) < :number")
    return set(session.scalars(statement, {"dataset": found.dataset_id, "number": found.number}))


def end_records(session: Session, dataset_id: UUID, number: int, ids: Sequence[str]) -> int:
    """End the presence of named records at a version number; return how many were present."""
    statement = text("""
        UPDATE dataset_record SET present = int4range(lower(present), :number)
         WHERE dataset_id = :dataset AND record_id = ANY(:ids) AND upper_inf(present)
        """)
    return _count(session.execute(statement, {"dataset": dataset_id, "number": number, "ids": list(ids)}))


def present_now(session: Session, dataset_id: UUID, ids: Sequence[str]) -> int:
    """Return how many of the named records the dataset still holds."""
    statement = text("SELECT count(*) FROM dataset_record WHERE dataset_id = :dataset AND record_id = ANY(:ids) AND upper_inf(present)")
    return session.execute(statement, {"dataset": dataset_id, "ids": list(ids)}).scalar_one()


def later_ready(session: Session, dataset_id: UUID, number: int) -> bool:
    """Say whether a version above `number` is ready."""
    query = select(DatasetVersion.id).where(DatasetVersion.dataset_id == dataset_id, DatasetVersion.number > number, DatasetVersion.status == "ready")
    return session.scalar(query.limit(1)) is not None


def set_version(session: Session, version_id: UUID, **values: Any) -> None:
    """Write columns of a version."""
    session.execute(update(DatasetVersion).where(DatasetVersion.id == version_id).values(**values), execution_options={"synchronize_session": False})


def job(session: Session, job_id: UUID) -> Job:
    """Return a job as it stands."""
    return session.scalars(select(Job).where(Job.id == job_id).execution_options(**FRESH)).one()


def serving(session: Session, version_id: UUID) -> DatasetVersion | None:
    """Return a version if it is ready, else the newest ready version of its dataset, if there is one."""
    found = version_by_id(session, version_id)
    if found is None or found.status == "ready":
        return found
    return latest_ready(session, [found.dataset_id]).get(found.dataset_id)


def held(session: Session, dataset_id: UUID, number: int, ids: Sequence[str]) -> int:
    """Return how many of the named records a version holds."""
    statement = text("""SELECT count(*) FROM dataset_record
        WHERE dataset_id = :dataset AND record_id = ANY(CAST(:ids AS text[])) AND present @> CAST(:number AS int)""")
    return session.execute(statement, {"dataset": dataset_id, "number": number, "ids": list(ids)}).scalar_one()


def upsert_subjects(session: Session, dataset: Dataset, digests: list[bytes], ids: list[str], key_id: int) -> int:
    """Enter pairs of keyed digest and record; return how many were new."""
    statement = text("""
        INSERT INTO subject_record (tenant_id, subject_hmac, dataset_id, record_id, key_id)
        SELECT DISTINCT CAST(:tenant AS uuid), x.digest, CAST(:dataset AS uuid), x.id, CAST(:key AS int)
          FROM unnest(CAST(:digests AS bytea[]), CAST(:ids AS text[])) AS x(digest, id)
        ON CONFLICT DO NOTHING
        """)
    values = {"tenant": dataset.tenant_id, "dataset": dataset.id, "key": key_id, "digests": digests, "ids": ids}
    return _count(session.execute(statement, values))


def subjects(session: Session, dataset_id: UUID) -> int:
    """Return how many pairs the subject index holds for a dataset."""
    return session.execute(select(func.count()).select_from(SubjectRecord).where(SubjectRecord.dataset_id == dataset_id)).scalar_one()


_HIT = "SELECT r.dataset_id, r.record_id, r.label, lower(r.present) AS first, upper(r.present) AS end FROM dataset_record r"


def hits_of_subject(session: Session, digests: Sequence[bytes]) -> list[Hit]:
    """Return the records of the persons with these keyed digests, in every dataset."""
    statement = text(f"""{_HIT} WHERE EXISTS (SELECT 1 FROM subject_record s WHERE s.subject_hmac = ANY(CAST(:digests AS bytea[]))
        AND s.tenant_id = r.tenant_id AND s.dataset_id = r.dataset_id AND s.record_id = r.record_id) ORDER BY r.dataset_id, r.record_id""")  # noqa: S608
    return _hits(session, statement, {"digests": list(digests)})


def hits_of_records(session: Session, dataset_id: UUID, ids: Sequence[str]) -> list[Hit]:
    """Return the named records of a dataset that any version holds or held."""
    statement = text(f"{_HIT} WHERE r.dataset_id = :dataset AND r.record_id = ANY(:ids) ORDER BY r.record_id")
    return _hits(session, statement, {"dataset": dataset_id, "ids": list(ids)})


def hits_of_labels(session: Session, dataset_id: UUID, labels: Sequence[str]) -> list[Hit]:
    """Return the records of a dataset with one of these labels that any version holds or held."""
    statement = text(f"{_HIT} WHERE r.dataset_id = :dataset AND r.label = ANY(:labels) ORDER BY r.record_id")
    return _hits(session, statement, {"dataset": dataset_id, "labels": list(labels)})


_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


def hits_of_range(session: Session, dataset_id: UUID, above: float | None, below: float | None) -> list[Hit]:
    """Return the records of a dataset with a target above and below the bounds that are given, that any version holds or held."""
    readable = "r.label ~ :number AND pg_input_is_valid(r.label, 'double precision')"  # a text such as 1e999 looks like a number, and is none
    target = f"CASE WHEN {readable} THEN CAST(r.label AS double precision) END"
    bounds = {"above": ("> :above", above), "below": ("< :below", below)}
    given = {name: (test, bound) for name, (test, bound) in bounds.items() if bound is not None}
    tests = " AND ".join(f"{target} {test}" for test, _ in given.values())
    statement = text(f"{_HIT} WHERE r.dataset_id = :dataset AND {tests} ORDER BY r.record_id")
    return _hits(session, statement, {"dataset": dataset_id, "number": _NUMBER, **{name: bound for name, (_, bound) in given.items()}})


def has_labels(session: Session, dataset_id: UUID) -> bool:
    """Say whether any record of a dataset has, or had, a label."""
    query = text("SELECT EXISTS (SELECT 1 FROM dataset_record WHERE dataset_id = :dataset AND label IS NOT NULL)")
    return bool(session.scalar(query, {"dataset": dataset_id}))


def has_numbers(session: Session, dataset_id: UUID) -> bool:
    """Say whether the records of a dataset have one real-valued target each, in the column that is indexed, in place of a label."""
    row = session.scalars(select(Dataset).where(Dataset.id == dataset_id)).one()
    if row.label_column is None:
        return False
    if row.adapter == "series":
        return int(row.adapter_params.get("horizon", 1)) == 1
    return row.adapter_params.get("target") == "number"


@dataclass(frozen=True, slots=True)
class HeldVersion:
    """A version that was ingested and not purged. `ready` says that it may be learned from."""

    dataset_id: UUID
    dataset: str
    number: int
    ready: bool
    records: int | None
    size_bytes: int = 0
    """Of its files as they are stored."""
    adapter: str = ""
    adapter_params: Mapping[str, Any] = field(default_factory=dict[str, Any])


def held_versions(session: Session, dataset_ids: Sequence[UUID]) -> list[HeldVersion]:
    """Return every version of the datasets that was ingested and not purged, by number."""
    rows = session.execute(_HELD, {"datasets": list(dataset_ids)})
    return [
        HeldVersion(row.dataset_id, row.name, row.number, row.status == "ready", row.records, int(row.size_bytes), row.adapter, row.adapter_params)
        for row in rows
    ]


def held_beside(session: Session, version_id: UUID) -> list[HeldVersion]:
    """Return every version of a version's dataset that was ingested and not purged, by number."""
    dataset_id = session.scalars(select(DatasetVersion.dataset_id).where(DatasetVersion.id == version_id)).one()
    return held_versions(session, [dataset_id])


_HELD = text("""
    SELECT v.dataset_id, d.name, v.number, v.status, v.records, d.adapter, d.adapter_params,
           (SELECT coalesce(sum(f.size_bytes), 0) FROM dataset_file f WHERE f.tenant_id = v.tenant_id AND f.version_id = v.id) AS size_bytes
      FROM dataset_version v JOIN dataset d ON d.id = v.dataset_id
     WHERE v.dataset_id = ANY(:datasets) AND v.status IN ('ready', 'retired') ORDER BY v.number
    """)


def label_counts(session: Session, dataset_id: UUID, number: int) -> dict[str, int]:
    """Return how many records of each label a version holds; records without a label are left out."""
    statement = text("""
        SELECT label, count(*) AS n FROM dataset_record
         WHERE dataset_id = :dataset AND present @> CAST(:number AS int) AND label IS NOT NULL GROUP BY label
        """)
    return {row.label: row.n for row in session.execute(statement, {"dataset": dataset_id, "number": number})}


def trained_on(session: Session, version_id: UUID) -> list[TrainedModel]:
    """Return the model versions that learned from a dataset version."""
    statement = text("""
        SELECT m.name AS model, m.id AS model_id, v.number AS version, v.id AS version_id, t.role, v.status
          FROM training_input t JOIN model_version v ON v.id = t.model_version_id JOIN model m ON m.id = v.model_id
         WHERE t.dataset_version_id = :version AND t.role <> 'evaluation' ORDER BY m.name, v.number
        """)
    return [TrainedModel(**row) for row in session.execute(statement, {"version": version_id}).mappings()]


def _hits(session: Session, statement: Any, values: dict[str, Any]) -> list[Hit]:
    return [Hit(*row) for row in session.execute(statement, values)]


def _count(result: Any) -> int:
    return int(result.rowcount)
