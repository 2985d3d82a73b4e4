"""A check of JSON values by the part of JSON Schema that pydantic writes for parameters, and defaults filled in.

Source: JSON Schema draft 2020-12. Differs: `format`, `if`, `dependent*`, `unevaluated*` and remote references are not known; an unknown keyword is
ignored, as the standard asks.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Json = Any
Problem = tuple[str, str]
"""JSON pointer and what is wrong, without the value."""

_TYPES: dict[str, Callable[[Json], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer()),
}

_BOUNDS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "minimum": (lambda value, bound: value >= bound, "must be at least {}"),
    "maximum": (lambda value, bound: value <= bound, "must be at most {}"),
    "exclusiveMinimum": (lambda value, bound: value > bound, "must be above {}"),
    "exclusiveMaximum": (lambda value, bound: value < bound, "must be below {}"),
}

_LENGTHS: dict[str, tuple[type, Callable[[int, int], bool], str]] = {
    "minLength": (str, lambda size, bound: size >= bound, "must have at least {} characters"),
    "maxLength": (str, lambda size, bound: size <= bound, "must have at most {} characters"),
    "minItems": (list, lambda size, bound: size >= bound, "must have at least {} items"),
    "maxItems": (list, lambda size, bound: size <= bound, "must have at most {} items"),
    "maxProperties": (dict, lambda size, bound: size <= bound, "must have at most {} members"),
}


def problems(schema: Mapping[str, Json], value: Json) -> Iterator[Problem]:
    """Yield each way in which `value` breaks `schema`; nothing means that it holds."""
    yield from _walk(schema, value, "", schema)


def with_defaults(schema: Mapping[str, Json], value: Mapping[str, Json]) -> dict[str, Json]:
    """Return the object with the schema's top-level defaults in the places that it leaves open."""
    stated = {name: part["default"] for name, part in schema.get("properties", {}).items() if "default" in part}
    return {**stated, **value}


def _walk(schema: Mapping[str, Json], value: Json, pointer: str, root: Mapping[str, Json]) -> Iterator[Problem]:
    while "$ref" in schema:
        schema = {**_resolve(schema["$ref"], root), **{key: part for key, part in schema.items() if key != "$ref"}}
    if _TYPES["number"](value) and not math.isfinite(value):
        yield pointer, "must be a finite number"
        return
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_TYPES[kind](value) for kind in kinds):
        yield pointer, f"must be of type {' or '.join(kinds)}"
        return
    if "const" in schema and not _equal(value, schema["const"]):
        yield pointer, f"must be {schema['const']!r}"
    if "enum" in schema and not any(_equal(value, choice) for choice in schema["enum"]):
        yield pointer, f"must be one of {schema['enum']}"
    yield from _sizes(schema, value, pointer)
    yield from _combinations(schema, value, pointer, root)
    if _TYPES["object"](value):
        yield from _members(schema, value, pointer, root)
    if _TYPES["array"](value):
        yield from _items(schema, value, pointer, root)


def _resolve(reference: str, root: Mapping[str, Json]) -> Mapping[str, Json]:
    """Return the part of `root` that a local reference names."""
    part: Json = root
    for step in reference.removeprefix("#/").split("/"):
        part = part[step.replace("~1", "/").replace("~0", "~")]
    return part


def _equal(value: Json, other: Json) -> bool:
    """Compare as JSON does: true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def _sizes(schema: Mapping[str, Json], value: Json, pointer: str) -> Iterator[Problem]:
    if _TYPES["number"](value):
        for keyword, (holds, words) in _BOUNDS.items():
            if keyword in schema and not holds(value, schema[keyword]):
                yield pointer, words.format(schema[keyword])
        step = schema.get("multipleOf")
        if step is not None and not math.isclose(value / step, round(value / step), abs_tol=1e-9):
            yield pointer, f"must be a multiple of {step}"
    for keyword, (kind, fits, words) in _LENGTHS.items():
        if keyword in schema and isinstance(value, kind) and not fits(len(value), schema[keyword]):
            yield pointer, words.format(schema[keyword])
    if isinstance(value, str) and "pattern" in schema and re.search(schema["pattern"], value) is None:
        yield pointer, "does not have the required form"


def _combinations(schema: Mapping[str, Json], value: Json, pointer: str, root: Mapping[str, Json]) -> Iterator[Problem]:
    for part in schema.get("allOf", ()):
        yield from _walk(part, value, pointer, root)
    for keyword in ("anyOf", "oneOf"):
        choices = schema.get(keyword)
        if not choices:
            continue
        found = [list(_walk(choice, value, pointer, root)) for choice in choices]
        holding = sum(not wrong for wrong in found)
        if holding == 0:
            yield min(found, key=_distance)[0]
        elif keyword == "oneOf" and holding > 1:
            yield pointer, "fits more than one of the allowed forms"


def _distance(wrong: list[Problem]) -> tuple[bool, int, int]:
    """Order the alternatives by how near a value came: of the right type, then wrong deep inside, then wrong in few places."""
    return wrong[0][1].startswith("must be of type"), -max(len(where) for where, _ in wrong), len(wrong)


def _members(schema: Mapping[str, Json], value: Mapping[str, Json], pointer: str, root: Mapping[str, Json]) -> Iterator[Problem]:
    declared = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{pointer}/{name}", "is required"
    others = schema.get("additionalProperties", True)
    for name, member in value.items():
        where = f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}"
        if name in declared:
            yield from _walk(declared[name], member, where, root)
        elif others is False:
            yield where, f"is not a parameter; there are {', '.join(sorted(declared)) or 'none'}"
        elif others is not True:
            yield from _walk(others, member, where, root)


def _items(schema: Mapping[str, Json], value: list[Json], pointer: str, root: Mapping[str, Json]) -> Iterator[Problem]:
    leading = schema.get("prefixItems", [])
    for index, item in enumerate(value):
        where = f"{pointer}/{index}"
        if index < len(leading):
            yield from _walk(leading[index], item, where, root)
        elif isinstance(schema.get("items"), dict):
            yield from _walk(schema["items"], item, where, root)
        elif schema.get("items") is False:
            yield where, "is one item too many"
    if schema.get("uniqueItems") and any(_equal(item, other) for index, item in enumerate(value) for other in value[:index]):
        yield pointer, "holds an item twice"
