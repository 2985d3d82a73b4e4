"""One report in three forms, chosen by `Accept` (RFC 9110): JSON, which is the report, and the HTML and PDF made of it."""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Response

from api.problems import Refusal

JSON, HTML, PDF = "application/json", "text/html", "application/pdf"
FORMS: Mapping[str, str] = {JSON: "json", HTML: "html", PDF: "pdf"}
"""Media types in the order of preference, and what each form is called."""
LONGEST = 1000
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, slots=True)
class Representation:
    """The bytes of one form, and the name a browser keeps it under."""

    media_type: str
    body: bytes
    name: str


def wanted(accept: str | None) -> str:
    """Return the media type that `Accept` prefers; JSON where it prefers none. Raises Refusal 406 where it allows none of them."""
    ranges = _ranges(accept or "*/*")
    best = max(FORMS, key=lambda kind: (_quality(kind, ranges), -list(FORMS).index(kind)))
    if _quality(best, ranges) <= 0:
        told = f"The report is available as {', '.join(FORMS)}."
        raise Refusal(406, "not-acceptable", told, headers={"Vary": "Accept"})
    return best


def answer(found: Representation, *, if_none_match: str | None, revision: int | None) -> Response:
    """Return one form with its ETag, digest and what may be kept of it; 304 where the client holds it."""
    digest = hashlib.sha256(found.body).digest()
    etag = f'"sha256:{digest.hex()}"'
    headers = {
        "ETag": etag,
        "Vary": "Accept",
        "Content-Digest": f"sha-256=:{base64.b64encode(digest).decode()}:",
        "Content-Disposition": f'{"inline" if found.media_type == HTML else "attachment"}; filename="{found.name}"',
        "X-Content-Type-Options": "nosniff",
    }
    if found.media_type == HTML:
        headers["Content-Security-Policy"] = PAGE_POLICY
    if revision is not None:
        headers["Cache-Control"] = "private, immutable"
    if if_none_match is not None and (if_none_match.strip() == "*" or etag in if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(found.body, media_type=found.media_type, headers=headers)


def _ranges(accept: str) -> dict[str, float]:
    """Return the quality of each media range of `Accept`; what cannot be read counts as not wanted."""
    found: dict[str, float] = {}
    for part in accept[:LONGEST].split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((text.partition("=")[2].strip() for text in parameters if text.partition("=")[0].strip() == "q"), "1")
        try:
            found[kind] = min(1.0, max(0.0, float(quality)))
        except ValueError:
            found[kind] = 0.0
    return found


def _quality(kind: str, ranges: Mapping[str, float]) -> float:
    """Return how much a media type is wanted: the most specific range that holds it decides."""
    for pattern in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
        if pattern in ranges:
            return ranges[pattern]
    return 0.0
