"""SQL of models, versions, aliases and lineage. Every statement runs inside the caller's transaction and tenant."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, func, insert, select, text, tuple_, update
from sqlalchemy.orm import Session

from services.db import objects
from services.db.tables import (
    AliasHistory,
    Base,
    CatalogueEntry,
    Dataset,
    DatasetVersion,
    Job,
    Model,
    ModelAlias,
    ModelFile,
    ModelVersion,
    ObjectRef,
    Policy,
    Target,
    TrainingInput,
    VerdictRow,
)
from services.model_versions.forms import FileForm, Key, PublishFile, TrainedOn

EVALUATION = "evaluation"
FRESH = {"populate_existing": True}
QUIET = {"synchronize_session": False}

# --- a subject or records -> what learned from them ------------------------------------------------------------------------------------

_BY_SUBJECT = """SELECT d.tenant_id, d.dataset_id, d.record_id, d.present FROM subject_record s
    JOIN dataset_record d USING (tenant_id, dataset_id, record_id) WHERE s.subject_hmac = ANY(CAST(:digests AS bytea[]))"""
_BY_RECORDS = """SELECT d.tenant_id, d.dataset_id, d.record_id, d.present FROM dataset_record d
    WHERE d.dataset_id = :dataset AND d.record_id = ANY(CAST(:ids AS text[]))"""
_BY_LABELS = """SELECT d.tenant_id, d.dataset_id, d.record_id, d.present FROM dataset_record d
    WHERE d.dataset_id = :dataset AND d.label = ANY(CAST(:labels AS text[]))"""
_TAINTED = """WITH RECURSIVE hit AS ({hit}),
    span AS (SELECT DISTINCT tenant_id, dataset_id, present FROM hit),
    dv AS (SELECT DISTINCT v.id FROM dataset_version v JOIN span s ON s.tenant_id = v.tenant_id AND s.dataset_id = v.dataset_id AND s.present @> v.number),
    tainted AS (SELECT t.model_version_id AS id FROM training_input t JOIN dv ON dv.id = t.dataset_version_id WHERE t.role <> 'evaluation'
      UNION SELECT c.id FROM model_version c JOIN tainted p ON c.parent_id = p.id WHERE NOT c.fresh_start)
    SELECT m.id AS model_id, m.name AS model, m.current_version_id, m.task, m.architecture,
           array_agg(v.id ORDER BY v.number) AS versions, array_agg(v.number ORDER BY v.number) AS numbers
      FROM tainted JOIN model_version v ON v.id = tainted.id JOIN model m ON m.id = v.model_id
     WHERE v.status IN ('ready','quarantined') GROUP BY m.id, m.name, m.current_version_id, m.task, m.architecture ORDER BY m.name"""


def tainted_by_subject(session: Session, digests: Sequence[bytes]) -> Sequence[Any]:
    """Return, per model, every version still held that learned from records of these persons, directly or through a parent: one query.

    Rows: model_id, model, current_version_id, task, architecture, versions (ids by number), numbers.
    """
    return session.execute(text(_TAINTED.format(hit=_BY_SUBJECT)), {"digests": list(digests)}).all()


def tainted_by_records(session: Session, dataset_id: UUID, ids: Sequence[str]) -> Sequence[Any]:
    """Return the same for named records of one dataset."""
    return session.execute(text(_TAINTED.format(hit=_BY_RECORDS)), {"dataset": dataset_id, "ids": list(ids)}).all()


def tainted_by_labels(session: Session, dataset_id: UUID, labels: Sequence[str]) -> Sequence[Any]:
    """Return the same for every record of one dataset with one of these labels."""
    return session.execute(text(_TAINTED.format(hit=_BY_LABELS)), {"dataset": dataset_id, "labels": list(labels)}).all()


def tainted_by_model(session: Session, model_id: UUID) -> Sequence[Any]:
    """Return the same for a model of whose data nothing is held: every version of it may have learned from anything."""
    statement = text("""
        SELECT m.id AS model_id, m.name AS model, m.current_version_id, m.task, m.architecture,
               array_agg(v.id ORDER BY v.number) AS versions, array_agg(v.number ORDER BY v.number) AS numbers
          FROM model m JOIN model_version v ON v.model_id = m.id WHERE m.id = :model AND v.status IN ('ready','quarantined')
         GROUP BY m.id, m.name, m.current_version_id, m.task, m.architecture
        """)
    return session.execute(statement, {"model": model_id}).all()


def datasets_behind(session: Session, version_ids: Sequence[UUID]) -> set[UUID]:
    """Return the datasets that versions, or what they were made from, learned from."""
    statement = text("""
        WITH RECURSIVE up AS (SELECT id, parent_id, fresh_start FROM model_version WHERE id = ANY(:ids)
            UNION SELECT p.id, p.parent_id, p.fresh_start FROM model_version p JOIN up ON p.id = up.parent_id WHERE NOT up.fresh_start)
        SELECT DISTINCT d.dataset_id FROM up JOIN training_input t ON t.model_version_id = up.id AND t.role <> 'evaluation'
          JOIN dataset_version d ON d.id = t.dataset_version_id
        """)
    return set(session.scalars(statement, {"ids": list(version_ids)}))


def sources_of(session: Session, version_id: UUID) -> set[UUID | None]:
    """Return the datasets that a version, or what it was made from, learned from; None among them where a first version does not say from what."""
    statement = text("""
        WITH RECURSIVE up AS (SELECT id, parent_id, fresh_start FROM model_version WHERE id = :id
            UNION SELECT p.id, p.parent_id, p.fresh_start FROM model_version p JOIN up ON p.id = up.parent_id WHERE NOT up.fresh_start)
        SELECT DISTINCT d.dataset_id FROM up LEFT JOIN training_input t ON t.model_version_id = up.id AND t.role <> 'evaluation'
          LEFT JOIN dataset_version d ON d.id = t.dataset_version_id
         WHERE d.dataset_id IS NOT NULL OR up.parent_id IS NULL OR up.fresh_start
        """)
    return set(session.scalars(statement, {"id": version_id}))


def holding_forgotten(session: Session, version_ids: Sequence[UUID]) -> set[UUID]:
    """Return which of these versions hold forgotten records.

    They were superseded by a version that forgot, learned from a dataset version that holds records erased since, or were made from such a version;
    a version that did the forgetting, and what was made from it, is clean.
    """
    statement = text("""
        WITH RECURSIVE dirty AS (
            SELECT DISTINCT v.id FROM dataset_version v JOIN dataset_record r ON r.tenant_id = v.tenant_id AND r.dataset_id = v.dataset_id
              JOIN dataset_version e ON e.tenant_id = r.tenant_id AND e.dataset_id = r.dataset_id AND e.number = upper(r.present)
             WHERE v.dataset_id IN (SELECT x.dataset_id FROM dataset_version x WHERE x.produced_by_job_id IS NOT NULL)
               AND r.present @> v.number AND NOT upper_inf(r.present) AND e.produced_by_job_id IS NOT NULL),
        bad AS (
            SELECT t.model_version_id AS id FROM training_input t JOIN dirty ON dirty.id = t.dataset_version_id
             WHERE t.role <> 'evaluation' AND NOT EXISTS (SELECT 1 FROM forget_ledger f WHERE f.version_id = t.model_version_id)
            UNION SELECT id FROM model_version WHERE quarantined_for = 'forgotten'
            UNION SELECT c.id FROM model_version c JOIN bad p ON c.parent_id = p.id
             WHERE NOT c.fresh_start AND NOT EXISTS (SELECT 1 FROM forget_ledger f WHERE f.version_id = c.id)
               AND NOT EXISTS (SELECT 1 FROM job j WHERE j.id = c.job_id AND j.kind = 'unlearn'))
        SELECT id FROM bad WHERE id = ANY(:ids)
        """)
    return set(session.scalars(statement, {"ids": list(version_ids)}))


def dataset_holds_erased(session: Session, version_id: UUID) -> bool:
    """Say whether a dataset version holds records that a job has erased since."""
    statement = text("""
        SELECT EXISTS (SELECT 1 FROM dataset_version v JOIN dataset_version e ON e.tenant_id = v.tenant_id AND e.dataset_id = v.dataset_id
          JOIN dataset_record r ON r.tenant_id = v.tenant_id AND r.dataset_id = v.dataset_id
         WHERE v.id = :id AND e.number > v.number AND e.produced_by_job_id IS NOT NULL
           AND r.present @> v.number AND NOT upper_inf(r.present) AND upper(r.present) = e.number)
        """)
    return session.execute(statement, {"id": version_id}).scalar_one()


def branch(session: Session, version_id: UUID) -> Sequence[Any]:
    """Return the lineage of a version: itself (depth 0), above (positive) up to the first fresh start, and below (negative)."""
    statement = text("""
        WITH RECURSIVE up AS (
            SELECT id, parent_id, fresh_start, 0 AS depth FROM model_version WHERE id = :id
            UNION ALL SELECT p.id, p.parent_id, p.fresh_start, up.depth + 1 FROM model_version p JOIN up ON p.id = up.parent_id WHERE NOT up.fresh_start),
        down AS (
            SELECT id, 0 AS depth FROM model_version WHERE id = :id
            UNION ALL SELECT c.id, down.depth - 1 FROM model_version c JOIN down ON c.parent_id = down.id)
        SELECT v.id, m.name AS model, v.number, v.parent_id, v.status, v.fresh_start, x.depth, v.job_id
          FROM (SELECT id, depth FROM up UNION SELECT id, depth FROM down) x JOIN model_version v ON v.id = x.id JOIN model m ON m.id = v.model_id
         ORDER BY x.depth DESC, v.number
        """)
    return session.execute(statement, {"id": version_id}).mappings().all()


# --- reading ---------------------------------------------------------------------------------------------------------------------------


def components(session: Session, kind: str) -> dict[str, CatalogueEntry]:
    """Return the catalogue's entries of a kind by name, the newest of each."""
    return {
        entry.name: entry for entry in session.scalars(select(CatalogueEntry).where(CatalogueEntry.kind == kind).order_by(CatalogueEntry.seen_at))
    }


