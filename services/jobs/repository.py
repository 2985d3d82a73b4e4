"""The rows of a job: what it needs, what it records. Every function takes the session of a transaction that has fenced the job."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from services import drift
from services.audit import repository as audit
from services.audit.runs import Conduct, Run, Subject, Told
from services.datasets import repository as datasets
from services.db import candidates, destruction, holds, objects
from services.db.sources import sources
from services.db.tables import (
    ClockPause,
    Dataset,
    DatasetFile,
    DatasetRecord,
    DatasetVersion,
    DeletionRequest,
    FigureRow,
    ForgetLedger,
    Job,
    JobAttempt,
    JobFile,
    JobStep,
    JobTarget,
    Model,
    ModelFile,
    ModelVersion,
    ObjectPin,
    Policy,
    ReadingRow,
    RecipientNotification,
    ReleaseRow,
    Target,
    TargetRecord,
    TrainingInput,
    VerdictRow,
    VerificationPlan,
)
from services.errors import DatasetSuperseded, LogBehind, NotFound, VersionNotReady
from services.requests.states import JOB, TARGET, following
from services.tenants.policies import drift_caps

PIN_FOR = timedelta(days=7)
LEASED = ("running", "verifying", "publishing")


@dataclass(frozen=True, slots=True)
class Work:
    """A claimed job and everything it needs to know, read in one transaction. Rows are detached: nothing written to them reaches the database."""

    job: Job
    model: Model
    dataset: Dataset
    dataset_version: DatasetVersion
    dataset_files: Sequence[DatasetFile]
    base: ModelVersion | None
    base_files: Sequence[ModelFile]
    policy: Policy | None
    targets: Sequence[Target]
    requests: Sequence[DeletionRequest]
    zero_shot: bool = False
    """Nothing that the model learned from is held: the dataset version is one that it is only judged on."""

    @property
    def labels(self) -> frozenset[str]:
        """The labels that class requests of the batch name."""
        return frozenset(str(label) for request in self.requests for label in request.scope.get("labels", ()))

    @property
    def spans(self) -> tuple[tuple[float | None, float | None], ...]:
        """The bounds above and below of each range of targets that a request of the batch names, in the order of the requests."""
        ranged = [request.scope for request in self.requests if request.scope.get("kind") == "target_range"]
        return tuple(dict.fromkeys((scope.get("above"), scope.get("below")) for scope in ranged))

    @property
    def ranged_targets(self) -> tuple[Target, ...]:
        """The targets of the requests that name a range."""
        ranged = {request.id for request in self.requests if request.scope.get("kind") == "target_range"}
        return tuple(target for target in self.targets if target.request_id in ranged)

    @property
    def request_kind(self) -> str:
        """`class` when every request of the batch forgets whole classes, else `records`."""
        return "class" if self._kinds == {"class_labels"} else "records"

    @property
    def granularity(self) -> str:
        """As `request_kind`, but `concept` when every request of the batch is for an entity."""
        return "concept" if self._kinds == {"entity"} else self.request_kind

    @property
    def of_range(self) -> bool:
        """Whether every request of the batch is for a range of targets."""
        return self._kinds == {"target_range"}

    @property
    def beyond_records(self) -> str | None:
        """What a request of the batch names beside single records: `class`, `range`, `entity`, or a `person` with several; None where none does.

        Records of one person may be alike, so that a model knows one by the others.
        """
        named = {"class_labels": "class", "target_range": "range", "entity": "entity"}
        other = next((named.get(kind, kind) for kind in sorted(self._kinds - {"records", "subject"})), None)
        people = {request.id for request in self.requests if request.scope.get("kind") == "subject"}
        several = any(target.records > 1 for target in self.targets if target.request_id in people)
        return other or ("person" if several else None)

    @property
    def _kinds(self) -> set[str]:
        return {str(request.scope.get("kind")) for request in self.requests}


def job_row(session: Session, job_id: UUID) -> Job:
    """Return the job. Raises NotFound."""
    job = session.get(Job, (job_id,), populate_existing=True)
    if job is None:
        raise NotFound
    return job


def current_version_id(session: Session, model_id: UUID) -> UUID | None:
    """Return the model's current version."""
    return session.scalar(select(Model.current_version_id).where(Model.id == model_id))


