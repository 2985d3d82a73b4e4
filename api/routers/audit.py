"""Audit reports: immutable revisions, served as the signer signed them, as JSON or as the page a person reads."""

from uuid import UUID

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from api.dependencies import AuditRead, IfNoneMatch, Number, RequestPath
from api.problems import Refusal
from api.representations import FORMS, JSON, Representation, answer, wanted
from api.schemas.catalogue import FigureList, FigureOut, ReportList, ReportRevisionOut
from api.schemas.ids import parse
from api.security import Ledger
from services.audit import evidence, report, repository
from services.errors import NotFound, ReportNotReady
from services.requests import service

router = APIRouter(prefix="/v1/deletion-requests/{request_id}", tags=["audit"])


@router.get("/audit-report", response_model=None)
async def newest(request: Request, request_id: RequestPath, ledger: AuditRead, if_none_match: IfNoneMatch = None) -> Response:
    """Return the newest revision: JSON `{"envelope", "tlog_proof"}` as it was signed, or by `Accept` its page as HTML or PDF."""
    return await _report(ledger, parse("dr", request_id), None, wanted(request.headers.get("accept")), if_none_match)


@router.get("/audit-reports", response_model=ReportList)
async def revisions(request_id: RequestPath, ledger: AuditRead) -> ReportList:
    """List the revisions of the report."""
    number = parse("dr", request_id)

    def work(session: Session) -> list[ReportRevisionOut]:
        service.read(session, number, clock=ledger.clock)
        return [ReportRevisionOut(revision=revision, digest=digest, created_at=at) for revision, digest, at in repository.reports(session, number)]

    return ReportList(items=await ledger(work))


@router.get("/audit-reports/{revision}", response_model=None)
async def one(request: Request, request_id: RequestPath, revision: Number, ledger: AuditRead, if_none_match: IfNoneMatch = None) -> Response:
    """Return one revision, which never changes, in the form that `Accept` prefers."""
    return await _report(ledger, parse("dr", request_id), revision, wanted(request.headers.get("accept")), if_none_match)


@router.get("/audit-reports/{revision}/figures", response_model=FigureList)
async def figures(request_id: RequestPath, revision: Number, ledger: AuditRead) -> FigureList:
    """Return the data behind the figures of a revision, for whoever wants to compare their digests or to draw them anew."""
    number = parse("dr", request_id)

    def work(session: Session) -> list[FigureOut]:
        service.read(session, number, clock=ledger.clock)
        row = repository.report(session, number, revision)
        if row is None:
            raise NotFound
        named = report.figures_of(row.statement)
        data = report.figure_data(row.statement, repository.figures(session, named))
        return [FigureOut.model_validate({**entry, "data": data.get(entry["data_digest"])}) for entry in named]

    return FigureList(items=await ledger(work))


async def _report(ledger: Ledger, request_id: UUID, revision: int | None, media_type: str, if_none_match: str | None) -> Response:
    """Return one form of one revision. Raises ReportNotReady, NotFound, and Refusal 404 while its page is still being made."""

    def work(session: Session) -> tuple[int, bytes | None] | None:
        service.read(session, request_id, clock=ledger.clock)
        row = repository.report(session, request_id, revision)
        held = None if row is None else repository.evidence_of(session, row)
        if row is None or held is None:
            return None
        signed = evidence.document(*held)
        return row.revision, signed if media_type == JSON else repository.rendering(session, row.id, FORMS[media_type])

    found = await ledger(work)
    if found is None:
        raise ReportNotReady if revision is None else NotFound
    number, body = found
    if body is None:
        told = "The report is stored; this form of it is being made. Ask again in a second, or take application/json."
        raise Refusal(404, "audit-report-not-ready", told, headers={"Retry-After": "1", "Vary": "Accept"})
    name = f"audit-report-dr_{request_id.hex}-{number}.{FORMS[media_type]}"
    return answer(Representation(media_type, body, name), if_none_match=if_none_match, revision=revision)
