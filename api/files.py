"""Checkpoint files: a redirect to the object store, or a stream in pieces of 1 MiB that is never spooled.

One range is served (206); several, or a malformed one, give the whole file (RFC 9110, section 14.2); one beyond the end is 416.
"""

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from uuid import UUID

from anyio import to_thread
from fastapi import Response
from fastapi.responses import RedirectResponse, StreamingResponse
from sqlalchemy.orm import Session

from api.problems import Refusal
from api.security import Ledger
from models_store.errors import ObjectMissing, StoreUnavailable
from models_store.objects import ObjectStore, attachment, blob_key
from services.audit import log as audit
from services.errors import CheckpointDestroyed, NotFound, StoreDown, VersionNotReady
from services.model_versions import service

ONE_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class File:
    """A published file; `digest` is hex."""

    digest: str
    size_bytes: int
    name: str
    media_type: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the client wants it."""

    head: bool
    stream: bool
    byte_range: str | None
    if_range: str | None
    if_none_match: str | None


async def located(ledger: Ledger, model: UUID | str, number: int, path: str, *, delivery: str, head: bool) -> File:
    """Return the file of a version, and record that it was handed out.

    Raises: NotFound (also for a quarantined version, to who may not operate requests); VersionNotReady; CheckpointDestroyed.
    """

    def work(session: Session) -> File:
        version = service.read_version(session, model, number)
        if version.status in {"pending", "checking", "failed"}:
            raise VersionNotReady(version=number, status=version.status)
        if version.status == "destroyed":
            raise CheckpointDestroyed(version=number)
        if version.status == "quarantined" and "requests:operate" not in ledger.caller.scopes:
            raise NotFound
        file = next((one for one in version.files if one.path == path), None)
        if file is None:
            raise NotFound
        if not head:
            body = {"path": path, "delivery": delivery, "by": ledger.caller.principal}
            audit.record(session, tenant_id=ledger.caller.tenant_id, object_id=version.id, type="version.file_issued", body=body)
        return File(file.sha256, file.size_bytes, PurePosixPath(path).name, file.media_type)

    return await ledger(work)


async def answer(store: ObjectStore, file: File, wanted: Wanted, *, expires_s: int) -> Response:
    """Return the file, a part of it, a redirect to it, or what the client already knows. Raises StoreDown, Refusal 416."""
    etag = f'"sha256:{file.digest}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(file.digest)).decode()}:",
        "Content-Disposition": attachment(file.name),
        "Cache-Control": "private, immutable",
    }
    if wanted.if_none_match is not None and (wanted.if_none_match.strip() == "*" or etag in wanted.if_none_match):
        return Response(status_code=304, headers=headers)
    if wanted.head:
        return Response(headers={**headers, "Content-Length": str(file.size_bytes)}, media_type=file.media_type)
    if not wanted.stream:
        url = store.presign_get(blob_key(file.digest), expires_s, file.name)
        return RedirectResponse(url, status_code=307, headers={"Cache-Control": "no-store"})
    span = _span(wanted.byte_range, file.size_bytes) if wanted.if_range in {None, etag} else None
    start, length = span if span is not None else (0, file.size_bytes)
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{file.size_bytes}"
    pieces = store.open(blob_key(file.digest), start=start, length=length)
    first = await to_thread.run_sync(_first, pieces)
    headers["Content-Length"] = str(length)
    return StreamingResponse(_flow(first, pieces), status_code=200 if span is None else 206, headers=headers, media_type=file.media_type)


def _span(byte_range: str | None, size: int) -> tuple[int, int] | None:
    """Return start and length of the one range that is asked for, or None for the whole file. Raises Refusal 416."""
    match = ONE_RANGE.fullmatch(byte_range.strip()) if byte_range is not None else None
    if match is None or match.group(0) == "bytes=-":
        return None
    low, high = match.groups()
    if low and high and int(high) < int(low):
        return None
    start = int(low) if low else max(0, size - int(high))
    end = min(int(high), size - 1) if low and high else size - 1
    if start >= size or (not low and int(high) == 0):
        raise Refusal(416, "range-not-satisfiable", f"The file has {size} bytes.", headers={"Content-Range": f"bytes */{size}"})
    return start, end - start + 1


def _first(pieces: Iterator[bytes]) -> bytes:
    """Return the first piece, with the store's errors as ours: after it the status can no longer be changed."""
    try:
        return next(pieces, b"")
    except StoreUnavailable as error:
        raise StoreDown(detail="the object store") from error
    except ObjectMissing as error:
        raise StoreDown(detail="the object is missing") from error


async def _flow(first: bytes, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the pieces; the next one is read while one is sent."""
    ahead = asyncio.ensure_future(to_thread.run_sync(next, pieces, b""))
    try:
        yield first
        while piece := await ahead:
            ahead = asyncio.ensure_future(to_thread.run_sync(next, pieces, b""))
            yield piece
    finally:
        await asyncio.wait([ahead])  # a client that hangs up leaves a read under way, and its outcome to nobody
        if not ahead.cancelled():
            ahead.exception()