def load(session: Session, job_id: UUID) -> Work:
    """Return the job with all it needs; a superseded dataset version serves to forget what it holds, until its destruction has begun.

    Raises: NotFound; VersionNotReady when the job's dataset version was never ready; DatasetSuperseded when it may not learn from it, or it is gone.
    """
    job = job_row(session, job_id)
    model = session.scalars(select(Model).where(Model.id == job.model_id)).one()
    base = session.scalars(select(ModelVersion).where(ModelVersion.id == job.base_version_id)).first() if job.base_version_id else None
    version = _works_on(session, job, base)
    dataset = session.scalars(select(Dataset).where(Dataset.id == version.dataset_id)).one()
    if version.status in {"retired", "purged"} and not (version.status == "retired" and job.kind == "unlearn"):
        raise DatasetSuperseded(version=version.number, dataset=dataset.name, status=version.status)
    if version.status not in {"ready", "retired"}:
        raise VersionNotReady(version=version.number, status=version.status)
    files = session.scalars(select(DatasetFile).where(DatasetFile.version_id == version.id).order_by(DatasetFile.path)).all()
    base_files = session.scalars(select(ModelFile).where(ModelFile.version_id == base.id)).all() if base else []
    policy = session.scalars(select(Policy).where(Policy.id == job.policy_id)).first() if job.policy_id else None
    targets = active_targets(session, job.id)
    wanted = [target.request_id for target in targets]
    requests = session.scalars(select(DeletionRequest).where(DeletionRequest.id.in_(wanted)).order_by(DeletionRequest.id)).all()
    zero_shot = job.kind == "unlearn" and _learned_from(session, base) is None
    return Work(job, model, dataset, version, files, base, base_files, policy, targets, requests, zero_shot)


def _works_on(session: Session, job: Job, base: ModelVersion | None) -> DatasetVersion:
    """Return the dataset version that a job names, else the one that its base learned from, or what stands for that now. Raises NotFound."""
    learned = _learned_from(session, base) if job.dataset_version_id is None else None
    version = datasets.serving(session, learned) if learned is not None else None
    if job.dataset_version_id is not None:
        version = datasets.version_by_id(session, job.dataset_version_id)
    if version is None:
        raise NotFound
    return version


def _learned_from(session: Session, base: ModelVersion | None) -> UUID | None:
    if base is None:
        return None
    query = select(TrainingInput.dataset_version_id).where(TrainingInput.model_version_id == base.id, TrainingInput.role != "evaluation")
    return session.scalar(query.order_by(TrainingInput.role != "train", TrainingInput.role).limit(1))


def newest_version(session: Session, dataset_id: UUID) -> tuple[DatasetVersion, Sequence[DatasetFile]]:
    """Return the newest ready version of a dataset and its files: the one an erasure is written from. Raises NotFound."""
    query = select(DatasetVersion).where(DatasetVersion.dataset_id == dataset_id, DatasetVersion.status == "ready")
    version = session.scalars(query.order_by(DatasetVersion.number.desc()).limit(1)).first()
    if version is None:
        raise NotFound
    return version, session.scalars(select(DatasetFile).where(DatasetFile.version_id == version.id).order_by(DatasetFile.path)).all()


def work_from(session: Session, job: Job, dataset_version_id: UUID) -> None:
    """Note from which dataset version the job has written the next one."""
    session.execute(update(Job).where(Job.id == job.id).values(dataset_version_id=dataset_version_id))


def active_targets(session: Session, job_id: UUID) -> Sequence[Target]:
    """Return the targets that the job serves now, by id."""
    query = select(Target).join(JobTarget, JobTarget.target_id == Target.id).where(JobTarget.job_id == job_id, JobTarget.active)
    return session.scalars(query.order_by(Target.id)).all()


