"""SQL of requests, targets and the jobs they open. Every statement runs inside the caller's transaction.

Control's role sees requests, targets and jobs of every tenant, so statements that are not keyed by an id name the tenant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import and_, func, insert, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from services.db.tables import (
    TERMINAL_REQUEST,
    AuditEvent,
    AuditPayload,
    AuditReport,
    Base,
    ClockPause,
    DeletionRequest,
    Job,
    JobAttempt,
    JobStep,
    JobTarget,
    Model,
    ModelVersion,
    Policy,
    ReceiptRow,
    Target,
    TargetRecord,
    Tenant,
)
from services.requests.forms import JobFilters, Key, RequestFilters

LEAST_RUNS = 3
FRESH = {"populate_existing": True}
QUIET = {"synchronize_session": False}
FINAL_TARGET = ("published", "exempt", "not_found", "cancelled")


# --- requests --------------------------------------------------------------------------------------------------------------------------


def add(session: Session, table: type[Base], **values: Any) -> None:
    """Insert one row."""
    session.execute(insert(table.__table__), values)  # pyright: ignore[reportArgumentType]  a mapped class has a Table


def add_request(session: Session, **values: Any) -> datetime | None:
    """Insert a request and return when, or None where another one has its external_id or, being open, its scope.

    Waits for a transaction that is writing such a request; when it has committed, the next statement sees its row.
    """
    statement = upsert(DeletionRequest.__table__).on_conflict_do_nothing().returning(DeletionRequest.__table__.c.created_at)  # pyright: ignore[reportArgumentType]
    return session.execute(statement, values).scalar_one_or_none()


def request(session: Session, request_id: UUID, *, lock: bool = False) -> DeletionRequest | None:
    """Return a request."""
    query = select(DeletionRequest).where(DeletionRequest.id == request_id).execution_options(**FRESH)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def by_external_id(session: Session, tenant_id: UUID, external_id: str) -> DeletionRequest | None:
    """Return the request with an external_id."""
    query = select(DeletionRequest).where(DeletionRequest.tenant_id == tenant_id, DeletionRequest.external_id == external_id)
    return session.scalars(query.execution_options(**FRESH)).one_or_none()


def open_with_scope(session: Session, tenant_id: UUID, scope_hmac: bytes) -> DeletionRequest | None:
    """Return the open request with a scope, locked."""
    query = select(DeletionRequest).where(
        DeletionRequest.tenant_id == tenant_id, DeletionRequest.scope_hmac == scope_hmac, DeletionRequest.closed_at.is_(None)
    )
    return session.scalars(query.with_for_update().execution_options(**FRESH)).one_or_none()


def set_request(session: Session, request_id: UUID, **values: Any) -> None:
    """Write columns of a request; its version rises by one. A request that closes loses the names that it was about."""
    if values.get("closed_at") is not None:
        values["names_sealed"] = None
    statement = update(DeletionRequest).where(DeletionRequest.id == request_id).values(version=DeletionRequest.version + 1, **values)
    session.execute(statement, execution_options=QUIET)


def page(session: Session, filters: RequestFilters, limit: int, after: Key | None, *, newest_first: bool) -> list[DeletionRequest]:
    """Return at most `limit` requests by creation time."""
    key = tuple_(DeletionRequest.created_at, DeletionRequest.id)
    query = select(DeletionRequest)
    if filters.state is not None:
        query = query.where(DeletionRequest.state == filters.state)
    if filters.regulation is not None:
        query = query.where(DeletionRequest.regulation == filters.regulation)
    if filters.due_before is not None:
        query = query.where(DeletionRequest.due_at < filters.due_before)
    if filters.created_from is not None:
        query = query.where(DeletionRequest.created_at >= filters.created_from)
    if filters.created_to is not None:
        query = query.where(DeletionRequest.created_at < filters.created_to)
    if filters.overdue is not None:
        stopped = select(ClockPause.from_at).where(ClockPause.request_id == DeletionRequest.id, ClockPause.to_at.is_(None)).scalar_subquery()
        late = and_(DeletionRequest.closed_at.is_(None), DeletionRequest.due_at < func.coalesce(stopped, func.clock_timestamp()))
        query = query.where(late if filters.overdue else ~late)
    if filters.model is not None:
        named = Model.id == filters.model if isinstance(filters.model, UUID) else Model.name == filters.model
        query = query.where(select(Target.id).join(Model, Model.id == Target.model_id).where(Target.request_id == DeletionRequest.id, named).exists())
    if after is not None:
        query = query.where(key < tuple_(*after) if newest_first else key > tuple_(*after))
    order = (DeletionRequest.created_at, DeletionRequest.id)
    return list(session.scalars(query.order_by(*(column.desc() if newest_first else column for column in order)).limit(limit)))


def due_before(session: Session, before: datetime) -> list[UUID]:
    """Return the open requests due before a moment, earliest first."""
    query = select(DeletionRequest.id).where(DeletionRequest.closed_at.is_(None), DeletionRequest.due_at < before)
    return list(session.scalars(query.order_by(DeletionRequest.due_at)))


def hasten(session: Session, request_id: UUID, due_at: datetime) -> None:
    """Give an open request and its targets an earlier due date: that of a duplicate."""
    session.execute(
        update(DeletionRequest).where(DeletionRequest.id == request_id, DeletionRequest.due_at > due_at).values(due_at=due_at),
        execution_options=QUIET,
    )
    session.execute(update(Target).where(Target.request_id == request_id, Target.due_at > due_at).values(due_at=due_at), execution_options=QUIET)
    session.execute(
        text("""UPDATE job SET due_at = :due WHERE due_at > :due AND finished_at IS NULL AND id IN
            (SELECT jt.job_id FROM job_target jt JOIN target t ON t.id = jt.target_id WHERE t.request_id = :request AND jt.active)"""),
        {"due": due_at, "request": request_id},
    )


def set_due(session: Session, request_id: UUID, due_at: datetime) -> None:
    """Give a request and its targets another due date, and each job that serves one of them the earliest of its targets'."""
    session.execute(update(DeletionRequest).where(DeletionRequest.id == request_id).values(due_at=due_at), execution_options=QUIET)
    session.execute(update(Target).where(Target.request_id == request_id).values(due_at=due_at), execution_options=QUIET)
    statement = text("""
        UPDATE job SET due_at = (SELECT min(t.due_at) FROM job_target x JOIN target t ON t.id = x.target_id WHERE x.job_id = job.id AND x.active)
         WHERE finished_at IS NULL AND id IN
            (SELECT x.job_id FROM job_target x JOIN target t ON t.id = x.target_id WHERE t.request_id = :request AND x.active)""")
    session.execute(statement, {"request": request_id})