def find(session: Session, model: str | UUID, *, lock: bool = False) -> Model | None:
    """Return a model by id or name."""
    query = select(Model).where(Model.id == model if isinstance(model, UUID) else Model.name == model).execution_options(**FRESH)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def page(session: Session, limit: int, after: Key | None) -> list[Model]:
    """Return at most `limit` models older than `after`, newest first."""
    query = select(Model).order_by(Model.created_at.desc(), Model.id.desc()).limit(limit)
    return list(session.scalars(query if after is None else query.where(tuple_(Model.created_at, Model.id) < tuple_(*after))))


def next_number(session: Session, model_id: UUID) -> int:
    """Return max(number)+1; safe under the lock of the model row."""
    return (session.scalar(select(func.max(ModelVersion.number)).where(ModelVersion.model_id == model_id)) or 0) + 1


def version(session: Session, model_id: UUID, number: int, *, lock: bool = False) -> ModelVersion | None:
    """Return a version by number."""
    query = select(ModelVersion).where(ModelVersion.model_id == model_id, ModelVersion.number == number).execution_options(**FRESH)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def version_by_id(session: Session, version_id: UUID, *, lock: bool = False) -> ModelVersion | None:
    """Return a version by id."""
    query = select(ModelVersion).where(ModelVersion.id == version_id).execution_options(**FRESH)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def version_of_job(session: Session, job_id: UUID) -> ModelVersion | None:
    """Return the version that a job published, if it did: how a lost COMMIT answer is settled."""
    return session.scalars(select(ModelVersion).where(ModelVersion.job_id == job_id).execution_options(**FRESH)).one_or_none()