def record_ids(session: Session, version: DatasetVersion) -> list[str]:
    """Return the ids of the records that the dataset version holds, sorted."""
    query = select(DatasetRecord.record_id).where(DatasetRecord.dataset_id == version.dataset_id, DatasetRecord.present.contains(version.number))
    return list(session.scalars(query.order_by(DatasetRecord.record_id)))


def forgotten_digests(session: Session, targets: Iterable[Target], dataset_id: UUID) -> frozenset[bytes]:
    """Return the keyed digests of the records that the targets forget in the dataset."""
    query = select(TargetRecord.record_hmac).where(
        TargetRecord.target_id.in_([target.id for target in targets]), TargetRecord.dataset_id == dataset_id
    )
    return frozenset(session.scalars(query))


def ledger_digests(session: Session, model_id: UUID, dataset_id: UUID) -> frozenset[bytes]:
    """Return the keyed digests of the dataset's records that the model has forgotten."""
    query = select(ForgetLedger.record_hmac).where(ForgetLedger.model_id == model_id, ForgetLedger.dataset_id == dataset_id)
    return frozenset(session.scalars(query))


def trained_here(session: Session, version_id: UUID) -> bool:
    """Say whether the version's line begins, up to its last fresh start, with a job of the service and not with an upload."""
    statement = text("""
        WITH RECURSIVE up AS (SELECT id, parent_id, fresh_start, job_id FROM model_version WHERE id = :id
            UNION SELECT p.id, p.parent_id, p.fresh_start, p.job_id FROM model_version p JOIN up ON p.id = up.parent_id
             WHERE NOT (up.fresh_start AND up.job_id IS NOT NULL))
        SELECT bool_and(job_id IS NOT NULL) FROM up
        """)
    return bool(session.scalar(statement, {"id": version_id}))


def measured_shares(session: Session, version_id: UUID) -> tuple[float | None, float | None]:
    """Return how often the version's line, when the service last trained it from a recipe, was right on what it learned from and on held-out records."""
    statement = text("""
        WITH RECURSIVE up AS (SELECT id, parent_id, number, job_id FROM model_version WHERE id = :id
            UNION SELECT p.id, p.parent_id, p.number, p.job_id FROM model_version p JOIN up ON p.id = up.parent_id)
        SELECT j.result #>> '{metrics,train,accuracy}' AS learned, j.result #>> '{metrics,test,accuracy}' AS unseen
          FROM up JOIN job j ON j.id = up.job_id WHERE j.kind = 'train' ORDER BY up.number DESC LIMIT 1
        """)
    row = session.execute(statement, {"id": version_id}).one_or_none()
    shares = (row.learned, row.unseen) if row is not None else (None, None)
    return None if shares[0] is None else float(shares[0]), None if shares[1] is None else float(shares[1])


def earlier_readings(session: Session, model_id: UUID, *, about: str) -> list[Mapping[str, Any]]:
    """Return the readings on forgotten records of the model's jobs that were published and held against a retrained model, the newest 100.

    They are of requests `about` the same: a class, a range or records. Plans from before that was told say `class` or `records` alone.
    """
    columns = [getattr(ReadingRow, name) for name in ("name", "split", "n", "level", "before", "reference", "ci_low", "ci_high", "band", "detail")]
    query = (
        select(*columns)
        .join(Job, Job.id == ReadingRow.job_id)
        .join(VerificationPlan, (VerificationPlan.job_id == ReadingRow.job_id) & (VerificationPlan.round == ReadingRow.round))
        .where(Job.model_id == model_id, Job.state == "succeeded", ReadingRow.split.startswith("forget"))
        .where(func.coalesce(VerificationPlan.body["about"].astext, VerificationPlan.body["request_kind"].astext) == about)
        .where(VerificationPlan.body["reference"].astext == "retrained")
        .order_by(Job.finished_at.desc(), ReadingRow.name, ReadingRow.split)
        .limit(100)
    )
    return [dict(row) for row in session.execute(query).mappings()]