def pauses(session: Session, request_ids: Sequence[UUID]) -> dict[UUID, list[ClockPause]]:
    """Return the pauses of requests, oldest first."""
    held: dict[UUID, list[ClockPause]] = {request_id: [] for request_id in request_ids}
    query = select(ClockPause).where(ClockPause.request_id.in_(request_ids)).order_by(ClockPause.from_at).execution_options(**FRESH)
    for row in session.scalars(query):
        held[row.request_id].append(row)
    return held


def end_pause(session: Session, pause_id: UUID, until: datetime, *, by: str) -> None:
    """Write the end of a pause."""
    session.execute(update(ClockPause).where(ClockPause.id == pause_id).values(to_at=until, closed_by=by), execution_options=QUIET)


def tenant(session: Session, tenant_id: UUID) -> Tenant:
    """Return a tenant, read once in a transaction."""
    return session.get_one(Tenant, tenant_id)


def policies(session: Session, policy_ids: Sequence[UUID]) -> dict[UUID, Policy]:
    """Return policy versions by id."""
    return {row.id: row for row in session.scalars(select(Policy).where(Policy.id.in_(policy_ids)))}


def receipts(session: Session, tenant_id: UUID, request_ids: Sequence[UUID]) -> dict[UUID, tuple[int, str, int | None, str | None]]:
    """Return the audit event of each request's receipt, its commitment (hex), the number of its leaf and the signed receipt, once there are any."""
    query = (
        select(AuditPayload.object_id, AuditEvent.id, AuditEvent.commitment, AuditEvent.seq, ReceiptRow.jws)
        .join(AuditEvent, AuditEvent.id == AuditPayload.event_id)
        .outerjoin(ReceiptRow, ReceiptRow.event_id == AuditEvent.id)
        .where(AuditPayload.tenant_id == tenant_id, AuditPayload.object_id.in_(request_ids), AuditEvent.type == "request.received")
    )
    return {row[0]: (row[1], row[2].hex(), row[3], row[4]) for row in session.execute(query)}