def versions(session: Session, model_id: UUID, limit: int, after: int | None) -> list[ModelVersion]:
    """Return at most `limit` versions with numbers under `after`, newest first."""
    query = select(ModelVersion).where(ModelVersion.model_id == model_id).order_by(ModelVersion.number.desc()).limit(limit)
    return list(session.scalars(query if after is None else query.where(ModelVersion.number < after)))


def numbers(session: Session, version_ids: Sequence[UUID]) -> dict[UUID, int]:
    """Return the numbers of versions by id."""
    rows = session.execute(select(ModelVersion.id, ModelVersion.number).where(ModelVersion.id.in_(version_ids)))
    return {row.id: row.number for row in rows}


def files(session: Session, version_ids: Sequence[UUID]) -> dict[UUID, list[FileForm]]:
    """Return the files of versions, by path."""
    held: dict[UUID, list[FileForm]] = {version_id: [] for version_id in version_ids}
    for row in session.scalars(select(ModelFile).where(ModelFile.version_id.in_(version_ids)).order_by(ModelFile.path)):
        held[row.version_id].append(FileForm(path=row.path, size_bytes=row.size_bytes, sha256=row.digest, media_type=row.media_type))
    return held


def learned_from(session: Session, version_ids: Sequence[UUID]) -> dict[UUID, list[TrainedOn]]:
    """Return what versions learned from."""
    return _inputs(session, version_ids, TrainingInput.role != EVALUATION)


def judged_on(session: Session, version_ids: Sequence[UUID]) -> dict[UUID, list[TrainedOn]]:
    """Return what versions are judged on and did not learn from."""
    return _inputs(session, version_ids, TrainingInput.role == EVALUATION)


