"""Server-sent events: the history of a request, then what happens next. One poll a second of the database for each stream's request, shared.

Progress frames carry no id and are not replayed; every other frame is an audit event with its number.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from uuid import UUID

from fastapi import Request, Response
from fastapi.sse import EventSourceResponse, format_sse_event
from sqlalchemy.orm import Session

from api.problems import Refusal
from api.schemas.requests import EventOut
from api.security import Ledger
from services.audit import repository as audit
from services.clock import Clock
from services.requests import forms, jobs, service

POLL_S = 1.0
COMMENT_S = 15.0
LIFE_S = 900.0
KINDS = {"step": "step", "clock": "clock", "report": "report"}
_OPEN: Counter[tuple[UUID, str]] = Counter()


def history(session: Session, request_id: UUID, *, after: int, limit: int) -> list[EventOut]:
    """Return the events of a request and of its jobs, in order, with numbers above `after`."""
    found, _ = jobs.listing(session, forms.JobFilters(request_id=request_id), limit=200)
    rows = audit.events_of(session, [request_id, *(job.id for job in found)], after, limit)
    return [
        EventOut(id=row.number, event=KINDS.get(row.type.split(".", 1)[0], "state"), type=row.type, at=row.at, data={**row.body, "type": row.type})
        for row in rows
    ]


def progress(session: Session, request_id: UUID) -> dict[str, Any] | None:
    """Return the progress of the newest running job, or None."""
    found, _ = jobs.listing(session, forms.JobFilters(request_id=request_id), limit=1)
    if not found or found[0].done or not found[0].progress:
        return None
    return {"job": f"job_{found[0].id.hex}", "step": found[0].step, **found[0].progress}


def stream(request: Request, ledger: Ledger, request_id: UUID) -> Response:
    """Return the stream. Raises Refusal 429 when the principal has too many open."""
    who = (ledger.caller.tenant_id, ledger.caller.principal)
    if _OPEN[who] >= request.app.state.settings.limits.streams_per_principal:
        raise Refusal(429, "rate-limited", "Too many event streams are open. Close one.", headers={"Retry-After": "30"})
    last = request.headers.get("last-event-id", "")
    after = int(last) if last.isdecimal() and len(last) < 19 else 0

    async def guarded() -> AsyncIterator[bytes]:
        _OPEN[who] += 1
        try:
            async for frame in _frames(request, ledger, request_id, after):
                yield frame
        finally:
            _OPEN[who] -= 1

    return EventSourceResponse(guarded(), headers={"X-Accel-Buffering": "no"})


def _look(session: Session, *, request_id: UUID, after: int, clock: Clock) -> tuple[list[EventOut], dict[str, Any] | None, bool]:
    """Return new events, the progress now, and whether the request is done, all of one moment."""
    done = service.read(session, request_id, clock=clock).done
    return history(session, request_id, after=after, limit=200), progress(session, request_id), done


async def _frames(request: Request, ledger: Ledger, request_id: UUID, after: int) -> AsyncIterator[bytes]:
    """Yield frames until the request is done, the client is gone, or the stream is a quarter of an hour old."""
    started = spoken = time.monotonic()
    shown: dict[str, Any] | None = None
    yield format_sse_event(retry=3000)
    while time.monotonic() - started < LIFE_S and not await request.is_disconnected():
        found, moved, done = await ledger(partial(_look, request_id=request_id, after=after, clock=ledger.clock))
        for event in found:
            after = event.id or after
            yield format_sse_event(id=str(event.id), event=event.event, data_str=event.model_dump_json())
            spoken = time.monotonic()
        if moved is not None and moved != shown:
            shown = moved
            yield format_sse_event(
                event="progress", data_str=EventOut(id=None, event="progress", type="job.progress", at=None, data=moved).model_dump_json()
            )
            spoken = time.monotonic()
        if done and not found:
            return
        if time.monotonic() - spoken > COMMENT_S:
            yield format_sse_event(comment="still here")
            spoken = time.monotonic()
        await asyncio.sleep(POLL_S)
