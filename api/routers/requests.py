"""Deletion requests: create, read, list, decide, cancel, follow."""

from datetime import timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from api import answers, events
from api.dependencies import (
    CursorText,
    IdempotencyKey,
    IfMatch,
    IfNoneMatch,
    Limit,
    Pages,
    RequestPath,
    RequestsDecide,
    RequestsRead,
    RequestsWrite,
    TargetPath,
)
from api.schemas.base import MomentIn, NameOrId, Page
from api.schemas.ids import parse, reference
from api.schemas.requests import (
    CancellationIn,
    DecisionIn,
    DryRunOut,
    EventList,
    Regulation,
    RequestIn,
    RequestOut,
    Status,
    TargetList,
    TargetOut,
)
from api.security import Ledger
from services import errors
from services.errors import InvalidInput, LetheError
from services.requests import forms, service
from services.telemetry import REQUESTS_CREATED

router = APIRouter(prefix="/v1/deletion-requests", tags=["deletion requests"])
RETRY_S = "30"
AHEAD = timedelta(seconds=60)
"""How far a caller's clock may run ahead of ours."""


def answer(body: RequestOut, if_none_match: str | None = None, *, status: int = 200) -> Response:
    """Return a request with its version as ETag; one that is not done says when to ask again."""
    headers = {} if body.done else {"Retry-After": RETRY_S}
    tagged = answers.tagged(body, answers.version_tag(body, body.version), if_none_match, headers=headers)
    if status != 200:
        tagged.status_code = status
    return tagged


def pointed(error: LetheError, body: RequestIn) -> LetheError:
    """Return the error with the place in the body that it speaks of."""
    place = body.scope.kind
    held: dict[type[LetheError], str] = {
        errors.RecordsNotFound: {"records": "/scope/ids", "class_labels": "/scope/labels"}.get(place, "/scope"),
        errors.EmptyForgetSet: "/scope",
        errors.ForgetSetIsEverything: "/scope",
        errors.UnknownDataset: "/scope/dataset",
        errors.UnknownModel: "/scope/model" if getattr(body.scope, "model", None) is not None else "/models",
        errors.UnknownComponent: "/method",
        errors.MethodNotApplicable: "/method",
        errors.DuplicateExternalId: "/external_id",
    }
    if isinstance(error, errors.ParameterOutOfRange):
        error.facts["pointer"] = f"/parameters{error.facts.get('pointer', '')}"
    elif type(error) in held:
        error.facts.setdefault("pointer", held[type(error)])
    return error


@router.post("", status_code=202, response_model=RequestOut, responses={200: {"model": DryRunOut}})
async def create(
    request: Request,
    body: RequestIn,
    ledger: RequestsWrite,
    *,
    idempotency_key: IdempotencyKey = None,
    dry_run: Annotated[bool, Query(description="Validate and estimate; record nothing.")] = False,
) -> Response:
    """Record a deletion request. The 202 is sent after everything about it is committed."""
    if body.received_at is not None and body.received_at > ledger.clock.now() + AHEAD:
        raise InvalidInput(detail="received_at lies in the future.", pointer="/received_at")

    def work(session: Session) -> tuple[int, RequestOut, dict[str, str]]:
        try:
            view = service.create(session, body.form(), caller=ledger.caller, clock=ledger.clock, keys=ledger.keys)
        except LetheError as error:
            raise pointed(error, body)  # noqa: B904  it is the same error
        made = RequestOut.of(view)
        status = 200 if view.replayed else 202
        return status, made, {"Location": made.links.self, "Retry-After": RETRY_S}

    if dry_run:
        found = await ledger(lambda session: service.dry_run(session, body.form(), caller=ledger.caller, clock=ledger.clock, keys=ledger.keys))
        return JSONResponse(DryRunOut.model_validate(found).model_dump(mode="json"))
    made = await answers.once(request, ledger, idempotency_key, work)
    if made.status_code == 202 and "Idempotency-Replayed" not in made.headers:
        REQUESTS_CREATED.labels(scope=body.scope.kind).inc()
    return made


