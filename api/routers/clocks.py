"""The legal clock of a deletion request: acknowledgement, extension, pauses."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Response
from sqlalchemy.orm import Session

from api.dependencies import PausePath, RequestPath, RequestsDecide, RequestsWrite
from api.routers.requests import answer
from api.schemas.ids import parse
from api.schemas.requests import AcknowledgementIn, ExtensionIn, PauseIn, RequestOut
from api.security import Ledger
from services.requests import service, timing

router = APIRouter(prefix="/v1/deletion-requests/{request_id}", tags=["deletion requests"])


@router.post("/acknowledgement", response_model=RequestOut)
async def acknowledge(request_id: RequestPath, ledger: RequestsWrite, body: AcknowledgementIn | None = None) -> Response:
    """Record that the person was told of the receipt, which the CCPA asks for within ten business days."""
    at = body.at if body is not None else None
    return await _changed(
        ledger, request_id, lambda session, number: timing.acknowledge(session, number, at, caller=ledger.caller, clock=ledger.clock)
    )


@router.post("/extension", response_model=RequestOut)
async def extend(request_id: RequestPath, body: ExtensionIn, ledger: RequestsDecide) -> Response:
    """Extend the time for the answer, once, before the original due date, with a reason."""
    form = body.reason
    return await _changed(ledger, request_id, lambda session, number: timing.extend(session, number, form, caller=ledger.caller, clock=ledger.clock))


@router.post("/pauses", response_model=RequestOut)
async def pause(request_id: RequestPath, body: PauseIn, ledger: RequestsDecide) -> Response:
    """Stop the clock while an identity query is open; only under the GDPR, and before the decision."""
    form = body.reason
    return await _changed(ledger, request_id, lambda session, number: timing.pause(session, number, form, caller=ledger.caller, clock=ledger.clock))


@router.post("/pauses/{pause_id}/end", response_model=RequestOut)
async def resume(request_id: RequestPath, pause_id: PausePath, ledger: RequestsDecide) -> Response:
    """Let the clock go on; what the pause took is added to the due date."""
    which = parse("pause", pause_id)
    return await _changed(ledger, request_id, lambda session, number: timing.resume(session, number, which, caller=ledger.caller, clock=ledger.clock))


async def _changed(ledger: Ledger, request_id: str, change: Callable[[Session, Any], object]) -> Response:
    """Make a change and return the request as it is then."""
    number = parse("dr", request_id)

    def work(session: Session) -> RequestOut:
        change(session, number)
        return RequestOut.of(service.read(session, number, clock=ledger.clock))

    return answer(await ledger(work))
