"""Audit reports: immutable revisions, served as the signer signed them."""

import base64
import hashlib
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response
from sqlalchemy.orm import Session

from api.dependencies import AuditRead, IfNoneMatch, RequestPath
from api.problems import Refusal
from api.schemas.catalogue import ReportList, ReportRevisionOut
from api.schemas.ids import parse
from api.security import Ledger
from services.audit import evidence, repository
from services.errors import NotFound, ReportNotReady
from services.requests import service

router = APIRouter(prefix="/v1/deletion-requests/{request_id}", tags=["audit"])
TAKEN = ("*/*", "application/*", "application/json")


@router.get("/audit-report", response_model=None)
async def newest(request: Request, request_id: RequestPath, ledger: AuditRead, if_none_match: IfNoneMatch = None) -> Response:
    """Return the newest revision of the report: `{"envelope", "tlog_proof"}`. The statement is the envelope's payload; the ETag is its digest."""
    _check_accept(request)
    return await _report(ledger, parse("dr", request_id), None, if_none_match)


@router.get("/audit-reports", response_model=ReportList)
async def revisions(request_id: RequestPath, ledger: AuditRead) -> ReportList:
    """List the revisions of the report."""
    number = parse("dr", request_id)

    def work(session: Session) -> list[ReportRevisionOut]:
        service.read(session, number, clock=ledger.clock)
        return [ReportRevisionOut(revision=revision, digest=digest, created_at=at) for revision, digest, at in repository.reports(session, number)]

    return ReportList(items=await ledger(work))


@router.get("/audit-reports/{revision}", response_model=None)
async def one(
    request: Request, request_id: RequestPath, revision: Annotated[int, Path(ge=1, lt=2**31)], ledger: AuditRead, if_none_match: IfNoneMatch = None
) -> Response:
    """Return one revision; it never changes."""
    _check_accept(request)
    return await _report(ledger, parse("dr", request_id), revision, if_none_match)


def _check_accept(request: Request) -> None:
    """Refuse a form that the report does not have. Raises Refusal 406."""
    wanted = request.headers.get("accept", "*/*")
    if not any(form in wanted for form in TAKEN):
        raise Refusal(406, "not-acceptable", "The report is available as application/json.")


async def _report(ledger: Ledger, request_id: UUID, revision: int | None, if_none_match: str | None) -> Response:
    def work(session: Session) -> tuple[str, bytes] | None:
        service.read(session, request_id, clock=ledger.clock)
        row = repository.report(session, request_id, revision)
        if row is None or row.envelope is None or row.tlog_proof is None:
            return None
        return row.digest, evidence.document(row.envelope, row.tlog_proof)

    found = await ledger(work)
    if found is None:
        raise ReportNotReady if revision is None else NotFound
    digest, body = found
    etag = f'"sha256:{digest}"'
    headers = {
        "ETag": etag,
        "Content-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:",
        "Content-Disposition": "attachment",
    }
    if revision is not None:
        headers["Cache-Control"] = "private, immutable"
    if if_none_match is not None and etag in if_none_match:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)