def _inputs(session: Session, version_ids: Sequence[UUID], wanted: ColumnElement[bool]) -> dict[UUID, list[TrainedOn]]:
    held: dict[UUID, list[TrainedOn]] = {version_id: [] for version_id in version_ids}
    query = (
        select(TrainingInput.model_version_id, Dataset.name, Dataset.id, DatasetVersion.number, DatasetVersion.id, TrainingInput.role)
        .join(DatasetVersion, DatasetVersion.id == TrainingInput.dataset_version_id)
        .join(Dataset, Dataset.id == DatasetVersion.dataset_id)
        .where(TrainingInput.model_version_id.in_(version_ids), wanted)
        .order_by(Dataset.name, DatasetVersion.number)
    )
    for row in session.execute(query):
        held[row[0]].append(TrainedOn(dataset=row[1], dataset_id=row[2], version=row[3], version_id=row[4], role=row[5]))
    return held


def dataset_version(session: Session, dataset: str | UUID, number: int) -> DatasetVersion | None:
    """Return a dataset version by dataset (id or name) and number."""
    named = Dataset.id == dataset if isinstance(dataset, UUID) else Dataset.name == dataset
    query = select(DatasetVersion).join(Dataset, Dataset.id == DatasetVersion.dataset_id).where(named, DatasetVersion.number == number)
    return session.scalars(query).one_or_none()


def dataset_of(session: Session, dataset_id: UUID) -> Dataset:
    """Return a dataset."""
    return session.scalars(select(Dataset).where(Dataset.id == dataset_id)).one()


def dataset_adapter(session: Session, dataset_id: UUID) -> str:
    """Return the name of a dataset's adapter."""
    return session.scalars(select(Dataset.adapter).where(Dataset.id == dataset_id)).one()


def adapter_parameters(session: Session, dataset_id: UUID) -> Mapping[str, Any]:
    """Return the parameters of a dataset's adapter."""
    return session.scalars(select(Dataset.adapter_params).where(Dataset.id == dataset_id)).one()


def unlabelled(session: Session, version_id: UUID) -> int:
    """Return how many records of a dataset version have no label."""
    statement = text("""
        SELECT count(*) FROM dataset_record r JOIN dataset_version v ON v.tenant_id = r.tenant_id AND v.dataset_id = r.dataset_id
         WHERE v.id = :id AND r.present @> v.number AND r.label IS NULL
        """)
    return session.execute(statement, {"id": version_id}).scalar_one()


def label_column(session: Session, dataset_id: UUID) -> str:
    """Return the name of a dataset's label column, as far as it is known."""
    return session.scalars(select(Dataset.label_column).where(Dataset.id == dataset_id)).one() or "label"


# --- writing ---------------------------------------------------------------------------------------------------------------------------


def add(session: Session, table: type[Base], **values: Any) -> None:
    """Insert one row."""
    session.execute(insert(table).values(**values))


def set_version(session: Session, version_id: UUID, **values: Any) -> None:
    """Write columns of a version."""
    session.execute(update(ModelVersion).where(ModelVersion.id == version_id).values(**values), execution_options=QUIET)


def add_files(session: Session, tenant_id: UUID, version_id: UUID, listed: Sequence[PublishFile]) -> None:
    """Enter the files of a version."""
    rows = [
        {"tenant_id": tenant_id, "version_id": version_id, "path": f.path, "digest": f.digest, "size_bytes": f.size_bytes, "media_type": f.media_type}
        for f in listed
    ]
    if rows:
        session.execute(insert(ModelFile), rows)


def reference_objects(session: Session, tenant_id: UUID, version_id: UUID, listed: Mapping[str, int]) -> None:
    """Say that a version needs these blobs (digest: size), which are in the store; a blob not known yet is entered.

    Raises: BuriedBytes for weights that were destroyed; StoreDown for a blob that is being deleted, or was deleted since it was put.
    """
    if not listed:
        return
    objects.enter(session, listed)
    objects.require_live(session, listed)
    rows = [{"tenant_id": tenant_id, "digest": digest, "owner_kind": "model_version", "owner_id": version_id} for digest in sorted(listed)]
    session.execute(insert(ObjectRef), rows)