def reports(session: Session, request_ids: Sequence[UUID]) -> dict[UUID, tuple[int, str]]:
    """Return the newest signed report of each request: revision and digest."""
    query = select(AuditReport.request_id, AuditReport.revision, AuditReport.digest)
    query = query.where(AuditReport.request_id.in_(request_ids), AuditReport.tlog_proof.is_not(None))
    return {row.request_id: (row.revision, row.digest) for row in session.execute(query.order_by(AuditReport.revision))}


def report_waits(session: Session, request_id: UUID) -> bool:
    """Say whether a report of the request is stored and the signer has not come to it yet."""
    query = select(AuditReport.id).where(AuditReport.request_id == request_id, AuditReport.tlog_proof.is_(None)).limit(1)
    return session.scalar(query) is not None


# --- targets ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TargetLine:
    """A target with the names that a client knows."""

    target: Target
    model: str | None
    base: int | None
    published: int | None
    published_digest: str | None


def target_lines(session: Session, request_ids: Sequence[UUID]) -> dict[UUID, list[TargetLine]]:
    """Return the targets of requests, by model name."""
    base, new = ModelVersion.__table__.alias("base"), ModelVersion.__table__.alias("new")
    query = (
        select(Target, Model.name, base.c.number, new.c.number, new.c.manifest_digest)
        .outerjoin(Model, Model.id == Target.model_id)
        .outerjoin(base, base.c.id == Target.base_version_id)
        .outerjoin(new, new.c.id == Target.published_version_id)
        .where(Target.request_id.in_(request_ids))
        .order_by(Model.name, Target.id)
        .execution_options(**FRESH)
    )
    lines: dict[UUID, list[TargetLine]] = {request_id: [] for request_id in request_ids}
    for row in session.execute(query):
        lines[row[0].request_id].append(TargetLine(*row))
    return lines


def targets(session: Session, request_id: UUID, *, lock: bool = False) -> list[Target]:
    """Return the targets of a request by id."""
    query = select(Target).where(Target.request_id == request_id).order_by(Target.id).execution_options(**FRESH)
    return list(session.scalars(query.with_for_update() if lock else query))


def target_jobs(session: Session, target_ids: Sequence[UUID]) -> dict[UUID, list[UUID]]:
    """Return the jobs of targets, newest first."""
    jobs: dict[UUID, list[UUID]] = {target_id: [] for target_id in target_ids}
    query = select(JobTarget.target_id, JobTarget.job_id).where(JobTarget.target_id.in_(target_ids)).order_by(JobTarget.job_id.desc())
    for row in session.execute(query):
        jobs[row.target_id].append(row.job_id)
    return jobs


def add_target_records(session: Session, tenant_id: UUID, target_id: UUID, digests: Mapping[UUID, Sequence[bytes]]) -> None:
    """Enter the keyed digests of a target's records."""
    statement = text("""INSERT INTO target_record (tenant_id, target_id, dataset_id, record_hmac)
        SELECT CAST(:tenant AS uuid), CAST(:target AS uuid), CAST(:dataset AS uuid), x.d FROM unnest(CAST(:digests AS bytea[])) AS x(d)""")
    for dataset_id, held in digests.items():
        session.execute(statement, {"tenant": tenant_id, "target": target_id, "dataset": dataset_id, "digests": list(held)})


def set_targets(session: Session, target_ids: Sequence[UUID], **values: Any) -> None:
    """Write columns of targets."""
    session.execute(update(Target).where(Target.id.in_(target_ids)).values(**values), execution_options=QUIET)


def queue_targets(session: Session, target_ids: Sequence[UUID]) -> None:
    """Put targets in line, by the database's clock."""
    session.execute(update(Target).where(Target.id.in_(target_ids)).values(state="queued", queued_at=func.clock_timestamp()), execution_options=QUIET)


def covering_version(session: Session, target_id: UUID) -> UUID | None:
    """Return the version that completed the forgetting of a target's records, if the model's current version stands at or below all of them.

    None when a record is not in the model's ledger, or was forgotten on another branch.
    """
    statement = text("""
        WITH RECURSIVE line AS (
            SELECT v.id, v.parent_id FROM target t JOIN model m ON m.id = t.model_id JOIN model_version v ON v.id = m.current_version_id WHERE t.id = :id
            UNION SELECT p.id, p.parent_id FROM model_version p JOIN line ON p.id = line.parent_id)
        SELECT count(*) AS records, count(line.id) AS covered, (array_agg(f.version_id ORDER BY f.at DESC) FILTER (WHERE line.id IS NOT NULL))[1] AS version
          FROM target_record r JOIN target t ON t.id = r.target_id
          LEFT JOIN forget_ledger f ON f.tenant_id = r.tenant_id AND f.model_id = t.model_id AND f.dataset_id = r.dataset_id AND f.record_hmac = r.record_hmac
          LEFT JOIN line ON line.id = f.version_id
         WHERE r.target_id = :id
        """)
    row = session.execute(statement, {"id": target_id}).one()
    return row.version if row.records and row.records == row.covered else None