@router.get("", response_model=Page[RequestOut])
async def listing(
    request: Request,
    ledger: RequestsRead,
    pages: Pages,
    *,
    status: Status | None = None,
    model: NameOrId | None = None,
    regulation: Regulation | None = None,
    due_before: MomentIn | None = None,
    overdue: bool | None = None,
    created_from: MomentIn | None = None,
    created_to: MomentIn | None = None,
    sort: Literal["-created_at", "created_at"] = "-created_at",
    limit: Limit = 50,
    cursor: CursorText = None,
) -> Response:
    """List requests, newest first unless asked otherwise."""
    filters = forms.RequestFilters(
        state=status,
        model=None if model is None else reference("mdl", model),
        regulation=regulation,
        due_before=due_before,
        overdue=overdue,
        created_from=created_from,
        created_to=created_to,
    )
    named: dict[str, Any] = {name: getattr(filters, name) for name in type(filters).__dataclass_fields__} | {"sort": sort}
    place: dict[str, Any] = {"tenant": ledger.caller.tenant_id, "route": "deletion-requests", "filters": named}
    after = pages.key_of(cursor, **place)

    def work(session: Session) -> Any:
        return service.listing(session, filters, clock=ledger.clock, limit=limit, after=after, newest_first=sort == "-created_at")

    views, last = await ledger(work)
    page = Page[RequestOut](items=[RequestOut.of(view) for view in views], next_cursor=pages.make(last=last, **place))
    return answers.paged(request, page)


@router.get("/{request_id}", response_model=RequestOut)
async def read(request_id: RequestPath, ledger: RequestsRead, if_none_match: IfNoneMatch = None) -> Response:
    """Read one request."""
    found = await _view(ledger, parse("dr", request_id))
    return answer(found, if_none_match)


@router.get("/{request_id}/targets", response_model=TargetList)
async def targets(request_id: RequestPath, ledger: RequestsRead) -> TargetList:
    """List the models that the request touches."""
    found = await ledger(lambda session: service.targets(session, parse("dr", request_id)))
    return TargetList(items=[TargetOut.model_validate(one) for one in found])


@router.get("/{request_id}/targets/{target_id}", response_model=TargetOut)
async def target(request_id: RequestPath, target_id: TargetPath, ledger: RequestsRead) -> TargetOut:
    """Read one of them."""
    return TargetOut.model_validate(await ledger(lambda session: service.target(session, parse("dr", request_id), parse("tgt", target_id))))


@router.post("/{request_id}/decision", response_model=RequestOut)
async def decide(request_id: RequestPath, body: DecisionIn, ledger: RequestsDecide, if_match: IfMatch = None) -> Response:
    """Approve or deny a request that waits for review."""
    version = answers.expected(if_match)
    form = forms.Decision(body.outcome, body.ground, body.exemption, body.note, body.complaint_told, body.court_told)

    def work(session: Session) -> Any:
        return service.decide(session, parse("dr", request_id), form, expected_version=version, caller=ledger.caller, clock=ledger.clock)

    return answer(RequestOut.of(await ledger(work)))


@router.post("/{request_id}/cancellation", status_code=202, response_model=RequestOut)
async def cancel(request_id: RequestPath, body: CancellationIn, ledger: RequestsWrite) -> Response:
    """Take a request back, as long as nothing is being published for it."""
    form = forms.Cancellation(body.by, body.reason)
    view = await ledger(lambda session: service.cancel(session, parse("dr", request_id), form, caller=ledger.caller, clock=ledger.clock))
    return answer(RequestOut.of(view), status=202)


@router.get("/{request_id}/events", response_model=EventList, responses={200: {"content": {"text/event-stream": {}}}})
async def follow(
    request: Request, request_id: RequestPath, ledger: RequestsRead, after: Annotated[int, Query(ge=0, lt=2**63)] = 0, limit: Limit = 200
) -> Response:
    """List the events of a request and its jobs; with `Accept: text/event-stream` follow them as they come."""
    number = parse("dr", request_id)
    await _view(ledger, number)
    if "text/event-stream" in request.headers.get("accept", ""):
        streams: events.Streams = request.app.state.streams
        return streams.stream(ledger, number, request.headers.get("last-event-id", ""))
    found = await ledger(lambda session: events.history(session, number, after=after, limit=limit))
    return JSONResponse(EventList(items=found, next_after=found[-1].id if found else None).model_dump(mode="json"))


async def _view(ledger: Ledger, request_id: UUID) -> RequestOut:
    return RequestOut.of(await ledger(lambda session: service.read(session, request_id, clock=ledger.clock)))
