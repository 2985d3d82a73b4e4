"""What every request passes before a route sees it: an id, a bounded JSON body; and what every answer carries: security headers.

Plain ASGI, because a response must stream through untouched.
"""

import asyncio
import re
import time
import traceback
from collections.abc import Callable
from pathlib import PurePath
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems, strict_json
from services.errors import MalformedRequest
from services.settings import LimitSettings

log = structlog.get_logger()

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)
SUBJECT_INDEX = re.compile(r"/v1/datasets/[^/]+/versions/[^/]+/subjects")
WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Strict-Transport-Security": "max-age=63072000; includeSubDomains",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}

Observer = Callable[[Scope, int, float], None]


class RequestContext:
    """Outermost: names the request, adds the headers, turns an unforeseen exception into a 500 that says nothing, and counts."""

    def __init__(self, app: ASGIApp, *, observe: Observer) -> None:
        self.app = app
        self.observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.perf_counter(), 0

        async def decorated(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                headers.update(SECURITY_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
                headers["X-Request-ID"] = request_id
                message["headers"] = headers.raw
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, decorated)
            except Exception as error:
                log.error("request.failed", error=type(error).__name__, frames=_frames(error))  # noqa: TRY400  the text of an exception may hold input
                if status:
                    raise
                await problems.internal(request_id)(scope, receive, decorated)
            finally:
                self.observe(scope, status, time.perf_counter() - started)


def _frames(error: BaseException) -> list[str]:
    """Return where it happened, innermost last, without any value."""
    return [f"{PurePath(frame.filename).name}:{frame.lineno}:{frame.name}" for frame in traceback.extract_tb(error.__traceback__)[-8:]]


class BodyLimits:
    """Reads the body whole, counted and timed, refuses what is not strict JSON, and hands it on; `request.state.document` is the parsed form."""

    def __init__(self, app: ASGIApp, *, limits: LimitSettings) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] not in WITH_BODY:
            await self.app(scope, receive, send)
            return
        request_id = scope["state"]["request_id"]
        try:
            body = await self._body(scope, receive)
            scope["state"]["document"] = strict_json.parse(body, depth=self.limits.json_depth) if body else None
        except problems.Refusal as refusal:
            await problems.of_http(refusal, request_id=request_id)(scope, receive, send)
            return
        except MalformedRequest as error:
            await problems.of_error(error, request_id=request_id)(scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Return the body. Raises Refusal 408, 413 or 415."""
        headers = Headers(scope=scope)
        cap = self.limits.subject_index_bytes if SUBJECT_INDEX.fullmatch(scope["path"]) else self.limits.body_bytes
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise problems.Refusal(415, "unsupported-media-type", "Content-Encoding is not taken.")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > cap:
            raise _too_large(cap)
        try:
            async with asyncio.timeout(self.limits.body_timeout_s):
                body = await _collect(receive, cap=cap)
        except TimeoutError as error:
            raise problems.Refusal(408, "request-timeout", "The body did not arrive in time.", headers={"Connection": "close"}) from error
        media_type = headers.get("content-type", "").split(";")[0].strip().lower()
        if body and media_type != "application/json":
            raise problems.Refusal(415, "unsupported-media-type", "The body must be application/json.")
        return body


async def _collect(receive: Receive, *, cap: int) -> bytes:
    """Return the chunks joined, counting as they come, whatever the headers promise."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise problems.Refusal(400, "malformed-request", "The body ended early.")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > cap:
            raise _too_large(cap)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _too_large(cap: int) -> problems.Refusal:
    return problems.Refusal(413, "payload-too-large", f"The body is larger than {cap} bytes.", headers={"Connection": "close"})


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body once, then the connection's own messages."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