def suppressing_version(session: Session, target_id: UUID, labels: Sequence[str]) -> UUID | None:
    """Return the version that completed the suppression of classes of which no record is held, if the model's current version came of it by jobs alone.

    An upload ends the search, whatever it names as its parent: nothing says what its weights learned from.
    """
    statement = text("""
        WITH RECURSIVE line AS (
            SELECT v.id, v.parent_id, v.job_id, v.number FROM target t JOIN model m ON m.id = t.model_id
              JOIN model_version v ON v.id = m.current_version_id WHERE t.id = :id
            UNION SELECT p.id, p.parent_id, p.job_id, p.number FROM model_version p JOIN line ON p.id = line.parent_id AND line.job_id IS NOT NULL)
        SELECT line.id, q.scope->'labels' AS labels
          FROM line JOIN target t ON t.published_version_id = line.id AND t.outcome = 'unlearned' JOIN deletion_request q ON q.id = t.request_id
         WHERE line.job_id IS NOT NULL AND (q.details->>'zero_shot')::boolean ORDER BY line.number
        """)
    missing = set(labels)
    for row in session.execute(statement, {"id": target_id}):
        missing -= set(row.labels)
        if not missing:
            return row.id
    return None


def base_of(session: Session, model_id: UUID) -> ModelVersion | None:
    """Return the current version of a model."""
    return session.scalars(select(ModelVersion).join(Model, Model.current_version_id == ModelVersion.id).where(Model.id == model_id)).one_or_none()


def job_parameters(session: Session, job_id: UUID, *, method: str) -> dict[str, Any] | None:
    """Return the parameters of a job by a method; None where the job is another's, or not known."""
    return session.scalars(select(Job.params).where(Job.id == job_id, Job.method == method)).one_or_none()


def labels_of(session: Session, target_ids: Sequence[UUID]) -> list[str]:
    """Return the labels that the class requests of these targets name, sorted."""
    query = select(DeletionRequest.scope).join(Target, Target.request_id == DeletionRequest.id).where(Target.id.in_(target_ids))
    return sorted({str(label) for scope in session.scalars(query) for label in scope.get("labels", ())})


def target_errors(session: Session, target_ids: Sequence[UUID]) -> dict[str, Any] | None:
    """Return what stopped the newest job of these targets."""
    query = select(Job.rung, Job.error, Job.attention).join(JobTarget, JobTarget.job_id == Job.id).where(JobTarget.target_id.in_(target_ids))
    row = session.execute(query.order_by(Job.created_at.desc(), Job.id.desc()).limit(1)).one_or_none()
    return None if row is None else {"rung": row.rung, "error": row.error, "attention": row.attention}


def erased_datasets(session: Session, dataset_ids: Sequence[UUID], version_ids: Sequence[UUID]) -> list[tuple[str, int]]:
    """Return (dataset, number) of the dataset versions that published versions learned from: those without the records."""
    statement = text("""
        SELECT DISTINCT d.name, v.number FROM training_input t JOIN dataset_version v ON v.id = t.dataset_version_id JOIN dataset d ON d.id = v.dataset_id
         WHERE t.model_version_id = ANY(:versions) AND d.id = ANY(:datasets) ORDER BY d.name, v.number
        """)
    rows = session.execute(statement, {"versions": list(version_ids), "datasets": list(dataset_ids)})
    return [(row.name, row.number) for row in rows]


def superseded(session: Session, tainted: Sequence[UUID], made: Sequence[UUID]) -> list[tuple[str, int, str, datetime | None]]:
    """Return (model, number, status, destroy_by) of versions that had learned from the records, at the request's start or when one was published."""
    statement = text("""
        SELECT m.name, v.number, v.status, v.destroy_by FROM model_version v JOIN model m ON m.id = v.model_id
         WHERE v.status IN ('quarantined','destroyed')
           AND (v.id = ANY(:tainted) OR v.id IN (SELECT parent_id FROM model_version WHERE id = ANY(:made))) ORDER BY m.name, v.number
        """)
    rows = session.execute(statement, {"tainted": list(tainted), "made": list(made)})
    return [(row.name, row.number, row.status, row.destroy_by) for row in rows]


