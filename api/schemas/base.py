"""What every body shares: bodies that come in refuse unknown members and loose types; bodies that go out are read from the ledger's views."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from api.schemas.ids import LOOKS_LIKE_AN_ID
from models_store.objects import SINGLE_PUT_BYTES

RFC3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?(?:[Zz]|[+-]\d{2}:\d{2})", re.ASCII)
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


class In(BaseModel):
    """A body, or a part of one, that a client sends."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class Out(BaseModel):
    """A body, or a part of one, that the service sends; clients ignore members they do not know."""

    model_config = ConfigDict(from_attributes=True, frozen=True)


def moment(value: Any) -> Any:
    """Return the time of an RFC 3339 string with an offset, in UTC."""
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or not RFC3339.fullmatch(value):
        raise ValueError("This must be an RFC 3339 time with an offset, such as 2026-11-20T09:12:00Z.")
    try:
        found = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError("There is no such time.") from error
    if not EARLIEST <= found < LATEST:
        raise ValueError("This time is out of range.")
    return found


def _no_id(value: str) -> str:
    if LOOKS_LIKE_AN_ID.fullmatch(value):
        raise ValueError("A name must not look like an id.")
    return value


MomentIn = Annotated[datetime, BeforeValidator(moment)]
Moment = Annotated[datetime, AfterValidator(lambda value: value.astimezone(UTC))]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}$"), AfterValidator(_no_id)]
NameOrId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}$")]
Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Note = Annotated[str, Field(min_length=1, max_length=2000)]
Sha256 = Annotated[str, Field(pattern=r"^(?:sha256:)?[0-9a-f]{64}$"), AfterValidator(lambda value: value.removeprefix("sha256:"))]
FilePath = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.\-]*){0,7}$", max_length=200)]

Item = TypeVar("Item")


class Page(Out, Generic[Item]):
    """One page of a listing."""

    items: list[Item]
    next_cursor: str | None = None


class FileIn(In):
    """A file that the client will upload."""

    path: FilePath
    size_bytes: Annotated[int, Field(ge=1, le=SINGLE_PUT_BYTES)]
    sha256: Sha256


class UploadOut(Out):
    """Where to send one declared file: a PUT with exactly these headers, before `expires_at`."""

    path: str
    method: str = "PUT"
    url: str
    headers: dict[str, str]
    size_bytes: int
    sha256: str
    expires_at: Moment


class FileOut(Out):
    """A file of a version; `sha256` is lower-case hex."""

    path: str
    size_bytes: int
    sha256: str


class ProblemPart(Out):
    """One place in the body and what is wrong there."""

    pointer: str
    detail: str


class Problem(Out):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    retryable: bool
    help: str
    errors: list[ProblemPart] = Field(default_factory=list)
