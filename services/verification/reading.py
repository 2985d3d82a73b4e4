"""What a metric or an attack returns."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar


@dataclass(frozen=True, slots=True)
class Reading:
    """One measured number. `low` and `high` bound it at `level`; `n` is the number of records behind it.

    `detail` holds further JSON-able numbers of the same measurement (for an attack: tpr_at_fpr, members, non-members).
    """

    value: float
    low: float
    high: float
    level: float
    n: int
    detail: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """A number that could not be measured, with the reason; it is printed as null, never as 0."""

    reason: str


Number = Reading | Unmeasured
T = TypeVar("T")


def all_measured(found: Iterable[T | Unmeasured]) -> list[T] | Unmeasured:
    """Return what was found, or the first of it that could not be measured; nothing after that is asked for."""
    values: list[T] = []
    for each in found:
        if isinstance(each, Unmeasured):
            return each
        values.append(each)
    return values


@dataclass(frozen=True, slots=True)
class Measured:
    """One reading of the plan, taken on the original (`before`), the unlearned (`after`) and the retrained model (`reference`).

    `paired` is unlearned minus retrained on the same rows, `change` unlearned minus original (retained splits only); both are None where the
    metric has no paired form. `floor` is the distance of two retrained models' values, the band's least half-width. `leak_side` says on which
    side of the band the forgotten records are still known.
    """

    kind: Literal["metric", "attack"]
    name: str
    split: str
    before: Number
    after: Number
    reference: Number | None = None
    paired: Number | None = None
    direction: Literal["band", "min", "max", "info"] = "info"
    epsilon: float = 0.05
    gate: bool = False
    change: Number | None = None
    floor: float | None = None
    leak_side: Literal["above", "below", "unsigned"] = "above"

    def as_dict(self) -> dict[str, object]:
        """Return the reading as JSON-able values; a number that was not measured is {"value": null, "reason": ...}."""
        numbers = {name: _number_to_dict(getattr(self, name)) for name in NUMBERS}
        rest = {name: getattr(self, name) for name in ("kind", "name", "split", "direction", "epsilon", "gate", "floor", "leak_side")}
        return {**rest, **numbers}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> "Measured":
        """Return the reading that `as_dict` wrote."""
        fields: dict[str, Any] = dict(body)
        fields.update({name: _number_from_dict(body.get(name)) for name in NUMBERS})
        return cls(**fields)


NUMBERS = ("before", "after", "reference", "paired", "change")


def _number_to_dict(number: Number | None) -> dict[str, object] | None:
    if number is None:
        return None
    if isinstance(number, Unmeasured):
        return {"value": None, "reason": number.reason}
    return {
        "value": number.value,
        "low": number.low,
        "high": number.high,
        "level": number.level,
        "n": number.n,
        "detail": dict(number.detail),
    }


def _number_from_dict(body: Mapping[str, Any] | None) -> Number | None:
    if body is None:
        return None
    if body["value"] is None:
        return Unmeasured(body["reason"])
    return Reading(**body)
