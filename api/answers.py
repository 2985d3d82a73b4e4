"""Answers that more than one route gives: ETag and 304, If-Match, idempotent creation, upload URLs."""

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import rfc8785
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.orm import Session

from api.schemas.base import Page, UploadOut
from api.security import Ledger
from models_store.objects import ObjectStore
from services.clock import Clock
from services.datasets.forms import Upload as DatasetUpload
from services.db import idempotency
from services.errors import KeyMissing, PreconditionFailed, PreconditionRequired
from services.model_versions.forms import Upload as ModelUpload

KEY = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)


def tagged(body: BaseModel, etag: str, if_none_match: str | None, *, headers: Mapping[str, str] | None = None) -> Response:
    """Return the resource with its ETag, or 304 when the client holds it."""
    quoted = f'"{etag}"'
    extra = {**(headers or {}), "ETag": quoted}
    if if_none_match is not None and (if_none_match.strip() == "*" or quoted in [one.strip().removeprefix("W/") for one in if_none_match.split(",")]):
        return Response(status_code=304, headers=extra)
    return JSONResponse(body.model_dump(mode="json"), headers=extra)


def digest_tag(body: BaseModel) -> str:
    """Return an ETag made of the body, for resources that keep no version."""
    return hashlib.sha256(body.model_dump_json().encode()).hexdigest()[:32]


def version_tag(body: BaseModel, version: int) -> str:
    """Return an ETag that names the version, for If-Match, and the body, of which some members move without one."""
    return f"{version}-{digest_tag(body)[:16]}"


def paged(request: Request, page: Page[Any]) -> Response:
    """Return a page, with the address of the next one in `Link` (RFC 8288)."""
    headers = {}
    if page.next_cursor is not None:
        following = request.url.include_query_params(cursor=page.next_cursor)
        headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    return JSONResponse(page.model_dump(mode="json"), headers=headers)


def expected(if_match: str | None) -> int:
    """Return the version number in If-Match. Raises PreconditionRequired, PreconditionFailed."""
    if if_match is None:
        raise PreconditionRequired
    text = if_match.strip().strip('"').partition("-")[0]
    if not (text.isdecimal() and text.isascii()) or len(text) > 9:
        raise PreconditionFailed
    return int(text)


async def once(
    request: Request,
    ledger: Ledger,
    key: str | None,
    work: Callable[[Session], tuple[int, BaseModel, Mapping[str, str]]],
    *,
    dry_run: bool = False,
) -> Response:
    """Carry out a creation once for its Idempotency-Key: effect and stored answer commit together; a repeat gets the stored answer.

    Raises: KeyMissing, KeyReused, KeyInProgress.
    """
    if key is None or not KEY.fullmatch(key):
        raise KeyMissing
    route = f"{request.method} {request.scope['route'].path}"
    place = {name: str(value) for name, value in request.path_params.items()}
    content = {"route": route, "place": place, "dry_run": dry_run, "body": _plain(request.state.document)}
    # keyed, because a body may hold identifiers of a person and a plain digest of it could be guessed
    fingerprint = hmac.digest(bytes.fromhex(ledger.keys.pepper), rfc8785.dumps(content), hashlib.sha256)
    tenant = ledger.caller.tenant_id

    def transaction(session: Session) -> tuple[int, Mapping[str, Any], Mapping[str, str]]:
        stored = idempotency.begin(session, tenant_id=tenant, route=route, key=key, fingerprint=fingerprint)
        if stored is not None:
            return stored.status, stored.body, {**stored.headers, "Idempotency-Replayed": "true"}
        status, body, headers = work(session)
        document = body.model_dump(mode="json")
        idempotency.store(
            session, tenant_id=tenant, route=route, key=key, fingerprint=fingerprint, status=status, headers=dict(headers), body=document
        )
        return status, document, headers

    status, document, headers = await ledger(transaction)
    return JSONResponse(dict(document), status_code=status, headers=dict(headers))


def _plain(value: Any) -> Any:
    """Return JSON whose integers canonical JSON can carry: those beyond 2**53 as text."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53 - 1:
        return f"int:{value}"
    return value


def issued(store: ObjectStore, uploads: Sequence[DatasetUpload | ModelUpload], *, clock: Clock, expires_s: int) -> list[UploadOut]:
    """Return a presigned PUT for each declared file."""
    until = clock.now() + timedelta(seconds=expires_s)
    return [
        UploadOut(
            path=one.path,
            url=store.presign_put(one.key, expires_s, one.size_bytes, one.sha256),
            headers={},
            size_bytes=one.size_bytes,
            sha256=one.sha256,
            expires_at=until,
        )
        for one in uploads
    ]