# --- jobs ------------------------------------------------------------------------------------------------------------------------------


def jobs_of_request(session: Session, request_id: UUID) -> list[Job]:
    """Return the jobs that serve a request now, locked in the order of their ids."""
    wanted = select(JobTarget.job_id).join(Target, Target.id == JobTarget.target_id).where(Target.request_id == request_id, JobTarget.active)
    return list(session.scalars(select(Job).where(Job.id.in_(wanted)).order_by(Job.id).with_for_update().execution_options(**FRESH)))


def leave_job(session: Session, job_id: UUID, target_ids: Sequence[UUID]) -> int:
    """Take targets out of a job; return how many active ones it has left."""
    statement = update(JobTarget).where(JobTarget.job_id == job_id, JobTarget.target_id.in_(target_ids)).values(active=False)
    session.execute(statement, execution_options=QUIET)
    return session.execute(select(func.count()).select_from(JobTarget).where(JobTarget.job_id == job_id, JobTarget.active)).scalar_one()


def active_targets_of_job(session: Session, job_id: UUID) -> list[Target]:
    """Return the targets that a job serves now."""
    query = select(Target).join(JobTarget, JobTarget.target_id == Target.id).where(JobTarget.job_id == job_id, JobTarget.active)
    return list(session.scalars(query.order_by(Target.id).execution_options(**FRESH)))


def cancel_job(session: Session, job_id: UUID) -> None:
    """End a job that nobody runs."""
    statement = update(Job).where(Job.id == job_id)
    session.execute(statement.values(state="cancelled", attention=None, finished_at=func.clock_timestamp()), execution_options=QUIET)


def ask_to_stop(session: Session, job_id: UUID, *, attention: str | None = None) -> None:
    """Ask the runner of a job to stop; `attention` says for what, where that is not the job itself."""
    why = {} if attention is None else {"attention": attention}
    statement = update(Job).where(Job.id == job_id)
    asked = func.coalesce(Job.cancel_requested_at, func.clock_timestamp())
    session.execute(statement.values(cancel_requested_at=asked, **why), execution_options=QUIET)


def job(session: Session, job_id: UUID, *, lock: bool = False) -> Job | None:
    """Return a job."""
    query = select(Job).where(Job.id == job_id).execution_options(**FRESH)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def job_page(session: Session, filters: JobFilters, limit: int, after: Key | None, *, newest_first: bool) -> list[Job]:
    """Return at most `limit` jobs by creation time."""
    query = select(Job)
    if filters.request_id is not None:
        served = select(JobTarget.job_id).join(Target, Target.id == JobTarget.target_id).where(Target.request_id == filters.request_id)
        query = query.where(Job.id.in_(served))
    if filters.model is not None:
        named = Model.id == filters.model if isinstance(filters.model, UUID) else Model.name == filters.model
        query = query.where(select(Model.id).where(Model.id == Job.model_id, named).exists())
    if filters.kind is not None:
        query = query.where(Job.kind == filters.kind)
    if filters.state is not None:
        query = query.where(Job.state == filters.state)
    if after is not None:
        key = tuple_(Job.created_at, Job.id)
        query = query.where(key < tuple_(*after) if newest_first else key > tuple_(*after))
    order = (Job.created_at, Job.id)
    return list(session.scalars(query.order_by(*(column.desc() if newest_first else column for column in order)).limit(limit)))


def job_names(session: Session, jobs: Sequence[Job]) -> tuple[dict[UUID, str], dict[UUID, int], dict[UUID, list[tuple[UUID, UUID]]]]:
    """Return, for jobs, model names by id, version numbers by id, and (target, request) pairs by job."""
    models = {row.id: row.name for row in session.execute(select(Model.id, Model.name).where(Model.id.in_([one.model_id for one in jobs])))}
    bases = [one.base_version_id for one in jobs if one.base_version_id is not None]
    numbers = {row.id: row.number for row in session.execute(select(ModelVersion.id, ModelVersion.number).where(ModelVersion.id.in_(bases)))}
    served: dict[UUID, list[tuple[UUID, UUID]]] = {one.id: [] for one in jobs}
    query = select(JobTarget.job_id, Target.id, Target.request_id).join(Target, Target.id == JobTarget.target_id)
    for row in session.execute(query.where(JobTarget.job_id.in_(list(served))).order_by(Target.id)):
        served[row[0]].append((row[1], row[2]))
    return models, numbers, served