def move(session: Session, job: Job, event: str, **values: Any) -> str:
    """Apply an event to the job and return its new state; a state that holds no lease loses it. Raises IllegalTransition."""
    after = following(JOB, job.state, event, thing="job")
    if after not in LEASED:
        values |= {"lease_owner": None, "lease_until": None}
    if after in {"succeeded", "failed", "cancelled"}:
        values |= {"finished_at": func.clock_timestamp()}
    session.execute(update(Job).where(Job.id == job.id).values(state=after, **values))
    session.refresh(job)
    return after


def move_targets(session: Session, targets: Iterable[Target], event: str, **values: Any) -> None:
    """Apply an event to every target that takes it; one that a request took back meanwhile is left as it is."""
    for target in targets:
        if event in TARGET[target.state]:
            after = following(TARGET, target.state, event, thing="target")
            session.execute(update(Target).where(Target.id == target.id).values(state=after, **values))


def release_targets(session: Session, job_id: UUID) -> None:
    """Let the job's targets be taken by another job."""
    session.execute(update(JobTarget).where(JobTarget.job_id == job_id, JobTarget.active).values(active=False))


def start_attempt(session: Session, job: Job, *, worker: str, device: Mapping[str, Any]) -> None:
    """Record a claim; the one before it, if it never ended, is closed as lost."""
    session.execute(
        update(JobAttempt).where(JobAttempt.job_id == job.id, JobAttempt.ended_at.is_(None)).values(ended_at=func.clock_timestamp(), outcome="lost")
    )
    session.execute(
        insert(JobAttempt).values(
            tenant_id=job.tenant_id, job_id=job.id, attempt=job.attempt, lease_epoch=job.lease_epoch, worker=worker, device=dict(device)
        )
    )


def end_attempt(session: Session, job: Job, *, outcome: str, error: Mapping[str, Any] | None = None) -> None:
    """Close the running attempt."""
    session.execute(
        update(JobAttempt)
        .where(JobAttempt.job_id == job.id, JobAttempt.attempt == job.attempt)
        .values(ended_at=func.clock_timestamp(), outcome=outcome, error=dict(error) if error is not None else None)
    )


def start_step(session: Session, job: Job, name: str, *, input_digest: str | None = None) -> None:
    """Record that a step of this attempt began; it is shown as the job's step."""
    row = {"tenant_id": job.tenant_id, "job_id": job.id, "name": name, "attempt": job.attempt, "state": "running", "input_digest": input_digest}
    session.execute(upsert(JobStep).values(row).on_conflict_do_update(index_elements=_STEP_KEY, set_={"state": "running", "ended_at": None}))
    session.execute(update(Job).where(Job.id == job.id).values(step=name, progress={"step": name, "done": 0, "total": None}))


_STEP_KEY = ["tenant_id", "job_id", "name", "attempt"]


def finish_step(session: Session, job: Job, name: str, output: Mapping[str, Any], *, output_digest: str | None) -> None:
    """Record what a step put out, in its own row and in the job's step_state, from which a re-claim resumes."""
    session.execute(
        update(JobStep)
        .where(JobStep.job_id == job.id, JobStep.name == name, JobStep.attempt == job.attempt)
        .values(state="done", output_digest=output_digest, metrics=output.get("metrics"), ended_at=func.clock_timestamp())
    )
    state = dict(job.step_state or {})
    state["steps"] = {**state.get("steps", {}), name: dict(output)}
    session.execute(update(Job).where(Job.id == job.id).values(step_state=state))
    session.refresh(job)


def fail_step(session: Session, job: Job) -> None:
    """Record that the running step of this attempt did not end."""
    session.execute(
        update(JobStep)
        .where(JobStep.job_id == job.id, JobStep.attempt == job.attempt, JobStep.state == "running")
        .values(state="failed", ended_at=func.clock_timestamp())
    )


def pin(session: Session, job: Job, path: str, digest: str, size_bytes: int) -> None:
    """Announce a blob before it is put, so that nothing takes it while the job runs, and note that the job put it. Raises BuriedBytes, StoreDown."""
    objects.announce(session, {digest: size_bytes})
    kept = upsert(JobFile).values(tenant_id=job.tenant_id, job_id=job.id, digest=digest, path=path, size_bytes=size_bytes)
    session.execute(kept.on_conflict_do_nothing())
    until = func.clock_timestamp() + PIN_FOR
    row = upsert(ObjectPin).values(digest=digest, job_id=job.id, until=until)
    session.execute(row.on_conflict_do_update(index_elements=["digest", "job_id"], set_={"until": until}))


