"""The one line a bench prints."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Row:
    """A ratio beside its goal, measured in one run. `detail` holds what the ratio was made of."""

    bench: str
    ratio: float
    goal: float
    better: Literal["higher", "lower"]
    detail: Mapping[str, Any]

    @property
    def reached(self) -> bool:
        """Whether the goal is met."""
        return self.ratio >= self.goal if self.better == "higher" else self.ratio <= self.goal

    def line(self) -> str:
        """Return the row as one line of JSON."""
        return json.dumps(
            {
                "bench": self.bench,
                "ratio": round(self.ratio, 3),
                "goal": self.goal,
                "better": self.better,
                "detail": {**self.detail, "reached": self.reached},
            }
        )