def with_bytes_of(session: Session, digests: Sequence[str]) -> Sequence[Any]:
    """Return versions of the tenant that have a file with one of these digests: id, model, number, status."""
    query = select(ModelVersion.id, Model.name.label("model"), ModelVersion.number, ModelVersion.status)
    query = query.join(ModelFile, ModelFile.version_id == ModelVersion.id).join(Model, Model.id == ModelVersion.model_id)
    settled = ModelVersion.status.in_(("ready", "quarantined", "destroyed"))
    return session.execute(query.where(ModelFile.digest.in_(digests), settled).order_by(Model.name, ModelVersion.number)).all()


def add_inputs(session: Session, tenant_id: UUID, version_id: UUID, inputs: Sequence[tuple[UUID, str]]) -> None:
    """Enter what a version learned from: (dataset version, role)."""
    rows = [{"tenant_id": tenant_id, "model_version_id": version_id, "dataset_version_id": one, "role": role} for one, role in sorted(set(inputs))]
    if rows:
        session.execute(insert(TrainingInput), rows)


def move_current(session: Session, model_id: UUID, base: UUID | None, new: UUID) -> bool:
    """Point a model at a new version if it still points at `base`; say whether it did."""
    statement = (
        update(Model)
        .where(Model.id == model_id, Model.current_version_id.is_not_distinct_from(base))
        .values(current_version_id=new, etag=Model.etag + 1)
        .returning(Model.id)
    )
    return session.execute(statement, execution_options=QUIET).one_or_none() is not None


# --- aliases ---------------------------------------------------------------------------------------------------------------------------


def alias(session: Session, model_id: UUID, name: str, *, lock: bool = False) -> ModelAlias | None:
    """Return an alias of a model."""
    query = select(ModelAlias).where(ModelAlias.model_id == model_id, ModelAlias.alias == name).execution_options(**FRESH)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def aliases(session: Session, model_id: UUID) -> list[ModelAlias]:
    """Return the aliases of a model by name."""
    return list(session.scalars(select(ModelAlias).where(ModelAlias.model_id == model_id).order_by(ModelAlias.alias).execution_options(**FRESH)))


def move_alias(session: Session, model_id: UUID, name: str, version_id: UUID) -> None:
    """Point an alias elsewhere."""
    statement = update(ModelAlias).where(ModelAlias.model_id == model_id, ModelAlias.alias == name)
    session.execute(statement.values(version_id=version_id, etag=ModelAlias.etag + 1), execution_options=QUIET)


def drop_alias(session: Session, model_id: UUID, name: str) -> None:
    """Remove an alias."""
    session.execute(text("DELETE FROM model_alias WHERE model_id = :m AND alias = :a"), {"m": model_id, "a": name})


def aliases_on(session: Session, model_id: UUID, version_ids: Sequence[UUID]) -> list[str]:
    """Return the names of the aliases that point at one of these versions."""
    query = select(ModelAlias.alias).where(ModelAlias.model_id == model_id, ModelAlias.version_id.in_(version_ids))
    return list(session.scalars(query.order_by(ModelAlias.alias).with_for_update()))


def close_history(session: Session, model_id: UUID, name: str) -> None:
    """Set the end of an alias's open line of history."""
    statement = update(AliasHistory).where(AliasHistory.model_id == model_id, AliasHistory.alias == name, AliasHistory.to_at.is_(None))
    session.execute(statement.values(to_at=func.clock_timestamp()), execution_options=QUIET)


def named_at(session: Session, model_id: UUID, name: str, time: datetime) -> UUID | None:
    """Return the version that an alias named at a moment."""
    query = select(AliasHistory.version_id).where(
        AliasHistory.model_id == model_id,
        AliasHistory.alias == name,
        AliasHistory.from_at <= time,
        (AliasHistory.to_at.is_(None)) | (AliasHistory.to_at > time),
    )
    return session.scalar(query.order_by(AliasHistory.from_at.desc()).limit(1))


# --- publishing ------------------------------------------------------------------------------------------------------------------------


def job(session: Session, job_id: UUID) -> Job | None:
    """Return a job as it stands; the caller holds its lock."""
    return session.scalars(select(Job).where(Job.id == job_id).execution_options(**FRESH)).one_or_none()


def job_targets(session: Session, job_id: UUID) -> list[Target]:
    """Return the active targets of a job, locked in the order of their ids."""
    wanted = text("target.id IN (SELECT target_id FROM job_target WHERE job_id = :job AND active)").bindparams(job=job_id)
    query = select(Target).where(wanted).order_by(Target.id).with_for_update().execution_options(**FRESH)
    return list(session.scalars(query))


