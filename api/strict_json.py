"""JSON as the gateway takes it: one meaning per body, or none.

The standard parser keeps the last of two equal keys, takes NaN and lone surrogates, and knows no depth. This one refuses all of them.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

from services.errors import MalformedRequest

MAX_INTEGER_DIGITS = 19


def parse(body: bytes, *, depth: int) -> Any:
    """Return the document in `body`; no array or object lies deeper than `depth`. Raises MalformedRequest, with no part of the body in it."""
    try:
        document = json.loads(
            body.decode("utf-8", errors="strict"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_decimal,
            parse_constant=_constant,
        )
    except UnicodeDecodeError as error:
        raise MalformedRequest(detail="it is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise MalformedRequest(detail=f"line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise MalformedRequest(detail=f"it is nested deeper than {depth}") from error
    _walk(document, depth=depth)
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object, or refuse a name that comes twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedRequest(detail="an object has two members of one name")
    return found


def _integer(digits: str) -> int:
    """Return the integer if 64 bits hold it."""
    if len(digits.lstrip("-")) > MAX_INTEGER_DIGITS or not -(2**63) <= int(digits) < 2**63:
        raise MalformedRequest(detail="an integer does not fit 64 bits")
    return int(digits)


def _decimal(digits: str) -> float:
    """Return the number if it is finite."""
    value = float(digits)
    if not math.isfinite(value):
        raise MalformedRequest(detail="a number is not finite")
    return value


def _constant(_: str) -> float:
    """Refuse NaN, Infinity and -Infinity."""
    raise MalformedRequest(detail="a number is not finite")


def _walk(document: Any, *, depth: int) -> None:
    """Refuse a document that is too deep or holds text that PostgreSQL or UTF-8 cannot."""
    level: list[Any] = [document]
    for _ in range(depth + 1):
        below: list[Any] = []
        for node in level:
            if isinstance(node, str):
                _refuse_text((node,))
            elif isinstance(node, dict):
                _refuse_text(node)
                below.extend(node.values())
            elif isinstance(node, list):
                below.extend(node)
        if not below:
            return
        level = below
    if any(isinstance(node, dict | list) for node in level):
        raise MalformedRequest(detail=f"it is nested deeper than {depth}")
    _refuse_text(node for node in level if isinstance(node, str))


def _refuse_text(texts: Iterable[str]) -> None:
    """Refuse NUL and lone surrogates."""
    for text in texts:
        if text.isascii():
            if "\x00" in text:
                raise MalformedRequest(detail="a string holds U+0000")
        elif "\x00" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise MalformedRequest(detail="a string holds U+0000 or half a surrogate pair")
