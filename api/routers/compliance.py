"""Recipients of superseded versions, metrics of a period, and the record of processing."""

import csv
import io
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from api import answers
from api.dependencies import AuditRead, IdempotencyKey, RequestPath, RequestsRead, RequestsWrite
from api.schemas.base import MomentIn
from api.schemas.compliance import HandedOutOut, MetricsOut, ProcessingRecord, RecipientIn, RecipientList, RecipientOut, RecordOut, plain
from api.schemas.ids import parse
from api.schemas.requests import Regulation
from services.requests import recipients, record

router = APIRouter(prefix="/v1", tags=["compliance"])
From = Annotated[MomentIn, Query(alias="from", description="Requests received from here on.")]
To = Annotated[MomentIn, Query(description="Requests received before this.")]
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the begin of a formula."""


@router.post("/deletion-requests/{request_id}/recipients", status_code=201, response_model=RecipientOut)
async def tell(
    request: Request, request_id: RequestPath, body: RecipientIn, ledger: RequestsWrite, idempotency_key: IdempotencyKey = None
) -> Response:
    """Record that a recipient of a superseded version was told, and how and when; the next revision of the report prints it."""

    def work(session: Session) -> tuple[int, RecipientOut, dict[str, str]]:
        made = recipients.tell(session, parse("dr", request_id), body.form(), caller=ledger.caller, clock=ledger.clock)
        return 201, RecipientOut.model_validate(made), {"Location": f"/v1/deletion-requests/{request_id}/recipients"}

    return await answers.once(request, ledger, idempotency_key, work)


@router.get("/deletion-requests/{request_id}/recipients", response_model=RecipientList)
async def told(request_id: RequestPath, ledger: RequestsRead) -> RecipientList:
    """List who was told, and to whom this service itself gave a superseded version."""
    number = parse("dr", request_id)

    def work(session: Session) -> RecipientList:
        items = [RecipientOut.model_validate(one) for one in recipients.told(session, number)]
        return RecipientList(items=items, handed_out=[HandedOutOut.model_validate(one) for one in recipients.handed_out(session, number)])

    return await ledger(work)


@router.get("/compliance-metrics", response_model=MetricsOut)
async def metrics(ledger: AuditRead, since: From, to: To, regulation: Regulation | None = None) -> Response:
    """Count the requests of a period: received, complied with, denied, and median and mean days to the answer."""
    period = record.Period(since, to, regulation)
    found = await ledger(lambda session: record.metrics(session, period, caller=ledger.caller))
    return JSONResponse(plain(MetricsOut.model_validate(found)))


@router.get("/processing-record", response_model=ProcessingRecord, responses={200: {"content": {"text/csv": {}}}})
async def processing(request: Request, ledger: AuditRead, since: From, to: To, regulation: Regulation | None = None) -> Response:
    """Export every request of a period: clock, decision, outcome, versions, certificates; as JSON, or with `Accept: text/csv` as a table."""
    period = record.Period(since, to, regulation)
    found = await ledger(lambda session: record.export(session, period, caller=ledger.caller))
    body = plain(ProcessingRecord.model_validate(found))
    if "text/csv" not in request.headers.get("accept", ""):
        return JSONResponse(body, headers={"Vary": "Accept"})
    headers = {"Vary": "Accept", "Content-Disposition": 'attachment; filename="processing-record.csv"'}
    return Response(table(body["items"]), media_type="text/csv; charset=utf-8", headers=headers)


def table(items: list[dict[str, Any]]) -> str:
    """Return the record as CSV (RFC 4180), one line a request; the versions of a request share a cell, and so do its dataset versions."""
    columns = list(RecordOut.model_fields)
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerow(columns)
    for item in items:
        told = {"versions": _fates("model", item["versions"]), "datasets": _fates("dataset", item["datasets"])}
        writer.writerow([_cell({**item, **told}[column]) for column in columns])
    return sink.getvalue()


def _fates(thing: str, versions: list[dict[str, Any]]) -> str:
    """Return versions with what became of them as one cell."""
    return "; ".join(" ".join(filter(None, (f"{one[thing]}@{one['version']} {one['disposition']}", one["certificate"]))) for one in versions)


def _cell(value: Any) -> str:
    """Return a value as a cell that no spreadsheet takes for a formula."""
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"'{text}" if text.startswith(FORMULA) else text
