"""From errors to `application/problem+json` (RFC 9457). The only place that knows which error has which HTTP status.

Nothing that the caller sent is quoted: facts that hold input are replaced, and pydantic's own words are used only where they quote nothing.
"""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from services import errors

log = structlog.get_logger()

TYPE_BASE = "https://lethe.dev/problems/"
MEDIA_TYPE = "application/problem+json"
STATUS: Mapping[type[errors.LetheError], int] = {
    errors.MalformedRequest: 400,
    errors.KeyMissing: 400,
    errors.InvalidInput: 422,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Gone: 410,
    errors.PreconditionRequired: 428,
    errors.Precondition: 412,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.DigestMismatch: 422,
    errors.UnsafeCheckpoint: 422,
    errors.Unavailable: 503,
    errors.LetheError: 500,
}
FRAMEWORK = {
    400: "malformed-request",
    404: "not-found",
    405: "method-not-allowed",
    406: "not-acceptable",
    408: "request-timeout",
    413: "payload-too-large",
    415: "unsupported-media-type",
    416: "range-not-satisfiable",
    429: "rate-limited",
}
HELP = {
    400: "Correct the body or headers; sending the same again will not do.",
    401: "Send Authorization: Bearer and a live API key.",
    403: "Ask the tenant's administrator for a key with this scope.",
    404: "Check the id and that the key belongs to the tenant that owns it.",
    409: "Read the resource again; its state decides.",
    412: "Read the resource again and send its new ETag.",
    413: "Send less in one call.",
    415: "Send application/json without Content-Encoding.",
    422: "Correct the members that errors points to.",
    428: "Read the resource and send its ETag in If-Match.",
    503: "Nothing was recorded. Send the same call again with the same Idempotency-Key.",
}
RETRYABLE = frozenset({408, 429, 503})
INPUTS = frozenset({"name", "model", "dataset", "external_id", "alias"})
QUIET = frozenset(
    [
        "missing",
        "extra_forbidden",
        "string_type",
        "string_too_short",
        "string_too_long",
        "string_pattern_mismatch",
        "int_type",
        "int_from_float",
        "float_type",
        "bool_type",
        "list_type",
        "tuple_type",
        "dict_type",
        "model_type",
        "model_attributes_type",
        "too_short",
        "too_long",
        "literal_error",
        "enum",
        "value_error",
        "greater_than",
        "greater_than_equal",
        "less_than",
        "less_than_equal",
        "finite_number",
        "union_tag_not_found",
        "timezone_aware",
        "int_parsing",
        "bool_parsing",
    ]
)
MEMBER = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)


class Refusal(HTTPException):
    """A refusal that only HTTP knows: a status, a code of the problem list, a sentence."""

    def __init__(self, status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail, headers)
        self.code = code


class _Sentence(string.Formatter):
    """Fill a message; a fact that holds input becomes `(as sent)`."""

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return kwargs.get(str(key), "…") if isinstance(key, str) else super().get_value(key, args, kwargs)

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return "(as sent)" if isinstance(value, _Sent) else super().convert_field(value, conversion)


class _Sent(str):
    """Text that came from the caller."""

    __slots__ = ()


def sentence(error: errors.LetheError) -> str:
    """Return the error's message with no value of the caller's in it."""
    facts = {name: _Sent(value) if name in INPUTS and isinstance(value, str) else value for name, value in error.facts.items()}
    return _Sentence().vformat((type(error).__doc__ or "").strip(), (), facts)


def status_of(error: errors.LetheError) -> int:
    """Return the status of the nearest class in the error's line."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def document(status: int, code: str, detail: str, *, request_id: str, **members: Any) -> dict[str, Any]:
    """Return a problem document; extra members that are None are left out."""
    return {
        "type": TYPE_BASE + code,
        "title": code.replace("-", " ").capitalize(),
        "status": status,
        "detail": detail,
        "instance": f"urn:lethe:request:{request_id}",
        "code": code,
        "request_id": request_id,
        "retryable": status in RETRYABLE or code == "idempotency-in-progress",
        "help": HELP.get(status, "Quote the request id to the operator."),
        "errors": members.pop("errors", []),
        **{name: value for name, value in members.items() if value is not None},
    }


def answer(body: dict[str, Any], headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the document as a response."""
    return JSONResponse(body, status_code=body["status"], media_type=MEDIA_TYPE, headers=dict(headers or {}))


