"""JSON as a gate reads it: one object, no double keys, no fractions unless asked, no NaN, integers of at most 19 digits."""

import json
from typing import Any, NoReturn


class NotStrictJson(ValueError):
    """The text is not the strict JSON object that was asked for."""


def parse_object(raw: bytes, *, fractions: bool = False) -> dict[str, Any]:
    """Return the object that `raw` (strict UTF-8, no byte-order mark, first byte `{`) holds.

    Raises:
        NotStrictJson: it holds something else, or a key twice.
    """
    if not raw.startswith(b"{"):
        raise NotStrictJson("the first byte is not '{'")
    try:
        return json.loads(
            raw.decode("utf-8", "strict"),
            object_pairs_hook=_without_doubles,
            parse_int=_short_integer,
            parse_float=float if fractions else _refuse,
            parse_constant=_refuse,
        )
    except RecursionError as error:
        raise NotStrictJson("it is nested too deeply") from error
    except NotStrictJson:
        raise
    except ValueError as error:
        raise NotStrictJson(f"it is not JSON in UTF-8 ({type(error).__name__})") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NotStrictJson("a key occurs twice")
    return found


def _short_integer(text: str) -> int:
    if len(text) > 20:
        raise NotStrictJson("an integer has more than 19 digits")
    return int(text)


def _refuse(text: str) -> NoReturn:
    raise NotStrictJson(f"{text[:20]} is not allowed here")