def verdict(session: Session, job_id: UUID, judged_round: int) -> str | None:
    """Return the verdict of a round of a job."""
    return session.scalar(select(VerdictRow.verdict).where(VerdictRow.job_id == job_id, VerdictRow.round == judged_round))


def released(session: Session, job_id: UUID, judged_round: int) -> bool:
    """Say whether a person released the candidate of a round."""
    found = text("SELECT 1 FROM release WHERE job_id = :job AND round = :round AND outcome = 'release'")
    return session.execute(found, {"job": job_id, "round": judged_round}).first() is not None


def policy(session: Session, policy_id: UUID) -> Policy:
    """Return a policy version."""
    return session.scalars(select(Policy).where(Policy.id == policy_id)).one()


def versions_of_line(session: Session, base: UUID) -> list[UUID]:
    """Return the versions of the base's model on its branch: the base, and above it up to a fresh start."""
    statement = text("""
        WITH RECURSIVE up AS (SELECT id, parent_id, fresh_start, model_id FROM model_version WHERE id = :id
            UNION SELECT p.id, p.parent_id, p.fresh_start, p.model_id FROM model_version p JOIN up ON p.id = up.parent_id
             WHERE NOT up.fresh_start AND p.model_id = up.model_id)
        SELECT id FROM up
        """)
    return list(session.scalars(statement, {"id": base}))


def enter_ledger(session: Session, job_id: UUID, model_id: UUID, version_id: UUID) -> int:
    """Enter the records of a job's active targets into the ledger of what the model has forgotten; return how many were new."""
    statement = text("""
        INSERT INTO forget_ledger (tenant_id, model_id, dataset_id, record_hmac, target_id, version_id)
        SELECT DISTINCT ON (r.dataset_id, r.record_hmac) r.tenant_id, CAST(:model AS uuid), r.dataset_id, r.record_hmac, r.target_id, CAST(:version AS uuid)
          FROM target_record r JOIN job_target j ON j.target_id = r.target_id AND j.job_id = :job AND j.active
         ORDER BY r.dataset_id, r.record_hmac, r.target_id ON CONFLICT DO NOTHING
        """)
    result: Any = session.execute(statement, {"model": model_id, "version": version_id, "job": job_id})
    return int(result.rowcount)


def quarantine(session: Session, version_ids: Sequence[UUID], after_s: float | None) -> list[UUID]:
    """Quarantine those of the versions that are ready, to be destroyed `after_s` from now (None: kept); return their ids by number."""
    statement = text("""
        UPDATE model_version SET status = 'quarantined', quarantined_for = 'forgotten',
               destroy_by = CASE WHEN CAST(:after AS float) IS NULL THEN NULL ELSE clock_timestamp() + make_interval(secs => CAST(:after AS float)) END
         WHERE id = ANY(:ids) AND status = 'ready' RETURNING id, number
        """)
    rows = session.execute(statement, {"ids": list(version_ids), "after": after_s}).all()
    return [row.id for row in sorted(rows, key=lambda row: row.number)]


def finished_requests(session: Session, request_ids: Sequence[UUID]) -> list[UUID]:
    """Return those of the requests whose targets are all in a final state."""
    statement = text("""
        SELECT r.id FROM deletion_request r WHERE r.id = ANY(:ids) AND NOT EXISTS (SELECT 1 FROM target t
          WHERE t.tenant_id = r.tenant_id AND t.request_id = r.id AND t.state NOT IN ('published','exempt','not_found','cancelled')) ORDER BY r.id
        """)
    return list(session.scalars(statement, {"ids": list(request_ids)}))


def publish_targets(session: Session, target_ids: Sequence[UUID], version_id: UUID, *, outcome: str = "unlearned") -> None:
    """Close targets with the version that serves them; `outcome` is `unlearned` or `not_learned`."""
    statement = update(Target).where(Target.id.in_(target_ids))
    session.execute(statement.values(state="published", outcome=outcome, published_version_id=version_id), execution_options=QUIET)


def close_job(session: Session, job_id: UUID, result: Mapping[str, Any]) -> None:
    """End a job that published: succeeded, lease and pins gone, targets no longer active."""
    ended = update(Job).where(Job.id == job_id)
    values = {"state": "succeeded", "lease_owner": None, "lease_until": None, "result": dict(result), "finished_at": func.clock_timestamp()}
    session.execute(ended.values(**values), execution_options=QUIET)
    session.execute(text("UPDATE job_target SET active = false WHERE job_id = :job AND active"), {"job": job_id})
    session.execute(text("DELETE FROM object_pin WHERE job_id = :job"), {"job": job_id})
