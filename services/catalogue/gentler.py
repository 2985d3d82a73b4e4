"""A method at reduced strength: its parameters, some of them multiplied by factors that its catalogue entry names. Pure: it reads no database."""

from collections.abc import Mapping
from typing import Any

from services.catalogue.schema import with_defaults


def gentler(parameters: Mapping[str, Any], factors: Mapping[str, float], schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return parameters under which a method costs less of what is kept, with the schema's defaults; None where they would be no others.

    Args:
        parameters: of the attempt that cost too much.
        factors: by parameter, what its number is multiplied by; whole numbers stay whole, and all within the bounds of the schema.
        schema: of the method's parameters.
    """
    whole = with_defaults(schema, parameters)
    found = dict(whole)
    for name, factor in factors.items():
        part, value = schema.get("properties", {}).get(name, {}), whole.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            changed = min(max(value * factor, part.get("minimum", float("-inf"))), part.get("maximum", float("inf")))
            found[name] = round(changed) if part.get("type") == "integer" else changed
    return found if found != whole else None
