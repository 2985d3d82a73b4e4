"""Jobs: what the service is doing."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from api import answers
from api.dependencies import AuditRead, CursorText, IfNoneMatch, JobPath, JobsOperate, JobsRead, Limit, Pages
from api.events import event_of
from api.schemas.base import NameOrId, Page
from api.schemas.ids import parse, reference
from api.schemas.jobs import AttemptList, AttemptOut, JobOut, StepOut
from api.schemas.models import CertificateOut
from api.schemas.requests import EventList, EventOut
from services.audit import repository as audit
from services.requests import candidates, forms, jobs

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
Kind = Literal["train", "unlearn", "reference", "purge"]
State = Literal["queued", "running", "verifying", "publishing", "needs_attention", "succeeded", "failed", "cancelled"]


@router.get("", response_model=Page[JobOut])
async def listing(
    http: Request,
    ledger: JobsRead,
    pages: Pages,
    *,
    request: Annotated[str | None, Query(max_length=64, description="Id of a deletion request.")] = None,
    model: NameOrId | None = None,
    kind: Kind | None = None,
    state: State | None = None,
    sort: Literal["-created_at", "created_at"] = "-created_at",
    limit: Limit = 50,
    cursor: CursorText = None,
) -> Response:
    """List jobs, newest first unless asked otherwise."""
    filters = forms.JobFilters(
        request_id=None if request is None else parse("dr", request),
        model=None if model is None else reference("mdl", model),
        kind=kind,
        state=state,
    )
    named: dict[str, Any] = {name: getattr(filters, name) for name in type(filters).__dataclass_fields__} | {"sort": sort}
    place: dict[str, Any] = {"tenant": ledger.caller.tenant_id, "route": "jobs", "filters": named}
    after = pages.key_of(cursor, **place)
    views, last = await ledger(lambda session: jobs.listing(session, filters, limit=limit, after=after, newest_first=sort == "-created_at"))
    page = Page[JobOut](items=[JobOut.of(view) for view in views], next_cursor=pages.make(last=last, **place))
    return answers.paged(http, page)


@router.get("/{job_id}", response_model=JobOut)
async def read(job_id: JobPath, ledger: JobsRead, if_none_match: IfNoneMatch = None) -> Response:
    """Read one job."""
    body = JobOut.of(await ledger(lambda session: jobs.read(session, parse("job", job_id))))
    return answers.tagged(body, answers.digest_tag(body), if_none_match, headers={} if body.done else {"Retry-After": "5"})


@router.get("/{job_id}/destruction-certificate", response_model=CertificateOut)
async def certificate(job_id: JobPath, ledger: AuditRead, if_none_match: IfNoneMatch = None) -> Response:
    """Read the certificate of what a job put and did not publish, with what opens its commitment in the log."""
    body = CertificateOut.of(await ledger(lambda session: candidates.certificate(session, parse("job", job_id))))
    return answers.tagged(body, answers.digest_tag(body), if_none_match)


@router.get("/{job_id}/attempts", response_model=AttemptList)
async def attempts(job_id: JobPath, ledger: JobsRead) -> AttemptList:
    """List the claims and steps of a job."""
    number = parse("job", job_id)
    made, steps = await ledger(lambda session: (jobs.attempts(session, number), jobs.steps(session, number)))
    return AttemptList(items=[AttemptOut.model_validate(one) for one in made], steps=[StepOut.model_validate(one) for one in steps])


@router.get("/{job_id}/events", response_model=EventList)
async def events(job_id: JobPath, ledger: JobsRead, after: Annotated[int, Query(ge=0, lt=2**63)] = 0, limit: Limit = 200) -> EventList:
    """List the events of a job."""
    number = parse("job", job_id)

    def work(session: Session) -> list[EventOut]:
        jobs.read(session, number)
        rows = audit.events_of(session, [number], after, limit)
        return [event_of(row) for row in rows]

    found = await ledger(work)
    return EventList(items=found, next_after=found[-1].id if found else None)


@router.post("/{job_id}/cancellation", status_code=202, response_model=JobOut)
async def cancel(job_id: JobPath, ledger: JobsOperate) -> JobOut:
    """Ask a job to stop at its next check."""
    return JobOut.of(await ledger(lambda session: jobs.cancel(session, parse("job", job_id), caller=ledger.caller, clock=ledger.clock)))