def plan_digest(session: Session, job: Job) -> str | None:
    """Return the digest of this round's plan, if it is frozen already."""
    return session.scalar(select(VerificationPlan.digest).where(VerificationPlan.job_id == job.id, VerificationPlan.round == job.round))


def plan_body(session: Session, job: Job) -> dict[str, Any]:
    """Return the frozen plan of this round. Raises NotFound."""
    body = session.scalar(select(VerificationPlan.body).where(VerificationPlan.job_id == job.id, VerificationPlan.round == job.round))
    if body is None:
        raise NotFound
    return body


def save_plan(session: Session, job: Job, body: Mapping[str, Any], digest: str) -> None:
    """Freeze the plan of this round; the row can never change."""
    session.execute(insert(VerificationPlan).values(tenant_id=job.tenant_id, job_id=job.id, round=job.round, body=dict(body), digest=digest))


def looks(session: Session, job_id: UUID) -> int:
    """Return how often the held-out records are looked at by the end of this job: once by each rung before it that had a verdict, and by itself."""
    statement = text("""
        WITH RECURSIVE up AS (SELECT escalated_from AS id FROM job WHERE id = :id AND escalated_from IS NOT NULL
            UNION SELECT j.escalated_from FROM job j JOIN up ON j.id = up.id WHERE j.escalated_from IS NOT NULL)
        SELECT count(DISTINCT v.job_id) FROM verdict v JOIN up ON up.id = v.job_id
        """)
    return 1 + int(session.scalar(statement, {"id": job_id}) or 0)