def queue_position(session: Session, one: Job) -> int:
    """Return how many queued jobs of the tenant stand before a queued job in its queue."""
    before = text("""
        SELECT count(*) FROM job WHERE tenant_id = :tenant AND queue = :queue AND state = 'queued' AND id <> :id
           AND (priority, COALESCE(due_at, 'infinity'), run_after, id) < (:priority, COALESCE(CAST(:due AS timestamptz), 'infinity'), :run_after, :id)
        """)
    values = {"tenant": one.tenant_id, "queue": one.queue, "id": one.id, "priority": one.priority, "due": one.due_at, "run_after": one.run_after}
    return session.execute(before, values).scalar_one()


def queued_before(session: Session, model_id: UUID) -> int:
    """Return how many jobs of a model wait or run; a purge holds nobody up."""
    query = select(func.count()).select_from(Job).where(Job.model_id == model_id, Job.finished_at.is_(None), Job.kind != "purge")
    return session.execute(query).scalar_one()


def attempts(session: Session, job_id: UUID) -> list[JobAttempt]:
    """Return the claims of a job, oldest first."""
    return list(session.scalars(select(JobAttempt).where(JobAttempt.job_id == job_id).order_by(JobAttempt.attempt).execution_options(**FRESH)))


def steps(session: Session, job_id: UUID) -> list[JobStep]:
    """Return the steps of a job, oldest first."""
    query = select(JobStep).where(JobStep.job_id == job_id).order_by(JobStep.started_at, JobStep.attempt).execution_options(**FRESH)
    return list(session.scalars(query))


# --- batches ---------------------------------------------------------------------------------------------------------------------------

_ESTIMATE = """COALESCE((SELECT percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM a.ended_at - a.started_at))
     FROM job_attempt a JOIN job j ON j.id = a.job_id WHERE j.model_id = {model} AND j.kind = 'unlearn' AND a.outcome = 'succeeded'
    HAVING count(*) >= 3), 60)"""
_DUE = f"""
WITH due AS (
    SELECT t.tenant_id, t.model_id, r.method, r.params, (r.scope->>'kind' = 'class_labels') AS by_class, min(t.queued_at) AS first_at,
           min(t.due_at) AS first_due, count(*) AS n, p.id AS policy_id, p.batch_window AS w, p.min_subjects AS mn, p.max_batch AS mx,
           make_interval(secs => CAST({_ESTIMATE.format(model="t.model_id")} AS float)) AS estimate
      FROM target t JOIN deletion_request r ON r.id = t.request_id JOIN policy p ON p.id = r.policy_id
     WHERE t.tenant_id = :tenant AND t.state = 'queued' AND r.state = 'in_progress'
       AND NOT EXISTS (SELECT 1 FROM job_target x WHERE x.target_id = t.id AND x.active)
     GROUP BY t.tenant_id, t.model_id, r.method, r.params, by_class, p.id)
SELECT * FROM due WHERE (n >= mx OR (n >= mn AND clock_timestamp() >= first_at + w) OR clock_timestamp() >= first_due - 3 * estimate - interval '2 days')
   AND NOT EXISTS (SELECT 1 FROM job j WHERE j.model_id = due.model_id AND j.kind IN ('train','unlearn')
        AND (j.state IN ('queued','running','verifying','publishing') OR j.attention = 'awaiting_release'))
 ORDER BY first_due, model_id, by_class DESC
"""  # noqa: S608  no value is formatted in


def due_batches(session: Session, tenant_id: UUID) -> Sequence[Any]:
    """Return the batches of a tenant whose window has closed, on models that no job holds."""
    return session.execute(text(_DUE), {"tenant": tenant_id}).all()


def lock_model(session: Session, model_id: UUID) -> Model:
    """Return a model, locked: only one transaction at a time opens a job on it."""
    return session.scalars(select(Model).where(Model.id == model_id).with_for_update().execution_options(**FRESH)).one()


