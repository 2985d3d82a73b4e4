"""From rows to views of requests."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy.orm import Session

from services.clock import Clock
from services.db.tables import DeletionRequest, Policy
from services.requests import clocks, repository
from services.requests.repository import TargetLine
from services.requests.states import DRP, OPENDSR, REQUEST, allowed, terminal
from services.requests.views import (
    DatasetHit,
    ErasedDataset,
    PauseView,
    PublishedVersion,
    Receipt,
    ReportRef,
    RequestView,
    ResultView,
    ScopeView,
    Superseded,
    TargetView,
)


def views(session: Session, rows: Sequence[DeletionRequest], clock: Clock) -> list[RequestView]:
    """Return requests as a client sees them; a duplicate shows the outcome of the request that it joined."""
    if not rows:
        return []
    canonical = {one.id: one for one in (repository.request(session, row.duplicate_of) for row in rows if row.duplicate_of is not None) if one}
    ids = sorted({row.id for row in rows} | set(canonical))
    lines = repository.target_lines(session, ids)
    jobs = repository.target_jobs(session, [line.target.id for held in lines.values() for line in held])
    policies = repository.policies(session, [row.policy_id for row in rows])
    receipts = repository.receipts(session, rows[0].tenant_id, [row.id for row in rows])
    reports = {request_id: ReportRef(*found) for request_id, found in repository.reports(session, ids).items()}
    pauses = repository.pauses(session, [row.id for row in rows])
    zone, now = ZoneInfo(repository.tenant(session, rows[0].tenant_id).time_zone), clock.now()
    shown: list[RequestView] = []
    for row in rows:
        leading = canonical.get(row.duplicate_of, row) if row.duplicate_of is not None else row
        finished = leading.state in {"completed", "partially_completed"}
        policy = policies[row.policy_id]
        facts = {
            "scope": scope_view(row.scope),
            "targets": tuple(target_view(line, jobs[line.target.id]) for line in lines[leading.id]),
            "policy": policy.key,
            "policy_version": policy.version,
            "result": result(session, leading, lines[leading.id], reports.get(leading.id)) if finished else None,
            "audit_report": reports.get(leading.id),
            "receipt": Receipt(*receipts[row.id]) if row.id in receipts else None,
            "pauses": tuple(PauseView(one.id, one.from_at, one.to_at, one.reason) for one in pauses[row.id]),
        }
        standing = [(one.from_at, now) for one in pauses[row.id] if one.to_at is None]
        due = clocks.paused(row.due_at, standing)
        shown.append(_view(row, leading, days_left=clocks.days_left(due, now, zone), clock_paused=bool(standing), **facts))
    return shown


def fresh(
    row: DeletionRequest, lines: Sequence[TargetLine], policy: Policy, receipt: tuple[int, bytes] | None, *, zone: ZoneInfo, clock: Clock
) -> RequestView:
    """Return a request that was written a moment ago, in this transaction, as `views` would; nothing is read."""
    facts = {
        "scope": scope_view(row.scope),
        "targets": tuple(target_view(line, ()) for line in sorted(lines, key=lambda line: (line.model or "", line.target.id))),
        "policy": policy.key,
        "policy_version": policy.version,
        "result": None,
        "audit_report": None,
        "receipt": None if receipt is None else Receipt(receipt[0], receipt[1].hex()),
        "pauses": (),
        "clock_paused": False,
    }
    return _view(row, row, days_left=clocks.days_left(row.due_at, clock.now(), zone), **facts)


def _view(row: DeletionRequest, leading: DeletionRequest, **facts: Any) -> RequestView:
    return RequestView(
        id=row.id,
        external_id=row.external_id,
        state=row.state,
        status_drp=DRP[leading.state],
        status_opendsr=OPENDSR[leading.state],
        done=terminal(REQUEST, row.state),
        version=row.version,
        allowed=tuple(allowed(REQUEST, row.state)),
        regulation=row.regulation,
        manner=row.manner,
        ground=row.ground,
        exemption=row.exemption,
        created_at=row.created_at,
        created_by=row.created_by,
        received_at=row.received_at,
        due_at=row.due_at,
        original_due_at=row.original_due_at,
        ack_due_at=row.ack_due_at,
        acknowledged_at=row.acknowledged_at,
        extended_at=row.extended_at,
        extension_reason=row.extension_reason,
        closed_at=row.closed_at,
        decided_at=row.decided_at,
        decided_by=row.decided_by,
        method=row.method,
        parameters=row.params,
        metadata=row.details.get("metadata", {}),
        duplicate_of=row.duplicate_of,
        attention=row.attention,
        error=row.error,
        **facts,
    )


def scope_view(scope: dict[str, Any]) -> ScopeView:
    """Return the stored scope as a view."""
    return ScopeView(
        kind=scope["kind"],
        records=scope["records"],
        records_commitment=scope["records_commitment"],
        datasets=tuple(DatasetHit(one["dataset"], UUID(one["dataset_id"]), tuple(one["versions"])) for one in scope["datasets"]),
        labels=tuple(scope.get("labels", ())),
        above=scope.get("above"),
        below=scope.get("below"),
    )


def target_view(line: TargetLine, jobs: Sequence[UUID]) -> TargetView:
    """Return a target as a view."""
    row = line.target
    return TargetView(
        id=row.id,
        request_id=row.request_id,
        model=line.model,
        model_id=row.model_id,
        base_version=line.base,
        state=row.state,
        outcome=row.outcome,
        exemption=row.exemption,
        rung=row.rung,
        records=row.records,
        due_at=row.due_at,
        published_version=line.published,
        published_version_id=row.published_version_id,
        jobs=tuple(jobs),
    )


def result(session: Session, row: DeletionRequest, lines: Sequence[TargetLine], report: ReportRef | None) -> ResultView:
    """Return what a finished request brought about."""
    published = [
        PublishedVersion(line.model, line.published, line.published_digest) for line in lines if line.model is not None and line.published is not None
    ]
    tainted = [UUID(one) for held in row.details.get("tainted", {}).values() for one in held]
    ended = [UUID(one["dataset_id"]) for one in row.scope["datasets"]]
    made = [line.target.published_version_id for line in lines if line.target.published_version_id is not None]
    return ResultView(
        versions=tuple(published),
        datasets=tuple(ErasedDataset(*one) for one in repository.erased_datasets(session, ended, made)),
        superseded=tuple(_superseded(*one) for one in repository.superseded(session, tainted, made)),
        audit_report=report,
    )


def _superseded(model: str, number: int, status: str, destroy_by: datetime | None) -> Superseded:
    disposition = {"quarantined": "quarantined", "destroyed": "purged"}.get(status, "kept")
    return Superseded(model=model, version=number, disposition=disposition, destroy_by=destroy_by)
