"""Legal holds: placed over a person, a model, a data set or a request, and released."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from sqlalchemy.orm import Session

from api import answers
from api.dependencies import CursorText, HoldsRead, HoldsWrite, IdempotencyKey, IfMatch, IfNoneMatch, Limit, Pages
from api.schemas.base import Page
from api.schemas.compliance import HoldIn, HoldOut, HoldReleaseIn
from api.schemas.ids import parse
from services.requests import holds

router = APIRouter(prefix="/v1/legal-holds", tags=["legal holds"])
HoldPath = Annotated[str, Path(pattern=r"^hold_[0-9a-f]{32}$")]


def _answer(view: holds.HoldView, if_none_match: str | None = None) -> Response:
    body = HoldOut.of(view)
    return answers.tagged(body, answers.version_tag(body, view.version), if_none_match)


@router.post("", status_code=201, response_model=HoldOut)
async def place(request: Request, body: HoldIn, ledger: HoldsWrite, idempotency_key: IdempotencyKey = None) -> Response:
    """Place a hold: what it covers is neither forgotten nor destroyed until it is released."""

    def work(session: Session) -> tuple[int, HoldOut, dict[str, str]]:
        made = HoldOut.of(holds.place(session, body.form(), caller=ledger.caller, clock=ledger.clock, keys=ledger.keys))
        return 201, made, {"Location": f"/v1/legal-holds/{made.id}"}

    return await answers.once(request, ledger, idempotency_key, work)


@router.get("", response_model=Page[HoldOut])
async def listing(
    request: Request,
    ledger: HoldsRead,
    pages: Pages,
    *,
    status: Annotated[Literal["standing", "released"] | None, Query()] = None,
    limit: Limit = 50,
    cursor: CursorText = None,
) -> Response:
    """List holds, newest first."""
    place: dict[str, Any] = {"tenant": ledger.caller.tenant_id, "route": "legal-holds", "filters": {"status": status}}
    after = pages.key_of(cursor, **place)
    standing = None if status is None else status == "standing"
    views, last = await ledger(lambda session: holds.listing(session, standing=standing, limit=limit, after=after))
    page = Page[HoldOut](items=[HoldOut.of(view) for view in views], next_cursor=pages.make(last=last, **place))
    return answers.paged(request, page)


@router.get("/{hold_id}", response_model=HoldOut)
async def read(hold_id: HoldPath, ledger: HoldsRead, if_none_match: IfNoneMatch = None) -> Response:
    """Read one hold with the open requests that it covers."""
    return _answer(await ledger(lambda session: holds.read(session, parse("hold", hold_id))), if_none_match)


@router.post("/{hold_id}/release", response_model=HoldOut)
async def release(hold_id: HoldPath, body: HoldReleaseIn, ledger: HoldsWrite, if_match: IfMatch = None) -> Response:
    """Release a hold: the requests that no other hold covers go on, and versions whose time is over are destroyed."""
    version = answers.expected(if_match)

    def work(session: Session) -> holds.HoldView:
        return holds.release(session, parse("hold", hold_id), body.reason, expected_version=version, caller=ledger.caller)

    return _answer(await ledger(work))
