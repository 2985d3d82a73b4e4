"""What a metric or an attack returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field


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
    detail: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """A number that could not be measured, with the reason; it is printed as null, never as 0."""

    reason: str
