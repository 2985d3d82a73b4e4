"""Server-sent events: the history of a request, then what happens next.

All streams of a process share one poll a second: its cost grows with the requests that are watched, not with who watches them.
Progress and step frames carry no id and are not replayed; every other frame is an audit event with its number.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from fastapi.sse import EventSourceResponse, format_sse_event
from sqlalchemy.orm import Session
from starlette.types import Receive, Scope, Send

from api.problems import Refusal
from api.schemas.requests import EventOut
from api.security import Ledger
from services.audit import repository as audit
from services.clock import Clock
from services.errors import LetheError, Unavailable
from services.requests import forms, jobs, service

log = structlog.get_logger()

POLL_S = 1.0
COMMENT_S = 15.0
LIFE_S = 900.0
OVERLAP_S = 10.0
PAGE = 200
KINDS = {"step": "step", "plan": "step", "run": "step", "clock": "clock", "report": "report"}


def event_of(row: audit.Event) -> EventOut:
    """Return an audit event as a client sees it."""
    return EventOut(id=row.number, event=KINDS.get(row.type.split(".", 1)[0], "state"), type=row.type, at=row.at, data=dict(row.body))


def history(session: Session, request_id: UUID, *, after: int, limit: int) -> list[EventOut]:
    """Return the events of a request and of its jobs, in order, with numbers above `after`."""
    found, _ = jobs.listing(session, forms.JobFilters(request_id=request_id), limit=PAGE)
    return [event_of(row) for row in audit.events_of(session, [request_id, *(job.id for job in found)], after, limit)]


def progress(session: Session, request_id: UUID) -> dict[str, Any] | None:
    """Return the progress of the newest job of a request, or None while it has none."""
    found, _ = jobs.listing(session, forms.JobFilters(request_id=request_id), limit=1)
    if not found or found[0].done or not (found[0].progress or found[0].step):
        return None
    return {**(found[0].progress or {}), "job": f"job_{found[0].id.hex}", "state": found[0].state, "step": found[0].step}


@dataclass(frozen=True, slots=True)
class Look:
    """What one poll saw of a request: events not told before, the progress now, and whether the request is done."""

    events: tuple[EventOut, ...]
    progress: dict[str, Any] | None
    done: bool


def look(session: Session, *, request_id: UUID, after: int, clock: Clock) -> Look:
    """Return all of one moment."""
    done = service.read(session, request_id, clock=clock).done
    return Look(tuple(history(session, request_id, after=after, limit=PAGE)), progress(session, request_id), done)


@dataclass(slots=True)
class Watch:
    """A request that at least one stream follows.

    Numbers of events can become visible out of order, since transactions of different jobs commit in any order: each poll reads again what
    is younger than ten seconds, and `told` keeps what was sent.
    """

    ledger: Ledger
    floor: int
    told: set[int] = field(default_factory=set)
    newest: deque[tuple[float, int]] = field(default_factory=deque)
    queues: set[asyncio.Queue[Look | None]] = field(default_factory=set)

    def tell(self, seen: Look) -> None:
        """Give every stream what it has not been told, and move the floor."""
        fresh = tuple(event for event in seen.events if event.id not in self.told)
        self.told.update(event.id for event in fresh if event.id is not None)
        now = time.monotonic()
        if seen.events:
            self.newest.append((now, seen.events[-1].id or 0))
        while self.newest and now - self.newest[0][0] > OVERLAP_S:
            self.floor = max(self.floor, self.newest.popleft()[1])
            self.told = {number for number in self.told if number > self.floor}
        for queue in self.queues:
            queue.put_nowait(Look(fresh, seen.progress, seen.done))


class Streams:
    """The streams of this process, and the poll they share."""

    def __init__(self, *, per_principal: int) -> None:
        self.per_principal = per_principal
        self._open: Counter[tuple[UUID, str]] = Counter()
        self._watches: dict[tuple[UUID, UUID], Watch] = {}
        self._poll: asyncio.Task[None] | None = None

    def stream(self, ledger: Ledger, request_id: UUID, last_event_id: str) -> "EventStream":
        """Return a stream of what came after `last_event_id`; garbage there means from the start. Raises Refusal 429."""
        who = (ledger.caller.tenant_id, ledger.caller.principal)
        if self._open[who] >= self.per_principal:
            raise Refusal(429, "rate-limited", "Too many event streams are open. Close one.", headers={"Retry-After": "30"})
        self._open[who] += 1
        after = int(last_event_id) if last_event_id.isdecimal() and last_event_id.isascii() and len(last_event_id) < 19 else 0
        return EventStream(self, ledger, request_id, after)

    def closed(self, ledger: Ledger) -> None:
        """Give back what `stream` counted."""
        who = (ledger.caller.tenant_id, ledger.caller.principal)
        self._open[who] -= 1
        if self._open[who] <= 0:
            del self._open[who]

    def join(self, ledger: Ledger, request_id: UUID, after: int) -> asyncio.Queue[Look | None]:
        """Return a queue that gets what every poll sees of the request from now on; None ends it."""
        watch = self._watches.setdefault((ledger.caller.tenant_id, request_id), Watch(ledger, after))
        queue: asyncio.Queue[Look | None] = asyncio.Queue()
        watch.queues.add(queue)
        if self._poll is None or self._poll.done():
            self._poll = asyncio.create_task(self._run())
        return queue

    def leave(self, ledger: Ledger, request_id: UUID, queue: asyncio.Queue[Look | None]) -> None:
        """Stop filling a queue; a request that nobody follows is no longer polled."""
        key = (ledger.caller.tenant_id, request_id)
        watch = self._watches.get(key)
        if watch is not None:
            watch.queues.discard(queue)
            if not watch.queues:
                del self._watches[key]

    async def close(self) -> None:
        """End the poll and every stream."""
        for watch in self._watches.values():
            for queue in watch.queues:
                queue.put_nowait(None)
        if self._poll is not None:
            self._poll.cancel()
            await asyncio.gather(self._poll, return_exceptions=True)

    async def _run(self) -> None:
        while self._watches:
            await asyncio.sleep(POLL_S)
            for (_, request_id), watch in list(self._watches.items()):
                try:
                    watch.tell(await watch.ledger(partial(look, request_id=request_id, after=watch.floor, clock=watch.ledger.clock)))
                except Unavailable as error:
                    log.warning("stream.poll_failed", code=error.code)
                except Exception as error:  # noqa: BLE001  one request's trouble must not end the poll of all
                    log.error("stream.ended", code=error.code if isinstance(error, LetheError) else type(error).__name__)  # noqa: TRY400
                    for queue in watch.queues:
                        queue.put_nowait(None)


class EventStream(EventSourceResponse):
    """One open stream; it is counted until its response has ended, however it ends."""

    def __init__(self, streams: Streams, ledger: Ledger, request_id: UUID, after: int) -> None:
        self.streams = streams
        self.ledger = ledger
        self.request_id = request_id
        self.after = after
        super().__init__(self.frames(), headers={"X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.streams.closed(self.ledger)

    async def frames(self) -> AsyncGenerator[bytes]:
        """Yield the history, then what the polls see, until the request is done or the stream is a quarter of an hour old."""
        queue = self.streams.join(self.ledger, self.request_id, self.after)
        try:
            yield format_sse_event(retry=3000)
            after, told = self.after, set[int]()
            while page := await self.ledger(partial(history, request_id=self.request_id, after=after, limit=PAGE)):
                for event in page:
                    yield _frame(event)
                    after = event.id or after
                    told.add(after)
            async for frame in _live(queue, told, self.after):
                yield frame
        finally:
            self.streams.leave(self.ledger, self.request_id, queue)


async def _live(queue: asyncio.Queue[Look | None], told: set[int], after: int) -> AsyncGenerator[bytes]:
    """Yield what comes out of the queue and was not told; a comment where nothing was sent for 15 s, however many polls saw nothing new."""
    ends, shown = time.monotonic() + LIFE_S, None
    sent = time.monotonic()
    while (now := time.monotonic()) < ends:
        if now - sent >= COMMENT_S:
            yield format_sse_event(comment="still here")
            sent = time.monotonic()
        try:
            seen = await asyncio.wait_for(queue.get(), timeout=max(0.0, min(sent + COMMENT_S, ends) - now))
        except TimeoutError:
            continue
        if seen is None:
            return
        fresh = [event for event in seen.events if event.id is not None and event.id > after and event.id not in told]
        for event in fresh:
            told.add(event.id or 0)
            yield _frame(event)
        moved = seen.progress is not None and seen.progress != shown
        if moved and seen.progress is not None:
            kind = "progress" if shown is not None and shown["step"] == seen.progress["step"] else "step"
            shown = seen.progress
            yield _frame(EventOut(id=None, event=kind, type=f"job.{kind}", at=None, data=shown))
        if fresh or moved:
            sent = time.monotonic()
        if seen.done and not fresh:
            return


def _frame(event: EventOut) -> bytes:
    return format_sse_event(id=None if event.id is None else str(event.id), event=event.event, data_str=event.model_dump_json())