def model_is_busy(session: Session, model_id: UUID) -> bool:
    """Say whether a job on a model is open."""
    statement = text("""SELECT EXISTS (SELECT 1 FROM job j WHERE j.model_id = :model AND j.kind IN ('train','unlearn')
        AND (j.state IN ('queued','running','verifying','publishing') OR j.attention = 'awaiting_release'))""")
    return session.execute(statement, {"model": model_id}).scalar_one()


def take_targets(session: Session, batch: Any, limit: int) -> list[Target]:
    """Return queued targets of a batch, earliest due first, locked; those that another transaction holds are left to it."""
    free = text("NOT EXISTS (SELECT 1 FROM job_target x WHERE x.target_id = target.id AND x.active)")
    is_class = DeletionRequest.scope["kind"].astext == "class_labels"
    query = (
        select(Target)
        .join(DeletionRequest, DeletionRequest.id == Target.request_id)
        .where(
            Target.tenant_id == batch.tenant_id,
            Target.model_id == batch.model_id,
            Target.state == "queued",
            DeletionRequest.state == "in_progress",
            DeletionRequest.method == batch.method,
            DeletionRequest.params == batch.params,
            DeletionRequest.policy_id == batch.policy_id,
            is_class if batch.by_class else ~is_class,
            free,
        )
        .order_by(Target.due_at, Target.id)
        .limit(limit)
        .with_for_update(skip_locked=True, of=Target)
        .execution_options(**FRESH)
    )
    return list(session.scalars(query))


def zero_shot_targets(session: Session, target_ids: Sequence[UUID]) -> set[UUID]:
    """Return those of the targets that name a class of a model of whose training data nothing is held."""
    query = select(Target.id).join(DeletionRequest, DeletionRequest.id == Target.request_id)
    return set(session.scalars(query.where(Target.id.in_(target_ids), DeletionRequest.details["zero_shot"].as_boolean())))


def granularity_of(session: Session, target_ids: Sequence[UUID]) -> Literal["records", "concept"]:
    """Return `concept` where every request of these targets is for an entity, else `records`."""
    query = select(DeletionRequest.scope["kind"].astext).join(Target, Target.request_id == DeletionRequest.id).where(Target.id.in_(target_ids))
    return "concept" if set(session.scalars(query)) == {"entity"} else "records"


def batch_records(session: Session, target_ids: Sequence[UUID]) -> int:
    """Return how many distinct records targets name."""
    query = select(func.count(func.distinct(TargetRecord.record_hmac))).where(TargetRecord.target_id.in_(target_ids))
    return session.execute(query).scalar_one()


def past_seconds(session: Session, model_id: UUID, method: str) -> float | None:
    """Return the 95th percentile of a method's successful runs on a model in seconds; None with fewer than three."""
    statement = text("""
        SELECT percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM a.ended_at - a.started_at)) AS seconds, count(*) AS n
          FROM job_attempt a JOIN job j ON j.id = a.job_id
         WHERE j.model_id = :model AND j.kind = 'unlearn' AND j.method = :method AND a.outcome = 'succeeded'
        """)
    row = session.execute(statement, {"model": model_id, "method": method}).one()
    return float(row.seconds) if row.n >= LEAST_RUNS else None


def last_training(session: Session, model_id: UUID) -> tuple[float, int, int] | None:
    """Return (seconds, epochs, records) of the model's last training run here; None where it has none."""
    statement = text("""
        SELECT extract(epoch FROM s.ended_at - s.started_at) AS seconds, (v.recipe->>'epochs')::int AS epochs, d.records
          FROM job j JOIN job_step s ON s.job_id = j.id AND s.name = 'train' AND s.ended_at IS NOT NULL JOIN model_version v ON v.job_id = j.id
          JOIN dataset_version d ON d.id = j.dataset_version_id
         WHERE j.model_id = :model AND j.kind = 'train' AND j.state = 'succeeded' AND d.records > 0 AND (v.recipe->>'epochs')::int > 0
         ORDER BY j.finished_at DESC LIMIT 1
        """)
    row = session.execute(statement, {"model": model_id}).first()
    return None if row is None else (float(row.seconds), row.epochs, row.records)


def tenants_waiting(session: Session) -> list[UUID]:
    """Return the tenants with queued targets; for control, which sees all."""
    return list(session.scalars(select(Target.tenant_id).where(Target.state == "queued").distinct()))


def is_terminal(state: str) -> bool:
    """Say whether a request in this state is closed."""
    return state in TERMINAL_REQUEST