def save_readings(session: Session, job: Job, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store the readings of this round."""
    if rows:
        session.execute(insert(ReadingRow), [{"tenant_id": job.tenant_id, "job_id": job.id, "round": job.round, **row} for row in rows])


def save_figures(session: Session, job: Job, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store what the figures of this round draw, or why they draw nothing."""
    if rows:
        session.execute(insert(FigureRow), [{"tenant_id": job.tenant_id, "job_id": job.id, "round": job.round, **row} for row in rows])


def save_verdict(session: Session, job: Job, *, verdict: str, codes: Sequence[str], sentence: str) -> None:
    """Store the verdict of this round."""
    values = {"tenant_id": job.tenant_id, "job_id": job.id, "round": job.round, "verdict": verdict, "codes": list(codes), "sentence": sentence}
    session.execute(insert(VerdictRow).values(values))


def verdict_of(session: Session, job: Job) -> str | None:
    """Return the stored verdict of this round."""
    return session.scalar(select(VerdictRow.verdict).where(VerdictRow.job_id == job.id, VerdictRow.round == job.round))


def released(session: Session, job: Job) -> bool:
    """Say whether a person released the candidate of this round."""
    query = select(ReleaseRow.outcome).where(ReleaseRow.job_id == job.id, ReleaseRow.round == job.round)
    return session.scalar(query) == "release"


def rebase(session: Session, job: Job, base_version_id: UUID | None) -> None:
    """Point the job at the model's current version, and at the newest dataset version that holds the records of all its targets.

    A new round starts, and nothing judged against the old parent counts.
    """
    fresh = {"base_version_id": base_version_id, "round": job.round + 1, "step": None, "step_state": None}
    if job.kind != "train":
        fresh["dataset_version_id"] = _source(session, job)
    session.execute(update(Job).where(Job.id == job.id).values(**fresh))
    session.refresh(job)


def _source(session: Session, job: Job) -> UUID | None:
    found = sources(session, [target.id for target in active_targets(session, job.id)])
    query = select(DatasetVersion.id).where(DatasetVersion.id.in_(found.values())).order_by(DatasetVersion.number).limit(1)
    return session.scalar(query)


def insert_rung(session: Session, job: Job, values: Mapping[str, Any], targets: Sequence[Target]) -> None:
    """Insert the job of the next rung and move the targets over to it."""
    kept = {
        "tenant_id": job.tenant_id,
        "kind": job.kind,
        "state": "queued",
        "model_id": job.model_id,
        "base_version_id": job.base_version_id,
        "dataset_version_id": job.dataset_version_id,
        "policy_id": job.policy_id,
        "rung": job.rung + 1,
        "escalated_from": job.id,
        "queue": job.queue,
        "priority": job.priority,
        "due_at": job.due_at,
        "deadline_s": job.deadline_s,
        "created_by": job.created_by,
    }
    session.execute(insert(Job).values(**kept, **values))
    session.flush()
    release_targets(session, job.id)
    rows = [{"tenant_id": job.tenant_id, "job_id": values["id"], "target_id": target.id, "active": True} for target in targets]
    session.execute(insert(JobTarget), rows)
    move_targets(session, targets, "requeue", rung=job.rung + 1)


def verification_documents(session: Session) -> list[Mapping[str, Any]]:
    """Return the verification document of the newest version of each policy of the tenant."""
    query = select(Policy.verification).distinct(Policy.key).order_by(Policy.key, Policy.version.desc())
    return list(session.scalars(query))


def cancel_waiting(session: Session, model_id: UUID, *, kind: str) -> None:
    """Cancel the jobs of a kind on a model that nobody has claimed."""
    waiting = select(Job).where(Job.model_id == model_id, Job.kind == kind, Job.state == "queued").with_for_update(skip_locked=True)
    for job in session.scalars(waiting).all():
        move(session, job, "cancel", error={"code": "superseded", "detail": "Another version was published since."})


def insert_reference(session: Session, job: Job, values: Mapping[str, Any]) -> None:
    """Insert a job of kind `reference` on the model of `job`, for the dataset version that the base version in `values` learned from."""
    base = session.scalars(select(ModelVersion).where(ModelVersion.id == values["base_version_id"])).one()
    learned = {"dataset_version_id": _learned_from(session, base)}
    kept = {"tenant_id": job.tenant_id, "kind": "reference", "state": "queued", "model_id": job.model_id, "seeds": {}, "queue": job.queue}
    session.execute(insert(Job).values(**kept, **learned, created_by="service", **values))


def now(session: Session) -> datetime:
    """Return the database's time."""
    return session.execute(select(func.clock_timestamp())).scalar_one()


def drop_pins(session: Session, job_id: UUID) -> None:
    """Let the collector have what the job put and never published."""
    session.execute(ObjectPin.__table__.delete().where(ObjectPin.job_id == job_id))  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a report is made of."""

    request: DeletionRequest
    subjects: Sequence[Subject]
    runs: Sequence[Run]
    policy: Policy
    conduct: Conduct


def for_report(session: Session, request_id: UUID) -> Gathered | None:
    """Return the rows of a request's report; None while a target is still on its way, or for an unknown request."""
    request = session.scalars(select(DeletionRequest).where(DeletionRequest.id == request_id)).first()
    if request is None:
        return None
    targets = session.scalars(select(Target).where(Target.request_id == request_id).order_by(Target.id)).all()
    if any(target.state in {"located", "queued", "running"} for target in targets):
        return None
    policy = session.scalars(select(Policy).where(Policy.id == request.policy_id)).one()
    job_ids = select(JobTarget.job_id).where(JobTarget.target_id.in_([target.id for target in targets]))
    jobs = session.scalars(select(Job).where(Job.id.in_(job_ids)).order_by(Job.rung, Job.created_at)).all()
    subjects = [_subject(session, request, target, caps=drift_caps(policy.limits)) for target in targets]
    return Gathered(request, subjects, [_run(session, job) for job in jobs], policy, _conduct(session, request_id))


def _conduct(session: Session, request_id: UUID) -> Conduct:
    pauses = session.scalars(select(ClockPause).where(ClockPause.request_id == request_id).order_by(ClockPause.from_at)).all()
    query = select(RecipientNotification, Model.name, ModelVersion.number).join(ModelVersion, ModelVersion.id == RecipientNotification.version_id)
    query = query.join(Model, Model.id == ModelVersion.model_id).where(RecipientNotification.request_id == request_id)
    rows = session.execute(query.order_by(RecipientNotification.sent_at, RecipientNotification.id)).all()
    return Conduct(pauses, [Told(row[0], row[1], row[2]) for row in rows])


def _subject(session: Session, request: DeletionRequest, target: Target, *, caps: Mapping[str, float | None]) -> Subject:
    model = session.scalars(select(Model).where(Model.id == target.model_id)).first() if target.model_id else None
    wanted = {version_id for version_id in (target.base_version_id, target.published_version_id) if version_id is not None}
    found = {version.id: version for version in session.scalars(select(ModelVersion).where(ModelVersion.id.in_(wanted)))}
    base, published = (found.get(version_id) if version_id else None for version_id in (target.base_version_id, target.published_version_id))
    superseded: Sequence[ModelVersion] = []
    if published is not None:  # and what a later request supersedes is told by that one's report
        named = [UUID(one) for one in (request.details or {}).get("tainted", {}).get(str(target.model_id), ())]
        gone = select(ModelVersion).where(ModelVersion.model_id == target.model_id, ModelVersion.status.in_(("quarantined", "destroyed")))
        gone = gone.where(or_(ModelVersion.number < published.number, ModelVersion.id.in_(named)))
        superseded = session.scalars(gone.order_by(ModelVersion.number)).all()
    held = {version.id: holds.over_version(session, version.id) for version in superseded if version.status == "quarantined"}
    now = published or base
    ledger = drift.standing(now.manifest if now.job_id is not None else None, caps) if now is not None else None
    since = _exact_since(session, now.id) if now is not None else None
    certificates = destruction.certificates(session, [one.id for one in superseded])
    data = destruction.data_of(session, request.id) if model is not None else []
    return Subject(target, model, base, published, superseded, certificates, held, ledger, since, data, candidates.of_target(session, target.id))


def _exact_since(session: Session, version_id: UUID) -> datetime | None:
    """Return when the version was made from which the line goes on without a fresh start; None for a line that begins with an upload."""
    statement = text("""
        WITH RECURSIVE up AS (SELECT id, parent_id, fresh_start, job_id, created_at FROM model_version WHERE id = :id
            UNION SELECT p.id, p.parent_id, p.fresh_start, p.job_id, p.created_at FROM model_version p JOIN up ON p.id = up.parent_id
             WHERE NOT (up.fresh_start AND up.job_id IS NOT NULL))
        SELECT max(created_at) FROM up WHERE fresh_start AND job_id IS NOT NULL
        """)
    return session.scalar(statement, {"id": version_id})


def _run(session: Session, job: Job) -> Run:
    attempts = session.scalars(select(JobAttempt).where(JobAttempt.job_id == job.id).order_by(JobAttempt.attempt)).all()
    plan = session.scalars(select(VerificationPlan).where(VerificationPlan.job_id == job.id, VerificationPlan.round == job.round)).first()
    readings = session.scalars(select(ReadingRow).where(ReadingRow.job_id == job.id, ReadingRow.round == job.round)).all()
    verdict = session.scalars(select(VerdictRow).where(VerdictRow.job_id == job.id, VerdictRow.round == job.round)).first()
    batch = session.scalar(select(func.count()).select_from(JobTarget).where(JobTarget.job_id == job.id)) or 0
    drawn = session.scalars(select(FigureRow).where(FigureRow.job_id == job.id, FigureRow.round == job.round).order_by(FigureRow.name)).all()
    plan_leaf, run_leaf = _leaf(session, job, "plan.frozen"), _leaf(session, job, "run.started")
    return Run(job, attempts, plan, readings, verdict, batch, drawn, plan_leaf, run_leaf)


def _leaf(session: Session, job: Job, event_type: str) -> int | None:
    """Return the leaf of the first event of this type in the job's round; None where there is no such event. Raises LogBehind."""
    for _, body, seq in audit.numbered(session, job.id, [event_type]):
        if body.get("round") == job.round:
            if seq is None:
                raise LogBehind
            return seq
    return None