def of_error(error: errors.LetheError, *, request_id: str) -> JSONResponse:
    """Return the response of one of our errors."""
    status = status_of(error)
    extra: dict[str, Any] = {}
    headers: dict[str, str] = {}
    if isinstance(error, errors.IllegalTransition):
        extra = {"from": error.facts.get("state"), "allowed": [name for name in str(error.facts.get("allowed", "")).split(", ") if name != "nothing"]}
    if isinstance(error, errors.ModelTooLarge):
        extra = {name: error.facts.get(name) for name in ("needed_bytes", "capacity_bytes", "devices", "methods")}
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="lethe"'
    if status == 503:
        headers["Retry-After"] = "5"
    if isinstance(error, errors.KeyInProgress):
        headers["Retry-After"] = "1"
    text = sentence(error)
    if status == 500:
        return answer(document(500, "internal", "The service failed. Nothing is known to be lost.", request_id=request_id))
    return answer(document(status, error.code, text, request_id=request_id, errors=_named(error, text), **extra), headers)


def _named(error: errors.LetheError, text: str) -> list[dict[str, str]]:
    """Return the pointers that the error carries as facts `pointer` or `pointers`."""
    pointers = error.facts.get("pointers") or ([error.facts["pointer"]] if error.facts.get("pointer") else [])
    return [{"pointer": str(pointer), "detail": text} for pointer in pointers] if isinstance(pointers, list | tuple) else []


def of_validation(error: RequestValidationError, *, request_id: str) -> JSONResponse:
    """Return the 422 of a body or parameter that does not fit its schema."""
    if any(item["loc"] and item["loc"][0] == "path" for item in error.errors()):
        return of_error(errors.NotFound(), request_id=request_id)
    found = [{"pointer": _pointer(item, error.body), "detail": _detail(item)} for item in error.errors()[:50]]
    text = "The body or a parameter does not fit its schema."
    return answer(document(422, "validation-error", text, request_id=request_id, errors=found))


def _pointer(item: Mapping[str, Any], body: Any) -> str:
    """Return the JSON pointer of a pydantic location; names of union branches, which are not in the body, are left out."""
    where, *path = item["loc"]
    if where != "body":
        return f"/{where}/" + "/".join(str(part) for part in path if isinstance(part, int) or MEMBER.fullmatch(str(part).replace("-", "_").lower()))
    pointer, here = "", body
    for index, part in enumerate(path):
        if (isinstance(here, dict) and part in here) or (isinstance(here, list) and isinstance(part, int) and part < len(here)):
            here = here[part]
        elif item["type"] != "missing" or index + 1 < len(path):
            continue
        if isinstance(part, int) or MEMBER.fullmatch(part):
            pointer += f"/{part}"
    return pointer


def _detail(item: Mapping[str, Any]) -> str:
    """Return pydantic's words where they quote nothing, a plain word where they might."""
    if item["type"] == "extra_forbidden":
        return "There is no such member."
    if item["type"] == "union_tag_invalid":
        return f"The kind must be one of {item['ctx'].get('expected_tags')}."
    if item["type"] in QUIET:
        return str(item["msg"]).removeprefix("Value error, ")
    return f"This is not a valid value ({item['type']})."


def of_http(error: HTTPException, *, request_id: str) -> JSONResponse:
    """Return the problem of a framework error such as 404 or 405."""
    code = error.code if isinstance(error, Refusal) else FRAMEWORK.get(error.status_code, "internal")
    detail = error.detail if isinstance(error, Refusal) else f"{code.replace('-', ' ').capitalize()}."
    return answer(document(error.status_code, code, detail, request_id=request_id), error.headers)


def internal(request_id: str) -> JSONResponse:
    """Return the 500 that says nothing about its cause."""
    return answer(document(500, "internal", "The service failed. Nothing is known to be lost.", request_id=request_id))


def install(app: FastAPI) -> None:
    """Give the app one handler for each family of errors. What none of them takes, the outermost middleware answers with 500."""

    async def lethe(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, errors.LetheError)
        if status_of(error) >= 500:
            log.warning("request.refused", code=error.code, request_id=request.state.request_id)
        return of_error(error, request_id=request.state.request_id)

    async def validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return of_validation(error, request_id=request.state.request_id)

    async def framework(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return of_http(error, request_id=request.state.request_id)

    async def response(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ResponseValidationError)
        places = [".".join(str(part) for part in item["loc"]) for item in error.errors()[:10]]
        log.error("response.invalid", request_id=request.state.request_id, places=places)
        return internal(request.state.request_id)

    app.add_exception_handler(errors.LetheError, lethe)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(ResponseValidationError, response)
