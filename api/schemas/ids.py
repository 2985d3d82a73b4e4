"""Identifiers on the wire: a type prefix and 32 hexadecimal digits. Inside they are UUIDs, or names where a path takes either."""

import re
from collections.abc import Callable
from typing import Annotated, Any
from uuid import UUID

from pydantic import BeforeValidator

from services.errors import NotFound

HEX = re.compile(r"[0-9a-f]{32}", re.ASCII)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}", re.ASCII)
PREFIXES = ("dr", "tgt", "job", "mdl", "mv", "ds", "dsv", "pol", "rpt", "evt", "key", "dcr", "hold", "pause", "told")
LOOKS_LIKE_AN_ID = re.compile(rf"(?:{'|'.join(PREFIXES)})_[0-9a-f]{{32}}", re.ASCII)


def wire(prefix: str, value: UUID) -> str:
    """Return the id as a client sees it."""
    return f"{prefix}_{value.hex}"


def parse(prefix: str, text: str) -> UUID:
    """Return the UUID of an id. Raises NotFound for another prefix or form, as for an unknown id."""
    head, _, digits = text.partition("_")
    if head != prefix or not HEX.fullmatch(digits):
        raise NotFound
    return UUID(digits)


def reference(prefix: str, text: str) -> UUID | str:
    """Return the UUID of an id, or a name as it is. Raises NotFound for what can be neither."""
    if LOOKS_LIKE_AN_ID.fullmatch(text):
        return parse(prefix, text)
    if not NAME.fullmatch(text):
        raise NotFound
    return text


def _as(prefix: str) -> Callable[[Any], Any]:
    return lambda value: wire(prefix, value) if isinstance(value, UUID) else value


RequestId = Annotated[str, BeforeValidator(_as("dr"))]
TargetId = Annotated[str, BeforeValidator(_as("tgt"))]
JobId = Annotated[str, BeforeValidator(_as("job"))]
ModelId = Annotated[str, BeforeValidator(_as("mdl"))]
ModelVersionId = Annotated[str, BeforeValidator(_as("mv"))]
DatasetId = Annotated[str, BeforeValidator(_as("ds"))]
DatasetVersionId = Annotated[str, BeforeValidator(_as("dsv"))]
HoldId = Annotated[str, BeforeValidator(_as("hold"))]
PauseId = Annotated[str, BeforeValidator(_as("pause"))]
NotificationId = Annotated[str, BeforeValidator(_as("told"))]
EventId = Annotated[str, BeforeValidator(lambda value: f"evt_{value:032x}" if isinstance(value, int) else value)]
Digest = Annotated[str, BeforeValidator(lambda value: value if not isinstance(value, str) or value.startswith("sha256:") else f"sha256:{value}")]
